"""List files and folders become one table of files and labels."""

import csv
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXTENSIONS = {
    "video": (
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ),
    "image": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}
_MAX_CLASSES = 100_000  # a larger label number is a mistake in the list


@dataclass(frozen=True, eq=False)
class Records:
    """Files with labels, in a few arrays: copying them into loader workers is cheap, however many there are.

    Attributes:
        root: The folder that names are relative to.
        classes: Class names, in label order.
        labels: (n,) int64.
    """

    root: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    _names: bytes  # all names, one after the other, as the file system spells them
    _ends: np.ndarray  # (n + 1,) int64: name i is _names[_ends[i]:_ends[i + 1]]

    @classmethod
    def build(cls, root: Path, classes: Sequence[str], names: Iterable[str], labels: Sequence[int]) -> "Records":
        """Pack names (posix paths relative to `root`) and labels."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([0] + [len(name) for name in encoded], dtype=np.int64)
        return cls(root, tuple(classes), np.asarray(labels, dtype=np.int64), b"".join(encoded), ends)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return a file's posix path relative to the root."""
        index = range(len(self))[index]  # raises IndexError; -1 is the last
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def path(self, index: int) -> Path:
        """Return where a file lies."""
        return self.root / self.name(index)


def read_records(root: str | Path, listing: str = ".", *, kind: str, classes: Sequence[str] | None = None) -> Records:
    """Read a split of a data set: a folder with one folder per class, or a list file.

    A list file has a line `path,label` or `path label` for each file. With commas a header may come first; then the
    columns `path` and `label` count. Paths are relative to `root`, labels are numbers or names.

    Args:
        root: The data set's folder.
        listing: The split, relative to the root: `train`, `videos/train`, `lists/train.csv`.
        kind: "video" or "image": what to look for in class folders.
        classes: Class names in label order, from a checkpoint say. None: the sorted names found here.

    Raises:
        FileNotFoundError: The root, the listing or a listed file does not exist.
        ValueError: Nothing is listed, a line is malformed, or a label is not among `classes`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set data.root to the data set's folder")
    place = root / listing
    if place.is_dir():
        names, labels = _read_folders(root, place, EXTENSIONS[kind], kind)
        known = tuple(sorted(set(labels))) if classes is None else tuple(classes)
        numbers: dict[str, int] = {}  # a folder's name is always a name
    elif place.is_file():
        names, labels = _read_list(place)
        _check_present(root, place, names)
        known = _classes_of(labels, place) if classes is None else tuple(classes)
        numbers = {str(number): number for number in range(len(known))}
    else:
        held = ", ".join(sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))[:10])
        raise FileNotFoundError(f"{place}: no such folder or list file; {root} holds: {held or 'nothing'}")
    number_of = numbers | {name: number for number, name in enumerate(known)}  # a class name comes before a number
    if unknown := sorted(set(labels) - number_of.keys()):
        raise ValueError(f"{place}: {_few(unknown)} not among the {len(known)} classes expected: {_few(known)}")
    return Records.build(root, known, names, [number_of[label] for label in labels])


def _read_folders(root: Path, place: Path, extensions: tuple[str, ...], kind: str) -> tuple[list[str], list[str]]:
    """Find files in class folders, at any depth; folders without any are no classes."""
    names, labels = [], []
    walked: set[tuple[tuple[str, ...], str]] = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        inside = Path(folder).relative_to(place).parts
        here = inside[:1], os.path.realpath(folder)
        if inside and (here in walked or here[1] == os.path.realpath(place)):
            folders.clear()  # a link back to where this class was, or to all classes
            continue
        walked.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = sorted(f for f in files if f.lower().endswith(extensions) and not f.startswith("."))
        if found and not inside:
            raise ValueError(f"{place}: holds {found[0]} outside any class folder; put each {kind} into <class>/")
        names += [Path(os.path.relpath(Path(folder) / name, root)).as_posix() for name in found]
        labels += [inside[0] for _ in found]
    if not names:
        raise ValueError(f"{place}: no {kind} in it; looked in every <class>/ for {' '.join(extensions)}")
    return names, labels


def _read_list(place: Path) -> tuple[list[str], list[str]]:
    """Read paths and labels as they are written."""
    names, labels = [], []
    try:
        for line, fields in _rows(place):
            if len(fields) != 2 or not all(fields):
                raise ValueError(f"{place}, line {line}: wants a path and a label, got {' '.join(fields)!r}")
            names.append(posixpath.normpath(fields[0]))
            labels.append(fields[1])
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: is no text in UTF-8 ({error.reason}); save it as such") from error
    except csv.Error as error:
        raise ValueError(f"{place}: is no csv file ({error}); look for a quote that is not closed") from error
    if not names:
        raise ValueError(f"{place}: lists no files; it wants a line `path,label` for each")
    return names, labels


def _rows(place: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers with the path and the label, whichever way they are separated; blank lines are skipped."""
    with place.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if "," not in first:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip().rsplit(maxsplit=1)  # a path may hold spaces, a label may not
            return
        reader = csv.reader(file, skipinitialspace=True)
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(row)]
    header = [field.lower() for field in rows[0][1]] if rows else []
    if {"path", "label"} <= set(header):
        columns = header.index("path"), header.index("label")
        rows = [(number, [row[column] for column in columns if column < len(row)]) for number, row in rows[1:]]
    yield from rows


def _check_present(root: Path, place: Path, names: list[str]) -> None:
    """Stop where listed files are absent. Folders are listed rather than files asked for: quick on network disks."""
    present: dict[str, set[str]] = {}
    absent = []
    for name in names:
        folder, base = posixpath.split(name)
        if folder not in present:
            present[folder] = {entry.name for entry in os.scandir(root / folder)} if (root / folder).is_dir() else set()
        if base not in present[folder]:
            absent.append(name)
    if absent:
        few = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise FileNotFoundError(f"{place}: {len(absent)} of {len(names)} listed files are not in {root}: {few}")


def _classes_of(labels: list[str], place: Path) -> tuple[str, ...]:
    """Name the classes of a list: 0, 1, ... where all labels are plain numbers, else the sorted names."""
    if not all(label.isdecimal() and label == str(int(label)) for label in labels):
        return tuple(sorted(set(labels)))
    largest = max(map(int, labels))
    if largest >= _MAX_CLASSES:
        raise ValueError(f"{place}: {largest} is no class number; labels count from 0")
    return tuple(str(number) for number in range(largest + 1))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
