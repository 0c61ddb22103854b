"""Make lists and small copies, which decode quickly, of the videos in the official Kinetics csv files.

    python tools/prepare_kinetics.py downloads kinetics400 train.csv val.csv; sparsevideo data scan kinetics400/256

`kinetics400/256/` then holds copies with a short side of 256 pixels and for each csv a list of the copies, `train.csv`,
and `train.lacking.txt`: rows without a file and files that do not decode. If any are lacking, the exit code is 3.
Published Kinetics-400 scores depend on the size of the copies: 256, 320, or 340x256 at any aspect ratio. A second run
continues the first one, and copies changed videos again.
"""

import argparse
import csv
import logging
import sys
from pathlib import Path, PurePosixPath

from sparsevideo.data.folders import EXTENSIONS, walk
from sparsevideo.data.kinetics import find_kinetics
from sparsevideo.data.lists import read_list
from sparsevideo.data.records import select_split
from sparsevideo.io.writer import check_codecs, resize_video
from sparsevideo.utils.processes import ChildError, run_all


def is_copied(source: Path, copy: Path) -> bool:
    """Tell whether a copy exists that is not older than its source."""
    return copy.exists() and copy.stat().st_mtime >= source.stat().st_mtime


def prepare(args: argparse.Namespace, out: Path, listing: Path, names: list[str]) -> int:
    """Make the copies and the lists of one csv; return the number of rows and files that are lacking."""
    listed = list(read_list(listing, args.videos, EXTENSIONS["video"]).rows)
    rows = list(find_kinetics(listing, select_split(listing, listed, listing.stem), names))
    copies = {row.path: PurePosixPath(row.path).with_suffix(".mp4") for row in rows if row.path}
    pairs = [(args.videos / old, out / new) for old, new in copies.items()]
    jobs = [(*pair, args.short_side) for pair in pairs if not is_copied(*pair)]
    kw = {"num_workers": args.workers, "timeout_s": args.time_limit, "num_done": len(copies) - len(jobs)}
    ends = run_all(resize_video, jobs, description=listing.stem, **kw)
    lacking = [f"{job[0]}\t{end}\n" for job, end in ends if isinstance(end, ChildError)]
    lines = listing.read_text(encoding="utf-8-sig").split("\n")
    lacking += [f"{lines[row.line_number - 1]}\tno file\n" for row in rows if not row.path]
    good = [(copies[row.path], row.label) for row in rows if row.path and (out / copies[row.path]).exists()]
    with (out / f"{listing.stem}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label"), *good])
    (out / f"{listing.stem}.lacking.txt").write_text("".join(lacking), encoding="utf-8")
    print(f"{listing.stem}: {len(good)} of {len(rows)} listed are there, {len(lacking)} are lacking")
    return len(lacking)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder with the videos, at any depth")
    parser.add_argument("out", type=Path, help="folder for the copies and lists, outside of `videos`")
    parser.add_argument("lists", type=Path, nargs="+", help="official csv files, each named after its split")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--workers", type=int, help="child processes; by default one for each core")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for one video")
    args = parser.parse_args()
    if args.out.resolve().is_relative_to(args.videos.resolve()):
        parser.error(f"{args.out} is in {args.videos}, so the copies would be taken for videos; name another folder")
    if args.short_side < 2 or args.short_side % 2:
        parser.error(f"--short-side must be an even number of pixels >= 2, got {args.short_side}")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        check_codecs()
        (out := args.out / str(args.short_side)).mkdir(parents=True, exist_ok=True)
        names = [name for _, names, _ in walk(args.videos, args.videos, "video") for name in names]
        sys.exit(3 if sum([prepare(args, out, listing, names) for listing in args.lists]) else 0)
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
