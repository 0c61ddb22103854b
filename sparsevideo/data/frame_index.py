"""What a scan has found out about each video, kept so that training need not find it out again."""

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

INDEX = "sparsevideo-index.jsonl"  # its name in the folder that was scanned, where no other place was named
HEADER = "sparsevideo_index"  # the first line is an object with this key, whose value is VERSION
VERSION = 1
_FILE, _TABLE = {"path", "bytes", "mtime_ns"}, {"num_frames", "start", "step", "keyframes"}  # keys of a row
_UNKNOWN, _BAD, _IRREGULAR = -3, -2, -1  # in the place of a step: why there is no table

Row = dict[str, Any]

logger = logging.getLogger(__name__)


def stamp(path: str | Path | Member) -> tuple[int, int]:
    """Return a file's size in bytes and time of change in ns, which tell whether it is still the same; -1 without.

    For a file inside a tar file, they are those of the tar file.
    """
    try:
        status = (path.tar if isinstance(path, Member) else Path(path)).stat()
    except OSError:  # a link that leads nowhere or to itself: decoding tells the reason
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_rows(path: str | Path) -> Iterator[tuple[bytes, Row]]:
    """Yield an index' lines with what they say: the header, then a row for each file.

    A last line that is torn, as a killed scan leaves it, is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no index, or one of another version, or a line is damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such index; `sparsevideo data scan ROOT` writes one")
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if number > 1 and not line.endswith(b"\n"):
                return
            keys = row.keys() if isinstance(row, dict) else set()
            if number == 1 and (HEADER not in keys or row[HEADER] != VERSION):
                raise ValueError(f"{path}: is no index of version {VERSION}; remove it and scan again")
            whole = "decoders" in keys if number == 1 else keys >= _FILE and ("error" in keys or keys >= _TABLE)
            if not whole:
                raise ValueError(f"{path}, line {number}: is damaged; remove this line and scan again")
            yield line, row


@dataclass(frozen=True, eq=False)
class Index:
    """Where the frames of listed videos are, in a few arrays: copying them into loader workers is cheap.

    Below, r counts the files; `path` is where it was read from.
    """

    path: str | Path
    _rows: np.ndarray  # (n,) int32: the listed videos' files, of which several may be one
    _stamps: np.ndarray  # (r, 2) int64
    _counts: np.ndarray  # (r,) int32 frames
    _regular: np.ndarray  # (r, 2) int64 start and step
    _gaps: np.ndarray  # frames from each keyframe to the next, one file after the other
    _ends: np.ndarray  # (r + 1,) int64: file i has _gaps[_ends[i]:_ends[i + 1]]
    _errors: dict[int, str]  # file -> why it is bad

    def look(self, index: int, path: str | Path | Member) -> FrameTable | None:
        """Return what `open_video` may be told of a video, None where it must find out itself.

        Args:
            index: The video's number in the list.
            path: Where it lies.

        Raises:
            DecodeError: The scan has found the file to be bad, and it is still the same.
        """
        row = self._rows[index]
        if self._regular[row, 1] == _UNKNOWN:
            return None
        if stamp(path) != tuple(self._stamps[row]):
            _say_changed(self.path)
            return None
        if reason := self.error(index):
            raise DecodeError(f"{path}: marked bad by the scan ({reason}); repair or remove it, and scan again")
        return self.table(index)

    def error(self, index: int) -> str | None:
        """Return why the scan has found a video to be bad, None where it has not."""
        return self._errors.get(int(self._rows[index]))

    def table(self, index: int) -> FrameTable | None:
        """Return a video's table as the scan has found it, None where there is none."""
        row = self._rows[index]
        start, step = self._regular[row].tolist()
        if step < 0:
            return None
        keyframes = np.cumsum(self._gaps[self._ends[row] : self._ends[row + 1]], dtype=np.int32)
        return FrameTable(int(self._counts[row]), start, step, keyframes)


def read_index(path: str | Path, names: Iterable[str]) -> Index:
    """Read of an index what it says about listed videos.

    Args:
        path: The index, from `sparsevideo data scan`.
        names: The videos' posix paths relative to the folder that was scanned, as `Records.name` gives them.

    Raises:
        FileNotFoundError: There is no such index.
        ValueError: It is damaged, or knows none of the videos.
    """
    row_of: dict[str, int] = {}
    rows = np.array([row_of.setdefault(name, len(row_of)) for name in names], dtype=np.int32)
    stamps = np.zeros((len(row_of), 2), np.int64)
    counts = np.zeros(len(row_of), np.int32)
    regular = np.full((len(row_of), 2), _UNKNOWN, np.int64)
    keyframes: dict[int, array[int]] = {}
    errors: dict[int, str] = {}
    lines = read_rows(path)
    next(lines, None)
    for _, line in lines:
        row = row_of.get(line["path"], -1)
        if row < 0:
            continue
        stamps[row] = line["bytes"], line["mtime_ns"]
        errors.pop(row, None)
        if "error" in line:
            regular[row], errors[row] = (0, _BAD), line["error"]
        elif line["step"] is None:
            regular[row] = 0, _IRREGULAR
        else:
            counts[row], regular[row] = line["num_frames"], (line["start"], line["step"])
            keyframes[row] = array("i", line["keyframes"])
    known = int((regular[:, 1] != _UNKNOWN).sum())
    if not known:
        raise ValueError(f"{path}: knows none of the {len(rows)} videos listed; scan the folder that data.root names")
    logger.info("%s: knows %d of %d files, %d of them bad", path, known, len(row_of), len(errors))
    packed = [np.diff(np.array(keyframes.get(row, ()), np.int32), prepend=0) for row in range(len(row_of))]
    ends = np.cumsum([0] + [len(gaps) for gaps in packed], dtype=np.int64)
    gaps = np.concatenate(packed)
    gaps = gaps.astype(np.min_scalar_type(gaps.max(initial=0)))
    return Index(path, rows, stamps, counts, regular, gaps, ends, errors)


@cache
def _say_changed(index: str | Path) -> None:
    logger.warning("%s: some files have changed since; they are read without it until they are scanned again", index)
