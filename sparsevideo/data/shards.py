"""Images in tar shards (WebDataset's layout), each of which can be read alone, as if it were a file."""

import json
import logging
import os
import posixpath
import re
import tarfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

from sparsevideo.data.lists import few, legible, read_class_names, short_messages
from sparsevideo.data.records import EXTENSIONS, MAX_CLASSES, Records

_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LABELS = (".cls", ".json")  # the first one counts where a key has both
_INDEX_VERSION = 1
_THREADS = 8  # they wait for the disk more than they work
_ADVICE = "download it or make it anew"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shards(Records):
    """Labelled images in tar files; a name is `shard.tar/member.jpg`.

    Attributes:
        shards: The tar files, relative to the root; in this order, each as it is, they hold all images.
    """

    shards: tuple[str, ...]
    _firsts: list[int]  # number of each shard's first image
    _offsets: np.ndarray  # (n,) int64: where in its shard an image starts
    _sizes: np.ndarray  # (n,) int64: in bytes

    def name(self, index: int) -> str:
        """Return an image's shard and its name there."""
        return f"{self._shard(index)}/{super().name(index)}"

    def open(self, index: int) -> BinaryIO:
        """Read one image's bytes.

        Raises:
            OSError: The shard has gone, or is shorter than it was.
        """
        # Opened every time, so nothing is shared by processes or threads, and shards may be more than files a process
        # may hold open.
        with (self.root / self._shard(index)).open("rb") as file:
            file.seek(self._offsets[index])
            content = file.read(self._sizes[index])
        if len(content) < self._sizes[index]:
            raise OSError(f"{legible(str(self.path(index)))}: its shard has become shorter; {_ADVICE}")
        return BytesIO(content)

    def _shard(self, index: int) -> str:
        return self.shards[bisect_right(self._firsts, range(len(self))[index]) - 1]


class _Index(NamedTuple):
    """What one shard holds, one image after the other."""

    names: np.ndarray  # (n,) bytes, as the tar file spells them
    labels: np.ndarray  # (n,) bytes, as they are written
    offsets: np.ndarray  # (n,) int64
    sizes: np.ndarray  # (n,) int64


def is_shards(root: str | Path, listing: str) -> bool:
    """Tell whether a split is tar shards: it names them, or is a folder of them without class folders."""
    if _TAR.search(listing):
        return True
    place = Path(root) / listing
    if not place.is_dir():
        return False
    entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
    return any(_TAR.search(entry.name) for entry in entries) and not any(entry.is_dir() for entry in entries)


@short_messages()
def read_shards(root: str | Path, pattern: str, *, classes: Sequence[str] | None = None) -> Shards:
    """Read what tar shards hold; nothing is unpacked.

    Members with the same name up to its first dot belong together: an image, and its label as `name.cls` (a number or
    a class name) or `name.json` (an object with a key `label`, or `cls`); all else is ignored. Where a `classes.txt`
    lies beside the shards, with one name a line, numbers are places in it.

    Only headers and labels are read. What they say is kept beside each shard in a hidden file, where that can be
    written, until the shard changes.

    Args:
        root: The data set's folder.
        pattern: The shards, relative to the root: `train-{000000..000146}.tar`, `train-*.tar`, or a folder.
        classes: Class names in label order, from a checkpoint say. None: those of `classes.txt`, or the numbers.

    Raises:
        FileNotFoundError: The root or a shard does not exist.
        ValueError: A shard is compressed, torn or no tar file, an image has no label or a label no image, or a label
            is not among the classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set data.root to the data set's folder")
    shards = _expand(root, pattern)
    with ThreadPoolExecutor(_THREADS) as pool:
        indices = list(pool.map(_index, [root / shard for shard in shards]))
    labels = [label.decode() for index in indices for label in index.labels.tolist()]
    known, number_of = _number_classes(root / pattern, (root / shards[0]).parent / "classes.txt", set(labels), classes)
    logger.info("%s: %d tar shards, %d images, %d classes", root / pattern, len(shards), len(labels), len(known))
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
    place = root / pattern
    if place.is_dir():
        held = sorted(path for path in place.iterdir() if _TAR.search(path.name) and not path.name.startswith("."))
        return [Path(os.path.relpath(path, root)).as_posix() for path in held]
    names: list[str] = []
    for name in _expand_braces(pattern):
        is_glob = re.search(r"[*?[]", name)
        names += sorted(glob(name, root_dir=root)) if is_glob else [name]  # noqa: PTH207  # it may be absolute
    if not names:
        raise FileNotFoundError(f"{place}: no such tar shards")
    names = list(dict.fromkeys(names))  # patterns may overlap
    if absent := [name for name in names if not (root / name).is_file()]:
        raise FileNotFoundError(f"{place}: {len(absent)} of {len(names)} shards are not there: {few(absent, 3)}")
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
    place: Path, listed: Path, labels: set[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names in order, and the number of every label as it is written."""
    if listed.is_file():
        own = read_class_names(listed)
    elif classes is not None:
        own = tuple(classes)
    elif all(label.isdecimal() and label == str(int(label)) for label in labels):
        largest = max(map(int, labels))
        if largest >= MAX_CLASSES:
            raise ValueError(f"{place}: {largest} is not a class number; labels count from 0")
        own = tuple(str(number) for number in range(largest + 1))
    elif odd := sorted(label for label in labels if re.fullmatch(r"-\d+|-?\d+\.0*", label)):
        raise ValueError(f"{place}: {odd[0]} is not a class number; they are written 0, 1, 2, ...")
    else:
        own = tuple(sorted(labels))
    name_of = {str(number): name for number, name in enumerate(own)} | {name: name for name in own}
    known = own if classes is None else tuple(classes)
    number_of = {name: number for number, name in enumerate(known)}
    if unknown := sorted(label for label in labels if name_of.get(label) not in number_of):
        raise ValueError(f"{place}: {few(unknown)} not among the {len(known)} classes expected: {few(known)}")
    return known, {label: number_of[name_of[label]] for label in labels}


def _index(shard: Path) -> _Index:
    """Tell what a shard holds, from an earlier reading if it has not changed since."""
    stat = shard.stat()
    stamp = np.array([_INDEX_VERSION, stat.st_size, stat.st_mtime_ns])
    place = shard.with_name(f".{shard.name}.index.npz")
    if place.is_file():
        try:
            with np.load(place) as kept:
                if np.array_equal(kept["stamp"], stamp):
                    return _Index(*(kept[name] for name in _Index._fields))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.warning("%s: does not read (%s); the shard's headers are read again", place, error)
    index = _read_headers(shard)
    part = shard.with_name(f".{shard.name}.{uuid4().hex}.part")  # another process may be at it, too
    try:
        with part.open("wb") as file:
            np.savez(file, stamp=stamp, **index._asdict())
        part.replace(place)
    except OSError as error:
        logger.info("%s: cannot be written (%s); the shard's headers are read at every start", place, error)
        part.unlink(missing_ok=True)
    return index


def _read_headers(shard: Path) -> _Index:
    # key -> {"image": (name, offset, size), ".cls": content, ".json": content}
    samples: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    with shard.open("rb") as file:
        for member in _members(shard, file):
            key, field = _field(posixpath.normpath(member.name))
            if field is None:
                continue
            if field in samples[key]:
                raise ValueError(f"{shard}: {legible(key)} has two members for its {field}; keep one")
            is_image = field == "image"
            samples[key][field] = (member.name, member.offset_data, member.size) if is_image else file.read(member.size)
    if not samples:
        raise ValueError(f"{shard}: no image in it; looked for {' '.join(EXTENSIONS['image'])}")
    if bare := [sample["image"][0] for sample in samples.values() if sample.keys() == {"image"}]:
        raise ValueError(f"{shard}: {len(bare)} images without a label, `.cls` or `.json`: {few(bare, 3)}")
    if lost := [key for key, sample in samples.items() if "image" not in sample]:
        raise ValueError(f"{shard}: {len(lost)} labels without an image: {few(lost, 3)}")
    names, offsets, sizes = zip(*(sample["image"] for sample in samples.values()), strict=True)
    return _Index(
        np.array([os.fsencode(name) for name in names]),
        np.array([_label(shard, key, sample).encode() for key, sample in samples.items()]),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
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
                        f"{shard}: {legible(member.name)} is a link or has holes; pack plain files alone, with "
                        "`tar --dereference --hard-dereference`"
                    )
                if end > size:
                    raise ValueError(
                        f"{shard}: is torn in {legible(member.name)}: the file ends at byte {size}, before the {end}"
                        f" that it takes; {_ADVICE}"
                    )
                yield member
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: is torn or no tar file ({error} at byte {end}); {_ADVICE}") from error
    # A damaged header ends tarfile's reading in silence, as does the end of a tar file that another is joined to.
    file.seek(end)
    if size == end:
        raise ValueError(f"{shard}: is torn: it ends at byte {end} without a tar file's end; {_ADVICE}")
    while block := file.read(2**20):
        if block.strip(b"\0"):
            raise ValueError(f"{shard}: is damaged behind byte {end}, or another tar file is joined to it; {_ADVICE}")


def _field(name: str) -> tuple[str, str | None]:
    """Split a member's name into its key and what it is to it: "image", ".cls", ".json" or None.

    Example:
        >>> _field("a.b/n01_7.JPEG"), _field("n01_7.mask.png")
        (('a.b/n01_7', 'image'), ('n01_7', None))
    """
    folder, base = posixpath.split(name)
    stem, dot, extension = base.partition(".")
    kind = dot + extension.lower()
    field = "image" if kind in EXTENSIONS["image"] else kind if kind in _LABELS else None
    return posixpath.join(folder, stem), field


def _label(shard: Path, key: str, sample: dict[str, Any]) -> str:
    """Return a sample's label as it is written."""
    kind = next(kind for kind in _LABELS if kind in sample)
    value: Any = None
    try:
        value = sample[kind].decode().strip()
        if kind == ".json":
            said = json.loads(value)
            value = said.get("label", said.get("cls")) if isinstance(said, dict) else None
    except ValueError:  # no UTF-8, or no JSON
        value = None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        wanted = "a number or a name" if kind == ".cls" else '{"label": a number or a name}'
        raise ValueError(f"{shard}: {legible(key)}{kind} holds no label; it wants {wanted}")
    return str(value)
