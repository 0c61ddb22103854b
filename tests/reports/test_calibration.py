"""Calibration: errors by hand, a known temperature, separate halves to fit and to score."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from test_analysis import predictions

from sparsevideo.reports import calibration
from sparsevideo.reports.analysis import random_split


def distorted(temperature, n=4000, num_classes=10, seed=0):
    """Make logits that are calibrated after division by the temperature, and labels."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, num_classes))
    drawn = rng.gumbel(size=logits.shape) + logits  # the largest has the distribution of the softmax
    return temperature * logits, drawn.argmax(axis=1)


def test_calibration_error_by_hand():
    """In (0.2, 0.267] 1 of 2 are right, in (0.6, 0.667] 1 of 1, in (0.933, 1] 1 of 2; bins include their upper end."""
    confidence = np.array([0.21, 0.25, 10 / 15, 0.95, 1.0])
    bins = calibration.reliability(confidence, np.array([True, False, True, True, False]))
    filled = {k: (each["samples"], each["accuracy"]) for k, each in enumerate(bins) if each["samples"]}
    assert len(bins) == 15
    assert filled == {3: (2, 50), 9: (1, 100), 14: (2, 50)}
    assert bins[3]["confidence"] == pytest.approx(23)
    assert (bins[3]["low"], bins[3]["high"]) == pytest.approx((20, 100 * 4 / 15))
    assert bins[0]["accuracy"] is None and bins[0]["confidence"] is None
    by_hand = (2 * abs(23 - 50) + 1 * abs(200 / 3 - 100) + 2 * abs(97.5 - 50)) / 5
    assert calibration.expected_calibration_error(bins) == pytest.approx(by_hand)


def test_reliability_does_not_round_single_precision_onto_an_edge():
    """As a float32, two thirds lies above 10 of 15."""
    bins = calibration.reliability(np.array([2 / 3], dtype=np.float32), np.array([True]))
    assert [each["samples"] for each in bins].index(1) == 10


def test_calibration_error_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.01, 1, 500), rng.random(500) < 0.6
    slow = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            slow += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration.expected_calibration_error(calibration.reliability(confidence, right)) == pytest.approx(
        100 * slow
    )


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_that_is_known_is_found(temperature):
    logits, labels = distorted(temperature)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(("label", "end"), [(0, 0.05), (1, 20)])
def test_temperature_without_a_minimum_is_at_a_bound(label, end):
    assert calibration.fit_temperature(np.array([[0.1, 0.0]] * 4), np.full(4, label)) == pytest.approx(end, rel=0.01)


def test_temperature_has_the_lowest_nll_of_a_fine_grid():
    logits, labels = distorted(1.7, n=300)

    def nll(temperature):
        return -log_softmax(logits / temperature, axis=1)[np.arange(300), labels].mean()

    found, grid = calibration.fit_temperature(logits, labels), np.geomspace(0.05, 20, 500)
    assert nll(found) <= min(map(nll, grid)) + 1e-9


@pytest.mark.parametrize("kind", ["logits", "softmax"])
def test_calibration_corrects_an_overconfident_model(kind):
    logits, labels = distorted(2.5)
    preds = predictions(logits if kind == "logits" else softmax(logits, axis=1), labels, kind=kind, failed=[7, 9])
    numbers = calibration.calibration(preds, seed=3)
    assert numbers["temperature"] == pytest.approx(2.5, rel=0.05)
    assert (numbers["fitted_on"], numbers["before"]["samples"], numbers["all"]["samples"]) == (1999, 1999, 3998)
    assert numbers["before"]["ece"] > 15 > 5 > numbers["after"]["ece"]

    # Both states are about the half that the temperature was not fitted on; failed files are in neither half.
    fitted, scored = random_split(np.setdiff1d(np.arange(4000), [7, 9]), seed=3)
    assert numbers["temperature"] == pytest.approx(
        calibration.fit_temperature(logits[fitted], labels[fitted]), rel=1e-3
    )
    for state, temperature in (("before", 1), ("after", numbers["temperature"])):
        slow = -log_softmax(logits[scored] / temperature, axis=1)[np.arange(len(scored)), labels[scored]].mean()
        assert numbers[state]["nll"] == pytest.approx(slow, rel=1e-4)
        assert sum(each["samples"] for each in numbers[state]["bins"]) == 1999


def test_calibration_of_a_zero_probability_is_finite():
    preds = predictions([[1.0, 0.0]] * 4, [0, 0, 1, 1])
    numbers = calibration.calibration(preds)
    assert np.isfinite([numbers[state]["nll"] for state in ("all", "before", "after")]).all()
    assert numbers["all"]["nll"] == pytest.approx(87.3 / 2, rel=1e-2)
