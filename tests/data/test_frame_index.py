"""An index says of a file what opening it would, as long as the file is the same."""

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_videos import write_numbered

from sparsevideo.data.frame_index import HEADER, VERSION, read_index, stamp
from sparsevideo.data.scan import scan
from sparsevideo.io.backends import open_video, read_frames
from sparsevideo.io.errors import DecodeError

KINDS: dict[str, dict[str, Any]] = {
    "regular.mp4": {"options": {"g": "12", "bf": "3"}},
    "irregular.mkv": {"irregular": True},
    "counted.ts": {},
}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scanned folder: a file of every kind, and one that does not decode."""
    root = tmp_path_factory.mktemp("scanned")
    for name, how in KINDS.items():
        write_numbered(root / name, 40, **how)
    (root / "bad.mp4").write_bytes(b"no video")
    scan(root, root / "index.jsonl", workers=1)
    return root


def write_index(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in [{HEADER: VERSION, "decoders": []}, *rows]))
    return path


def test_it_says_what_opening_says(scanned: Path) -> None:
    names = ["counted.ts", "regular.mp4", "irregular.mkv", "unknown.mp4", "bad.mp4"]
    index = pickle.loads(pickle.dumps(read_index(scanned / "index.jsonl", iter(names))))
    for number, name in enumerate(names[:3]):
        with open_video(scanned / name, verify=True) as video:
            true, told = video.table, index.look(number, scanned / name)
        assert (told is None) == (true is None) == (name == "irregular.mkv")
        if true is not None and told is not None:
            assert told[:3] == true[:3]
            assert told.keyframes.dtype == np.int32
            np.testing.assert_array_equal(told.keyframes, true.keyframes)
        with open_video(scanned / name, table=told) as video:
            np.testing.assert_array_equal(video.read([31, 5]), read_frames(scanned / name, [31, 5]))
    assert index.look(3, scanned / "unknown.mp4") is None
    with pytest.raises(DecodeError, match=r"bad\.mp4: marked bad by the scan \(does not decode \(Invalid data .*again"):
        index.look(4, scanned / "bad.mp4")
    assert [bool(index.error(number)) for number in range(5)] == [False, False, False, False, True]


def test_a_file_that_has_changed_is_not_known(scanned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["regular.mp4", "bad.mp4"]
    index = read_index(scanned / "index.jsonl", names)
    for number, name in enumerate(names):
        copy = tmp_path / name
        copy.write_bytes((scanned / name).read_bytes())
        then = (scanned / name).stat().st_mtime_ns
        os.utime(copy, ns=(then, then))
        if name == "regular.mp4":
            assert index.look(number, copy) is not None  # moved, but the same
        os.utime(copy, ns=(then, then + 1))
        assert index.look(number, copy) is None
        copy.write_bytes(copy.read_bytes() + b"!")
        os.utime(copy, ns=(then, then))
        assert index.look(number, copy) is None
        copy.unlink()
        assert index.look(number, copy) is None  # whoever opens it says what is wrong
    assert caplog.text.count("some files have changed") == 1


def test_later_rows_count_and_a_torn_last_line_does_not(scanned: Path, tmp_path: Path) -> None:
    content = (scanned / "index.jsonl").read_bytes()
    size, changed = stamp(scanned / "regular.mp4")
    path = tmp_path / "index.jsonl"
    row = {"path": "regular.mp4", "bytes": size, "mtime_ns": changed, "error": "is odd"}
    good = next(line for line in content.splitlines(keepends=True) if b"regular.mp4" in line)
    bad = content + json.dumps(row).encode() + b"\n"
    path.write_bytes(bad + good[:50])
    with pytest.raises(DecodeError, match="is odd"):
        read_index(path, ["regular.mp4"]).look(0, scanned / "regular.mp4")
    path.write_bytes(bad + good)
    assert read_index(path, ["regular.mp4"]).look(0, scanned / "regular.mp4") is not None


def test_videos_listed_several_times_share_a_row(scanned: Path) -> None:
    """As parts of one video are."""
    index = read_index(scanned / "index.jsonl", ["regular.mp4", "regular.mp4", "bad.mp4"])
    tables = [index.look(number, scanned / "regular.mp4") for number in (0, 1)]
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0].keyframes.tolist() == tables[1].keyframes.tolist()
    assert index.error(2) and not index.error(1)


@pytest.mark.parametrize("last", [290, 200_000], ids=["short", "an hour between two keyframes"])
def test_many_videos_take_little_memory(last: int, tmp_path: Path) -> None:
    count, keyframes = 20_000, [0, 100, 250, last]
    rows = [
        {"path": f"{i}.mp4", "bytes": i, "mtime_ns": i, "num_frames": 300_000, "start": i, "step": 512}
        | {"keyframes": keyframes}
        for i in range(count)
    ]
    index = read_index(write_index(tmp_path / "index.jsonl", rows), (f"{i}.mp4" for i in range(count)))
    assert len(pickle.dumps(index)) < count * (50 + (1 if last < 500 else 4) * len(keyframes))
    table = index.table(count - 1)
    assert table is not None
    assert (table.num_frames, table.start, table.step) == (300_000, count - 1, 512)
    assert table.keyframes.tolist() == keyframes


BEGIN = '{"sparsevideo_index": 1, "decoders": []}\n'
BAD = '{"path": "other.mp4", "bytes": 1, "mtime_ns": 2, "error": "is odd"}'
GOOD = '{"path": "a.mp4", "bytes": 1, "mtime_ns": 2, "num_frames": 3, "start": 0, "step": 1, "keyframes": [0]}'


def without(key: str, row: str) -> str:
    return json.dumps({name: value for name, value in json.loads(row).items() if name != key})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "is no index of version 1"),
        ('{"sparsevideo_index": 99}\n', "is no index of version 1"),
        ("", "knows none of the 1 videos listed; scan the folder that data.root names"),
        (f"{BEGIN}{BAD}\n", "knows none of the 1 videos"),
        (f"{BEGIN}\0\0\0\n{BAD}\n", "line 2: is damaged"),
        (f"{BEGIN}[1]\n", "line 2: is damaged"),
        ('{"sparsevideo_index": 1}\n', "line 1: is damaged"),
        *((f"{BEGIN}{BAD}\n{without(key, BAD)}\n", "line 3: is damaged") for key in json.loads(BAD)),
        *((f"{BEGIN}{GOOD}\n{without(key, GOOD)}\n", "line 3: is damaged") for key in json.loads(GOOD)),
    ],
)
def test_what_is_no_index_says_so(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"index\.jsonl.*{message}"):
        read_index(tmp_path / "index.jsonl", ["a.mp4"])


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"index\.jsonl: no such index; `sparsevideo data scan ROOT` writes one"
    ):
        read_index(tmp_path / "index.jsonl", ["a.mp4"])


def test_what_is_known_is_counted(scanned: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read_index(scanned / "index.jsonl", [*KINDS, "bad.mp4", "unknown.mp4"])
    assert "knows 4 of 5 files, 1 of them bad" in caplog.text
