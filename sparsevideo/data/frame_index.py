"""The index that a scan writes: bad videos, and the positions of the frames in the other videos."""

import json
import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsevideo.io.errors import DecodeError
from sparsevideo.io.packets import FrameTable
from sparsevideo.io.sources import Member

INDEX = "sparsevideo-index.jsonl"  # default file name, in the folder that was scanned
HEADER = "sparsevideo_index"  # the first line is an object with this key, whose value is VERSION
VERSION = 1
_FILE, _TABLE = {"path", "bytes", "mtime_ns"}, {"num_frames", "start", "step", "keyframes"}  # keys of a row
_UNKNOWN, _BAD, _IRREGULAR = -3, -2, -1  # reasons why a file has no table, stored instead of its step

Row = dict[str, Any]

logger = logging.getLogger(__name__)


def size_and_mtime(path: str | Path | Member) -> tuple[int, int]:
    """Return size in bytes and modification time in ns, which show if a file has changed; -1 for a missing file.

    For a file inside a tar file, they are those of the tar file.
    """
    try:
        status = (path.tar if isinstance(path, Member) else Path(path)).stat()
    except OSError:  # a broken link, or a link to itself: decoding reports the reason
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_rows(path: str | Path) -> Iterator[tuple[bytes, Row]]:
    """Yield the lines of an index with their content: the header, then a row for each file.

    A truncated last line, as a killed scan leaves it, is skipped.

    Raises:
        FileNotFoundError: The index does not exist.
        ValueError: It is not an index of this version, or a line is damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such index; `sparsevideo data scan ROOT` writes one")
    with Path(path).open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if line_number > 1 and not line.endswith(b"\n"):
                return
            keys = row.keys() if isinstance(row, dict) else set()
            if line_number == 1 and (HEADER not in keys or row[HEADER] != VERSION):
                raise ValueError(f"{path}: is not an index of version {VERSION}; remove it and scan again")
            is_whole = "decoders" in keys if line_number == 1 else keys >= _FILE and ("error" in keys or keys >= _TABLE)
            if not is_whole:
                raise ValueError(f"{path}, line {line_number}: is damaged; remove this line and scan again")
            yield line, row


@dataclass(frozen=True, eq=False)
class Index:
    """Results of a scan for the listed videos, in a few arrays that are cheap to copy into loader workers.

    Below, n is the number of listed videos, and r the number of their files; several videos may be parts of one file.
    `path` is the file of the index.
    """

    path: str | Path
    _file_of: np.ndarray  # (n,) int32: index of each video's file
    _sizes_and_mtimes: np.ndarray  # (r, 2) int64
    _num_frames: np.ndarray  # (r,) int32
    _starts_and_steps: np.ndarray  # (r, 2) int64
    _keyframe_gaps: np.ndarray  # frames from each keyframe to the next, one file after the other
    _gap_ends: np.ndarray  # (r + 1,) int64: file i has _keyframe_gaps[_gap_ends[i]:_gap_ends[i + 1]]
    _errors: dict[int, str]  # file -> why it is bad

    def checked_table(self, index: int, path: str | Path | Member) -> FrameTable | None:
        """Return a video's table for `open_video`; None if there is none, or the file has changed since the scan.

        Args:
            index: Index of the video in the list.
            path: Path of its file.

        Raises:
            DecodeError: The scan found the file to be bad, and it has not changed.
        """
        file = self._file_of[index]
        if self._starts_and_steps[file, 1] == _UNKNOWN:
            return None
        if size_and_mtime(path) != tuple(self._sizes_and_mtimes[file]):
            _warn_of_changed_files(self.path)
            return None
        if reason := self.error(index):
            raise DecodeError(f"{path}: marked bad by the scan ({reason}); repair or remove it, and scan again")
        return self.table(index)

    def error(self, index: int) -> str | None:
        """Return why the scan found a video to be bad, None if it did not."""
        return self._errors.get(int(self._file_of[index]))

    def table(self, index: int) -> FrameTable | None:
        """Return a video's table as the scan found it, None if there is none."""
        file = self._file_of[index]
        start, step = self._starts_and_steps[file].tolist()
        if step < 0:
            return None
        gaps = self._keyframe_gaps[self._gap_ends[file] : self._gap_ends[file + 1]]
        return FrameTable(int(self._num_frames[file]), start, step, np.cumsum(gaps, dtype=np.int32))


def read_index(path: str | Path, names: Iterable[str]) -> Index:
    """Read the rows of listed videos from an index.

    Args:
        path: The index, from `sparsevideo data scan`.
        names: Posix paths of the videos relative to the folder that was scanned, as `Records.name` gives them.

    Raises:
        FileNotFoundError: The index does not exist.
        ValueError: It is damaged, or contains none of the videos.
    """
    files: dict[str, int] = {}
    file_of = np.array([files.setdefault(name, len(files)) for name in names], dtype=np.int32)
    sizes_and_mtimes = np.zeros((len(files), 2), np.int64)
    num_frames = np.zeros(len(files), np.int32)
    starts_and_steps = np.full((len(files), 2), _UNKNOWN, np.int64)
    keyframes: dict[int, array[int]] = {}
    errors: dict[int, str] = {}
    rows = read_rows(path)
    next(rows, None)
    for _, row in rows:
        file = files.get(row["path"], -1)
        if file < 0:
            continue
        sizes_and_mtimes[file] = row["bytes"], row["mtime_ns"]
        errors.pop(file, None)
        if "error" in row:
            starts_and_steps[file], errors[file] = (0, _BAD), row["error"]
        elif row["step"] is None:
            starts_and_steps[file] = 0, _IRREGULAR
        else:
            num_frames[file], starts_and_steps[file] = row["num_frames"], (row["start"], row["step"])
            keyframes[file] = array("i", row["keyframes"])
    num_known = int((starts_and_steps[:, 1] != _UNKNOWN).sum())
    if not num_known:
        raise ValueError(
            f"{path}: contains none of the {len(file_of)} videos listed; scan the folder that data.root names"
        )
    logger.info("%s: contains %d of %d files, %d of them bad", path, num_known, len(files), len(errors))
    packed = [np.diff(np.array(keyframes.get(file, ()), np.int32), prepend=0) for file in range(len(files))]
    gap_ends = np.cumsum([0] + [len(gaps) for gaps in packed], dtype=np.int64)
    gaps = np.concatenate(packed)
    gaps = gaps.astype(np.min_scalar_type(gaps.max(initial=0)))
    return Index(path, file_of, sizes_and_mtimes, num_frames, starts_and_steps, gaps, gap_ends, errors)


@cache
def _warn_of_changed_files(index_path: str | Path) -> None:
    logger.warning("%s: some files have changed since the scan; scan again to use the index for them", index_path)
