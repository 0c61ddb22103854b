"""Accuracies are exact also for ties and failures, and plots show the counted values."""

import json
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from sparsevideo.reports import metrics


def scored(n, num_classes, seed=0):
    """Make scores that are right about half of the time, without ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    scores = rng.random((n, num_classes))
    scores[np.arange(n), labels] += 0.5
    return scores, labels


def one_hot(predicted, num_classes):
    return np.eye(num_classes)[predicted]


@pytest.fixture
def drawn(monkeypatch):
    """Record the texts written into axes: cells and titles."""
    texts = []
    for method, at in (("text", 2), ("set_title", 0)):
        original = getattr(Axes, method)

        def record(self, *args, original=original, at=at, **kwargs):
            texts.append((*args[:at], args[at]))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, method, record)
    return texts


def test_summarize_agrees_with_scikit_learn():
    scores, labels = scored(500, 12)
    summary = metrics.summarize(scores, labels)
    assert summary["top1"] == pytest.approx(100 * accuracy_score(labels, scores.argmax(1)))
    assert summary["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5))
    assert summary["mean_class_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, scores.argmax(1)))
    assert json.loads(json.dumps(summary)) == summary  # plain floats, as results.json needs them


def test_summarize_ranks_the_lower_class_first_in_a_tie():
    """With equal scores for all eight classes the order is 0 1 2 3 4 5 6 7."""
    summary = metrics.summarize(np.zeros((4, 8)), np.array([0, 4, 5, 7]))
    assert summary["top1"] == 25
    assert summary["top5"] == 50


def test_summarize_top5_of_fewer_classes_is_100():
    scores, labels = scored(50, 3)
    assert metrics.summarize(scores, labels)["top5"] == 100
    assert metrics.summarize(np.ones((4, 1)), np.zeros(4, int))["top1"] == 100


def test_summarize_mean_excludes_classes_without_samples():
    """Three of class 0, two of them right, and one right of class 2; classes 1 and 3 have none."""
    summary = metrics.summarize(one_hot([0, 0, 1, 2], 4), np.array([0, 0, 0, 2]))
    assert summary["top1"] == 75
    assert summary["mean_class_accuracy"] == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_summarize_counts_failed_samples_as_wrong():
    scores, labels = one_hot([0, 1, 1, 0], 2).astype(float), np.array([0, 1, 1, 0])
    assert metrics.summarize(scores, labels)["top1"] == 100
    scores[3] = np.nan
    # row 2 scores the right class; a failed label 0 must not count as a class either
    assert metrics.summarize(scores, labels, failed=[2, 3]) == {"top1": 50, "top5": 50, "mean_class_accuracy": 50}
    assert set(metrics.summarize(scores, labels, failed=range(4)).values()) == {0.0}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 5)), np.zeros(0, int), "no scores: shape"),
        (np.zeros((3, 5)), np.zeros(4, int), r"got \(3, 5\) and \(4,\)"),
        (np.zeros(5), np.zeros(5, int), r"\(5,\)"),
        (np.zeros((2, 5)), np.array([0, 5]), "labels 0 to 5"),
        (np.zeros((2, 5)), np.array([-1, 0]), "labels -1 to 0"),
        (np.array([[0, 1], [0, np.nan]]), np.array([0, 1]), "the first is 1"),
    ],
)
def test_summarize_refuses_invalid_input(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.summarize(scores, labels)


def test_confusion_rows_are_true_classes_in_percent(tmp_path, drawn):
    """Class 0: three of four right, one predicted as 2. Class 1: no sample. Class 2: right, but one failed."""
    labels = np.array([0, 0, 0, 0, 2, 2])
    metrics.save_confusion_matrix(tmp_path / "c.png", one_hot([0, 0, 0, 2, 2, 2], 3), labels, "abc", failed=[5])
    *cells, title = drawn
    assert sorted(cells) == [(0, 0, "75.0"), (2, 0, "25.0"), (2, 2, "50.0"), (3, 2, "50.0")]  # x is the prediction
    assert title[0].startswith("66.7 % of 6 right")


@pytest.mark.parametrize(("num_classes", "has_text"), [(2, True), (30, True), (31, False), (100, False)])
def test_confusion_matrix_writes_numbers_only_where_they_fit(tmp_path, drawn, num_classes, has_text):
    scores, labels = scored(200, num_classes)
    classes = ["$5_{$", "¡olé!"] + [f"class {i}" for i in range(num_classes - 2)]  # the first is not a formula
    metrics.save_confusion_matrix(tmp_path / "c.png", scores, labels, classes)
    assert imread(tmp_path / "c.png").shape[0] > 250
    assert (len(drawn) > 1) == has_text


def test_confusion_matrix_needs_a_name_for_each_class(tmp_path):
    with pytest.raises(ValueError, match="class names: must be 3, one per column of scores, got 2"):
        metrics.save_confusion_matrix(tmp_path / "c.png", *scored(5, 3), ["a", "b"])


def test_confused_classes_are_in_percent_of_whole_rows(tmp_path, drawn):
    """Class 2: one of five right, two predicted as 0, one as 1, which is not drawn, one failed. Class 0: both right."""
    counts = metrics.count_confusions(np.array([0, 0, 2, 0, 0, 1, -1]), np.array([0, 0, 2, 2, 2, 2, 2]), 4)
    metrics.save_confused_classes(tmp_path / "c.png", counts, "abcd", [2, 0])
    *cells, title = drawn
    # x is the prediction: 2, 0, all others, failed
    assert sorted(cells) == [(0, 0, "20.0"), (1, 0, "40.0"), (1, 1, "100.0"), (2, 0, "20.0"), (3, 0, "20.0")]
    assert title[0].startswith("2 of 4 classes")


def test_reliability_diagram_has_bars_as_high_as_the_accuracy(tmp_path, monkeypatch):
    bars = []
    original = Axes.bar

    def record(self, x, height, **kwargs):
        bars.append((list(x), list(height)))
        return original(self, x, height, **kwargs)

    monkeypatch.setattr(Axes, "bar", record)
    bins = [
        {"low": 0, "high": 50, "samples": 0, "confidence": None, "accuracy": None},
        {"low": 50, "high": 100, "samples": 3, "confidence": 90.0, "accuracy": 60.0},
    ]
    metrics.save_reliability_diagram(tmp_path / "r.png", {"before": bins, "after": bins})
    assert bars == [([50], [60]), ([50], [3])] * 2  # an empty bin has none
    assert imread(tmp_path / "r.png").ndim == 3


def log(path, *records, truncated=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + truncated)
    return path


TRAIN = [{"split": "train", "step": step, "loss": 8.0 / step} for step in range(1, 41)]
VAL = [{"split": "val", "step": step, "loss": 20 / step, "top1": 2.0 * step} for step in (20, 40)]


@pytest.fixture
def lines(monkeypatch):
    """Record the plotted lines: panel, steps and values."""
    calls = []
    original = Axes.plot

    def record(self, x, y, **kwargs):
        calls.append((self.get_subplotspec().colspan.start, list(x), list(y)))
        return original(self, x, y, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    return calls


def test_curves_show_the_loss_raw_and_smooth_and_the_validation(tmp_path, lines):
    whole = log(tmp_path / "a.jsonl", *TRAIN, *VAL)
    metrics.save_learning_curves(tmp_path / "c.png", {"a": whole}, chance={"a": 12.5})
    raw, smooth, validation, top1 = lines
    steps, loss = list(range(1, 41)), [8.0 / step for step in range(1, 41)]
    assert raw == (0, steps, loss)
    assert validation == (0, [20, 40], [1.0, 0.5])
    assert top1 == (1, [20, 40], [40, 80])
    assert smooth[1] == steps
    assert smooth[2][0] == 8.0 and smooth[2][20] == pytest.approx((loss[19] + loss[20]) / 2)  # two of forty
    assert imread(tmp_path / "c.png").ndim == 3


def test_curves_of_a_log_without_a_validation_loss(tmp_path, lines):
    old = log(tmp_path / "a.jsonl", *TRAIN, {"split": "val", "step": 40, "top1": 80.0})
    metrics.save_learning_curves(tmp_path / "c.png", {"a": old})
    assert [(panel, x) for panel, x, _ in lines[2:]] == [(1, [40])]


def test_curves_tell_training_from_validation_in_the_legend(tmp_path, monkeypatch):
    legends = []
    original = Axes.legend
    monkeypatch.setattr(Axes, "legend", lambda self, **style: legends.append(original(self, **style)))
    whole = log(tmp_path / "a.jsonl", *TRAIN, *VAL)
    metrics.save_learning_curves(tmp_path / "c.png", {"a": whole, "b": whole})
    left, right = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert left == ["a, training", "a, validation", "b, training", "b, validation"] and right == ["a", "b"]


def test_curves_of_a_killed_run_leave_out_its_truncated_last_line(tmp_path, lines):
    log_path = log(tmp_path / "a.jsonl", *TRAIN[:3], truncated='{"split": "train", "st')
    metrics.save_learning_curves(tmp_path / "c.png", {"a": log_path})
    assert [x for _, x, _ in lines] == [[1, 2, 3], [1, 2, 3], []]  # and nothing validated yet


def test_curves_survive_a_loss_that_is_not_finite(tmp_path):
    bad = log(tmp_path / "a.jsonl", *TRAIN, {"split": "train", "step": 41, "loss": math.nan})
    metrics.save_learning_curves(tmp_path / "c.png", {"a": bad})


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "a.jsonl: nothing logged yet"), ('{"spl\n{"split": "val"}\n', "a.jsonl, line 1: not JSON")],
)
def test_curves_name_the_log_that_is_wrong(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        metrics.save_learning_curves(tmp_path / "c.png", {"a": tmp_path / "a.jsonl"})
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl"):
        metrics.save_learning_curves(tmp_path / "c.png", {"b": tmp_path / "b.jsonl"})
