"""Decode all videos below a folder once, and write an index of the bad ones and of the frames of the others."""

import json
import logging
import os
import posixpath
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sparsevideo.data.folders import describe_left_out, walk
from sparsevideo.data.frame_index import HEADER, INDEX, VERSION, Row, read_rows, size_and_mtime
from sparsevideo.data.tar_shards import is_shards, list_members
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import ADVICE
from sparsevideo.io.pixels import format_ratio
from sparsevideo.io.sources import Member
from sparsevideo.utils.files import atomic_path, printable_path
from sparsevideo.utils.processes import ChildError, run_all

_BAD, _SUMMARY = ".bad.txt", ".summary.json"  # suffixes of the files beside the index
_QUANTILES = {"shortest": 0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "longest": 1}
_MAX_ENTRIES = 8  # of a table, the most frequent ones

logger = logging.getLogger(__name__)


def scan(
    root: str | Path,
    index: str | Path | None = None,
    *,
    num_workers: int | None = None,
    timeout_s: float = 300,
    retry_bad: bool = False,
) -> dict[str, Any]:
    """Decode all videos below a folder and write down the results.

    Three files are written: the index, which training reads (see `read_index`), and beside it `.bad.txt`, a line
    `path<TAB>reason` for each bad file, and `.summary.json`. The index grows as files are decoded. The next scan
    continues it: it decodes new and changed files, and removes the rows of deleted ones.

    Args:
        root: The folder. Hidden files and folders are skipped, links are followed. Videos in tar shards are included if
            the folder of the shards contains neither folders nor videos.
        index: The index to write or continue; None: `INDEX` in `root`.
        num_workers: Child processes; None: one for each core.
        timeout_s: Seconds that a file may take to decode.
        retry_bad: Decode the files again that an earlier scan found to be bad.

    Returns:
        The summary: `files`, `good` and `bad` are counts, `reasons` counts the bad files by reason. `suspicious` is
        true if all of at least two files are bad for the same reason, which may not be their fault. `cut_short` names
        good files of which only the first frames decode. `left_out` describes the files without the ending of a video.
        `hours`, `frames`, `short_sides`, `durations_s`, `fps`, `codecs`, `sample_aspect_ratios` (width to height of a
        stored pixel) and `classes` (videos by the name of their folder, for each folder of such folders) describe the
        good files. `not_square` names one good file with non-square pixels, if there is any.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The index cannot be written.
        ValueError: The folder contains no video, another scan is running, the index is damaged, or PyAV does not decode
            on this machine.
    """
    resolve_decoder("pyav")  # otherwise all files would be reported as bad
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    index = root / INDEX if index is None else Path(index)
    bad_list, summary_path = index.with_suffix(_BAD), index.with_suffix(_SUMMARY)
    files: dict[str, tuple[int, int]] = {}  # name -> size and modification time
    members: dict[str, Member] = {}
    bad_shards: dict[str, str] = {}
    ignored = {os.path.relpath(path, root) for path in (index, bad_list, summary_path)}
    left_out: list[str] = []
    for inside, names, others in walk(root, root, "video"):
        files |= {name: size_and_mtime(root / name) for name in names}
        left_out += others
        for shard in others if not names and is_shards(root, "/".join(inside) or ".") else ():
            if not shard.endswith(".tar"):
                continue
            try:
                held = {f"{shard}/{member.name}": member for member in list_members(root / shard, "video")}
            except (ValueError, OSError) as error:
                held, bad_shards[shard] = {}, str(error).removeprefix(f"{root / shard}: ")
            if held or shard in bad_shards:
                files |= dict.fromkeys(held or [shard], size_and_mtime(root / shard))
                members |= held
                ignored.add(shard)
    left_out = [name for name in left_out if name not in ignored]
    if not files:
        hint = f" ({describe_left_out(left_out)})" if left_out else ""
        raise ValueError(f"{root}: contains no video{hint}; see docs/lists.md for the endings of videos")
    with _locked(index):
        known = _drop_outdated(index, files, retry_bad)
        for path in (bad_list, summary_path):
            path.unlink(missing_ok=True)
        todo = [(str(root), name, members.get(name)) for name in files if name not in known | bad_shards.keys()]
        unread = [(("", name, None), ChildError(reason)) for name, reason in bad_shards.items() if name not in known]
        num_done = len(known)
        try:
            with index.open("ab", buffering=0) as file:
                results = run_all(
                    _decode, todo, description="scan", num_workers=num_workers, timeout_s=timeout_s, num_done=num_done
                )
                for (_, name, _), result in chain(unread, results):
                    size, mtime_ns = files[name]
                    row = {"path": name, "bytes": size, "mtime_ns": mtime_ns}
                    if isinstance(result, ChildError):
                        result = {"error": str(result).removeprefix(f"{root / name}: ").removesuffix(f"; {ADVICE}")}
                    file.write(_line(row | result))
                    num_done += 1
        except KeyboardInterrupt:
            logger.warning("%s: contains %d of %d files; run the command again to go on", index, num_done, len(files))
            raise
        bad_list.write_bytes(os.fsencode("".join(sorted(_bad_lines(_rows(index))))))
        summary = {"root": str(root), "index": str(index), **_summarize(_rows(index))}
        summary["left_out"] = describe_left_out(left_out) if left_out else ""
        summary_path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def describe(summary: dict[str, Any]) -> str:
    """Format a summary as a few lines of text."""
    lines = [f"{summary['root']}: {summary['files']} videos, {summary['good']} good, {summary['bad']} bad"]
    if summary["left_out"]:
        lines.append(f"left out: {summary['left_out']}")
    for reason, count in _most_common(summary["reasons"]):
        lines.append(f"  {count:8d}  {printable_path(reason)}")
    if truncated := [f"{name} ({frames})" for name, frames in summary["cut_short"].items()]:
        lines.append(f"{len(truncated)} of the good decode only in part: {printable_path(', '.join(truncated[:3]))}")
    lines.append(f"{summary['hours']:.1f} hours, {summary['frames']} frames")
    for title, key in (("short side", "short_sides"), ("frames/s", "fps"), ("codec", "codecs")):
        lines.append(f"{title:12s}" + ", ".join(f"{value}: {count}" for value, count in _most_common(summary[key])))
    if summary["not_square"]:
        ratios = {ratio: count for ratio, count in summary["sample_aspect_ratios"].items() if ratio != "1:1"}
        lines.append(
            f"{sum(ratios.values())} of the good have pixels that are not square"
            f" ({', '.join(f'{ratio}: {count}' for ratio, count in _most_common(ratios))}), for example"
            f" {printable_path(summary['not_square'])}; data.square_pixels resizes them"
        )
    lines.append("seconds     " + ", ".join(f"{name}: {s:.1f}" for name, s in summary["durations_s"].items()))
    for folder, split in summary["classes"].items():
        fewest, most = (f"{printable_path(name)}: {split['videos'][name]}" for name in (split["fewest"], split["most"]))
        lines.append(f"{printable_path(folder)}: {len(split['videos'])} classes, fewest {fewest}, most {most}")
    lines.append(f"index       {summary['index']}")
    if summary["bad"]:
        lines.append(f"bad files   {Path(summary['index']).with_suffix(_BAD)}")
    if summary["suspicious"]:
        lines.append(
            f"All {summary['files']} files fail for the same reason, so the cause may be elsewhere: check the disk and"
            " the decoder, then scan again with --retry-bad."
        )
    if any(reason.startswith("took longer") for reason in summary["reasons"]):
        lines.append("Files that took too long may only be long: try a larger --time-limit, with --retry-bad.")
    return "\n".join(lines)


def _decode(root: str, name: str, member: Member | None) -> Row:
    """Decode a file, or a member of a tar shard, and return its columns in the index."""
    with open_video(member or Path(root, name), "pyav", verify=True) as video:
        info, table, truncated_because = asdict(video.info), video.table, video.truncated_because
    info["sample_aspect_ratio"] = format_ratio(info["sample_aspect_ratio"])
    start, step, keyframes = (None, None, None) if table is None else (*table[1:3], table.keyframes.tolist())
    known = {key: None if value != value else value for key, value in info.items()}  # JSON has no nan
    return known | {"start": start, "step": step, "keyframes": keyframes, "cut_short": truncated_because}


@contextmanager
def _locked(index: Path) -> Iterator[None]:
    """Keep other scans from writing an index. The system releases the lock if this process is killed."""
    try:
        index.parent.stat()  # raises if the folder is missing; some versions of filelock create it
        lock = FileLock(index.with_name(f".{index.name}.lock")).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{index}: another scan is writing it; wait for its end, or choose another --index") from None
    except OSError as error:
        raise OSError(f"{index}: cannot be written ({error.strerror}); choose another path with --index") from error
    with lock:
        yield


def _drop_outdated(index: Path, files: Mapping[str, tuple[int, int]], retry_bad: bool) -> set[str]:
    """Remove the rows of changed and deleted files from the index; return the names of the files that remain."""
    decoder = f"PyAV {version('av')}"
    lines = read_rows(index) if index.exists() else iter(())
    new: tuple[bytes, Row] = b"", {HEADER: VERSION, "decoders": [decoder]}
    _, header = next(lines, new)
    if decoder not in header["decoders"]:
        logger.warning("%s: written with %s; remove it to scan all with %s", index, header["decoders"][0], decoder)
        header["decoders"].append(decoder)
    kept: dict[str, bytes] = {}
    for line, row in lines:
        if files.get(row["path"]) == (row["bytes"], row["mtime_ns"]) and not (retry_bad and "error" in row):
            kept[row["path"]] = line
    with atomic_path(index) as unfinished:
        unfinished.write_bytes(b"".join((_line(header), *kept.values())))
    return set(kept)


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"  # ASCII: names that are not UTF-8 are escaped


def _rows(index: Path) -> Iterator[Row]:
    return (row for _, row in islice(read_rows(index), 1, None))


def _bad_lines(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        if "error" in row:
            path, reason = (text.translate({9: r"\t", 10: r"\n", 13: r"\r"}) for text in (row["path"], row["error"]))
            yield f"{path}\t{reason}\n"


def _summarize(rows: Iterable[Row]) -> dict[str, Any]:
    counts: dict[str, Counter[Any]] = defaultdict(Counter)  # value -> number of files, by key of the summary
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    truncated: dict[str, str] = {}
    seconds = array("d")
    num_files, num_frames, not_square = 0, 0, ""
    for row in rows:
        num_files += 1
        split, name = posixpath.split(posixpath.dirname(row["path"]))
        if name and not name.endswith(".tar"):
            classes[split or "."][name] += "error" not in row
        if "error" in row:
            counts["reasons"][row["error"]] += 1
            continue
        if row["cut_short"]:
            truncated[row["path"]] = f"{row['num_frames']} frames, then {row['cut_short']}"
        num_frames += row["num_frames"]
        counts["short_sides"][min(row["height"], row["width"])] += 1
        counts["codecs"][row["codec"]] += 1
        if ratio := row.get("sample_aspect_ratio"):  # absent from indexes of earlier versions
            counts["sample_aspect_ratios"][ratio] += 1
            not_square = not_square or (row["path"] if ratio != "1:1" else "")
        if row["fps"] is not None:
            counts["fps"][round(row["fps"], 2)] += 1
            seconds.append(row["duration_s"])
    num_bad = counts["reasons"].total()
    durations_s = np.quantile(seconds, list(_QUANTILES.values())).tolist() if seconds else ()
    return {
        "files": num_files,
        "good": num_files - num_bad,
        "bad": num_bad,
        "reasons": dict(counts["reasons"].most_common()),
        "suspicious": num_files == num_bad > 1 and len(counts["reasons"]) == 1,
        "cut_short": truncated,
        "hours": sum(seconds) / 3600,
        "frames": num_frames,
        "short_sides": dict(sorted(counts["short_sides"].items())),
        "durations_s": dict(zip(_QUANTILES, durations_s, strict=False)),
        "fps": dict(sorted(counts["fps"].items())),
        "codecs": dict(counts["codecs"].most_common()),
        "sample_aspect_ratios": dict(counts["sample_aspect_ratios"].most_common()),
        "not_square": not_square,
        "classes": {split: _count_classes(videos) for split, videos in sorted(classes.items())},
    }


def _count_classes(videos: Counter[str]) -> dict[str, Any]:
    order = videos.most_common()
    return {"fewest": order[-1][0], "most": order[0][0], "videos": dict(sorted(videos.items()))}


def _most_common(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    return Counter(counts).most_common(_MAX_ENTRIES)
