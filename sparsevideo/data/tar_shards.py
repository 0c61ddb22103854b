"""Images and videos in tar shards (WebDataset's layout), each of which can be read alone, as if it were a file."""

import json
import logging
import os
import posixpath
import re
import tarfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

from sparsevideo.data.lists import read_class_names, short_messages
from sparsevideo.data.records import EXTENSIONS, MAX_CLASSES, MAYBE_STILL, UNLABELED, Records, is_still
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.sources import Member
from sparsevideo.utils.files import abbreviate, printable_path

_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LABELS = (".cls", ".json")  # the first one counts where a key has both
_MEDIA = tuple({ending for endings in EXTENSIONS.values() for ending in endings})
_INDEX_VERSION = 2
_THREADS = 8  # they wait for the disk more than they work
_ADVICE = "download it or make it again"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shards(Records):
    """Labelled images or videos in tar files; a name is `shard.tar/member.jpg`.

    Attributes:
        shards: The tar files, relative to the root; in this order, each as it is, they hold all images or videos.
    """

    shards: tuple[str, ...]
    _firsts: list[int]  # number of each shard's first image or video
    _offsets: np.ndarray  # (n,) int64: where in its shard each starts
    _sizes: np.ndarray  # (n,) int64: in bytes

    def name(self, index: int) -> str:
        """Return the shard of an image or video, and its name there."""
        return f"{self._shard(index)}/{super().name(index)}"

    def source(self, index: int) -> Member:
        """Return where an image or video lies; its text is that of `path`."""
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        return Member(self.root / self._shard(index), super().name(index), offset, size)

    def open(self, index: int) -> BinaryIO:
        """Read one image's bytes; raises as `Member.check` does."""
        # Opened every time, so nothing is shared by processes or threads, and shards may be more than files a process
        # may hold open.
        return BytesIO(self.source(index).read())

    def _shard(self, index: int) -> str:
        return self.shards[bisect_right(self._firsts, range(len(self))[index]) - 1]


class _Index(NamedTuple):
    """What one shard holds, one image or video after the other."""

    names: np.ndarray  # (n,) bytes, as the tar file spells them
    labels: np.ndarray  # (n,) bytes, as they are written; empty without a label
    offsets: np.ndarray  # (n,) int64
    sizes: np.ndarray  # (n,) int64
    left_out: np.ndarray  # (m,) bytes: endings of all other images and videos, which are not read


def is_shards(root: str | Path, listing: str) -> bool:
    """Tell whether a split is tar shards: it names them, or is a folder of them without class folders and videos."""
    if _TAR.search(listing):
        return True
    path = Path(root) / listing
    if not path.is_dir():
        return False
    entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    held = any(entry.is_dir() or entry.name.lower().endswith(_MEDIA) for entry in entries)
    return not held and any(_TAR.search(entry.name) for entry in entries)


@short_messages()
def read_shards(
    root: str | Path,
    pattern: str,
    *,
    kind: str = "image",
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
    labeled: bool = True,
) -> Shards:
    """Read what tar shards hold; nothing is unpacked.

    Members with the same name up to its first dot belong together: an image or a video, and its label as `name.cls` (a
    number or a class name) or `name.json` (an object with a key `label`, or `cls`). Other images and videos are counted
    in a warning, all else is ignored. Where a `classes.txt` lies beside the shards, with one name a line, numbers are
    places in it.

    Only headers and labels are read. What they say is kept beside each shard in a hidden file, where that can be
    written, until the shard changes.

    Args:
        root: The data set's folder.
        pattern: The shards, relative to the root: `train-{000000..000146}.tar`, `train-*.tar`, or a folder.
        kind: "image" or "video": the members to look for.
        classes: Class names in label order, from a checkpoint say. None: those of `classes.txt`, or the numbers.
        label_column: The key of `name.json` that holds the labels; `name.cls` does not count then.
        labeled: Refuse images or videos without a label. If False, they have the label `UNLABELED`.

    Raises:
        FileNotFoundError: The root or a shard does not exist.
        ValueError: A shard is compressed, truncated, not a tar file or has none of the kind, an image or video has no
            label or a label no image or video, or a label is not among the classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set data.root to the data set's folder")
    shards = _expand(root, pattern)
    with ThreadPoolExecutor(_THREADS) as pool:
        read = partial(_index, kind=kind, label_column=label_column, labeled=labeled)
        indices = list(pool.map(read, [root / shard for shard in shards]))
    left_out = Counter(os.fsdecode(ending) for index in indices for ending in index.left_out.tolist())
    described = abbreviate([f"{count} {ending}" for ending, count in left_out.most_common()], 6)
    for shard, index in zip(shards, indices, strict=True):
        if not len(index.names):
            hint = f" ({described})" if left_out else ""
            raise ValueError(f"{root / shard}: no {kind} in it{hint}; looked for {' '.join(EXTENSIONS[kind])}")
    labels = [label.decode() for index in indices for label in index.labels.tolist()]
    listed = (root / shards[0]).parent / "classes.txt"
    known, number_of = _number_classes(root / pattern, listed, set(labels) - {""}, classes)
    number_of[""] = UNLABELED
    logger.info("%s: %d tar shards, %d %ss, %d classes", root / pattern, len(shards), len(labels), kind, len(known))
    if left_out:
        logger.warning(
            "%s: left out %d files, not a sample's %s: %s", root / pattern, left_out.total(), kind, described
        )
    names = (os.fsdecode(name) for index in indices for name in index.names.tolist())
    return Shards(
        **vars(Records.build(root, known, names, [number_of[label] for label in labels])),
        shards=tuple(shards),
        _firsts=np.cumsum([0] + [len(index.names) for index in indices[:-1]]).tolist(),
        _offsets=np.concatenate([index.offsets for index in indices]),
        _sizes=np.concatenate([index.sizes for index in indices]),
    )


def _expand(root: Path, pattern: str) -> list[str]:
    """Name the shards, relative to the root."""
    path = root / pattern
    if path.is_dir():
        held = sorted(each for each in path.iterdir() if _TAR.search(each.name) and not each.name.startswith("."))
        return [Path(os.path.relpath(path, root)).as_posix() for path in held]
    names: list[str] = []
    for name in _expand_braces(pattern):
        is_glob = re.search(r"[*?[]", name)
        names += sorted(glob(name, root_dir=root)) if is_glob else [name]  # noqa: PTH207  # it may be absolute
    if not names:
        raise FileNotFoundError(f"{path}: no such tar shards")
    names = list(dict.fromkeys(names))  # patterns may overlap
    if absent := [name for name in names if not (root / name).is_file()]:
        raise FileNotFoundError(f"{path}: {len(absent)} of {len(names)} shards are not there: {abbreviate(absent, 3)}")
    return names


def _expand_braces(pattern: str) -> list[str]:
    """Write out braces as a shell does.

    Example:
        >>> _expand_braces("{train,val}-{08..10}.tar")[:4]
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    parts = braces[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        parts = [f"{n:0{len(numbers[1])}}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for part in parts for name in _expand_braces(before + part + after)]


def _number_classes(
    path: Path, listed: Path, labels: set[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names in order, and the number of every label as it is written."""
    if listed.is_file():
        own = read_class_names(listed)
    elif classes is not None:
        own = tuple(classes)
    elif all(label.isdecimal() and label == str(int(label)) for label in labels):
        largest = max(map(int, labels), default=-1)
        if largest >= MAX_CLASSES:
            raise ValueError(f"{path}: {largest} is not a class number; labels count from 0")
        own = tuple(str(number) for number in range(largest + 1))
    elif odd := sorted(label for label in labels if re.fullmatch(r"-\d+|-?\d+\.0*", label)):
        raise ValueError(f"{path}: {odd[0]} is not a class number; they are written 0, 1, 2, ...")
    else:
        own = tuple(sorted(labels))
    name_of = {str(number): name for number, name in enumerate(own)} | {name: name for name in own}
    known = own if classes is None else tuple(classes)
    number_of = {name: number for number, name in enumerate(known)}
    if unknown := sorted(label for label in labels if name_of.get(label) not in number_of):
        raise ValueError(
            f"{path}: {abbreviate(unknown)} not among the {len(known)} classes expected: {abbreviate(known)}"
        )
    return known, {label: number_of[name_of[label]] for label in labels}


def find_source(root: Path, name: str) -> Path | Member:
    """Return where a file lies, by its name in `Records` or `Shards`.

    Raises:
        FileNotFoundError: Its shard does not hold it.
        DecodeError: Its shard cannot be read.
    """
    path = root / name
    for shard in path.parents:
        if _TAR.search(shard.name) and shard.is_file():
            try:
                with shard.open("rb") as file:
                    for member in _members(shard, file):
                        if shard / member.name == path:
                            return Member(shard, member.name, member.offset_data, member.size)
            except ValueError as error:
                raise DecodeError(str(error)) from error
            raise FileNotFoundError(f"{path}: no such file")
    return path


def list_members(shard: Path, kind: str) -> list[Member]:
    """List the images or videos of one shard, labeled or not; raises ValueError as `read_shards`."""
    index = _index(shard, kind=kind)
    spans = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return [Member(shard, os.fsdecode(name), *span) for name, span in zip(index.names.tolist(), spans, strict=True)]


def _index(shard: Path, *, kind: str, label_column: str | None = None, labeled: bool = False) -> _Index:
    """Tell what a shard holds, from an earlier reading if it has not changed since; see `read_shards`."""
    stat = shard.stat()
    stamp = np.array([str(part) for part in (_INDEX_VERSION, stat.st_size, stat.st_mtime_ns, kind, label_column)])
    path = shard.with_name(f".{shard.name}.index.npz")
    index = None
    if path.is_file():
        try:
            with np.load(path) as kept:
                if np.array_equal(kept["stamp"], stamp):
                    index = _Index(*(kept[name] for name in _Index._fields))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.warning("%s: does not read (%s); the shard's headers are read again", path, error)
    is_new = index is None
    index = index or _read_headers(shard, kind, label_column)
    if labeled and len(bare := index.names[index.labels == b""]):
        needed = "`.cls` or `.json`" if label_column is None else f"the key {label_column} of `.json`"
        names = [os.fsdecode(name) for name in bare.tolist()]
        raise ValueError(f"{shard}: {len(bare)} {kind}s without a label, {needed}: {abbreviate(names, 3)}")
    if is_new and len(index.names):
        _keep(index, shard, path, stamp)
    return index


def _keep(index: _Index, shard: Path, path: Path, stamp: np.ndarray) -> None:
    part = shard.with_name(f".{shard.name}.{uuid4().hex}.part")  # another process may be at it, too
    try:
        with part.open("wb") as file:
            np.savez(file, stamp=stamp, **index._asdict())
        part.replace(path)
    except OSError as error:
        logger.info("%s: cannot be written (%s); the shard's headers are read at every start", path, error)
        part.unlink(missing_ok=True)


def _read_headers(shard: Path, kind: str, label_column: str | None) -> _Index:
    # key -> {"image" or "video": (name, offset, size), ".cls": content, ".json": content}
    samples: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    left_out: list[str] = []
    others: set[str] = set()  # keys of files of the other kind: theirs may be the label
    with shard.open("rb") as file:
        for member in _members(shard, file):
            key, ending = _split(posixpath.normpath(member.name))
            is_media = ending in EXTENSIONS[kind]
            if is_media and kind == "video" and ending in MAYBE_STILL:
                is_media = not is_still(file.read(min(64, member.size)))
            content: Any
            if is_media:
                field, content = kind, (member.name, member.offset_data, member.size)
            elif ending in _LABELS:
                field, content = ending, file.read(member.size)
            else:
                if ending.endswith(_MEDIA):
                    left_out.append(ending)
                    if ending in _MEDIA:
                        others.add(key)
                continue
            if field in samples[key]:
                raise ValueError(f"{shard}: {printable_path(key)} has two members for its {field}; keep one")
            samples[key][field] = content
    if lost := [key for key, sample in samples.items() if kind not in sample and key not in others]:
        article = "an" if kind == "image" else "a"
        raise ValueError(f"{shard}: {len(lost)} labels without {article} {kind}: {abbreviate(lost, 3)}")
    found = {key: sample for key, sample in samples.items() if kind in sample}
    names = [os.fsencode(sample[kind][0]) for sample in found.values()]
    return _Index(
        np.array(names, dtype=np.bytes_),
        np.array([_label(shard, key, sample, label_column).encode() for key, sample in found.items()], dtype=np.bytes_),
        np.array([sample[kind][1] for sample in found.values()], dtype=np.int64),
        np.array([sample[kind][2] for sample in found.values()], dtype=np.int64),
        np.array([os.fsencode(ending) for ending in left_out], dtype=np.bytes_),
    )


def _members(shard: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield a tar file's plain files, the open file standing at their first byte; stop where any could be lost."""
    start = file.read(6)
    for magic, how in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"{shard}: is compressed ({how}), so no image can be read alone; uncompress it")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = tar.offset
                if member.isdir() or posixpath.basename(member.name).startswith("."):
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"{shard}: {printable_path(member.name)} is a link or has holes; pack plain files alone, with "
                        "`tar --dereference --hard-dereference`"
                    )
                if end > size:
                    raise ValueError(
                        f"{shard}: is truncated in {printable_path(member.name)}: the file ends at byte {size}, before"
                        f" the {end} that it takes; {_ADVICE}"
                    )
                yield member
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: is truncated, or not a tar file ({error} at byte {end}); {_ADVICE}") from error
    # A damaged header ends tarfile's reading in silence, as does the end of a tar file that another is joined to.
    file.seek(end)
    if size == end:
        raise ValueError(f"{shard}: is truncated: it ends at byte {end} without a tar file's end; {_ADVICE}")
    while block := file.read(2**20):
        if block.strip(b"\0"):
            raise ValueError(f"{shard}: is damaged behind byte {end}, or another tar file is joined to it; {_ADVICE}")


def _split(name: str) -> tuple[str, str]:
    """Split a member's name into its key and its ending, which begins at the first dot.

    Example:
        >>> _split("a.b/n01_7.JPEG"), _split("n01_7.mask.png")
        (('a.b/n01_7', '.jpeg'), ('n01_7', '.mask.png'))
    """
    folder, base = posixpath.split(name)
    stem, dot, ending = base.partition(".")
    return posixpath.join(folder, stem), dot + ending.lower()


def _label(shard: Path, key: str, sample: dict[str, Any], column: str | None) -> str:
    """Return a sample's label as it is written, empty if there is none."""
    kinds = _LABELS if column is None else (".json",)
    kind = next((kind for kind in kinds if kind in sample), None)
    if kind is None:
        return ""
    try:
        text = sample[kind].decode().strip()
        parsed = json.loads(text) if kind == ".json" else {"label": text}
    except ValueError:  # no UTF-8, or no JSON
        parsed = None
    value: Any = None
    if isinstance(parsed, dict):
        if column is not None and column not in parsed:
            there = abbreviate(list(parsed)) or "none"
            raise ValueError(
                f"{shard}: {printable_path(key)}.json has no key {column} (data.label_column); there are {there}"
            )
        value = parsed.get("label", parsed.get("cls")) if column is None else parsed[column]
        if value is None:
            return ""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        expected = "a number or a name" if kind == ".cls" else f'{{"{column or "label"}": a number or a name}}'
        raise ValueError(f"{shard}: {printable_path(key)}{kind} holds no label; it must hold {expected}")
    return str(value)
