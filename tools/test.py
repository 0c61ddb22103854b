"""`sparsevideo test` as a script, for launchers: torchrun --nproc-per-node 2 tools/test.py CHECKPOINT --views 4x3."""

import sys

from sparsevideo.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["test", *sys.argv[1:]]))
