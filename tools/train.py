"""`sparsevideo train` as a script, for launchers: torchrun --nproc-per-node 2 tools/train.py --config C --out RUN."""

import sys

from sparsevideo.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
