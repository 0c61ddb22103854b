"""From the official Kinetics csv files and a folder of videos to our lists and to small copies, which decode quickly.

    python tools/prepare_kinetics.py downloads kinetics400 train.csv val.csv; sparsevideo data scan kinetics400/256

Leaves in `kinetics400/256/` copies with a short side of 256 pixels (Kinetics-400 scores are from copies of 256 or 320,
or of 340x256 whatever the aspect ratio, and depend on it) and for each csv our list `train.csv` of what there is, and
`train.lacking.txt`: rows without a file and files that do not decode; with any, it exits with 3. It can be
resumed, and makes a copy again where the video has changed since.
"""

import argparse
import csv
import logging
import sys
from pathlib import Path, PurePosixPath

from sparsevideo.data.kinetics import join_files
from sparsevideo.data.lists import read_list, select_split
from sparsevideo.data.records import EXTENSIONS, walk
from sparsevideo.io.writer import check_codecs, resize_video
from sparsevideo.utils.processes import ChildError, run_all


def is_copied(source: Path, copy: Path) -> bool:
    """Whether there is a copy of what the source holds now, for all its time tells."""
    return copy.exists() and copy.stat().st_mtime >= source.stat().st_mtime


def prepare(args: argparse.Namespace, out: Path, listing: Path, names: list[str]) -> int:
    """Make the copies and the lists of one csv; returns how much is lacking."""
    listed = list(read_list(listing, args.videos, EXTENSIONS["video"]).rows)
    rows = list(join_files(listing, select_split(listing, listed, listing.stem), names))
    copies = {row.path: PurePosixPath(row.path).with_suffix(".mp4") for row in rows if row.path}
    pairs = [(args.videos / old, out / new) for old, new in copies.items()]
    jobs = [(*pair, args.short_side) for pair in pairs if not is_copied(*pair)]
    kw = {"num_workers": args.workers, "timeout_s": args.time_limit, "num_done": len(copies) - len(jobs)}
    ends = run_all(resize_video, jobs, description=listing.stem, **kw)
    lacking = [f"{job[0]}\t{end}\n" for job, end in ends if isinstance(end, ChildError)]
    lines = listing.read_text(encoding="utf-8-sig").split("\n")
    lacking += [f"{lines[row.line - 1]}\tno file\n" for row in rows if not row.path]
    good = [(copies[row.path], row.label) for row in rows if row.path and (out / copies[row.path]).exists()]
    with (out / f"{listing.stem}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label"), *good])
    (out / f"{listing.stem}.lacking.txt").write_text("".join(lacking), encoding="utf-8")
    print(f"{listing.stem}: {len(good)} of {len(rows)} listed are there, {len(lacking)} are lacking")
    return len(lacking)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder with the videos, at any depth")
    parser.add_argument("out", type=Path, help="folder to make, outside of it")
    parser.add_argument("lists", type=Path, nargs="+", help="official csv files, each named after its split")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--workers", type=int, help="child processes; by default one for each core")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for one video")
    args = parser.parse_args()
    if args.out.resolve().is_relative_to(args.videos.resolve()):
        parser.error(f"{args.out} is in {args.videos}, where the copies would be taken for videos; name another")
    if args.short_side < 2 or args.short_side % 2:
        parser.error(f"--short-side is an even number of pixels, got {args.short_side}")
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        check_codecs()
        (out := args.out / str(args.short_side)).mkdir(parents=True, exist_ok=True)
        names = [name for _, names, _ in walk(args.videos, args.videos, "video") for name in names]
        sys.exit(3 if sum([prepare(args, out, listing, names) for listing in args.lists]) else 0)
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
