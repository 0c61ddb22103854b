"""`sparsevideo timeline` and `sparsevideo stream`: the same scores from a file, a pipe and the network."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing

import numpy as np
import pytest
import torch
from numbered_videos import remux
from PIL import Image
from toy_runs import interruptible

import sparsevideo
from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.io import open_video, read_frames, write_video
from sparsevideo.reports.timeline import Segment

FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg program")
LOW = ["--enter=0.13", "--leave=0.125"]  # of eight classes that four steps of training hardly separate


@pytest.fixture(scope="module")
def checkpoint(trained):
    return str(trained / "checkpoints/best.pt")


@pytest.fixture(scope="module")
def video(digits, tmp_path_factory):
    """Four test videos, one after the other: 68 frames at 10 per second."""
    path = tmp_path_factory.mktemp("timeline") / "four motions.mp4"
    files = [sorted((digits / "videos/test" / name).glob("*.mp4"))[0] for name in ("left", "right", "up", "growing")]
    parts = []
    for file in files:
        with open_video(file) as opened:
            parts.append(opened.read(range(opened.num_frames)))
    write_video(path, np.concatenate(parts))
    return path


def windows(path):
    """Start -> scores of all classes, as float32."""
    rows = list(csv.DictReader((path / "windows.csv").open(encoding="utf-8", newline="")))
    names = list(rows[0])[3:]
    return {float(row["start_s"]): {name: np.float32(row[name]) for name in names} for row in rows}


@pytest.fixture(scope="module")
def timeline(checkpoint, video, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "timeline"
    assert main(["timeline", checkpoint, str(video), f"--out={out}", "--step=0.2", *LOW, "--save-video"]) == OK
    return out


def test_timeline_writes_all_its_files(timeline, video, trained):
    names = {"annotated.mp4", "segments.csv", "segments.json", "segments.vtt", "timeline.png", "windows.csv"}
    assert {path.name for path in timeline.iterdir()} == names
    segments = [Segment(**each) for each in json.loads((timeline / "segments.json").read_text("utf-8"))]
    assert segments and segments[-1].end_s <= 6.8 + 1e-6
    classifier = sparsevideo.load(trained, device="cpu")
    assert segments == classifier.timeline(video, step_s=0.2, enter=0.13, leave=0.125)
    assert (timeline / "segments.vtt").read_text("utf-8").count("-->") == len(segments)
    with Image.open(timeline / "timeline.png") as image:
        assert image.width > 1000


def test_timeline_scores_are_those_of_predict(timeline, video, trained):
    classifier, frames = sparsevideo.load(trained, device="cpu"), read_frames(video, range(68))
    data = classifier.config.data
    length = (data.num_frames - 1) * data.frame_stride + 1
    scores = windows(timeline)
    assert len(scores) > 20
    for start_s in [*scores][::7]:
        start = round(start_s * 10)
        prediction = classifier.predict(frames[start : start + length], views="1x1", topk=8)
        for label, score in zip(prediction.labels, prediction.scores, strict=True):
            assert scores[start_s][label] == pytest.approx(score, abs=1e-6)


def test_timeline_annotated_video_has_all_frames_at_their_times_with_captions(timeline, video):
    with open_video(timeline / "annotated.mp4") as annotated, open_video(video) as original:
        assert annotated.num_frames == original.num_frames
        assert annotated.times_s == pytest.approx(original.times_s, abs=1e-4)
        drawn, plain = annotated.read([30])[0].astype(int), original.read([30])[0].astype(int)
    change = np.abs(drawn - plain).mean(axis=-1)
    assert change[-12:, :30].mean() > 20 > change[: len(change) // 2].mean()


def test_timeline_prints_segments_or_json(checkpoint, video, capsys):
    assert main(["timeline", checkpoint, str(video), *LOW]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("00:00:0") and " to " in line for line in lines)
    assert main(["timeline", checkpoint, str(video), *LOW, "--json"]) == OK
    result = json.loads(capsys.readouterr().out)
    assert len(result["segments"]) == len(lines) and result["truncated"] is None
    assert main(["timeline", checkpoint, str(video), "--enter=1"]) == OK
    assert capsys.readouterr().out == "no segment: no score reaches --enter 1\n"


@pytest.mark.parametrize("command", ["timeline", "stream"])
def test_timeline_and_stream_take_class_names_for_a_checkpoint_without_them(
    command, checkpoint, video, tmp_path, capsys
):
    content = torch.load(checkpoint, weights_only=True)
    names = content.pop("classes")
    torch.save(content, tmp_path / "unnamed.pt")
    assert main([command, str(tmp_path / "unnamed.pt"), str(video)]) == FAILED
    error = capsys.readouterr().err
    assert "unnamed.pt: holds no class names" in error and "--classes FILE" in error and error.count("\n") == 1
    (tmp_path / "names.txt").write_text("\n".join(names[::-1]), encoding="utf-8")
    write_video(tmp_path / "short.mp4", read_frames(video, range(4)))
    args = [str(tmp_path / "short.mp4"), f"--classes={tmp_path / 'names.txt'}"]
    assert main([command, str(tmp_path / "unnamed.pt"), *args]) == OK


def test_timeline_of_a_video_shorter_than_a_window_is_one_window(checkpoint, video, tmp_path):
    write_video(tmp_path / "short.mp4", read_frames(video, range(2)))
    assert main(["timeline", checkpoint, str(tmp_path / "short.mp4"), f"--out={tmp_path / 'out'}", *LOW]) == OK
    assert len(windows(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "does not decode"), (b"no video" * 99, "does not decode")],
)
def test_timeline_of_no_video_is_one_line_and_writes_nothing(content, message, checkpoint, tmp_path, capsys):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    assert main(["timeline", checkpoint, str(path), f"--out={tmp_path / 'out'}"]) == FAILED
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: {message}") and error.count("\n") == 1
    assert not any((tmp_path / "out").glob("*"))


def test_timeline_and_stream_of_a_damaged_video_keep_the_part_before(checkpoint, tmp_path, capsys):
    path, rng = tmp_path / "damaged.mp4", np.random.default_rng(0)
    write_video(path, rng.integers(0, 256, (60, 96, 96, 3), np.uint8), gop=1)
    content = bytearray(path.read_bytes())
    content[-len(content) // 4 : -len(content) // 4 + 20_000] = bytes(20_000)
    path.write_bytes(content)
    out = tmp_path / "out"
    assert main(["timeline", checkpoint, str(path), f"--out={out}", "--step=0.2", *LOW]) == INCOMPLETE
    assert f"{path}: ended early" in capsys.readouterr().err
    assert len(windows(out)) > 3 and (out / "segments.vtt").exists()
    assert main(["stream", checkpoint, str(path), *STREAM]) == INCOMPLETE
    printed = capsys.readouterr()
    assert f"{path}: ended early" in printed.err
    assert_same_scores(answers(printed.out), windows(out))


@pytest.mark.slow
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_timeline_interrupted_keeps_the_part_before(stop_signal, checkpoint, video, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sparsevideo", "timeline", checkpoint, str(tmp_path / "endless.ts"), "--step=0.2"]
    # A pipe that stays open: the program waits for more frames when it is interrupted.
    os.mkfifo(tmp_path / "endless.ts")
    with interruptible([*command, f"--out={out}", *LOW]) as process, (tmp_path / "endless.ts").open("wb") as pipe:
        pipe.write(transport_stream(video, tmp_path).read_bytes())
        pipe.flush()
        time.sleep(2)
        process.send_signal(stop_signal)
        assert process.wait(timeout=60) == 130
    assert len(windows(out)) > 3


def transport_stream(video, folder):
    """The packets of a video as MPEG-TS."""
    remux(video, folder / "video.ts")
    return folder / "video.ts"


def answers(text):
    return {answer["start_s"]: answer for answer in map(json.loads, text.splitlines())}


def assert_same_scores(found, expected):
    """Bit for bit."""
    assert [*found] == [*expected]
    for start_s, answer in found.items():
        assert len(answer["labels"]) == 8 and answer["scores"] == sorted(answer["scores"], reverse=True)
        for label, score in zip(answer["labels"], answer["scores"], strict=True):
            assert np.float32(score) == expected[start_s][label], (start_s, label)


STREAM = ["--step=0.2", "--topk=8", "--no-skip"]


def test_stream_of_standard_input_has_the_scores_of_the_timeline(checkpoint, video, tmp_path, timeline):
    command = [sys.executable, "-m", "sparsevideo", "stream", checkpoint, "-", *STREAM]
    content = transport_stream(video, tmp_path).read_bytes()
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert_same_scores(answers(done.stdout.decode()), windows(timeline))
    assert "68 frames" in done.stderr.decode() and "0 windows and 0 frames skipped" in done.stderr.decode()


def free_port(kind):
    with closing(socket.socket(socket.AF_INET, kind)) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_bound(port, kind):
    """Wait until another process listens on a port."""
    for _ in range(600):
        with closing(socket.socket(socket.AF_INET, kind)) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


@FFMPEG
@pytest.mark.parametrize("protocol", ["tcp", "udp", pytest.param("rtsp", marks=pytest.mark.slow)])
def test_stream_over_the_network_has_the_scores_of_the_timeline(protocol, checkpoint, video, timeline, capsys):
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    port = free_port(kind)
    source = f"{protocol}://127.0.0.1:{port}"
    listen, target = {
        "tcp": (["?listen=1", "--format=mpegts"], ["mpegts", source]),
        "udp": (["?fifo_size=100000", "--format=mpegts"], ["mpegts", f"{source}?pkt_size=1316"]),
        "rtsp": (["/live", "--option=rtsp_flags=listen"], ["rtsp", "-rtsp_transport", "tcp", f"{source}/live"]),
    }[protocol]
    ffmpeg = ["ffmpeg", "-v", "error", "-re", "-i", str(video), "-c", "copy", "-f", *target]

    def send_video():
        wait_until_bound(port, kind)
        subprocess.run(ffmpeg, check=True, timeout=60)

    sender = threading.Thread(target=send_video)
    sender.start()
    args = [f"{source}{listen[0]}", *listen[1:], *STREAM, "--reconnects=0", "--time-limit=4"]
    # A TCP connection ends; UDP has no end, only silence.
    assert main(["stream", checkpoint, *args]) == (FAILED if protocol == "udp" else OK)
    sender.join()
    printed = capsys.readouterr()
    assert protocol != "udp" or "nothing came within 4 s" in printed.err
    found, expected = answers(printed.out), windows(timeline)
    if protocol == "udp":  # the last window of the timeline is one of the end of the video
        expected = {start_s: expected[start_s] for start_s in found}
        assert len(expected) >= len(windows(timeline)) - 1
    assert_same_scores(found, expected)


def test_stream_of_a_file_keeps_its_pace_and_skips_windows_of_a_slow_network(
    checkpoint, video, timeline, capsys, monkeypatch
):
    from sparsevideo.engine.windows import WindowScorer

    score = WindowScorer.__call__
    monkeypatch.setattr(WindowScorer, "__call__", lambda self, window: time.sleep(0.5) or score(self, window))
    start_s = time.monotonic()
    assert main(["stream", checkpoint, str(video), "--step=0.1", "--topk=8"]) == OK
    assert 6.5 < time.monotonic() - start_s < 12
    printed = capsys.readouterr()
    found, expected = answers(printed.out), windows(timeline)
    assert 8 < len(found) < 16
    assert sum(answer["skipped_windows"] for answer in found.values()) > 40
    assert max(answer["delay_s"] for answer in found.values()) < 1.5
    shared = {start_s: answer for start_s, answer in found.items() if start_s in expected}
    assert_same_scores(shared, {start_s: expected[start_s] for start_s in shared})
    assert "windows and" in printed.err and "delay" in printed.err


@pytest.mark.slow
def test_stream_preview_shows_the_annotated_picture(checkpoint, video):
    port = free_port(socket.SOCK_STREAM)
    command = [sys.executable, "-m", "sparsevideo", "stream", checkpoint, str(video), f"--preview={port}", "--step=0.2"]
    with interruptible(command) as process:
        wait_until_bound(port, socket.SOCK_STREAM)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert b"/stream.mjpg" in page.read()
        pictures = []
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stream.mjpg", timeout=20) as stream:
            assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
            for _ in range(5):
                head = {}
                while (line := stream.readline().strip()) or not head:
                    name, _, value = line.decode().partition(": ")
                    head[name] = value
                pictures.append(stream.read(int(head["Content-Length"])))
                stream.readline()
        assert all(picture.startswith(b"\xff\xd8") for picture in pictures) and len(set(pictures)) == 5
        out, _ = process.communicate(timeout=60)
    assert process.returncode == OK and len(answers(out)) > 10


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["/dev/video999"], FAILED, "/dev/video999: no such device"),
        (["tcp://127.0.0.1:1"], FAILED, "tcp://127.0.0.1:1: Connection refused"),
        (["-", "--option=fast"], USAGE, "--option fast: must be NAME=VALUE"),
        (["-", "--topk=0"], USAGE, "--topk must be >= 1"),
        (["-", "--step=0"], FAILED, "step_s must be from 1e-6 to 1e9, got 0.0"),
        (["-", "--test.frame_order=reversed"], FAILED, "test.frame_order is reversed, but the frames of a window are"),
    ],
)
def test_stream_of_bad_input_is_one_line(args, code, message, checkpoint, capsys):
    assert main(["stream", checkpoint, *args]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.slow
def test_stream_ends_if_standard_input_hangs(checkpoint):
    command = [sys.executable, "-m", "sparsevideo", "stream", checkpoint, "-", "--time-limit=1", "--format=mpegts"]
    with interruptible(command, stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == FAILED
        assert "error: standard input: no frame within 1 s" in process.stderr.read()
