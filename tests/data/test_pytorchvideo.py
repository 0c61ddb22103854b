"""The import of pytorchvideo has no side effects, and its data sets give equal frames with our reader."""

import inspect
import logging
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import pytest
import torch
from numbered_videos import REAL, read_number, write_numbered
from test_tar_shards import write_tar
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from sparsevideo.data import pytorchvideo as ptv
from sparsevideo.data.pytorchvideo import kinetics, labeled_video_dataset, make_clip_sampler
from sparsevideo.data.tar_shards import read_shards
from sparsevideo.io.backends import _warn_of_fallback

T = 8
Item = dict[str, Any]


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_replaced_module_is_removed_after_the_import() -> None:
    out = run(
        "import sys\n"
        "from sparsevideo.data import pytorchvideo as ptv\n"
        "print('pytorchvideo' in sys.modules)\n"
        "print(ptv.Normalize.__module__)\n"
        "print('torchvision.transforms.functional_tensor' in sys.modules)\n"
        "ptv.LabeledVideoDataset, ptv.Video\n"
        "print(any('decord' in name for name in sys.modules))\n"
    )
    is_imported, module, is_replaced, decord = out.split()
    assert is_imported == "False"  # only when a name is used
    assert module.startswith("pytorchvideo.transforms")
    assert is_replaced == "False"
    assert decord == "False"  # pytorchvideo's decord reader would change the arrays of decord in the whole process


def test_failing_import_gives_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchvideo.transforms", None)  # so importing it fails
    with pytest.raises(ImportError, match=r"pytorchvideo does not import .*; try: pip install"):
        _ = ptv.Normalize


def test_unknown_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = ptv.NoSuchThing


def starting_late(source: Path, target: Path) -> None:
    """Copy a file so that its first frame is shown after half a second."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                late = round(1 / (2 * packet.time_base))
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, stream
                writer.mux(packet)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write numbered videos in which pytorchvideo finds all frames."""
    folder = tmp_path_factory.mktemp("made")
    bframes = {"g": "12", "bf": "3"}
    for name, codec, options in [
        ("bframes.mp4", "libx264", bframes),
        ("one_gop.mov", "libx264", {"g": "250", "bf": "0"}),
        ("bframes.mkv", "libx264", bframes),  # whose header has no duration
        ("starts_late.flv", "libx264", bframes),
        ("xvid.avi", "mpeg4", {"g": "12", "bf": "0"}),
        ("bframes.avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("h264.avi", "libx264", {"g": "250", "bf": "2"}),  # whose time stamps are wrong
        ("vp9.webm", "libvpx-vp9", {"g": "12", "cpu-used": "8", "deadline": "realtime"}),
    ]:
        write_numbered(folder / name, 60, codec=codec, options=options)
    write_numbered(folder / "one_frame.mp4", 1)
    return sorted(folder.iterdir())


def theirs(files: Iterable[Path], sampler: tuple, order: type = SequentialSampler) -> IterableDataset[Item]:
    """Build a data set as a user of pytorchvideo does."""
    subsample = ptv.UniformTemporalSubsample(T)

    def transform(item: Item) -> Item:
        video = item["video"]
        return {**item, "video": [subsample(v) for v in video] if isinstance(video, list) else subsample(video)}

    pairs = [(str(file), {"label": label}) for label, file in enumerate(files)]
    pytorchvideos = ptv.LabeledVideoDataset.__base__
    assert pytorchvideos.__module__.startswith("pytorchvideo.")
    return pytorchvideos(pairs, make_clip_sampler(*sampler), order, transform, decode_audio=False)


def ours(files: Iterable[Path], sampler: tuple, order: type = SequentialSampler, **how: Any) -> IterableDataset[Item]:
    files = list(files)
    listing = files[0].parent / "list.txt" if "made" in str(files[0]) else how.pop("listing")
    listing.write_text("".join(f"{file} {label}\n" for label, file in enumerate(files)))
    return labeled_video_dataset(listing, make_clip_sampler(*sampler), order, num_frames=T, **how)


def assert_same(ours: Iterable[Item], theirs: Iterable[Item]) -> list[Item]:
    """Compare all items, drawn with equal seeds; return them."""
    both = []
    for items in (ours, theirs):
        random.seed(0)
        torch.manual_seed(0)
        both.append(list(items))
    assert len(both[0]) == len(both[1]) > 0
    for item, other in zip(*both, strict=True):
        assert item.keys() == other.keys()
        for key in item:
            if key == "video":
                for a, b in zip(*(v if isinstance(v, list) else [v] for v in (item[key], other[key])), strict=True):
                    assert a.dtype == torch.uint8 and torch.equal(a.float(), b), f"{item['video_name']}"
            else:
                assert item[key] == other[key], key
    return both[0]


SAMPLERS = [
    ("random", 0.7),
    ("constant_clips_per_video", 0.5, 4, 2),  # two views of each clip
    ("constant_clips_per_video", 0.1, 3),  # fewer frames than T
    ("uniform", 0.4),  # to the end
    ("uniform", 0.5, 0.3, True),
    ("random", 100.0),  # longer than the video
    ("random_multi", 0.6, 3),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_frames_are_pytorchvideos_bit_for_bit(sampler: tuple, made: list[Path]) -> None:
    items = assert_same(ours(made, sampler), theirs(made, sampler))
    assert {item["video_name"] for item in items} == {file.name for file in made}


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real videos are absent")
@pytest.mark.parametrize("sampler", [("random", 1.0), ("constant_clips_per_video", 0.5, 2)], ids=str)
def test_frames_of_real_files_are_pytorchvideos_bit_for_bit(sampler: tuple, tmp_path: Path) -> None:
    clean = sorted((REAL / "videos/clean").iterdir())
    items = assert_same(ours(clean, sampler, listing=tmp_path / "list.txt"), theirs(clean, sampler))
    assert {item["video_name"] for item in items} == {file.name for file in clean}


def test_clip_ends_are_pytorchvideos(made: list[Path]) -> None:
    """Ends on a frame, just before and after one, before the start and after the end of the video, as floats too."""
    files = [file for file in made if file.name in ("bframes.mp4", "starts_late.flv", "xvid.avi")]
    own, other = ours(files, ("random", 1.0)), theirs(files, ("random", 1.0))
    for index, file in enumerate(files):
        a = own.video_path_handler.video_from_path(index)
        b = other.video_path_handler.video_from_path(str(file))
        assert isinstance(a, ptv.Video) and a.name == b.name and a.duration == b.duration
        for start in (0, 0.04, 0.039999, 0.040001, 2.36, 2.4, -1.0):
            for end in (start, start + 0.04, start + 0.400001, float("inf")):
                clips = [video.get_clip(start, end)["video"] for video in (a, b)]
                assert (clips[0] is None) == (clips[1] is None), (file, start, end)
                if clips[0] is not None:
                    subsampled = ptv.UniformTemporalSubsample(T)(clips[1])
                    assert torch.equal(clips[0].float(), subsampled), (file, start, end)
        a.close()
        b.close()


@pytest.mark.parametrize("name", ["video.ts", "video.mp4"])
def test_file_that_starts_late_keeps_its_duration(name: str, tmp_path: Path) -> None:
    """Unlike in pytorchvideo 0.1.5, which subtracts the start from the duration."""
    write_numbered(tmp_path / "whole.mp4", 60, options={"g": "12", "bf": "3"})
    if name == "video.ts":
        write_numbered(tmp_path / name, 60, options={"g": "12", "bf": "3"})
    else:
        starting_late(tmp_path / "whole.mp4", tmp_path / name)
    how = {"listing": tmp_path / "list.txt"}
    video = ours([tmp_path / name], ("random", 1.0), **how).video_path_handler.video_from_path(0)
    other = theirs([tmp_path / name], ("random", 1.0)).video_path_handler.video_from_path(str(tmp_path / name))
    late_s = other._container.streams.video[0].start_time * other._container.streams.video[0].time_base
    assert late_s > 0.05
    assert float(video.duration) == pytest.approx(2.4, abs=0.05)
    assert other.duration == video.duration - late_s
    for start in (0, 0.5, 1.9):
        frames = video.get_clip(start, start + 0.5)["video"]
        assert frames is not None and read_number(frames[:, 0].permute(1, 2, 0).numpy()) == round(25 * start + 0.49)
    video.close()
    other.close()
    torch.manual_seed(0)
    random.seed(0)
    drawn = {float(item["clip_index"]) for item in ours([tmp_path / name], ("uniform", 0.5), **how)}
    assert drawn == set(range(4))


def assert_same_order(made: list[Path], num_workers: int) -> None:
    files = [file for file in made if file.suffix in (".mp4", ".mkv", ".avi")]
    loaders = [
        DataLoader(
            make(files, ("random", 0.7), RandomSampler),
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,  # torch's generators do not survive pickling
        )
        for make in (ours, theirs)
    ]
    items = assert_same(*loaders)
    assert sorted(item["video_index"] for item in items) == list(range(len(files)))


def test_order_and_batches_are_pytorchvideos_too(made: list[Path]) -> None:
    assert_same_order(made, num_workers=0)


@pytest.mark.slow
def test_order_and_batches_are_pytorchvideos_with_workers_too(made: list[Path]) -> None:
    """In a process that has not decoded yet: PyAV 19 keeps the threads that convert frames, which forks do not have."""
    run(
        f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}\n"
        "from pathlib import Path\n"
        "from test_pytorchvideo import assert_same_order\n"
        f"assert_same_order(sorted(Path({str(made[0].parent)!r}).glob('*.*')), num_workers=2)\n"
    )


@pytest.mark.slow
def test_order_does_not_depend_on_the_start_method_of_workers(made: list[Path]) -> None:
    """From Python 3.14 on workers are not forked by default, and pytorchvideo's own data set cannot be sent to them."""
    orders = []
    for context in ("fork", "forkserver", "spawn"):
        torch.manual_seed(0)
        dataset = ours(made[:4], ("random", 0.3), RandomSampler)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
        orders.append([item["video_index"] for item in loader])
    assert orders[0] == orders[1] == orders[2] and sorted(orders[0]) == [0, 1, 2, 3]


def test_transform_that_subsamples_changes_nothing(made: list[Path]) -> None:
    def subsample(item: Item) -> torch.Tensor:
        return ptv.UniformTemporalSubsample(T)(item["video"])

    plain = list(ours(made[:2], ("uniform", 0.5)))
    again = list(ours(made[:2], ("uniform", 0.5), transform=subsample))
    assert len(plain) > 2 and all(torch.equal(a["video"], b) for a, b in zip(plain, again, strict=True))


def test_short_side_and_batches(made: list[Path]) -> None:
    (batch,) = DataLoader(ours(made[:3], ("random", 0.5), short_side=48), batch_size=3)
    assert batch["video"].shape == (3, 3, T, 48, 48) and batch["video"].dtype == torch.uint8
    assert batch["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("workers", [None, "fork", "forkserver"])
def test_bad_files_are_logged_and_listed(
    workers: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of all containers in folders, in workers too."""
    for index, suffix in enumerate(("mp4", "mkv", "ts", "avi", "mov", "webm")):
        path = tmp_path / "ab"[index % 2] / f"{index}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        write_numbered(path, 40, codec="libvpx" if suffix == "webm" else "libx264", options={"g": "10", "bf": "0"})
    (tmp_path / "b/3.avi").write_bytes(b"no video")
    with av.open(str(tmp_path / "a/4.mov")) as container:
        packet = list(container.demux(video=0))[20]
    content = (tmp_path / "a/4.mov").read_bytes()
    (tmp_path / "a/4.mov").write_bytes(content.replace(bytes(packet), b"\xff" * packet.size))

    sampler = make_clip_sampler("constant_clips_per_video", 0.4, 2)  # frames 0 to 9 and 15 to 24
    dataset = kinetics(tmp_path, sampler, SequentialSampler, num_frames=4)
    handler = logging.StreamHandler()
    ptv.logger.addHandler(handler)
    try:
        loader = DataLoader(dataset, batch_size=None, num_workers=1 if workers else 0, multiprocessing_context=workers)
        items = [(item["video_name"], item["label"], item["clip_index"]) for item in loader]
    finally:
        ptv.logger.removeHandler(handler)
    whole = [("2.ts", 0), ("0.mp4", 0), ("1.mkv", 1), ("5.webm", 1)]
    assert sorted(items) == sorted([("4.mov", 0, 0)] + [(*video, clip) for video in whole for clip in (0, 1)])
    assert dataset.video_path_handler.failures == ["a/4.mov", "b/3.avi"]
    if workers == "forkserver":
        return  # the server may have been started by another test, and prints to the output of that one
    lines = set(capfd.readouterr().err.splitlines())  # without settings, as in workers, logging prints plain lines
    for name in dataset.video_path_handler.failures:
        (line,) = {line for line in lines if line.startswith(f"left out: {tmp_path / name}: ")}
        assert "does not decode" in line


def shown(item: Item) -> list[int]:
    """Return the frame indices that a clip shows."""
    return [read_number(frame.permute(1, 2, 0).numpy()) for frame in item["video"].unbind(1)]


def test_lists_with_a_prefix(tmp_path: Path) -> None:
    """Also the official Kinetics csv, which pytorchvideo misreads, and segments in seconds or frames."""
    for name in ("a 1.mp4", "abcdefghijk_000010_000020.mkv"):
        write_numbered(tmp_path / name, 75)

    def clips(listing: str, *sampler: Any) -> list[tuple[str, int, list[int]]]:
        with TemporaryDirectory() as elsewhere:
            (Path(elsewhere) / "list.csv").write_text(listing)
            dataset = labeled_video_dataset(
                Path(elsewhere) / "list.csv", make_clip_sampler(*sampler), video_path_prefix=tmp_path, num_frames=3
            )
        return [(item["video_name"], item["label"], shown(item)) for item in dataset]

    kinetics_csv = "label,youtube_id,time_start,time_end,split\nclap,abcdefghijk,10,20,val\nrun,00000000000,0,9,val\n"
    assert clips("a 1.mp4 7\n", "random", 9.0) == [("a 1.mp4", 7, [0, 37, 74])]
    assert clips(kinetics_csv, "random", 9.0) == [("abcdefghijk_000010_000020.mkv", 0, [0, 37, 74])]
    spanned = "path,label,start_s,end_s\na 1.mp4,0,1,2\n"
    assert clips(spanned, "uniform", 0.4) == [("a 1.mp4", 0, [25, 29, 34]), ("a 1.mp4", 0, [35, 39, 44])]
    assert clips(spanned, "random", 9.0) == [("a 1.mp4", 0, [25, 37, 49])]
    in_frames = "path,label,start_frame,stop_frame\na 1.mp4,0,27,50\na 1.mp4,0,70,\na 1.mp4,0,75,80\na 1.mp4,0,,\n"
    assert sorted(clips(in_frames, "random", 9.0)) == [
        ("a 1.mp4", 0, [0, 37, 74]),
        ("a 1.mp4", 0, [27, 38, 49]),
        ("a 1.mp4", 0, [70, 72, 74]),
    ]


def test_paths_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("videos", "lists"):
        Path(folder).mkdir()
    write_numbered(Path("videos/a.mp4"), 12)
    for line, prefix in [("videos/a.mp4 3\n", ""), ("a.mp4 3\n", "videos")]:
        Path("lists/list.txt").write_text(line)
        sampler = make_clip_sampler("random", 9.0)
        (item,) = labeled_video_dataset("lists/list.txt", sampler, video_path_prefix=prefix, num_frames=2)
        assert (item["video_name"], item["label"], shown(item)) == ("a.mp4", 3, [0, 11])


def test_deleted_video_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_numbered(tmp_path / name / "1.mp4", 12)
    dataset = kinetics(tmp_path, make_clip_sampler("random", 9.0), num_frames=2)
    (tmp_path / "a/1.mp4").unlink()
    (item,) = dataset
    assert item["label"] == 1 and dataset.video_path_handler.failures == ["a/1.mp4"]
    assert f"left out: {tmp_path / 'a/1.mp4'}: no such file" in caplog.text


def test_decoder_is_the_requested_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("decord")
    _warn_of_fallback.cache_clear()
    (tmp_path / "a").mkdir()
    write_numbered(tmp_path / "a/video.ts", 12)
    (_,) = kinetics(tmp_path, make_clip_sampler("random", 9.0), num_frames=2, decoder="decord")
    assert "decord does not read some mpegts files" in caplog.text


@pytest.mark.parametrize("name", ["Kinetics", "Ucf101", "Hmdb51", "labeled_video_dataset", "LabeledVideoDataset"])
def test_arguments_are_pytorchvideos(name: str) -> None:
    _ = ptv.Video  # imports pytorchvideo
    import pytorchvideo.data

    expected, own = (list(inspect.signature(getattr(module, name)).parameters) for module in (pytorchvideo.data, ptv))
    assert own == [*expected, "num_frames", "short_side"]


def test_all_names_of_pytorchvideos_data_are_offered() -> None:
    _ = ptv.Video
    import pytorchvideo.data

    names = {name for name in vars(pytorchvideo.data) if name[0].isupper()} | {"make_clip_sampler"}
    assert names > {"SSv2", "Charades", "Ava", "EpicKitchenRecognition", "DomsevVideoDataset"}
    for name in names:
        assert callable(getattr(ptv, name))


def test_pairs_are_read_with_our_reader_and_with_all_frames_of_a_clip(made: list[Path]) -> None:
    """As in pytorchvideo's tutorial with another import: equal frames, in loader workers too."""
    pairs = [(str(file), {"label": label, "tag": file.stem}) for label, file in enumerate(made)]
    args = (pairs, make_clip_sampler("uniform", 0.4), SequentialSampler)
    dataset = ptv.LabeledVideoDataset(*args, decode_audio=False)
    items = assert_same(dataset, ptv.LabeledVideoDataset.__base__(*args, decode_audio=False))
    assert len({item["video"].shape[1] for item in items}) > 1
    assert {item["tag"] for item in items} == {file.stem for file in made}
    assert isinstance(dataset, ptv.LabeledVideoDataset.__base__)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    for ours_item, theirs_item in zip(loader, items, strict=True):
        assert torch.equal(ours_item["video"], theirs_item["video"])


def test_hmdb51(tmp_path: Path) -> None:
    for name, video in [("wave", "a_b_c_d_e_f_0"), ("clap", "a_b_c_d_e_f_1"), ("clap", "a_b_c_d_e_f_2")]:
        (tmp_path / "videos" / name).mkdir(parents=True, exist_ok=True)
        write_numbered(tmp_path / "videos" / name / f"{video}.avi", 12, codec="mpeg4")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "wave_test_split1.txt").write_text("a_b_c_d_e_f_0.avi 1\n")
    (tmp_path / "splits" / "clap_test_split1.txt").write_text("a_b_c_d_e_f_1.avi 2\na_b_c_d_e_f_2.avi 1\n")
    how = {"video_path_prefix": tmp_path / "videos", "split_id": 1, "split_type": "train", "decode_audio": False}
    args = (tmp_path / "splits", make_clip_sampler("uniform", 9.0), SequentialSampler)
    items = list(ptv.Hmdb51(*args, **how, num_frames=4))
    assert [(item["label"], item["video_name"]) for item in items] == [
        ("clap", "a_b_c_d_e_f_2.avi"),
        ("wave", "a_b_c_d_e_f_0.avi"),
    ]
    assert all(item["video"].shape[:2] == (3, 4) and item["video"].dtype == torch.uint8 for item in items)
    with pytest.raises(ValueError, match="got 4, train"):
        ptv.Hmdb51(*args, split_id=4)
    with pytest.raises(FileNotFoundError, match=r"_test_split3\.txt"):
        ptv.Hmdb51(*args, split_id=3)


def test_impossible_arguments_are_errors(tmp_path: Path) -> None:
    arguments = {"data_path": tmp_path, "clip_sampler": make_clip_sampler("random", 1.0)}
    for error, message, changes in [
        (ValueError, "decode_audio must be False", {"decode_audio": True}),
        (ValueError, "must be >= 1, got 0 and None", {"num_frames": 0}),
        (ValueError, "must be >= 1, got 4 and 0", {"num_frames": 4, "short_side": 0}),
        (ValueError, "'torchvision'", {"decoder": "torchvision"}),
        (ValueError, "no video in it", {}),
        (FileNotFoundError, "absent", {"data_path": tmp_path / "absent"}),
    ]:
        with pytest.raises(error, match=message):
            kinetics(**arguments | changes)


def test_transforms_of_pytorchvideo_are_offered() -> None:
    """Pytorchvideo's own transforms do not import with torchvision >= 0.17."""
    names = "ApplyTransformToKey ShortSideScale RandomShortSideScale UniformCropVideo MixUp AugMix Div255 Permute"
    for name in names.split():
        assert getattr(ptv, name).__module__.startswith("pytorchvideo.transforms")


def test_videos_in_tar_shards_are_those_of_files(made: list[Path], tmp_path: Path) -> None:
    members = [(f"{i}/{file.name}", file.read_bytes()) for i, file in enumerate(made)]
    members += [(f"{i}/{file.stem}.cls", b"1") for i, file in enumerate(made)]
    write_tar(tmp_path / "a.tar", members)
    args = (make_clip_sampler("uniform", 0.4), SequentialSampler)
    files = list(ptv.LabeledVideoDataset([(str(file), {"label": 1}) for file in made], *args, num_frames=4))
    shards = list(ptv.LabeledVideoDataset(read_shards(tmp_path, "a.tar", kind="video"), *args, num_frames=4))
    assert len(files) == len(shards) > len(made)
    for ours, theirs in zip(files, shards, strict=True):
        assert torch.equal(ours["video"], theirs["video"])
        assert (ours["video_name"], ours["label"]) == (theirs["video_name"], theirs["label"])
