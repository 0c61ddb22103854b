"""Files that appear whole, and their names in messages."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_path(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` at the end, or remove it after an exception.

    Args:
        path: The file to write. Its folder must exist. An older file stays until the new one is complete.
        unique: Use another temporary name in each call, for a file that several processes may write at once. Without
            it, the remains of a killed process are overwritten by the next call.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp" if unique else f".{path.name}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def printable_path(name: str) -> str:
    r"""Spell a file's name so that it can be printed and saved, also where it is no UTF-8 on the disk.

    Example:
        >>> printable_path("caf\udce9")
        'caf\\xe9'
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def abbreviate(names: Sequence[str], most: int = 5) -> str:
    """Name the first ones, and how many there are if that is not all."""
    return printable_path(", ".join(names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")
