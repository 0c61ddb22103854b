"""Calibration: how well probabilities match accuracies, and a temperature that corrects them.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. Shares are percentages.

Letters: n files, K classes.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.special import logsumexp

from sparsevideo.reports.analysis import percent, random_split
from sparsevideo.reports.predictions import Predictions

BINS = 15  # as in the paper
TEMPERATURES = 0.05, 20.0  # bounds of the search
SMALLEST = np.finfo(np.float32).tiny  # replaces probabilities that were rounded to 0


class Bin(TypedDict):
    """A bin of confidences with its mean confidence and its accuracy, in percent."""

    low: float
    high: float
    samples: int
    confidence: float | None
    accuracy: float | None


class Errors(TypedDict):
    """Negative log-likelihood (NLL) in nats and expected calibration error (ECE) in percentage points."""

    samples: int
    nll: float
    ece: float
    bins: list[Bin]


class Calibration(TypedDict):
    """Errors of all readable files, and of one half before and after scaling with the temperature of the other."""

    temperature: float
    fitted_on: int
    all: Errors
    before: Errors
    after: Errors


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Sort answers into 15 bins of equal width by their confidence; the numbers of a bin are percentages.

    Args:
        confidence: (n,) probability of the predicted class, in (0, 1]; a bin includes its upper end only.
        right: (n,) bool.
    """
    index = np.clip(np.ceil(confidence.astype(float) * BINS).astype(int) - 1, 0, BINS - 1)
    samples, total, hits = (np.bincount(index, weights, BINS) for weights in (None, confidence, right))
    return [
        {
            "low": 100 * k / BINS,
            "high": 100 * (k + 1) / BINS,
            "samples": int(samples[k]),
            "confidence": percent(total[k], samples[k]),
            "accuracy": percent(hits[k], samples[k]),
        }
        for k in range(BINS)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean distance of confidence and accuracy over bins, weighted by samples, in percentage points.

    Guo et al., equation 5.

    Example:
        >>> bins = reliability(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]))
        >>> round(expected_calibration_error(bins), 6)  # 10 points in one half, 10 in the other
        10.0
    """
    distances = [
        (each["samples"], abs(each["confidence"] - each["accuracy"]))
        for each in bins
        if each["confidence"] is not None and each["accuracy"] is not None
    ]
    return sum(samples * distance for samples, distance in distances) / sum(samples for samples, _ in distances)


def log_scores(scores: np.ndarray, kind: str) -> np.ndarray:
    """Return logits, or the logarithms of probabilities, (n, K): the values that a temperature divides."""
    return scores if kind == "logits" else np.log(np.maximum(scores, SMALLEST))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the divisor of logits (n, K), from 0.05 to 20, with the smallest negative log-likelihood of labels (n,).

    Above 1 the model was overconfident. Guo et al., section 4.2.

    Example:
        >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])  # confidence 0.9, right in 3 of 4
        >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)  # so that 9 ** (1 / T) = 3
        2.0
    """
    from scipy.optimize import minimize_scalar  # takes a second to import, and training needs only `nll`

    bounds = tuple(np.log(TEMPERATURES))  # the NLL is convex in 1 / T, so it has one minimum along log T
    fit = minimize_scalar(
        lambda log: nll(logits / np.exp(log), labels), bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(fit.x))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of labels (n,) by logits (n, K), in nats: the cross entropy.

    Example:
        >>> round(nll(np.log([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])), 4)  # -(log 0.5 + log 0.75) / 2
        0.4904
    """
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels], dtype=float))


def calibration(predictions: Predictions, *, seed: int = 0) -> Calibration:
    """Measure calibration on all readable files, and on a random half before and after temperature scaling."""
    read = np.flatnonzero(~predictions.failed)
    fitted, scored = random_split(read, seed)
    logits, labels = log_scores(predictions.scores, predictions.kind), predictions.labels
    temperature = fit_temperature(logits[fitted], labels[fitted])
    return {
        "temperature": temperature,
        "fitted_on": len(fitted),
        "all": _errors(logits[read], labels[read]),
        "before": _errors(logits[scored], labels[scored]),
        "after": _errors(logits[scored] / temperature, labels[scored]),
    }


def _errors(logits: np.ndarray, labels: np.ndarray) -> Errors:
    confidence = np.exp(logits.max(axis=1) - logsumexp(logits, axis=1))
    bins = reliability(confidence, logits.argmax(axis=1) == labels)
    ece = expected_calibration_error(bins)
    return {"samples": len(labels), "nll": nll(logits, labels), "ece": ece, "bins": bins}
