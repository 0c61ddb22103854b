"""Predictions have matching shapes and lists, and equal content in csv and npz."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from test_analysis import predictions

from sparsevideo.reports.comparison import subset
from sparsevideo.reports.predictions import (
    Predictions,
    add_labels,
    check_same_list,
    load_predictions,
    save_predictions,
)


def test_predictions_have_probabilities_for_large_logits_but_not_for_failed_files():
    preds = predictions([[1000.0, 1000.0], [1.0, 2.0], [-1000.0, 0.0]], [0, 1, 1], kind="logits", failed=[1])
    assert preds.probabilities.tolist() == [[0.5, 0.5], [0, 0], [0, 1]]
    assert preds.probabilities.dtype == np.float32


def test_predictions_csv_has_true_class_predicted_class_and_scores(tmp_path):
    save_predictions(tmp_path, predictions([[0.25, 0.75], [0.9, 0.1]], [0, 1], failed=[1]))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert rows == [
        ["0.mp4", "class 0", "class 1", "0.25", "0.75"],
        ["1.mp4", "class 1", "failed", "0", "0"],
    ]


def test_predictions_csv_has_the_seconds_of_segments(tmp_path):
    spans = np.array([[0, 1.25], [2, np.inf]])
    save_predictions(tmp_path, replace(predictions([[0.25, 0.75], [0.9, 0.1]], [0, 1]), spans=spans))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["path", "start_s", "end_s", "label", "predicted"]
    assert [row[:4] for row in rows] == [["0.mp4", "0.0", "1.25", "class 0"], ["1.mp4", "2.0", "", "class 1"]]
    loaded = load_predictions(tmp_path)
    assert np.array_equal(loaded.spans, spans) and loaded.spans_unit == "s"


def test_predictions_csv_has_the_frames_of_segments(tmp_path):
    spans = np.array([[10, 50], [20, np.inf]])
    one = replace(predictions([[0.25, 0.75], [0.9, 0.1]], [0, 1]), spans=spans, spans_unit="frames")
    save_predictions(tmp_path, one)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:4] == ["path", "start_frame", "stop_frame", "label"]
    assert [row[:3] for row in rows] == [["0.mp4", "10", "50"], ["1.mp4", "20", ""]]
    with np.load(tmp_path / "predictions.npz") as file:
        assert np.array_equal(file["spans"], spans) and file["spans_unit"] == "frames"
    loaded = load_predictions(tmp_path)
    assert loaded.spans_unit == "frames"
    assert [loaded.segment(row) for row in (0, 1)] == ["0.mp4 [frames 10-50]", "1.mp4 [from frame 20]"]
    assert subset(loaded, np.array([1])).segment(0) == "1.mp4 [from frame 20]"
    with pytest.raises(ValueError, match=r"file 0 is '0\.mp4 \[frames 10-50\]' against '0\.mp4 \[10-50 s\]'"):
        check_same_list([("a", loaded), ("b", replace(loaded, spans_unit="s"))])
    with pytest.raises(ValueError, match="unknown unit of spans 'ms'; it must be one of s, frames"):
        replace(loaded, spans_unit="ms")


def test_predictions_csv_has_empty_cells_for_unknown_seconds(tmp_path):
    """`extract --per-clip` writes NaN if a file of a list in frames could not be read."""
    one = replace(predictions([[0.25, 0.75]], [0]), spans=np.full((1, 2), np.nan))
    save_predictions(tmp_path, one)
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1].startswith("0.mp4,,,")
    assert one.segment(0) == "0.mp4 [unknown s]"


def test_check_same_list_refuses_other_seconds():
    one = predictions(np.eye(2), [0, 1])
    cut, other = (replace(one, spans=np.array([[0, 1], [1, end]])) for end in (2.0, 2.5))
    check_same_list([("a", cut), ("b", replace(cut))])
    with pytest.raises(ValueError, match=r"file 1 is '1\.mp4 \[1-2 s\]' against '1\.mp4 \[1-2\.5 s\]'"):
        check_same_list([("a", cut), ("b", other)])
    with pytest.raises(ValueError, match=r"file 0 is '0\.mp4 \[0-1 s\]' against '0\.mp4'"):
        check_same_list([("a", cut), ("b", one)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "odds"}, "kind of scores must be one of softmax, logits, got .odds."),
        ({"labels": np.zeros(3, int)}, r"labels must have shape \(2,\) for 2 names and 2 classes, got \(3,\)"),
        ({"failed": np.zeros((2, 1), bool)}, r"failed must have shape \(2,\) for 2 names and 2 classes, got \(2, 1\)"),
        ({"spans": np.zeros((1, 2))}, r"spans must have shape \(2, 2\) for 2 names and 2 classes, got \(1, 2\)"),
        ({"scores": np.eye(2, 3)}, r"scores must have shape \(2, 2\) for 2 names and 2 classes, got \(2, 3\)"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change, message):
    fits = {"names": ["0", "1"], "labels": np.zeros(2, int), "scores": np.eye(2), "failed": np.zeros(2, bool)}
    with pytest.raises(ValueError, match=message):
        Predictions(**{**fits, "classes": ["a", "b"], **change})


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)])
def test_check_same_list_refuses_another_length_and_checks_all(ours, theirs):
    one, other = (predictions(np.eye(2)[[0] * n], [0] * n) for n in (ours, theirs))
    check_same_list([("a", one), ("b", one)])
    with pytest.raises(ValueError, match=f"a and c are .* different lists: {ours} against {theirs} of them"):
        check_same_list([("a", one), ("b", one), ("c", other)])


def unlabeled(names, **changes):
    scores = np.full((len(names), 2), 0.5, np.float32)
    return replace(predictions(scores, [-1] * len(names)), names=names, classes=["up", "down"], **changes)


def test_predictions_without_labels_have_an_empty_cell(tmp_path):
    save_predictions(tmp_path, unlabeled(["a.mp4"]))
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == "a.mp4,,up,0.5,0.5"
    assert load_predictions(tmp_path).labels.tolist() == [-1]


def test_labels_are_matched_by_path_and_segment(tmp_path):
    (tmp_path / "lists").mkdir()
    listing = tmp_path / "lists" / "labels.csv"
    names = ["b.mp4", str(tmp_path / "a.mp4"), "http://h/a.mp4?hidden-1f206b11"]
    listing.write_text("../a.mp4,1\n../b.mp4,up\nhttp://anna:pass@h/a.mp4?x=1,down\n")
    assert add_labels(unlabeled(names, root=str(tmp_path)), listing).labels.tolist() == [0, 1, 1]
    listing.write_text("path,label,start_s,end_s\n../b.mp4,up,1,\n../b.mp4,down,0,1\n")
    parts = unlabeled(["b.mp4"] * 2, root=str(tmp_path), spans=np.array([[0, 1], [1, np.inf]]))
    assert add_labels(parts, listing).labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"line 2: its segment is not in frames, as in the predictions"):
        add_labels(replace(parts, spans_unit="frames"), listing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4,up", r"labels\.csv: 1 predicted files are not in it: b\.mp4; list exactly the predicted files"),
        ("a.mp4,up\nb.mp4,up\nnew.mp4,up", r"labels\.csv: 1 listed files are not predicted: new\.mp4; list exactly"),
        ("a.mp4,up\nb.mp4,sideways", r"line 2: sideways not among the 2 classes expected \(up, down\)"),
        ("a.mp4,up\nb.mp4,up\na.mp4,down", r"line 3: lists a\.mp4 twice, with different labels"),
        ("a.mp4\nb.mp4", r"line 1: has no label; write one for each file"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(content, message, tmp_path):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        add_labels(unlabeled(["a.mp4", "b.mp4"], root=str(tmp_path)), tmp_path / "labels.csv")
