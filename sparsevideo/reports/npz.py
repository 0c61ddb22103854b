"""A record of arrays and texts in an npz file: whole or not there, and never unpickled."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Record = TypeVar("Record")


def write_npz(path: Path, record: Any) -> None:
    """Write a dataclass whose fields are arrays, texts or lists of texts; its folder must exist.

    A field that is None is left out.
    """
    values = {field.name: value for field in fields(record) if (value := getattr(record, field.name)) is not None}
    arrays: dict[str, Any] = {
        name: value if isinstance(value, np.ndarray) else np.array(value, dtype=np.str_)
        for name, value in values.items()
    }
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.replace(path)


def read_npz(path: Path, kind: type[Record], what: str, advice: str) -> Record:
    """Read what `write_npz` has written.

    Args:
        path: The file, which exists.
        kind: The dataclass.
        what: What the file should be, in the words of an error.
        advice: What to do where it is not.

    Raises:
        ValueError: The file is torn, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [field.name for field in fields(kind) if field.name in file or field.default is MISSING]  # type: ignore[arg-type]
            arrays = {name: file[name] for name in names}
        return kind(**{name: array.tolist() if array.dtype.kind == "U" else array for name, array in arrays.items()})
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not {what} ({reason}); {advice}") from error
