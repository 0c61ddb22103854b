"""List files and folders become one table of files and labels."""

import logging
import os
import posixpath
import re
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path
from typing import BinaryIO
from unicodedata import normalize

import numpy as np

from sparsevideo.data.kinetics import find_videos, join_files
from sparsevideo.data.lists import Row, read_list, select_split, short_messages
from sparsevideo.data.segments import frame_range, segment_name, span_of
from sparsevideo.io.sources import Member
from sparsevideo.utils.files import abbreviate, printable_path

EXTENSIONS = {
    "video": (
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".m4v", ".mjpeg"),
        *(".mjpg", ".mkv", ".mov", ".mp4", ".mp4v", ".mpe", ".mpeg", ".mpeg4", ".mpg", ".mpv", ".mts", ".mxf", ".ogg"),
        *(".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
        *(".apng", ".avif", ".gif", ".webp"),  # animated images; of the last, stills are left out
    ),
    "image": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}
MAYBE_STILL = (".webp", ".avif")
MAX_CLASSES = 100_000  # a larger label number is a mistake in the list
UNLABELED = -1
_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "validate", "test", "testing"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Records:
    """Files with labels, in a few arrays: copying them into loader workers is cheap, however many there are.

    Attributes:
        root: The folder that names are relative to.
        classes: Class names, in label order.
        labels: (n,) int64; `UNLABELED` if the list does not say.
        spans: (n, 2) float64 first and last second of a video that count, the last not included; 0 and infinity where
            the list does not say. None where it says so of no video.
        in_frames: Whether `spans` are frame indices instead of seconds.
        missing: Rows of a Kinetics csv that have no file; they are not among the n.
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
        """Return where a file lies."""
        return self.root / self.name(index)

    def source(self, index: int) -> Path | Member:
        """Return what a decoder opens; its text is that of `path`."""
        return self.path(index)

    @property
    def spans_unit(self) -> str:
        """Unit of `spans`: "s" or "frames"."""
        return "frames" if self.in_frames else "s"

    def span(self, index: int) -> tuple[float, float]:
        """Return the start and end of what counts, in `spans_unit`; 0 and infinity for a whole file."""
        return span_of(self.spans, index)

    def segment(self, index: int) -> str:
        """Return a file's name and, if only a part of it counts, the seconds or frames of that part."""
        return segment_name(self.name(index), self.span(index), self.spans_unit)

    def reason(self, index: int, error: Exception) -> str:
        """Return why a file could not be read, with the segment that was asked for beside its path."""
        path = str(self.path(index))
        segment = segment_name(path, self.span(index), self.spans_unit)
        return str(error) if segment == path else f"{segment}: {str(error).removeprefix(f'{path}: ')}"

    def class_weights(self, balance: float) -> np.ndarray:
        """Return (n,) weights of the files: their classes' numbers of files to the power of -`balance`.

        With 1 all classes that have files weigh the same, with 0 all files do.
        """
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return counts[self.labels] ** -float(balance)

    def frame_range(self, index: int, num_frames: int) -> range:
        """Return the indices of the frames that count of a video of `num_frames`.

        Raises:
            ValueError: The list gives no frame indices, or none of the frames counts.
        """
        if self.spans is None or not self.in_frames:
            raise ValueError("the list gives no segments in frames")
        return frame_range(self.span(index), num_frames)

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
    labeled: bool = True,
) -> Records:
    """Read a split of a data set: a folder with one folder per class, or a list file.

    The content of a list file decides its format, which the log names. docs/lists.md describes the formats: `path
    label`, `path,label`, csv with a header, JSON lines, a JSON array or object, the official lists of Kinetics,
    EPIC-Kitchens and Something-Something. Rows of a Kinetics list without a file are left out and counted; the classes
    are those of all rows.

    Paths are relative to `root`, labels are numbers or names, seconds and frames count from a video's first frame.
    Class names that differ in Unicode normalization only are one class. If that is all in which a listed path
    differs from the disk, the record has the name on the disk.

    Args:
        root: The data set's folder.
        listing: The split, relative to the root: `train`, `videos/train`, `lists/train.csv`.
        kind: "video" or "image": the files to look for in class folders.
        classes: Class names in label order, for example from a checkpoint. None: the sorted names found here.
        split: "train", "val" or "test": the rows to take of a list of several splits.
        label_column: The column or JSON key that holds the labels; None finds it by its name.
        labeled: Refuse files without a label. If False, they have the label `UNLABELED`.

    Raises:
        FileNotFoundError: The root, the listing or a listed file does not exist.
        ValueError: Nothing is listed, a line is malformed, or a label is not among `classes`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set data.root to the data set's folder")
    place = root / listing
    in_folders, is_kinetics = place.is_dir(), False
    rows: Iterable[Row]
    if in_folders:
        form, rows = "class folders", _class_folders(root, place, kind, labeled)
    elif place.is_file():
        form, rows, is_kinetics = _listed(place, root, kind, split, label_column)
    else:
        held = ", ".join(sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))[:10])
        here = f"; {Path(listing).resolve()} is not looked at: give its whole path" if Path(listing).exists() else ""
        raise FileNotFoundError(f"{place}: no such folder or list file; {root} holds: {held or 'nothing'}{here}")

    names, labels, seconds = [], [], array("d")
    where_of: dict[str, str] = {}  # label -> where it comes first, whether or not its file is there
    present = _Present(root)
    absent: list[Row] = []
    respelled: list[str] = []
    units = set()
    missing = 0
    own_path = Path(os.path.relpath(place, root)).as_posix()
    for row in rows:
        label = sys.intern(normalize("NFC", row.label))
        if label:
            where_of.setdefault(label, row.where)
        elif labeled:
            raise ValueError(
                f"{row.where or place}: has no label; to train and to test, every file needs one, such as"
                " `path,label` (only `sparsevideo extract` takes files without)"
            )
        if not row.path:
            missing += 1
            continue
        if row.where and row.path == own_path:
            raise ValueError(f"{row.where}: the list names itself; remove the line")
        if row.where and not is_kinetics:
            found = present.find(row)
            if found is None:
                absent.append(row)
            elif found != row.path:
                respelled.append(found)
                row = row._replace(path=found)
        names.append(row.path)
        labels.append(label)
        if (row.start, row.end) != (0, inf):
            units.add(row.in_frames)
        seconds.extend((row.start, row.end))
    if not names:
        raise ValueError(f"{place}: lists no files; write a line `path,label` for each")
    if absent:
        few_absent = abbreviate([row.path for row in absent], 3)
        advice = "; write / in place of \\" if "\\" in absent[0].path else ""
        raise FileNotFoundError(
            f"{absent[0].where}: {len(absent)} of {len(names)} listed files are not in {root}, which is data.root:"
            f" {few_absent}{advice}"
        )
    if respelled:
        logger.info(
            "%s: %d listed paths differ from the disk in their Unicode normalization only, and are read as %s",
            place,
            len(respelled),
            abbreviate(respelled, 3),
        )
    if len(units) > 1:
        raise ValueError(f"{place}: has segments in seconds and segments in frames; write all in one unit")

    known, number_of = _number_classes(place, where_of, classes, in_folders)
    logger.info("%s: %s, %d files, %d classes, %d missing", place, form, len(names), len(known), missing)
    spans = np.array(seconds).reshape(-1, 2) if units else None
    numbers = [number_of[label] for label in labels]
    return Records.build(root, known, names, numbers, spans, missing, in_frames=True in units)


def _listed(
    place: Path, root: Path, kind: str, split: str | None, label_column: str | None
) -> tuple[str, Iterable[Row], bool]:
    """Return the format of a list, its rows of a split with the paths of their files, and whether it is of Kinetics."""
    rows: Iterable[Row]
    form, rows, key, has_split = read_list(place, root, EXTENSIONS[kind], label_column)
    if has_split:
        rows = select_split(place, list(rows), split)
    if key != "path":
        files = (name for _, names, _ in walk(root, root, kind) for name in names)
        rows = join_files(place, list(rows), files) if key == "youtube_id" else find_videos(rows, files)
    return form, rows, key == "youtube_id"


def _number_classes(
    place: Path, where_of: Mapping[str, str], classes: Sequence[str] | None, in_folders: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the classes in label order, and the number of each label that is listed."""
    for label, where in () if in_folders else where_of.items():
        if re.fullmatch(r"-?\d+\.0*", label) and label not in (classes or ()):
            raise ValueError(f"{where}: {label} is not a class number; write {label.partition('.')[0]}")
    known = tuple(classes) if classes is not None else _classes_of(where_of, in_folders)
    number_of = {} if in_folders else {str(number): number for number in range(len(known))}
    # A class name comes before a number.
    number_of |= {normalize("NFC", name): number for number, name in enumerate(known)} | {"": UNLABELED}
    if unknown := [label for label in where_of if label not in number_of]:
        raise ValueError(
            f"{where_of[unknown[0]] or place}: {abbreviate(unknown)} not among the {len(known)} classes expected:"
            f" {abbreviate(known)}"
        )
    return known, number_of


def check_classes(records: Records) -> None:
    """See that there is something to learn, and name the classes that have no file.

    Raises:
        ValueError: All files are of one class, so any network is right.
    """
    counts = np.bincount(records.labels, minlength=len(records.classes))
    absent = [name for name, count in zip(records.classes, counts.tolist(), strict=True) if not count]
    if len(records.classes) - len(absent) < 2:
        name = records.classes[records.labels[0]]
        raise ValueError(
            f"{records.root}: all {len(records)} files to train on are of one class, {name}; a classifier needs at"
            " least two: see that data.list names the folder that holds the class folders, or a list with the labels"
        )
    if absent == ["0"]:
        logger.warning("class 0 has no file to train on: the labels start at 1; they should count from 0")
    elif absent:
        logger.warning(
            "%d of %d classes have no file to train on: %s", len(absent), len(records.classes), abbreviate(absent)
        )


def _class_folders(root: Path, place: Path, kind: str, labeled: bool) -> Iterator[Row]:
    """Find files in class folders, at any depth; folders without any are no classes.

    Files outside any class folder make the whole folder one without labels, which `labeled` refuses.
    """
    outside: list[str] = []
    found: dict[str, list[str]] = {}
    beside: list[str] = []
    left_out: list[str] = []
    for inside, names, others in walk(root, place, kind):
        if not inside:
            outside += names
            beside += others
        else:
            left_out += others
            found.setdefault(printable_path(inside[0]), []).extend(names)
    if outside and labeled:
        raise ValueError(
            f"{place}: holds {printable_path(posixpath.basename(outside[0]))} outside any class folder; put each {kind}"
            " into <class>/"
        )
    classes = [name for name, names in found.items() if names]
    if not classes:  # else what lies beside class folders are lists and notes
        left_out += beside
    described = describe_left_out(left_out)
    if not outside and not classes:
        frames = "; folders of frames are not supported" if kind == "video" and "image" in described else ""
        hint = f" ({described}{frames})" if left_out else ""
        raise ValueError(f"{place}: no {kind} in it{hint}; looked in every <class>/, see docs/lists.md for the endings")
    if not outside and len(splits := [name for name in classes if name.lower() in _SPLIT_FOLDERS]) > len(classes) // 2:
        raise ValueError(
            f"{place}: holds the folders {', '.join(splits)}, which are splits, not classes; set data.list to"
            " {split}, or to one of them"
        )
    if left_out:
        without = [name for name, names in found.items() if not names]
        lost = f"; folders without any {kind}: {abbreviate(without)}" if without else ""
        logger.warning("%s: left out %s%s", place, described, lost)
    for name in outside:
        yield Row("", 0, name, "")
    for label, names in found.items():
        for name in names:
            yield Row("", 0, name, "" if outside else label)


def describe_left_out(names: Sequence[str]) -> str:
    """Count the files that are neither videos nor images wanted, by their endings."""
    endings = Counter(posixpath.splitext(name)[1].lower() or "without an ending" for name in names)
    kinds = [f"{count} {ending}" for ending, count in endings.most_common()]
    if any(ending in EXTENSIONS["image"] for ending in endings):
        kinds.append("images among them")
    return f"{len(names)} files with other endings: {abbreviate(kinds, 6)}"


def walk(root: Path, place: Path, kind: str) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
    """Yield the folders at and below a place: their names from there, the files wanted, and all others.

    Hidden files and folders are left out, and so are, among videos, images that are not animated. Files are named from
    the root.
    """
    walked: set[tuple[tuple[str, ...], str]] = set()
    for folder, folders, files in os.walk(place, onerror=_stop, followlinks=True):
        inside = Path(folder).relative_to(place).parts
        here = inside[:1], os.path.realpath(folder)
        if inside and (here in walked or here[1] == os.path.realpath(place)):
            folders.clear()  # a link back to where this class was, or to all classes
            continue
        walked.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(os.path.relpath(folder, root))
        wanted: list[str] = []
        others: list[str] = []
        for name in sorted(files):
            if name.startswith("."):
                continue
            is_wanted = name.lower().endswith(EXTENSIONS[kind]) and not (kind == "video" and _is_still(folder, name))
            (wanted if is_wanted else others).append((base / name).as_posix())
        yield inside, wanted, others


def _is_still(folder: str, name: str) -> bool:
    """Tell whether a file is a WebP or AVIF image without animation, such as a video's thumbnail."""
    if not name.lower().endswith(MAYBE_STILL):
        return False
    with Path(folder, name).open("rb") as file:
        return is_still(file.read(64))


def is_still(head: bytes) -> bool:
    """Tell whether a WebP or AVIF file has no animation, from its first 64 bytes."""
    if head[:4] == b"RIFF":
        return head[12:16] != b"VP8X" or not head[20] & 2
    return head[4:8] == b"ftyp" and b"avis" not in head[8 : int.from_bytes(head[:4], "big")]


def _stop(error: OSError) -> None:
    raise type(error)(f"{error.filename}: cannot be read ({error.strerror}); its files would be missing") from error


class _Present:
    """The files below a folder. Folders are listed rather than files asked for: quick on network disks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, dict[str, bool]] = {}  # folder -> entry -> whether it is a folder
        self.composed: dict[str, dict[str, list[str]]] = {}  # folder -> entry in NFC -> entries

    def find(self, row: Row) -> str | None:
        """Return the path of a listed file as the disk spells it, None if it is not there.

        Raises:
            ValueError: It is a folder.
        """
        path = self._spelled(row.path)
        if path is not None and self._list(posixpath.dirname(path))[posixpath.basename(path)]:
            held = (name for _, names, _ in walk(self.root, self.root / path, "image") for name in names)
            advice = "list files, not folders"
            if any(held):
                advice = "folders of frames are not supported, make a video of each (`ffmpeg -i FOLDER/%05d.jpg a.mp4`)"
            raise ValueError(f"{row.where}: {printable_path(row.path)} is a folder; {advice}")
        return path

    def _spelled(self, path: str) -> str | None:
        """Return a path as it is, or else in the one other Unicode normalization in which it is there."""
        folder, base = posixpath.split(path)
        if base in self._list(folder):
            return path
        forms = [] if path.isascii() else self._forms(path)
        return forms[0] if len(forms) == 1 else None

    def _forms(self, path: str) -> list[str]:
        """Return the paths that are there and are `path` in any Unicode normalization; ASCII has one."""
        if path.isascii():
            return [path]
        folder, base = posixpath.split(path)
        found = []
        for parent in self._forms(folder):
            if parent not in self.composed:
                self.composed[parent] = defaultdict(list)
                for name in self._list(parent):
                    self.composed[parent][normalize("NFC", name)].append(name)
            found += [posixpath.join(parent, name) for name in self.composed[parent].get(normalize("NFC", base), ())]
        return found

    def _list(self, folder: str) -> dict[str, bool]:
        if folder not in self.entries:
            path = self.root / folder
            self.entries[folder] = {e.name: e.is_dir() for e in os.scandir(path)} if path.is_dir() else {}
        return self.entries[folder]


def _classes_of(where_of: Mapping[str, str], in_folders: bool) -> tuple[str, ...]:
    """Name the classes: 0, 1, ... where all labels of a list are plain numbers, else the sorted names."""
    if in_folders or not where_of or not all(re.fullmatch("0|-?[1-9][0-9]*", label) for label in where_of):
        return tuple(sorted(where_of))  # a folder's name is always a name
    for label, where in where_of.items():
        if not label.isdecimal() or len(label) > 9 or int(label) >= MAX_CLASSES:  # int() refuses 5,000 digits
            raise ValueError(f"{where}: {label} is not a class number; labels count from 0 to {MAX_CLASSES - 1}")
    return tuple(str(number) for number in range(max(map(int, where_of)) + 1))
