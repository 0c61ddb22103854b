"""Whether a model is right as often as its probabilities say, and the temperature that mends them.

Shares are percentages. Letters: n files, K classes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from sparsevideo.reports.analysis import Numbers, halves, percent
from sparsevideo.reports.predictions import Predictions

BINS = 15  # as Guo et al. have them
TEMPERATURES = 0.05, 20.0  # the best one is looked for between these
LEAST = np.finfo(np.float32).tiny  # a probability that became 0 was somewhere below


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Numbers]:
    """Sort answers into 15 bins of equal width by their confidence.

    Args:
        confidence: (n,) probability of the predicted class, in (0, 1]; a bin's upper end is in it, its lower is not.
        right: (n,) bool.

    Returns:
        Of each bin `low` and `high`, how many `samples`, their mean `confidence` and their `accuracy` (percentages;
        None in an empty bin).
    """
    place = np.clip(np.ceil(confidence.astype(float) * BINS).astype(int) - 1, 0, BINS - 1)
    samples, sure, hits = (np.bincount(place, weights, BINS) for weights in (None, confidence, right))
    return [
        {
            "low": 100 * k / BINS,
            "high": 100 * (k + 1) / BINS,
            "samples": int(samples[k]),
            "confidence": percent(sure[k], samples[k]),
            "accuracy": percent(hits[k], samples[k]),
        }
        for k in range(BINS)
    ]


def expected_calibration_error(bins: Sequence[Numbers]) -> float:
    """How far confidence and accuracy lie apart, in percentage points: the mean over bins, weighted by their samples.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 5.

    Args:
        bins: From `reliability`.

    Example:
        >>> bins = reliability(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]))
        >>> round(expected_calibration_error(bins), 6)  # 10 points in one half, 10 in the other
        10.0
    """
    filled = [each for each in bins if each["samples"]]
    apart = sum(each["samples"] * abs(each["confidence"] - each["accuracy"]) for each in filled)
    return apart / sum(each["samples"] for each in filled)


def log_scores(scores: np.ndarray, kind: str) -> np.ndarray:
    """Return what a temperature divides: logits, or the logarithm of probabilities; (n, K).

    Args:
        scores: (n, K), see `Predictions`.
        kind: "softmax" or "logits".
    """
    return scores if kind == "logits" else np.log(np.maximum(scores, LEAST))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the number that logits must be divided by to have the smallest negative log-likelihood (NLL).

    Above 1 the model was too sure. Guo et al., ICML 2017, section 4.2.

    Args:
        logits: (n, K); what softmax takes.
        labels: (n,) true classes.

    Returns:
        The temperature, between 0.05 and 20.

    Example:
        >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])  # 90 % sure, right in 3 of 4
        >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 3)  # so that 9 ** (1 / T) = 3
        2.0
    """
    from scipy.optimize import minimize_scalar  # takes a second to import, and training needs only `nll`

    bounds = tuple(np.log(TEMPERATURES))  # NLL is convex in 1 / T: along log T it has one valley
    fit = minimize_scalar(
        lambda log: nll(logits / np.exp(log), labels), bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(fit.x))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true classes, in nats: the cross entropy.

    Args:
        logits: (n, K); what softmax takes.
        labels: (n,) true classes.

    Example:
        >>> round(nll(np.log([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])), 4)  # -(log 0.5 + log 0.75) / 2
        0.4904
    """
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels], dtype=float))


def calibration(predictions: Predictions, *, seed: int = 0) -> Numbers:
    """How far a model's probabilities can be believed, as they are and with a temperature.

    The temperature is fitted on one half of the files that could be read; `before` and `after` are about the other.

    Returns:
        `temperature`, the number of files it was `fitted_on`, and of `all` readable files, and `before` and `after`
        of the other half: `samples`, `nll`, `ece` in percentage points, and `bins`.
    """
    read = np.flatnonzero(~predictions.failed)
    fitted, scored = halves(read, seed)
    logits, labels = log_scores(predictions.scores, predictions.kind), predictions.labels
    temperature = fit_temperature(logits[fitted], labels[fitted])
    return {
        "temperature": temperature,
        "fitted_on": len(fitted),
        "all": _calibrated(logits[read], labels[read]),
        "before": _calibrated(logits[scored], labels[scored]),
        "after": _calibrated(logits[scored] / temperature, labels[scored]),
    }


def _calibrated(logits: np.ndarray, labels: np.ndarray) -> Numbers:
    predicted = logits.argmax(axis=1)
    confidence = np.exp(logits.max(axis=1) - logsumexp(logits, axis=1))
    bins = reliability(confidence, predicted == labels)
    ece = expected_calibration_error(bins)
    return {"samples": len(labels), "nll": nll(logits, labels), "ece": ece, "bins": bins}
