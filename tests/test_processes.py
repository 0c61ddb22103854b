"""Real processes: what several ranks compute is what one computes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_runs import VIDEO

from sparsevideo.cli import OK, main
from sparsevideo.models import zoo


def torchrun(processes, *argv):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "sparsevideo", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


@pytest.fixture(scope="module")
def one_process(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={out}", "--data.flip=0"]) == OK
    assert main(["test", str(out / "checkpoints" / "last.pt"), "--views=2x2", f"--out={out / 'test'}"]) == OK
    return out


def test_a_torn_video_is_told_whatever_the_rank_that_met_it(one_process, digits, tmp_path):
    """A share of 23 videos and one that fails: nobody waits for ever, and rank 0's results are whole."""
    test = tmp_path / "videos" / "test"
    shutil.copytree(digits / "videos" / "test", test)
    (test / "up" / "0001.mp4").write_bytes(b"torn")
    (test / "up" / "0002.mp4").unlink()
    args = [one_process / "checkpoints" / "last.pt", f"--data.root={tmp_path}", f"--out={tmp_path / 'results'}"]
    done = torchrun(2, "test", *args)
    assert done.returncode != OK  # torchrun's own, for rank 0's 3
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (results["listed"], results["scored"]) == (23, 22)
    assert [failure["name"] for failure in results["failed"]] == ["videos/test/up/0001.mp4"]
    assert len(np.load(tmp_path / "results" / "predictions.npz")["scores"]) == 23


def test_ranks_count_a_torn_video_that_both_met_once(digits, tmp_path):
    """1 of 48 files is within 3 %, whoever meets it; a run that goes on with other ranks says so."""
    shutil.copytree(digits / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "train" / "up" / "0001.mp4").write_bytes(b"torn")
    args = [*VIDEO, f"--data.root={tmp_path}", f"--out={tmp_path / 'run'}", "--data.max_bad_fraction=0.03"]
    args += ["--train.validate_every=0", "--train.batch_size=6"]
    done = torchrun(2, "train", *args, "--train.max_steps=16")  # four epochs
    assert done.returncode == OK, done.stderr[-3000:]
    assert "could not read videos/train/up/0001.mp4" in done.stderr
    done = torchrun(1, "train", *args, "--train.max_steps=18", "--resume")
    assert "global batch 12 (2 processes x 1 x 6) -> 6 (1 processes x 1 x 6)" in done.stderr


def test_bad_input_ends_all_ranks(tmp_path):
    done = torchrun(2, "train", *VIDEO, f"--data.root={tmp_path / 'nowhere'}", f"--out={tmp_path / 'run'}")
    assert done.returncode != OK
    assert "nowhere: no such folder" in done.stderr


@pytest.mark.parametrize("processes", [2, 3])
def test_every_number_of_processes_gives_the_same_scores(processes, one_process, tmp_path):
    """24 videos: a share of each number of ranks, none of them padded."""
    done = torchrun(processes, "test", one_process / "checkpoints" / "last.pt", "--views=2x2", f"--out={tmp_path}")
    assert done.returncode == OK, done.stderr[-3000:]
    alone, together = (np.load(folder / "predictions.npz") for folder in (one_process / "test", tmp_path))
    assert alone["names"].tolist() == together["names"].tolist()
    assert np.abs(alone["scores"] - together["scores"]).max() < 1e-6
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["environment"]["world_size"] == processes
    assert results["top1"] == json.loads((one_process / "test" / "results.json").read_text())["top1"]


def test_two_ranks_with_half_the_batch_train_as_one(digits, one_process, tmp_path):
    args = [*VIDEO, f"--data.root={digits}", "--data.flip=0", "--train.batch_size=2", f"--out={tmp_path / 'run'}"]
    done = torchrun(2, "train", *args)
    assert done.returncode == OK, done.stderr[-3000:]
    alone, together = (
        zoo.read_weights(run / "checkpoints" / "last.pt")["model"] for run in (one_process, tmp_path / "run")
    )
    for name, tensor in alone.items():
        assert torch.allclose(tensor, together[name], rtol=1e-4, atol=1e-5), name
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2  # rank 0 alone writes
