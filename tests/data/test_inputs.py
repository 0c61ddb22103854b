"""Inputs of a prediction: files, folders, patterns, lists and URLs become records in their order, each file once."""

import numpy as np
import pytest

from sparsevideo.data.inputs import find_inputs, make_inputs
from sparsevideo.io import DecodeError, write_video
from sparsevideo.io.sources import Remote

FILES = ("b/2.mp4", "b/1.MKV", "b/deep/3.webm", "b/notes.txt", "b/.hidden.mp4", "a.mp4", "c [1].mp4", "photo.jpg")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs, kind="video"):
    records = find_inputs(inputs, kind, ["up", "down"])
    return [records.name(index) for index in range(len(records))]


def test_inputs_are_expanded_in_their_order(folder, caplog):
    caplog.set_level("INFO")
    assert names("b") == ["b/1.MKV", "b/2.mp4", "b/deep/3.webm"]
    assert "b: left out 1 files with other endings: 1 .txt" in caplog.text
    assert names("c [1].mp4", "missing.mp4", "a.mp4") == ["c [1].mp4", "missing.mp4", "a.mp4"]
    assert names("*.mp4") == ["a.mp4", "c [1].mp4"]
    assert names(f"{folder}/**/*.mp4") == [f"{folder}/{name}" for name in ("a.mp4", "b/2.mp4", "c [1].mp4")]
    assert names(".", kind="image") == ["photo.jpg"]
    assert names("http://h/a.mp4?x=1", f"file://{folder}/a.mp4") == [
        "http://h/a.mp4?hidden-1f206b11",
        f"{folder}/a.mp4",
    ]


def test_inputs_named_twice_count_once(folder, caplog):
    caplog.set_level("INFO")
    assert names("a.mp4", ".", f"{folder}/b/../a.mp4", "http://h/a.mp4", "http://h/a.mp4")[0] == "a.mp4"
    assert f"predicted once, although named twice: a.mp4, {folder}/b/../a.mp4, http://h/a.mp4" in caplog.text


def test_lists_are_relative_to_their_own_folder_and_their_labels_are_ignored(folder):
    (folder / "b/list.txt").write_text("2.mp4\n../c [1].mp4\n")
    (folder / "b/list.csv").write_text("path,label,start_s,end_s\n2.mp4,unheard of,0,1\n2.mp4,-1,1,\n")
    assert names("b/list.txt") == ["b/2.mp4", "b/../c [1].mp4"]
    records = find_inputs(["b/list.csv", "a.mp4"], "video", ["up", "down"])
    assert [records.segment(index) for index in range(3)] == ["b/2.mp4 [0-1 s]", "b/2.mp4 [from 1 s]", "a.mp4"]
    assert records.labels.tolist() == [-1] * 3 and records.classes == ("up", "down")


@pytest.mark.parametrize(
    ("inputs", "content", "message"),
    [
        (["empty"], "", r"empty: no video in it$"),
        (["images"], "", r"images: no video in it \(1 files with other endings: 1 \.png, images among them\)"),
        (["*.avi"], "", r"\*\.avi: no video among its 0 matches; correct the pattern"),
        (
            ["list.txt"],
            "a.mp4\nnowhere.mp4",
            r"1 of 2 listed files are not in \., which is the folder of the list: now",
        ),
        (["rtsp://host/a"], "", r"rtsp://host/a: rtsp:// is not supported"),
        (["list.csv", "list.txt"], "path,start_frame\na.mp4,3", r"segments in seconds and in frames; predict one list"),
    ],
)
def test_inputs_without_files_are_one_line(inputs, content, message, folder):
    (folder / "empty").mkdir()
    (folder / "images").mkdir()
    (folder / "images/a.png").write_bytes(b"")
    (folder / "list.txt").write_text(content)
    (folder / "list.csv").write_text("path,start_s\na.mp4,1")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        names(*inputs)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("video", "a.JPG", "a.JPG: is an image, but the network takes videos"),
        ("image", "a.mp4", "a.mp4: is a video, but the network takes images"),
        ("image", "s3://b/a.mkv?v=.jpg", r"s3://b/a.mkv\?hidden-.*: is a video, but"),
    ],
)
def test_inputs_of_the_other_kind_are_refused_when_they_are_read(kind, name, message, monkeypatch):
    monkeypatch.setattr("sparsevideo.data.inputs.check_url", lambda url: None)
    inputs = make_inputs([name], kind, ["up"])
    with pytest.raises(DecodeError, match=message):
        inputs.open(0) if kind == "image" else inputs.source(0)
    assert make_inputs(["a.gif"], kind, ["up"]).source(0).name == "a.gif"  # both kinds have this ending


def test_remote_inputs_in_a_file_system_of_fsspec(folder):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    write_video(folder / "real.mp4", np.zeros((4, 32, 32, 3), np.uint8))
    memory.pipe_file("/real.mp4", (folder / "real.mp4").read_bytes())
    inputs = find_inputs(["memory://real.mp4"], "video", ["up"])
    assert inputs.source(0) == Remote("memory://real.mp4")
    assert inputs.open(0).read() == (folder / "real.mp4").read_bytes()
