"""Read list files as rows of path, label and segment. The content of a file decides its format; see docs/lists.md."""

import csv
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

KINETICS = "Kinetics csv"
MAX_MESSAGE = 300  # characters of an error message

_NO_TEXT = re.compile("[\0\udc80-\udcff]")  # zeros are in UTF-16
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")  # HH:MM:SS.ff, as EPIC-Kitchens writes times
_TWO_COLUMNS = ("path", "label")

# The names that lists use for a column, in lower case; of several in one list the first one here counts.
_COLUMNS = {
    "path": (
        *("path", "file_path", "filepath", "video_path", "image_path", "img_path", "clip_path", "relative_path"),
        *("file", "file_name", "filename", "video_file", "video_name", "clip_name", "image_name"),
        *("video", "clip", "image"),
    ),
    "youtube_id": ("youtube_id",),
    "video_id": ("video_id", "vid_name", "vid", "clip_id", "id"),
    "label": (
        *("template", "label", "class", "class_name", "classname", "label_name", "category", "category_name"),
        *("action", "action_name", "action_class", "target", "class_id", "label_id", "category_id", "target_id"),
        *("class_index", "class_idx", "label_index", "label_idx"),
    ),
    "start_s": (
        *("start_s", "start", "start_sec", "start_secs", "start_second", "start_seconds", "start_time", "time_start"),
        *("start_timestamp", "t_start"),
    ),
    "end_s": (
        *("end_s", "end", "end_sec", "end_secs", "end_second", "end_seconds", "end_time", "time_end"),
        *("stop_s", "stop", "stop_sec", "stop_secs", "stop_second", "stop_seconds", "stop_time", "time_stop"),
        *("end_timestamp", "stop_timestamp", "t_end"),
    ),
    "start_frame": ("start_frame", "frame_start", "startframe"),
    "stop_frame": ("stop_frame", "end_frame", "frame_stop", "frame_end", "stopframe", "endframe"),
    "split": ("split", "subset"),
}
# EPIC-Kitchens has no column that is the label of an action: the settings must choose one of these.
_POSSIBLE_LABELS = ("verb", "verb_class", "noun", "noun_class")
# Columns of well-known lists that neither name a file nor a class nor a part of a video.
_IGNORED = {
    *("", "index", "unnamed:_0"),  # what pandas writes before the first column
    *("fold", "fps", "num_frames", "n_frames", "frames", "duration", "duration_s", "length", "width", "height"),
    *("source", "url", "md5", "dataset", "is_cc", "description", "caption"),
    *("participant_id", "narration_id", "narration", "narration_timestamp", "all_nouns", "all_noun_classes"),
    *("placeholders",),  # Something-Something
}
_KNOWN = {*chain.from_iterable(_COLUMNS.values()), *_POSSIBLE_LABELS, *_IGNORED}
_NAMES_A_FILE = {name for role in ("path", "youtube_id", "video_id") for name in _COLUMNS[role]}
_ADVICE = "name the columns path, label, start_s and end_s, or start_frame and stop_frame; docs/lists.md has all names"


class Row(NamedTuple):
    """One listed file."""

    where: str  # the list and the line or entry, for messages; "": the file was found in a folder
    line: int  # of the list, from 1, or the entry of a JSON array; 0: the file was found in a folder
    path: str  # posix, or the id of a video
    label: str  # "" if the list does not say
    start: float = 0.0
    end: float = inf
    in_frames: bool = False  # whether start and end are frame indices; else they are seconds
    split: str = ""


class Listing(NamedTuple):
    """A list file before its rows are read."""

    form: str  # for the log
    rows: Iterator[Row]
    key: Literal["path", "youtube_id", "video_id"] = "path"  # what `Row.path` holds
    has_split: bool = False


@contextmanager
def short_messages() -> Iterator[None]:
    """Keep errors about lists to one line of at most `MAX_MESSAGE` characters, whatever the lists hold."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).splitlines())
        if len(message) <= MAX_MESSAGE and message == str(error):
            raise
        if len(message) > MAX_MESSAGE:  # the start names the list, the end says what to do
            message = f"{message[: MAX_MESSAGE // 2]} ... {message[5 - MAX_MESSAGE // 2 :]}"
        raise (type(error) if isinstance(error, OSError) else ValueError)(message) from error


def read_list(list_path: Path, root: Path, extensions: tuple[str, ...], label_column: str | None = None) -> Listing:
    """Recognize the format of a list and read its rows.

    Every line that is not blank is a row: a path may start with any character, so there are no comments.

    Args:
        list_path: The list file.
        root: The folder that its paths are relative to.
        extensions: Usual endings of the listed files.
        label_column: The column that holds the labels; None finds it by its name.

    Raises:
        ValueError: The format is not supported; or, while the rows are taken, a line is malformed.
    """
    line, first = next(
        ((line, text.strip()) for line, text in enumerate(_lines(list_path), 1) if text.strip()), (1, "")
    )
    if re.match(r'\{\s*("|$)|\[\s*([\[{"]|\]?$)', first):
        return _json_listing(list_path, first, label_column)

    def is_file(text: str) -> bool:
        return os.path.isfile(root / text)  # noqa: PTH113  # also false for what cannot be a path

    for delimiter in ",\t;":
        header = [field.strip(' "') for field in first.split(delimiter)]
        keys = {_key(field) for field in header}
        labels = {*_COLUMNS["label"], label_column}
        names_columns = keys & _NAMES_A_FILE if len(header) > 1 else keys <= _NAMES_A_FILE
        is_header = names_columns or (len(header) > 1 and keys & labels)
        if is_header and not any(field.lower().endswith(extensions) or is_file(field) for field in header):
            roles = _roles(f"{list_path}, line {line}", header, label_column)
            key = _file_key(roles)
            form = KINETICS if key == "youtube_id" else f"csv with {', '.join(header).lower()}"
            return Listing(
                form, _rows(list_path, _separated(list_path, delimiter), header, roles), key, "split" in roles
            )
    if first.lower().split() == [*_TWO_COLUMNS]:
        return Listing("path label", _rows(list_path, _spaced(list_path), _TWO_COLUMNS))
    path, *words = first.rsplit(maxsplit=2) or [""]
    if is_file(_unquote(first)) or (path and not words and "," not in path):
        table = ((line, [_unquote(text.strip())]) for line, text in enumerate(_lines(list_path), 1) if text.strip())
        return Listing("paths without labels", _rows(list_path, table, ("path",), has_header=False))
    if first.count("\t") == 1:
        return Listing("path, tab, label", _rows(list_path, _separated(list_path, "\t"), has_header=False))
    if "," in first and not first.rsplit(maxsplit=1)[0].strip('"').lower().endswith(extensions):
        return Listing("path,label", _rows(list_path, _separated(list_path, ","), has_header=False))
    if len(words) == 2 and all(word.isdecimal() for word in words) and not (root / f"{path} {words[0]}").exists():
        raise ValueError(
            f"{list_path}, line {line}: {_quote(first)} ends in two numbers. Folders of frames (`path num_frames"
            " label`) and several labels of one file are not supported; list the files themselves, as `path label`"
        )
    return Listing("path label", _rows(list_path, _spaced(list_path), has_header=False))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names in label order: one name a line, or a csv of `id,name` with ids from 0.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A name is missing or there twice, or the ids are not 0, 1, 2, ...
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class names; set data.classes to one, or to null")
    names = path.read_text("utf-8-sig", "backslashreplace").rstrip().splitlines()
    header = [_key(field) for field in next(csv.reader(names[:1]), [])]
    if header[:2] == ["id", "name"] or header[:2] == ["id", "key"]:  # of Kinetics and of EPIC-Kitchens
        rows = list(csv.reader(names[1:]))
    elif all(re.match(r"\d+\s*,", name) for name in names):
        rows = list(csv.reader(names))
    else:
        rows = [[str(index), name] for index, name in enumerate(names)]
    name_of = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
    ordered = tuple(name_of.get(str(index), "") for index in range(len(rows)))
    if len({*ordered, ""}) <= len(ordered):
        raise ValueError(f"{path}: a name is missing or there twice; write one class a line, or `id,name` from id 0 on")
    return ordered


def select_split(list_path: Path, rows: Sequence[Row], split: str | None) -> Sequence[Row]:
    """Take the rows of one split. If all rows are of one split, the file was chosen for it, whatever its name."""
    usual = {"validate": "val", "validation": "val", "valid": "val", "training": "train", "testing": "test"}
    splits = {usual.get(row.split.lower(), row.split.lower()) for row in rows}
    if len(splits) < 2:
        return rows
    if split not in splits:
        raise ValueError(f"{list_path}: lists {', '.join(sorted(splits))} together, and {split} is none of them")
    return [row for row in rows if usual.get(row.split.lower(), row.split.lower()) == split]


def _lines(list_path: Path) -> Iterator[str]:
    """Yield the lines of a text, with their ends."""
    # Undecodable bytes are let through to here, where it is known which line they stand in.
    with list_path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, text in enumerate(file, start=1):
            if _NO_TEXT.search(text):
                raise ValueError(f"{list_path}, line {line}: not text in UTF-8; save the list as UTF-8")
            yield text


def _separated(list_path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row and the line on which it starts; empty rows are skipped."""
    reader = csv.reader(_lines(list_path), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{list_path}, line {line}: not a csv ({error}); look for a quote that is not closed"
            ) from error
        if fields is None:
            return
        if any(fields):
            yield line, [field.strip() for field in fields]


def _spaced(list_path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the path of each line, which may hold spaces or stand in quotes, and the label."""
    for line, text in enumerate(_lines(list_path), start=1):
        if fields := text.strip().rsplit(maxsplit=1):
            yield line, [_unquote(fields[0]), *fields[1:]]


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if re.fullmatch('".+"', text) else text


def _rows(
    list_path: Path,
    table: Iterator[tuple[int, list[str]]],
    columns: Sequence[str] = _TWO_COLUMNS,
    roles: Mapping[str, str] | None = None,
    *,
    has_header: bool = True,
) -> Iterator[Row]:
    """Name the fields of a table by its columns."""
    if has_header:
        next(table)
    for line, fields in table:
        where = f"{list_path}, line {line}"
        if len(fields) != len(columns):
            expected = ", ".join(columns).lower() if has_header else "a path and a label"
            advice = "" if has_header else "; more columns need a header"
            raise ValueError(f"{where}: must have {expected}, got {_quote(' '.join(fields))}{advice}")
        yield _row(where, line, dict(zip(columns, fields, strict=True)), roles or {name: name for name in columns})


def _json_listing(list_path: Path, first: str, label_column: str | None) -> Listing:
    """Recognize JSON lines, a JSON array of records, or a JSON object of videos by their ids."""
    content = _parse_json(first)
    if not (isinstance(content, dict) and _KNOWN & {*map(_key, content)}):
        try:
            content = json.loads("".join(_lines(list_path)))
        except json.JSONDecodeError as error:
            if not isinstance(content, dict):
                raise ValueError(f"{list_path}, line {error.lineno}: not JSON ({error.msg}); correct it") from error
        else:
            entries = _json_entries(list_path, content)
            return _json_rows("JSON array", entries, label_column)
    lines = ((f"{list_path}, line {line}", line, text) for line, text in enumerate(_lines(list_path), 1))
    parsed = ((where, line, _parse_line(where, text)) for where, line, text in lines if text.strip())
    return _json_rows("JSON lines", parsed, label_column)


def _parse_json(text: str) -> Any:
    """Parse a text; return None if it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _parse_line(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}); correct it") from error


def _json_entries(list_path: Path, content: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield the records of a JSON text: where each stands, as words and as a number, and what it holds."""
    if isinstance(content, list):
        records = content
    else:
        videos = content.get("database", content) if isinstance(content, dict) else None
        if not isinstance(videos, dict) or not all(isinstance(v, dict) and "annotations" in v for v in videos.values()):
            raise ValueError(
                f"{list_path}: is one JSON object, not keyed by video ids with `annotations` as those of Kinetics and"
                ' ActivityNet are; write an array of records such as {"path": "a.mp4", "label": "juggling"}'
            )
        records = [record for name, video in videos.items() for record in _annotated(name, video)]
    for number, record in enumerate(records, start=1):
        where = f"{list_path}, entry {number} of the JSON text"
        if isinstance(record, str):
            record = {"path": record}
        elif isinstance(record, list) and len(record) == 2:
            record = dict(zip(_TWO_COLUMNS, record, strict=True))
        yield where, number, record


def _annotated(name: str, video: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for each annotation of a video; Kinetics has one, whose file is cut to it."""
    is_cut = isinstance(video["annotations"], dict)
    for annotation in [video["annotations"]] if is_cut else video["annotations"]:
        start, end = annotation.get("segment") or (None, None)
        yield {
            "youtube_id" if is_cut else "video_id": name,
            "label": annotation.get("label"),
            "start_s": start,
            "end_s": end,
            "split": video.get("subset", ""),
        }


def _json_rows(form: str, records: Iterable[tuple[str, int, Any]], label_column: str | None) -> Listing:
    """Make rows of JSON records. The first one tells which key names the file."""
    roles_of: dict[tuple[str, ...], dict[str, str]] = {}

    def roles(where: str, record: Any) -> dict[str, str]:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: must be a JSON object, got {_quote(json.dumps(record))}")
        names = tuple(record)
        if names not in roles_of:
            roles_of[names] = _roles(where, names, label_column)
            if len({*map(_file_key, roles_of.values())}) > 1:
                raise ValueError(f"{where}: names its file by another key than the first entry; use one key for all")
        return roles_of[names]

    records = iter(records)
    first = next(records, None)
    if first is None:
        return Listing(form, iter(()))
    first_roles = roles(first[0], first[2])
    rows = (_row(where, line, record, roles(where, record)) for where, line, record in chain([first], records))
    key = _file_key(first_roles)
    return Listing("Kinetics JSON" if key == "youtube_id" else form, rows, key, "split" in first_roles)


def _key(name: str) -> str:
    """Return the name of a column as `_COLUMNS` has it."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _roles(where: str, names: Sequence[str], label_column: str | None) -> dict[str, str]:
    """Find which column has which role: keys are those of `_COLUMNS`, values are names as the list has them.

    Raises:
        ValueError: A column is unknown or there twice, or none of them names the file.
    """
    name_of = {_key(name): name for name in names}
    if len(name_of) < len(names):
        name = Counter(map(_key, names)).most_common(1)[0][0]
        raise ValueError(f"{where}: column {_quote(name)} is there twice; keep one of them")
    if label_column is not None and _key(label_column) not in name_of:
        raise ValueError(f"{where}: no column {label_column}, which data.label_column names; there are {few(names)}")
    known = _KNOWN | {_key(label_column or "")}
    if unknown := [name for key, name in name_of.items() if key not in known]:
        raise ValueError(f"{where}: unknown column {_quote(few(unknown, 3))}; remove it, or {_ADVICE}")
    roles = {
        role: name_of[present[0]]
        for role, aliases in _COLUMNS.items()
        if (present := [alias for alias in aliases if alias in name_of])
    }
    if label_column is not None:
        roles["label"] = name_of[_key(label_column)]
    elif "label" not in roles and (possible := [name_of[name] for name in _POSSIBLE_LABELS if name in name_of]):
        raise ValueError(f"{where}: no column is the label; set data.label_column to one of {', '.join(possible)}")
    if not roles.keys() & {"path", "youtube_id", "video_id"}:
        raise ValueError(f"{where}: no column names the file, among {_quote(few(names))}; {_ADVICE}")
    seconds, frames = roles.keys() & {"start_s", "end_s"}, roles.keys() & {"start_frame", "stop_frame"}
    if frames and len(seconds) == 1:
        raise ValueError(f"{where}: one end of a segment is in seconds, the other in frames; give both in one unit")
    return roles


def _file_key(roles: Mapping[str, str]) -> Literal["path", "youtube_id", "video_id"]:
    return "path" if "path" in roles else "youtube_id" if "youtube_id" in roles else "video_id"


def _row(where: str, line: int, cells: Mapping[str, Any], roles: Mapping[str, str]) -> Row:
    """Check the cells of a row."""

    def cell(role: str) -> Any:
        return cells[roles[role]] if role in roles else None

    key = _file_key(roles)
    path, label = cell(key), cell("label")
    has_label = isinstance(label, str | int) and not isinstance(label, bool)
    if not (isinstance(path, str) and path) or not (has_label or label is None):
        raise ValueError(
            f"{where}: must have a path and a label, which is a name or a whole number, got"
            f" {_quote(' '.join(map(str, cells.values())))}"
        )
    label = str(label).strip() if has_label else ""
    if roles.get("label") and _key(roles["label"]) == "template":
        label = re.sub(r"[\[\]]", "", label)  # the classes of Something-Something are named without the brackets
    # Seconds come first: EPIC-Kitchens has both, and its frame numbers are those of frames extracted at another rate.
    in_frames = not roles.keys() & {"start_s", "end_s"} and bool(roles.keys() & {"start_frame", "stop_frame"})
    start, end = ("start_frame", "stop_frame") if in_frames else ("start_s", "end_s")
    parse, unit = (_frame, "frames") if in_frames else (_seconds, "seconds")
    span = parse(where, cell(start), 0.0), parse(where, cell(end), inf)
    if not 0 <= span[0] < span[1]:  # which nan is not either
        raise ValueError(f"{where}: must have 0 <= start < end in {unit}, got {span[0]:g} and {span[1]:g}")
    if key == "path":
        path = posixpath.normpath(path)
    return Row(where, line, path, label, *span, in_frames, str(cell("split") or ""))


def _seconds(where: str, value: Any, default: float) -> float:
    """Read seconds, plain or as HH:MM:SS.ff."""
    if value in (None, ""):
        return default
    if clock := _CLOCK.fullmatch(str(value).strip()):
        hours, minutes, seconds = clock.groups()
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {_quote(str(value))} is not a number of seconds or HH:MM:SS") from error


def _frame(where: str, value: Any, default: float) -> float:
    if value in (None, ""):
        return default
    if re.fullmatch(r"-?\d{1,15}", text := str(value).strip()):
        return float(text)
    raise ValueError(f"{where}: {_quote(text)} is not a frame index; write a whole number that counts from 0")


def _quote(text: str) -> str:
    """Quote a part of a list, shortened."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


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
