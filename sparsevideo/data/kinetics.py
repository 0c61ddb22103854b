"""Find the files of lists that name videos by an id: the official Kinetics csv, EPIC-Kitchens, Something-Something."""

import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from pathlib import Path, PurePosixPath

from sparsevideo.data.lists import Row
from sparsevideo.utils.files import abbreviate

logger = logging.getLogger(__name__)


def find_videos(rows: Iterable[Row], files: Iterable[str]) -> Iterator[Row]:
    """Yield rows with the file called `<id>`, or `v_<id>` as in ActivityNet, in any folder and with any ending.

    If no file has that name, the path stays the id.

    Raises:
        ValueError: Several files have the id of a row.
    """
    files_of = _by_stem(files)
    for row in rows:
        names = files_of.get(row.path) or files_of.get(f"v_{row.path}", [])
        if len(names) > 1:
            raise ValueError(f"{row.location}: {' and '.join(sorted(names)[:2])} are both its file; keep one of them")
        yield row._replace(path=names[0] if names else row.path)


def _by_stem(files: Iterable[str]) -> dict[str, list[str]]:
    files_of: dict[str, list[str]] = defaultdict(list)
    for name in files:
        files_of[posixpath.splitext(posixpath.basename(name))[0]].append(name)
    return files_of


def find_kinetics(list_path: Path, rows: Sequence[Row], files: Iterable[str]) -> Iterator[Row]:
    """Find the files of a Kinetics csv's rows, in any folder.

    A row's file is called `<id>_<start>_<end>`, seconds plain or in six digits, or `<id>`. A file called `<id>` is left
    out if several segments with this id are listed, because its name does not tell which one it is.

    Args:
        list_path: The csv file.
        rows: Its rows.
        files: All files, as posix paths.

    Yields:
        The rows in their order, each with its file as `path`, "" if there is none, and without seconds: the files are
        cut to them.

    Raises:
        FileNotFoundError: No row has a file.
        ValueError: A row has several files.
    """
    files_of = _by_stem(files)
    segments = {(row.path, row.start, row.end) for row in rows if row.path in files_of}
    num_segments = Counter(video_id for video_id, _, _ in segments)
    missing = []
    for row in rows:
        times = {f"{row.start:06.0f}_{row.end:06.0f}", f"{row.start:.0f}_{row.end:.0f}"}
        names = [name for time in times for name in files_of.get(f"{row.path}_{time}", ())]
        if not names and num_segments[row.path] == 1:
            names = files_of.get(row.path, [])
        if len(names) > 1:  # a clip that is listed with two labels is in the folders of both
            folder = row.label.replace(" ", "_")
            names = [name for name in names if PurePosixPath(name).parent.name.replace(" ", "_") == folder] or names
        if len(names) > 1:
            raise ValueError(
                f"{row.location}: {' and '.join(sorted(names)[:2])} are both its file; keep one of them, or "
                "set data.root to the folder of one copy"
            )
        if not names:
            missing.append(f"{row.path} (line {row.line_number})")
        yield row._replace(path=names[0] if names else "", start=0.0, end=inf)
    if len(missing) == len(rows) > 0:
        raise FileNotFoundError(
            f"{list_path}: none of the {len(rows)} listed videos is under data.root: {abbreviate(missing)}; set"
            " data.root to the folder of the videos"
        )
    if missing:
        logger.warning(
            "%s: left out %d of %d listed videos: %s", list_path, len(missing), len(rows), abbreviate(missing)
        )
