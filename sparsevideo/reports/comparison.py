"""Several models on one list: which is right more often, and what their average gives.

Shares are percentages. A file is a wrong answer of the model that could not read it.

Letters: n files, K classes, M models.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

from sparsevideo.reports.analysis import Numbers, accuracies, answers, halves, interval, resampled
from sparsevideo.reports.calibration import LEAST
from sparsevideo.reports.predictions import Predictions

STEPS = 50  # from the average so far to one model alone
ROUNDS = 5  # in which each model has its turn, at most


def compare(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Numbers:
    """Whether one model is right more often than another on the same files.

    McNemar's test, exact: were both alike, each file that only one of them gets right would be as likely the one's as
    the other's. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 1947.

    Args:
        first: (n,) bool, where the one is right.
        second: (n,) bool, where the other is.
        seed: Of the resamples.

    Returns:
        `only_first`, `only_second`, `both`, `neither`: counts of files; `p_value`, two-sided; `difference`: top-1 of
        the first less that of the second, in percentage points, with its paired bootstrap interval.

    Example:
        >>> first, second = np.array([True] * 6 + [False]), np.array([False] * 5 + [True, True])
        >>> told = compare(first, second)  # 5 against 1
        >>> told["only_first"], told["only_second"], round(told["p_value"], 6)  # 2 * (1 + 6) / 2 ** 6
        (5, 1, 0.21875)
    """
    counts = np.bincount(2 * first + second, minlength=4)  # neither, only the second, only the first, both
    neither, only_second, only_first, both = counts.tolist()
    apart = only_first + only_second
    drawn = resampled(counts, seed)
    difference = interval(100 * (only_first - only_second) / len(first), 100 * (drawn[:, 2] - drawn[:, 1]) / len(first))
    return {
        "only_first": only_first,
        "only_second": only_second,
        "both": both,
        "neither": neither,
        "p_value": float(binomtest(only_first, apart).pvalue) if apart else 1.0,
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


def fused(models: Sequence[Predictions], weights: np.ndarray) -> Predictions:
    """Average the probabilities of models.

    Where some could not read a file the others speak for it; it failed where no model with a weight could read it.

    Args:
        models: M predictions of the same list.
        weights: (M,) not negative.
    """
    probabilities = np.stack([model.probabilities for model in models])  # (M, n, K)
    total = np.tensordot(weights.astype(np.float32), probabilities, axes=1)  # (n, K)
    sums = total.sum(axis=1, keepdims=True)
    return replace(models[0], scores=total / np.where(sums > 0, sums, 1), failed=sums[:, 0] == 0, kind="softmax")


def search_weights(models: Sequence[Predictions]) -> np.ndarray:
    """Find the weights with which the average of probabilities has the highest top-1, of equal ones the lowest NLL.

    From the plain mean on, the average moves towards one model after the other, each time as far as pays, in steps of
    a 50th of the way, until no model's turn helps. With two models that is every weight there is, in such steps; with
    more it is a search that may end beside the best.

    Args:
        models: M predictions of the same list.

    Returns:
        (M,) weights that add up to 1.
    """
    labels, rows = models[0].labels, np.arange(len(models[0].labels))
    probabilities = np.stack([model.probabilities for model in models])  # (M, n, K)
    weights, best = np.full(len(models), 1 / len(models)), (-1, -np.inf)
    for _ in range(ROUNDS):
        before = best
        for turn, alone in enumerate(probabilities):
            average, chosen = np.tensordot(weights.astype(np.float32), probabilities, axes=1), 0.0  # (n, K)
            for share in np.linspace(0, 1, STEPS + 1, dtype=np.float32):
                scores = (1 - share) * average + share * alone
                sums = scores.sum(axis=1)
                read = sums > 0
                # Not to read a file costs what an answer can cost at most.
                of_label = np.maximum(scores[rows, labels] / np.where(read, sums, 1), LEAST)
                hits = int(((scores.argmax(axis=1) == labels) & read).sum())
                value = hits, float(np.log(of_label).sum(dtype=float))
                if value > best:
                    best, chosen = value, float(share)
            weights *= 1 - chosen
            weights[turn] += chosen
        if best == before:
            break
    return weights


def fusion(models: Sequence[Predictions], *, seed: int = 0) -> Numbers:
    """Weigh models on one half of the files and score them on the other, alone, as a plain mean and weighted.

    Args:
        models: M predictions of the same list.
        seed: Of the split and of the resamples.

    Returns:
        `weights` (M,), the number of files they were `fitted_on` and `scored_on`, and `accuracies` there: `alone`
        (M,), `mean` and `weighted`.
    """
    fitted, scored = halves(np.arange(len(models[0].labels)), seed)
    weights = search_weights([subset(model, fitted) for model in models])
    others = [subset(model, scored) for model in models]

    def score(predictions: Predictions) -> Numbers:
        return accuracies(predictions.labels, answers(predictions), len(predictions.classes), seed=seed)

    return {
        "weights": weights.tolist(),
        "fitted_on": len(fitted),
        "scored_on": len(scored),
        "accuracies": {
            "alone": [score(other) for other in others],
            "mean": score(fused(others, np.full(len(models), 1 / len(models)))),
            "weighted": score(fused(others, weights)),
        },
    }
