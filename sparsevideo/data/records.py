"""List files and folders become one table of files and labels."""

import logging
import os
import posixpath
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparsevideo.data.kinetics import join_files
from sparsevideo.data.lists import KINETICS, Row, few, legible, read_list
from sparsevideo.data.segments import segment_name, span_of

EXTENSIONS = {
    "video": (
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ),
    "image": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}
MAX_CLASSES = 100_000  # a larger label number is a mistake in the list

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Records:
    """Files with labels, in a few arrays: copying them into loader workers is cheap, however many there are.

    Attributes:
        root: The folder that names are relative to.
        classes: Class names, in label order.
        labels: (n,) int64.
        spans: (n, 2) float64 first and last second of a video that count, the last not included; 0 and infinity where
            the list does not say. None where it says so of no video.
        missing: Rows of a Kinetics csv that have no file; they are not among the n.
    """

    root: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    spans: np.ndarray | None
    missing: int
    _names: bytes  # all names, one after the other, as the file system spells them
    _ends: np.ndarray  # (n + 1,) int64: name i is _names[_ends[i]:_ends[i + 1]]

    @classmethod
    def build(
        cls,
        root: Path,
        classes: Sequence[str],
        names: Iterable[str],
        labels: Sequence[int],
        spans: np.ndarray | None = None,
        missing: int = 0,
    ) -> "Records":
        """Pack names (posix paths relative to `root`), labels and, where given, seconds."""
        content, ends = bytearray(), array("q", [0])
        for name in names:
            content += os.fsencode(name)
            ends.append(len(content))
        packed = bytes(content), np.array(ends, dtype=np.int64)
        return cls(root, tuple(classes), np.asarray(labels, dtype=np.int64), spans, missing, *packed)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return a file's posix path relative to the root."""
        index = range(len(self))[index]  # raises IndexError; -1 is the last
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def path(self, index: int) -> Path:
        """Return where a file lies."""
        return self.root / self.name(index)

    def span(self, index: int) -> tuple[float, float]:
        """Return the first and last second that count; 0 and infinity for a whole file."""
        return span_of(self.spans, index)

    def segment(self, index: int) -> str:
        """Return a file's name and, if only a part of it counts, the seconds of that part."""
        return segment_name(self.name(index), self.span(index))

    def reason(self, index: int, error: Exception) -> str:
        """Return why a file could not be read, with the seconds that were asked for beside its path."""
        path = str(self.path(index))
        segment = segment_name(path, self.span(index))
        return str(error) if segment == path else f"{segment}: {str(error).removeprefix(f'{path}: ')}"

    def open(self, index: int) -> BinaryIO:
        """Read a file's bytes, all at once: for images, not videos."""
        return BytesIO(self.path(index).read_bytes())


def read_records(
    root: str | Path,
    listing: str = ".",
    *,
    kind: str,
    classes: Sequence[str] | None = None,
    split: str | None = None,
) -> Records:
    """Read a split of a data set: a folder with one folder per class, or a list file.

    What a list file holds is told by its content, and said in the log:

    - `path label`, as PySlowFast and mmaction2 write it; the path may hold spaces.
    - `path,label`, or a csv whose header names the columns `path`, `label` and, where only a part of a video counts,
      `start_s` and `end_s` (also `start` and `end`, or `time_start` and `time_end`).
    - JSON lines: objects with these keys.
    - The official Kinetics csv, see `kinetics.join_files`. Rows without a file are left out and counted; the classes
      are those of all rows.

    Paths are relative to `root`, labels are numbers or names, seconds count from a video's first frame.

    Args:
        root: The data set's folder.
        listing: The split, relative to the root: `train`, `videos/train`, `lists/train.csv`.
        kind: "video" or "image": what to look for in class folders.
        classes: Class names in label order, from a checkpoint say. None: the sorted names found here.
        split: "train", "val" or "test": what to take of a Kinetics csv that lists several.

    Raises:
        FileNotFoundError: The root, the listing or a listed file does not exist.
        ValueError: Nothing is listed, a line is malformed, or a label is not among `classes`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set data.root to the data set's folder")
    place, extensions = root / listing, EXTENSIONS[kind]
    in_folders = place.is_dir()
    if in_folders:
        form, rows = "class folders", _class_folders(root, place, extensions, kind)
    elif place.is_file():
        form, rows = read_list(place, root, extensions)
        if form == KINETICS:
            files = (name for _, names in walk(root, root, extensions) for name in names)
            rows = join_files(place, rows, files, split)
    else:
        held = ", ".join(sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))[:10])
        here = f"; {Path(listing).resolve()} is not looked at: give its whole path" if Path(listing).exists() else ""
        raise FileNotFoundError(f"{place}: no such folder or list file; {root} holds: {held or 'nothing'}{here}")

    names, labels, lines, seconds = [], [], array("q"), array("d")
    line_of: dict[str, int] = {}  # label -> the first line that has it, whether or not its file is there
    missing = 0
    for row in rows:
        line_of.setdefault(row.label, row.line)
        if not row.path:
            missing += 1
            continue
        names.append(row.path)
        labels.append(sys.intern(row.label))
        lines.append(row.line)
        seconds.extend((row.start_s, row.end_s))
    if not names:
        raise ValueError(f"{place}: lists no files; it wants a line `path,label` for each")
    if not in_folders and form != KINETICS:
        _check_present(root, place, names, lines)

    for label, line in () if in_folders else line_of.items():
        if re.fullmatch(r"-?\d+\.0*", label) and label not in (classes or ()):
            raise ValueError(f"{place}, line {line}: {label} is no class number; write {label.partition('.')[0]}")
    known = tuple(classes) if classes is not None else _classes_of(line_of, place, in_folders)
    number_of = {} if in_folders else {str(number): number for number in range(len(known))}
    number_of |= {name: number for number, name in enumerate(known)}  # a class name comes before a number
    if unknown := sorted(line_of.keys() - number_of.keys(), key=lambda label: (line_of[label], label)):
        where = place if in_folders else f"{place}, line {line_of[unknown[0]]}"
        raise ValueError(f"{where}: {few(unknown)} not among the {len(known)} classes expected: {few(known)}")
    logger.info("%s: %s, %d files, %d classes, %d missing", place, form, len(names), len(known), missing)
    spans = np.array(seconds).reshape(-1, 2)
    spanned = bool((spans != (0, inf)).any())
    numbers = [number_of[label] for label in labels]
    return Records.build(root, known, names, numbers, spans if spanned else None, missing)


def _class_folders(root: Path, place: Path, extensions: tuple[str, ...], kind: str) -> Iterator[Row]:
    """Find files in class folders, at any depth; folders without any are no classes."""
    empty = True
    for inside, names in walk(root, place, extensions):
        if names and not inside:
            raise ValueError(
                f"{place}: holds {posixpath.basename(names[0])} outside any class folder; put each {kind} into <class>/"
            )
        for name in names:
            empty = False
            yield Row(0, name, legible(inside[0]))
    if empty:
        raise ValueError(f"{place}: no {kind} in it; looked in every <class>/ for {' '.join(extensions)}")


def walk(root: Path, place: Path, extensions: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the folders at and below a place, as their names from there, and what they hold, as names from the root."""
    walked: set[tuple[tuple[str, ...], str]] = set()
    for folder, folders, files in os.walk(place, onerror=_stop, followlinks=True):
        inside = Path(folder).relative_to(place).parts
        here = inside[:1], os.path.realpath(folder)
        if inside and (here in walked or here[1] == os.path.realpath(place)):
            folders.clear()  # a link back to where this class was, or to all classes
            continue
        walked.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = sorted(f for f in files if f.lower().endswith(extensions) and not f.startswith("."))
        base = Path(os.path.relpath(folder, root))
        yield inside, [(base / name).as_posix() for name in found]


def _stop(error: OSError) -> None:
    raise type(error)(f"{error.filename}: cannot be read ({error.strerror}); its files would be missing") from error


def _check_present(root: Path, place: Path, names: Sequence[str], lines: Sequence[int]) -> None:
    """Stop where listed files are absent. Folders are listed rather than files asked for: quick on network disks."""
    present: dict[str, set[str]] = {}
    absent = []
    for name, line in zip(names, lines, strict=True):
        folder, base = posixpath.split(name)
        if folder not in present:
            present[folder] = {entry.name for entry in os.scandir(root / folder)} if (root / folder).is_dir() else set()
        if base not in present[folder]:
            absent.append((line, name))
    if absent:
        few_absent = few([name for _, name in absent], 3)
        raise FileNotFoundError(
            f"{place}, line {absent[0][0]}: {len(absent)} of {len(names)} listed files are not in {root}: {few_absent}"
        )


def _classes_of(line_of: Mapping[str, int], place: Path, in_folders: bool) -> tuple[str, ...]:
    """Name the classes: 0, 1, ... where all labels of a list are plain numbers, else the sorted names."""
    if in_folders or not all(re.fullmatch("-?[0-9]+", label) and label == str(int(label)) for label in line_of):
        return tuple(sorted(line_of))  # a folder's name is always a name
    for label, line in line_of.items():
        if not 0 <= int(label) < MAX_CLASSES:
            raise ValueError(f"{place}, line {line}: {label} is no class number; labels count from 0")
    return tuple(str(number) for number in range(max(map(int, line_of)) + 1))
