"""Lists and folders are read as equal tables, and mistakes in them are errors that name the file."""

import json
import logging
import os
import pickle
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_videos import REAL
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sparsevideo.data.classes import read_class_names
from sparsevideo.data.records import Records, check_classes, read_records
from sparsevideo.data.segments import frame_range
from sparsevideo.io.backends import open_video


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def table(records: Records) -> list[tuple[str, int]]:
    return [(records.name(i), int(records.labels[i])) for i in range(len(records))]


def assert_error(message: str, root: Path, listing: str = ".", error: Any = ValueError, **settings: Any) -> None:
    """Check the error over a list or a folder of videos."""
    with pytest.raises(error, match=message):
        read_records(root, listing, kind="video", **settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path, "videos/train/right/b.MP4", "videos/train/right/deep/a.webm", "videos/train/left/my clip, 1.avi")
    touch(tmp_path, "videos/train/left/notes.txt", "videos/train/empty/readme.md", "videos/train/.hidden/a.mp4")
    touch(tmp_path, "videos/train/left/._a.mp4")
    return tmp_path


LEFT, RIGHT_A, RIGHT_B = (
    "videos/train/left/my clip, 1.avi",
    "videos/train/right/deep/a.webm",
    "videos/train/right/b.MP4",
)


def test_class_folders(root: Path) -> None:
    """Sorted names are the classes; extensions in any case, any depth; no hidden files; a notes folder is no class."""
    records = read_records(root, "videos/train", kind="video")
    assert records.classes == ("left", "right")
    assert table(records) == [(LEFT, 0), (RIGHT_B, 1), (RIGHT_A, 1)]
    assert records.path(0) == root / LEFT and records.path(0).exists()
    assert records.labels.dtype == np.int64


@pytest.mark.parametrize("classes", [("00", "01"), ("1", "5"), ("1990", "2000")])
def test_class_folder_named_by_a_number_is_a_class_of_that_name(tmp_path: Path, classes: tuple[str, ...]) -> None:
    touch(tmp_path, *[f"{name}/a.mp4" for name in classes])
    records = read_records(tmp_path, kind="video")
    assert records.classes == classes and records.labels.tolist() == [0, 1]
    assert_error(f"{classes[0]}, {classes[1]} not among", tmp_path, classes=["left", "right"])


def test_zero_padded_labels_of_a_list_are_names(root: Path) -> None:
    (root / "list.txt").write_text(f"{RIGHT_A} 01\n{RIGHT_B} 00\n")
    records = read_records(root, "list.txt", kind="video")
    assert records.classes == ("00", "01") and records.labels.tolist() == [1, 0]


def test_links_back_are_not_followed_and_links_elsewhere_are(tmp_path: Path) -> None:
    touch(tmp_path, "set/left/a.mp4", "set/right/b.mp4", "elsewhere/c.mp4")
    (tmp_path / "set/left/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/right/self").symlink_to(tmp_path / "set/right")
    for name in ("left", "right"):  # a shared folder is in both classes
        (tmp_path / "set" / name / "more").symlink_to(tmp_path / "elsewhere")
    assert table(read_records(tmp_path, "set", kind="video")) == [
        *[("set/left/a.mp4", 0), ("set/left/more/c.mp4", 0)],
        *[("set/right/b.mp4", 1), ("set/right/more/c.mp4", 1)],
    ]


def test_files_of_a_folder_are_sorted_in_any_order_on_the_disk(tmp_path: Path) -> None:
    names = [f"a/{index}.mp4" for index in range(10)]
    touch(tmp_path, *names[5:], *names[4::-1])
    assert [name for name, _ in table(read_records(tmp_path, kind="video"))] == names


def test_split_may_lie_outside_the_root(root: Path, tmp_path: Path) -> None:
    touch(tmp_path, "outside/up/a.mp4")
    records = read_records(root, str(tmp_path / "outside"), kind="video")
    assert records.path(0).samefile(tmp_path / "outside/up/a.mp4")


@pytest.mark.parametrize(
    "ending", ["m4v", "MPG", "ts", "wmv", "flv", "3gp", "mts", "vob", "ogv", "f4v", "mpeg4", "apng"]
)
def test_endings_of_videos(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, f"up/a.{ending}", "down/b.mp4")
    assert len(read_records(tmp_path, kind="video")) == 2


def test_animated_images_are_videos_and_stills_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "up").mkdir()
    frames = [Image.new("RGB", (16, 16), (60 * i, 0, 0)) for i in range(3)]
    for name in ("a.gif", "b.webp", "c.WEBP"):
        frames[0].save(tmp_path / "up" / name, save_all=name != "c.WEBP", append_images=frames[1:])
    (tmp_path / "up/d.avif").write_bytes(b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf")
    (tmp_path / "up/e.avif").write_bytes(b"\0\0\0\x18ftypavis\0\0\0\0msf1miaf")
    records = read_records(tmp_path, kind="video")
    assert [name for name, _ in table(records)] == ["up/a.gif", "up/b.webp", "up/e.avif"]
    assert "left out 2 files with other endings: 1 .webp, 1 .avif, images among them" in caplog.text
    with open_video(records.path(0)) as video:
        assert video.num_frames == 3


def test_images_and_videos_do_not_mix(root: Path) -> None:
    touch(root, "videos/train/left/x.JPEG", "videos/train/up/y.png")
    assert read_records(root, "videos/train", kind="video").classes == ("left", "right")
    assert table(read_records(root, "videos/train", kind="image")) == [
        ("videos/train/left/x.JPEG", 0),
        ("videos/train/up/y.png", 1),
    ]


@pytest.mark.parametrize(
    "text",
    [
        f'"{LEFT}",left\n{RIGHT_A},right\n',
        f'path,label\n"{LEFT}",left\n{RIGHT_A},right\n',
        f'\ufeffLabel,fold,Path\r\nleft,3, "{LEFT}"\r\n\r\nright ,2, {RIGHT_A} \r\n',
        f"{LEFT.replace(',', '')} left\n\n{RIGHT_A}\tright\n",
        f"./{LEFT}   0\nvideos//train/../train/right/deep/a.webm 1",
        f'"{LEFT}" left\n{RIGHT_A} right\n',
        f"path label\n{LEFT} left\n{RIGHT_A} right\n",
        f"{LEFT}\tleft\n{RIGHT_A}\tright\n",
        f'path;fold;label\n"{LEFT}";"1;5";left\n{RIGHT_A};3;right\n',
        f'"path"\t"fold"\t"label"\n"{LEFT}"\t"1"\t"left"\n"{RIGHT_A}"\t"3"\t"right"\n',
        "".join(
            json.dumps({"path": p, "label": c, "fold": [1]}) + "\n\n" for p, c in [(LEFT, "left"), (RIGHT_A, "right")]
        ),
        f'{{ "label" : 0, "path": "{LEFT}"}}\r\n{{"label": "1", "path": "./{RIGHT_A}"}}'.replace("webm", "web\\u006d"),
    ],
    ids=[
        *["commas", "header", "other columns, byte order mark, Windows line ends", "spaces", "numbers"],
        *["spaces and quotes", "spaces and header", "tabs", "semicolons", "all in quotes"],
        *["JSON", "JSON with numbers and escapes"],
    ],
)
def test_list_files(root: Path, text: str) -> None:
    left = LEFT if LEFT in text else LEFT.replace(",", "")
    touch(root, left)
    (root / "list.xyz").write_bytes(text.encode())
    records = read_records(root, "list.xyz", kind="video")
    assert table(records) == [(left, 0), (RIGHT_A, 1)]
    assert records.classes == (("0", "1") if '"0"' in text or " 0" in text or ": 0" in text else ("left", "right"))
    assert records.spans is None and records.missing == 0


def test_labels_after_a_comma_or_a_tab_may_hold_spaces(root: Path) -> None:
    for separator in (",", "\t", "\t "):
        (root / "list").write_text(f"{RIGHT_A}{separator}riding a bike\n{RIGHT_B}{separator}ironing\n")
        assert read_records(root, "list", kind="video").classes == ("ironing", "riding a bike")


@pytest.mark.parametrize(
    "name",
    ["#1.mp4", "{a}.mp4", "-x.mp4", "a\u3000b.mp4", "日本 語, é.MP4", "take 2", "[1, 2].mkv", 'an "odd" one.mp4'],
)
def test_path_may_start_with_any_character(tmp_path: Path, name: str) -> None:
    """No line is a comment: a file with such a name would be lost without a message."""
    touch(tmp_path, name, "b.mp4")
    quoted, row = name.replace('"', '""'), json.dumps({"path": name, "label": 1})
    for text in (f"{name} 1\nb.mp4 0\n", f'"{quoted}" 1\nb.mp4 0\n', f'"{quoted}",1\nb.mp4,0\n', row):
        (tmp_path / "list").write_text(text)
        assert table(read_records(tmp_path, "list", kind="video"))[0] == (name, 1)
    (tmp_path / "list").write_text(f"# my videos\n{name} 1\n")
    assert_error(r"list, line 1: 1 of 2 listed files .*: # my; correct", tmp_path, "list", error=FileNotFoundError)


@pytest.mark.parametrize(
    "header",
    [
        *("file_name,label", "filename,class", "video_path,category", "video,label_name"),
        *("clip,target", "Path,Class ID"),
        *("video\tlabel", "file;class_name", "label,File Name", "id,path,label", ",path,label"),
    ],
)
def test_header_may_use_the_usual_names(root: Path, header: str) -> None:
    comma = next(c for c in "\t;," if c in header)
    cells = {"label": "up", "class": "up", "category": "up", "target": "up"}
    cells |= dict.fromkeys(("label_name", "class_name", "Class ID"), "up") | {"id": "7", "": "0"}
    (root / "list").write_text(f"{header}\n" + comma.join(cells.get(c, RIGHT_A) for c in header.split(comma)))
    records = read_records(root, "list", kind="video")
    assert table(records) == [(RIGHT_A, 0)] and records.classes == ("up",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("path,label,begin,finish", "unknown column 'begin, finish'; remove it, or name the columns path, label"),
        ("path,label,start_s,stop_frame", "one end of a segment is in seconds, the other in frames; give both"),
        ("path,label,Label", "column 'label' appears twice; keep one of them"),
        ("label,start", "no column names the file, among 'label, start'; name the columns path"),
        ("path,verb,noun", "no column is the label; set data.label_column to one of verb, noun"),
    ],
)
def test_columns_that_cannot_be_used_are_errors(root: Path, columns: str, message: str) -> None:
    (root / "list").write_text(f"{columns}\n{','.join('1' for _ in columns.split(','))}\n")
    assert_error(f"list, line 1: {message}", root, "list")
    (root / "list").write_text(json.dumps(dict.fromkeys(columns.split(","), 1)))
    assert_error(f"list, line 1: {message}", root, "list")


EPIC = """narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,\
stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes
P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]
P01_01_1,P01,P01_01,00:00:02.629,01:02:04.37,01:02:06.17,262,370,turn on light,turn-on,6,light,114,['light'],[114]
""".replace("\\\n", "")


def test_epic_kitchens_segments_are_those_of_its_time_stamps(tmp_path: Path) -> None:
    touch(tmp_path, "P01/videos/P01_01.MP4", "P02/videos/P02_01.MP4")
    (tmp_path / "EPIC_100_train.csv").write_text(EPIC)
    records = read_records(tmp_path, "EPIC_100_train.csv", kind="video", label_column="verb")
    assert table(records) == [("P01/videos/P01_01.MP4", 0), ("P01/videos/P01_01.MP4", 1)]
    assert records.classes == ("open", "turn-on") and not records.in_frames
    assert records.spans is not None and records.spans.tolist() == [[0.14, 3.37], [3724.37, 3726.17]]
    nouns = read_records(tmp_path, "EPIC_100_train.csv", kind="video", label_column="noun_class")
    assert nouns.labels.tolist() == [3, 114]
    touch(tmp_path, "copy/P01_01.mp4")
    assert_error(
        r"line 2: P01/videos/P01_01\.MP4 and copy/P01_01\.mp4 are both its file; keep",
        tmp_path,
        "EPIC_100_train.csv",
        label_column="verb",
    )


def test_absent_label_column_is_an_error(root: Path) -> None:
    rows = json.dumps({"path": RIGHT_A, "label": 1})
    for text in (f"path,label\n{RIGHT_A},1", f"{RIGHT_A},1", f"{RIGHT_A} 1", rows):
        (root / "list").write_text(text)
        assert_error(r"line 1: no column Verb; set .* one of path, label$", root, "list", label_column="Verb")
    (root / "list").write_text(f"my file,Verb\n{RIGHT_A},1")
    assert_error("list, line 1: unknown column 'my file'; remove it, or", root, "list", label_column="Verb")
    (root / "list").write_text(f"path,VERB\n{RIGHT_A},1")
    assert read_records(root, "list", kind="video", label_column="Verb").labels.tolist() == [1]


def test_frames_are_kept_as_frames(root: Path) -> None:
    (root / "list").write_text(f"path,label,start_frame,end_frame\n{RIGHT_A},a,0,50\n{RIGHT_A},b,50,\n")
    records = read_records(root, "list", kind="video")
    assert records.in_frames and records.spans is not None and records.spans.tolist() == [[0, 50], [50, np.inf]]
    assert frame_range(records.span(1), 60) == range(50, 60)
    with pytest.raises(ValueError, match="no frame in the segment; it starts at frame 50 of 50"):
        frame_range(records.span(1), 50)
    (root / "list").write_text(f"path,label,start_frame,end_frame\n{RIGHT_A},a,0.5,50\n")
    assert_error(r"line 2: '0\.5' is not a frame index; write a whole number", root, "list")
    rows = [{"path": RIGHT_A, "label": "a", "start_frame": 3}, {"path": RIGHT_A, "label": "a", "start_s": 3}]
    (root / "list").write_text("\n".join(map(json.dumps, rows)))
    assert_error("has segments in seconds and segments in frames; write all in one unit", root, "list")


def test_json_arrays(root: Path) -> None:
    rows = [{"path": RIGHT_A, "label": "up", "start_s": 1}, {"path": RIGHT_B, "label": "down"}]
    pairs = [[RIGHT_A, "up"], [RIGHT_B, "down"]]
    (root / "list.json").write_text("\n".join(map(json.dumps, pairs)))
    assert table(read_records(root, "list.json", kind="video")) == [(RIGHT_A, 1), (RIGHT_B, 0)]
    for content, indent in ((rows, None), (rows, 2), (pairs, None), (pairs, 1)):
        (root / "list.json").write_text(json.dumps(content, indent=indent))
        records = read_records(root, "list.json", kind="video")
        assert table(records) == [(RIGHT_A, 1), (RIGHT_B, 0)] and (records.spans is None) == (content is pairs)
    touch(root, "somewhere/78687.webm")
    entry = {"id": "78687", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]}
    (root / "list.json").write_text(json.dumps([entry]))
    records = read_records(root, "list.json", kind="video")
    assert table(records) == [("somewhere/78687.webm", 0)] and records.classes == ("Holding something",)
    for content, message in (
        ([*rows, {"path": RIGHT_A}], "entry 3 of the JSON text: has no label"),
        ([*rows, 3], "entry 3 of the JSON text: must be a JSON object, got '3'; write one with path and label"),
        ([*rows, {"id": "a", "label": "up"}], "entry 3 of the JSON text: names its file by another key"),
        ([*rows, rows[0] | {"split": "val"}], "entry 3 of the JSON text: .* only one of the two has a split; use the"),
        ({"a": {"annotations": 3}}, r"annotations of 'a' must be a label and a segment of two numbers, got '3'"),
        ({"a": {"annotations": [{"label": "up", "segment": [1]}]}}, "annotations of 'a' must be .*; correct them"),
        ({"videos": rows}, 'not keyed by video ids .*; write an array of records such as {"path": "a.mp4", "label": '),
        ([], "lists no files"),
    ):
        (root / "list.json").write_text(json.dumps(content))
        assert_error(message, root, "list.json")
    (root / "list.json").write_text('[\n{"path": "a.mp4" "label": 1}\n]')
    assert_error(r"line 2: not JSON \(Expecting ',' delimiter\); write one array", root, "list.json")


def test_json_objects_of_kinetics_and_activitynet(tmp_path: Path) -> None:
    touch(tmp_path, "train/a_000003_000013.mp4", "v_b.mp4", "c.mp4")
    kinetics = {
        "a": {"annotations": {"label": "dance", "segment": [3.0, 13.0]}, "duration": 10.0, "subset": "train"},
        "gone": {"annotations": {"label": "sing", "segment": [0, 10]}, "duration": 10.0, "subset": "train"},
    }
    (tmp_path / "kinetics.json").write_text(json.dumps(kinetics))
    records = read_records(tmp_path, "kinetics.json", kind="video")
    assert table(records) == [("train/a_000003_000013.mp4", 0)] and records.missing == 1 and records.spans is None
    parts = [{"label": "dance", "segment": [1, 2.5]}, {"label": "sing", "segment": [4, 9]}]
    database = {
        "b": {"subset": "training", "annotations": parts, "url": "x"},
        "c": {"subset": "validation", "annotations": parts[:1]},
        "d": {"subset": "testing", "annotations": []},
    }
    (tmp_path / "activity.json").write_text(json.dumps({"version": "1.3", "database": database}))
    records = read_records(tmp_path, "activity.json", kind="video", split="train")
    assert table(records) == [("v_b.mp4", 0), ("v_b.mp4", 1)]
    assert records.spans is not None and records.spans.tolist() == [[1, 2.5], [4, 9]]
    assert table(read_records(tmp_path, "activity.json", kind="video", split="val")) == [("c.mp4", 0)]


def test_lists_and_folders_without_labels(root: Path) -> None:
    touch(root, "new/1.mp4", "new/2 b.mp4", "new/deep/3.mp4")
    names = ["new/1.mp4", "new/2 b.mp4", "new/deep/3.mp4"]
    for text in (
        *("\n".join(names), "\n\n" + "\r\n".join(f' "{name}" ' for name in names), "path\n" + "\n".join(names)),
        *(json.dumps(names), "\n".join(json.dumps({"path": name}) for name in names)),
        *("path,start_s\n" + "".join(f"{name},\n" for name in names), "path,label\n" + ",\n".join(names) + ","),
    ):
        (root / "list").write_text(text)
        records = read_records(root, "list", kind="video", labeled=False, classes=["up", "down"])
        assert table(records) == [(name, -1) for name in names] and records.classes == ("up", "down")
        assert_error(r"list, (line|entry) \d.*: has no label; write one .*, such as `path,label`", root, "list")
    assert table(read_records(root, "new", kind="video", labeled=False)) == [(name, -1) for name in names]
    assert_error(r"new: holds 1\.mp4 outside any class folder; put each video into <class>/", root, "new")
    (root / "list").write_text("new/1.mp4\nnew/4.mp4\n")
    assert_error(
        r"list, line 2: 1 of 2 listed files .*: new/4\.mp4", root, "list", labeled=False, error=FileNotFoundError
    )
    assert table(read_records(root, "videos/train", kind="video", labeled=False))[0] == (LEFT, 0)


def test_folders_named_as_splits_are_not_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/left/a.mp4", "train/right/a.mp4", "val/left/b.mp4")
    assert_error(r"holds the folders train, val, which are splits, not classes; set", tmp_path)
    touch(tmp_path, "vehicles/train/a.mp4", "vehicles/bus/a.mp4")
    assert read_records(tmp_path, "vehicles", kind="video").classes == ("bus", "train")


def test_class_names_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(tmp_path, f"train/{composed}/a.mp4", f"train/{decomposed}/b.mp4", "train/bar/c.mp4")
    records = read_records(tmp_path, "train", kind="video")
    assert records.classes == ("bar", composed) and sorted(records.labels.tolist()) == [0, 1, 1]
    (tmp_path / "list").write_text(f"train/bar/c.mp4,{decomposed}\ntrain/bar/c.mp4,{composed}\n")
    assert read_records(tmp_path, "list", kind="video", classes=["bar", decomposed]).labels.tolist() == [1, 1]


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_listed_paths_in_another_unicode_form_are_the_files_on_disk(
    listed: str, stored: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lists from macOS have accents decomposed; folders may differ, too. The listed spelling comes first."""
    names = ["a.mp4", "café/é.mp4", "café/b.mp4", "가/ü/Å.mp4"]
    touch(tmp_path, *(unicodedata.normalize(stored, name) for name in names))
    (tmp_path / "list").write_text("".join(f"{unicodedata.normalize(listed, name)},up\n" for name in names))
    with caplog.at_level("INFO"):
        records = read_records(tmp_path, "list", kind="video")
    assert [records.name(index) for index in range(4)] == [unicodedata.normalize(stored, name) for name in names]
    assert all(records.path(index).exists() for index in range(4))
    assert "list: 3 listed paths differ from the disk in their Unicode normalization only" in caplog.text
    touch(tmp_path, unicodedata.normalize(listed, names[1]))  # now both are there
    assert read_records(tmp_path, "list", kind="video").name(1) == unicodedata.normalize(listed, names[1])
    for name, error in (
        (unicodedata.normalize(listed, "가/ü"), r"list, line 2: .* is a folder; list files, not folders"),
        (unicodedata.normalize(listed, "가/ä.mp4"), r"list, line 2: 1 of 2 listed files are not in .*: .*mp4; correct"),
        ("\u212b.mp4", r"list, line 2: 1 of 2 listed files are not in .*: .*mp4; correct"),
    ):
        touch(tmp_path, "\xc5.mp4", "A\u030a.mp4")  # two forms of the last name
        (tmp_path / "list").write_text(f"a.mp4,up\n{name},up\n")
        assert_error(error, tmp_path, "list", error=(ValueError, FileNotFoundError))


def test_listed_folders_are_errors(root: Path) -> None:
    touch(root, "frames/a/00001.jpg", "frames/a/00002.jpg")
    for name, advice in (
        ("videos/train", "list files, not folders"),
        ("frames/a", "folders of frames are not supported"),
    ):
        (root / "list").write_text(f"{RIGHT_A},up\n{name},up\n")
        assert_error(f"list, line 2: {name} is a folder; {advice}", root, "list")
    assert_error(r"2 files .*: 2 \.jpg, images among them; folders of frames", root, "frames")


@pytest.mark.parametrize(
    "text",
    [
        *("up\nfar left\n1, 2, step\n", "\ufeffup\r\nfar left\r\n1, 2, step\r\n\r\n"),
        *('2,"1, 2, step"\n0,up\n1,far left', 'id,name\n0,up\n1,far left\n2,"1, 2, step"\n'),
        'id,key,instances\n0,up,5\n1,far left,7\n2,"1, 2, step",2\n',
    ],
)
def test_class_names_from_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_class_names(tmp_path / "names.txt") == ("up", "far left", "1, 2, step")


@pytest.mark.parametrize("text", ["up\n\ndown\n", "up\nup\n", "1,up\n2,down\n", "0,up\n0,down\n", "id,name\n0\n"])
def test_malformed_files_of_class_names_are_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=r"names\.txt: a name is missing or appears twice; write one"):
        read_class_names(tmp_path / "names.txt")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such file of class names; set data\.classes"):
        read_class_names(tmp_path / "gone.txt")


def test_check_classes_needs_files_of_two_classes(caplog: pytest.LogCaptureFixture) -> None:
    def records(classes: list[str], labels: list[int]) -> Records:
        return Records.build(Path("/data"), classes, [f"{i}.mp4" for i in range(len(labels))], labels)

    check_classes(records(["up", "down"], [0, 1]))
    assert not caplog.messages
    check_classes(records(["0", "1", "2"], [1, 2]))
    assert caplog.messages.pop() == "class 0 has no file to train on: the labels start at 1; they should count from 0"
    check_classes(records(["up", "down", "left"], [0, 2]))
    assert caplog.messages.pop() == "1 of 3 classes have no file to train on: down"
    for classes in (["up"], ["up", "down"]):
        with pytest.raises(ValueError, match=r"up; a classifier needs at least two, so set data\.list"):
            check_classes(records(classes, [0, 0]))


def test_weights_of_classes() -> None:
    records = Records.build(Path("/data"), ["a", "b", "none"], list("1234"), [0, 0, 0, 1])
    assert records.class_weights(0).tolist() == [1, 1, 1, 1]
    assert records.class_weights(1).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert records.class_weights(0.5)[0] == pytest.approx(3**-0.5)


def test_split_column_chooses_the_rows(root: Path) -> None:
    (root / "list").write_text(f"path,label,split\n{RIGHT_A},up,train\n{RIGHT_B},up,test\n")
    assert table(read_records(root, "list", kind="video", split="test")) == [(RIGHT_B, 0)]
    assert_error("lists the splits test, train, but not val; correct", root, "list", split="val")
    (root / "list").write_text("\n".join(json.dumps({"path": RIGHT_A, "label": 1, "split": fold}) for fold in (0, 1)))
    assert_error("list: lists the splits 0, 1, but not None; correct", root, "list")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"database": {f"v{i}": {"annotations": 3 * [{"label": "a" * 500}]} for i in range(500)}}),
        json.dumps([["78687" * 500, 0]] * 500),
        json.dumps({"x" * 5000: 1}),
        f'{{"path": "{RIGHT_A}", "label": {"9" * 5000}}}',
        "x" * 5000,
        f"path,label\n{'x' * 5000},a\n",
        f"path,{'label' * 1000}\na,b\n",
        f"path,label,start_s\n{RIGHT_A},a,{'9' * 2000}x\n",
        f"path,label\n{RIGHT_A},{'a' * 5000}\n",
        f'"{"x" * 400}\n{"y" * 400}",a\n',
    ],
)
def test_messages_are_short_for_any_list(root: Path, text: str) -> None:
    (root / "list").write_text(text)
    with pytest.raises((ValueError, OSError)) as caught:
        read_records(root, "list", kind="video", classes=["up", "down"])
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    assert str(root / "list") in str(caught.value)


SPANS = [[0.0, np.inf], [1.5, 4.0], [2.0, np.inf], [0.0, 0.5]]


@pytest.mark.parametrize("columns", ["start_s,end_s", "start,end", "time_start,time_end"])
def test_seconds(root: Path, columns: str) -> None:
    start, end = columns.split(",")
    (root / "list").write_text(
        f"path,{columns},label\n{RIGHT_A},,,right\n{RIGHT_A},1.5,4,right\n{RIGHT_A},2,,right\n{RIGHT_A},,5e-1,right\n"
    )
    records = read_records(root, "list", kind="video")
    assert records.spans is not None and records.spans.dtype == np.float64
    assert records.spans.tolist() == SPANS
    rows = [{start: None}, {start: 1.5, end: 4}, {start: "2", end: ""}, {end: 0.5}]
    (root / "list").write_text("\n".join(json.dumps({"path": RIGHT_A, "label": 1} | row) for row in rows))
    records = read_records(root, "list", kind="video")
    assert records.spans is not None and records.spans.tolist() == SPANS
    (root / "list").write_text(f"path,{columns},label\n{RIGHT_A},0,,right\n")
    assert read_records(root, "list", kind="video").spans is None


def test_classes_of_a_checkpoint_keep_their_order(root: Path) -> None:
    classes = ["up", "right", "left"]
    (root / "list.txt").write_text(f"{RIGHT_A},right\n{RIGHT_B},2\n")
    assert table(read_records(root, "list.txt", kind="video", classes=classes)) == [(RIGHT_A, 1), (RIGHT_B, 2)]
    records = read_records(root, "videos/train", kind="video", classes=classes)
    assert records.classes == ("up", "right", "left")
    assert records.labels.tolist() == [2, 1, 1]


def test_class_name_comes_before_a_class_index(root: Path) -> None:
    """Digits in a checkpoint may be classes named 9 and 0."""
    (root / "list.txt").write_text(f"{RIGHT_A},0\n{RIGHT_B},9\n")
    assert read_records(root, "list.txt", kind="video", classes=["9", "0"]).labels.tolist() == [1, 0]


def test_class_indices_without_names_count_from_zero(root: Path) -> None:
    (root / "list.txt").write_text(f"{RIGHT_A},10\n{RIGHT_B},2\n")
    records = read_records(root, "list.txt", kind="video")
    assert records.classes == tuple(str(i) for i in range(11))
    assert records.labels.tolist() == [10, 2]


def test_unknown_labels_are_named_with_the_known_classes(root: Path) -> None:
    assert_error(
        r"videos/train: left, right not among the 2 classes expected \(up, down",
        root,
        "videos/train",
        classes=["up", "down"],
    )
    (root / "list.txt").write_text(f"{RIGHT_A},-1\n")
    assert_error(
        r"list\.txt, line 1: -1 not among the 2 classes expected \(up, down", root, "list.txt", classes=["up", "down"]
    )
    (root / "list.txt").write_text(f"{RIGHT_A},up\n\n{RIGHT_A},right\n{RIGHT_A},2\n{RIGHT_A},right\n{RIGHT_A},1\n")
    assert_error(
        r"list\.txt, line 3: right, 2 not among the 2 classes expected \(up, down",
        root,
        "list.txt",
        classes=["up", "down"],
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.txt: lists no files; write a line `path,label` for each"),
        ("path,label\n", r"list\.txt: lists no files"),
        (f"{RIGHT_A},right\n\n{RIGHT_B},right,3\n", r"list\.txt, line 3: must have a path and a label"),
        (f"{RIGHT_A},right\n{RIGHT_B},\n", r"list\.txt, line 2"),
        (f"path,label,fold\n{RIGHT_A},right,3\n{RIGHT_B}\n", r"list\.txt, line 3"),
        (f"{RIGHT_A} 1\nlonely.mp4\n", r"list\.txt, line 2: must have a path and a label, got 'lonely\.mp4'"),
        (f"{RIGHT_A} 1\n{RIGHT_A} 1700000000\n", r"list\.txt, line 2: 1700000000 is not a class index"),
        (f"{RIGHT_A} 1\n{RIGHT_A} -1\n", r"list\.txt, line 2: -1 is not a class index; write indices from 0 to 99999"),
        (f"{RIGHT_A},1,2\n", r"line 1: must have a path and a label, got .*; more columns need a header"),
        (
            f"path,label\n{RIGHT_A},right\n\nmy, clip.mp4,right\n",
            r"line 4: must have path, label, got 'my clip.mp4 right'",
        ),
        (f'{RIGHT_A},right\n"{RIGHT_B},right\n{RIGHT_B},right\n', r"line 2: not a csv .* quote that is not closed"),
        ("dir/abc 163 7\ndir/def 20 0\n", r"line 1: 'dir/abc 163 7' ends in two numbers, but folders of frames"),
        ("\na.mp4 1 3\n", r"line 2: .* several labels of one file are not supported; list the files"),
        (
            f"path,label,start_s,end_s\n{RIGHT_A},a,,\n{RIGHT_A},a,3,3\n",
            r"line 3: must have 0 <= start < end in seconds, got 3 and 3",
        ),
        (f"path,label,start_s,end_s\n{RIGHT_A},a,-1,\n", "line 2: must have 0 <= start < end"),
        (f"path,label,start_s,end_s\n{RIGHT_A},a,nan,\n", "line 2: must have 0 <= start < end"),
        (f"path,label,start_s,end_s\n{RIGHT_A},a,0,nan\n", "line 2: must have 0 <= start < end"),
        (f"path,label,start_s,end_s\n{RIGHT_A},a,0:10,\n", "line 2: '0:10' is not a time; write seconds or HH:MM:SS"),
        (f'{{"path": "{RIGHT_A}", "label": 1}}\n{{"path": "{RIGHT_A}", "label": }}', "line 2: not JSON"),
        (f'{{"path": "{RIGHT_A}", "label": 1}}\n["{RIGHT_A}", 1, 2]', "line 2: must be a JSON object"),
        (f'{{"path": "{RIGHT_A}", "label": 1}}\n{{"path": "{RIGHT_A}"}}', "line 2: has no label"),
        (
            f'{{"path": "{RIGHT_A}", "label": true}}',
            "line 1: must have a path and a label, got .* True'; write the label as a name",
        ),
        (f'{{"path": "{RIGHT_A}", "label": 1.5}}', "line 1: must have a path and a label"),
        (f'{{"path": "{RIGHT_A}", "label": 1, "start": [1]}}', r"line 1: '\[1\]' is not a time"),
        ('{"path": 3, "label": 1}', "line 1: must have a path and a label"),
        ('{\n"path": "a.mp4",\n"label": 1\n}', r"list\.txt: is one JSON object, not keyed by video ids"),
        (",\n,\n", r"list\.txt: lists no files"),
        (f"{RIGHT_A} 1\n{RIGHT_A} {'9' * 5000}\n", r"list\.txt, line 2: 9+"),
        (f'{{"path": "{RIGHT_A}", "label": {"9" * 5000}}}', r"line 1: not JSON \(Exceeds the limit"),
        ("[" * 100_000, r"list\.txt, line 1: not JSON \(.*write one array"),
        (f'{{"path": "{RIGHT_A}", "label": 1, "start": true}}', "line 1: 'True' is not a time"),
        (f"{RIGHT_A} 1\nvideos/../list.txt 0\n", r"line 2: the list names itself; remove the line"),
        ("label,youtube_id,start_frame\na,b,3\n", "line 1: files of a youtube_id are cut to seconds, not to frames"),
        (f'{RIGHT_A},"right\n' + 20_000 * f"{RIGHT_B},right\n", "quote that is not closed"),
    ],
)
def test_malformed_lists(root: Path, text: str, message: str) -> None:
    (root / "list.txt").write_text(text)
    assert_error(message, root, "list.txt")


def test_lists_must_be_text(root: Path) -> None:
    (root / "list.txt").write_bytes(f"{RIGHT_A},left\n".encode() + b"caf\xe9.mp4,left\n")
    assert_error(r"list\.txt, line 2: not text in UTF-8; save the list in UTF-8, not compressed", root, "list.txt")
    for encoding in ("utf-16", "utf-16-le"):  # with a byte order mark, and without
        (root / "list.txt").write_text(f"{RIGHT_A},left\n", encoding=encoding)
        assert_error(r"list\.txt, line 1: not text in UTF-8", root, "list.txt")


def test_absent_files_are_counted_and_named(root: Path) -> None:
    absent = [f"gone/{i}.mp4" for i in range(5)]
    (root / "list.txt").write_text("".join(f"{name},0\n" for name in [*absent, RIGHT_A]))
    assert_error(
        r"line 1: 5 of 6 listed files .*: gone/0\.mp4, .* gone/2\.mp4, \.\.\.",
        root,
        "list.txt",
        error=FileNotFoundError,
    )
    (root / "list.txt").write_text("videos\\train\\a.mp4,0\n")
    assert_error(r"videos\\train\\a\.mp4; write / in place of \\$", root, "list.txt", error=FileNotFoundError)
    caf = os.fsdecode(b"caf\xe9.mp4")
    (root / "list.txt").write_text("".join(json.dumps({"path": f"{n}/{caf}", "label": 0}) + "\n" for n in range(3)))
    with pytest.raises(FileNotFoundError, match=r": 0/caf\\xe9\.mp4, 1/caf\\xe9\.mp4, 2/caf\\xe9\.mp4; correct"):
        read_records(root, "list.txt", kind="video")  # the message can be printed


def test_list_in_the_working_directory_is_not_read_but_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    Path("here.csv").write_text(f"{RIGHT_A},0\n")
    found = tmp_path / "cwd" / "here.csv"
    assert_error(f", or give the whole path {found}$", root, "here.csv", error=FileNotFoundError)


def test_missing_and_empty_folders(root: Path) -> None:
    assert_error(r"nowhere: no such folder; set data\.root", root / "nowhere", "train", error=FileNotFoundError)
    (root / ".void").mkdir()
    assert_error(
        r"tain: no such folder or list file; choose from what .* holds: videos$", root, "tain", error=FileNotFoundError
    )
    assert_error(
        r"val: no such folder or list file; .* holds: nothing$", root / ".void", "val", error=FileNotFoundError
    )
    assert_error(
        r"empty: no video in it \(1 files .*: 1 \.md\); put files with an ending of docs", root, "videos/train/empty"
    )
    assert_error(r"left: holds my clip, 1\.avi outside any class folder", root, "videos/train/left")


def test_records_are_compact() -> None:
    """Each worker gets a copy: 100,000 videos take little more memory than their names."""
    names = [f"class/video_{i:06d}.mp4" for i in range(100_000)]
    records = Records.build(Path("/data"), ["class"], names, [0] * len(names))
    content = pickle.dumps(records)
    assert len(content) < len("".join(names)) + 17 * len(names)
    copy = pickle.loads(content)
    assert [copy.name(i) for i in (0, 777, -1)] == [names[0], names[777], names[-1]]
    with pytest.raises(IndexError):
        copy.name(len(names))


class Touching(Dataset):
    """Its one item is the private memory that a process gains by reading many records."""

    def __init__(self, read: Callable[[int], object], num_records: int) -> None:
        self.read, self.num_records = read, num_records

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        before = private_bytes()
        for i in range(self.num_records):
            self.read(i)
        return private_bytes() - before


def private_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kilobytes) for kilobytes in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.MULTILINE))


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="the memory that processes share is read from /proc"
)
def test_memory_of_workers_is_flat() -> None:
    """A worker that has read 300,000 records still shares them with its parent; it copies a Python list."""
    names = [f"train/riding a bike/{i:011d}_000010_000020.mp4" for i in range(300_000)]
    records = Records.build(Path("/data"), ["x"], names, [0] * len(names), np.zeros((len(names), 2)))
    plain = [(name, 0) for name in names]
    del names

    def read(i: int) -> object:
        # Not the path: the interpreter keeps a table of the parts of paths, which each new part may move in memory.
        return records.name(i), records.labels[i], records.spans[i]

    (ours,), (theirs,) = (
        DataLoader(Touching(way, len(plain)), batch_size=None, num_workers=1, multiprocessing_context="fork")
        for way in (read, lambda i: [*plain[i]])
    )
    assert ours < 4e6 < 40e6 < theirs


def test_open_returns_the_bytes_of_a_file(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        touch(tmp_path, name)
        (tmp_path / name).write_text(name)
    assert read_records(tmp_path, kind="image").open(1).read() == b"b/2.png"


def test_names_of_any_spelling() -> None:
    names = ["ü/日本.mp4", "a b/\udce9.mp4", "c.mp4"]  # the second is not UTF-8 on the disk
    records = Records.build(Path("/data"), ["x"], names, [0, 0, 0])
    assert [records.name(i) for i in range(3)] == names


def test_files_and_classes_that_are_not_utf8_on_the_disk(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    with open(folder + b"/\xff.mp4", "wb"):  # noqa: PTH123
        records = read_records(tmp_path, kind="video")
    assert records.classes == (r"caf\xe9",)  # can be printed and saved
    assert records.path(0).exists() and os.fsencode(records.name(0)) == b"caf\xe9/\xff.mp4"
    (tmp_path / "list").write_text(json.dumps({"path": records.name(0), "label": "x"}))
    assert read_records(tmp_path, "list", kind="video").path(0).exists()


HEADER = "label,youtube_id,time_start,time_end,split"
KINETICS = f"""{HEADER}
riding a bike,-abc_123-56,43,53,train
"mixing, stirring",_bcdefghij-,0,10,train
abseiling,cdefghijklm,7,17,train
zumba,goneforever,1,11,train
riding a bike,efghijklmno,120,130,train
"""


@pytest.mark.parametrize(
    "names",
    [
        ("-abc_123-56_000043_000053.mp4", "_bcdefghij-_000000_000010.MKV", "cdefghijklm_000007_000017.webm"),
        ("-abc_123-56_43_53.mp4", "_bcdefghij-_0_10.avi", "cdefghijklm_7_17.mp4"),
        ("-abc_123-56.mp4", "_bcdefghij-.mp4", "cdefghijklm.mp4"),
    ],
    ids=["six digits", "plain", "id alone"],
)
@pytest.mark.parametrize(
    "folders",
    [
        ("train/riding a bike", "train/mixing, stirring", "train/abseiling", "train/riding a bike"),
        ("train/riding_a_bike", "train/mixing,_stirring", "train/abseiling", "train/riding_a_bike"),
        ("", "", "", ""),
    ],
    ids=["spaces", "underscores", "flat"],
)
def test_kinetics_csv_is_joined_with_the_files(
    tmp_path: Path, names: tuple[str, ...], folders: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    files = [str(Path(folder) / name) for folder, name in zip(folders, [*names, "efghijklmno.mp4"], strict=True)]
    touch(tmp_path, *files, "train/cdefghijklm_000007_000018.mp4", "cdefghijklm_7_17.txt", ".old/cdefghijklm.mp4")
    for text in (
        KINETICS,
        "\ufeff" + KINETICS.replace("\n", ",0\r\n").replace("split,0", "split,is_cc"),
        KINETICS.replace("43,53", "43.0,53.0"),
    ):
        (tmp_path / "kinetics_train.csv").write_bytes(text.encode())
        caplog.clear()
        with caplog.at_level(logging.INFO):
            records = read_records(tmp_path, "kinetics_train.csv", kind="video")
        assert table(records) == [(files[0], 2), (files[1], 1), (files[2], 0), (files[3], 2)]
        assert records.classes == (
            "abseiling",
            "mixing, stirring",
            "riding a bike",
            "zumba",
        )  # there is no file of zumba
        assert records.missing == 1
        assert records.spans is None  # the files are already cut
        assert "left out 1 of 5 listed videos: goneforever (line 5)" in caplog.text
        assert "kinetics_train.csv: Kinetics csv, 4 files, 4 classes, 1 missing" in caplog.text
    classes = ["zumba", "riding a bike", "abseiling", "mixing, stirring"]
    records = read_records(tmp_path, "kinetics_train.csv", kind="video", classes=classes)
    assert records.labels.tolist() == [1, 3, 2, 1]
    assert_error(
        r"kinetics_train\.csv, line 5: zumba not among the 3 classes",
        tmp_path,
        "kinetics_train.csv",
        classes=classes[1:],
    )


def test_kinetics_id_that_is_listed_twice_is_found_by_its_seconds_alone(tmp_path: Path) -> None:
    """`a.mp4` may be either of two rows; `b.mp4` is one clip, though it is listed with two labels."""
    touch(tmp_path, "a.mp4", "a_000020_000030.mp4", "b.mp4", "dance/c_1_11.mp4", "sing_loud/c_1_11.mp4")
    touch(tmp_path, "dance/d.mp4", "sing loud/d.mp4")
    rows = ["dance,a,0,10", "sing loud,a,20,30", "dance,b,5,15", "sing loud,b,5,15"]
    rows += ["dance,c,1,11", "sing loud,c,1,11", "dance,d,1,11", "sing loud,d,1,11"]
    (tmp_path / "k.csv").write_text("\n".join([HEADER, *(f"{row},train" for row in rows)]))
    records = read_records(tmp_path, "k.csv", kind="video")
    assert records.missing == 1
    assert table(records) == [
        *[("a_000020_000030.mp4", 1), ("b.mp4", 0), ("b.mp4", 1)],
        *[("dance/c_1_11.mp4", 0), ("sing_loud/c_1_11.mp4", 1), ("dance/d.mp4", 0), ("sing loud/d.mp4", 1)],
    ]


def test_two_files_of_one_kinetics_row_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "320p/a_000000_000010.mp4", "256p/a_000000_000010.mp4")
    (tmp_path / "k.csv").write_text(f"{HEADER}\ndance,a,0,10,train\n")
    assert_error(r"k\.csv, line 2: 256p/a_\S+ and 320p/a_\S+ are both its file; keep one", tmp_path, "k.csv")


def test_splits_of_a_kinetics_csv(tmp_path: Path) -> None:
    """The split selects rows, under all names of val; a list of one split is taken whole."""
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "all.csv").write_text(f"{HEADER}\ndance,a,0,10,train\nsing,b,0,10,validate\n,c,0,10,test\n")
    assert read_records(tmp_path, "all.csv", kind="video", split="train").name(0) == "a.mp4"
    assert read_records(tmp_path, "all.csv", kind="video", split="val").name(0) == "b.mp4"
    for split in (None, "fold1"):
        assert_error(rf"all\.csv: lists the splits test, train, val, but not {split}", tmp_path, "all.csv", split=split)
    assert_error(r"all\.csv, line 4: has no label", tmp_path, "all.csv", split="test")
    (tmp_path / "val.csv").write_text(f"{HEADER}\ndance,a,0,10,validation\nsing,b,0,10,validate\nsing,c,0,10,val\n")
    for split in (None, "val", "test"):
        assert len(read_records(tmp_path, "val.csv", kind="video", split=split)) == 3


def test_unusable_kinetics_lists_are_errors(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\na,0,10,test\n")
    assert_error(r"test\.csv, line 2: has no label", tmp_path, "test.csv")
    (tmp_path / "k.csv").write_text(f"{HEADER}\ndance,x,0,10,val\ndance,y,0,10,val\n")
    assert_error(
        r"k\.csv: none of the 2 listed videos is under .*: x \(line 2\), y", tmp_path, "k.csv", error=FileNotFoundError
    )
    (tmp_path / "k.csv").write_text(f"{HEADER}\ndance,a,0,10\n")
    assert_error(r"k\.csv, line 2: must have label, youtube_id, .* got 'dance a 0 10'", tmp_path, "k.csv")
    (tmp_path / "k.csv").write_text(f"{HEADER}\n")
    assert_error(r"k\.csv: lists no files", tmp_path, "k.csv")


@pytest.mark.parametrize(
    ("listing", "text", "form"),
    [
        ("videos/train", None, "class folders, 3 files, 2 classes, 0 missing"),
        ("list", f"{RIGHT_A} 3", "path label, 1 files, 4 classes, 0 missing"),
        ("list", f"{RIGHT_A},right", "path,label, 1 files, 1 classes, 0 missing"),
        ("list", f"label,path\nright,{RIGHT_A}", "csv with label, path, 1 files"),
        ("list", f'{{"path": "{RIGHT_A}", "label": 0}}', "JSON lines, 1 files"),
    ],
)
def test_log_names_the_format_and_the_counts(
    root: Path, listing: str, text: str | None, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    if text:
        (root / listing).write_text(text)
    with caplog.at_level(logging.INFO):
        read_records(root, listing, kind="video")
    *warnings, message = caplog.messages
    assert message.startswith(f"{root / listing}: {form}")
    left_out = "left out 2 files with other endings: 1 .md, 1 .txt; folders without any video: empty"
    assert warnings == ([] if text else [f"{root / listing}: {left_out}"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real videos are absent")
def test_real_list_equals_the_real_folders() -> None:
    by_list = read_records(REAL / "scfd256", "metadata.csv", kind="video")
    by_folder = read_records(REAL / "scfd256", kind="video")
    assert by_list.classes == by_folder.classes == ("fight", "noFight")
    assert len(by_list) == 300 and sorted(table(by_list)) == sorted(table(by_folder))


def test_unreadable_folder_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the classes would be different."""
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "left":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert_error(
        r"left: cannot be read \(Permission denied\); make it readable, its files",
        root,
        "videos/train",
        error=PermissionError,
    )


def test_class_indices_written_as_fractions_are_errors(root: Path) -> None:
    (root / "list.txt").write_text(f"{RIGHT_A},1\n{RIGHT_B},2.0\n")
    assert_error(r"list\.txt, line 2: 2\.0 is not a class index; write 2", root, "list.txt")
    assert read_records(root, "list.txt", kind="video", classes=["1", "2.0"]).labels.tolist() == [0, 1]
