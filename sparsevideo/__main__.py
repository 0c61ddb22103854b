"""`python -m sparsevideo VERB ...`, which is also what torchrun launches."""

from sparsevideo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
