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
from unicodedata import normalize
from zipfile import BadZipFile

import numpy as np

from sparsevideo.data.classes import index_classes, read_class_names
from sparsevideo.data.folders import EXTENSIONS, MAYBE_STILL, is_still
from sparsevideo.data.lists import short_messages
from sparsevideo.data.records import Records
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.sources import Member
from sparsevideo.utils.files import abbreviate, atomic_path, printable_path

_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LABELS = (".cls", ".json")  # if a sample has both, the first counts
_MEDIA = tuple({ending for endings in EXTENSIONS.values() for ending in endings})
_INDEX_VERSION = 2
_THREADS = 8  # they wait for the disk more than they work
_ADVICE = "download it or make it again"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shards(Records):
    """Labeled images or videos in tar files; a name is `shard.tar/member.jpg`.

    Attributes:
        shards: The tar files, relative to the root, in the order of their images or videos.
    """

    shards: tuple[str, ...]
    _firsts: list[int]  # index of each shard's first image or video
    _offsets: np.ndarray  # (n,) int64: first byte in the shard
    _sizes: np.ndarray  # (n,) int64: in bytes

    def name(self, index: int) -> str:
        """Return the shard of an image or video, and its name there."""
        return f"{self._shard(index)}/{super().name(index)}"

    def source(self, index: int) -> Member:
        """Return what a decoder opens; its text is that of `path`."""
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        return Member(self.root / self._shard(index), super().name(index), offset, size)

    def open(self, index: int) -> BinaryIO:
        """Read one image's bytes; raises as `Member.check` does."""
        # Opened for each image: processes and threads share nothing, and there may be more shards than a process may
        # hold open.
        return BytesIO(self.source(index).read())

    def _shard(self, index: int) -> str:
        return self.shards[bisect_right(self._firsts, range(len(self))[index]) - 1]


class _Index(NamedTuple):
    """Images or videos of one shard, in their order."""

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
    has_files = any(entry.is_dir() or entry.name.lower().endswith(_MEDIA) for entry in entries)
    return not has_files and any(_TAR.search(entry.name) for entry in entries)


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
    """Read the index of tar shards; nothing is unpacked.

    Members with the same name up to its first dot belong together: an image or a video, and its label as `name.cls` (a
    class index or name) or `name.json` (an object with a key `label`, or `cls`). Other images and videos are counted in
    a warning, all else is ignored. If a `classes.txt` lies beside the shards, with one name per line, class indices
    count in it.

    Only headers and labels are read. They are stored beside each shard in a hidden file, if it can be written, until
    the shard changes.

    `pattern` names the shards, relative to the root: `train-{000000..000146}.tar`, `train-*.tar`, or a folder. With a
    `label_column` the labels are that key of `name.json`, and `name.cls` does not count. The other arguments are those
    of `read_records`.

    Raises:
        FileNotFoundError: The root or a shard does not exist.
        ValueError: A shard is compressed, truncated, not a tar file or has none of the kind, an image or video has no
            label or a label no image or video, or a label is not among the classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set data.root to the data set's folder")
    path, shards = root / pattern, _expand(root, pattern)
    with ThreadPoolExecutor(_THREADS) as pool:
        read = partial(_read_index, kind=kind, label_column=label_column, labeled=labeled)
        indices = list(pool.map(read, [root / shard for shard in shards]))
    left_out = Counter(os.fsdecode(ending) for index in indices for ending in index.left_out.tolist())
    described = abbreviate([f"{count} {ending}" for ending, count in left_out.most_common()], 6)
    for shard, index in zip(shards, indices, strict=True):
        if not len(index.names):
            hint = f" ({described})" if left_out else ""
            raise ValueError(f"{root / shard}: no {kind} in it{hint}; add files ending in {' '.join(EXTENSIONS[kind])}")
    labels = [normalize("NFC", label.decode()) for index in indices for label in index.labels.tolist()]
    class_list = (root / shards[0]).parent / "classes.txt"
    own_classes = read_class_names(class_list) if class_list.is_file() else None
    location_of = dict.fromkeys(sorted({*labels} - {""}), str(path))
    known, index_of = index_classes(location_of, classes, own_classes=own_classes)
    logger.info("%s: %d tar shards, %d %ss, %d classes", path, len(shards), len(labels), kind, len(known))
    if left_out:
        logger.warning("%s: left out %d files, not a sample's %s: %s", path, left_out.total(), kind, described)
    names = (os.fsdecode(name) for index in indices for name in index.names.tolist())
    return Shards(
        **vars(Records.build(root, known, names, [index_of[label] for label in labels])),
        shards=tuple(shards),
        _firsts=np.cumsum([0] + [len(index.names) for index in indices[:-1]]).tolist(),
        _offsets=np.concatenate([index.offsets for index in indices]),
        _sizes=np.concatenate([index.sizes for index in indices]),
    )


def _expand(root: Path, pattern: str) -> list[str]:
    """Name the shards, relative to the root."""
    path = root / pattern
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if _TAR.search(each.name) and not each.name.startswith("."))
        return [Path(os.path.relpath(each, root)).as_posix() for each in found]
    names: list[str] = []
    for name in _expand_braces(pattern):
        is_glob = re.search(r"[*?[]", name)
        names += sorted(glob(name, root_dir=root)) if is_glob else [name]  # noqa: PTH207  # it may be absolute
    if not names:
        raise FileNotFoundError(f"{path}: no such tar shards; correct data.list, or data.root")
    names = list(dict.fromkeys(names))  # patterns may overlap
    if absent := [name for name in names if not (root / name).is_file()]:
        raise FileNotFoundError(
            f"{path}: {len(absent)} of {len(names)} shards are not there: {abbreviate(absent, 3)}; add them, or correct"
            " data.list"
        )
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


def find_source(root: Path, name: str) -> Path | Member:
    """Return a file's path, or its member of a shard, by its name in `Records` or `Shards`.

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
    index = _read_index(shard, kind=kind)
    spans = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return [Member(shard, os.fsdecode(name), *span) for name, span in zip(index.names.tolist(), spans, strict=True)]


def _read_index(shard: Path, *, kind: str, label_column: str | None = None, labeled: bool = False) -> _Index:
    """Return the index of a shard: the stored one if the shard has not changed since; see `read_shards`."""
    stat = shard.stat()
    stamp = np.array([str(part) for part in (_INDEX_VERSION, stat.st_size, stat.st_mtime_ns, kind, label_column)])
    path = shard.with_name(f".{shard.name}.index.npz")
    index = None
    if path.is_file():
        try:
            with np.load(path) as stored:
                if np.array_equal(stored["stamp"], stamp):
                    index = _Index(*(stored[name] for name in _Index._fields))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.warning("%s: cannot be read (%s); the shard's headers are read instead", path, error)
    is_new = index is None
    index = index or _read_headers(shard, kind, label_column)
    if labeled and len(bare := index.names[index.labels == b""]):
        missing = "`.cls` or `.json`" if label_column is None else f"the key {label_column} of `.json`"
        names = [os.fsdecode(name) for name in bare.tolist()]
        raise ValueError(f"{shard}: {len(bare)} {kind}s without a label ({abbreviate(names, 3)}); add {missing}")
    if is_new and len(index.names):
        try:
            with atomic_path(path, unique=True) as unfinished, unfinished.open("wb") as file:
                np.savez(file, stamp=stamp, **index._asdict())
        except OSError as error:
            logger.info("%s: cannot be written (%s); the shard's headers are read at each start", path, error)
    return index


def _read_headers(shard: Path, kind: str, label_column: str | None) -> _Index:
    # key -> {"image" or "video": (name, offset, size), ".cls": content, ".json": content}
    samples: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    left_out: list[str] = []
    others: set[str] = set()  # keys of files of the other kind, which may have the labels
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
    if unpaired := [key for key, sample in samples.items() if kind not in sample and key not in others]:
        article = "an" if kind == "image" else "a"
        keys = abbreviate(unpaired, 3)
        raise ValueError(
            f"{shard}: {len(unpaired)} labels without {article} {kind} ({keys}); remove them, or add the {kind}s"
        )
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
    """Yield the plain files of a tar file, with `file` at their first byte; raise ValueError if some could be lost."""
    start = file.read(6)
    for magic, compression in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{shard}: is compressed ({compression}), so its files cannot be read one by one; uncompress it"
            )
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
    # tarfile stops silently at a damaged header, and at the end of the first of two joined tar files.
    file.seek(end)
    if size == end:
        raise ValueError(f"{shard}: is truncated: it ends at byte {end} without a tar file's end; {_ADVICE}")
    while block := file.read(2**20):
        if block.strip(b"\0"):
            raise ValueError(f"{shard}: is damaged after byte {end}, or another tar file is joined to it; {_ADVICE}")


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
    except ValueError:  # not UTF-8, or not JSON
        parsed = None
    value: Any = None
    if isinstance(parsed, dict):
        if column is not None and column not in parsed:
            keys = abbreviate(list(parsed)) or "none"
            raise ValueError(
                f"{shard}: {printable_path(key)}.json has no key {column}; set data.label_column to one of its"
                f" keys ({keys})"
            )
        value = parsed.get("label", parsed.get("cls")) if column is None else parsed[column]
        if value is None:
            return ""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        expected = "a class index or name" if kind == ".cls" else f'{{"{column or "label"}": a class index or name}}'
        raise ValueError(f"{shard}: {printable_path(key)}{kind} holds no label; write {expected}")
    return str(value)
