"""`sparsevideo inflate` as a script, for launchers: python tools/inflate.py IMAGE_WEIGHTS --out VIDEO_WEIGHTS."""

import sys

from sparsevideo.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["inflate", *sys.argv[1:]]))
