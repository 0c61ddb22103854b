"""Statistics of one model's predictions: accuracies with intervals, classes, confusions, errors.

Shares are percentages, probabilities are not. A file that failed counts as a wrong answer.

Letters: n files, K classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from sparsevideo.data.classes import UNLABELED
from sparsevideo.data.segments import segment_columns
from sparsevideo.reports.metrics import rank_classes
from sparsevideo.reports.predictions import Predictions

RESAMPLES = 1000  # of a bootstrap
LEVEL = 95  # of every interval, in percent
_SUM_TOLERANCE = 0.01  # largest distance from 1 of the sum of a softmax in half precision


class Interval(TypedDict):
    """A value with its bootstrap interval."""

    value: float
    low: float
    high: float


Accuracies = dict[str, Interval]  # top1, top5 and mean_class_accuracy in percent, with bootstrap intervals
Row = dict[str, Any]  # of a table, for csv and JSON


class Outcomes(NamedTuple):
    """Predicted classes and right answers.

    Attributes:
        predicted: (n,) classes; -1 if a file failed.
        top1: (n,) bool, whether the predicted class is right.
        top5: (n,) bool, whether the true class is among the first min(5, K).
    """

    predicted: np.ndarray
    top1: np.ndarray
    top5: np.ndarray


def check_scores(predictions: Predictions) -> None:
    """Check that predictions can be analyzed.

    Raises:
        ValueError: Fewer than two files could be read, a label is missing or outside 0 to K-1, a score is NaN or
            infinite, or the scores have the kind "softmax" but are not probabilities.
    """
    labels, read = predictions.labels, np.flatnonzero(~predictions.failed)
    if len(read) < 2:
        raise ValueError(f"at least 2 readable files are needed, got {len(read)} of {len(labels)} listed")
    if UNLABELED in labels:
        count = int((labels == UNLABELED).sum())
        raise ValueError(
            f"{count} of {len(labels)} files have no label; add --labels with a list file or class folders"
        )
    if labels.min() < 0 or labels.max() >= len(predictions.classes):
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not fit {len(predictions.classes)} classes")
    scores = predictions.scores[read]
    wrong, reason = ~np.isfinite(scores).all(axis=1), "scores that are NaN or infinite"
    if not wrong.any() and predictions.kind == "softmax":
        wrong = (scores < 0).any(axis=1) | (np.abs(scores.sum(axis=1) - 1) > _SUM_TOLERANCE)
        reason = "scores of kind softmax that are negative or do not add up to 1"
    if wrong.any():
        first = read[wrong.argmax()]
        raise ValueError(f"{wrong.sum()} rows have {reason}; the first is {first}, {predictions.segment(first)}")


def get_outcomes(predictions: Predictions) -> Outcomes:
    """Rank the classes of every file; among equal scores the lower class comes first."""
    ranked = rank_classes(predictions.scores, predictions.labels, np.flatnonzero(predictions.failed).tolist())
    hits = ranked[:, :5] == predictions.labels[:, None]  # (n, min(5, K))
    return Outcomes(ranked[:, 0], hits[:, 0], hits.any(axis=1))


def accuracies(labels: np.ndarray, outcomes: Outcomes, num_classes: int, *, seed: int = 0) -> Accuracies:
    """Compute accuracies of files with labels (n,), with bootstrap percentile intervals over files.

    The accuracies depend only on counts: for each class, how many files are top-1, only top-5, or wrong. Resampling
    these counts gives the same distribution as resampling files, at a thousandth of the cost.

    The mean class accuracy is over the classes that have files, in the list or in the resample.

    Example:
        >>> right = np.array([True, True, True, False])
        >>> labels = np.array([0, 0, 0, 1])
        >>> result = accuracies(labels, Outcomes(np.zeros(4), right, right), 2)
        >>> result["top1"]["value"], result["mean_class_accuracy"]["value"]
        (75.0, 50.0)
    """
    outcome = outcomes.top1.astype(int) + outcomes.top5  # 0 wrong, 1 top-5 only, 2 top-1
    counts = np.bincount(3 * labels + outcome, minlength=3 * num_classes).reshape(num_classes, 3)
    values, drawn = _rates(counts), _rates(resampled(counts, seed))
    names = ("top1", "top5", "mean_class_accuracy")
    return {name: interval(values[index], drawn[:, index]) for index, name in enumerate(names)}


def _rates(counts: np.ndarray) -> np.ndarray:
    """Turn counts (..., K, 3) of outcomes into percentages (..., 3): top-1, top-5, mean class accuracy."""
    top1, of_class = counts[..., 2], counts.sum(axis=-1)  # (..., K)
    files, present = of_class.sum(axis=-1), of_class > 0
    of_classes = (top1 / np.maximum(of_class, 1)).sum(axis=-1) / present.sum(axis=-1)
    rates = top1.sum(axis=-1) / files, counts[..., 1:].sum(axis=(-2, -1)) / files, of_classes
    return 100 * np.stack(rates, axis=-1)


def resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """Resample, with replacement, the files behind counts of any shape: (RESAMPLES, *shape) counts of equal sum."""
    total = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=RESAMPLES)
    return drawn.reshape(RESAMPLES, *counts.shape)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """Return a value with the percentile interval of its (RESAMPLES,) resampled values."""
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def class_table(counts: np.ndarray, classes: Sequence[str]) -> list[Row]:
    """Return a row per class of counts (K, K+1): the least accurate first, then the larger; without files last.

    `accuracy` is the percentage of the class' files that are right, `precision` that of the predictions of the class,
    `taken_for` the class most often predicted instead, for `taken_for_share` percent of the files; None if undefined.

    Example:
        >>> class_table(np.array([[3, 1, 0], [0, 2, 0]]), ["left", "right"])[0]["taken_for"]
        'right'
    """
    files, right, called = counts.sum(axis=1), np.diag(counts), counts[:, :-1].sum(axis=0)
    wrong = counts[:, :-1] - np.diag(right)
    other, most = wrong.argmax(axis=1), wrong.max(axis=1)
    order = sorted(range(len(classes)), key=lambda k: (files[k] == 0, right[k] / max(files[k], 1), -files[k]))
    return [
        {
            "class": classes[k],
            "label": k,
            "files": int(files[k]),
            "failed": int(counts[k, -1]),
            "accuracy": percent(right[k], files[k]),
            "precision": percent(right[k], called[k]),
            "taken_for": classes[other[k]] if most[k] else None,
            "taken_for_share": percent(most[k], files[k]) if most[k] else None,
        }
        for k in order
    ]


def percent(part: float, whole: float) -> float | None:
    """Return a share in percent; None if the whole is 0."""
    return 100 * float(part) / float(whole) if whole else None


def confused_pairs(counts: np.ndarray, classes: Sequence[str], at_most: int) -> list[Row]:
    """Return the pairs of classes with the highest counts (K, K+1), then with the largest share of the true class."""
    return [
        {
            "true": classes[true],
            "predicted": classes[predicted],
            "count": int(counts[true, predicted]),
            "share": 100 * float(counts[true, predicted]) / float(counts[true].sum()),
        }
        for true, predicted in _pairs(counts)[:at_most]
    ]


def confused_classes(counts: np.ndarray, at_most: int) -> list[int]:
    """Return the classes of the most confused pairs, in that order, so the classes of a pair are neighbors."""
    return list(dict.fromkeys(k for pair in _pairs(counts)[:at_most] for k in pair))[:at_most]


def _pairs(counts: np.ndarray) -> list[tuple[int, int]]:
    """Return all pairs (true, predicted) that occur, the most confused first."""
    wrong = counts[:, :-1] - np.diag(np.diag(counts))
    true, predicted = wrong.nonzero()
    found = wrong[true, predicted]
    order = np.lexsort((predicted, true, -found / counts.sum(axis=1)[true], -found))
    return list(zip(true[order].tolist(), predicted[order].tolist(), strict=True))


def file_row(predictions: Predictions, row: int) -> Row:
    """Return name, segment (the columns of `segments.COLUMNS`), row index and true class of a file, for JSON."""
    return {
        "name": predictions.names[row],
        **segment_columns(predictions.spans, row, predictions.spans_unit),
        "row": row,
        "true": predictions.classes[predictions.labels[row]],
    }


def confident_errors(predictions: Predictions, outcomes: Outcomes, at_most: int) -> list[Row]:
    """Return the read files with the highest probability of a wrong class, the most confident error first."""
    wrong = np.flatnonzero(~outcomes.top1 & ~predictions.failed)
    confidence = predictions.probabilities[wrong, outcomes.predicted[wrong]]
    return [
        {
            **file_row(predictions, row),
            "predicted": predictions.classes[outcomes.predicted[row]],
            "probability": float(predictions.probabilities[row, outcomes.predicted[row]]),
            "true_probability": float(predictions.probabilities[row, predictions.labels[row]]),
        }
        for row in wrong[np.argsort(-confidence, kind="stable")][:at_most].tolist()
    ]


def random_split(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random into a half to fit on and a half to score; the second gets the odd row."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    middle = len(rows) // 2
    return np.sort(shuffled[:middle]), np.sort(shuffled[middle:])
