"""Lists and copies of a synthetic Kinetics with the faults of the real one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsevideo.data.records import read_records
from sparsevideo.io.backends import open_video, probe
from sparsevideo.io.writer import write_video

TOOL = Path(__file__).parents[1] / "tools" / "prepare_kinetics.py"
HEADER = "label,youtube_id,time_start,time_end,split"
TRAIN = [
    "riding a bike,-begins_with,5,15,train",
    "riding a bike,__underscore,10,20,train",
    "riding a bike,neverfetched,0,10,train",
    '"mixing, stirring",truncated00,0,10,train',
]
GOOD = {
    "downloads/train/riding a bike/-begins_with_000005_000015.mp4": (64, 96),
    "downloads/train/riding a bike/__underscore.mp4": (96, 64),
    "downloads/val/mixing, stirring/valvalvalval_3_13.mp4": (30, 30),
}
TRUNCATED = "downloads/train/mixing, stirring/truncated00_0_10.mp4"


@contextmanager
def prepare(root: Path, *options: str) -> "Iterator[subprocess.Popen[str]]":
    """Run the tool in its own session: interrupts reach it, and no process of it is left."""
    command = [sys.executable, str(TOOL), "downloads", "small", "official/train.csv", "official/val.csv"]
    command += ["--short-side=32", "--workers=2", *options]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": root}
    how |= {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, **how) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    """Write landscape, portrait, small and truncated files, and official lists with missing files."""
    for index, (name, size) in enumerate(GOOD.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / name, np.full((20, *size, 3), 50 * index, np.uint8), fps=25)
    (tmp_path / TRUNCATED).parent.mkdir()
    (tmp_path / TRUNCATED).write_bytes(bytes(1000))
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "train.csv").write_text("\n".join([HEADER, *TRAIN]) + "\n")
    (tmp_path / "official" / "val.csv").write_text(f'{HEADER}\n"mixing, stirring",valvalvalval,3,13,val\n')
    return tmp_path


def lacking(path: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in path.read_text().splitlines())


@pytest.mark.slow
def test_lists_and_copies(kinetics: Path) -> None:
    with prepare(kinetics) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert output.splitlines() == [
        "train: 2 of 4 listed are there, 2 are lacking",
        "val: 1 of 1 listed are there, 0 are lacking",
    ]
    assert "train: 3 of 3" in errors  # progress without a terminal
    copies = kinetics / "small" / "32"
    reason = "does not decode (Invalid data found when processing input); remove it or make it again"
    assert lacking(copies / "train.lacking.txt") == {TRAIN[2]: "no file", TRUNCATED: f"{TRUNCATED}: {reason}"}
    assert lacking(copies / "val.lacking.txt") == {}
    train, val = (read_records(copies, f"{split}.csv", kind="video") for split in ("train", "val"))
    assert [train.name(0), train.name(1)] == [name.removeprefix("downloads/") for name in list(GOOD)[:2]]
    assert train.classes == ("riding a bike",)
    assert val.classes == ("mixing, stirring",)
    for records, index, size in ((train, 0, (32, 48)), (train, 1, (48, 32)), (val, 0, (30, 30))):
        info = probe(records.path(index))
        assert (info.num_frames, info.fps, info.height, info.width) == (20, 25, *size)
    with open_video(val.path(0)) as video:
        assert abs(video.read([7]).mean() - 100) < 5

    write_video(kinetics / list(GOOD)[2], np.zeros((10, 30, 30, 3), np.uint8))  # downloaded again
    kept = train.path(0).stat().st_mtime_ns
    with prepare(kinetics) as process:
        process.communicate(timeout=120)
    assert probe(val.path(0)).num_frames == 10
    assert train.path(0).stat().st_mtime_ns == kept


@pytest.mark.slow
def test_interrupted_and_resumed(kinetics: Path) -> None:
    hangs = "downloads/train/mixing, stirring/hangsforever_0_10.mp4"
    os.mkfifo(kinetics / hangs)
    with (kinetics / "official" / "train.csv").open("a") as file:
        file.write('"mixing, stirring",hangsforever,0,10,train\n')
    copies = kinetics / "small" / "32"
    with prepare(kinetics) as process:
        while len(list(copies.rglob("*.mp4"))) < 2:  # all of train that can be copied
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # like a terminal
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert "KeyboardInterrupt" in errors
    assert "Traceback" not in errors
    copied = {path: path.stat().st_mtime_ns for path in copies.rglob("*.mp4")}

    with prepare(kinetics, "--time-limit=2") as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert output.splitlines()[0] == "train: 2 of 5 listed are there, 3 are lacking"
    assert lacking(copies / "train.lacking.txt")[hangs] == "took longer than 2 s"
    assert {path: path.stat().st_mtime_ns for path in copied} == copied  # existing copies are kept
    suffixes = {path.suffix for path in copies.rglob("*") if path.is_file()}
    assert suffixes == {".mp4", ".csv", ".txt"}  # no unfinished file

    (kinetics / "official" / "train.csv").write_text("\n".join([HEADER, *TRAIN[:2]]) + "\n")
    with prepare(kinetics) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.splitlines()[0] == "train: 2 of 2 listed are there, 0 are lacking"


@pytest.mark.slow
def test_errors_of_lists(kinetics: Path) -> None:
    (kinetics / "official" / "val.csv").write_text(f"{HEADER}\nyoga,unknown,0,10,val\n")
    (kinetics / "official" / "train.csv").unlink()
    with prepare(kinetics) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("FileNotFoundError: ")
    assert "official/train.csv" in errors


@pytest.mark.slow
def test_lists_with_any_characters(kinetics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in an ASCII locale, and with a line separator of Unicode in a row."""
    for variable, value in {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(variable, value)
    lost, kept = "lost\u2028and,neverfetched,0,10,train", "tr\u00e4l\u00e4,-begins_with,5,15,train"
    also_lost = "lost,nevereither,0,10,train"
    (kinetics / "official" / "train.csv").write_text("\n".join([HEADER, lost, kept, also_lost]), encoding="utf-8")
    with prepare(kinetics) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    copies = kinetics / "small" / "32"
    rows = (copies / "train.lacking.txt").read_text(encoding="utf-8").split("\n")
    assert rows == [f"{lost}\tno file", f"{also_lost}\tno file", ""]
    listed = (copies / "train.csv").read_text(encoding="utf-8")
    assert listed == "path,label\ntrain/riding a bike/-begins_with_000005_000015.mp4,tr\u00e4l\u00e4\n"
