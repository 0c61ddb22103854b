"""Features are loaded as saved and found by path; corrupt and foreign files are refused in one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from sparsevideo.reports.features import Features, load_features, save_features
from sparsevideo.reports.predictions import Predictions, load_predictions, save_predictions

NAMES = ["left/a b.mp4", "up/日本.mp4", "up/\udcff.mp4", "up/d.mp4"]  # the third is not UTF-8 on the disk
LABELS = np.array([0, 1, 1, 1])
FAILED = np.array([False, False, True, False])
CLASSES = ["left", "up"]


def features(**changes):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3) * ~FAILED[:, None]
    fields = {"names": NAMES, "labels": LABELS, "features": rows, "failed": FAILED, "classes": CLASSES}
    return Features(**{**fields, "root": "videos/test", "checkpoint": "c1a150ae", **changes})


def test_features_are_loaded_as_saved(tmp_path):
    save_features(tmp_path / "f.npz", features())
    loaded = load_features(tmp_path / "f.npz")
    assert (loaded.names, loaded.classes, loaded.root, loaded.checkpoint) == (NAMES, CLASSES, "videos/test", "c1a150ae")
    for name in ("labels", "features", "failed"):
        ours, theirs = getattr(features(), name), getattr(loaded, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_features_of_no_rows_are_loaded_as_saved(tmp_path):
    empty = np.zeros(0, int)
    save_features(tmp_path / "f.npz", features(names=[], labels=empty, failed=empty > 0, features=np.zeros((0, 3))))
    assert load_features(tmp_path / "f.npz").names == []


def test_features_are_readable_with_numpy_alone(tmp_path):
    save_features(tmp_path / "f.npz", features())
    with np.load(tmp_path / "f.npz") as file:
        by_path = dict(zip(file["names"].tolist(), file["features"], strict=True))
    assert by_path["up/d.mp4"].tolist() == [9, 10, 11]


def test_features_are_found_by_path_and_a_wrong_path_offers_the_nearest():
    record = features()
    assert [record[name].tolist() for name in NAMES] == record.features.tolist()
    with pytest.raises(KeyError, match=r"no features of left/a_b\.mp4; did you mean .left/a b\.mp4.\?"):
        record["left/a_b.mp4"]
    with pytest.raises(KeyError, match=r"no features of 7'"):
        record["7"]
    names = [f"{index % 9}/{index:05d}.mp4" for index in range(3000)]
    many = features(names=names, labels=np.zeros(3000, int), failed=np.zeros(3000, bool), features=np.zeros((3000, 1)))
    with pytest.raises(KeyError, match=r"did you mean .4/01021\.mp4.\?"):
        many["4/01021.mkv"]


def test_features_of_segments_are_found_by_their_seconds():
    spans = np.array([[0, 1], [0, np.inf], [0, 1], [1, 2.5]], dtype=float)
    parts = features(names=["a.mp4", "b.mp4", "c.mp4", "a.mp4"], spans=spans)
    assert parts["b.mp4"].tolist() == [3, 4, 5]
    assert parts["a.mp4", 0, 1].tolist() == [0, 1, 2] and parts["a.mp4", 1, 2.5].tolist() == [9, 10, 11]
    for key in ("a.mp4", ("a.mp4", 1, 2)):
        with pytest.raises(
            KeyError, match=r"listed 2 times, in rows 0 \(a\.mp4 \[0-1 s\]\), 3 \(a\.mp4 \[1-2\.5 s\]\)"
        ):
            parts[key]


def test_features_of_segments_in_frames_are_found_by_frames(tmp_path):
    spans = np.array([[0, 10], [0, np.inf], [0, 10], [10, 25]], dtype=float)
    parts = features(names=["a.mp4", "b.mp4", "c.mp4", "a.mp4"], spans=spans, spans_unit="frames")
    save_features(tmp_path / "f.npz", parts)
    with np.load(tmp_path / "f.npz") as file:
        assert file["spans_unit"] == "frames"
    loaded = load_features(tmp_path / "f.npz")
    assert loaded.spans_unit == "frames" and loaded["a.mp4", 10, 25].tolist() == [9, 10, 11]
    message = r"0 \(a\.mp4 \[frames 0-10\]\), 3 \(.*\) of `features`; use the key \(path, start_frame, stop_frame\)"
    with pytest.raises(KeyError, match=message):
        loaded["a.mp4"]
    with pytest.raises(ValueError, match="unknown unit of spans 'ms'"):
        features(spans_unit="ms")


def test_features_keep_the_seconds_of_segments(tmp_path):
    spans = np.array([[0, 1], [0, np.inf], [0, 1], [1, 2.5]])
    for saved in (spans, None):
        save_features(tmp_path / "f.npz", features(spans=saved))
        with np.load(tmp_path / "f.npz") as file:
            assert ("spans" in file) == (saved is not None)
        loaded = load_features(tmp_path / "f.npz").spans
        assert loaded is None if saved is None else np.array_equal(loaded, spans)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros((3, 3))}, r"features must have shape \(4, D\) for 4 names, got \(3, 3\)"),
        ({"features": np.zeros(4)}, r"features must have shape \(4, D\) for 4 names, got \(4,\)"),
        ({"labels": np.zeros(3, int)}, r"labels must have shape \(4,\) for 4 names, got \(3,\)"),
        ({"failed": np.zeros((4, 1), bool)}, r"failed must have shape \(4,\) for 4 names, got \(4, 1\)"),
        ({"spans": np.zeros((4, 3))}, r"spans must have shape \(4, 2\) for 4 names, got \(4, 3\)"),
        ({"labels": np.array([0, 1, 1, 2])}, "labels 0 to 2 do not fit 2 classes"),
        ({"labels": np.array([0, -2, 1, 1])}, "labels -2 to 1"),
        ({"features": np.diag([1, 1, 1, np.nan])}, r"features of 1 files are not finite; the first is up/d\.mp4"),
    ],
)
def test_features_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        features(**changes)


def test_features_file_survives_an_interrupted_write(tmp_path, monkeypatch):
    save_features(tmp_path / "f.npz", features())

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        save_features(tmp_path / "f.npz", features(root="elsewhere"))
    assert load_features(tmp_path / "f.npz").root == "videos/test"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """Invert every fourth byte in the middle: some of them are in a compressed stream."""
    content = bytearray(path.read_bytes())
    for index in range(60, len(content) - 300, 4):
        content[index] ^= 0xFF
    path.write_bytes(content)


def text(path):
    path.write_text("names,labels\n")


def pickled(path):
    path.write_bytes(pickle.dumps({"names": []}))


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def other_arrays(path):
    np.savez(path, x=np.zeros(3))


def objects(path):
    np.savez(path, names=np.array([{}], dtype=object))


class Trap:
    """Create a file if this object is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_features_are_not_unpickled(tmp_path):
    record = features()
    np.savez(tmp_path / "f.npz", **{**vars(record), "names": np.array([Trap(tmp_path / "sprung")] * 4, dtype=object)})
    with pytest.raises(ValueError, match="not the features of a list"):
        load_features(tmp_path / "f.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("spoil", [truncate, empty, flip, text, pickled, one_array, other_arrays, objects])
@pytest.mark.parametrize("kind", ["features", "predictions"])
def test_npz_that_is_corrupt_or_foreign_is_refused_in_one_line(tmp_path, spoil, kind):
    """Features and predictions share the reader."""
    path = tmp_path / f"{kind}.npz"
    save_features(tmp_path / "features.npz", features())
    save_predictions(tmp_path, Predictions(NAMES, LABELS, np.zeros((4, 2), np.float32), FAILED, CLASSES))
    spoil(path)
    load, what = {
        "features": (load_features, "the features of a list"),
        "predictions": (load_predictions, "the predictions of a test"),
    }[kind]
    with pytest.raises(ValueError, match=rf"{kind}\.npz: not {what} \(.+\); .+ again$") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_features_are_not_loaded_from_predictions(tmp_path):
    save_predictions(tmp_path, Predictions(NAMES, LABELS, np.zeros((4, 2), np.float32), FAILED, CLASSES))
    with pytest.raises(ValueError, match="not the features of a list"):
        load_features(tmp_path / "predictions.npz")
    with pytest.raises(FileNotFoundError, match="`sparsevideo extract` writes one"):
        load_features(tmp_path / "features.npz")


def test_predictions_are_loaded_as_saved(tmp_path):
    scores = np.arange(8, dtype=np.float32).reshape(4, 2)
    save_predictions(tmp_path, Predictions(NAMES, LABELS, scores, FAILED, CLASSES, "logits", "videos"))
    loaded = load_predictions(tmp_path)
    assert (loaded.names, loaded.classes, loaded.kind, loaded.root) == (NAMES, CLASSES, "logits", "videos")
    assert np.array_equal(loaded.scores, scores) and np.array_equal(loaded.failed, FAILED)
    with np.load(tmp_path / "predictions.npz") as file:
        assert set(file) == {"names", "labels", "scores", "failed", "classes", "kind", "root", "spans_unit"}
