"""Write files atomically, hash them, and print file names."""

import hashlib
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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files in a folder, in hex."""
    digest = hashlib.sha256()
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def printable_path(name: str) -> str:
    r"""Escape the bytes of a file name that are not UTF-8, so that it can be printed and saved.

    Example:
        >>> printable_path("caf\udce9")
        'caf\\xe9'
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def abbreviate(names: Sequence[str], max_names: int = 5) -> str:
    """Join the first names; append their total number if names are left out."""
    end = f", ... ({len(names)} in all)" if len(names) > max_names else ""
    return printable_path(", ".join(names[:max_names])) + end
