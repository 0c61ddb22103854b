"""Paths and names in messages."""

import os
from collections.abc import Sequence


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
