"""`sparsevideo probe`: scores of two classifiers on two files of features."""

import json

import numpy as np
import pytest

from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.reports.features import Features, save_features
from sparsevideo.reports.predictions import load_predictions


@pytest.fixture
def pair(tmp_path):
    """Four classes along four axes; one training and one test file failed."""
    for split, n in (("train", 40), ("test", 16)):
        labels, failed = np.arange(n) % 4, np.arange(n) == 3
        rows = np.eye(4, 6)[labels] + 0.1 * np.random.default_rng(n).normal(size=(n, 6))
        names = [f"{index}.mp4" for index in range(n)]
        features = Features(names, labels, rows.astype(np.float32), failed, ["a", "b", "c", "d"], split)
        save_features(tmp_path / f"{split}.npz", features)
    return tmp_path / "train.npz", tmp_path / "test.npz"


def test_probe_writes_and_prints_the_scores_of_both(pair, tmp_path, capsys):
    train, test = map(str, pair)
    assert main(["probe", train, test, f"--out={tmp_path / 'deep' / 'out'}", "--k=3", "--json"]) == OK
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert results == json.loads((tmp_path / "deep" / "out" / "probe.json").read_text())
    assert results["knn"]["k"] == 3
    assert results["knn"]["top1"] == results["linear"]["top1"] == 100 * 15 / 16
    assert "1 of 40 training files have no features: left out" in output.err
    assert "linear: top1 93.75  top5 93.75  mean class 93.75  on 15 of 16 files" in output.err
    assert load_predictions(tmp_path / "deep" / "out" / "linear").failed.sum() == 1


def test_probe_writes_beside_the_test_features_by_default(pair, tmp_path, capsys):
    assert main(["probe", *map(str, pair)]) == OK
    assert capsys.readouterr().out == ""
    results = json.loads((tmp_path / "test-probe" / "probe.json").read_text())
    assert results["knn"]["k"] == 20


def test_probe_refuses_bad_input_in_one_line(pair, tmp_path, capsys):
    train, test = map(str, pair)

    def error(*args):
        assert main(["probe", *args]) == FAILED
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        return line

    assert "15.mp4" not in error(train, train)
    assert "40 test files are also training files; the first is train" in error(train, train)
    assert "none.npz: no such file of features" in error(train, str(tmp_path / "none.npz"))
    assert "k must be >= 1, got 0" in error(train, test, "--k=0")
    (tmp_path / "file").write_text("")
    assert "file" in error(train, test, f"--out={tmp_path / 'file'}")
    assert main(["probe", train, test, "--kk=3"]) == USAGE
    assert main(["probe", train]) == USAGE
    assert not (tmp_path / "test-probe").exists()
