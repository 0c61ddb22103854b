"""The official Kinetics csv names clips of YouTube videos; here its rows find their files."""

import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path

from sparsevideo.data.lists import Row, few

_SPLITS = {"validate": "val", "validation": "val"}  # what Kinetics-700 calls the split that others call val

logger = logging.getLogger(__name__)


def join_files(place: Path, rows: Iterable[Row], files: Iterable[str], split: str | None = None) -> Iterator[Row]:
    """Find the files of a Kinetics csv's rows, whichever of the usual ways they are named and wherever they lie.

    A row's file is called `<id>_<start>_<end>`, seconds plain or in six digits, or `<id>`. Where an `<id>` could be
    several rows', nothing says whose it is, and it is nobody's.

    Args:
        place: The csv file.
        rows: Its rows.
        files: All files there are, as posix paths.
        split: Which rows to take where the csv lists several splits.

    Yields:
        The rows in their order, each with its file as `path`, "" where there is none, and without seconds: the files
        are cut to them.

    Raises:
        FileNotFoundError: No row has a file.
        ValueError: Several splits are listed and `split` is none of them, a label is missing, or a row has several
            files.
    """
    rows = _of_split(place, list(rows), split)
    found: dict[str, list[str]] = defaultdict(list)
    for name in files:
        found[posixpath.splitext(posixpath.basename(name))[0]].append(name)
    cuts = Counter(video for video, _, _ in {(row.path, row.start_s, row.end_s) for row in rows if row.path in found})
    missing = []
    for row in rows:
        if not row.label:
            raise ValueError(f"{place}, line {row.line}: has no label, like Kinetics' test lists; list labelled videos")
        times = {f"{row.start_s:06.0f}_{row.end_s:06.0f}", f"{row.start_s:.0f}_{row.end_s:.0f}"}
        names = [name for time in times for name in found.get(f"{row.path}_{time}", ())]
        if not names and cuts[row.path] == 1:
            names = found[row.path]
        if len(names) > 1:  # a clip that is listed with two labels lies in the folders of both
            names = [name for name in names if _folder_of(name) == row.label.replace(" ", "_")] or names
        if len(names) > 1:
            raise ValueError(
                f"{place}, line {row.line}: {' and '.join(sorted(names)[:2])} are both its file; keep one of them, or "
                "set data.root to the folder of one copy"
            )
        if not names:
            missing.append(f"{row.path} (line {row.line})")
        yield row._replace(path=names[0] if names else "", start_s=0.0, end_s=inf)
    if len(missing) == len(rows) > 0:
        raise FileNotFoundError(f"{place}: none of the {len(rows)} listed videos is under data.root: {few(missing)}")
    if missing:
        logger.warning("%s: left out %d of %d listed videos: %s", place, len(missing), len(rows), few(missing))


def _folder_of(name: str) -> str:
    return posixpath.basename(posixpath.dirname(name)).replace(" ", "_")


def _of_split(place: Path, rows: list[Row], split: str | None) -> list[Row]:
    """Take one split's rows. Where all rows are of one split, the file was chosen for it, whatever its name."""
    splits = {_SPLITS.get(row.split, row.split) for row in rows}
    if len(splits) < 2:
        return rows
    if split not in splits:
        raise ValueError(f"{place}: lists {', '.join(sorted(splits))} together, and {split} is none of them")
    return [row for row in rows if _SPLITS.get(row.split, row.split) == split]
