"""Damaged files decode or are refused by name, alone and through a loader; the fuzz script reports all faults."""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import fuzz
import pytest
from fuzz import DECODED, MUTATIONS, REFUSED, WHOLE, Outcome, damaged, faults, read_alone, read_in_batches, write_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return write_whole(tmp_path_factory.mktemp("whole"))


def write_damaged(folder: Path, whole: dict[str, bytes], count: int, seed: int) -> list[Path]:
    paths = []
    for name, content in damaged(whole, count, seed):
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    return paths


def check(paths: list[Path]) -> Counter:
    """Read the files alone and through a loader: no fault, and some of each valid outcome."""
    counts = Counter()
    for outcomes in (read_alone(paths), read_in_batches(paths)):
        assert faults(outcomes) == []
        assert [outcome.name for outcome in outcomes] == [path.name for path in paths]
        kinds = Counter(outcome.what for outcome in outcomes)
        assert min(kinds[DECODED], kinds[REFUSED]) > len(paths) // 10
        counts += kinds
    return counts


def test_damaged_files_decode_or_are_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    check(write_damaged(tmp_path, whole, 60, seed=0))


@pytest.mark.slow
def test_two_thousand_damaged_files(whole: dict[str, bytes], tmp_path: Path) -> None:
    check(write_damaged(tmp_path, whole, 2000, seed=1))


def test_undamaged_files_decode(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert set(WHOLE) < set(whole)
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
        assert fuzz.read_one(tmp_path / name, "auto").what == DECODED, name


def test_damage_depends_on_the_seed(whole: dict[str, bytes]) -> None:
    files = list(damaged(whole, 45, seed=3))
    assert files == list(damaged(whole, 60, seed=3))[:45]
    assert files != list(damaged(whole, 45, seed=4))
    for name, content in files:
        assert content not in whole.values(), f"{name} is not changed"
    assert {name.split("-", 1)[1].rsplit("-", 1)[0] for name, _ in files} == set(MUTATIONS)


def misbehave(path: Path, decoder: str) -> Outcome:
    if path.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name == "hang":
        time.sleep(600)
    return Outcome(path.name, DECODED)


def test_crashes_and_hangs_are_reported(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("crash", "hang", "good", "crash", "fine")]
    kinds = [outcome.what for outcome in read_alone(paths, processes=1, read=misbehave, limit_s=2)]
    assert kinds == ["crash", "hang", DECODED, "crash", DECODED]


def test_other_faults_are_reported(whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        path.write_bytes(whole["h264.mp4"])
    (fault,) = faults([fuzz.read_one(paths[0], "gstreamer")])
    assert fault.what == "ValueError" and "gstreamer" in fault.reason
    (fault,) = faults(read_in_batches([paths[0], paths[1], paths[0]], num_workers=0))
    assert (fault.name, fault.what) == ("a.mp4", "reported 2 times")
    monkeypatch.setattr(fuzz, "LIMIT_MB", 1)
    if sys.platform == "linux":
        assert [fault.what for fault in faults([fuzz.read_one(paths[0], "auto")])] == ["too much memory"]
