"""Smaller copies of the videos in a folder."""

from pathlib import Path

import numpy as np
import pytest

from sparsevideo.cli import main
from sparsevideo.command_lines import FAILED, INCOMPLETE, OK
from sparsevideo.data.resized import resize_all
from sparsevideo.io.backends import probe
from sparsevideo.io.writer import write_video


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name, size in (("train/a/wide.MP4", (64, 96)), ("train/b/tall.mov", (96, 64)), ("small.mp4", (30, 30))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "new.mp4", np.full((20, *size, 3), 100, np.uint8), fps=25)
        (tmp_path / "new.mp4").rename(root / name)
    return root


def test_copies_are_smaller_complete_and_kept_by_the_next_run(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "resize", str(videos), str(tmp_path / "copies"), "--short-side", "32", "--workers", "1"]
    assert main(command) == OK
    assert capsys.readouterr().out == f"3 of 3 videos have a copy in {tmp_path / 'copies'}\n"
    copies = {name: tmp_path / "copies" / name for name in ("train/a/wide.mp4", "train/b/tall.mp4", "small.mp4")}
    for path, size in zip(copies.values(), ((32, 48), (48, 32), (30, 30)), strict=True):
        info = probe(path)
        assert (info.num_frames, info.fps, info.height, info.width) == (20, 25, *size)
    kept = copies["small.mp4"].stat().st_mtime_ns
    write_video(videos / "train/a/wide.MP4", np.zeros((10, 64, 64, 3), np.uint8))  # a new version
    (videos / "broken.mp4").write_bytes(bytes(1000))
    assert main(command) == INCOMPLETE
    printed = capsys.readouterr()
    assert printed.out.startswith("3 of 4 videos have a copy in ")
    assert f"broken.mp4: not copied: {videos / 'broken.mp4'}: does not decode" in printed.err
    assert probe(copies["train/a/wide.mp4"]).num_frames == 10
    assert copies["small.mp4"].stat().st_mtime_ns == kept
    assert {path.name for path in (tmp_path / "copies").rglob("*.*")} == {path.name for path in copies.values()}


def test_nothing_to_copy_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    for root, reason in (("videos", "contains no video"), ("elsewhere", "no such folder")):
        command = ["data", "resize", str(tmp_path / root), str(tmp_path / "out"), "--short-side", "32"]
        assert main(command) == FAILED
        assert capsys.readouterr().err.endswith(f"{root}: {reason}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("short_side", [33, 0])
def test_impossible_short_side_is_an_error(short_side: int, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"must be an even number of pixels >= 2, got {short_side}"):
        resize_all(videos, tmp_path / "out", ["small.mp4"], short_side)
    assert not (tmp_path / "out").exists()


def test_copies_replace_no_videos_and_no_other_copies(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"so the copies would be taken for videos; name another folder"):
        resize_all(videos, videos / "small", ["small.mp4"], 32)
    with pytest.raises(ValueError, match=r"a\.avi and a\.mp4 have the same copy, a\.mp4; rename one of them"):
        resize_all(videos, tmp_path / "out", ["a.avi", "a.mp4"], 32)
    assert not (tmp_path / "out").exists()
