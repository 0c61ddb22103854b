"""One model's numbers are those of slow, obvious counts; the quick bootstrap is the bootstrap over files."""

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from sparsevideo.reports import analysis, metrics
from sparsevideo.reports.predictions import Predictions


def predictions(scores, labels, failed=(), kind="softmax"):
    scores, labels = np.asarray(scores, dtype=np.float32), np.asarray(labels)
    flags = np.zeros(len(labels), dtype=bool)
    flags[list(failed)] = True
    names = [f"{row}.mp4" for row in range(len(labels))]
    classes = [f"class {k}" for k in range(scores.shape[1])]
    return Predictions(names, labels, np.where(flags[:, None], 0, scores), flags, classes, kind)


def random_predictions(n, num_classes, seed=0, failed=()):
    """Probabilities that are right about half of the time."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    logits = rng.normal(size=(n, num_classes))
    logits[np.arange(n), labels] += 2
    powers = np.exp(logits)
    return predictions(powers / powers.sum(1, keepdims=True), labels, failed)


def score(told, **kwargs):
    return analysis.accuracies(told.labels, analysis.answers(told), len(told.classes), **kwargs)


@pytest.mark.parametrize("num_classes", [2, 4, 12])
def test_the_values_are_those_of_a_test(num_classes):
    told = random_predictions(300, num_classes, failed=[3, 50])
    summary = metrics.summarize(told.scores, told.labels, failed=[3, 50])
    values = {name: number["value"] for name, number in score(told).items()}
    assert values == pytest.approx(summary)
    for number in score(told).values():
        assert 0 <= number["low"] <= number["value"] <= number["high"] <= 100


def test_drawing_counts_is_drawing_files():
    """The slow twin draws files, and takes the mean over the classes that it has drawn any of."""
    told = random_predictions(80, 12, failed=[0])
    told.labels[:2] = 11  # and a class with two files: one resample in eight has none of it
    told.labels[2:][told.labels[2:] == 11] = 0
    given, rng = analysis.answers(told), np.random.default_rng(1)
    drawn = []
    for _ in range(4000):
        rows = rng.integers(0, 80, 80)
        labels, right = told.labels[rows], given.top1[rows]
        of_classes = [right[labels == k].mean() for k in np.unique(labels)]
        drawn.append((100 * right.mean(), 100 * given.top5[rows].mean(), 100 * np.mean(of_classes)))
    slow = np.percentile(drawn, [2.5, 97.5], axis=0)  # (2, 3)
    quick = np.array([[number["low"], number["high"]] for number in score(told).values()]).T
    assert np.abs(quick - slow).max() < 2  # files are 1.25 each, and ends of intervals have their own noise
    assert (slow[1] - slow[0]).min() > 10


def test_95_of_100_intervals_hold_the_truth():
    """Each list is drawn from a world in which 70 % are right."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        labels, right = rng.integers(0, 4, 150), rng.random(150) < 0.7
        told = analysis.accuracies(labels, analysis.Answers(labels, right, right), 4, seed=seed)["top1"]
        held += told["low"] <= 70 <= told["high"]
    assert 180 <= held <= 198


def test_an_interval_leaves_out_a_fortieth_at_each_end():
    assert analysis.interval(3, np.arange(1001)) == {"value": 3, "low": 25, "high": 975}


def test_the_seed_decides():
    told = random_predictions(100, 5)
    assert score(told, seed=1) == score(told, seed=1) != score(told, seed=2)


def test_failed_files_are_wrong_whatever_their_label():
    told = predictions(np.eye(3)[[0, 0, 1]], [0, 0, 1], failed=[1])
    numbers = score(told)
    assert numbers["top1"]["value"] == pytest.approx(200 / 3)
    assert numbers["top5"]["value"] == pytest.approx(200 / 3)  # though five would hold all three classes
    assert numbers["mean_class_accuracy"]["value"] == 75


# Class 0: two of five right, two taken for 1, one failed. Class 1: all three. Class 2: no file. Class 3: taken for 0.
COUNTED = predictions(np.eye(4)[[0, 0, 1, 1, 0, 1, 1, 1, 0]], [0, 0, 0, 0, 0, 1, 1, 1, 3], failed=[4])


def counts_of(told):
    return metrics.count_confusions(analysis.answers(told).predicted, told.labels, len(told.classes))


def test_the_class_table_by_hand():
    table = analysis.class_table(counts_of(COUNTED), COUNTED.classes)
    keys = ("label", "files", "failed", "accuracy", "precision", "taken_for", "taken_for_share")
    assert [tuple(row[key] for key in keys) for row in table] == [
        (3, 1, 0, 0, None, "class 0", 100),  # the worst first; nothing was called 3
        (0, 5, 1, 40, pytest.approx(200 / 3), "class 1", 40),
        (1, 3, 0, 100, 60, None, None),
        (2, 0, 0, None, None, None, None),  # nothing to say
    ]


def test_of_equally_bad_classes_the_larger_comes_first():
    told = predictions(np.eye(3)[[0, 1, 0, 0, 1, 1, 2]], [0, 0, 1, 1, 1, 1, 2])
    assert [row["label"] for row in analysis.class_table(counts_of(told), told.classes)] == [1, 0, 2]


def test_the_class_table_agrees_with_scikit_learn():
    told = random_predictions(400, 9)
    predicted = analysis.answers(told).predicted
    table = sorted(analysis.class_table(counts_of(told), told.classes), key=lambda row: row["label"])
    recall, precision = (metric(told.labels, predicted, average=None) for metric in (recall_score, precision_score))
    assert [row["accuracy"] for row in table] == pytest.approx(100 * recall)
    assert [row["precision"] for row in table] == pytest.approx(100 * precision)
    accuracies = [row["accuracy"] for row in analysis.class_table(counts_of(told), told.classes)]
    assert accuracies == sorted(accuracies)


def test_the_most_confused_pairs_by_hand():
    pairs = analysis.confused_pairs(counts_of(COUNTED), COUNTED.classes, at_most=5)
    assert [tuple(pair.values()) for pair in pairs] == [("class 0", "class 1", 2, 40), ("class 3", "class 0", 1, 100)]
    assert analysis.confused_pairs(counts_of(COUNTED), COUNTED.classes, at_most=1) == pairs[:1]
    assert analysis.confused_classes(counts_of(COUNTED), at_most=5) == [0, 1, 3]
    assert analysis.confused_classes(counts_of(COUNTED), at_most=2) == [0, 1]


def test_of_equally_many_confusions_the_larger_share_comes_first():
    told = predictions(np.eye(3)[[0, 0, 1, 1, 2, 2, 2, 2, 2]], [0, 0, 0, 1, 1, 2, 2, 2, 2])
    pairs = analysis.confused_pairs(counts_of(told), told.classes, at_most=5)
    assert [(pair["true"], pair["count"], round(pair["share"])) for pair in pairs] == [
        ("class 1", 1, 50),
        ("class 0", 1, 33),
    ]


def test_the_most_confident_errors_come_first_and_failed_files_are_none():
    told = predictions([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.95, 0.05]], [0, 0, 0, 1, 1], failed=[4])
    errors = analysis.confident_errors(told, analysis.answers(told), at_most=5)
    assert [error["name"] for error in errors] == ["1.mp4", "2.mp4"]
    assert (errors[0]["true"], errors[0]["predicted"]) == ("class 0", "class 1")
    assert (errors[0]["probability"], errors[0]["true_probability"]) == pytest.approx((0.9, 0.1))
    assert len(analysis.confident_errors(told, analysis.answers(told), at_most=1)) == 1


def test_the_confidence_of_logits_is_their_softmax():
    told = predictions([[8.0, 8.5], [0.0, np.log(3)]], [0, 0], kind="logits")
    first, _ = analysis.confident_errors(told, analysis.answers(told), at_most=5)
    assert (first["name"], first["probability"]) == ("1.mp4", pytest.approx(0.75))


def test_halves_share_nothing_and_miss_nothing():
    rows = np.arange(3, 50, 2)
    fitted, scored = analysis.halves(rows, seed=0)
    assert sorted([*fitted, *scored]) == rows.tolist()
    assert len(scored) - len(fitted) in (0, 1)
    assert fitted.tolist() != rows[: len(fitted)].tolist()  # drawn, not cut
    assert analysis.halves(rows, seed=0)[0].tolist() == fitted.tolist() != analysis.halves(rows, seed=1)[0].tolist()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (predictions(np.eye(2), [0, 1], failed=[0, 1]), "no readable videos: nothing to analyse"),
        (predictions(np.zeros((0, 2)), np.zeros(0, int)), "no readable videos"),
        (predictions(np.eye(2), [0, 1], failed=[0]), "one readable video"),
        (predictions(np.eye(2), [0, 2]), "labels 0 to 2 do not fit 2 classes"),
        (predictions(np.eye(2), [0, -1]), "labels -1 to 0 do not fit 2 classes"),
        (predictions([[1, 0], [0, 1], [np.nan, 1], [1, np.inf]], [0] * 4, failed=[0]), r"2 rows .* is 2, 2\.mp4"),
        (predictions([[1, 0], [5, -3]], [0, 0]), "called softmax .* first is 1"),
        (predictions([[1, 0], [1.5, -0.5]], [0, 0]), "called softmax .* first is 1"),
        (predictions([[1, 0], [0.9, 0.9]], [0, 0]), "called softmax .* first is 1"),
        (predictions([[1, 0], [0.4, 0.4]], [0, 0]), "called softmax .* first is 1"),
    ],
)
def test_what_cannot_be_analysed_is_refused(told, message):
    with pytest.raises(ValueError, match=message):
        analysis.check_scores(told)


def test_what_can_be_is_not():
    analysis.check_scores(predictions([[5, -3], [2, 2]], [0, 1], kind="logits"))
    analysis.check_scores(predictions([[0.998, 0.0], [0, 1]], [0, 1]))  # as half precision may have it
