"""A scan finds all bad files, keeps its results when it is stopped, and decodes no file twice."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from numbered_videos import write_numbered, zero_third_quarter
from test_tar_shards import write_tar
from toy_runs import interruptible

from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.data.frame_index import read_index, size_and_mtime
from sparsevideo.data.scan import _locked
from sparsevideo.data.tar_shards import read_shards
from sparsevideo.io.backends import open_video
from sparsevideo.io.errors import DecodeError

INDEX = "sparsevideo-index.jsonl"
LATIN_1 = os.fsdecode(b"caf\xe9.mp4")  # a name that is not UTF-8


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Content of a good file."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_numbered(path, 30)
    return path.read_bytes()


def put(root: Path, *names: str, content: bytes) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def scan(root: Path, *options: object) -> int:
    return main(["data", "scan", str(root), "--workers=2", *map(str, options)])


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of an index by path, which must be unique."""
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["sparsevideo_index"] == 1
    assert header["decoders"][0].startswith("PyAV ")
    by_path = {row["path"]: row for row in lines}
    assert len(by_path) == len(lines)
    return by_path


def test_all_files_bad_for_one_reason_is_suspicious(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a/1.mp4", content=b"")
    assert scan(tmp_path) == INCOMPLETE  # a single file is not suspicious
    assert "same reason" not in capsys.readouterr().out
    put(tmp_path, "a/2.mp4", "b/3.mp4", content=b"")
    assert scan(tmp_path) == FAILED
    assert "All 3 files fail for the same reason" in capsys.readouterr().out
    assert scan(tmp_path, "--json") == FAILED  # also if nothing is left to decode
    assert json.loads(capsys.readouterr().out)["suspicious"] is True
    (tmp_path / "b/4.mp4").symlink_to(tmp_path / "nowhere")
    assert scan(tmp_path) == INCOMPLETE
    put(tmp_path, "a/1.mp4", "a/2.mp4", "b/3.mp4", content=video)
    assert scan(tmp_path, "--retry-bad") == INCOMPLETE
    assert "4 videos, 3 good, 1 bad" in capsys.readouterr().out


def test_results_of_a_scan(video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a root"
    put(root, "train/up/a.mp4", "train/up/-b c.mp4", "train/down/ü \u4e2d.MP4", f"val/up/{LATIN_1}", content=video)
    put(root, ".trash/up/a.mp4", "train/up/.a.mp4", "train/up/a.txt", content=b"ignored")
    put(root, "train/down/empty.mp4", content=b"")
    put(root, "train/left/cut.mp4", content=video[:1000])
    put(tmp_path, "elsewhere/linked.mp4", content=video)
    write_numbered(root / "val/up/irregular.mkv", 20, irregular=True, fps=10)
    write_numbered(tmp_path / "damaged.mp4", 60, options={"g": "60", "bf": "0"})
    put(root, "val/up/damaged.mp4", content=zero_third_quarter(tmp_path / "damaged.mp4"))
    (root / "val" / "down").symlink_to(tmp_path / "elsewhere")
    (root / "val" / "loop").symlink_to(root)
    (root / "val" / "up" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "val" / "up" / "hangs.mp4")

    assert scan(root, "--time-limit=2") == INCOMPLETE
    output = capsys.readouterr().out
    assert "11 videos, 7 good, 4 bad\n" in output and "a larger --time-limit" in output
    assert "val/up/damaged.mp4 (" in output and "train: 3 classes, fewest left: 0, most up: 2\n" in output
    assert scan(root, "--json") == INCOMPLETE
    summary = json.loads(capsys.readouterr().out)
    found = rows(root / INDEX)
    good = ["train/up/a.mp4", "train/up/-b c.mp4", "train/down/ü \u4e2d.MP4", f"val/up/{LATIN_1}"]
    good += ["val/down/linked.mp4", "val/up/irregular.mkv", "val/up/damaged.mp4"]
    bad = {
        "train/down/empty.mp4": "does not decode (Invalid data found when processing input)",
        "train/left/cut.mp4": "does not decode (Invalid data found when processing input)",
        "val/up/gone.mp4": "no such file",
        "val/up/hangs.mp4": "took longer than 2 s",
    }
    assert found.keys() == {*good, *bad}
    for name in good:
        with open_video(root / name, verify=True) as opened:
            info, table = opened.info, opened.table
        row = found[name]
        for key in ("num_frames", "fps", "width", "height", "duration_s", "codec"):
            assert row[key] == getattr(info, key), name
        assert (row["bytes"], row["mtime_ns"]) == size_and_mtime(root / name)
        expected = [None] * 3 if table is None else [table.start, table.step, table.keyframes.tolist()]
        assert [row["start"], row["step"], row["keyframes"]] == expected, name
    assert {name: found[name]["error"] for name in bad} == bad
    listed = (root / "sparsevideo-index.bad.txt").read_bytes()
    assert listed.decode() == "".join(f"{name}\t{reason}\n" for name, reason in sorted(bad.items()))

    assert summary == json.loads((root / "sparsevideo-index.summary.json").read_text())
    assert (summary["files"], summary["good"], summary["bad"]) == (11, 7, 4)
    assert summary["reasons"]["does not decode (Invalid data found when processing input)"] == 2
    assert list(summary["cut_short"]) == ["val/up/damaged.mp4"]
    assert summary["frames"] == sum(found[name]["num_frames"] for name in good)
    assert summary["hours"] * 3600 == pytest.approx(sum(found[name]["duration_s"] for name in good))
    assert summary["short_sides"] == {"64": 7}
    assert summary["codecs"] == {"h264": 7}
    assert summary["fps"]["25.0"] == 6
    assert summary["durations_s"]["median"] == pytest.approx(1.2)
    assert summary["classes"]["train"] == {
        "fewest": "left",
        "most": "up",
        "videos": {"down": 1, "left": 0, "up": 2},  # "left" is a class with only bad files
    }


def test_non_square_pixels_are_counted(video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a/1.mp4", "a/2.mp4", content=video)
    assert scan(tmp_path) == OK
    assert "not square" not in capsys.readouterr().out
    for name, ratio in (("a/3.mp4", "16/15"), ("b/4.mkv", "64/45"), ("b/5.mov", "16/15")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_numbered(tmp_path / name, 5, ratio=ratio)
    assert scan(tmp_path) == OK
    line = "3 of the good have pixels that are not square (16:15: 2, 64:45: 1), for example "
    assert f"\n{line}" in (output := capsys.readouterr().out)
    assert output.split(line)[1].split(";")[0] in ("a/3.mp4", "b/4.mkv", "b/5.mov")
    index = tmp_path / INDEX
    found = rows(index)
    for name, ratio in (("a/1.mp4", "1:1"), ("a/3.mp4", "16:15"), ("b/4.mkv", "64:45")):
        assert found[name]["sample_aspect_ratio"] == ratio
    assert [found["a/3.mp4"][key] for key in ("height", "width")] == [64, 64]  # as stored
    index.write_text("".join(line.replace(', "sample_aspect_ratio": "64:45"', "") for line in index.open()))
    assert scan(tmp_path, "--json") == OK  # a row of an earlier version
    summary = json.loads(capsys.readouterr().out)
    assert summary["sample_aspect_ratios"] == {"1:1": 2, "16:15": 2}


def test_summary_of_sizes_durations_and_folders(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "nowhere.mp4", "up/a.mp4", "down/b.mp4", content=video)
    put(tmp_path, "up/a\ttab\n.mp4", content=b"")
    write_numbered(tmp_path / "up/tall.mp4", 10, height=96, width=48)
    write_numbered(tmp_path / "up/long.mp4", 50)
    assert scan(tmp_path) == INCOMPLETE
    output = capsys.readouterr().out
    assert "\nshort side  64: 4, 48: 1\n" in output
    assert "\n.: 2 classes, fewest down: 1, most up: 3\n" in output
    summary = json.loads((tmp_path / "sparsevideo-index.summary.json").read_text())
    assert list(summary["classes"]) == ["."]  # a file outside of folders has no class
    assert (summary["durations_s"]["shortest"], summary["durations_s"]["longest"]) == (0.4, 2.0)
    (line,) = (tmp_path / "sparsevideo-index.bad.txt").read_text().splitlines()
    assert line.startswith("up/a\\ttab\\n.mp4\tdoes not decode")


def test_second_scan_decodes_new_and_changed_files(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files with unchanged size and time are not decoded again."""
    put(tmp_path, "c/same.mp4", "c/changed.mp4", "c/gone.mp4", content=video)
    put(tmp_path, "c/bad.mp4", "c/mended.mp4", content=bytes(len(video)))
    assert scan(tmp_path) == INCOMPLETE
    assert "3 good, 2 bad" in capsys.readouterr().out
    replace(tmp_path / "c/same.mp4", bytes(len(video)))
    replace(tmp_path / "c/mended.mp4", video)
    put(tmp_path, "c/changed.mp4", content=video[:1000])
    put(tmp_path, "c/new.mp4", content=video)
    (tmp_path / "c" / "gone.mp4").unlink()
    assert scan(tmp_path) == INCOMPLETE
    errors = {path: "error" in row for path, row in rows(tmp_path / INDEX).items()}
    before = {"c/same.mp4": False, "c/changed.mp4": True, "c/bad.mp4": True, "c/mended.mp4": True, "c/new.mp4": False}
    assert errors == before
    assert scan(tmp_path, "--retry-bad") == INCOMPLETE
    errors = {path: "error" in row for path, row in rows(tmp_path / INDEX).items()}
    assert errors == before | {"c/mended.mp4": False}
    for name in ("bad", "changed"):
        (tmp_path / "c" / f"{name}.mp4").unlink()
    capsys.readouterr()
    assert scan(tmp_path) == OK
    assert capsys.readouterr().out.startswith(f"{tmp_path}: 3 videos, 3 good, 0 bad\n")
    assert (tmp_path / "sparsevideo-index.bad.txt").read_bytes() == b""


def replace(path: Path, content: bytes) -> None:
    """Replace the content of a file, but not its modification time."""
    mtime_ns = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@contextmanager
def start(root: Path, known: int) -> "Iterator[subprocess.Popen[str]]":
    """Start a scan that hangs at one file; yield when the index contains `known` others."""
    os.mkfifo(root / "c" / "hangs.mp4")
    command = [sys.executable, "-m", "sparsevideo", "data", "scan", str(root), "--workers=2", "--time-limit=1000"]
    with interruptible(command) as process:
        while not (root / INDEX).exists() or len((root / INDEX).read_text().splitlines()) < 1 + known:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process


@pytest.mark.slow
def test_interrupted_scan_is_continued(video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, *(f"c/{number}.mp4" for number in range(8)), content=video)
    put(tmp_path, "sparsevideo-index.bad.txt", content=b"of an earlier scan")
    with start(tmp_path, known=8) as process:
        assert scan(tmp_path) == FAILED  # two scans would mix their lines
        assert f"error: {tmp_path / INDEX}: another scan is writing it" in capsys.readouterr().err
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert f"{tmp_path / INDEX}: contains 8 of 9 files; run the command again to go on" in errors
    assert "Traceback" not in errors
    assert len(rows(tmp_path / INDEX)) == 8
    assert not (tmp_path / "sparsevideo-index.bad.txt").exists()
    (tmp_path / "c" / "hangs.mp4").unlink()
    put(tmp_path, "c/hangs.mp4", content=video)
    assert scan(tmp_path) == OK
    assert "scan: 9 of 9" in capsys.readouterr().err
    assert len(rows(tmp_path / INDEX)) == 9


def test_killed_scan_is_continued(video: bytes, tmp_path: Path) -> None:
    """The last line may be truncated."""
    put(tmp_path, *(f"c/{number}.mp4" for number in range(4)), content=video)
    with start(tmp_path, known=4) as process:
        process.kill()
        process.communicate(timeout=60)
    (tmp_path / "c" / "hangs.mp4").unlink()
    whole = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(whole[:-30])
    for number in range(4):  # three are known, and one has to be decoded
        replace(tmp_path / f"c/{number}.mp4", bytes(len(video)))
    assert scan(tmp_path) == INCOMPLETE
    assert sorted("error" in row for row in rows(tmp_path / INDEX).values()) == [False, False, False, True]


WITHOUT = """
import multiprocessing, signal, sys

if hasattr(signal, "alarm"):
    del signal.alarm
multiprocessing.get_all_start_methods = lambda: ["spawn"]
from sparsevideo.utils.processes import worker_context
from sparsevideo.data.scan import scan

if __name__ == "__main__":
    print(scan(sys.argv[1], num_workers=1)["good"], worker_context("json").get_start_method())
"""


@pytest.mark.slow
def test_system_without_alarm_and_fork(video: bytes, tmp_path: Path) -> None:
    """Windows has neither of them."""
    put(tmp_path, "c/a.mp4", "c/b.mp4", content=video)
    (tmp_path / "script.py").write_text(WITHOUT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("2 spawn\n", "")


def test_lock_is_released(tmp_path: Path) -> None:
    with _locked(tmp_path / INDEX):
        with pytest.raises(ValueError, match="another scan is writing it") as refused, _locked(tmp_path / INDEX):
            pass
        open_files = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        assert open_files.count(tmp_path / f".{INDEX}.lock") == 1, refused  # the exception keeps the refused lock alive
    with _locked(tmp_path / INDEX):
        pass


def without_privileges() -> None:
    """Apply file permissions to root, too: drop CAP_DAC_OVERRIDE at the next exec."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_read_only_folder(video: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "c/a.mp4", content=video)
    root.chmod(0o555)
    command = [sys.executable, "-m", "sparsevideo", "data", "scan", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=without_privileges)
    reason = "cannot be written (Permission denied); choose another path with --index"
    assert (done.returncode, done.stderr) == (FAILED, f"error: {root / INDEX}: {reason}\n")
    assert scan(root, "--index", tmp_path / "elsewhere.jsonl") == OK
    assert rows(tmp_path / "elsewhere.jsonl").keys() == {"c/a.mp4"}
    assert (tmp_path / "elsewhere.summary.json").exists()
    assert [path.name for path in root.iterdir()] == ["c"]
    root.chmod(0o755)


def spoil(line: int, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[line] = text
        path.write_text("\n".join(lines) + "\n")

    return change


@pytest.mark.parametrize(
    ("options", "change", "code", "message"),
    [
        (["--index=nowhere/index.jsonl"], None, FAILED, r"nowhere/index.jsonl: cannot be written (No such file"),
        (["--workers=0"], None, FAILED, "the number of workers must be >= 1, got 0"),
        (["--time-limit=0"], None, FAILED, "the time limit must be positive and finite, got 0 s"),
        (["--workers=two"], None, USAGE, "workers"),
        ([], spoil(0, "path,label"), FAILED, "is not an index of version 1; remove it and scan again"),
        ([], spoil(1, "\0\0"), FAILED, "line 2: is damaged; remove this line and scan again"),
    ],
)
def test_errors_are_one_line(
    options: list[str],
    change: Callable[[Path], None] | None,
    code: int,
    message: str,
    video: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(tmp_path, "c/a.mp4", content=video)
    if change is not None:
        assert scan(tmp_path) == OK
        change(tmp_path / INDEX)
    capsys.readouterr()
    assert scan(tmp_path, *options) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_no_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan(tmp_path) == FAILED
    assert f"error: {tmp_path}: contains no video; see docs/lists.md" in capsys.readouterr().err
    assert scan(tmp_path / "nowhere") == FAILED
    assert f"error: {tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_with_other_endings_are_counted(video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "up/a.MP4", "up/b.f4v", "up/c.qt", content=video)
    put(tmp_path, "up/d.movie", "left/e.MOVIE", "left/f", content=video)
    for _ in range(2):  # the second time with an index in the folder
        assert scan(tmp_path) == OK
        output = capsys.readouterr().out
        assert (
            "3 videos, 3 good, 0 bad\nleft out: 3 files with other endings: 2 .movie, 1 without an ending\n" in output
        )
    shutil.rmtree(tmp_path / "up")
    assert scan(tmp_path) == FAILED
    assert "contains no video (2 files with other endings: 1 .movie, 1 without an ending)" in capsys.readouterr().err


def test_another_decoder_is_reported_and_recorded(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "c/a.mp4", content=video)
    assert scan(tmp_path) == OK
    spoil(0, '{"sparsevideo_index": 1, "decoders": ["PyAV 1.2"]}')(tmp_path / INDEX)
    assert scan(tmp_path) == OK
    assert "written with PyAV 1.2; remove it to scan all with PyAV" in capsys.readouterr().err
    header = json.loads((tmp_path / INDEX).read_text().splitlines()[0])
    assert len(header["decoders"]) == 2


def test_index_of_a_copied_folder(video: bytes, tmp_path: Path) -> None:
    """The modification times of the copies decide if the rows are used."""
    put(tmp_path / "a", "c/a.mp4", content=video)
    assert scan(tmp_path / "a") == OK
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # keeps the times
    put(tmp_path / "b", "c/a.mp4", content=video[:1000])
    assert scan(tmp_path / "b") == INCOMPLETE


def test_a_link_to_itself_is_one_bad_file(video: bytes, tmp_path: Path) -> None:
    put(tmp_path, "a/good.mp4", content=video)
    (tmp_path / "a/x.mp4").symlink_to("x.mp4")
    assert scan(tmp_path) == INCOMPLETE
    errors = {name: "error" in row for name, row in rows(tmp_path / INDEX).items()}
    assert errors == {"a/good.mp4": False, "a/x.mp4": True}


def test_other_files_given_as_index_are_not_changed(video: bytes, tmp_path: Path) -> None:
    put(tmp_path, "a/good.mp4", content=video)
    paths = [tmp_path / f"notes{suffix}" for suffix in (".txt", ".summary.json", ".bad.txt")]
    for path in paths:
        path.write_text("precious")
    assert scan(tmp_path, "--index", tmp_path / "notes.txt") == FAILED
    assert all(path.read_text() == "precious" for path in paths)


def test_videos_in_tar_shards_are_scanned(video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Archives beside videos or folders are ignored."""
    good = [("a/0.mp4", video), ("a/0.cls", b"0"), ("1.mkv", video), ("1.cls", b"1")]
    write_tar(tmp_path / "train/a.tar", good)
    write_tar(tmp_path / "train/b.tar", [("2.mp4", video[:1000]), ("2.cls", b"0")])
    write_tar(tmp_path / "train/cut.tar", good).write_bytes(b"cut")
    write_tar(tmp_path / "train/notes.tar", [("notes.txt", b"")])
    write_tar(tmp_path / "all.tar", good)
    put(tmp_path, "clips/x/3.mp4", content=video)
    write_tar(tmp_path / "clips/x/archive.tar", good)
    for _ in range(2):  # the second time nothing is left to do
        assert scan(tmp_path, "--json") == INCOMPLETE
        summary = json.loads(capsys.readouterr().out)
        assert (summary["files"], summary["good"], summary["bad"]) == (5, 3, 2)
        assert summary["left_out"] == "3 files with other endings: 3 .tar"
        assert summary["classes"]["clips"]["videos"] == {"x": 1} and "train" not in summary["classes"]
    found = rows(tmp_path / INDEX)
    assert found["train/a.tar/a/0.mp4"]["num_frames"] == found["train/a.tar/1.mkv"]["num_frames"] == 30
    lines = (tmp_path / "sparsevideo-index.bad.txt").read_text().splitlines()
    assert lines[0].startswith("train/b.tar/2.mp4\tdoes not decode (")
    assert lines[1].startswith("train/cut.tar\tis truncated, or not a tar file")
    records = read_shards(tmp_path, "train/[ab].tar", kind="video")
    index = read_index(tmp_path / INDEX, map(records.name, range(3)))
    table = index.checked_table(0, records.source(0))
    assert table is not None and table.num_frames == 30
    with pytest.raises(DecodeError, match=r"train/b\.tar/2\.mp4: marked bad by the scan"):
        index.checked_table(2, records.source(2))
    os.utime(tmp_path / "train/a.tar")
    assert index.checked_table(0, records.source(0)) is None
    assert "some files have changed since" in capsys.readouterr().err
