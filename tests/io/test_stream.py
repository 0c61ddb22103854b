"""A stream has the frames of the file, at their times, from files, pipes, devices and the network."""

import os
import socket
import subprocess
import sys
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import fsspec
import numpy as np
import pytest
from numbered_videos import REAL, numbered_frame, read_number, remux, write_frames, write_numbered

from sparsevideo.io.backends import open_video
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.stream import FrameStream


def read(*args, **options):
    """Numbers and times of all frames of a numbered stream."""
    frames = [(read_number(frame.image), frame.time_s, frame.frame_index) for frame in FrameStream(*args, **options)]
    numbers, times_s, indices = map(list, zip(*frames, strict=True))
    assert indices == list(range(len(frames)))
    return numbers, times_s


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        ("mp4", {"options": {"g": "12", "bf": "3"}}),
        ("mkv", {"irregular": True}),
        ("avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("ts", {"options": {"bf": "3"}}),
        ("webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    ],
)
def test_stream_of_a_file_has_the_frames_and_times_of_the_file(suffix, how, tmp_path):
    path = tmp_path / f"a:b.{suffix}"
    write_numbered(path, 45, height=96, width=96, **how)
    numbers, times_s = read(path)
    with open_video(path, verify=True) as video:
        assert numbers == list(range(45)) and video.num_frames == 45
        assert times_s == pytest.approx(video.times_s, abs=1e-9)


def test_stream_of_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"is a folder; pass one video"):
        list(FrameStream(tmp_path))


def test_stream_reads_an_object_store(tmp_path):
    write_numbered(tmp_path / "a.mp4", 20, height=96, width=96)
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.mp4", (tmp_path / "a.mp4").read_bytes())
    assert read("memory://bucket/a.mp4")[0] == list(range(20))
    with pytest.raises(DecodeError, match=r"memory://bucket/b\.mp4: cannot be read \(no such file\)"):
        list(FrameStream("memory://bucket/b.mp4"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not there")
def test_stream_of_real_videos_has_the_pixels_of_the_video():
    paths = [path for path in sorted((REAL / "videos").glob("*/*")) if path.name != "audio_only.wav"]
    assert len(paths) > 15
    for path in paths:
        with open_video(path, "pyav", verify=True) as video:
            expected = video.frames(range(video.num_frames), 64, square_pixels=True)
            stream = FrameStream(path, short_side=64, square_pixels=True)
            times_s = video.times_s
            for frame, (index, image) in zip(stream, expected, strict=True):
                assert frame.frame_index == index and np.array_equal(frame.image, image), (path, index)
                assert frame.time_s == pytest.approx(times_s[index], abs=1e-9), (path, index)
            assert (stream.truncated_because is None) == (video.truncated_because is None)


def test_stream_resizes_frames_to_the_size_of_the_first(tmp_path):
    for name, height in (("a.ts", 96), ("b.ts", 192)):
        write_numbered(tmp_path / name, 12, height=height, width=96, options={"g": "1"})
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    frames = list(FrameStream(joined))
    assert {frame.image.shape for frame in frames} == {(96, 96, 3)} and len(frames) >= 23
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)


def test_stream_frames_may_be_converted_in_several_threads(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(16)]
    write_frames(tmp_path / "a.avi", images, "mjpeg", pix_fmt="yuvj444p")
    frames = list(FrameStream(tmp_path / "a.avi"))
    expected = [frame.convert() for frame in frames]
    with ThreadPoolExecutor(4) as pool:  # a preview converts frames in other threads
        found = list(pool.map(lambda frame: frame.convert(), frames * 4))
    assert all(np.array_equal(image, expected[index % 16]) for index, image in enumerate(found))


def test_stream_skips_a_jump_of_the_clock(tmp_path):
    write_numbered(tmp_path / "a.mkv", 20, options={"g": "1"})

    def jump(packets):
        for packet in packets[10:]:
            packet.pts += 3_600_000  # milliseconds
            packet.dts = packet.pts
        return packets

    remux(tmp_path / "a.mkv", tmp_path / "b.mkv", jump)
    assert read(tmp_path / "b.mkv")[1] == pytest.approx([index / 25 for index in range(20)], abs=2e-3)


def test_stream_of_a_damaged_file_ends_before_the_damage(tmp_path):
    path, rng = tmp_path / "a.mp4", np.random.default_rng(0)
    write_frames(path, [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(30)], options={"g": "1"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(content)
    stream = FrameStream(path)
    with open_video(path, verify=True) as video:
        assert len(list(stream)) == video.num_frames < 20
        assert stream.truncated_because is not None and stream.truncated_because == video.truncated_because


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, r"missing\.mp4: no such file"),
        ("empty.mp4", b"", r"empty\.mp4: does not decode"),
        ("text.mp4", b"no video" * 100, r"text\.mp4: does not decode"),
    ],
)
def test_stream_of_no_video_is_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((DecodeError, FileNotFoundError), match=message) as raised:
        list(FrameStream(tmp_path / name, live=True, reconnects=5))
    assert "\n" not in str(raised.value)


def test_stream_of_sound_alone_is_refused(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    with pytest.raises(DecodeError, match=r"a\.wav: holds no video stream"):
        list(FrameStream(tmp_path / "a.wav"))


def test_stream_errors_of_live_sources_name_them_without_their_secrets():
    with pytest.raises(FileNotFoundError, match=r"/dev/video999: no such device"):
        list(FrameStream("/dev/video999", live=True, reconnects=5))
    with pytest.raises(DecodeError, match=r"rtsp://127\.0\.0\.1:1/x\?hidden-.{8}: Connection refused") as raised:
        list(FrameStream("rtsp://me:secret@127.0.0.1:1/x?token=secret", live=True, reconnects=5))
    assert "secret" not in str(raised.value)


def test_stream_of_a_silent_address_ends_after_the_time_limit():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:  # accepts, and never sends
        port, start_s = server.getsockname()[1], time.monotonic()
        with pytest.raises(TimeoutError, match=rf"tcp://127\.0\.0\.1:{port}: nothing came within 0\.5 s"):
            list(FrameStream(f"tcp://127.0.0.1:{port}", timeout_s=0.5))
        assert time.monotonic() - start_s < 5


def test_stream_takes_a_device_of_ffmpeg_with_options():
    stream = FrameStream("testsrc=size=96x64:rate=5:duration=2", format="lavfi")
    times_s = [frame.time_s for frame in stream if frame.image.shape == (64, 96, 3)]
    assert times_s == pytest.approx([index / 5 for index in range(10)])
    assert stream.interval_s == pytest.approx(0.2)


def test_stream_of_a_file_in_real_time_takes_as_long_as_the_file(tmp_path):
    write_numbered(tmp_path / "a.mp4", 26, fps=25)
    start_s = time.monotonic()
    arrivals = [frame.arrived_s - start_s for frame in FrameStream(tmp_path / "a.mp4", live=True)]
    assert arrivals[-1] - arrivals[0] >= 0.99


PRINT_NUMBERS = (
    "import sys; sys.path.insert(0, 'tests')\n"
    "from numbered_videos import read_number\n"
    "from sparsevideo.io.stream import FrameStream\n"
    "options = dict(option.split('=') for option in sys.argv[2:])\n"
    "stream = FrameStream('-', format=options.pop('format', None), options=options)\n"
    "print([read_number(frame.image) for frame in stream] == list(range(int(sys.argv[1]))))\n"
)


@pytest.mark.parametrize("kind", ["mpegts", "rawvideo"])
def test_stream_of_standard_input_has_all_frames(kind, tmp_path):
    if kind == "mpegts":
        write_frames(tmp_path / "a.ts", [numbered_frame(number, 96, 96) for number in range(45)], options={"bf": "3"})
        content, options = (tmp_path / "a.ts").read_bytes(), []
    else:
        content = b"".join(numbered_frame(number, 96, 96).tobytes() for number in range(45))
        options = ["format=rawvideo", "video_size=96x96", "pixel_format=rgb24", "framerate=25"]
    command = [sys.executable, "-c", PRINT_NUMBERS, "45", *options]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "True"


def test_stream_opens_a_lost_address_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsevideo.io.stream.time.sleep", lambda _: None)
    write_numbered(tmp_path / "a.ts", 20, height=96, width=96)
    content, server = (tmp_path / "a.ts").read_bytes(), socket.create_server(("127.0.0.1", 0))

    def serve():
        for _ in range(2):
            with server.accept()[0] as connection:
                connection.sendall(content)
        server.close()  # further attempts are refused

    thread = threading.Thread(target=serve)
    thread.start()
    stream, frames = FrameStream(f"tcp://127.0.0.1:{server.getsockname()[1]}", live=True, reconnects=3), []
    with pytest.raises(DecodeError, match=r"Connection refused.*opened again 3 times without success"):
        frames.extend(stream)  # keeps the frames before the error
    thread.join()
    assert [frame.connection for frame in frames] == [0] * 20 + [1] * 20
    assert [frame.frame_index for frame in frames] == list(range(40))
    assert frames[20].time_s > frames[19].time_s


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_stream_of_a_named_pipe_has_all_frames(tmp_path):
    write_numbered(tmp_path / "a.ts", 20, height=96, width=96)
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "a.ts").read_bytes()))
    thread.start()
    assert read(tmp_path / "pipe", live=True, reconnects=3)[0] == list(range(20))
    thread.join()
