"""Find the files of lists that name videos by an id: the official Kinetics csv, EPIC-Kitchens, Something-Something."""

import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from pathlib import Path

from sparsevideo.data.lists import Row
from sparsevideo.utils.files import abbreviate

logger = logging.getLogger(__name__)


def find_videos(rows: Iterable[Row], files: Iterable[str]) -> Iterator[Row]:
    """Yield rows with the file that is called `<id>`, or `v_<id>` as in ActivityNet, whatever its ending and folder.

    If no file has that name, the path stays the id.

    Raises:
        ValueError: Several files have the id of a row.
    """
    named = _by_stem(files)
    for row in rows:
        names = named.get(row.path) or named.get(f"v_{row.path}", [])
        if len(names) > 1:
            raise ValueError(f"{row.where}: {' and '.join(sorted(names)[:2])} are both its file; keep one of them")
        yield row._replace(path=names[0] if names else row.path)


def _by_stem(files: Iterable[str]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = defaultdict(list)
    for name in files:
        named[posixpath.splitext(posixpath.basename(name))[0]].append(name)
    return named


def join_files(place: Path, rows: Sequence[Row], files: Iterable[str]) -> Iterator[Row]:
    """Find the files of a Kinetics csv's rows, whichever of the usual ways they are named and wherever they lie.

    A row's file is called `<id>_<start>_<end>`, seconds plain or in six digits, or `<id>`. Where an `<id>` could be
    several rows', nothing says whose it is, and it is nobody's.

    Args:
        place: The csv file.
        rows: Its rows.
        files: All files there are, as posix paths.

    Yields:
        The rows in their order, each with its file as `path`, "" where there is none, and without seconds: the files
        are cut to them.

    Raises:
        FileNotFoundError: No row has a file.
        ValueError: A row has several files.
    """
    found = _by_stem(files)
    cuts = Counter(video for video, _, _ in {(row.path, row.start, row.end) for row in rows if row.path in found})
    missing = []
    for row in rows:
        times = {f"{row.start:06.0f}_{row.end:06.0f}", f"{row.start:.0f}_{row.end:.0f}"}
        names = [name for time in times for name in found.get(f"{row.path}_{time}", ())]
        if not names and cuts[row.path] == 1:
            names = found.get(row.path, [])
        if len(names) > 1:  # a clip that is listed with two labels lies in the folders of both
            names = [name for name in names if _folder_of(name) == row.label.replace(" ", "_")] or names
        if len(names) > 1:
            raise ValueError(
                f"{row.where}: {' and '.join(sorted(names)[:2])} are both its file; keep one of them, or "
                "set data.root to the folder of one copy"
            )
        if not names:
            missing.append(f"{row.path} (line {row.line})")
        yield row._replace(path=names[0] if names else "", start=0.0, end=inf)
    if len(missing) == len(rows) > 0:
        raise FileNotFoundError(
            f"{place}: none of the {len(rows)} listed videos is under data.root: {abbreviate(missing)}"
        )
    if missing:
        logger.warning("%s: left out %d of %d listed videos: %s", place, len(missing), len(rows), abbreviate(missing))


def _folder_of(name: str) -> str:
    return posixpath.basename(posixpath.dirname(name)).replace(" ", "_")
