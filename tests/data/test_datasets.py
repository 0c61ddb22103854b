"""Items of data sets: frames, views and random choices by (seed, epoch, index); bad files are reported."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_videos import numbered_frame, read_number, write_numbered
from PIL import Image

from sparsevideo.data import clip_sampling, datasets, scan
from sparsevideo.data.clip_sampling import uniform_clip, uniform_clips
from sparsevideo.data.datasets import ImageDataset, VideoDataset
from sparsevideo.data.frame_index import INDEX, read_index
from sparsevideo.data.protocols import PROTOCOLS, Header, protocol_clips
from sparsevideo.data.records import Records, read_records
from sparsevideo.data.transforms import TestTransform, TrainTransform
from sparsevideo.io.backends import _warn_of_fallback, open_video, read_frames
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.reader import Video

LENGTHS = {"a/0.mp4": 40, "a/1.mp4": 16, "b/2.mp4": 25, "b/3.mp4": 5}
WHOLE = TrainTransform(48, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_prob=0.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    root = tmp_path_factory.mktemp("videos")
    for name, length in LENGTHS.items():
        (root / name).parent.mkdir(exist_ok=True)
        write_numbered(root / name, length, options={"g": "12", "bf": "2"}, height=48, width=48)
    return read_records(root, kind="video")


@pytest.fixture
def damaged(records: Records, tmp_path: Path) -> Records:
    """Return a copy of the list, in which file 1 is not a video and file 2 is missing."""
    for index in range(len(records)):
        (tmp_path / records.name(index)).parent.mkdir(exist_ok=True)
        (tmp_path / records.name(index)).write_bytes(records.path(index).read_bytes())
    damaged = read_records(tmp_path, kind="video")
    damaged.path(1).write_bytes(b"no video")
    damaged.path(2).unlink()
    return damaged


def training_set(records: Records, **changes) -> VideoDataset:
    return VideoDataset(records, **{"num_frames": 6, "frame_stride": 3, "transform": WHOLE, **changes})


def view_set(records: Records, crops: int = 1, **changes) -> VideoDataset:
    arguments = {"num_frames": 6, "frame_stride": 3, "num_clips": 4, **changes}
    return VideoDataset(records, transform=TestTransform(48, crops), **arguments)


def frame_numbers(clip: torch.Tensor) -> list[int]:
    return [read_number(frame.numpy()) for frame in clip.permute(1, 2, 3, 0)]  # (3, T, S, S) -> T x (S, S, 3)


def test_training_item(records: Records) -> None:
    item = training_set(records)[2]
    assert item["video"].shape == (3, 6, 48, 48) and item["video"].dtype == torch.uint8
    rest = {key: item[key] for key in item if key != "video"}
    assert rest == {
        "label": 1, "clip_index": 0, "aug_index": 0, "video_index": 2, "video_name": "b/2.mp4", "failures": [],
        "sample_aspect_ratio": 1.0,
    }  # fmt: skip


def test_training_clips_are_consecutive_frames_with_any_start(records: Records) -> None:
    dataset = training_set(records)
    starts = set()
    for epoch in range(60):
        numbers = frame_numbers(dataset[epoch, 0]["video"])
        assert numbers == list(range(numbers[0], numbers[0] + 16, 3))
        starts.add(numbers[0])
    assert min(starts) >= 0 and max(starts) <= 24 and len(starts) > 15  # of 25 possible starts
    assert frame_numbers(dataset[3]["video"])[-3:] == [4, 4, 4]  # a video of 5 frames


def test_item_is_a_function_of_seed_epoch_and_index(records: Records) -> None:
    def pixels(seed: int, epoch: int, index: int) -> torch.Tensor:
        np.random.seed(len(items))
        torch.manual_seed(len(items))
        return training_set(records, transform=TrainTransform(48), seed=seed)[epoch, index]["video"]

    items: list[torch.Tensor] = []
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        items.append(pixels(*key))
        assert torch.equal(pixels(*key), items[-1])
    assert all(not torch.equal(a, b) for i, a in enumerate(items) for b in items[:i])
    assert torch.equal(
        training_set(records)[1]["video"], training_set(records)[0, 1]["video"]
    )  # a plain index is of epoch 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_test_views_are_clips_by_crops(records: Records, protocol: str) -> None:
    item = view_set(records, crops=3, protocol=protocol)[0]
    assert item["video"].shape == (12, 3, 6, 48, 48)
    assert item["clip_index"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert item["aug_index"].tolist() == [0, 1, 2] * 4
    clips = protocol_clips(protocol, 40, 6, 3, 4, Header.usual(40, 25))
    assert [frame_numbers(view) for view in item["video"]] == clips.repeat(3, axis=0).tolist()
    assert (item["label"], item["video_index"], item["video_name"], item["failures"]) == (0, 0, "a/0.mp4", [])


@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48)])
def test_share_stem_gives_views_as_parts_of_whole_frames(height: int, width: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/video.mp4", 22, height=height, width=width)
    records = read_records(tmp_path, kind="video")
    views, shared = (view_set(records, crops=3, num_clips=2, share_stem=share)[0] for share in (False, True))
    (whole,) = shared["video"]
    assert whole.shape == (3, 8, height, width)  # frames 0, 3, ... 21, each in one clip or in both
    assert views["short_side"] == shared["short_side"] == 48
    for view, frames, box in zip(views["video"], shared["frames"], shared["boxes"], strict=True):
        left, top, right, bottom = (box * torch.tensor([width, height] * 2)).round().int().tolist()
        assert torch.equal(whole[:, frames, top:bottom, left:right], view)


def test_decoder_is_the_requested_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("decord")
    _warn_of_fallback.cache_clear()
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/video.ts", 12)
    assert "video" in view_set(read_records(tmp_path, kind="video"), decoder="decord")[0]
    assert "decord does not read some mpegts files" in caplog.text


@pytest.mark.parametrize("changes", [{}, {"share_stem": True}, {"protocol": "mmaction2"}, {"target_fps": 40.0}])
def test_frame_order_of_each_clip(records: Records, changes: dict) -> None:
    """Files of 40, 16, 25 and 5 frames; clips that repeat frames, too."""
    orders = {name: view_set(records, crops=3, frame_order=name, **changes) for name in clip_sampling.FRAME_ORDERS}
    shuffled = set()
    for index, length in enumerate(LENGTHS.values()):
        items = {name: dataset[index] for name, dataset in orders.items()}
        clips = {name: item["frame_indices"].tolist() for name, item in items.items()}
        assert clips["reversed"] == [clip[::-1] for clip in clips["forward"]]
        assert [sorted(clip) for clip in clips["shuffled"]] == [sorted(clip) for clip in clips["forward"]]
        shuffled.add(tuple(np.argsort(clips["shuffled"][0], kind="stable")))
        assert "target_fps" in changes or clips["middle"] == [[length // 2] * 6] * 4
        for name, item in items.items():
            assert item["repeats_frames"] == items["forward"]["repeats_frames"]
            if "share_stem" in changes:
                numbers = [[frame_numbers(item["video"][0])[i] for i in view] for view in item["frames"].tolist()]
            else:
                numbers = [frame_numbers(view) for view in item["video"]]
            assert numbers == [clip for clip in clips[name] for _ in range(3)]
    assert len(shuffled) == len(LENGTHS)


def test_shuffled_frames_depend_on_the_file_and_the_clip_alone(records: Records) -> None:
    def shuffled(records: Records, index: int, **changes) -> list[list[int]]:
        np.random.seed(len(records))
        views = view_set(records, frame_order="shuffled", seed=len(records), num_frames=12, frame_stride=1, **changes)
        return [frame_numbers(view) for view in views[index]["video"]]

    alone = Records.build(records.root, ["x"], ["b/2.mp4"], [0])
    clips = shuffled(records, 2)
    assert clips == shuffled(records, 2) == shuffled(alone, 0)
    orders = [np.argsort(clip).tolist() for clip in clips]
    assert all(orders[a] != orders[b] for a in range(4) for b in range(a))
    assert shuffled(alone, 0, num_clips=2)[0] == clips[0]
    spans = np.array([[0.0, 1.0], [0.0, 0.9]])
    parts = Records.build(records.root, ["x"], ["b/2.mp4"] * 2, [0, 0], spans)
    assert shuffled(parts, 0)[0] != shuffled(parts, 1)[0]


def test_frames_are_decoded_in_file_order(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []
    frames = Video.frames

    def recorded(video, indices, *args, **named):
        requested.append(indices.tolist())
        return frames(video, indices, *args, **named)

    monkeypatch.setattr(Video, "frames", recorded)
    for name in clip_sampling.FRAME_ORDERS:
        _ = view_set(records, frame_order=name)[0]
    forward, *others, middle = requested
    assert forward == sorted(forward) and others == [forward, forward] and middle == [20]


def test_repeats_are_different_clips_from_one_opening(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def counted(path, *args, **named):
        opened.append(path)
        return open_video(path, *args, **named)

    dataset = training_set(records, transform=TrainTransform(48), num_repeats=3)
    once = training_set(records, transform=TrainTransform(48))[5, 0]
    monkeypatch.setattr(datasets, "open_video", counted)
    items = dataset[5, 0]
    assert len(opened) == 1 and len(items) == 3
    assert [item["clip_index"] for item in items] == [0, 1, 2]
    assert torch.equal(items[0]["video"], once["video"])
    assert not torch.equal(items[0]["video"], items[1]["video"])
    assert not torch.equal(items[1]["video"], items[2]["video"])
    again = dataset[5, 0]
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(items, again, strict=True))


def test_failures_of_repeated_clips_are_reported_once(damaged: Records) -> None:
    items = training_set(damaged, num_repeats=2)[5, 1]
    assert [item["video_index"] for item in items] == [3, 3]
    assert [len(item["failures"]) for item in items] == [2, 0]


def test_clips_are_within_the_seconds_of_their_record(records: Records) -> None:
    """At 25 frames a second, 0.4 s to 1.2 s are the frames 10 to 29."""
    spans = np.array([[0.4, 1.2], [0.0, np.inf], [0.96, np.inf], [0.0, 0.08]])
    cut = Records.build(records.root, records.classes, list(LENGTHS), records.labels, spans)
    numbers = [frame_numbers(view) for view in view_set(cut)[0]["video"]]
    assert (numbers[0][0], numbers[-1][-1]) == (10, 29)
    assert frame_numbers(view_set(cut)[2]["video"][0]) == [24] * 6  # the only frame
    assert frame_numbers(view_set(cut)[3]["video"][0]) == [0, 1, 1, 1, 1, 1]
    starts = {frame_numbers(training_set(cut)[epoch, 0]["video"])[0] for epoch in range(40)}
    assert starts == {10, 11, 12, 13, 14}
    beyond = Records.build(records.root, records.classes, ["a/0.mp4"], [0], np.array([[2.0, 3.0]]))
    ((_, name, reason),) = view_set(beyond)[0]["failures"]
    assert name == "a/0.mp4" and "a/0.mp4 [2-3 s]: no frame in the span" in reason


def test_messages_about_a_segment_hold_its_seconds(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the names of a batch, the file that a worker reads, and a reason without a path."""
    spans = np.array([[0.4, 1.2], [0.0, np.inf], [0.96, np.inf], [0.0, 0.08]])
    cut = Records.build(records.root, records.classes, list(LENGTHS), records.labels, spans)
    opened = []
    monkeypatch.setattr(datasets, "reading", lambda file: opened.append(file) or nullcontext())
    expected = ["a/0.mp4 [0.4-1.2 s]", "a/1.mp4", "b/2.mp4 [from 0.96 s]", "b/3.mp4 [0-0.08 s]"]
    assert [view_set(cut)[i]["video_name"] for i in range(4)] == expected
    assert [training_set(cut)[0, i]["video_name"] for i in range(4)] == expected
    assert opened == [str(records.root / name) for name in expected] * 2
    assert cut.reason(0, OSError("disk away")) == f"{records.root}/a/0.mp4 [0.4-1.2 s]: disk away"
    assert cut.reason(1, OSError("disk away")) == "disk away"


def test_clips_are_within_the_frames_of_their_record(tmp_path: Path) -> None:
    """The frames 10 to 18 at any frame rate, which varies here."""
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/uneven.mp4", 30, irregular=True, height=48, width=48)
    rows = ["a/uneven.mp4,x,10,19", "a/uneven.mp4,x,28,90", "a/uneven.mp4,x,,2", "a/uneven.mp4,x,30,40"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,start_frame,stop_frame", *rows]))
    views = view_set(read_records(tmp_path, "list.csv", kind="video"), frame_stride=1)
    numbers = [[frame_numbers(view) for view in views[index]["video"]] for index in range(3)]
    assert (numbers[0][0], numbers[0][-1]) == ([10, 11, 12, 13, 14, 15], [13, 14, 15, 16, 17, 18])
    assert (numbers[1][0], numbers[2][0]) == ([28] + [29] * 5, [0] + [1] * 5)
    ((_, _, reason),) = views[3]["failures"]
    assert "a/uneven.mp4 [frames 30-40]: no frame in the segment; it starts at frame 30 of 30" in reason
    assert views[0]["video_name"] == "a/uneven.mp4 [frames 10-19]"


def test_target_fps_counts_from_the_first_second_of_the_record(records: Records) -> None:
    cut = Records.build(records.root, records.classes, ["a/0.mp4"], [0], np.array([[0.4, np.inf]]))
    views = view_set(cut, target_fps=12.5, frame_stride=2, num_clips=1)[0]["video"]
    assert frame_numbers(views[0]) == [14, 18, 22, 26, 30, 34]  # the center of 10, 12, ..., 38


def test_target_fps_resamples_the_frames(tmp_path: Path) -> None:
    """A video that slows down, at 5 frames per second: the frame shown every 0.2 s."""
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/uneven.mp4", 30, irregular=True, height=48, width=48)
    shown_s = np.array([(n + n * n // 3) / 25 for n in range(30)])
    expected = [int(np.flatnonzero(shown_s <= 0.2 * k + 1e-6)[-1]) for k in range(6)]
    dataset = view_set(read_records(tmp_path, kind="video"), target_fps=5.0, frame_stride=1)
    assert frame_numbers(dataset[0]["video"][0]) == expected


def test_uniform_sampling_covers_the_whole_video(records: Records) -> None:
    views = view_set(records, sampling="uniform", num_clips=1)[0]["video"]
    assert frame_numbers(views[0]) == uniform_clip(40, 6).tolist()
    views = view_set(records, sampling="uniform", num_clips=3)[0]["video"]
    assert [frame_numbers(view) for view in views] == uniform_clips(40, 6, 3).tolist()
    clips = [frame_numbers(training_set(records, sampling="uniform")[epoch, 0]["video"]) for epoch in range(20)]
    assert len({tuple(clip) for clip in clips}) > 15
    assert all(k * 40 // 6 <= n <= ((k + 1) * 40 - 1) // 6 for clip in clips for k, n in enumerate(clip))


def test_scan_index_is_used_while_the_files_are_unchanged(damaged: Records) -> None:
    damaged.path(2).write_bytes(damaged.path(0).read_bytes())
    scan.scan(damaged.root)
    index = read_index(damaged.root / INDEX, map(damaged.name, range(4)))
    known, plain = view_set(damaged, index=index), view_set(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Video, "_list_frames", None)  # calling it would raise
        views = known[0]["video"]
    assert torch.equal(views, plain[0]["video"])
    assert "a/1.mp4: marked bad by the scan (" in known[1]["failures"][0][2]
    assert training_set(damaged, index=index)[1]["video_index"] == 2
    damaged.path(0).write_bytes(damaged.path(3).read_bytes())
    damaged.path(1).write_bytes(damaged.path(3).read_bytes())
    assert frame_numbers(known[0]["video"][0]) == frame_numbers(plain[3]["video"][0])
    assert torch.equal(known[1]["video"], plain[1]["video"])


def test_views_of_a_large_video_take_the_memory_of_their_crops(tmp_path: Path) -> None:
    """Twelve views of 32 frames of 1280x720 would be 1 GB before the crop."""
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/large.mp4", 80, options={"preset": "ultrafast"}, height=720, width=1280)
    code = f"""
import resource
from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.records import read_records
from sparsevideo.data.transforms import TestTransform
records = read_records({str(tmp_path)!r}, kind="video")
views = VideoDataset(records, num_frames=32, frame_stride=2, transform=TestTransform(64, 3), num_clips=4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert views[0]["video"].shape == (12, 3, 32, 64, 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 150


def test_short_side_resizes_while_decoding(records: Records) -> None:
    item = view_set(records, short_side=24)[0]
    sharp = view_set(records)[0]
    assert item["short_side"] == sharp["short_side"] == 48  # the stored size
    assert item["video"].shape == sharp["video"].shape
    assert not torch.equal(item["video"], sharp["video"])
    assert frame_numbers(item["video"][0]) == frame_numbers(sharp["video"][0])


def test_square_pixels_resizes_in_training_and_in_tests(tmp_path: Path) -> None:
    """Crops of a file with pixels of 3:2 equal those of a file with square pixels."""
    for folder, width, ratio in (("tall", 48, "3/2"), ("square", 72, "")):
        (tmp_path / folder / "a").mkdir(parents=True)
        for index in range(2):
            write_numbered(tmp_path / folder / f"a/{index}.mp4", 30, height=48, width=width, ratio=ratio)
    tall, shown = (read_records(tmp_path / folder, kind="video") for folder in ("tall", "square"))
    crop = TrainTransform(48, scale=(0.3, 1.0), ratio=(0.75, 1.5))
    for make, changes in (
        (training_set, {"transform": crop}),
        (view_set, {"crops": 3}),
        (view_set, {"share_stem": True}),
    ):
        stored, square = (make(tall, square_pixels=square, **changes)[1] for square in (False, True))
        truth = make(shown, **changes)[1]
        assert [each["sample_aspect_ratio"] for each in (stored, square, truth)] == [1.5, 1.5, 1.0]
        assert square["video"].shape == truth["video"].shape
        if stored["video"].shape != truth["video"].shape:  # whole frames
            assert "share_stem" in changes
            continue
        square_apart, stored_apart = (
            (each["video"].int() - truth["video"].int()).abs().float().mean() for each in (square, stored)
        )
        assert 2 * square_apart < stored_apart


def test_bad_files_are_replaced_by_the_next_in_training(damaged: Records) -> None:
    item = training_set(damaged)[5, 1]
    assert item["video_index"] == 3 and item["video_name"] == "b/3.mp4" and item["label"] == 1
    assert [failure[:2] for failure in item["failures"]] == [(1, "a/1.mp4"), (2, "b/2.mp4")]
    assert "a/1.mp4: does not decode" in item["failures"][0][2]
    assert "b/2.mp4: no such file" in item["failures"][1][2]
    damaged.path(3).write_bytes(b"")
    assert training_set(damaged)[3]["video_index"] == 0  # the last is followed by the first
    damaged.path(0).write_bytes(b"")
    with pytest.raises(DecodeError, match=r"4 files in a row do not decode; .*; the first: .*b/2\.mp4"):
        _ = training_set(damaged)[2]
    with pytest.raises(DecodeError, match="20 files in a row do not decode"):
        _ = training_set(Records.build(damaged.root, ["a"], ["gone.mp4"] * 50, [0] * 50))[2]


def test_replacement_is_a_different_clip_than_that_of_its_own_index(records: Records) -> None:
    dataset = training_set(Records.build(records.root, ["a"], ["gone.mp4", "a/0.mp4"], [0, 0]))
    replaced, own = dataset[5, 0], dataset[5, 1]
    assert replaced["video_index"] == own["video_index"] == 1
    assert frame_numbers(replaced["video"]) != frame_numbers(own["video"])


def test_bad_files_are_not_replaced_in_a_test(damaged: Records) -> None:
    item = view_set(damaged)[1]
    assert "video" not in item
    assert (item["label"], item["video_index"], item["video_name"]) == (0, 1, "a/1.mp4")
    assert item["failures"][0][:2] == (1, "a/1.mp4") and len(item["failures"]) == 1


def test_flip_changes_the_label(records: Records) -> None:
    flipping = TrainTransform(48, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_prob=1.0, flip_labels=[1, 0])
    item, plain = training_set(records, transform=flipping)[0], training_set(records)[0]
    assert (plain["label"], item["label"]) == (0, 1)
    assert torch.equal(item["video"], plain["video"].flip(-1))


def test_impossible_settings_stop_at_construction(records: Records) -> None:
    with pytest.raises(ValueError, match="go together; got None and TestTransform"):
        view_set(records, num_clips=None)
    with pytest.raises(ValueError, match="go together; got 4 and TrainTransform"):
        training_set(records, num_clips=4)
    for changes, message in [
        ({"num_clips": 0}, "at least one clip"),
        ({"protocol": "middle"}, "'middle'"),
        ({"frame_stride": 0}, "frame_stride"),
        ({"decoder": "gstreamer"}, "'gstreamer'"),
        ({"sampling": "dense"}, "'dense'"),
        ({"frame_order": "random"}, "'random'; it must be one of forward, reversed, shuffled, middle"),
        ({"num_repeats": 0}, "num_repeats"),
    ]:
        with pytest.raises(ValueError, match=message):
            view_set(records, **changes)
    with pytest.raises(ValueError, match="share_stem is for tests"):
        training_set(records, share_stem=True)
    for index in (4, -1):
        with pytest.raises(IndexError):
            _ = training_set(records)[index]


def test_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(4):
        Image.fromarray(numbered_frame(index + 341, 48, 96)).save(tmp_path / f"a/{index}.png")
    (tmp_path / "a/1.png").write_bytes(b"no image")
    records = read_records(tmp_path, kind="image")

    train = ImageDataset(records, transform=TrainTransform(48), seed=3)
    assert train[7, 0]["image"].shape == (3, 48, 48) and train[7, 0]["image"].dtype == torch.uint8
    assert torch.equal(train[7, 0]["image"], train[7, 0]["image"])
    assert not torch.equal(train[7, 0]["image"], train[8, 0]["image"])
    assert train[1]["video_index"] == 2 and train[1]["failures"][0][:2] == (1, "a/1.png")

    test = ImageDataset(records, transform=TestTransform(48, 3))
    assert test[0]["image"].shape == (3, 3, 48, 48)
    assert test[0]["clip_index"].tolist() == [0, 0, 0] and test[0]["aug_index"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(test[3]["image"][1].permute(1, 2, 0), numbered_frame(344, 48, 96)[:, 24:72])
    assert "image" not in test[1] and test[1]["failures"][0][:2] == (1, "a/1.png")


def test_protocol_scales_its_span_instead_of_resampling(records: Records) -> None:
    """In videos of 25 frames per second; the default of PySlowFast counts strides at 30."""
    clip = {"num_frames": 4, "frame_stride": 3, "num_clips": 1}
    assert frame_numbers(view_set(records, protocol="slowfast", **clip)[0]["video"][0]) == [0, 3, 6, 9]
    views = view_set(records, protocol="slowfast", target_fps=10, **clip)[0]["video"]
    assert frame_numbers(views[0]) == [0, 9, 19, 29]
    assert frame_numbers(view_set(records, target_fps=12.5, **clip)[0]["video"][0]) == [10, 16, 22, 28]
    training = training_set(records, protocol="slowfast", target_fps=12.5, num_frames=4, frame_stride=3)
    numbers = frame_numbers(training[0]["video"])
    assert numbers == list(range(numbers[0], numbers[0] + 19, 6))


def test_protocol_needs_the_frame_rate(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Video, "frame_rate", None)
    ((_, _, reason),) = view_set(records, protocol="pytorchvideo")[0]["failures"]
    assert reason.endswith("a/0.mp4: states no frame rate, which test protocol pytorchvideo needs")
    assert "video" in view_set(records)[0]


def test_protocol_resizes_whole_frames_before_the_crop(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/wide.mp4", 12, height=48, width=146)
    noise = np.random.default_rng(0).integers(256, size=(48, 146, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a/image.png")
    transform = TestTransform(30, 3, short_side=36, protocol="slowfast")
    clip = {"num_frames": 2, "frame_stride": 1, "num_clips": 1, "transform": transform}
    videos, images = (read_records(tmp_path, kind=kind) for kind in ("video", "image"))
    for item, frames in [
        (VideoDataset(videos, protocol="slowfast", **clip)[0], read_frames(videos.path(0), [0, 0])),
        (ImageDataset(images, transform=transform)[0], noise[None]),
    ]:
        assert torch.equal(item["video" if "video" in item else "image"].reshape(3, 3, -1, 30, 30), transform(frames))
        assert item["short_side"] == 48  # the stored size
    with pytest.raises(ValueError, match="protocol must be ends"):
        ImageDataset(images, transform=transform, share_stem=True)
