"""What one model's predictions tell: accuracies with intervals, classes, confusions, errors.

Shares are percentages, probabilities are not. A file that failed is a wrong answer wherever answers are counted.

Letters: n files, K classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsevideo.data.segments import segment_columns
from sparsevideo.reports.metrics import rank_classes
from sparsevideo.reports.predictions import Predictions

RESAMPLES = 1000  # of a bootstrap
LEVEL = 95  # percent, of every interval
_SUM_WITHIN = 0.01  # of 1: what the softmax of half precision may miss

Numbers = dict[str, Any]  # goes into JSON as it is


class Answers(NamedTuple):
    """What came first, and what was right.

    Attributes:
        predicted: (n,) classes; -1 where a file failed.
        top1: (n,) bool.
        top5: (n,) bool, among the first min(5, K).
    """

    predicted: np.ndarray
    top1: np.ndarray
    top5: np.ndarray


def check_scores(predictions: Predictions) -> None:
    """See that there is something to analyse.

    Raises:
        ValueError: Fewer than two files could be read, a label is outside 0 to K-1, a score is NaN or infinite, or
            the scores are said to be probabilities and are none.
    """
    labels, read = predictions.labels, np.flatnonzero(~predictions.failed)
    if len(read) < 2:
        said = "no readable videos: nothing to analyse" if len(read) == 0 else "one readable video: two are the least"
        raise ValueError(f"{said} ({len(labels)} listed)")
    if labels.min() < 0 or labels.max() >= len(predictions.classes):
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not fit {len(predictions.classes)} classes")
    scores = predictions.scores[read]
    wrong, reason = ~np.isfinite(scores).all(axis=1), "scores that are NaN or infinite"
    if not wrong.any() and predictions.kind == "softmax":
        wrong = (scores < 0).any(axis=1) | (np.abs(scores.sum(axis=1) - 1) > _SUM_WITHIN)
        reason = "scores that are called softmax but are negative, or do not add up to 1"
    if wrong.any():
        first = read[wrong.argmax()]
        raise ValueError(f"{wrong.sum()} rows have {reason}; the first is {first}, {predictions.segment(first)}")


def answers(predictions: Predictions) -> Answers:
    """Rank the classes of every file; among equal scores the lower class comes first."""
    ranked = rank_classes(predictions.scores, predictions.labels, np.flatnonzero(predictions.failed).tolist())
    hits = ranked[:, :5] == predictions.labels[:, None]  # (n, min(5, K))
    return Answers(ranked[:, 0], hits[:, 0], hits.any(axis=1))


def accuracies(labels: np.ndarray, given: Answers, num_classes: int, *, seed: int = 0) -> Numbers:
    """Top-1, top-5 and mean class accuracy, each with its bootstrap percentile interval over files.

    Files that are drawn again enter these numbers only as counts: of each class, how many were right at once, among
    five, or not. So the counts are drawn, which is the same distribution at a thousandth of the cost.

    Args:
        labels: (n,) true classes.
        given: Of the same files.
        num_classes: K.
        seed: Of the resamples.

    Returns:
        `top1`, `top5`, `mean_class_accuracy`: each `value`, `low`, `high` in percent. The mean is over the classes
        that have files; a class without any in a resample is left out of that resample's mean.

    Example:
        >>> right = np.array([True, True, True, False])
        >>> labels = np.array([0, 0, 0, 1])
        >>> numbers = accuracies(labels, Answers(np.zeros(4), right, right), 2)
        >>> numbers["top1"]["value"], numbers["mean_class_accuracy"]["value"]
        (75.0, 50.0)
    """
    outcome = given.top1.astype(int) + given.top5  # 0 wrong, 1 among five, 2 at once
    counts = np.bincount(3 * labels + outcome, minlength=3 * num_classes).reshape(num_classes, 3)
    values, drawn = _rates(counts), _rates(resampled(counts, seed))
    return {
        name: interval(values[index], drawn[:, index])
        for index, name in enumerate(("top1", "top5", "mean_class_accuracy"))
    }


def _rates(counts: np.ndarray) -> np.ndarray:
    """Counts (..., K, 3) of outcomes to percentages (..., 3)."""
    at_once, of_class = counts[..., 2], counts.sum(axis=-1)  # (..., K)
    files, present = of_class.sum(axis=-1), of_class > 0
    of_classes = (at_once / np.maximum(of_class, 1)).sum(axis=-1) / present.sum(axis=-1)
    rates = at_once.sum(axis=-1) / files, counts[..., 1:].sum(axis=(-2, -1)) / files, of_classes
    return 100 * np.stack(rates, axis=-1)


def resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """Draw again, with replacement, the files that were counted.

    Args:
        counts: Of files, in any shape.
        seed: Of the drawing.

    Returns:
        (RESAMPLES, *shape) counts, each with the same sum.
    """
    total = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=RESAMPLES)
    return drawn.reshape(RESAMPLES, *counts.shape)


def interval(value: float, drawn: np.ndarray) -> Numbers:
    """Put the percentile interval of (RESAMPLES,) values around a value."""
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def class_table(counts: np.ndarray, classes: Sequence[str]) -> list[Numbers]:
    """How well each class is recognised, the worst first, of equal ones the larger; those without files last.

    Args:
        counts: (K, K+1) from `count_confusions`.
        classes: K names.

    Returns:
        A row for each class: `accuracy` (percent of its `files`), `precision` (percent right of what is called so),
        `taken_for`, the class that its files are most often taken for, and `taken_for_share` of them. None where
        there is none.

    Example:
        >>> class_table(np.array([[3, 1, 0], [0, 2, 0]]), ["left", "right"])[0]["taken_for"]
        'right'
    """
    files, right, called = counts.sum(axis=1), np.diag(counts), counts[:, :-1].sum(axis=0)
    wrong = counts[:, :-1] - np.diag(right)
    other = wrong.argmax(axis=1)
    most = wrong.max(axis=1)
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
    """Return a share; None of nothing."""
    return 100 * float(part) / float(whole) if whole else None


def confused_pairs(counts: np.ndarray, classes: Sequence[str], at_most: int) -> list[Numbers]:
    """Tell which class is most often taken for which other, by count, then by its share of the true class.

    Args:
        counts: (K, K+1) from `count_confusions`.
        classes: K names.
        at_most: Length of the list.

    Returns:
        Rows of `true`, `predicted`, `count` and `share`, the percentage of the true class' files.
    """
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
    """Collect the classes of the most confused pairs, in that order, so that partners stand near each other."""
    return list(dict.fromkeys(k for pair in _pairs(counts)[:at_most] for k in pair))[:at_most]


def _pairs(counts: np.ndarray) -> list[tuple[int, int]]:
    """All pairs (true, predicted) that occur, the most confused first."""
    wrong = counts[:, :-1] - np.diag(np.diag(counts))
    true, predicted = wrong.nonzero()
    found = wrong[true, predicted]
    order = np.lexsort((predicted, true, -found / counts.sum(axis=1)[true], -found))
    return list(zip(true[order].tolist(), predicted[order].tolist(), strict=True))


def confident_errors(predictions: Predictions, given: Answers, at_most: int) -> list[Numbers]:
    """Tell where the model was surest of a wrong class; files that failed are not among them.

    Returns:
        Rows of `name` (and the columns of `segments.COLUMNS`, if the list gives segments), `true`, `predicted`, the
        `probability` of that, `true_probability` and `row`, its index in the predictions; the surest first.
    """
    wrong = np.flatnonzero(~given.top1 & ~predictions.failed)
    sure = predictions.probabilities[wrong, given.predicted[wrong]]
    return [
        {
            "name": predictions.names[row],
            **segment_columns(predictions.spans, row, predictions.spans_unit),
            "row": row,
            "true": predictions.classes[predictions.labels[row]],
            "predicted": predictions.classes[given.predicted[row]],
            "probability": float(predictions.probabilities[row, given.predicted[row]]),
            "true_probability": float(predictions.probabilities[row, predictions.labels[row]]),
        }
        for row in wrong[np.argsort(-sure, kind="stable")][:at_most].tolist()
    ]


def halves(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random into what something is fitted on and what it is scored on, which gets the odd one.

    Example:
        >>> fitted, scored = halves(np.arange(5), seed=0)
        >>> len(fitted), len(scored), sorted([*fitted.tolist(), *scored.tolist()])
        (2, 3, [0, 1, 2, 3, 4])
    """
    shuffled = np.random.default_rng(seed).permutation(rows)
    middle = len(rows) // 2
    return np.sort(shuffled[:middle]), np.sort(shuffled[middle:])
