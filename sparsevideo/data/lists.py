"""List files become rows of path, label and seconds; which format a file has, its content tells."""

import csv
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

KINETICS = "Kinetics csv"
_PATH_LABEL = ("path", "label")
_STARTS, _ENDS = ("start_s", "start", "time_start"), ("end_s", "end", "time_end")  # the first that is there counts
_NO_TEXT = re.compile("[\0\udc80-\udcff]")  # zeros are in UTF-16


class Row(NamedTuple):
    """One listed file."""

    line: int  # where it is listed, from 1; 0: it was found in a folder
    path: str  # posix; in a Kinetics csv the video's YouTube id
    label: str
    start_s: float = 0.0
    end_s: float = inf
    split: str = ""  # in a Kinetics csv, which may lack the label


def read_list(place: Path, root: Path, extensions: tuple[str, ...]) -> tuple[str, Iterator[Row]]:
    """Tell a list's format and read its rows.

    Every line that is not blank is a row: a path may start with any character, so there are no comments.

    Args:
        place: The list file.
        root: The folder that its paths are relative to.
        extensions: How the listed files may end.

    Raises:
        ValueError: The format is not supported; or, while the rows are taken, a line is malformed.
    """
    line, first = next(((line, text.strip()) for line, text in enumerate(_lines(place), 1) if text.strip()), (1, ""))
    if re.match(r'\{\s*("|$)', first):
        return "JSON lines", _json_rows(place)
    for delimiter in ",\t;":
        header = [field.strip(' "').lower() for field in first.split(delimiter)]
        if {*_PATH_LABEL} <= {*header} or "youtube_id" in header:
            name = f"csv with {', '.join(header)}" if "path" in header else KINETICS
            return name, _rows(place, _separated(place, delimiter), header)
    if first.lower().split() == [*_PATH_LABEL]:
        return "path label", _rows(place, _spaced(place), _PATH_LABEL)
    if first.count("\t") == 1:
        return "path, tab, label", _rows(place, _separated(place, "\t"))
    path, *words = first.rsplit(maxsplit=2) or [""]
    if "," in first and not first.rsplit(maxsplit=1)[0].strip('"').lower().endswith(extensions):
        return "path,label", _rows(place, _separated(place, ","))
    if len(words) == 2 and all(word.isdecimal() for word in words) and not (root / f"{path} {words[0]}").exists():
        raise ValueError(
            f"{place}, line {line}: {first!r} ends in two numbers. Folders of frames (`path num_frames label`) and "
            "several labels of one file are not supported; list the files themselves, as `path label`"
        )
    return "path label", _rows(place, _spaced(place))


def _lines(place: Path) -> Iterator[str]:
    """Yield a text's lines, with their ends."""
    # Undecodable bytes are let through to here, where it is known which line they stand in.
    with place.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, text in enumerate(file, start=1):
            if _NO_TEXT.search(text):
                raise ValueError(f"{place}, line {line}: is no text in UTF-8; save the list as such")
            yield text


def _separated(place: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's fields and the line where it starts; rows of nothing are skipped."""
    reader = csv.reader(_lines(place), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{place}, line {line}: is no csv ({error}); look for a quote that is not closed"
            ) from error
        if fields is None:
            return
        if any(fields):
            yield line, [field.strip() for field in fields]


def _spaced(place: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line's path, which may hold spaces or stand in quotes, and label."""
    for line, text in enumerate(_lines(place), start=1):
        if fields := text.strip().rsplit(maxsplit=1):
            if re.fullmatch('".+"', fields[0]):
                fields[0] = fields[0][1:-1].replace('""', '"')
            yield line, fields


def _rows(place: Path, table: Iterator[tuple[int, list[str]]], header: Sequence[str] = ()) -> Iterator[Row]:
    """Name the fields by the header, which the table starts with, or as path and label."""
    if header:
        next(table)
    columns = header or _PATH_LABEL
    for line, fields in table:
        if len(fields) != len(columns):
            wanted = ", ".join(header) or "a path and a label"
            advice = "" if header else "; more columns need a header"
            raise ValueError(f"{place}, line {line}: wants {wanted}, got {' '.join(fields)!r}{advice}")
        yield _row(place, line, dict(zip(columns, fields, strict=True)))


def _json_rows(place: Path) -> Iterator[Row]:
    for line, text in enumerate(_lines(place), start=1):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}, line {line}: is no JSON ({error})") from error
        if not isinstance(cells, dict):
            raise ValueError(f"{place}, line {line}: wants a JSON object, got {text.strip()!r}")
        yield _row(place, line, cells)


def _row(place: Path, line: int, cells: Mapping[str, Any]) -> Row:
    """Check what a row's columns hold."""
    start_s, end_s = _seconds(place, line, cells, _STARTS, 0.0), _seconds(place, line, cells, _ENDS, inf)
    if not 0 <= start_s < end_s:  # which nan is not either
        raise ValueError(f"{place}, line {line}: wants 0 <= start < end in seconds, got {start_s} and {end_s}")
    if "path" not in cells and "youtube_id" in cells:
        return Row(line, cells["youtube_id"], cells.get("label", ""), start_s, end_s, cells.get("split", ""))
    path, label = cells.get("path"), cells.get("label")
    label = str(label).strip() if isinstance(label, str | int) and not isinstance(label, bool) else ""
    if not (isinstance(path, str) and path and label):
        raise ValueError(f"{place}, line {line}: wants a path and a label, got {' '.join(map(str, cells.values()))!r}")
    return Row(line, posixpath.normpath(path), label, start_s, end_s)


def _seconds(place: Path, line: int, cells: Mapping[str, Any], columns: Sequence[str], default: float) -> float:
    value = next((cells[column] for column in columns if cells.get(column) not in (None, "")), default)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}, line {line}: {value!r} is no number of seconds") from error


def legible(name: str) -> str:
    r"""Spell a file's name so that it can be printed and saved, also where it is no UTF-8 on the disk.

    Example:
        >>> legible("caf\udce9")
        'caf\\xe9'
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def few(names: Sequence[str], most: int = 5) -> str:
    """Name the first ones, and how many there are if that is not all."""
    return legible(", ".join(names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")
