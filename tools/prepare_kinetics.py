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
from pathlib import Path

from sparsevideo.data.folders import EXTENSIONS
from sparsevideo.data.kinetics import find_kinetics
from sparsevideo.data.lists import read_list
from sparsevideo.data.records import select_split
from sparsevideo.data.resized import find_videos, resize_all


def prepare(args: argparse.Namespace, out: Path, listing: Path, names: list[str]) -> int:
    """Make the copies and the lists of one csv; return the number of rows and files that are lacking."""
    listed = list(read_list(listing, args.videos, EXTENSIONS["video"]).rows)
    rows = list(find_kinetics(listing, select_split(listing, listed, listing.stem), names))
    chosen = list(dict.fromkeys(row.path for row in rows if row.path))
    kw = {"description": listing.stem, "num_workers": args.workers, "timeout_s": args.time_limit}
    copies, failed = resize_all(args.videos, out, chosen, args.short_side, **kw)
    lines = listing.read_text(encoding="utf-8-sig").split("\n")
    lacking = [f"{args.videos / name}\t{reason}\n" for name, reason in failed.items()]
    lacking += [f"{lines[row.line_number - 1]}\tno file\n" for row in rows if not row.path]
    good = [(copies[row.path], row.label) for row in rows if row.path in copies]
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
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        names, out = find_videos(args.videos), args.out / str(args.short_side)
        sys.exit(3 if sum([prepare(args, out, listing, names) for listing in args.lists]) else 0)
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
