"""Copies of videos with a smaller short side, which decode faster."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sparsevideo.data.folders import walk
from sparsevideo.io.writer import check_codecs, resize_video
from sparsevideo.utils.processes import ChildError, run_all


def find_videos(root: Path) -> list[str]:
    """Return the videos at any depth of a folder, as posix paths relative to it.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    return [name for _, names, _ in walk(root, root, "video") for name in names]


def resize_all(
    root: Path,
    out: Path,
    names: Iterable[str],
    short_side: int,
    *,
    description: str = "resize",
    num_workers: int | None = None,
    timeout_s: float = 300,
) -> tuple[dict[str, str], dict[str, str]]:
    """Copy videos with `resize_video`, in child processes. Copies that are not older than their videos are kept.

    Args:
        root: Folder of the videos.
        out: Folder of the copies, outside of `root`.
        names: Videos, relative to `root`.
        short_side: Pixels along the shorter side, even. Smaller videos keep their size.
        description: Name of the work, shown with its progress.
        num_workers: Child processes; None: one for each core.
        timeout_s: Seconds that a video may take.

    Returns:
        The names of the copies relative to `out`, which end with `.mp4`, by the name of the video, and the reasons why
        others are lacking, likewise.

    Raises:
        ValueError: `short_side` is odd or not positive, `out` is in `root`, or two videos have the same copy.
    """
    if short_side < 2 or short_side % 2:
        raise ValueError(f"the short side must be an even number of pixels >= 2, got {short_side}")
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out}: is in {root}, so the copies would be taken for videos; name another folder")
    check_codecs()
    copies: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name in names:
        copies[name] = str(PurePosixPath(name).with_suffix(".mp4"))
        if (first := sources.setdefault(copies[name], name)) != name:
            raise ValueError(f"{root}: {first} and {name} have the same copy, {copies[name]}; rename one of them")
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(root / name, out / copy, short_side) for name, copy in copies.items() if _is_old(out / copy, root / name)]
    ends = run_all(
        resize_video,
        jobs,
        description=description,
        num_workers=num_workers,
        timeout_s=timeout_s,
        num_done=len(copies) - len(jobs),
    )
    lacking = {job[0].relative_to(root).as_posix(): str(end) for job, end in ends if isinstance(end, ChildError)}
    return {name: copy for name, copy in copies.items() if name not in lacking}, lacking


def _is_old(copy: Path, source: Path) -> bool:
    """Tell whether a copy does not exist or is older than its source."""
    return not copy.exists() or copy.stat().st_mtime < source.stat().st_mtime
