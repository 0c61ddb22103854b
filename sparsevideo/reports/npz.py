"""Dataclasses of arrays and texts as npz files, which are written atomically and read without unpickling."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparsevideo.utils.files import atomic_path

Record = TypeVar("Record")


def write_npz(path: Path, record: Any) -> None:
    """Write a dataclass whose fields are arrays, texts or lists of texts; fields that are None are left out.

    The folder must exist.
    """
    values = {field.name: value for field in fields(record) if (value := getattr(record, field.name)) is not None}
    arrays: dict[str, Any] = {
        name: value if isinstance(value, np.ndarray) else np.array(value, dtype=np.str_)
        for name, value in values.items()
    }
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: Path, kind: type[Record], content: str, advice: str) -> Record:
    """Read a file that `write_npz` has written.

    Args:
        path: The file, which exists.
        kind: The dataclass.
        content: Expected content, for the error message.
        advice: Advice at the end of the error message.

    Raises:
        ValueError: The file is truncated or corrupt, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [field.name for field in fields(kind) if field.name in file or field.default is MISSING]  # type: ignore[arg-type]
            arrays = {name: file[name] for name in names}
        return kind(**{name: array.tolist() if array.dtype.kind == "U" else array for name, array in arrays.items()})
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not {content} ({reason}); {advice}") from error
