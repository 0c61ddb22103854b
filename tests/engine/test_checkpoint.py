"""A checkpoint is complete or absent."""

import pytest
import torch

from sparsevideo.engine import checkpoint
from sparsevideo.utils.files import sha256


def test_round_trip_is_weights_only(tmp_path):
    checkpoint.save(tmp_path / "new" / "last.pt", {"model": {"w": torch.ones(2)}, "classes": ["a b", "ü"]})
    loaded = torch.load(tmp_path / "new" / "last.pt", weights_only=True)
    assert loaded["classes"] == ["a b", "ü"]
    assert torch.equal(loaded["model"]["w"], torch.ones(2))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def tear(content, file):
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", tear)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
