"""Several models: McNemar's test by hand, an average whose best weights are known."""

from math import comb

import numpy as np
import pytest
from test_analysis import predictions, random_predictions

from sparsevideo.reports import analysis, comparison
from sparsevideo.reports.analysis import halves


@pytest.mark.parametrize(("b", "c"), [(9, 2), (2, 9), (5, 5), (1, 0), (40, 61)])
def test_mcnemar_by_hand(b, c):
    """The chance that fair coins fall as unevenly, or more so."""
    first = np.array([True] * b + [False] * c + [True] * 7 + [False] * 3)
    second = np.array([False] * b + [True] * c + [True] * 7 + [False] * 3)
    told = comparison.compare(first, second)
    assert (told["only_first"], told["only_second"], told["both"], told["neither"]) == (b, c, 7, 3)
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert told["p_value"] == pytest.approx(min(1, 2 * tail))
    assert told["difference"]["value"] == pytest.approx(100 * (b - c) / (b + c + 10))
    assert told["difference"]["low"] <= told["difference"]["value"] <= told["difference"]["high"]


def test_two_models_that_answer_alike_do_not_differ():
    right = np.array([True, False, True])
    told = comparison.compare(right, right)
    assert told["p_value"] == 1
    assert told["difference"] == {"value": 0, "low": 0, "high": 0}


def test_the_interval_is_that_of_pairs():
    """The slow twin draws files, and takes both models' answers of each."""
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.7
    second = first ^ (rng.random(200) < 0.1)
    rows = rng.integers(0, 200, (4000, 200))
    slow = np.percentile(100 * (first[rows].mean(1) - second[rows].mean(1)), [2.5, 97.5])
    quick = comparison.compare(first, second)["difference"]
    assert [quick["low"], quick["high"]] == pytest.approx(slow, abs=1)  # two files
    assert slow[1] - slow[0] < 10  # intervals of each alone, added up, are twice as wide


def test_the_seed_decides_the_interval():
    first, second = np.random.default_rng(0).random((2, 100)) < 0.5
    told = [comparison.compare(first, second, seed=seed)["difference"] for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]


def test_the_plain_mean_is_a_mean():
    models = [random_predictions(50, 4, seed) for seed in (0, 1)]
    mean = comparison.fused(models, np.array([0.5, 0.5]))
    np.testing.assert_allclose(mean.scores, (models[0].scores + models[1].scores) / 2, rtol=1e-6)
    assert not mean.failed.any()


def test_logits_are_averaged_as_probabilities():
    logits = predictions([[0.0, np.log(3)]], [1], kind="logits")
    sure = predictions([[0.75, 0.25]], [1])
    np.testing.assert_allclose(comparison.fused([logits, sure], np.array([0.5, 0.5])).scores, [[0.5, 0.5]], rtol=1e-6)


def test_a_file_is_scored_by_those_who_could_read_it():
    scores = np.array([[0.9, 0.1]] * 3)
    models = [predictions(scores, [0, 0, 0], failed=[0, 1]), predictions(scores[:, ::-1], [0, 0, 0], failed=[0])]
    fused = comparison.fused(models, np.array([0.75, 0.25]))
    assert fused.failed.tolist() == [True, False, False]  # none could
    np.testing.assert_allclose(fused.scores, [[0, 0], [0.1, 0.9], [0.7, 0.3]], rtol=1e-5)
    assert comparison.fused(models, np.array([1.0, 0.0])).failed.tolist() == [True, True, False]  # nobody was asked


def two_halves():
    """Each knows what the other does not; together they know all where the first has 0.577 to 0.701 of the weight."""
    n = 200
    first, second = np.zeros((n, 3)), np.zeros((n, 3))
    known = np.arange(n) % 2 == 0
    first[known], second[known] = (0.72, 0.28, 0.0), (0.2, 0.8, 0.0)  # 0.44 w against 0.6 (1 - w): w > 0.577
    first[~known], second[~known] = (0.3, 0.7, 0.0), (0.97, 0.03, 0.0)  # 0.94 (1 - w) against 0.4 w: w < 0.701
    labels = np.zeros(n, dtype=int)
    return [predictions(first, labels), predictions(second, labels)]


@pytest.mark.parametrize("turned", [False, True])
def test_weights_that_are_known_are_found(turned):
    models = two_halves()[:: -1 if turned else 1]
    told = comparison.fusion(models)
    assert 0.577 < told["weights"][turned] < 0.702
    assert sum(told["weights"]) == pytest.approx(1)
    top1 = {name: told["accuracies"][name]["top1"]["value"] for name in ("mean", "weighted")}
    assert top1["weighted"] == 100 > 60 > top1["mean"]
    assert [told["fitted_on"], told["scored_on"]] == [100, 100]


def test_the_search_goes_in_steps_of_a_fiftieth():
    """All are right where the first has 0.620 to 0.645 of the weight, which a coarser search steps over."""
    first = predictions([[0.225, 0.775], [0.806, 0.194]] * 20, [0] * 40)
    second = predictions([[1.0, 0.0], [0.0, 1.0]] * 20, [0] * 40)  # 1 - 0.775 w > 0.5 and 0.806 w > 0.5
    assert 0.5 / 0.806 < comparison.search_weights([first, second])[0] < 0.5 / 0.775


def test_two_models_weights_are_as_good_as_any_on_a_fine_grid():
    models = [random_predictions(300, 6, seed) for seed in (0, 0)]
    models[1] = random_predictions(300, 6, 5)
    models[1] = predictions(models[1].scores[:, ::-1], models[0].labels)  # knows nothing
    found = comparison.search_weights(models)

    def hits(weight):
        fused = weight * models[0].scores + (1 - weight) * models[1].scores
        return (fused.argmax(1) == models[0].labels).sum()

    assert hits(found[0]) >= max(map(hits, np.linspace(0, 1, 101))) - 1  # one of 300: rounding of a step


def test_of_three_models_the_one_that_knows_wins():
    """The others answer at random and are sure of it."""
    rng, good = np.random.default_rng(0), random_predictions(300, 6)
    noise = [predictions(rng.dirichlet(np.full(6, 0.1), 300), good.labels) for _ in range(2)]
    told = comparison.fusion([noise[0], good, noise[1]])
    assert told["weights"][1] > 0.7
    alone = [each["top1"]["value"] for each in told["accuracies"]["alone"]]
    assert told["accuracies"]["weighted"]["top1"]["value"] >= alone[1] - 3
    assert told["accuracies"]["weighted"]["top1"]["value"] > told["accuracies"]["mean"]["top1"]["value"] + 10


def test_the_search_goes_on_until_no_models_turn_helps(monkeypatch):
    """Here one round of turns is too little."""
    rng = np.random.default_rng(29)
    labels, rows = rng.integers(0, 4, 60), np.arange(60)
    models = []
    for _ in range(3):
        scores = rng.dirichlet(np.full(4, 0.5), 60)
        scores[rows, labels] += 0.3
        models.append(predictions(scores / scores.sum(1, keepdims=True), labels))

    def hits(weights):
        return (comparison.fused(models, weights).scores.argmax(1) == labels).sum()

    found = comparison.search_weights(models)
    monkeypatch.setattr(comparison, "ROUNDS", 1)
    assert hits(found) > hits(comparison.search_weights(models))


def test_equal_hits_are_decided_by_likelihood():
    """Both answer rightly what they could read; the second is surer."""
    labels = np.zeros(40, dtype=int)
    models = [predictions([[share, 1 - share]] * 40, labels, failed=[0]) for share in (0.6, 0.9)]
    assert comparison.search_weights(models).tolist() == pytest.approx([0, 1])


def test_models_that_are_equal_keep_equal_weights():
    same = predictions(np.eye(2)[[0, 1] * 20], [0, 1] * 20)
    assert comparison.search_weights([same, same]).tolist() == [0.5, 0.5]


def test_files_that_one_model_alone_could_read_do_not_ask_for_its_weight():
    """The first is surer of the rest, and of what it could not read the second's word is as good at any weight."""
    labels = np.zeros(40, dtype=int)
    sure = predictions([[0.9, 0.1]] * 40, labels, failed=range(20))
    assert comparison.search_weights([sure, predictions([[0.6, 0.4]] * 40, labels)])[0] > 0.9


def test_not_reading_a_file_is_no_merit():
    """Both answer alike, but for what the second could not read, where the first is just wrong."""
    wrong = np.arange(40) % 10 == 0
    first = predictions(np.where(wrong[:, None], [0.49, 0.51], [0.9, 0.1]), [0] * 40)
    second = predictions([[0.9, 0.1]] * 40, [0] * 40, failed=np.flatnonzero(wrong))
    assert comparison.search_weights([first, second])[0] > 0


def test_weights_never_see_the_half_that_is_scored():
    models = two_halves()
    _, scored = halves(np.arange(200), seed=4)
    before = comparison.fusion(models, seed=4)["weights"]
    changed = models[0].scores.copy()
    changed[scored] = changed[scored][:, ::-1]
    after = comparison.fusion([predictions(changed, models[0].labels), models[1]], seed=4)
    assert after["weights"] == before
    assert after["accuracies"]["weighted"]["top1"]["value"] < 100


def test_alone_each_has_the_numbers_of_an_analysis_of_that_half():
    model = random_predictions(60, 4, failed=range(20, 40))
    told = comparison.fusion([model, predictions(np.eye(4)[model.labels], model.labels)], seed=4)
    _, scored = halves(np.arange(60), seed=4)
    given = analysis.Answers(*(part[scored] for part in analysis.answers(model)))
    assert told["accuracies"]["alone"][0] == analysis.accuracies(model.labels[scored], given, 4, seed=4)


def test_logits_are_fused_as_their_softmax():
    first, second = two_halves()
    logits = predictions(np.log(np.maximum(first.scores, 1e-9)), first.labels, kind="logits")
    assert comparison.fusion([logits, second])["weights"] == comparison.fusion([first, second])["weights"]


def test_a_file_that_nobody_with_a_weight_could_read_is_no_hit():
    """Of class 0 the first model reads nothing, and the second, wrong everywhere else, everything."""
    labels = np.tile([0, 1], 20)
    first = predictions([[0.1, 0.9]] * 40, labels, failed=np.arange(0, 40, 2))
    second = predictions([[0.6, 0.4]] * 40, labels)
    weights = comparison.search_weights([first, second])
    assert weights[1] > 0
    assert comparison.fused([first, second], weights).scores.argmax(1).tolist() == labels.tolist()
