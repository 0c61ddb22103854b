"""Read a split of a data set, class folders or a list file, as one table of files and labels."""

import logging
import os
import posixpath
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from unicodedata import normalize

import numpy as np

from sparsevideo.data.classes import index_classes
from sparsevideo.data.folders import EXTENSIONS, find_in_class_folders, walk
from sparsevideo.data.kinetics import find_kinetics, find_videos
from sparsevideo.data.lists import Row, read_list, short_messages
from sparsevideo.data.segments import WHOLE, segment_name, span_of
from sparsevideo.io.image import read_image
from sparsevideo.io.sources import Member
from sparsevideo.utils.files import abbreviate, printable_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Records:
    """Files with labels, in a few arrays: copying them into loader workers is cheap, however many there are.

    Attributes:
        root: The folder that names are relative to.
        classes: Class names, in label order.
        labels: (n,) int64; `UNLABELED` if the list gives none.
        spans: (n, 2) float64 start and end of the part of a video that counts, the end not included; 0 and infinity
            for a whole video. None if all videos are whole.
        missing: Rows of a Kinetics csv that have no file; they are not among the n.
        in_frames: Whether `spans` are frame indices instead of seconds.
    """

    root: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    spans: np.ndarray | None
    missing: int
    _names: bytes  # all names, one after the other, as the file system spells them
    _ends: np.ndarray  # (n + 1,) int64: name i is _names[_ends[i]:_ends[i + 1]]
    in_frames: bool = False

    @classmethod
    def build(
        cls,
        root: Path,
        classes: Sequence[str],
        names: Iterable[str],
        labels: Sequence[int],
        spans: np.ndarray | None = None,
        missing: int = 0,
        in_frames: bool = False,
    ) -> "Records":
        """Pack names (posix paths relative to `root`), labels and, if there are any, segments."""
        content, ends = bytearray(), array("q", [0])
        for name in names:
            content += os.fsencode(name)
            ends.append(len(content))
        packed = bytes(content), np.array(ends, dtype=np.int64)
        return cls(root, tuple(classes), np.asarray(labels, dtype=np.int64), spans, missing, *packed, in_frames)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return a file's posix path relative to the root."""
        index = range(len(self))[index]  # raises IndexError; -1 is the last
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def path(self, index: int) -> Path:
        """Return a file's path."""
        return self.root / self.name(index)

    def source(self, index: int) -> Path | Member:
        """Return what a decoder opens; its text is that of `path`."""
        return self.path(index)

    def printed_path(self, index: int) -> str:
        """Return a file's path as messages name it."""
        return str(self.path(index))

    @property
    def spans_unit(self) -> str:
        """Unit of `spans`: "s" or "frames"."""
        return "frames" if self.in_frames else "s"

    def span(self, index: int) -> tuple[float, float]:
        """Return the start and end of the part that counts, in `spans_unit`; 0 and infinity for a whole file."""
        return span_of(self.spans, index)

    def segment(self, index: int) -> str:
        """Return a file's name and, if only a part of it counts, the seconds or frames of that part."""
        return segment_name(self.name(index), self.span(index), self.spans_unit)

    def segment_path(self, index: int) -> str:
        """Return a file's path and, if only a part of it counts, the seconds or frames of that part."""
        return segment_name(self.printed_path(index), self.span(index), self.spans_unit)

    def reason(self, index: int, error: Exception) -> str:
        """Return the reason of a failure to read a file, with the segment beside its path."""
        path, segment_path = self.printed_path(index), self.segment_path(index)
        return str(error) if segment_path == path else f"{segment_path}: {str(error).removeprefix(f'{path}: ')}"

    def class_weights(self, balance: float) -> np.ndarray:
        """Return (n,) weights of the files: the number of files of their class to the power of -`balance`.

        With 1 all classes that have files weigh the same, with 0 all files do.
        """
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return counts[self.labels] ** -float(balance)

    def image(self, index: int) -> np.ndarray:
        """Read an image file; see `read_image`."""
        return read_image(self.open(index), self.printed_path(index))

    def open(self, index: int) -> BinaryIO:
        """Read a file's bytes, all at once: for images, not videos."""
        return BytesIO(self.path(index).read_bytes())


@short_messages()
def read_records(
    root: str | Path,
    listing: str = ".",
    *,
    kind: str,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    label_column: str | None = None,
    labeled: bool | None = True,
    root_name: str = "data.root",
) -> Records:
    """Read a split of a data set: a folder with one folder per class, or a list file.

    The content of a list file decides its format, which the log names. docs/lists.md describes the formats: `path
    label`, `path,label`, csv with a header, JSON lines, a JSON array or object, the official lists of Kinetics,
    EPIC-Kitchens and Something-Something. Rows of a Kinetics list without a file are left out and counted; the classes
    are those of all rows.

    Paths are relative to `root`, labels are class indices or names, seconds and frames count from a video's first
    frame. Class names that differ only in Unicode normalization are one class. If a listed path differs from the disk
    only in this, the record has the name on the disk.

    Args:
        root: The data set's folder.
        listing: The split, relative to the root: `train`, `videos/train`, `lists/train.csv`.
        kind: "video" or "image": the files to look for in class folders.
        classes: Class names in order, for example from a checkpoint. None: the sorted names found here.
        split: "train", "val" or "test": the rows to take of a list of several splits.
        label_column: The column or JSON key that holds the labels; None finds it by its name.
        labeled: True refuses files without a label. False gives them the label `UNLABELED`. None gives it to all files,
            and ignores labels in the list.
        root_name: Name of the root in messages.

    Raises:
        FileNotFoundError: The root, the listing or a listed file does not exist.
        ValueError: Nothing is listed, a line is malformed, or a label is not among `classes`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set {root_name} to the data set's folder")
    path = root / listing
    in_folders, is_kinetics = path.is_dir(), False
    rows: Iterable[Row]
    if in_folders:
        format_name, rows = "class folders", find_in_class_folders(root, path, kind, bool(labeled))
    else:
        format_name, rows, is_kinetics = _read_rows(root, listing, kind, split, label_column)
    names, labels, bounds = [], [], array("d")
    location_of: dict[str, str] = {}  # label -> its first use, whether or not its file exists
    disk = _Disk(root)
    absent: list[Row] = []
    respelled: list[str] = []
    units = set()
    missing = 0
    own_name = Path(os.path.relpath(path, root)).as_posix()
    for row in rows:
        label = "" if labeled is None else sys.intern(normalize("NFC", row.label))
        if label:
            location_of.setdefault(label, row.location or str(path))
        elif labeled:
            raise ValueError(
                f"{row.location}: has no label; write one for each file, such as `path,label` (only `sparsevideo"
                " predict` and `sparsevideo extract` take files without labels)"
            )
        if not row.path:
            missing += 1
            continue
        if not in_folders and row.path == own_name:
            raise ValueError(f"{row.location}: the list names itself; remove the line")
        if not in_folders and not is_kinetics:
            name = disk.find(row)
            if name is None:
                absent.append(row)
            elif name != row.path:
                respelled.append(name)
                row = row._replace(path=name)
        names.append(row.path)
        labels.append(label)
        if (row.start, row.end) != WHOLE:
            units.add(row.in_frames)
        bounds.extend((row.start, row.end))
    if not names:
        raise ValueError(f"{path}: lists no files; write a line `path,label` for each")
    if absent:
        advice = "write / in place of \\" if "\\" in absent[0].path else f"correct the paths, or {root_name}"
        raise FileNotFoundError(
            f"{absent[0].location}: {len(absent)} of {len(names)} listed files are not in {root}, which is"
            f" {root_name}: {abbreviate([row.path for row in absent], 3)}; {advice}"
        )
    if respelled:
        logger.info(
            "%s: %d listed paths differ from the disk in their Unicode normalization only, and are read as %s",
            path,
            len(respelled),
            abbreviate(respelled, 3),
        )
    if len(units) > 1:
        raise ValueError(f"{path}: has segments in seconds and segments in frames; write all in one unit")

    known, index_of = index_classes(location_of, classes, are_names=in_folders)
    logger.info("%s: %s, %d files, %d classes, %d missing", path, format_name, len(names), len(known), missing)
    spans = np.array(bounds).reshape(-1, 2) if units else None
    return Records.build(
        root, known, names, [index_of[label] for label in labels], spans, missing, in_frames=True in units
    )


def _read_rows(
    root: Path, listing: str, kind: str, split: str | None, label_column: str | None
) -> tuple[str, Iterable[Row], bool]:
    """Return the format of a list, its rows of a split with the paths of their files, and whether it is Kinetics'."""
    list_path = root / listing
    if not list_path.is_file():
        entries = ", ".join(sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))[:10])
        whole_path = f", or give the whole path {Path(listing).resolve()}" if Path(listing).exists() else ""
        raise FileNotFoundError(
            f"{list_path}: no such folder or list file; choose from what {root} holds:"
            f" {entries or 'nothing'}{whole_path}"
        )
    rows: Iterable[Row]
    format_name, rows, file_key, has_split = read_list(list_path, root, EXTENSIONS[kind], label_column)
    if has_split:
        rows = select_split(list_path, list(rows), split)
    if file_key != "path":
        files = (name for _, names, _ in walk(root, root, kind) for name in names)
        rows = find_kinetics(list_path, list(rows), files) if file_key == "youtube_id" else find_videos(rows, files)
    return format_name, rows, file_key == "youtube_id"


def select_split(list_path: Path, rows: Sequence[Row], split: str | None) -> Sequence[Row]:
    """Return the rows of one split. If all rows are of one split, they are returned whatever its name."""
    usual = {"validate": "val", "validation": "val", "valid": "val", "training": "train", "testing": "test"}
    split_of = [usual.get(row.split.lower(), row.split.lower()) for row in rows]
    if len({*split_of}) < 2:
        return rows
    if split not in split_of:
        raise ValueError(
            f"{list_path}: lists the splits {', '.join(sorted({*split_of}))}, but not {split}; correct the column of"
            " splits, or use a list of one split"
        )
    return [row for row, row_split in zip(rows, split_of, strict=True) if row_split == split]


def check_classes(records: Records) -> None:
    """Check that files of at least two classes exist, and log the classes without any.

    Raises:
        ValueError: All files are of one class.
    """
    counts = np.bincount(records.labels, minlength=len(records.classes))
    absent = [name for name, count in zip(records.classes, counts.tolist(), strict=True) if not count]
    if len(records.classes) - len(absent) < 2:
        name = records.classes[records.labels[0]]
        raise ValueError(
            f"{records.root}: all {len(records)} files to train on are of one class, {name}; a classifier needs at"
            " least two, so set data.list to the folder that holds the class folders, or to a list with the labels"
        )
    if absent == ["0"]:
        logger.warning("class 0 has no file to train on: the labels start at 1; they should count from 0")
    elif absent:
        logger.warning(
            "%d of %d classes have no file to train on: %s", len(absent), len(records.classes), abbreviate(absent)
        )


class _Disk:
    """Files below a folder. Each folder is listed once: on network disks this is faster than a query for each file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, dict[str, bool]] = {}  # folder -> entry -> whether the entry is a folder
        self.spellings: dict[str, dict[str, list[str]]] = {}  # folder -> entry in NFC -> entries

    def find(self, row: Row) -> str | None:
        """Return the path of a listed file as the disk spells it, None if it does not exist.

        Raises:
            ValueError: The path is that of a folder.
        """
        path = row.path
        if posixpath.basename(path) not in self._list(posixpath.dirname(path)):
            found = [] if path.isascii() else self._find_normalized(path)
            if len(found) != 1:
                return None
            path = found[0]
        if self._list(posixpath.dirname(path))[posixpath.basename(path)]:
            images = (name for _, names, _ in walk(self.root, self.root / path, "image") for name in names)
            advice = "list files, not folders"
            if any(images):
                advice = "folders of frames are not supported, make a video of each (`ffmpeg -i FOLDER/%05d.jpg a.mp4`)"
            raise ValueError(f"{row.location}: {printable_path(row.path)} is a folder; {advice}")
        return path

    def _find_normalized(self, path: str) -> list[str]:
        """Return the existing paths that equal `path` in Unicode normalization."""
        if path.isascii():
            return [path]
        folder, base = posixpath.split(path)
        found = []
        for parent in self._find_normalized(folder):
            if parent not in self.spellings:
                self.spellings[parent] = defaultdict(list)
                for name in self._list(parent):
                    self.spellings[parent][normalize("NFC", name)].append(name)
            found += [posixpath.join(parent, name) for name in self.spellings[parent].get(normalize("NFC", base), ())]
        return found

    def _list(self, folder: str) -> dict[str, bool]:
        if folder not in self.entries:
            path = self.root / folder
            self.entries[folder] = {e.name: e.is_dir() for e in os.scandir(path)} if path.is_dir() else {}
        return self.entries[folder]
