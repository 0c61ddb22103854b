"""Both classifiers on features do what their protocol says, learn from training files alone, and refuse a leak."""

import json
import logging
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sparsevideo.reports import probe as probe_module
from sparsevideo.reports.features import Features, save_features
from sparsevideo.reports.metrics import summarize
from sparsevideo.reports.predictions import load_predictions
from sparsevideo.reports.probe import REGULARISATIONS, check_pair, knn, linear, probe_files


def make(rows, labels, *, split="train", num_classes=None, failed=(), **changes):
    labels = np.array(labels)
    broken = np.isin(np.arange(len(labels)), failed)
    told = {
        "names": [f"{index}.mp4" for index in range(len(labels))],
        "labels": labels,
        "features": np.array(rows, dtype=np.float32),
        "failed": broken,
        "classes": [f"class {index}" for index in range(num_classes or labels.max() + 1)],
        "root": split,
    }
    return Features(**{**told, **changes})


def clouds(n, split, *, num_classes=6, width=10, spread=1.0, **changes):
    """Classes that overlap, one cloud each."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(n) % num_classes
    centres = np.random.default_rng(0).normal(size=(num_classes, width))
    rows = centres[labels] + spread * rng.normal(size=(n, width))
    return make(rows, labels, split=split, num_classes=num_classes, **changes)


def votes_by_loops(train, test, k):
    """The protocol, file by file, in double precision."""
    scores = np.zeros((len(test.names), len(test.classes)))
    for row, x in enumerate(test.features.astype(float)):
        if test.failed[row]:
            continue
        known = []
        for y, label, failed in zip(train.features.astype(float), train.labels, train.failed, strict=True):
            if not failed:
                known.append((sum(x * y) / math.sqrt(sum(x * x) * sum(y * y)), label))
        votes = defaultdict(float)
        for similarity, label in sorted(known, reverse=True)[:k]:
            votes[label] += math.exp(similarity / 0.07)
        for label, vote in votes.items():
            scores[row, label] = vote / sum(votes.values())
    return scores


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_votes_as_its_slow_twin(k):
    train, test = clouds(80, "train", failed=[3, 4, 50]), clouds(30, "test", failed=[0, 29])
    predictions = knn(train, test, k).predictions
    assert predictions.scores.dtype == np.float32
    assert np.allclose(predictions.scores, votes_by_loops(train, test, k), atol=1e-5)
    assert (np.count_nonzero(predictions.scores[7]) == 1) == (k == 1)


def test_knn_looks_at_directions_and_not_at_lengths():
    """The nearest by distance is class 1; two of the three that vote are class 1, but further off by angle."""
    train = make([[100, 0], [0.1, 1], [0, 2], [-1, -1]], [0, 1, 1, 2])
    test = make([[1.0, 0.2]], [0], split="test", num_classes=3)
    (scores,) = knn(train, test, k=3).predictions.scores
    near, far, off = (
        math.exp(s / 0.07) for s in (1 / math.sqrt(1.04), 0.3 / math.sqrt(1.01 * 1.04), 0.2 / math.sqrt(1.04))
    )
    assert scores[0] == pytest.approx(near / (near + far + off), abs=1e-5)
    assert scores[1] == pytest.approx((far + off) / (near + far + off), rel=1e-3)
    assert scores[2] == 0


def test_knn_takes_no_more_voters_than_there_are_and_says_so(caplog):
    caplog.set_level(logging.INFO, logger="sparsevideo")
    train, test = clouds(12, "train", failed=[0]), clouds(6, "test")
    probe = knn(train, test)
    assert probe.protocol == {"k": 11, "temperature": 0.07, "distance": "cosine"}
    assert "only 11 training files have features: all of them vote, where k is 20" in caplog.text
    assert np.array_equal(probe.predictions.scores, knn(train, test, 11).predictions.scores)
    with pytest.raises(ValueError, match="k is 0"):
        knn(train, test, 0)


def test_linear_is_the_fit_to_all_training_files_with_the_chosen_regularisation():
    train, test = clouds(90, "train", failed=[1, 2]), clouds(30, "test", failed=[5])
    probe = linear(train, test)
    keep = ~train.failed
    scaler = StandardScaler().fit(train.features[keep])
    twin = LogisticRegression(C=probe.protocol["C"], max_iter=1000)
    twin.fit(scaler.transform(train.features[keep]), train.labels[keep])
    want = twin.predict_proba(scaler.transform(test.features))
    want[5] = 0
    assert np.allclose(probe.predictions.scores, want, atol=1e-6)
    assert probe.protocol["converged"] is True


def test_the_regularisation_is_the_one_that_does_best_on_held_out_training_files(monkeypatch):
    train = clouds(100, "train", num_classes=4, width=60, spread=3)
    fits = []
    fit = LogisticRegression.fit

    def record(self, x, y):
        fits.append((self.C, Counter(y.tolist())))
        return fit(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", record)
    protocol = linear(train, clouds(30, "test", num_classes=4, width=60, spread=3)).protocol
    assert protocol["held_out"] == 20  # of 100: five of the 25 of each class
    assert fits[:-1] == [(c, Counter(dict.fromkeys(range(4), 20))) for c in REGULARISATIONS]
    assert fits[-1] == (protocol["C"], Counter(dict.fromkeys(range(4), 25)))
    top1 = {one["C"]: one["top1"] for one in protocol["tried"]}
    assert min(top1.values()) < top1[protocol["C"]] == max(top1.values())
    held = probe_module._held_out(train.labels)
    rows = StandardScaler().fit(train.features[~held]).transform(train.features)
    for c in REGULARISATIONS:
        twin = LogisticRegression(C=c, max_iter=1000).fit(rows[~held], train.labels[~held])
        assert top1[c] == pytest.approx(100 * twin.score(rows[held], train.labels[held]))


def test_what_is_held_out_is_a_fifth_of_each_class_wherever_it_is_listed():
    """At least one file of two, and none of one; not the first ones, as lists are often sorted."""
    counts = [1, 2, 4, 5, 10, 100]
    labels = np.repeat(range(6), counts)
    held = probe_module._held_out(labels)
    assert np.bincount(labels[held], minlength=6).tolist() == [0, 1, 1, 1, 2, 20]
    assert 2 < held[-100:-80].sum() < 18
    train = clouds(14, "train", num_classes=3)
    lone = make(train.features, [0] * 6 + [1] * 7 + [2])  # a class that is learnt and never held out
    assert linear(lone, clouds(6, "test", num_classes=3)).protocol["held_out"] == 2


def test_among_equals_the_least_loss_decides():
    """All are right on what is held out, those too that hardly learn and then miss the class with one file less."""
    train, test = (
        clouds(n, split, num_classes=4, spread=0.1, failed=[3]) for n, split in ((40, "train"), (16, "test"))
    )
    probe = linear(train, test)
    assert {one["top1"] for one in probe.protocol["tried"]} == {100}
    assert probe.protocol["C"] == min(probe.protocol["tried"], key=lambda one: one["loss"])["C"]
    assert probe.results["top1"] == 100 * 15 / 16


def test_the_choice_is_blind_to_the_test_files():
    train, test = clouds(60, "train", spread=3), clouds(30, "test", spread=3)
    wrong = make(-test.features, (test.labels + 1) % 6, split="test", num_classes=6)
    assert linear(train, test).protocol == linear(train, wrong).protocol


def test_linear_is_not_misled_by_the_scale_of_a_feature():
    """What tells the classes apart is a thousandth of the noise beside it."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    rows = np.stack([5 + 1e-3 * (2 * labels - 1), *rng.normal(size=(4, 100))], axis=1)
    train, test = make(rows[:60], labels[:60]), make(rows[60:], labels[60:], split="test")
    assert linear(train, test).results["top1"] == 100


def test_a_fit_that_was_cut_short_says_so(monkeypatch, caplog):
    monkeypatch.setattr(probe_module, "_ITERATIONS", 2)
    assert linear(clouds(60, "train"), clouds(30, "test")).protocol["converged"] is False
    assert "linear probe: not converged after 2 iterations" in caplog.text


def test_linear_takes_the_default_where_nothing_can_be_held_out():
    train = make(np.eye(3), [0, 1, 2])
    probe = linear(train, make(np.eye(3), [0, 1, 2], split="test"))
    assert probe.protocol == {"C": 1.0, "held_out": 0, "tried": [], "converged": True}
    assert probe.results["top1"] == 100


@pytest.mark.parametrize("classifier", [knn, linear])
def test_nothing_depends_on_chance(classifier):
    train, test = clouds(60, "train", spread=2), clouds(30, "test", spread=2)
    first, second = classifier(train, test), classifier(train, test)
    assert first.results == second.results
    assert first.predictions.scores.tobytes() == second.predictions.scores.tobytes()


@pytest.mark.parametrize("classifier", [knn, linear])
def test_failed_training_files_are_left_out_and_failed_test_files_are_wrong(classifier):
    train = clouds(36, "train")
    rows, labels = train.features.copy(), train.labels.copy()
    rows[::5], labels[::5] = 100, 0  # what stands in a failed row must not matter
    good = np.arange(36) % 5 != 0
    spoilt = make(rows, labels, num_classes=6, failed=range(0, 36, 5))
    clean = make(rows[good], labels[good], num_classes=6)
    test = clouds(12, "test", failed=[0, 7])
    ours, theirs = classifier(spoilt, test), classifier(clean, test)
    assert np.array_equal(ours.predictions.scores, theirs.predictions.scores)
    assert not ours.predictions.scores[[0, 7]].any()
    right = ours.predictions.scores.argmax(1) == test.labels
    assert right[0]  # by its zeros, were they looked at
    assert ours.results["top1"] == pytest.approx(100 * right[~test.failed].sum() / 12)
    assert np.allclose(ours.predictions.scores[~test.failed].sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("classifier", [knn, linear])
def test_two_classes_have_a_top5_as_well(classifier):
    results = classifier(clouds(20, "train", num_classes=2), clouds(10, "test", num_classes=2, failed=[9])).results
    assert results["top5"] == 90


@pytest.mark.parametrize("classifier", [knn, linear])
def test_a_class_without_training_files_scores_nothing_and_is_told(classifier, caplog):
    train = make(np.eye(4)[[0, 0, 2, 2]] + 0.01, [0, 0, 2, 2], num_classes=4)
    test = make(np.eye(4), [0, 1, 2, 3], split="test")
    probe = classifier(train, test)
    assert not probe.predictions.scores[:, [1, 3]].any()
    assert probe.results["top1"] == 50
    assert "2 classes of the test files have no training file: always wrong; the first is class 1" in caplog.text


A = {"rows": np.eye(3), "labels": [0, 1, 2]}


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({}, {"classes": ["class 0", "up", "x"]}, "class 1 is 'class 1' in the training features, 'up' in the test"),
        ({}, {"num_classes": 4}, "the training features have 3 classes, the test features 4"),
        ({"rows": np.eye(3, 2)}, {}, "the training features have 2 dimensions, the test features 3"),
        ({"checkpoint": "0123456789"}, {"checkpoint": "abcdefghij"}, "of checkpoint 01234567, the test .* abcdefgh;"),
        ({"checkpoint": "0123456789"}, {}, "of checkpoint 01234567, the test features of unknown"),
        ({}, {"split": "train"}, r"3 test files are training files, too; the first is train.0\.mp4"),
        ({"failed": [1, 2]}, {}, "training files of 1 classes have features"),
        ({"failed": [0, 1, 2]}, {}, "training files of 0 classes have features"),
        ({}, {"failed": [0, 1, 2]}, "no test file has features"),
    ],
)
def test_pairs_whose_score_would_mean_nothing_are_refused(train, test, message):
    pair = make(**{**A, **train}), make(**{**A, "split": "test", **test})
    for use in (check_pair, knn, linear):
        with pytest.raises(ValueError, match=message):
            use(*pair)


def test_a_leak_is_found_however_root_and_name_share_the_path():
    train = make(**A, root="data/videos", names=["train/0.mp4", "train/1.mp4", "2.mp4"])
    same = make(**A, root="data/videos/train/", names=["x.mp4", "./1.mp4", "y.mp4"])
    with pytest.raises(
        ValueError, match=r"1 test files are training files, too; the first is data.videos.train.1\.mp4"
    ):
        check_pair(train, same)
    check_pair(train, make(**A, root="data/videos/test", names=["0.mp4", "1.mp4", "2.mp4"]))


def test_segments_of_one_film_are_a_leak_only_if_they_overlap():
    films = {"names": ["a.mp4"] * 3, "root": "films"}
    train = make(**A, **films, spans=np.array([[0.0, 1], [1, 2], [4, 5]]))
    apart = np.array([[2.0, 3], [3, 4], [5, np.inf]])
    check_pair(train, make(**A, **films, spans=apart))
    predictions = knn(train, make(**A, **films, spans=apart), 1).predictions
    assert np.array_equal(predictions.spans, apart)
    for spans, message in (
        (apart - [[0, 0], [0, 0], [0.5, 0]], r"1 test files .*films.a\.mp4 \[from 4\.5 s\]"),
        (np.array([[2.0, 2], [4, 5], [1, 1.5]]), r"2 test files .*films.a\.mp4 \[4-5 s\]"),
        (None, r"3 test files .*films.a\.mp4$"),
    ):
        with pytest.raises(ValueError, match=message):
            check_pair(train, make(**A, **films, spans=spans))
    frame = np.zeros((3, 2))  # what `extract --per-clip` writes for a file of one frame
    with pytest.raises(ValueError, match="3 test files"):
        check_pair(make(**A, **films, spans=frame), make(**A, **films, spans=frame))


def test_segments_in_frames_are_a_leak_if_they_overlap_or_are_in_another_unit():
    films = {"names": ["a.mp4"] * 3, "root": "films"}
    train = make(**A, **films, spans=np.array([[0.0, 10], [10, 20], [40, 50]]), spans_unit="frames")
    apart = np.array([[20.0, 30], [30, 40], [50, np.inf]])
    check_pair(train, make(**A, **films, spans=apart, spans_unit="frames"))
    predictions = knn(train, make(**A, **films, spans=apart, spans_unit="frames"), 1).predictions
    assert predictions.spans_unit == "frames" and predictions.segment(0) == "a.mp4 [frames 20-30]"
    with pytest.raises(ValueError, match=r"1 test files .*films.a\.mp4 \[frames 15-18\]"):
        overlap = np.array([[20.0, 30], [15, 18], [50, np.inf]])
        check_pair(train, make(**A, **films, spans=overlap, spans_unit="frames"))
    message = r"have .*a\.mp4 \[frames 0-10\], the test features .*a\.mp4 \[20-30 s\]; whether they overlap is unknown"
    with pytest.raises(ValueError, match=message):
        check_pair(train, make(**A, **films, spans=apart))
    check_pair(train, make(**A, names=["b.mp4"] * 3, root="films", spans=apart))  # no file in both
    for whole in (None, np.array([[0, np.inf]] * 3)):  # a whole file overlaps in any unit
        with pytest.raises(ValueError, match=r"3 test files .*films.a\.mp4$"):
            check_pair(train, make(**A, **films, spans=whole))
    with pytest.raises(ValueError, match=r"3 test files .*films.a\.mp4 \[frames 0-10\]"):
        check_pair(make(**A, **films), train)


def test_files_leave_both_results_and_predictions_that_say_the_same(tmp_path):
    train, test = clouds(30, "train", failed=[2]), clouds(12, "test", failed=[1, 4], checkpoint="")
    save_features(tmp_path / "a.npz", train)
    save_features(tmp_path / "b.npz", test)
    results = probe_files(tmp_path / "a.npz", tmp_path / "b.npz", k=7)
    out = tmp_path / "b-probe"
    assert json.loads((out / "probe.json").read_text()) == results
    assert (results["train_listed"], results["train_failed"], results["listed"], results["scored"]) == (30, 1, 12, 10)
    assert results["dimensions"] == 10
    assert results["knn"]["k"] == 7
    for name, probe in (("knn", knn(train, test, 7)), ("linear", linear(train, test))):
        saved = load_predictions(out / name)
        assert saved.names == list(test.names) and saved.root == "test" and saved.kind == "softmax"
        assert np.array_equal(saved.scores, probe.predictions.scores)
        scores = summarize(saved.scores, saved.labels, failed=np.flatnonzero(saved.failed))
        assert {key: results[name][key] for key in scores} == scores
        assert (out / name / "predictions.csv").read_text().count("failed") == 2


def test_a_refused_pair_leaves_no_folder(tmp_path):
    save_features(tmp_path / "a.npz", clouds(30, "train"))
    with pytest.raises(ValueError, match="training files, too"):
        probe_files(tmp_path / "a.npz", tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
