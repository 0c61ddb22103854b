"""An index gives the same results as opening an unchanged file."""

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_videos import write_numbered

from sparsevideo.data.frame_index import HEADER, VERSION, read_index, size_and_mtime
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
    """A scanned folder with a file of each kind and one that does not decode."""
    root = tmp_path_factory.mktemp("scanned")
    for name, how in KINDS.items():
        write_numbered(root / name, 40, **how)
    (root / "bad.mp4").write_bytes(b"no video")
    scan(root, root / "index.jsonl", num_workers=1)
    return root


def test_index_gives_the_tables_of_open_video(scanned: Path) -> None:
    names = ["counted.ts", "regular.mp4", "irregular.mkv", "unknown.mp4", "bad.mp4"]
    index = pickle.loads(pickle.dumps(read_index(scanned / "index.jsonl", iter(names))))
    for i, name in enumerate(names[:3]):
        with open_video(scanned / name, verify=True) as video:
            expected, table = video.table, index.checked_table(i, scanned / name)
        assert (table is None) == (expected is None) == (name == "irregular.mkv")
        if expected is not None and table is not None:
            assert table[:3] == expected[:3]
            assert table.keyframes.dtype == np.int32
            np.testing.assert_array_equal(table.keyframes, expected.keyframes)
        with open_video(scanned / name, table=table) as video:
            np.testing.assert_array_equal(video.read([31, 5]), read_frames(scanned / name, [31, 5]))
    assert index.checked_table(3, scanned / "unknown.mp4") is None
    with pytest.raises(DecodeError, match=r"bad\.mp4: marked bad by the scan \(does not decode \(Invalid data .*again"):
        index.checked_table(4, scanned / "bad.mp4")
    assert [bool(index.error(i)) for i in range(5)] == [False, False, False, False, True]


def test_index_is_not_used_for_changed_files(scanned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["regular.mp4", "bad.mp4"]
    index = read_index(scanned / "index.jsonl", names)
    for i, name in enumerate(names):
        copy = tmp_path / name
        copy.write_bytes((scanned / name).read_bytes())
        then = (scanned / name).stat().st_mtime_ns
        os.utime(copy, ns=(then, then))
        if name == "regular.mp4":
            assert index.checked_table(i, copy) is not None  # moved, but not changed
        os.utime(copy, ns=(then, then + 1))
        assert index.checked_table(i, copy) is None
        copy.write_bytes(copy.read_bytes() + b"!")
        os.utime(copy, ns=(then, then))
        assert index.checked_table(i, copy) is None
        copy.unlink()
        assert index.checked_table(i, copy) is None  # opening it raises the error
    assert caplog.text.count("some files have changed") == 1


def test_last_row_counts_unless_truncated(scanned: Path, tmp_path: Path) -> None:
    content = (scanned / "index.jsonl").read_bytes()
    size, mtime_ns = size_and_mtime(scanned / "regular.mp4")
    path = tmp_path / "index.jsonl"
    row = {"path": "regular.mp4", "bytes": size, "mtime_ns": mtime_ns, "error": "is odd"}
    good = next(line for line in content.splitlines(keepends=True) if b"regular.mp4" in line)
    bad = content + json.dumps(row).encode() + b"\n"
    path.write_bytes(bad + good[:50])
    with pytest.raises(DecodeError, match="is odd"):
        read_index(path, ["regular.mp4"]).checked_table(0, scanned / "regular.mp4")
    path.write_bytes(bad + good)
    assert read_index(path, ["regular.mp4"]).checked_table(0, scanned / "regular.mp4") is not None


def test_parts_of_one_video_share_a_row(scanned: Path) -> None:
    index = read_index(scanned / "index.jsonl", ["regular.mp4", "regular.mp4", "bad.mp4"])
    tables = [index.checked_table(i, scanned / "regular.mp4") for i in (0, 1)]
    assert tables[0] is not None and tables[1] is not None
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
    lines = [json.dumps(row) + "\n" for row in [{HEADER: VERSION, "decoders": []}, *rows]]
    (tmp_path / "index.jsonl").write_text("".join(lines))
    index = read_index(tmp_path / "index.jsonl", (f"{i}.mp4" for i in range(count)))
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
        ("path,label\n", "is not an index of version 1"),
        ('{"sparsevideo_index": 99}\n', "is not an index of version 1"),
        ("", "contains none of the 1 videos listed; scan the folder that data.root names"),
        (f"{BEGIN}{BAD}\n", "contains none of the 1 videos"),
        (f"{BEGIN}\0\0\0\n{BAD}\n", "line 2: is damaged"),
        (f"{BEGIN}[1]\n", "line 2: is damaged"),
        ('{"sparsevideo_index": 1}\n', "line 1: is damaged"),
        *((f"{BEGIN}{BAD}\n{without(key, BAD)}\n", "line 3: is damaged") for key in json.loads(BAD)),
        *((f"{BEGIN}{GOOD}\n{without(key, GOOD)}\n", "line 3: is damaged") for key in json.loads(GOOD)),
    ],
)
def test_invalid_index(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"index\.jsonl.*{message}"):
        read_index(tmp_path / "index.jsonl", ["a.mp4"])


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.jsonl: no such index; `sparsevideo data scan ROOT` writes"):
        read_index(tmp_path / "index.jsonl", ["a.mp4"])


def test_number_of_known_files_is_logged(scanned: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read_index(scanned / "index.jsonl", [*KINDS, "bad.mp4", "unknown.mp4"])
    assert "contains 4 of 5 files, 1 of them bad" in caplog.text
