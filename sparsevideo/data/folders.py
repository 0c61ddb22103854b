"""Find videos and images in folders by their endings."""

import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparsevideo.data.lists import Row
from sparsevideo.utils.files import abbreviate, printable_path

EXTENSIONS = {
    "video": (
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".m4v", ".mjpeg"),
        *(".mjpg", ".mkv", ".mov", ".mp4", ".mp4v", ".mpe", ".mpeg", ".mpeg4", ".mpg", ".mpv", ".mts", ".mxf", ".ogg"),
        *(".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
        *(".apng", ".avif", ".gif", ".webp"),  # animated images; WebP and AVIF stills are left out
    ),
    "image": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}
MAYBE_STILL = (".webp", ".avif")
_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "validate", "test", "testing"}

logger = logging.getLogger(__name__)


def find_in_class_folders(root: Path, folder: Path, kind: str, labeled: bool) -> Iterator[Row]:
    """Find the files of class folders, at any depth. A folder without any is not a class.

    A file outside the class folders makes all files unlabeled, which `labeled` refuses.
    """
    outside: list[str] = []
    files_of: dict[str, list[str]] = {}
    others_outside: list[str] = []
    left_out: list[str] = []
    for parts, names, others in walk(root, folder, kind):
        if not parts:
            outside += names
            others_outside += others
        else:
            left_out += others
            files_of.setdefault(printable_path(parts[0]), []).extend(names)
    if outside and labeled:
        raise ValueError(
            f"{folder}: holds {printable_path(posixpath.basename(outside[0]))} outside any class folder; put each"
            f" {kind} into <class>/"
        )
    classes = [name for name, names in files_of.items() if names]
    if not classes:  # files beside class folders are lists and notes
        left_out += others_outside
    described = describe_left_out(left_out)
    if not outside and not classes:
        frames = "; folders of frames are not supported" if kind == "video" and "image" in described else ""
        hint = f" ({described}{frames})" if left_out else ""
        raise ValueError(f"{folder}: no {kind} in it{hint}; put files with an ending of docs/lists.md into <class>/")
    if not outside and len(splits := [name for name in classes if name.lower() in _SPLIT_FOLDERS]) > len(classes) // 2:
        raise ValueError(
            f"{folder}: holds the folders {', '.join(splits)}, which are splits, not classes; set data.list to"
            " {split}, or to one of them"
        )
    if left_out:
        empty = [name for name, names in files_of.items() if not names]
        without = f"; folders without any {kind}: {abbreviate(empty)}" if empty else ""
        logger.warning("%s: left out %s%s", folder, described, without)
    for label, names in [("", outside), *files_of.items()]:
        for name in names:
            yield Row("", 0, name, "" if outside else label)


def describe_left_out(names: Sequence[str]) -> str:
    """Count files with other endings, by their endings."""
    endings = Counter(posixpath.splitext(name)[1].lower() or "without an ending" for name in names)
    counts = [f"{count} {ending}" for ending, count in endings.most_common()]
    if any(ending in EXTENSIONS["image"] for ending in endings):
        counts.append("images among them")
    return f"{len(names)} files with other endings: {abbreviate(counts, 6)}"


def walk(root: Path, top: Path, kind: str) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
    """Walk the folders at and below `top`.

    Hidden files and folders are skipped.

    Yields:
        The parts of a folder's path relative to `top`, its files of this kind, and its other files; files as posix
        paths relative to `root`. Images that are not animated are not videos.
    """
    walked: set[tuple[tuple[str, ...], str]] = set()
    for folder, subfolders, files in os.walk(top, onerror=_raise_unreadable, followlinks=True):
        parts = Path(folder).relative_to(top).parts
        real_path = os.path.realpath(folder)
        if parts and ((parts[:1], real_path) in walked or real_path == os.path.realpath(top)):
            subfolders.clear()  # a link back to a folder of this class, or to all classes
            continue
        walked.add((parts[:1], real_path))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        base = Path(os.path.relpath(folder, root))
        found: list[str] = []
        others: list[str] = []
        for name in sorted(files):
            if not name.startswith("."):
                (found if _is_of_kind(Path(folder, name), kind) else others).append((base / name).as_posix())
        yield parts, found, others


def _is_of_kind(path: Path, kind: str) -> bool:
    """Tell whether a file is an image, or a video or animated image, by its ending and if need be its first bytes."""
    name = path.name.lower()
    if kind == "image" or not name.endswith(MAYBE_STILL):
        return name.endswith(EXTENSIONS[kind])
    with path.open("rb") as file:
        return not is_still(file.read(64))


def is_still(head: bytes) -> bool:
    """Tell whether a WebP or AVIF file has no animation, from its first 64 bytes."""
    if head[:4] == b"RIFF":
        return head[12:16] != b"VP8X" or not head[20] & 2
    return head[4:8] == b"ftyp" and b"avis" not in head[8 : int.from_bytes(head[:4], "big")]


def _raise_unreadable(error: OSError) -> None:
    raise type(error)(
        f"{error.filename}: cannot be read ({error.strerror}); make it readable, its files would be missing"
    ) from error
