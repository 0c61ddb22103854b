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

from sparsevideo.io.sources import is_url
from sparsevideo.utils.files import abbreviate

MAX_MESSAGE = 300  # characters of an error message

FileKey: TypeAlias = Literal["path", "youtube_id", "video_id"]

_NOT_TEXT = re.compile("[\0\udc80-\udcff]")  # text in UTF-16 has zeros
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")  # HH:MM:SS.ff, as EPIC-Kitchens writes times
_TWO_COLUMNS = ("path", "label")
_FILE_KEYS: tuple[FileKey, ...] = ("path", "youtube_id", "video_id")  # if a list has several, the first names the file
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
# EPIC-Kitchens has no column with the label of an action, so data.label_column must be one of these.
_POSSIBLE_LABELS = ("verb", "verb_class", "noun", "noun_class")
# Columns of well-known lists that name neither a file nor a class nor a part of a video.
_IGNORED = {
    *("", "index", "unnamed:_0"),  # what pandas writes before the first column
    *("fold", "fps", "num_frames", "n_frames", "frames", "duration", "duration_s", "length", "width", "height"),
    *("source", "url", "md5", "dataset", "is_cc", "description", "caption"),
    *("participant_id", "narration_id", "narration", "narration_timestamp", "all_nouns", "all_noun_classes"),
    *("placeholders",),  # Something-Something
}
_KNOWN = {*chain.from_iterable(_COLUMNS.values()), *_POSSIBLE_LABELS, *_IGNORED}
_NAMES_A_FILE = {name for key in _FILE_KEYS for name in _COLUMNS[key]}
_ADVICE = "name the columns path, label, start_s and end_s, or start_frame and stop_frame; docs/lists.md has all names"


class Row(NamedTuple):
    """One listed file."""

    location: str  # the list and the line or entry, for messages; "": the file was found in a folder
    line_number: int  # line of the list or entry of a JSON array, from 1; 0: the file was found in a folder
    path: str  # posix, or the id of a video
    label: str  # "" if the list gives none
    start: float = 0.0
    end: float = inf
    in_frames: bool = False  # whether start and end are frame indices; else they are seconds
    split: str = ""


class Listing(NamedTuple):
    """A list file before its rows are read."""

    format_name: str  # for the log
    rows: Iterator[Row]
    file_key: FileKey = "path"  # the kind of `Row.path`
    has_split: bool = False


class _Columns(NamedTuple):
    """The columns that count, by their names in the list."""

    file_key: FileKey  # the kind of the first of `names`
    names: tuple[str | None, ...]  # of the file, label, start, end and split; None: there is no such column
    in_frames: bool
    is_template: bool  # labels have the brackets of Something-Something, which do not belong to a class name

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
        if len(message) > MAX_MESSAGE:  # the start names the list, the end gives the advice
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
        ValueError: The format is not supported. While the rows are read: a line is malformed.
    """
    filled = ((line_number, text.strip()) for line_number, text in enumerate(_lines(list_path), 1) if text.strip())
    head = [*islice(filled, 2)] or [(1, "")]
    line_number, first = head[0]
    if re.match(r'\{\s*("|$)|\[\s*([\[{"]|\]?$)', first):
        return _json_listing(list_path, first, len(head) == 1, label_column)
    location = f"{list_path}, line {line_number}"
    for delimiter in ",\t;":
        header = [field.strip(' "') for field in first.split(delimiter)]
        if _is_header(header, root, extensions, label_column):
            columns = _find_columns(location, header, label_column)
            is_kinetics = columns.file_key == "youtube_id"
            format_name = "Kinetics csv" if is_kinetics else f"csv with {', '.join(header).lower()}"
            rows = _rows(list_path, _separated(list_path, delimiter), header, columns, has_header=True)
            return Listing(format_name, rows, columns.file_key, columns.has_split)

    format_name, table, has_header = "path label", _spaced(list_path, 2), False
    names: Sequence[str] = _TWO_COLUMNS
    path, *words = first.rsplit(maxsplit=2) or [""]
    if first.lower().split() == [*_TWO_COLUMNS]:
        has_header = True
    elif _is_file(root, _unquote(first)) or (path and not words and "," not in path):
        format_name, names, table = "paths without labels", ("path",), _spaced(list_path, 1)
    elif first.count("\t") == 1:
        format_name, table = "path, tab, label", _separated(list_path, "\t")
    elif "," in first and not first.rsplit(maxsplit=1)[0].strip('"').lower().endswith(extensions):
        format_name, table = "path,label", _separated(list_path, ",")
    elif len(words) == 2 and all(map(str.isdecimal, words)) and not _is_file(root, f"{path} {words[0]}"):
        raise ValueError(
            f"{location}: {_quote(first)} ends in two numbers, but folders of frames (`path num_frames label`) and"
            " several labels of one file are not supported; list the files themselves, as `path label`"
        )
    columns = _find_columns(location, names, label_column)
    return Listing(format_name, _rows(list_path, table, names, columns, has_header))


def _is_header(fields: Sequence[str], root: Path, extensions: tuple[str, ...], label_column: str | None) -> bool:
    """Tell whether the fields of a first line name columns, and none of them a file."""
    known = {*_NAMES_A_FILE, *_COLUMNS["label"], label_column and _key(label_column)}
    return not known.isdisjoint(map(_key, fields)) and not any(
        field.lower().endswith(extensions) or _is_file(root, field) for field in fields
    )


def _is_file(root: Path, text: str) -> bool:
    return os.path.isfile(root / text)  # noqa: PTH113  # also false for a text that cannot be a path


def _lines(list_path: Path) -> Iterator[str]:
    """Yield the lines of a text, with their ends."""
    # The decoder lets undecodable bytes pass, so that the error can name their line.
    with list_path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line_number, text in enumerate(file, start=1):
            if _NOT_TEXT.search(text):
                raise ValueError(
                    f"{list_path}, line {line_number}: not text in UTF-8; save the list in UTF-8, not compressed"
                )
            yield text


def _separated(list_path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line on which each row starts, and its fields; empty rows are skipped."""
    reader = csv.reader(_lines(list_path), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line_number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{list_path}, line {line_number}: not a csv ({error}); look for a quote that is not closed"
            ) from error
        if fields is None:
            return
        if any(fields):
            yield line_number, [field.strip() for field in fields]


def _spaced(list_path: Path, num_fields: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line and its path, which may hold spaces or be quoted, and with two fields the label."""
    for line_number, text in enumerate(_lines(list_path), start=1):
        if fields := text.strip().rsplit(maxsplit=num_fields - 1):
            yield line_number, [_unquote(fields[0]), *fields[1:]]


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if re.fullmatch('".+"', text) else text


def _rows(
    list_path: Path, table: Iterator[tuple[int, list[str]]], names: Sequence[str], columns: _Columns, has_header: bool
) -> Iterator[Row]:
    """Yield the rows of a table with named columns."""
    if has_header:
        next(table)
    for line_number, fields in table:
        location = f"{list_path}, line {line_number}"
        if len(fields) != len(names):
            expected = ", ".join(names).lower() if has_header else "a path and a label"
            advice = "write one field for each column" if has_header else "more columns need a header"
            raise ValueError(f"{location}: must have {expected}, got {_quote(' '.join(fields))}; {advice}")
        yield _row(location, line_number, dict(zip(names, fields, strict=True)), columns)


def _json_listing(list_path: Path, first: str, is_one_line: bool, label_column: str | None) -> Listing:
    """Recognize JSON lines, a JSON array of records, or a JSON object of videos by their ids."""
    try:
        content = _parse_json(list_path, 1, first)
    except ValueError:  # a text on several lines, of which the first one alone is not JSON
        content = _parse_json(list_path, 1, "".join(_lines(list_path)))
    else:
        if not is_one_line or (isinstance(content, dict) and not _KNOWN.isdisjoint(map(_key, content))):
            lines = ((number, text) for number, text in enumerate(_lines(list_path), 1) if text.strip())
            records = ((f"line {number}", number, _parse_json(list_path, number, text)) for number, text in lines)
            return _json_rows(list_path, "JSON lines", records, label_column)
    entries = enumerate(_json_entries(list_path, content), start=1)
    format_name = "JSON array" if isinstance(content, list) else "JSON object"
    records = ((f"entry {number} of the JSON text", number, record) for number, record in entries)
    return _json_rows(list_path, format_name, records, label_column)


def _parse_json(list_path: Path, line_number: int, text: str) -> object:
    """Parse a text that starts on a line of a list."""
    try:
        return json.loads(text.rstrip())
    except (ValueError, RecursionError) as error:  # not only of syntax: too many digits or brackets
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            line_number, reason = line_number + error.lineno - 1, error.msg
        raise ValueError(
            f"{list_path}, line {line_number}: not JSON ({reason}); write one array, or an object on each line"
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
    """Yield a record for each annotation of a video; Kinetics has one, to which the file is cut."""
    annotations = video["annotations"]
    file_key = "youtube_id" if isinstance(annotations, dict) else "video_id"
    for annotation in annotations if isinstance(annotations, list) else [annotations]:
        segment = (annotation.get("segment") or [None, None]) if isinstance(annotation, dict) else None
        if not isinstance(annotation, dict) or not isinstance(segment, list) or len(segment) != 2:
            raise ValueError(
                f"{list_path}: annotations of {_quote(name)} must be a label and a segment of two numbers, got"
                f" {_quote(json.dumps(annotation))}; correct them"
            )
        named = dict(zip(("start_s", "end_s"), segment, strict=True))
        yield {file_key: name, "label": annotation.get("label"), "split": video.get("subset")} | named


def _json_rows(
    list_path: Path, format_name: str, records: Iterable[tuple[str, int, object]], label_column: str | None
) -> Listing:
    """Make rows of JSON records: the position of each in words and as a number, and its content."""

    def read() -> Iterator[tuple[_Columns, Row]]:
        columns_of: dict[tuple[str, ...], _Columns] = {}
        for position, number, record in records:
            location = f"{list_path}, {position}"
            if isinstance(record, str):
                record = {"path": record}
            elif isinstance(record, list) and len(record) == 2:
                record = dict(zip(_TWO_COLUMNS, record, strict=True))
            if not isinstance(record, dict):
                content = _quote(json.dumps(record))
                raise ValueError(f"{location}: must be a JSON object, got {content}; write one with path and label")
            names = tuple(record)
            if names not in columns_of:
                columns_of[names] = _find_columns(location, names, label_column)
                if len({(columns.file_key, columns.has_split) for columns in columns_of.values()}) > 1:
                    raise ValueError(
                        f"{location}: names its file by another key than the first entry, or only one of the two has a"
                        " split; use the same keys for all"
                    )
            yield columns_of[names], _row(location, number, record, columns_of[names])

    read_rows = read()
    first = next(read_rows, None)  # its columns are those of the listing
    if first is None:
        return Listing(format_name, iter(()))
    columns = first[0]
    rows = (row for _, row in chain([first], read_rows))
    is_kinetics = columns.file_key == "youtube_id"
    return Listing("Kinetics JSON" if is_kinetics else format_name, rows, columns.file_key, columns.has_split)


def _key(name: str) -> str:
    """Return the name of a column as in `_COLUMNS`."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _find_columns(location: str, names: Sequence[str], label_column: str | None) -> _Columns:
    """Find the columns that count among those of a list.

    Raises:
        ValueError: A column is unknown or appears twice, none of them names the file, or units are mixed.
    """
    name_of = {_key(name): name for name in names}
    if len(name_of) < len(names):
        name = Counter(map(_key, names)).most_common(1)[0][0]
        raise ValueError(f"{location}: column {_quote(name)} appears twice; keep one of them")
    label_key = None if label_column is None else _key(label_column)
    if label_key is not None and label_key not in name_of:
        raise ValueError(
            f"{location}: no column {label_column}; set data.label_column to null or to one of {abbreviate(names)}"
        )
    if unknown := [name for key, name in name_of.items() if key not in _KNOWN and key != label_key]:
        raise ValueError(f"{location}: unknown column {_quote(abbreviate(unknown, 3))}; remove it, or {_ADVICE}")
    roles = {role: next((key for key in keys if key in name_of), None) for role, keys in _COLUMNS.items()}
    label = label_key or roles["label"]
    if label is None and (possible := [name_of[key] for key in _POSSIBLE_LABELS if key in name_of]):
        raise ValueError(f"{location}: no column is the label; set data.label_column to one of {', '.join(possible)}")
    file_key = next((key for key in _FILE_KEYS if roles[key] is not None), None)
    if file_key is None:
        raise ValueError(f"{location}: no column names the file, among {_quote(abbreviate(names))}; {_ADVICE}")
    seconds, frames = (roles["start_s"], roles["end_s"]), (roles["start_frame"], roles["stop_frame"])
    has_frames = frames != (None, None)
    if has_frames and seconds.count(None) == 1:
        raise ValueError(f"{location}: one end of a segment is in seconds, the other in frames; give both in one unit")
    # Seconds come first: EPIC-Kitchens has both, and its frame indices are those of frames extracted at another rate.
    in_frames = has_frames and seconds == (None, None)
    if in_frames and file_key == "youtube_id":
        raise ValueError(f"{location}: files of a youtube_id are cut to seconds, not to frames; name each by its path")
    counting = (roles[file_key], label, *(frames if in_frames else seconds), roles["split"])
    counting_names = tuple(None if key is None else name_of[key] for key in counting)
    return _Columns(file_key, counting_names, in_frames, is_template=label == "template")


def _row(location: str, line_number: int, cells: Mapping[str, object], columns: _Columns) -> Row:
    """Check the cells of a row."""
    path, label, start, end, split = [None if name is None else cells[name] for name in columns.names]
    has_label = isinstance(label, str | int) and not isinstance(label, bool)
    if not (isinstance(path, str) and path) or not (has_label or label is None):
        raise ValueError(
            f"{location}: must have a path and a label, got {_quote(' '.join(map(str, cells.values())))}; write"
            " the label as a name or a whole number"
        )
    label = str(label).strip() if has_label else ""
    if columns.is_template:
        label = re.sub(r"[\[\]]", "", label)
    span = _time(location, start, 0.0, columns.in_frames), _time(location, end, inf, columns.in_frames)
    if not 0 <= span[0] < span[1]:  # nan is refused too
        unit = "frames" if columns.in_frames else "seconds"
        raise ValueError(
            f"{location}: must have 0 <= start < end in {unit}, got {span[0]:g} and {span[1]:g}; correct the segment"
        )
    if columns.file_key == "path":
        path = path if is_url(path) else posixpath.normpath(path)
    return Row(location, line_number, path, label, *span, columns.in_frames, "" if split is None else str(split))


def _time(location: str, value: object, default: float, in_frames: bool) -> float:
    """Parse a frame index, or seconds, plain or as HH:MM:SS.ff."""
    if value is None or not (text := str(value).strip()):
        return default
    if in_frames:
        if not re.fullmatch(r"-?\d{1,15}", text):
            raise ValueError(
                f"{location}: {_quote(text)} is not a frame index; write a whole number that counts from 0"
            )
        return float(text)
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{location}: {_quote(text)} is not a time; write seconds or HH:MM:SS") from error


def _quote(text: str) -> str:
    """Quote a part of a list, shortened."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
