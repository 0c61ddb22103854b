"""Statistics of one model agree with slow, obvious counts; the fast bootstrap agrees with one over files."""

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
    """Make probabilities that are right about half of the time."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    logits = rng.normal(size=(n, num_classes))
    logits[np.arange(n), labels] += 2
    powers = np.exp(logits)
    return predictions(powers / powers.sum(1, keepdims=True), labels, failed)


def score(preds, **kwargs):
    return analysis.accuracies(preds.labels, analysis.get_outcomes(preds), len(preds.classes), **kwargs)


@pytest.mark.parametrize("num_classes", [2, 4, 12])
def test_accuracies_are_those_of_summarize(num_classes):
    preds = random_predictions(300, num_classes, failed=[3, 50])
    summary = metrics.summarize(preds.scores, preds.labels, failed=[3, 50])
    values = {name: number["value"] for name, number in score(preds).items()}
    assert values == pytest.approx(summary)
    for number in score(preds).values():
        assert 0 <= number["low"] <= number["value"] <= number["high"] <= 100


def test_accuracies_intervals_equal_a_bootstrap_over_files():
    """Slow reference: draw files; take the mean over the classes that have drawn files."""
    preds = random_predictions(80, 12, failed=[0])
    preds.labels[:2] = 11  # a class with two files: one resample in eight has no file of it
    preds.labels[2:][preds.labels[2:] == 11] = 0
    outcomes, rng = analysis.get_outcomes(preds), np.random.default_rng(1)
    drawn = []
    for _ in range(4000):
        rows = rng.integers(0, 80, 80)
        labels, right = preds.labels[rows], outcomes.top1[rows]
        of_classes = [right[labels == k].mean() for k in np.unique(labels)]
        drawn.append((100 * right.mean(), 100 * outcomes.top5[rows].mean(), 100 * np.mean(of_classes)))
    slow = np.percentile(drawn, [2.5, 97.5], axis=0)  # (2, 3)
    quick = np.array([[number["low"], number["high"]] for number in score(preds).values()]).T
    assert np.abs(quick - slow).max() < 2  # files are 1.25 each, and ends of intervals have their own noise
    assert (slow[1] - slow[0]).min() > 10


def test_accuracies_intervals_hold_the_truth_in_95_of_100_cases():
    """Each list is drawn from a population with 70 % right answers."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        labels, right = rng.integers(0, 4, 150), rng.random(150) < 0.7
        top1 = analysis.accuracies(labels, analysis.Outcomes(labels, right, right), 4, seed=seed)["top1"]
        held += top1["low"] <= 70 <= top1["high"]
    assert 180 <= held <= 198


def test_interval_leaves_out_a_fortieth_at_each_end():
    assert analysis.interval(3, np.arange(1001)) == {"value": 3, "low": 25, "high": 975}


def test_accuracies_intervals_depend_on_the_seed():
    preds = random_predictions(100, 5)
    assert score(preds, seed=1) == score(preds, seed=1) != score(preds, seed=2)


def test_accuracies_count_failed_files_as_wrong():
    preds = predictions(np.eye(3)[[0, 0, 1]], [0, 0, 1], failed=[1])
    numbers = score(preds)
    assert numbers["top1"]["value"] == pytest.approx(200 / 3)
    assert numbers["top5"]["value"] == pytest.approx(200 / 3)  # though five would hold all three classes
    assert numbers["mean_class_accuracy"]["value"] == 75


# Class 0: two of five right, two predicted as 1, one failed. Class 1: all three right. Class 2: no file. Class 3: as 0.
COUNTED = predictions(np.eye(4)[[0, 0, 1, 1, 0, 1, 1, 1, 0]], [0, 0, 0, 0, 0, 1, 1, 1, 3], failed=[4])


def counts_of(preds):
    return metrics.count_confusions(analysis.get_outcomes(preds).predicted, preds.labels, len(preds.classes))


def test_class_table_by_hand():
    table = analysis.class_table(counts_of(COUNTED), COUNTED.classes)
    keys = ("label", "files", "failed", "accuracy", "precision", "taken_for", "taken_for_share")
    assert [tuple(row[key] for key in keys) for row in table] == [
        (3, 1, 0, 0, None, "class 0", 100),  # the worst first; class 3 is never predicted
        (0, 5, 1, 40, pytest.approx(200 / 3), "class 1", 40),
        (1, 3, 0, 100, 60, None, None),
        (2, 0, 0, None, None, None, None),  # no files
    ]


def test_class_table_has_the_larger_of_equal_classes_first():
    preds = predictions(np.eye(3)[[0, 1, 0, 0, 1, 1, 2]], [0, 0, 1, 1, 1, 1, 2])
    assert [row["label"] for row in analysis.class_table(counts_of(preds), preds.classes)] == [1, 0, 2]


def test_class_table_agrees_with_scikit_learn():
    preds = random_predictions(400, 9)
    predicted = analysis.get_outcomes(preds).predicted
    table = sorted(analysis.class_table(counts_of(preds), preds.classes), key=lambda row: row["label"])
    recall, precision = (metric(preds.labels, predicted, average=None) for metric in (recall_score, precision_score))
    assert [row["accuracy"] for row in table] == pytest.approx(100 * recall)
    assert [row["precision"] for row in table] == pytest.approx(100 * precision)
    accuracies = [row["accuracy"] for row in analysis.class_table(counts_of(preds), preds.classes)]
    assert accuracies == sorted(accuracies)


def test_confused_pairs_by_hand():
    pairs = analysis.confused_pairs(counts_of(COUNTED), COUNTED.classes, at_most=5)
    assert [tuple(pair.values()) for pair in pairs] == [("class 0", "class 1", 2, 40), ("class 3", "class 0", 1, 100)]
    assert analysis.confused_pairs(counts_of(COUNTED), COUNTED.classes, at_most=1) == pairs[:1]
    assert analysis.confused_classes(counts_of(COUNTED), at_most=5) == [0, 1, 3]
    assert analysis.confused_classes(counts_of(COUNTED), at_most=2) == [0, 1]


def test_confused_pairs_have_the_larger_share_of_equal_counts_first():
    preds = predictions(np.eye(3)[[0, 0, 1, 1, 2, 2, 2, 2, 2]], [0, 0, 0, 1, 1, 2, 2, 2, 2])
    pairs = analysis.confused_pairs(counts_of(preds), preds.classes, at_most=5)
    assert [(pair["true"], pair["count"], round(pair["share"])) for pair in pairs] == [
        ("class 1", 1, 50),
        ("class 0", 1, 33),
    ]


def test_confident_errors_are_sorted_and_exclude_failed_files():
    preds = predictions([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.95, 0.05]], [0, 0, 0, 1, 1], failed=[4])
    errors = analysis.confident_errors(preds, analysis.get_outcomes(preds), at_most=5)
    assert [error["name"] for error in errors] == ["1.mp4", "2.mp4"]
    assert (errors[0]["true"], errors[0]["predicted"]) == ("class 0", "class 1")
    assert (errors[0]["probability"], errors[0]["true_probability"]) == pytest.approx((0.9, 0.1))
    assert len(analysis.confident_errors(preds, analysis.get_outcomes(preds), at_most=1)) == 1


def test_confident_errors_of_logits_have_their_softmax():
    preds = predictions([[8.0, 8.5], [0.0, np.log(3)]], [0, 0], kind="logits")
    first, _ = analysis.confident_errors(preds, analysis.get_outcomes(preds), at_most=5)
    assert (first["name"], first["probability"]) == ("1.mp4", pytest.approx(0.75))


def test_random_split_is_disjoint_and_complete():
    rows = np.arange(3, 50, 2)
    fitted, scored = analysis.random_split(rows, seed=0)
    assert sorted([*fitted, *scored]) == rows.tolist()
    assert len(scored) - len(fitted) in (0, 1)
    assert fitted.tolist() != rows[: len(fitted)].tolist()  # random, not the first rows
    assert (
        analysis.random_split(rows, seed=0)[0].tolist()
        == fitted.tolist()
        != analysis.random_split(rows, seed=1)[0].tolist()
    )


@pytest.mark.parametrize(
    ("preds", "message"),
    [
        (predictions(np.eye(2), [0, 1], failed=[0, 1]), r"at least 2 readable files are needed, got 0 of 2 listed"),
        (predictions(np.zeros((0, 2)), np.zeros(0, int)), "got 0 of 0 listed"),
        (predictions(np.eye(2), [0, 1], failed=[0]), "got 1 of 2 listed"),
        (predictions(np.eye(2), [0, 2]), "labels 0 to 2 do not fit 2 classes"),
        (predictions(np.eye(2), [0, -1]), "of 2 files have no label; add --labels"),
        (predictions([[1, 0], [0, 1], [np.nan, 1], [1, np.inf]], [0] * 4, failed=[0]), r"2 rows .* is 2, 2\.mp4"),
        (predictions([[1, 0], [5, -3]], [0, 0]), "of kind softmax .* first is 1"),
        (predictions([[1, 0], [1.5, -0.5]], [0, 0]), "of kind softmax .* first is 1"),
        (predictions([[1, 0], [0.9, 0.9]], [0, 0]), "of kind softmax .* first is 1"),
        (predictions([[1, 0], [0.4, 0.4]], [0, 0]), "of kind softmax .* first is 1"),
    ],
)
def test_check_scores_refuses_what_cannot_be_analyzed(preds, message):
    with pytest.raises(ValueError, match=message):
        analysis.check_scores(preds)


def test_check_scores_accepts_logits_and_rounded_probabilities():
    analysis.check_scores(predictions([[5, -3], [2, 2]], [0, 1], kind="logits"))
    analysis.check_scores(predictions([[0.998, 0.0], [0, 1]], [0, 1]))  # as in half precision
