"""Read list files as rows of path, label and segment. The content of a file decides its format; see docs/lists.md."""

import csv
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from sparsevideo.utils.files import abbreviate

MAX_MESSAGE = 300  # characters of an error message

Key: TypeAlias = Literal["path", "youtube_id", "video_id"]

_NO_TEXT = re.compile("[\0\udc80-\udcff]")  # zeros are in UTF-16
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")  # HH:MM:SS.ff, as EPIC-Kitchens writes times
_TWO_COLUMNS = ("path", "label")
_KEYS: tuple[Key, ...] = ("path", "youtube_id", "video_id")  # of several in one list, the first one names the file
_SECONDS = ("_s", "", "_sec", "_secs", "_second", "_seconds", "_time", "_timestamp")

# The names that lists use for a column, in lower case. If a list has several, the first one here counts.
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
    "start_s": (*(f"start{unit}" for unit in _SECONDS), "time_start", "t_start"),
    "end_s": (*(f"{word}{unit}" for word in ("end", "stop") for unit in _SECONDS), "time_end", "time_stop", "t_end"),
    "start_frame": ("start_frame", "frame_start", "startframe"),
    "stop_frame": ("stop_frame", "end_frame", "frame_stop", "frame_end", "stopframe", "endframe"),
    "split": ("split", "subset"),
}
# EPIC-Kitchens has no column that is the label of an action, so the settings must choose one of these.
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
_NAMES_A_FILE = {name for key in _KEYS for name in _COLUMNS[key]}
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
    key: Key = "path"  # what `Row.path` holds
    has_split: bool = False


class _Columns(NamedTuple):
    """The columns that count, by their names in the list."""

    key: Key  # what the first of `names` holds
    names: tuple[str | None, ...]  # of the file, label, start, end and split; None: there is no such column
    in_frames: bool
    is_template: bool  # labels have the brackets of Something-Something, which are no part of a class name

    @property
    def has_split(self) -> bool:
        return self.names[-1] is not None


@contextmanager
def short_messages() -> Iterator[None]:
    """Keep errors about lists to one line of at most `MAX_MESSAGE` characters, whatever the lists hold."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).splitlines())
        if len(message) > MAX_MESSAGE:  # the start names the list, the end says what to do
            message = f"{message[: MAX_MESSAGE // 2]} ... {message[5 - MAX_MESSAGE // 2 :]}"
        if message == str(error):
            raise
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
    filled = ((line, text.strip()) for line, text in enumerate(_lines(list_path), 1) if text.strip())
    head = [*islice(filled, 2)] or [(1, "")]
    line, first = head[0]
    if re.match(r'\{\s*("|$)|\[\s*([\[{"]|\]?$)', first):
        return _json_listing(list_path, first, len(head) == 1, label_column)
    where = f"{list_path}, line {line}"
    for delimiter in ",\t;":
        header = [field.strip(' "') for field in first.split(delimiter)]
        if _is_header(header, root, extensions, label_column):
            columns = _find_columns(where, header, label_column)
            form = "Kinetics csv" if columns.key == "youtube_id" else f"csv with {', '.join(header).lower()}"
            rows = _rows(list_path, _separated(list_path, delimiter), header, columns, has_header=True)
            return Listing(form, rows, columns.key, columns.has_split)

    form, table, has_header = "path label", _spaced(list_path, 2), False
    names: Sequence[str] = _TWO_COLUMNS
    path, *words = first.rsplit(maxsplit=2) or [""]
    if first.lower().split() == [*_TWO_COLUMNS]:
        has_header = True
    elif _is_file(root, _unquote(first)) or (path and not words and "," not in path):
        form, names, table = "paths without labels", ("path",), _spaced(list_path, 1)
    elif first.count("\t") == 1:
        form, table = "path, tab, label", _separated(list_path, "\t")
    elif "," in first and not first.rsplit(maxsplit=1)[0].strip('"').lower().endswith(extensions):
        form, table = "path,label", _separated(list_path, ",")
    elif len(words) == 2 and all(map(str.isdecimal, words)) and not _is_file(root, f"{path} {words[0]}"):
        raise ValueError(
            f"{where}: {_quote(first)} ends in two numbers. Folders of frames (`path num_frames"
            " label`) and several labels of one file are not supported; list the files themselves, as `path label`"
        )
    columns = _find_columns(where, names, label_column)
    return Listing(form, _rows(list_path, table, names, columns, has_header))


def _is_header(fields: Sequence[str], root: Path, extensions: tuple[str, ...], label_column: str | None) -> bool:
    """Tell whether the fields of a first line name columns, and none of them a file."""
    known = {*_NAMES_A_FILE, *_COLUMNS["label"], label_column and _key(label_column)}
    return not known.isdisjoint(map(_key, fields)) and not any(
        field.lower().endswith(extensions) or _is_file(root, field) for field in fields
    )


def _is_file(root: Path, text: str) -> bool:
    return os.path.isfile(root / text)  # noqa: PTH113  # also false for what cannot be a path


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
    split_of = [usual.get(row.split.lower(), row.split.lower()) for row in rows]
    if len({*split_of}) < 2:
        return rows
    if split not in split_of:
        raise ValueError(
            f"{list_path}: lists {', '.join(sorted({*split_of}))} together, and {split} is none of them; correct its"
            " column of splits, or use a list of one split"
        )
    return [row for row, row_split in zip(rows, split_of, strict=True) if row_split == split]


def _lines(list_path: Path) -> Iterator[str]:
    """Yield the lines of a text, with their ends."""
    # Undecodable bytes are let through to here, where it is known which line they stand in.
    with list_path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, text in enumerate(file, start=1):
            if _NO_TEXT.search(text):
                raise ValueError(f"{list_path}, line {line}: not text in UTF-8; save it as such, not compressed")
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


def _spaced(list_path: Path, num_fields: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the path of each line, which may hold spaces or stand in quotes, and with two fields the label."""
    for line, text in enumerate(_lines(list_path), start=1):
        if fields := text.strip().rsplit(maxsplit=num_fields - 1):
            yield line, [_unquote(fields[0]), *fields[1:]]


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if re.fullmatch('".+"', text) else text


def _rows(
    list_path: Path, table: Iterator[tuple[int, list[str]]], names: Sequence[str], columns: _Columns, has_header: bool
) -> Iterator[Row]:
    """Name the fields of a table by its columns."""
    if has_header:
        next(table)
    for line, fields in table:
        where = f"{list_path}, line {line}"
        if len(fields) != len(names):
            expected = ", ".join(names).lower() if has_header else "a path and a label"
            advice = "write one field for each column" if has_header else "more columns need a header"
            raise ValueError(f"{where}: must have {expected}, got {_quote(' '.join(fields))}; {advice}")
        yield _row(where, line, dict(zip(names, fields, strict=True)), columns)


def _json_listing(list_path: Path, first: str, is_one_line: bool, label_column: str | None) -> Listing:
    """Recognize JSON lines, a JSON array of records, or a JSON object of videos by their ids."""
    try:
        content = _parse_json(list_path, 1, first)
    except ValueError:  # a text on several lines, of which the first one alone is not JSON
        content = _parse_json(list_path, 1, "".join(_lines(list_path)))
    else:
        if not is_one_line or (isinstance(content, dict) and not _KNOWN.isdisjoint(map(_key, content))):
            lines = ((line, text) for line, text in enumerate(_lines(list_path), 1) if text.strip())
            records = ((f"line {line}", line, _parse_json(list_path, line, text)) for line, text in lines)
            return _json_rows(list_path, "JSON lines", records, label_column)
    entries = enumerate(_json_entries(list_path, content), start=1)
    form = "JSON array" if isinstance(content, list) else "JSON object"
    records = ((f"entry {number} of the JSON text", number, record) for number, record in entries)
    return _json_rows(list_path, form, records, label_column)


def _parse_json(list_path: Path, line: int, text: str) -> object:
    """Parse a text that starts on a line of a list."""
    try:
        return json.loads(text.rstrip())
    except (ValueError, RecursionError) as error:  # not only of syntax: too many digits or brackets
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            line, reason = line + error.lineno - 1, error.msg
        raise ValueError(
            f"{list_path}, line {line}: not JSON ({reason}); correct it: one array, or an object on each line"
        ) from error


def _json_entries(list_path: Path, content: object) -> Iterator[object]:
    """Return the records of a JSON array, or one for each annotation of an object of videos."""
    if isinstance(content, list):
        return iter(content)
    videos = content.get("database", content) if isinstance(content, dict) else None
    if not isinstance(videos, dict) or not all(isinstance(v, dict) and "annotations" in v for v in videos.values()):
        raise ValueError(
            f"{list_path}: is one JSON object, not keyed by video ids with `annotations` as those of Kinetics and"
            ' ActivityNet are; write an array of records such as {"path": "a.mp4", "label": "juggling"}'
        )
    return chain.from_iterable(_annotated(list_path, name, video) for name, video in videos.items())


def _annotated(list_path: Path, name: str, video: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Yield a record for each annotation of a video; Kinetics has one, whose file is cut to it."""
    annotations = video["annotations"]
    key = "youtube_id" if isinstance(annotations, dict) else "video_id"
    for annotation in annotations if isinstance(annotations, list) else [annotations]:
        segment = (annotation.get("segment") or [None, None]) if isinstance(annotation, dict) else None
        if not isinstance(annotation, dict) or not isinstance(segment, list) or len(segment) != 2:
            raise ValueError(
                f"{list_path}: annotations of {_quote(name)} must be a label and a segment of two numbers, got"
                f" {_quote(json.dumps(annotation))}; correct them"
            )
        named = dict(zip(("start_s", "end_s"), segment, strict=True))
        yield {key: name, "label": annotation.get("label"), "split": video.get("subset")} | named


def _json_rows(
    list_path: Path, form: str, records: Iterable[tuple[str, int, object]], label_column: str | None
) -> Listing:
    """Make rows of JSON records: where each stands, in words and as a number, and what it holds."""

    def read() -> Iterator[tuple[_Columns, Row]]:
        columns_of: dict[tuple[str, ...], _Columns] = {}
        for place, number, record in records:
            where = f"{list_path}, {place}"
            if isinstance(record, str):
                record = {"path": record}
            elif isinstance(record, list) and len(record) == 2:
                record = dict(zip(_TWO_COLUMNS, record, strict=True))
            if not isinstance(record, dict):
                raise ValueError(
                    f"{where}: must be a JSON object, got {_quote(json.dumps(record))}; write one with path and label"
                )
            names = tuple(record)
            if names not in columns_of:
                columns_of[names] = _find_columns(where, names, label_column)
                if len({(columns.key, columns.has_split) for columns in columns_of.values()}) > 1:
                    raise ValueError(
                        f"{where}: names its file by another key than the first entry, or only one of the two has a"
                        " split; use the same keys for all"
                    )
            yield columns_of[names], _row(where, number, record, columns_of[names])

    read_rows = read()
    first = next(read_rows, None)  # tells which key names the file
    if first is None:
        return Listing(form, iter(()))
    columns = first[0]
    rows = (row for _, row in chain([first], read_rows))
    return Listing("Kinetics JSON" if columns.key == "youtube_id" else form, rows, columns.key, columns.has_split)


def _key(name: str) -> str:
    """Return the name of a column as `_COLUMNS` has it."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _find_columns(where: str, names: Sequence[str], label_column: str | None) -> _Columns:
    """Find the columns that count among those of a list.

    Raises:
        ValueError: A column is unknown or there twice, none of them names the file, or units are mixed.
    """
    name_of = {_key(name): name for name in names}
    if len(name_of) < len(names):
        name = Counter(map(_key, names)).most_common(1)[0][0]
        raise ValueError(f"{where}: column {_quote(name)} is there twice; keep one of them")
    label_key = None if label_column is None else _key(label_column)
    if label_key is not None and label_key not in name_of:
        raise ValueError(
            f"{where}: no column {label_column}, which data.label_column names; there are {abbreviate(names)}"
        )
    if unknown := [name for key, name in name_of.items() if key not in _KNOWN and key != label_key]:
        raise ValueError(f"{where}: unknown column {_quote(abbreviate(unknown, 3))}; remove it, or {_ADVICE}")
    roles = {role: next((key for key in keys if key in name_of), None) for role, keys in _COLUMNS.items()}
    label = label_key or roles["label"]
    if label is None and (possible := [name_of[key] for key in _POSSIBLE_LABELS if key in name_of]):
        raise ValueError(f"{where}: no column is the label; set data.label_column to one of {', '.join(possible)}")
    file_key = next((key for key in _KEYS if roles[key] is not None), None)
    if file_key is None:
        raise ValueError(f"{where}: no column names the file, among {_quote(abbreviate(names))}; {_ADVICE}")
    seconds, frames = (roles["start_s"], roles["end_s"]), (roles["start_frame"], roles["stop_frame"])
    has_frames = frames != (None, None)
    if has_frames and seconds.count(None) == 1:
        raise ValueError(f"{where}: one end of a segment is in seconds, the other in frames; give both in one unit")
    # Seconds come first: EPIC-Kitchens has both, and its frame numbers are those of frames extracted at another rate.
    in_frames = has_frames and seconds == (None, None)
    if in_frames and file_key == "youtube_id":
        raise ValueError(f"{where}: files of a youtube_id are cut to seconds, not to frames; name each by its path")
    counting = (roles[file_key], label, *(frames if in_frames else seconds), roles["split"])
    counting_names = tuple(None if key is None else name_of[key] for key in counting)
    return _Columns(file_key, counting_names, in_frames, is_template=label == "template")


def _row(where: str, line: int, cells: Mapping[str, object], columns: _Columns) -> Row:
    """Check the cells of a row."""
    path, label, start, end, split = [None if name is None else cells[name] for name in columns.names]
    has_label = isinstance(label, str | int) and not isinstance(label, bool)
    if not (isinstance(path, str) and path) or not (has_label or label is None):
        raise ValueError(
            f"{where}: must have a path and a label, which is a name or a whole number, got"
            f" {_quote(' '.join(map(str, cells.values())))}"
        )
    label = str(label).strip() if has_label else ""
    if columns.is_template:
        label = re.sub(r"[\[\]]", "", label)
    span = _number(where, start, 0.0, columns.in_frames), _number(where, end, inf, columns.in_frames)
    if not 0 <= span[0] < span[1]:  # nan is refused too
        unit = "frames" if columns.in_frames else "seconds"
        raise ValueError(
            f"{where}: must have 0 <= start < end in {unit}, got {span[0]:g} and {span[1]:g}; correct the segment"
        )
    if columns.key == "path":
        path = posixpath.normpath(path)
    return Row(where, line, path, label, *span, columns.in_frames, "" if split is None else str(split))


def _number(where: str, value: object, default: float, in_frames: bool) -> float:
    """Read a frame index, or seconds, plain or as HH:MM:SS.ff."""
    if value is None or not (text := str(value).strip()):
        return default
    if in_frames:
        if not re.fullmatch(r"-?\d{1,15}", text):
            raise ValueError(f"{where}: {_quote(text)} is not a frame index; write a whole number that counts from 0")
        return float(text)
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: {_quote(text)} is not a number of seconds or HH:MM:SS; write it as one of them"
        ) from error


def _quote(text: str) -> str:
    """Quote a part of a list, shortened."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
