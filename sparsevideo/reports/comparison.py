"""Comparison of several models on one list: a test of their difference, and the average of their probabilities.

Shares are percentages. A file that a model could not read is a wrong answer of that model.

Letters: n files, K classes, M models.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
from scipy.stats import binomtest

from sparsevideo.reports import analysis
from sparsevideo.reports.analysis import Accuracies, Interval
from sparsevideo.reports.calibration import SMALLEST
from sparsevideo.reports.predictions import Predictions

STEPS = 50  # from the current average to one model alone
ROUNDS = 5  # at most; in each round the search tries every model


class Comparison(TypedDict):
    """Counts of files, and the top-1 of the first model less that of the second, in percentage points."""

    only_first: int
    only_second: int
    both: int
    neither: int
    p_value: float
    difference: Interval


class FusionAccuracies(TypedDict):
    """Accuracies of each model alone, and of the mean and the weighted mean of their probabilities."""

    alone: list[Accuracies]
    mean: Accuracies
    weighted: Accuracies


class Fusion(TypedDict):
    """Weights (M,) fitted on one half of the files, and accuracies on the other half."""

    weights: list[float]
    fitted_on: int
    scored_on: int
    accuracies: FusionAccuracies


def compare(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Comparison:
    """Test whether one model is right more often than another; (n,) bool each, true for files with right answers.

    McNemar's test, exact and two-sided: if the models were equally good, each file that only one of them gets right
    would be a fair coin toss. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 1947. The interval of the difference is a paired bootstrap.

    Example:
        >>> first, second = np.array([True] * 6 + [False]), np.array([False] * 5 + [True, True])
        >>> result = compare(first, second)  # 5 against 1
        >>> result["only_first"], result["only_second"], round(result["p_value"], 6)  # 2 * (1 + 6) / 2 ** 6
        (5, 1, 0.21875)
    """
    counts = np.bincount(2 * first + second, minlength=4)
    neither, only_second, only_first, both = counts.tolist()
    unequal = only_first + only_second
    drawn = analysis.resampled(counts, seed)
    difference = analysis.interval(
        100 * (only_first - only_second) / len(first), 100 * (drawn[:, 2] - drawn[:, 1]) / len(first)
    )
    return {
        "only_first": only_first,
        "only_second": only_second,
        "both": both,
        "neither": neither,
        "p_value": float(binomtest(only_first, unequal).pvalue) if unequal else 1.0,
        "difference": difference,
    }


def subset(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """Return the predictions of some files."""
    return replace(
        predictions,
        names=[predictions.names[row] for row in rows],
        labels=predictions.labels[rows],
        scores=predictions.scores[rows],
        failed=predictions.failed[rows],
        spans=None if predictions.spans is None else predictions.spans[rows],
    )


def average_models(models: Sequence[Predictions], weights: np.ndarray) -> Predictions:
    """Average the probabilities of M models of the same list with weights (M,) >= 0.

    A file that some models could not read is averaged over the others. It failed if no model with a weight above 0
    could read it.
    """
    probabilities = np.stack([model.probabilities for model in models])  # (M, n, K)
    total = np.tensordot(weights.astype(np.float32), probabilities, axes=1)  # (n, K)
    sums = total.sum(axis=1, keepdims=True)
    return replace(models[0], scores=total / np.where(sums > 0, sums, 1), failed=sums[:, 0] == 0, kind="softmax")


def search_weights(models: Sequence[Predictions]) -> np.ndarray:
    """Search for the weights (M,) whose average has the highest top-1, and among equals the lowest NLL.

    The search starts at the plain mean. It moves the average towards one model after the other, in steps of a 50th of
    the way, to the best of these steps, until a round improves nothing. For two models this tries all weights on that
    grid; for more models the result may be a local optimum. The weights add up to 1.
    """
    labels, rows = models[0].labels, np.arange(len(models[0].labels))
    probabilities = np.stack([model.probabilities for model in models])  # (M, n, K)
    weights, best = np.full(len(models), 1 / len(models)), (-1, -np.inf)
    for _ in range(ROUNDS):
        before = best
        for index, alone in enumerate(probabilities):
            average, chosen = np.tensordot(weights.astype(np.float32), probabilities, axes=1), 0.0  # (n, K)
            for share in np.linspace(0, 1, STEPS + 1, dtype=np.float32):
                scores = (1 - share) * average + share * alone
                sums = scores.sum(axis=1)
                read = sums > 0
                # An unread file costs as much as the worst possible answer.
                of_label = np.maximum(scores[rows, labels] / np.where(read, sums, 1), SMALLEST)
                hits = int(((scores.argmax(axis=1) == labels) & read).sum())
                value = hits, float(np.log(of_label).sum(dtype=float))
                if value > best:
                    best, chosen = value, float(share)
            weights *= 1 - chosen
            weights[index] += chosen
        if best == before:
            break
    return weights


def fusion(models: Sequence[Predictions], *, seed: int = 0) -> Fusion:
    """Fit weights of models on a random half of the files and score the averages on the other half."""
    fitted, scored = analysis.random_split(np.arange(len(models[0].labels)), seed)
    weights = search_weights([subset(model, fitted) for model in models])
    others = [subset(model, scored) for model in models]

    def score(predictions: Predictions) -> Accuracies:
        outcomes = analysis.get_outcomes(predictions)
        return analysis.accuracies(predictions.labels, outcomes, len(predictions.classes), seed=seed)

    return {
        "weights": weights.tolist(),
        "fitted_on": len(fitted),
        "scored_on": len(scored),
        "accuracies": {
            "alone": [score(other) for other in others],
            "mean": score(average_models(others, np.full(len(models), 1 / len(models)))),
            "weighted": score(average_models(others, weights)),
        },
    }
