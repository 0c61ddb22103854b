"""Files to predict: paths, folders, patterns, lists, URLs, or pixels in memory, as unlabeled records."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from sparsevideo.data.classes import UNLABELED
from sparsevideo.data.folders import EXTENSIONS, describe_left_out, walk
from sparsevideo.data.records import Records, read_records
from sparsevideo.data.segments import WHOLE, segment_name
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.memory import MemoryVideo
from sparsevideo.io.sources import Remote, check_url, is_url
from sparsevideo.utils.files import abbreviate

LIST_ENDINGS = (".csv", ".json", ".jsonl", ".list", ".lst", ".ndjson", ".tsv", ".txt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inputs(Records):
    """Files without labels, here or at URLs; or pixels in memory in place of the first one.

    The name of a remote file is its URL without secrets, see `Remote`.

    Attributes:
        kind: "video" or "image": what the network takes.
        urls: Index of each remote file -> its URL.
        pixels: (T, H, W, 3) or (H, W, 3) uint8.
        fps: Frames per second of `pixels`.
    """

    kind: str = "video"
    urls: dict[int, str] = field(default_factory=dict)
    pixels: np.ndarray | None = None
    fps: float | None = None

    def source(self, index: int) -> Path | Remote | MemoryVideo:  # type: ignore[override]
        """Return what a decoder opens; raise DecodeError if the network takes another kind of file."""
        if self.pixels is not None:
            return MemoryVideo(self.pixels, self.fps)
        name = self.name(index).partition("?")[0].lower() if index in self.urls else self.name(index).lower()
        other = "image" if self.kind == "video" else "video"
        if name.endswith(EXTENSIONS[other]) and not name.endswith(EXTENSIONS[self.kind]):
            article = {"image": "an image", "video": "a video"}
            raise DecodeError(
                f"{self.printed_path(index)}: is {article[other]}, but the network takes {self.kind}s; pass"
                f" {article[self.kind]}"
            )
        return Remote(self.urls[index]) if index in self.urls else self.path(index)

    def printed_path(self, index: int) -> str:
        """Return a file's path or URL as messages name it."""
        return self.name(index) if index in self.urls else super().printed_path(index)

    def image(self, index: int) -> np.ndarray:
        """Read an image file, or return the pixels in memory."""
        return super().image(index) if self.pixels is None else self.pixels

    def open(self, index: int) -> BinaryIO:
        """Read an image's bytes, all at once."""
        source = self.source(index)
        return BytesIO(source.read() if isinstance(source, Remote) else self.path(index).read_bytes())


class _Found(NamedTuple):
    """A file among the inputs."""

    path: str  # or its URL
    span: tuple[float, float] = WHOLE
    in_frames: bool = False


def make_inputs(
    paths: Iterable[str],
    kind: str,
    classes: Sequence[str],
    *,
    spans: np.ndarray | None = None,
    in_frames: bool = False,
    pixels: np.ndarray | None = None,
    fps: float | None = None,
) -> Inputs:
    """Return records of these files, each a path or a URL; raises the errors of `check_url`."""
    names, urls = [], {}
    for index, path in enumerate(map(_local, paths)):
        if is_url(path):
            check_url(path)
            urls[index] = path
        names.append(str(Remote(path)) if is_url(path) else path)
    inputs = Inputs.build(Path(), classes, names, [UNLABELED] * len(names), spans, in_frames=in_frames)
    assert isinstance(inputs, Inputs)
    return replace(inputs, kind=kind, urls=urls, pixels=pixels, fps=fps)


def find_inputs(
    inputs: Sequence[str],
    kind: str,
    classes: Sequence[str],
    *,
    split: str | None = None,
    label_column: str | None = None,
    part: tuple[int, int] = (1, 1),
) -> Inputs:
    """Find the files that inputs stand for, in their order; a file that is named twice counts once.

    An input is a file, a URL, a folder with its subfolders, a pattern such as `videos/*.mp4`, of which the files of
    this kind count, or a list file, recognized by its ending. Paths in a list are relative to its folder, and labels in
    it are ignored. A file that does not exist is an error only when it is read.

    Args:
        inputs: The inputs, relative to the working directory.
        kind: "video" or "image": what the network takes.
        classes: Class names of the network.
        split: See `read_records`.
        label_column: See `read_records`.
        part: (i, n) takes every nth file, from the ith on: the n parts together are all files.

    Raises:
        FileNotFoundError: A pattern matches no file, or a listed file does not exist.
        ImportError: See `check_url`.
        ValueError: A folder has no file of this kind, a list is malformed, a URL is not supported, or the part has no
            file.
    """
    found: dict[tuple[str, tuple[float, float]], _Found] = {}
    repeated = []
    for text in inputs:
        for file in _expand(_local(text), kind, split, label_column):
            key = file.path if is_url(file.path) else os.path.abspath(file.path), file.span  # noqa: PTH100
            if key in found:
                name = str(Remote(file.path)) if is_url(file.path) else file.path
                repeated.append(segment_name(name, file.span, "frames" if file.in_frames else "s"))
            found.setdefault(key, file)
    if repeated:
        logger.info("predicted once, although named twice: %s", abbreviate(repeated))
    files = [*found.values()][part[0] - 1 :: part[1]]
    if found and not files:
        raise ValueError(
            f"part {part[0]} of {part[1]} has no file, because there are only {len(found)}; use fewer parts"
        )
    units = {file.in_frames for file in found.values() if file.span != WHOLE}
    if len(units) > 1:
        raise ValueError(f"{', '.join(inputs)}: have segments in seconds and in frames; predict one list at a time")
    spans = np.array([file.span for file in files]) if units else None
    return make_inputs((file.path for file in files), kind, classes, spans=spans, in_frames=True in units)


def _local(text: str) -> str:
    """Return the path of a URL of this machine, and any other text unchanged."""
    return text.removeprefix("file://")


def _expand(text: str, kind: str, split: str | None, label_column: str | None) -> Iterator[_Found]:
    path = Path(text)
    if is_url(text):
        yield _Found(text)
    elif path.is_dir():
        yield from _in_folder(path, kind)
    elif path.exists() and path.suffix.lower() in LIST_ENDINGS:
        yield from _in_list(path, kind, split, label_column)
    elif has_magic(text) and not path.exists():
        matches = [Path(match) for match in sorted(glob(text, recursive=True))]  # noqa: PTH207  # it may be absolute
        files = [str(match) for match in matches if match.is_file() and match.name.lower().endswith(EXTENSIONS[kind])]
        if not files:
            raise FileNotFoundError(f"{text}: no {kind} among its {len(matches)} matches; correct the pattern")
        yield from map(_Found, files)
    else:
        yield _Found(text)


def _in_folder(folder: Path, kind: str) -> Iterator[_Found]:
    left_out: list[str] = []
    is_empty = True
    for _, names, others in walk(folder, folder, kind):
        left_out += others
        for name in names:
            is_empty = False
            yield _Found(str(folder / name))
    described = describe_left_out(left_out) if left_out else ""
    if is_empty:
        raise ValueError(f"{folder}: no {kind} in it{f' ({described})' if left_out else ''}")
    if left_out:
        logger.info("%s: left out %s", folder, described)


def _in_list(path: Path, kind: str, split: str | None, label_column: str | None) -> Iterator[_Found]:
    records = read_records(
        path.parent,
        path.name,
        kind=kind,
        split=split,
        label_column=label_column,
        labeled=None,
        root_name="the folder of the list",
    )
    for index in range(len(records)):
        yield _Found(str(records.path(index)), records.span(index), records.in_frames)
