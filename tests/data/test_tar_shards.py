"""Tar shards give the same data as class folders; a shard that would lose images is an error that names it."""

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import pickle
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbered_videos import REAL, numbered_frame, read_number, write_numbered
from PIL import Image
from torch.utils.data import Dataset

from sparsevideo.data.classes import UNLABELED
from sparsevideo.data.datasets import ImageDataset, VideoDataset
from sparsevideo.data.loader import test_loader, train_loader
from sparsevideo.data.records import Records, read_records
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.data.tar_shards import Shards, is_shards, read_shards
from sparsevideo.data.transforms import TestTransform, TrainTransform
from sparsevideo.io.backends import open_video, read_frames
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.image import read_image
from sparsevideo.io.sources import Member

Members = list[tuple[str, bytes]]


def jpeg(index: int, format: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(numbered_frame(index, 40, 56)).save(content, format)
    return content.getvalue()


def write_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(*indices: int, label: str = "0") -> Members:
    return [(f"{i}{end}", jpeg(i) if end == ".jpg" else label.encode()) for i in indices for end in (".jpg", ".cls")]


def shard_folders(records: Records, folder: Path, num_shards: int) -> None:
    """Write the images of class folders as shards, in the same order."""
    for shard, part in enumerate(np.array_split(np.arange(len(records)), num_shards)):
        members: Members = []
        for index in part.tolist():
            name = Path(records.name(index))
            members.append((f"{name.stem}_{index}{name.suffix}", records.path(index).read_bytes()))
            members.append((f"{name.stem}_{index}.cls", str(records.labels[index]).encode()))
        write_tar(folder / f"train-{shard:06d}.tar", members)
    (folder / "classes.txt").write_text("\n".join(records.classes) + "\n")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def table(records: Records) -> list[tuple[str, int]]:
    return [(records.name(i), int(records.labels[i])) for i in range(len(records))]


def assert_error(message: str, root: Path, pattern: str = "a.tar", error: Any = ValueError, **settings: Any) -> None:
    """Check the error over shards."""
    with pytest.raises(error, match=message):
        read_shards(root, pattern, **settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Records:
    root = tmp_path_factory.mktemp("folders")
    for index in range(22):
        path = root / ["n03", "n01", "n02"][index % 3] / f"{index}.{'JPEG' if index % 2 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(index, "JPEG" if index % 2 else "PNG"))
    (root / "n02/8.png").write_bytes(b"no image")
    return read_records(root, kind="image")


@pytest.fixture(scope="module")
def shards(folders: Records, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    root = tmp_path_factory.mktemp("shards")
    shard_folders(folders, root, 3)
    return read_shards(root, "train-{000000..000002}.tar")


def test_shards_equal_the_folders(folders: Records, shards: Shards) -> None:
    assert shards.classes == folders.classes == ("n01", "n02", "n03")
    assert shards.labels.dtype == np.int64 and shards.labels.tolist() == folders.labels.tolist()
    for index in range(len(folders)):
        assert shards.open(index).read() == folders.path(index).read_bytes()
    assert shards.name(0) == "train-000000.tar/1_0.JPEG" and shards.name(-1) == "train-000002.tar/9_21.JPEG"
    assert shards.path(0) == shards.root / shards.name(0)
    with pytest.raises(IndexError):
        shards.name(len(folders))


def check_loaders(pairs: list[tuple[Dataset, Dataset]], key: str, batch_size: int, count: int, num_workers: int) -> str:
    """Compare the batches of (training, test) data sets; return the name of the one bad file in the last pair.

    It is replaced in training and reported in a test.
    """
    runs = []
    for train, test in pairs:
        training = train_loader(train, EpochSampler(len(train), batch_size, seed=5), num_workers=num_workers)
        runs.append(
            [*islice(training, count), *test_loader(test, range(len(test)), batch_size=4, num_workers=num_workers)]
        )
    for ours, theirs in zip(*runs, strict=True):
        for name in (key, "label", "video_index"):
            assert torch.equal(ours[name], theirs[name])
        assert [failure[0] for failure in ours["failures"]] == [failure[0] for failure in theirs["failures"]]
    (failure,) = [failure for batch in runs[1][count:] for failure in batch["failures"]]
    assert failure[1] in failure[2] and any(batch["failures"] for batch in runs[1][:count])
    return failure[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_of_shards_make_the_batches_of_folders(folders: Records, shards: Shards, num_workers: int) -> None:
    transforms = {"transform": TrainTransform(24), "seed": 5}, {"transform": TestTransform(24, 3)}
    pairs = [tuple(ImageDataset(records, **how) for how in transforms) for records in (folders, shards)]
    assert check_loaders(pairs, "image", 5, 8, num_workers).startswith("train-00000")


def test_shards_are_read_by_many_threads_at_once(folders: Records, shards: Shards) -> None:
    order = np.random.default_rng(0).integers(len(folders), size=300).tolist()
    with ThreadPoolExecutor(4) as pool:
        for index, content in zip(order, pool.map(lambda i: shards.open(i).read(), order), strict=True):
            assert content == folders.path(index).read_bytes()


def test_shards_are_compact(shards: Shards) -> None:
    """Each worker gets a copy, without open files."""
    copy = pickle.loads(pickle.dumps(shards))
    assert table(copy) == table(shards) and copy.open(3).read() == shards.open(3).read()
    assert len(pickle.dumps(shards)) < 2000 + len(shards) * 60


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real images are absent")
def test_shards_of_real_images(tmp_path: Path) -> None:
    classes = ("n01440764", "n02102040", "n03888257")
    with tarfile.open(REAL / "imagenette-160.tar") as tar:
        for name in classes:
            members = [m for m in tar.getmembers() if m.name.startswith(f"imagenette-160/val/{name}/") and m.isfile()]
            for member in members[:15]:
                tar.extract(member, tmp_path)  # older Pythons have no argument `filter`
    folders = read_records(tmp_path, "imagenette-160/val", kind="image")
    shard_folders(folders, tmp_path / "shards", 2)
    shards = read_shards(tmp_path, "shards")
    assert shards.classes == classes and shards.labels.tolist() == folders.labels.tolist() and len(shards) == 45
    for index in range(len(folders)):
        np.testing.assert_array_equal(read_image(shards.open(index)), read_image(folders.path(index)))


def test_is_shards_distinguishes_shards_from_folders_and_lists(tmp_path: Path) -> None:
    write_tar(tmp_path / "flat/b.tar", samples(1))
    write_tar(tmp_path / "videos/all.tar", samples(1))
    (tmp_path / "videos/a.mp4").touch()
    write_tar(tmp_path / "mixed/n01.tar", samples(1))
    (tmp_path / "mixed/n01").mkdir()
    for listing in ("a.tar", "a-{0..3}.tar", "x/*.tar", "a.tar.gz", "a.tgz", "flat"):
        assert is_shards(tmp_path, listing), listing
    for listing in ("mixed", "videos", "a.csv", "a.tar.csv", ".", "nowhere", "tar"):
        assert not is_shards(tmp_path, listing), listing


def test_patterns(tmp_path: Path) -> None:
    for name in ("train-08.tar", "train-09.tar", "train-10.tar", "val-0.tar"):
        write_tar(tmp_path / "set" / name, samples(1))
    write_tar(tmp_path / "set/.hidden.tar", samples(1))
    train = ("set/train-08.tar", "set/train-09.tar", "set/train-10.tar")
    for pattern, found in [
        ("set/train-{08..10}.tar", train),
        ("set/train-*.tar", train),
        ("set/{val-0,train-{09,1?}}.tar", ("set/val-0.tar", *train[1:])),
        ("set", (*train, "set/val-0.tar")),
        ("set/val-0.tar", ("set/val-0.tar",)),
    ]:
        assert read_shards(tmp_path, pattern).shards == found
    assert read_shards(tmp_path / "set", str(tmp_path / "set/train-0*.tar")).open(1).read() == jpeg(1)
    assert_error(
        r"2 of 4 shards are not there: set/train-07\.tar, set",
        tmp_path,
        "set/train-{07,08,09,11}.tar",
        error=FileNotFoundError,
    )
    assert_error(r"set/test-\*\.tar: no such tar shards; correct", tmp_path, "set/test-*.tar", error=FileNotFoundError)
    assert_error(
        r"nowhere: no such folder; set data\.root", tmp_path / "nowhere", "train-*.tar", error=FileNotFoundError
    )


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_kind(tmp_path: Path, format: int) -> None:
    deep = "very/" * 20 + "deep/" if format == tarfile.USTAR_FORMAT else "very/" * 80 + "long" * 30
    members = [
        ("./n01/a.x/1.JPG", b"one"),  # ImageNet's folders, as `tar .` spells them
        ("./n01/a.x/1.txt", b"a fish"),
        ("n01/a.x/1.cls", b" 0\n"),
        (f"{deep}2.cls", b"1"),  # members of a key in any order
        ("n01/._1.jpg", b"of a Mac"),
        (f"{deep}2.webp", b"two"),
        ("ü/日本.jpeg", b"three"),
        ("ü/日本.json", b'{"label": 2, "width": 3}'),
        ("ü/日本.mask.png", b""),
    ]
    write_tar(tmp_path / "a.tar", members, format)
    shards = read_shards(tmp_path, "a.tar")
    assert table(shards) == [("a.tar/./n01/a.x/1.JPG", 0), (f"a.tar/{deep}2.webp", 1), ("a.tar/ü/日本.jpeg", 2)]
    assert [shards.open(index).read() for index in range(3)] == [b"one", b"two", b"three"]
    assert table(read_shards(tmp_path, "a.tar")) == table(shards)  # from the index


def write_labeled(root: Path, *labels: str, field: str = "cls") -> Path:
    members = [
        (f"{i}.{end}", c) for i, label in enumerate(labels) for end, c in (("jpg", b""), (field, label.encode()))
    ]
    return write_tar(root / "a.tar", members)


def test_labels_are_numbers_or_names(tmp_path: Path) -> None:
    write_labeled(tmp_path, "2", "0")
    assert read_shards(tmp_path, "a.tar").classes == ("0", "1", "2")
    shards = read_shards(tmp_path, "a.tar", classes=["up", "down", "left"])
    assert shards.classes == ("up", "down", "left") and shards.labels.tolist() == [2, 0]
    write_labeled(tmp_path, '{"label": "up"}', '{"cls": "down", "x": 1}', field="json")
    assert (read_shards(tmp_path, "a.tar").classes) == ("down", "up")
    assert read_shards(tmp_path, "a.tar", classes=["up", "down"]).labels.tolist() == [0, 1]
    write_tar(tmp_path / "a.tar", [*samples(1, label="down"), ("1.json", b'{"label": "up"}')])
    assert read_shards(tmp_path, "a.tar").classes == ("down",)
    write_labeled(tmp_path, "01", "00")
    assert read_shards(tmp_path, "a.tar").classes == ("00", "01")


def test_class_names_beside_the_shards(tmp_path: Path) -> None:
    """A class index counts in them; a checkpoint may have the class at another index."""
    write_labeled(tmp_path, "2", "0", "down")
    (tmp_path / "classes.txt").write_text("up\r\ndown\nfar left\n\n")
    shards = read_shards(tmp_path, "a.tar")
    assert shards.classes == ("up", "down", "far left") and shards.labels.tolist() == [2, 0, 1]
    known = ["far left", "down", "up", "right"]
    assert read_shards(tmp_path, "a.tar", classes=known).labels.tolist() == [0, 2, 1]
    assert_error(r"a\.tar: 0, 2 not among the 2 classes expected", tmp_path, classes=["down", "right"])
    for text in ("up\n\ndown\n", "up\ndown\nup\n"):
        (tmp_path / "classes.txt").write_text(text)
        assert_error(r"classes\.txt: a name is missing or appears twice; write one class", tmp_path)


def test_class_names_are_in_the_shards_folder_and_can_be_printed(tmp_path: Path) -> None:
    write_tar(tmp_path / "set/a.tar", samples(1))
    (tmp_path / "set/classes.txt").write_bytes(b"caf\xe9\n")
    assert read_shards(tmp_path, "set").classes == (r"caf\xe9",)


def test_malformed_labels_are_errors(tmp_path: Path) -> None:
    wrong_json = ("3", '{"label": 1.5}', '{"label": true}', "{")
    for text, field in [("", "cls"), ("\udce9", "cls"), *((text, "json") for text in wrong_json)]:
        members = [("x.jpg", b""), (f"x.{field}", text.encode(errors="surrogateescape"))]
        write_tar(tmp_path / "a.tar", members)
        assert_error(rf"a\.tar: x\.{field} holds no label; write ", tmp_path)
    write_labeled(tmp_path, "1700000000")
    assert_error("1700000000 is not a class index", tmp_path)
    for odd in ("-1", "1.0"):
        write_labeled(tmp_path, odd, "2")
        assert_error(rf"a\.tar: {odd} is not a class index; write ", tmp_path)
    write_labeled(tmp_path, "-1", "2")
    assert_error(r"-1 not among the 3 classes expected", tmp_path, classes=["up", "down", "left"])


def test_unpaired_members_are_errors(tmp_path: Path) -> None:
    for members, message in [
        ([*samples(1, 2, 3), ("4.jpg", b"")], r"1 images without a label \(4\.jpg\); add `\.cls` or `\.json`$"),
        ([*samples(1, 2, 3), ("4.cls", b"1")], r"1 labels without an image \(4\); remove them"),
        ([*samples(1), ("1.png", b"")], "1 has two members for its image; keep one"),
        (samples(1, 2, 1), "1 has two members for its image"),
        ([("readme.txt", b"")], r"no image in it; add files ending in .*\.jpg"),
        ([], "no image in it"),
    ]:
        path = write_tar(tmp_path / "a.tar", members)
        assert_error(rf"a\.tar: {message}", tmp_path)
        assert list(tmp_path.iterdir()) == [path]  # no index is stored


def test_links_are_errors(tmp_path: Path) -> None:
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        with tarfile.open(write_tar(tmp_path / "a.tar", samples(1)), "a") as tar:
            entry = tarfile.TarInfo("2.jpg")
            entry.type, entry.linkname = kind, "1.jpg"
            tar.addfile(entry)
        assert_error(r"a\.tar: 2\.jpg is a link or has holes; .*--dereference", tmp_path)


def test_compressed_shards_are_errors(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "a.tar", samples(1)).read_bytes()
    for name, compression, compress in [
        ("a.tar", "gzip", gzip.compress),
        ("a.tar.gz", "gzip", gzip.compress),
        ("a.tar.bz2", "bzip2", bz2.compress),
        ("a.tar.xz", "xz", lzma.compress),
    ]:
        (tmp_path / name).write_bytes(compress(content))
        assert_error(rf"{name}: is compressed \({compression}\)", tmp_path, name)


def test_truncated_shards_are_errors(tmp_path: Path) -> None:
    """At any position of the end or of a damaged header."""
    path = write_tar(tmp_path / "a.tar", samples(1, 2, 3))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        end = tar.offset
    image = members[2]
    assert image.name == "2.jpg"
    no_header = b"?" * 512
    for content, message in [
        (whole[: image.offset_data + 100], rf"is truncated in 2\.jpg: the file ends at byte {image.offset_data + 100}"),
        (whole[: image.offset_data], r"is truncated in 2\.jpg"),
        (whole[: image.offset + 100], rf"is damaged after byte {image.offset}"),
        (whole[: image.offset], rf"is truncated: it ends at byte {image.offset} without"),
        (whole[:end], rf"is truncated: it ends at byte {end} without"),
        (whole[: image.offset] + no_header + whole[image.offset_data :], rf"is damaged after byte {image.offset}"),
        (no_header + whole[512:], "is truncated, or not a tar file"),
        (whole + whole, rf"is damaged after byte {end}, or another tar file is joined"),
        (b"PK\3\4 no tar file", "is truncated, or not a tar file"),
        (b"", "is truncated, or not a tar file"),
    ]:
        path.write_bytes(content)
        assert_error(rf"a\.tar: {message}", tmp_path)
    path.write_bytes(whole)
    assert len(read_shards(tmp_path, "a.tar")) == 3


def test_headers_are_read_again_only_if_the_shard_changes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1, 2))
    first = read_shards(tmp_path, "a.tar")
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))  # the headers are gone, size and time are unchanged
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert table(read_shards(tmp_path, "a.tar")) == table(first)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert_error(r"a\.tar: no image in it", tmp_path)
    write_tar(path, samples(*range(9), label="5"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the size has changed
    assert read_shards(tmp_path, "a.tar").labels.tolist() == [5] * 9
    assert names_in(tmp_path) == [".a.tar.index.npz", "a.tar"]


def test_index_that_is_damaged_or_not_writable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_tar(tmp_path / "a.tar", samples(1, 2))
    whole = table(read_shards(tmp_path, "a.tar"))
    index = tmp_path / ".a.tar.index.npz"
    for content in (b"", index.read_bytes()[:-100], b"no index"):
        index.write_bytes(content)
        assert table(read_shards(tmp_path, "a.tar")) == whole
        assert "index.npz: cannot be read" in caplog.text
        caplog.clear()
        assert table(read_shards(tmp_path, "a.tar")) == whole
        assert "cannot be read" not in caplog.text
    index.unlink()
    index.mkdir()
    assert table(read_shards(tmp_path, "a.tar")) == whole
    assert "index.npz: cannot be written" in caplog.text
    assert names_in(tmp_path) == [".a.tar.index.npz", "a.tar"]


def test_shard_that_disappears_is_a_failure_of_its_files(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1, 2))
    dataset = ImageDataset(read_shards(tmp_path, "a.tar"), transform=TestTransform(24))
    path.write_bytes(path.read_bytes()[:3000])
    assert "image" in dataset[0]
    assert dataset[1]["failures"][0][:2] == (1, "a.tar/2.jpg")
    assert "a.tar/2.jpg: its shard has become shorter" in dataset[1]["failures"][0][2]
    path.unlink()
    assert "a.tar" in dataset[0]["failures"][0][2]


@pytest.fixture(scope="module")
def video_folders(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Videos of several containers, one of which does not decode."""
    root = tmp_path_factory.mktemp("video_folders")
    for index, ending in enumerate(("mp4", "mkv", "avi", "webm", "mp4", "TS")):
        path = root / ["up", "down"][index % 2] / f"{index}.{ending}"
        path.parent.mkdir(exist_ok=True)
        codec = {"webm": "libvpx-vp9", "avi": "mpeg4", "TS": "mpeg2video"}.get(ending, "libx264")
        write_numbered(path, 20 + index, codec=codec, options={"g": "7"})
    (root / "up/6.mp4").write_bytes((root / "up/4.mp4").read_bytes()[:700])
    return read_records(root, kind="video")


@pytest.fixture(scope="module", params=["plain", "concat:a, b,,:%41"])
def video_shards(request: pytest.FixtureRequest, video_folders: Records, tmp_path_factory) -> Shards:
    """The videos of `video_folders` in shards, also in a folder whose name has a meaning in FFmpeg's URLs."""
    root = tmp_path_factory.mktemp("video_shards") / request.param
    shard_folders(video_folders, root, 2)
    return read_shards(root, "train-*.tar", kind="video")


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec", "decord"])
def test_frames_are_those_of_the_extracted_video(video_folders: Records, video_shards: Shards, decoder: str) -> None:
    if decoder != "pyav":
        pytest.importorskip(decoder)
    for index in range(len(video_folders)):
        source, path = video_shards.source(index), video_folders.path(index)
        assert isinstance(source, Member) and str(source) == str(video_shards.path(index))
        if path.name == "6.mp4":
            with pytest.raises(DecodeError, match=rf"^{re.escape(str(source))}: does not decode"), open_video(source):
                pass
            continue
        with open_video(path, decoder) as ours, open_video(source, decoder) as theirs:
            assert theirs.num_frames == ours.num_frames == 20 + int(path.stem)
            assert theirs.info == ours.info and list(theirs.pts) == list(ours.pts)
            np.testing.assert_array_equal(theirs.read([17, 3]), ours.read([17, 3]))
            assert [read_number(frame) for frame in theirs.read([17, 3])] == [17, 3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_of_video_shards_make_the_batches_of_folders(
    video_folders: Records, video_shards: Shards, num_workers: int
) -> None:
    transforms = {"transform": TrainTransform(24), "seed": 5}, {"transform": TestTransform(24, 3), "num_clips": 2}
    pairs = [
        tuple(VideoDataset(records, num_frames=4, frame_stride=2, **how) for how in transforms)
        for records in (video_folders, video_shards)
    ]
    name = check_loaders(pairs, "video", 7, 2, num_workers)
    assert name.startswith("train-00000") and name.endswith(".tar/6_6.mp4")


def test_folder_may_be_named_as_a_protocol(
    video_folders: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard_folders(video_folders, Path("concat:a"), 1)
    shards = read_shards("concat:a", "train-000000.tar", kind="video")
    assert read_number(read_frames(shards.source(0), [5])[0]) == 5


def test_shards_are_read_for_one_kind_of_media(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    webp = io.BytesIO()
    Image.fromarray(numbered_frame(1)).save(webp, "WEBP")
    members = [
        *samples(1, 2),
        ("3.mp4", b"three"),
        ("3.cls", b"1"),
        ("3.webp", webp.getvalue()),  # a thumbnail
        ("3.caf\udce9.mkv", b"another"),
    ]
    write_tar(tmp_path / "a.tar", members)
    caplog.set_level(logging.WARNING, "sparsevideo")
    for _ in range(2):  # the second time from the index
        assert table(read_shards(tmp_path, "a.tar", kind="video")) == [("a.tar/3.mp4", 1)]
        assert caplog.messages == [
            f"{tmp_path}/a.tar: left out 4 files, not a sample's video: 2 .jpg, 1 .webp, 1 .caf\\xe9.mkv"
        ]
        caplog.clear()
    assert table(read_shards(tmp_path, "a.tar")) == [("a.tar/1.jpg", 0), ("a.tar/2.jpg", 0), ("a.tar/3.webp", 1)]
    assert caplog.messages == [f"{tmp_path}/a.tar: left out 2 files, not a sample's image: 1 .mp4, 1 .caf\\xe9.mkv"]
    write_tar(tmp_path / "a.tar", samples(1, 2))
    assert_error(r"a\.tar: no video in it \(2 \.jpg\); add files ending in \.3g2 ", tmp_path, kind="video")
    for extra, message in [
        (("2.cls", b"1"), r"1 labels without a video \(2\)"),
        (("1.mkv", b""), "1 has two members for its video"),
        (("2.mkv", b""), r"1 videos without a label \(2\.mkv\)"),
    ]:
        write_tar(tmp_path / "a.tar", [("1.mp4", b""), ("1.cls", b"0"), extra])
        assert_error(rf"a\.tar: {message}", tmp_path, kind="video")


def test_videos_of_a_shard_that_shrinks_or_disappears_are_failures(video_folders: Records, tmp_path: Path) -> None:
    shard_folders(video_folders, tmp_path, 1)
    shards = read_shards(tmp_path, "train-000000.tar", kind="video")
    path = tmp_path / "train-000000.tar"
    path.write_bytes(path.read_bytes()[: shards.source(6).offset + 100])
    for index in (0, 6):
        source = shards.source(index)
        reason = "its shard has become shorter" if index == 6 else None
        with pytest.raises(DecodeError, match=reason) if reason else nullcontext(), open_video(source, "pyav"):
            pass
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar/1_0\.mkv: no such file$"):
        read_frames(shards.source(0), [0])


def test_label_column_chooses_the_key(tmp_path: Path) -> None:
    verbs = [{"label": "x", "verb": "cut", "noun": 3}, {"label": "y", "verb": "mix", "noun": 0}]
    members = [(f"{i}.jpg", b"") for i in range(2)] + [(f"{i}.json", json.dumps(verbs[i]).encode()) for i in range(2)]
    write_tar(tmp_path / "a.tar", [*members, ("0.cls", b"other")])
    for column, classes, labels in [
        ("verb", ("cut", "mix"), [0, 1]),
        ("noun", ("0", "1", "2", "3"), [3, 0]),
        (None, ("other", "y"), [0, 1]),
        ("verb", ("cut", "mix"), [0, 1]),
    ]:  # the stored index of one column is not used for another
        shards = read_shards(tmp_path, "a.tar", label_column=column)
        assert (shards.classes, shards.labels.tolist()) == (classes, labels)
    assert_error(r"0\.json has no key verbs; set data\.label_column to one of", tmp_path, label_column="verbs")
    write_tar(tmp_path / "a.tar", [*members, ("2.jpg", b""), ("2.cls", b"other")])
    assert_error(r"1 images without a label \(2\.jpg\); add the key verb of `\.json`$", tmp_path, label_column="verb")
    write_labeled(tmp_path, '{"verb": 1.5}', field="json")
    assert_error(r'0\.json holds no label; write \{"verb": a class index or name\}', tmp_path, label_column="verb")


def test_images_without_labels(tmp_path: Path) -> None:
    """For features; training refuses them, with a stored index too."""
    write_tar(tmp_path / "a.tar", [*samples(1, label="up"), ("2.jpg", b""), ("3.jpg", b""), ("3.json", b'{"w": 2}')])
    shards = read_shards(tmp_path, "a.tar", labeled=False)
    assert shards.classes == ("up",) and shards.labels.tolist() == [0, UNLABELED, UNLABELED]
    for _ in range(2):
        assert_error(r"2 images without a label \(2\.jpg, 3\.jpg\)", tmp_path)
    write_tar(tmp_path / "a.tar", [("1.jpg", b"")])
    shards = read_shards(tmp_path, "a.tar", labeled=False)
    assert shards.classes == () and shards.labels.tolist() == [UNLABELED]
