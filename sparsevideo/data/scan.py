"""Every video below a folder is decoded once, to know in advance which are bad, and where the others' frames are."""

import json
import logging
import os
import posixpath
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sparsevideo.data.folders import describe_left_out, walk
from sparsevideo.data.frame_index import HEADER, INDEX, VERSION, Row, read_rows, stamp
from sparsevideo.data.tar_shards import is_shards, list_members
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import ADVICE
from sparsevideo.io.pixels import format_ratio
from sparsevideo.io.sources import Member
from sparsevideo.utils.files import printable_path
from sparsevideo.utils.processes import ChildError, run_all

_QUANTILES = {"shortest": 0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "longest": 1}
_SHOWN = 8  # entries of a table, the most frequent

logger = logging.getLogger(__name__)


def scan(
    root: str | Path,
    index: str | Path | None = None,
    *,
    workers: int | None = None,
    time_limit: float = 300,
    retry_bad: bool = False,
) -> dict[str, Any]:
    """Decode every video below a folder and write down what is found.

    Three files are left: the index, which training reads (see `read_index`), and beside it `.bad.txt`, a line
    `path<TAB>reason` for each bad file, and `.summary.json`. The index grows as files are decoded, and the next scan
    goes on from it: it decodes what is new or has changed, and forgets what is gone.

    Args:
        root: The folder. Hidden files and folders are left out, links are followed. The videos in tar shards count, if
            the folder of the shards holds neither folders nor videos.
        index: The index to write or go on with; None: `INDEX` in `root`.
        workers: Child processes; None: one for each core.
        time_limit: Seconds that a file may take to decode.
        retry_bad: Decode once more what an earlier scan has found to be bad.

    Returns:
        The summary: `files`, `good` and `bad` are counts, `reasons` has the bad by reason; `suspicious` is true if all
        of at least two files are bad for the same reason, which may not be their fault; `cut_short` names good files of
        which only the first frames decode; `left_out` counts, in words, the files that are not called like videos;
        `hours`, `frames`, `short_sides`, `durations_s`, `fps`, `codecs`, `sample_aspect_ratios` (width to height of a
        stored pixel) and `classes` (videos by the name of their folder, where that lies in the same folder) are of the
        good; `not_square` names one whose pixels are not square, if there is any.

    Raises:
        FileNotFoundError: There is no such folder.
        OSError: The index cannot be written.
        ValueError: The folder holds no video, another scan is running, the index is damaged, or PyAV does not decode on
            this machine.
    """
    resolve_decoder("pyav")  # else it would be every file's fault
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    index = root / INDEX if index is None else Path(index)
    stamps: dict[str, tuple[int, int]] = {}
    members: dict[str, Member] = {}
    bad_shards: dict[str, str] = {}
    shards: set[str] = set()
    left_out: list[str] = []
    for inside, names, others in walk(root, root, "video"):
        stamps |= {name: stamp(root / name) for name in names}
        left_out += others
        for shard in others if not names and is_shards(root, "/".join(inside) or ".") else ():
            if not shard.endswith(".tar"):
                continue
            try:
                held = {f"{shard}/{member.name}": member for member in list_members(root / shard, "video")}
            except (ValueError, OSError) as error:
                held, bad_shards[shard] = {}, str(error).removeprefix(f"{root / shard}: ")
            if held or shard in bad_shards:
                stamps |= dict.fromkeys(held or [shard], stamp(root / shard))
                members |= held
                shards.add(shard)
    own = shards | {os.path.relpath(path, root) for path in (index, _bad_list(index), _summary_file(index))}
    left_out = [name for name in left_out if name not in own]
    if not stamps:
        hint = f" ({describe_left_out(left_out)})" if left_out else ""
        raise ValueError(f"{root}: no video in it{hint}; see docs/lists.md for the endings of videos")
    with _locked(index):
        known = _prune(index, stamps, retry_bad)
        for stale in (_bad_list(index), _summary_file(index)):
            stale.unlink(missing_ok=True)
        todo = [(str(root), name, members.get(name)) for name in stamps if name not in known | bad_shards.keys()]
        unread = [(("", name, None), ChildError(why)) for name, why in bad_shards.items() if name not in known]
        done = len(known)
        try:
            with index.open("ab", buffering=0) as file:
                results = run_all(_decode, todo, what="scan", workers=workers, time_limit=time_limit, done=done)
                for (_, name, _), result in chain(unread, results):
                    size, changed = stamps[name]
                    row = {"path": name, "bytes": size, "mtime_ns": changed}
                    if isinstance(result, ChildError):
                        result = {"error": str(result).removeprefix(f"{root / name}: ").removesuffix(f"; {ADVICE}")}
                    file.write(_line(row | result))
                    done += 1
        except KeyboardInterrupt:
            logger.warning("%s: knows %d of %d files; the same command goes on from there", index, done, len(stamps))
            raise
        _bad_list(index).write_bytes(os.fsencode("".join(sorted(_bad_lines(_rows(index))))))
        summary = {"root": str(root), "index": str(index), **_summarize(_rows(index))}
        summary["left_out"] = describe_left_out(left_out) if left_out else ""
        _summary_file(index).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def describe(summary: dict[str, Any]) -> str:
    """Say what a scan has found in a few lines."""
    lines = [f"{summary['root']}: {summary['files']} videos, {summary['good']} good, {summary['bad']} bad"]
    if summary["left_out"]:
        lines.append(f"left out: {summary['left_out']}")
    for reason, count in _most(summary["reasons"]):
        lines.append(f"  {count:8d}  {printable_path(reason)}")
    if summary["cut_short"]:
        few = [f"{name} ({what})" for name, what in summary["cut_short"].items()]
        lines.append(f"{len(few)} of the good end in a part that does not decode: {printable_path(', '.join(few[:3]))}")
    lines.append(f"{summary['hours']:.1f} hours, {summary['frames']} frames")
    for title, key in (("short side", "short_sides"), ("frames/s", "fps"), ("codec", "codecs")):
        lines.append(f"{title:12s}" + ", ".join(f"{value}: {count}" for value, count in _most(summary[key])))
    if summary["not_square"]:
        ratios = {ratio: count for ratio, count in summary["sample_aspect_ratios"].items() if ratio != "1:1"}
        lines.append(
            f"{sum(ratios.values())} of the good have pixels that are not square"
            f" ({', '.join(f'{ratio}: {count}' for ratio, count in _most(ratios))}), such as"
            f" {printable_path(summary['not_square'])}; data.square_pixels scales them"
        )
    lines.append("seconds     " + ", ".join(f"{name}: {s:.1f}" for name, s in summary["durations_s"].items()))
    for place, split in summary["classes"].items():
        fewest, most = (f"{printable_path(name)}: {split['videos'][name]}" for name in (split["fewest"], split["most"]))
        lines.append(f"{printable_path(place)}: {len(split['videos'])} classes, fewest {fewest}, most {most}")
    lines.append(f"index       {summary['index']}")
    if summary["bad"]:
        lines.append(f"bad files   {_bad_list(Path(summary['index']))}")
    if summary["suspicious"]:
        lines.append(
            f"All {summary['files']} files fail for the same reason, so it may not be their fault: check the disk and"
            " the decoder, then scan again with --retry-bad."
        )
    if any(reason.startswith("took longer") for reason in summary["reasons"]):
        lines.append("What took too long may only be long: try a larger --time-limit, with --retry-bad.")
    return "\n".join(lines)


def _bad_list(index: Path) -> Path:
    return index.with_suffix(".bad.txt")


def _summary_file(index: Path) -> Path:
    return index.with_suffix(".summary.json")


def _decode(root: str, name: str, member: Member | None) -> Row:
    """Decode a file, or a member of a tar shard, and return its columns in the index."""
    with open_video(member or Path(root, name), "pyav", verify=True) as video:
        info, table, cut_short = asdict(video.info), video.table, video.cut_short
    info["sample_aspect_ratio"] = format_ratio(info["sample_aspect_ratio"])
    start, step, keyframes = (None, None, None) if table is None else (*table[1:3], table.keyframes.tolist())
    known = {key: None if value != value else value for key, value in info.items()}  # JSON has no nan
    return known | {"start": start, "step": step, "keyframes": keyframes, "cut_short": cut_short}


@contextmanager
def _locked(index: Path) -> Iterator[None]:
    """Keep other scans off an index; the system lets go of the lock even where this process is killed."""
    with ExitStack() as files:
        try:
            _lock(files.enter_context(index.with_name(f".{index.name}.lock").open("ab")))
        except BlockingIOError:
            raise ValueError(
                f"{index}: another scan is writing it; wait for its end, or name another --index"
            ) from None
        except OSError as error:
            raise OSError(f"{index}: cannot be written ({error.strerror}); name another place with --index") from error
        yield


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # on Windows, where nothing keeps a second scan off
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _prune(index: Path, stamps: Mapping[str, tuple[int, int]], retry_bad: bool) -> set[str]:
    """Leave in the index what still holds, and return of which files."""
    decoder = f"PyAV {version('av')}"
    lines = read_rows(index) if index.exists() else iter(())
    begun: tuple[bytes, Row] = b"", {HEADER: VERSION, "decoders": [decoder]}
    _, header = next(lines, begun)
    if decoder not in header["decoders"]:
        logger.warning("%s: was begun with %s; remove it to scan all with %s", index, header["decoders"][0], decoder)
        header["decoders"].append(decoder)
    kept: dict[str, bytes] = {}
    for line, row in lines:
        if stamps.get(row["path"]) == (row["bytes"], row["mtime_ns"]) and not (retry_bad and "error" in row):
            kept[row["path"]] = line
    unfinished = index.with_name(f".{index.name}.tmp")
    unfinished.write_bytes(b"".join((_line(header), *kept.values())))
    unfinished.replace(index)
    return set(kept)


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"  # ASCII: names that are no UTF-8 are escaped


def _rows(index: Path) -> Iterator[Row]:
    return (row for _, row in islice(read_rows(index), 1, None))


def _bad_lines(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        if "error" in row:
            path, reason = (text.translate({9: r"\t", 10: r"\n", 13: r"\r"}) for text in (row["path"], row["error"]))
            yield f"{path}\t{reason}\n"


def _summarize(rows: Iterable[Row]) -> dict[str, Any]:
    reasons, short_sides, rates, codecs = Counter[str](), Counter[int](), Counter[float](), Counter[str]()
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    cut_short: dict[str, str] = {}
    ratios, not_square = Counter[str](), ""
    seconds = array("d")
    files = frames = 0
    for row in rows:
        files += 1
        split, name = posixpath.split(posixpath.dirname(row["path"]))
        if name and not name.endswith(".tar"):
            classes[split or "."][name] += "error" not in row
        if "error" in row:
            reasons[row["error"]] += 1
            continue
        if row["cut_short"]:
            cut_short[row["path"]] = f"{row['num_frames']} frames, then {row['cut_short']}"
        frames += row["num_frames"]
        short_sides[min(row["height"], row["width"])] += 1
        codecs[row["codec"]] += 1
        if ratio := row.get("sample_aspect_ratio"):  # which indexes of earlier versions do not have
            ratios[ratio] += 1
            not_square = not_square or (row["path"] if ratio != "1:1" else "")
        if row["fps"] is not None:
            rates[round(row["fps"], 2)] += 1
            seconds.append(row["duration_s"])
    bad = reasons.total()
    spread = np.quantile(seconds, list(_QUANTILES.values())) if seconds else ()
    return {
        "files": files,
        "good": files - bad,
        "bad": bad,
        "reasons": dict(reasons.most_common()),
        "suspicious": files == bad > 1 and len(reasons) == 1,
        "cut_short": cut_short,
        "hours": sum(seconds) / 3600,
        "frames": frames,
        "short_sides": dict(sorted(short_sides.items())),
        "durations_s": dict(zip(_QUANTILES, map(float, spread), strict=False)),
        "fps": dict(sorted(rates.items())),
        "codecs": dict(codecs.most_common()),
        "sample_aspect_ratios": dict(ratios.most_common()),
        "not_square": not_square,
        "classes": {split: _class_counts(counts) for split, counts in sorted(classes.items())},
    }


def _class_counts(counts: Counter[str]) -> dict[str, Any]:
    order = counts.most_common()
    return {"fewest": order[-1][0], "most": order[0][0], "videos": dict(sorted(counts.items()))}


def _most(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    return Counter(counts).most_common(_SHOWN)
