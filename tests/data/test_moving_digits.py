"""The embedded data set matches its records, and no single frame reveals the motion."""

import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_digits, load_sample_images
from sklearn.ensemble import RandomForestClassifier

from sparsevideo import create_model
from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.loader import train_loader
from sparsevideo.data.moving_digits import (
    MIDDLE_FRAME,
    MOTIONS,
    NUM_FRAMES,
    SIDE,
    MovingDigits,
    make_moving_digits,
    trajectory,
)
from sparsevideo.data.records import read_records
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.data.transforms import Normalize, TestTransform, TrainTransform

COUNTS = {"videos_per_class": (12, 3, 3), "images_per_class": (2, 1, 1)}
SMALL = {"videos_per_class": (1, 0, 1), "images_per_class": (1, 0, 1)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "set"
    make_moving_digits(folder, **COUNTS)
    return folder


@pytest.fixture(scope="module")
def videos(root):
    return json.loads((root / "videos.json").read_text())


@pytest.fixture(scope="module")
def images(root):
    return json.loads((root / "images.json").read_text())


@pytest.fixture(scope="module")
def source():
    return MovingDigits(seed=0)


def decode(path: Path) -> np.ndarray:
    """Decode (T, H, W, 3) frames of a file, without code of this package."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def ink(frames: np.ndarray) -> np.ndarray:
    """Return (..., H, W) bool: the digit is brighter than all parts of the dimmed photographs."""
    return frames @ np.array((0.299, 0.587, 0.114)) > 150


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_records_name_all_files_and_videos_have_all_frames(root, videos, images):
    assert {p.name for p in root.iterdir()} == {"dataset.json", "images", "images.json", "videos", "videos.json"}
    assert set(videos) == {p.relative_to(root).as_posix() for p in root.rglob("*.mp4")}
    assert set(images) == {p.relative_to(root).as_posix() for p in root.rglob("*.jpg")}
    assert len(videos) == 18 * len(MOTIONS)
    assert len(images) == 4 * 10
    for name, record in itertools.islice(videos.items(), 0, None, 7):
        assert decode(root / name).shape == (NUM_FRAMES, SIDE, SIDE, 3)
        assert name.split("/")[2] == record["motion"]
    assert all(name.split("/")[2] == str(record["digit"]) for name, record in images.items())


def test_boxes_hold_the_ink_of_the_decoded_frames(root, videos):
    """The digit is also visible after coding, and does not touch the border of the frame."""
    errors = []
    for name, record in videos.items():
        assert np.min(record["boxes"]) > 0 and np.max(record["boxes"]) < 1
        for mask, box in zip(ink(decode(root / name)), record["boxes"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            measured = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            errors.append(np.abs(measured - SIDE * np.array(box)).max())
    assert np.quantile(errors, 0.9) < 2.5  # pixels; the faint end of a stroke may be ink in one and not in the other
    assert max(errors) < 5.5


def test_motions_have_the_directions_of_their_names(root):
    """Measured on decoded pixels of the digit one, whose upper end moves right in a clockwise rotation."""
    for index, (motion, change) in itertools.product(("0001", "0011"), MOTIONS.items()):
        masks = ink(decode(root / "videos/train" / motion / f"{index}.mp4"))[MIDDLE_FRAME - 3 : MIDDLE_FRAME + 4]
        positions = [np.argwhere(mask) for mask in masks]  # (row, column) of the inked pixels
        moved = positions[-1].mean(0) - positions[0].mean(0)
        grown = len(positions[-1]) / len(positions[0])
        lean = [p[p[:, 0] < p[:, 0].mean(), 1].mean() - p[p[:, 0] > p[:, 0].mean(), 1].mean() for p in positions]
        # Shifts are 7.7 pixels or more; in a rotation the ink moves by up to 6 around the center of its scan.
        assert np.allclose(moved[::-1], 6 * SIDE * np.array(change[:2]), atol=6), motion
        assert np.sign(round(np.log2(grown))) == np.sign(change[2]), motion
        if change[3]:
            assert (np.sign(np.diff(lean[::3])) == np.sign(change[3])).all(), motion
        else:
            assert abs(lean[-1] - lean[0]) < 3, motion


def test_images_show_the_scan_of_their_record(root, images):
    """The ink is measured at the centers of the scan's 8x8 pixels, according to the record."""
    scans, digits = load_digits().images, load_digits().target
    for name, record in images.items():
        assert record["digit"] == digits[record["scan"]]
        luma = np.asarray(Image.open(root / name)) @ np.array((0.299, 0.587, 0.114))
        v, u = (np.mgrid[:8, :8] + 0.5) / 8 - 0.5
        cos, sin = np.cos(np.radians(record["angle"])), np.sin(np.radians(record["angle"]))
        x = record["x"] + record["size"] * (cos * u - sin * v)
        y = record["y"] + record["size"] * (sin * u + cos * v)
        sampled = luma[(SIDE * y).astype(int), (SIDE * x).astype(int)]
        assert np.corrcoef(sampled.ravel(), scans[record["scan"]].ravel())[0, 1] > 0.75, name


def test_splits_share_neither_scans_nor_regions_of_the_photographs(videos, images, source):
    scans, crops = ({split: set() for split in ("train", "val", "test")} for _ in range(2))
    for name, record in (*videos.items(), *images.items()):
        split = name.split("/")[1]
        scans[split].add(record["scan"])
        crops[split].add((record["photo"], *record["crop"]))
    owned = {split: np.concatenate(by_digit) for split, by_digit in source.scans.items()}
    assert np.array_equal(np.sort(np.concatenate(list(owned.values()))), np.arange(1797))  # each scan in one split
    assert all(scans[split] <= set(owned[split].tolist()) for split in scans)
    for one, other in itertools.combinations(scans, 2):
        for (photo, x0, y0, x1, y1), (photo2, u0, v0, u1, v1) in itertools.product(crops[one], crops[other]):
            assert photo != photo2 or x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0


def test_frames_show_the_region_of_their_record(root, videos):
    photos = dict(zip(("china.jpg", "flower.jpg"), load_sample_images().images, strict=True))
    for name, record in videos.items():
        x0, y0, x1, y1 = record["crop"]
        region = Image.fromarray(photos[record["photo"]][y0:y1, x0:x1]).resize((SIDE, SIDE))
        frame = decode(root / name)[0].astype(float)
        far = np.ones((SIDE, SIDE), bool)  # from the digit
        left, top, right, bottom = (SIDE * np.array(record["boxes"][0])).round().astype(int)
        far[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = False
        assert np.abs(frame - np.asarray(region) / 2)[far].mean() < 8, name


def test_middle_frame_is_equal_in_all_classes_of_val_and_test(root, videos, source):
    """The drawn frames are equal, and the decoded ones nearly."""
    scene = source.scene(1, "test", 2)
    drawn = [source.render(scene, trajectory(scene, motion))[0][MIDDLE_FRAME] for motion in MOTIONS]
    assert all(np.array_equal(frame, drawn[0]) for frame in drawn)
    for split, index in itertools.product(("val", "test"), range(3)):
        names = [f"videos/{split}/{motion}/{index:04d}.mp4" for motion in MOTIONS]
        assert len({json.dumps(videos[name]["boxes"][MIDDLE_FRAME]) for name in names}) == 1
        middles = np.stack([decode(root / name)[MIDDLE_FRAME] for name in names]).astype(float)
        assert np.abs(middles - middles.mean(0)).mean() < 2


def test_middle_frame_has_one_distribution_in_all_classes_of_train(source):
    """Middle boxes and poses of the four pairs of motions, each pair against the other three."""
    names = list(MOTIONS)
    states = []
    for pair, motion in enumerate(names[::2]):
        scenes = [source.scene(1 + pair, "train", index) for index in range(250)]
        poses = np.stack([trajectory(scene, motion)[MIDDLE_FRAME] for scene in scenes])
        boxes = np.stack([source.render(s, pose[None])[1][0] for s, pose in zip(scenes, poses, strict=True)])
        states.append(np.concatenate((poses, boxes), 1))  # (250, 8)
    for pair in range(4):
        rest = np.concatenate(states[:pair] + states[pair + 1 :])
        assert ks_2samp(states[pair], rest).pvalue.min() > 0.01 / 8, names[2 * pair]


def test_train_has_a_scene_for_each_pair_of_opposites_and_test_one_for_all_motions(videos):
    for split, scenes in (("train", 4), ("val", 1), ("test", 1)):
        drawn = [videos[f"videos/{split}/{motion}/0000.mp4"]["x"] for motion in MOTIONS]
        assert drawn[::2] == drawn[1::2]
        assert len(set(drawn)) == scenes


def test_opposite_motions_show_the_same_frames_in_opposite_order(source):
    """So no classifier of single frames can exceed 50 %."""
    names = list(MOTIONS)
    scene = source.scene(1, "val", 5)
    for motion, opposite in zip(names[::2], names[1::2], strict=True):
        one, other = (source.render(scene, trajectory(scene, m))[0] for m in (motion, opposite))
        assert np.array_equal(one, other[::-1])
        assert not np.array_equal(one, other)


def test_classifier_of_the_true_poses_of_single_frames_stays_under_40_percent(source):
    """Its input is the exact pose, which is all that a frame can reveal about the motion."""

    def frames(split, count):
        scenes = [source.scene(1, split, index) for index in range(count)]
        poses = np.stack([trajectory(scene, motion) for scene in scenes for motion in MOTIONS])
        one_of_each = rng.integers(NUM_FRAMES, size=len(poses))
        return poses[np.arange(len(poses)), one_of_each], np.tile(np.arange(len(MOTIONS)), count)

    rng = np.random.default_rng(0)
    classifier = RandomForestClassifier(100, min_samples_leaf=10, random_state=0).fit(*frames("train", 1000))
    accuracy = classifier.score(*frames("test", 500))
    assert 0.2 < accuracy < 0.4  # above chance, 0.125: the classifier uses the poses


def test_files_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_moving_digits(tmp_path / name, seed=seed, **SMALL)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    assert not any(a[name] == c[name] for name in a)


def test_second_call_writes_nothing_and_other_settings_are_errors(tmp_path):
    first = make_moving_digits(tmp_path, **SMALL)
    video = tmp_path / "videos/train/left/0000.mp4"
    video.write_bytes(b"touched")
    assert make_moving_digits(tmp_path, **SMALL) == first
    with pytest.raises(ValueError, match=f"{tmp_path.name}: holds a data set made with other settings"):
        make_moving_digits(tmp_path, seed=1, **SMALL)
    assert video.read_bytes() == b"touched"


def test_folder_with_other_files_is_an_error_and_not_changed(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: exists and is not an empty folder"):
        make_moving_digits(tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.tex": b"precious"}


def test_interrupted_run_is_incomplete_and_can_be_repeated(tmp_path):
    def interrupt(written, total):
        if written == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_moving_digits(tmp_path / "a", progress=interrupt, **SMALL)
    assert not (tmp_path / "a/dataset.json").exists()
    with pytest.raises(ValueError, match="choose another folder"):
        make_moving_digits(tmp_path / "a", seed=1, **SMALL)
    steps = []
    make_moving_digits(tmp_path / "a", progress=lambda *step: steps.append(step), **SMALL)
    make_moving_digits(tmp_path / "b", **SMALL)
    assert steps == [(i + 1, 22) for i in range(22)]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
def test_network_of_random_single_decoded_frames_stays_under_40_percent(tmp_path, capsys):
    """Coding does not reveal the motion either: a nano network is trained on one frame of each video."""
    make_moving_digits(tmp_path)
    train, test = (read_records(tmp_path, f"videos/{split}", kind="video") for split in ("train", "test"))
    one_frame = {"num_frames": 1, "frame_stride": 1}
    training = VideoDataset(train, **one_frame, transform=TrainTransform(64, scale=(0.64, 1), flip_prob=0))
    torch.manual_seed(0)
    model, normalize, steps = create_model("sparseformer_nano", num_classes=len(MOTIONS)), Normalize(), 400
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    batches = train_loader(training, EpochSampler(len(train), 64), num_workers=1)
    for batch in itertools.islice(batches, steps):
        loss = torch.nn.functional.cross_entropy(model(normalize(batch["video"][:, :, 0])), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    every_frame = VideoDataset(test, **one_frame, transform=TestTransform(64), num_clips=NUM_FRAMES)
    model.eval()
    with torch.inference_mode():
        right = [
            (model(normalize(item["video"][:, :, 0])).argmax(1) == item["label"]).float().mean()
            for item in map(every_frame.__getitem__, range(len(test)))
        ]
    accuracy = float(torch.stack(right).mean())
    with capsys.disabled():
        print(
            f"\nmotion from a random single decoded frame: {100 * accuracy:.1f} % (chance 12.5 %, last loss {loss:.2f})"
        )
    assert accuracy < 0.4
