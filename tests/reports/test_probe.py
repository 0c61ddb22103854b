"""Both classifiers follow their protocol, fit training files alone, and refuse leaks."""

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
from sparsevideo.reports.probe import REGULARIZATIONS, check_pair, knn, linear, probe_files


def make(rows, labels, *, split="train", num_classes=None, failed=(), **changes):
    labels = np.array(labels)
    broken = np.isin(np.arange(len(labels)), failed)
    fields = {
        "names": [f"{index}.mp4" for index in range(len(labels))],
        "labels": labels,
        "features": np.array(rows, dtype=np.float32),
        "failed": broken,
        "classes": [f"class {index}" for index in range(num_classes or labels.max() + 1)],
        "root": split,
    }
    return Features(**{**fields, **changes})


def clouds(n, split, *, num_classes=6, width=10, spread=1.0, **changes):
    """Make overlapping classes, one cloud of points each."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(n) % num_classes
    centers = np.random.default_rng(0).normal(size=(num_classes, width))
    rows = centers[labels] + spread * rng.normal(size=(n, width))
    return make(rows, labels, split=split, num_classes=num_classes, **changes)


def votes_by_loops(train, test, k):
    """Compute the scores of k-NN file by file, in double precision."""
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
def test_knn_agrees_with_a_loop(k):
    train, test = clouds(80, "train", failed=[3, 4, 50]), clouds(30, "test", failed=[0, 29])
    predictions = knn(train, test, k).predictions
    assert predictions.scores.dtype == np.float32
    assert np.allclose(predictions.scores, votes_by_loops(train, test, k), atol=1e-5)
    assert (np.count_nonzero(predictions.scores[7]) == 1) == (k == 1)


def test_knn_compares_directions_not_lengths():
    """The nearest by distance is class 1; two of the three voters are class 1, but farther by angle."""
    train = make([[100, 0], [0.1, 1], [0, 2], [-1, -1]], [0, 1, 1, 2])
    test = make([[1.0, 0.2]], [0], split="test", num_classes=3)
    (scores,) = knn(train, test, k=3).predictions.scores
    near, far, off = (
        math.exp(s / 0.07) for s in (1 / math.sqrt(1.04), 0.3 / math.sqrt(1.01 * 1.04), 0.2 / math.sqrt(1.04))
    )
    assert scores[0] == pytest.approx(near / (near + far + off), abs=1e-5)
    assert scores[1] == pytest.approx((far + off) / (near + far + off), rel=1e-3)
    assert scores[2] == 0


def test_knn_limits_k_to_the_training_files_with_a_message(caplog):
    caplog.set_level(logging.INFO, logger="sparsevideo")
    train, test = clouds(12, "train", failed=[0]), clouds(6, "test")
    probe = knn(train, test)
    assert probe.protocol == {"k": 11, "temperature": 0.07, "distance": "cosine"}
    assert "k is 20, but only 11 training files have features: all of them vote" in caplog.text
    assert np.array_equal(probe.predictions.scores, knn(train, test, 11).predictions.scores)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        knn(train, test, 0)


def test_linear_fits_all_training_files_with_the_chosen_regularization():
    train, test = clouds(90, "train", failed=[1, 2]), clouds(30, "test", failed=[5])
    probe = linear(train, test)
    keep = ~train.failed
    scaler = StandardScaler().fit(train.features[keep])
    reference = LogisticRegression(C=probe.protocol["C"], max_iter=1000)
    reference.fit(scaler.transform(train.features[keep]), train.labels[keep])
    want = reference.predict_proba(scaler.transform(test.features))
    want[5] = 0
    assert np.allclose(probe.predictions.scores, want, atol=1e-6)
    assert probe.protocol["converged"] is True


def test_linear_chooses_the_regularization_on_held_out_training_files(monkeypatch):
    train = clouds(100, "train", num_classes=4, width=60, spread=3)
    fits = []
    fit = LogisticRegression.fit

    def record(self, x, y):
        fits.append((self.C, Counter(y.tolist())))
        return fit(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", record)
    protocol = linear(train, clouds(30, "test", num_classes=4, width=60, spread=3)).protocol
    assert protocol["held_out"] == 20  # of 100: five of the 25 of each class
    assert fits[:-1] == [(c, Counter(dict.fromkeys(range(4), 20))) for c in REGULARIZATIONS]
    assert fits[-1] == (protocol["C"], Counter(dict.fromkeys(range(4), 25)))
    top1 = {one["C"]: one["top1"] for one in protocol["tried"]}
    assert min(top1.values()) < top1[protocol["C"]] == max(top1.values())
    held = probe_module._held_out(train.labels)
    rows = StandardScaler().fit(train.features[~held]).transform(train.features)
    for c in REGULARIZATIONS:
        reference = LogisticRegression(C=c, max_iter=1000).fit(rows[~held], train.labels[~held])
        assert top1[c] == pytest.approx(100 * reference.score(rows[held], train.labels[held]))


def test_linear_holds_out_a_random_fifth_of_each_class():
    """At least one of two files, and none of one; not the first files, because lists are often sorted."""
    counts = [1, 2, 4, 5, 10, 100]
    labels = np.repeat(range(6), counts)
    held = probe_module._held_out(labels)
    assert np.bincount(labels[held], minlength=6).tolist() == [0, 1, 1, 1, 2, 20]
    assert 2 < held[-100:-80].sum() < 18
    train = clouds(14, "train", num_classes=3)
    lone = make(train.features, [0] * 6 + [1] * 7 + [2])  # a class that is fitted but never held out
    assert linear(lone, clouds(6, "test", num_classes=3)).protocol["held_out"] == 2


def test_linear_chooses_the_least_loss_among_equals():
    """All fits are right on the held out files, also weak fits that are wrong on the smallest class in the test."""
    train, test = (
        clouds(n, split, num_classes=4, spread=0.1, failed=[3]) for n, split in ((40, "train"), (16, "test"))
    )
    probe = linear(train, test)
    assert {one["top1"] for one in probe.protocol["tried"]} == {100}
    assert probe.protocol["C"] == min(probe.protocol["tried"], key=lambda one: one["loss"])["C"]
    assert probe.results["top1"] == 100 * 15 / 16


def test_linear_choice_does_not_depend_on_the_test_files():
    train, test = clouds(60, "train", spread=3), clouds(30, "test", spread=3)
    wrong = make(-test.features, (test.labels + 1) % 6, split="test", num_classes=6)
    assert linear(train, test).protocol == linear(train, wrong).protocol


def test_linear_does_not_depend_on_the_scale_of_a_feature():
    """The feature that separates the classes is a thousandth of the noise in the others."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    rows = np.stack([5 + 1e-3 * (2 * labels - 1), *rng.normal(size=(4, 100))], axis=1)
    train, test = make(rows[:60], labels[:60]), make(rows[60:], labels[60:], split="test")
    assert linear(train, test).results["top1"] == 100


def test_linear_warns_if_it_did_not_converge(monkeypatch, caplog):
    monkeypatch.setattr(probe_module, "_ITERATIONS", 2)
    assert linear(clouds(60, "train"), clouds(30, "test")).protocol["converged"] is False
    assert "linear probe: not converged after 2 iterations" in caplog.text


def test_linear_has_the_default_if_nothing_can_be_held_out():
    train = make(np.eye(3), [0, 1, 2])
    probe = linear(train, make(np.eye(3), [0, 1, 2], split="test"))
    assert probe.protocol == {"C": 1.0, "held_out": 0, "tried": [], "converged": True}
    assert probe.results["top1"] == 100


@pytest.mark.parametrize("classifier", [knn, linear])
def test_probe_does_not_depend_on_chance(classifier):
    train, test = clouds(60, "train", spread=2), clouds(30, "test", spread=2)
    first, second = classifier(train, test), classifier(train, test)
    assert first.results == second.results
    assert first.predictions.scores.tobytes() == second.predictions.scores.tobytes()


@pytest.mark.parametrize("classifier", [knn, linear])
def test_probe_leaves_out_failed_training_files_and_counts_failed_test_files_as_wrong(classifier):
    train = clouds(36, "train")
    rows, labels = train.features.copy(), train.labels.copy()
    rows[::5], labels[::5] = 100, 0  # the content of a failed row must not matter
    good = np.arange(36) % 5 != 0
    spoiled = make(rows, labels, num_classes=6, failed=range(0, 36, 5))
    clean = make(rows[good], labels[good], num_classes=6)
    test = clouds(12, "test", failed=[0, 7])
    ours, theirs = classifier(spoiled, test), classifier(clean, test)
    assert np.array_equal(ours.predictions.scores, theirs.predictions.scores)
    assert not ours.predictions.scores[[0, 7]].any()
    right = ours.predictions.scores.argmax(1) == test.labels
    assert right[0]  # its zeros would be right if they were counted
    assert ours.results["top1"] == pytest.approx(100 * right[~test.failed].sum() / 12)
    assert np.allclose(ours.predictions.scores[~test.failed].sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("classifier", [knn, linear])
def test_probe_of_two_classes_has_a_top5(classifier):
    results = classifier(clouds(20, "train", num_classes=2), clouds(10, "test", num_classes=2, failed=[9])).results
    assert results["top5"] == 90


@pytest.mark.parametrize("classifier", [knn, linear])
def test_probe_warns_about_a_class_without_training_files(classifier, caplog):
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
        ({"checkpoint": "0123456789"}, {"checkpoint": "abcdefghij"}, "from checkpoint 01234567, the test .* abcdefgh;"),
        ({"checkpoint": "0123456789"}, {}, "from checkpoint 01234567, the test features from unknown"),
        ({}, {"split": "train"}, r"3 test files are also training files; the first is train.0\.mp4"),
        ({"failed": [1, 2]}, {}, "training files of at least 2 classes must have features, got 1"),
        ({"failed": [0, 1, 2]}, {}, "training files of at least 2 classes must have features, got 0"),
        ({}, {"failed": [0, 1, 2]}, "no test file has features"),
    ],
)
def test_check_pair_refuses_features_that_do_not_belong_together(train, test, message):
    pair = make(**{**A, **train}), make(**{**A, "split": "test", **test})
    for use in (check_pair, knn, linear):
        with pytest.raises(ValueError, match=message):
            use(*pair)


def test_check_pair_finds_a_leak_however_root_and_name_share_the_path():
    train = make(**A, root="data/videos", names=["train/0.mp4", "train/1.mp4", "2.mp4"])
    same = make(**A, root="data/videos/train/", names=["x.mp4", "./1.mp4", "y.mp4"])
    with pytest.raises(
        ValueError, match=r"1 test files are also training files; the first is data.videos.train.1\.mp4"
    ):
        check_pair(train, same)
    check_pair(train, make(**A, root="data/videos/test", names=["0.mp4", "1.mp4", "2.mp4"]))


def test_check_pair_refuses_segments_of_one_video_only_if_they_overlap():
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


def test_check_pair_refuses_segments_in_frames_that_overlap_or_have_another_unit():
    films = {"names": ["a.mp4"] * 3, "root": "films"}
    train = make(**A, **films, spans=np.array([[0.0, 10], [10, 20], [40, 50]]), spans_unit="frames")
    apart = np.array([[20.0, 30], [30, 40], [50, np.inf]])
    check_pair(train, make(**A, **films, spans=apart, spans_unit="frames"))
    predictions = knn(train, make(**A, **films, spans=apart, spans_unit="frames"), 1).predictions
    assert predictions.spans_unit == "frames" and predictions.segment(0) == "a.mp4 [frames 20-30]"
    with pytest.raises(ValueError, match=r"1 test files .*films.a\.mp4 \[frames 15-18\]"):
        overlap = np.array([[20.0, 30], [15, 18], [50, np.inf]])
        check_pair(train, make(**A, **films, spans=overlap, spans_unit="frames"))
    message = r"have .*a\.mp4 \[frames 0-10\], the test features .*a\.mp4 \[20-30 s\], which may overlap; list both"
    with pytest.raises(ValueError, match=message):
        check_pair(train, make(**A, **films, spans=apart))
    check_pair(train, make(**A, names=["b.mp4"] * 3, root="films", spans=apart))  # no file in both
    for whole in (None, np.array([[0, np.inf]] * 3)):  # a whole file overlaps in any unit
        with pytest.raises(ValueError, match=r"3 test files .*films.a\.mp4$"):
            check_pair(train, make(**A, **films, spans=whole))
    with pytest.raises(ValueError, match=r"3 test files .*films.a\.mp4 \[frames 0-10\]"):
        check_pair(make(**A, **films), train)


def test_probe_files_writes_results_and_predictions_that_agree(tmp_path):
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


def test_probe_files_leaves_no_folder_for_a_refused_pair(tmp_path):
    save_features(tmp_path / "a.npz", clouds(30, "train"))
    with pytest.raises(ValueError, match="also training files"):
        probe_files(tmp_path / "a.npz", tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
