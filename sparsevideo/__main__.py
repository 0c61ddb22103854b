"""Entry point of `python -m sparsevideo COMMAND ...` and `torchrun -m sparsevideo`."""

from sparsevideo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
