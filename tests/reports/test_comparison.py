"""Comparison of models: McNemar's test by hand, averages with known best weights."""

from math import comb

import numpy as np
import pytest
from test_analysis import predictions, random_predictions

from sparsevideo.reports import analysis, comparison
from sparsevideo.reports.analysis import random_split


@pytest.mark.parametrize(("b", "c"), [(9, 2), (2, 9), (5, 5), (1, 0), (40, 61)])
def test_compare_has_the_p_value_of_fair_coins(b, c):
    """The probability that fair coins fall as unevenly or more unevenly."""
    first = np.array([True] * b + [False] * c + [True] * 7 + [False] * 3)
    second = np.array([False] * b + [True] * c + [True] * 7 + [False] * 3)
    result = comparison.compare(first, second)
    assert (result["only_first"], result["only_second"], result["both"], result["neither"]) == (b, c, 7, 3)
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert result["p_value"] == pytest.approx(min(1, 2 * tail))
    assert result["difference"]["value"] == pytest.approx(100 * (b - c) / (b + c + 10))
    assert result["difference"]["low"] <= result["difference"]["value"] <= result["difference"]["high"]


def test_compare_of_equal_models_finds_no_difference():
    right = np.array([True, False, True])
    result = comparison.compare(right, right)
    assert result["p_value"] == 1
    assert result["difference"] == {"value": 0, "low": 0, "high": 0}


def test_compare_interval_is_a_paired_bootstrap():
    """Slow reference: draw files, with the answers of both models."""
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.7
    second = first ^ (rng.random(200) < 0.1)
    rows = rng.integers(0, 200, (4000, 200))
    slow = np.percentile(100 * (first[rows].mean(1) - second[rows].mean(1)), [2.5, 97.5])
    quick = comparison.compare(first, second)["difference"]
    assert [quick["low"], quick["high"]] == pytest.approx(slow, abs=1)  # two files
    assert slow[1] - slow[0] < 10  # the sum of the intervals of both models is twice as wide


def test_compare_interval_depends_on_the_seed():
    first, second = np.random.default_rng(0).random((2, 100)) < 0.5
    result = [comparison.compare(first, second, seed=seed)["difference"] for seed in (1, 1, 2)]
    assert result[0] == result[1] != result[2]


def test_average_models_with_equal_weights_is_the_mean():
    models = [random_predictions(50, 4, seed) for seed in (0, 1)]
    mean = comparison.average_models(models, np.array([0.5, 0.5]))
    np.testing.assert_allclose(mean.scores, (models[0].scores + models[1].scores) / 2, rtol=1e-6)
    assert not mean.failed.any()


def test_average_models_averages_probabilities_of_logits():
    logits = predictions([[0.0, np.log(3)]], [1], kind="logits")
    sure = predictions([[0.75, 0.25]], [1])
    np.testing.assert_allclose(
        comparison.average_models([logits, sure], np.array([0.5, 0.5])).scores, [[0.5, 0.5]], rtol=1e-6
    )


def test_average_models_scores_a_file_by_the_models_that_could_read_it():
    scores = np.array([[0.9, 0.1]] * 3)
    models = [predictions(scores, [0, 0, 0], failed=[0, 1]), predictions(scores[:, ::-1], [0, 0, 0], failed=[0])]
    average = comparison.average_models(models, np.array([0.75, 0.25]))
    assert average.failed.tolist() == [True, False, False]  # no model could read it
    np.testing.assert_allclose(average.scores, [[0, 0], [0.1, 0.9], [0.7, 0.3]], rtol=1e-5)
    assert comparison.average_models(models, np.array([1.0, 0.0])).failed.tolist() == [
        True,
        True,
        False,
    ]  # the model with a weight could not read it


def two_halves():
    """Each is right where the other is wrong; the average is always right with a first weight of 0.577 to 0.701."""
    n = 200
    first, second = np.zeros((n, 3)), np.zeros((n, 3))
    known = np.arange(n) % 2 == 0
    first[known], second[known] = (0.72, 0.28, 0.0), (0.2, 0.8, 0.0)  # 0.44 w against 0.6 (1 - w): w > 0.577
    first[~known], second[~known] = (0.3, 0.7, 0.0), (0.97, 0.03, 0.0)  # 0.94 (1 - w) against 0.4 w: w < 0.701
    labels = np.zeros(n, dtype=int)
    return [predictions(first, labels), predictions(second, labels)]


@pytest.mark.parametrize("turned", [False, True])
def test_fusion_finds_weights_that_are_known(turned):
    models = two_halves()[:: -1 if turned else 1]
    result = comparison.fusion(models)
    assert 0.577 < result["weights"][turned] < 0.702
    assert sum(result["weights"]) == pytest.approx(1)
    top1 = {name: result["accuracies"][name]["top1"]["value"] for name in ("mean", "weighted")}
    assert top1["weighted"] == 100 > 60 > top1["mean"]
    assert [result["fitted_on"], result["scored_on"]] == [100, 100]


def test_search_weights_has_steps_of_a_50th():
    """All are right if the first has a weight of 0.620 to 0.645, which a coarser search would miss."""
    first = predictions([[0.225, 0.775], [0.806, 0.194]] * 20, [0] * 40)
    second = predictions([[1.0, 0.0], [0.0, 1.0]] * 20, [0] * 40)  # 1 - 0.775 w > 0.5 and 0.806 w > 0.5
    assert 0.5 / 0.806 < comparison.search_weights([first, second])[0] < 0.5 / 0.775


def test_search_weights_of_two_models_are_the_best_of_a_fine_grid():
    models = [random_predictions(300, 6, seed) for seed in (0, 0)]
    models[1] = random_predictions(300, 6, 5)
    models[1] = predictions(models[1].scores[:, ::-1], models[0].labels)  # random answers
    found = comparison.search_weights(models)

    def hits(weight):
        fused = weight * models[0].scores + (1 - weight) * models[1].scores
        return (fused.argmax(1) == models[0].labels).sum()

    assert hits(found[0]) >= max(map(hits, np.linspace(0, 1, 101))) - 1  # one of 300: rounding of a step


def test_fusion_of_three_models_prefers_the_good_one():
    """The others give random answers with high confidence."""
    rng, good = np.random.default_rng(0), random_predictions(300, 6)
    noise = [predictions(rng.dirichlet(np.full(6, 0.1), 300), good.labels) for _ in range(2)]
    result = comparison.fusion([noise[0], good, noise[1]])
    assert result["weights"][1] > 0.7
    alone = [each["top1"]["value"] for each in result["accuracies"]["alone"]]
    assert result["accuracies"]["weighted"]["top1"]["value"] >= alone[1] - 3
    assert result["accuracies"]["weighted"]["top1"]["value"] > result["accuracies"]["mean"]["top1"]["value"] + 10


def test_search_weights_repeats_rounds_until_nothing_improves(monkeypatch):
    """In this case one round is not enough."""
    rng = np.random.default_rng(29)
    labels, rows = rng.integers(0, 4, 60), np.arange(60)
    models = []
    for _ in range(3):
        scores = rng.dirichlet(np.full(4, 0.5), 60)
        scores[rows, labels] += 0.3
        models.append(predictions(scores / scores.sum(1, keepdims=True), labels))

    def hits(weights):
        return (comparison.average_models(models, weights).scores.argmax(1) == labels).sum()

    found = comparison.search_weights(models)
    monkeypatch.setattr(comparison, "ROUNDS", 1)
    assert hits(found) > hits(comparison.search_weights(models))


def test_search_weights_compares_likelihood_for_equal_hits():
    """Both are right on all files that they could read; the second is more confident."""
    labels = np.zeros(40, dtype=int)
    models = [predictions([[share, 1 - share]] * 40, labels, failed=[0]) for share in (0.6, 0.9)]
    assert comparison.search_weights(models).tolist() == pytest.approx([0, 1])


def test_search_weights_of_equal_models_are_equal():
    same = predictions(np.eye(2)[[0, 1] * 20], [0, 1] * 20)
    assert comparison.search_weights([same, same]).tolist() == [0.5, 0.5]


def test_search_weights_ignores_files_that_only_one_model_could_read():
    """The first is more confident on the other files; its unread files are scored by the second at any weight."""
    labels = np.zeros(40, dtype=int)
    sure = predictions([[0.9, 0.1]] * 40, labels, failed=range(20))
    assert comparison.search_weights([sure, predictions([[0.6, 0.4]] * 40, labels)])[0] > 0.9


def test_search_weights_does_not_reward_unread_files():
    """Both answer alike except for files that the second could not read, on which the first is narrowly wrong."""
    wrong = np.arange(40) % 10 == 0
    first = predictions(np.where(wrong[:, None], [0.49, 0.51], [0.9, 0.1]), [0] * 40)
    second = predictions([[0.9, 0.1]] * 40, [0] * 40, failed=np.flatnonzero(wrong))
    assert comparison.search_weights([first, second])[0] > 0


def test_fusion_weights_do_not_depend_on_the_scored_half():
    models = two_halves()
    _, scored = random_split(np.arange(200), seed=4)
    before = comparison.fusion(models, seed=4)["weights"]
    changed = models[0].scores.copy()
    changed[scored] = changed[scored][:, ::-1]
    after = comparison.fusion([predictions(changed, models[0].labels), models[1]], seed=4)
    assert after["weights"] == before
    assert after["accuracies"]["weighted"]["top1"]["value"] < 100


def test_fusion_alone_equals_an_analysis_of_the_scored_half():
    model = random_predictions(60, 4, failed=range(20, 40))
    result = comparison.fusion([model, predictions(np.eye(4)[model.labels], model.labels)], seed=4)
    _, scored = random_split(np.arange(60), seed=4)
    outcomes = analysis.Outcomes(*(part[scored] for part in analysis.get_outcomes(model)))
    assert result["accuracies"]["alone"][0] == analysis.accuracies(model.labels[scored], outcomes, 4, seed=4)


def test_fusion_of_logits_uses_their_softmax():
    first, second = two_halves()
    logits = predictions(np.log(np.maximum(first.scores, 1e-9)), first.labels, kind="logits")
    assert comparison.fusion([logits, second])["weights"] == comparison.fusion([first, second])["weights"]


def test_search_weights_counts_files_that_no_model_could_read_as_wrong():
    """The first model reads no file of class 0; the second reads all files but is right on class 0 alone."""
    labels = np.tile([0, 1], 20)
    first = predictions([[0.1, 0.9]] * 40, labels, failed=np.arange(0, 40, 2))
    second = predictions([[0.6, 0.4]] * 40, labels)
    weights = comparison.search_weights([first, second])
    assert weights[1] > 0
    assert comparison.average_models([first, second], weights).scores.argmax(1).tolist() == labels.tolist()
