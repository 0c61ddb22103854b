"""Written videos have the same frames at the same times as their source, and appear only when complete."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import REAL, numbered_frame, read_number, remux, write_numbered, zero_third_quarter

from sparsevideo.io.backends import open_video, probe, read_frames
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.writer import resize_video, write_video

# suffix, arguments of `write_numbered`: files whose frames are listed, and files whose frames are counted by decoding
SOURCES = {
    "mp4 with B-frames": ("mp4", {"options": {"g": "12", "bf": "3"}}),
    "variable frame rate": ("mkv", {"irregular": True}),
    "one frame a second": ("mp4", {"fps": 1}),
    "vp8, with hidden frames": ("webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    "avi without times": ("avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "transport stream": ("ts", {"options": {"bf": "3"}}),
    "ten bits": ("mp4", {"pix_fmt": "yuv420p10le"}),
}


def times_s(path: Path) -> np.ndarray:
    with open_video(path, verify=True) as video:
        return video.times_s


def test_written_bytes_are_reproducible(tmp_path: Path) -> None:
    frames = np.stack([numbered_frame(number) for number in range(16)])
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert np.abs(read_frames(tmp_path / "a.mp4", range(16)).astype(int) - frames).mean() < 4
    for wrong, shape in ((frames[:, 1:], "16, 63, 64, 3"), (frames[:0], "0, 64, 64, 3")):
        with pytest.raises(ValueError, match=rf"x\.mp4: frames must be \(T, H, W, 3\) .*, got \({shape}\) uint8"):
            write_video(tmp_path / "x.mp4", wrong)


@pytest.mark.parametrize("num_frames", [1, 45])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_copy_has_the_same_frames_at_the_same_times(kind: str, num_frames: int, tmp_path: Path) -> None:
    suffix, how = SOURCES[kind]
    source, copy = tmp_path / f"source.{suffix}", tmp_path / "new folder" / "copy.mp4"
    write_numbered(source, num_frames, height=96, width=192, **how)
    count = probe(source).num_frames
    assert resize_video(source, copy, 48) == count == num_frames
    frames = read_frames(copy, range(count))
    assert frames.shape[1:3] == (48, 96)
    assert [read_number(frame) for frame in frames] == list(range(count))
    np.testing.assert_allclose(times_s(copy), times_s(source), atol=1e-9)
    if "irregular" not in how and num_frames > 1:
        assert probe(copy).fps == pytest.approx(how.get("fps", 25), rel=1e-3)


def test_copy_is_simple_to_read(tmp_path: Path) -> None:
    """H.264 in 8 bits with keyframes at equal distances, listed without decoding, and the same bytes each time."""
    write_numbered(tmp_path / "source.mp4", 80, height=96, width=192, pix_fmt="yuv420p10le")
    for name in ("a.mp4", "b.mp4"):
        resize_video(tmp_path / "source.mp4", tmp_path / name, 48, gop=20)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    with open_video(tmp_path / "a.mp4") as video:
        assert video.table is not None
        assert video.table.keyframes.tolist() == [0, 20, 40, 60]


@pytest.mark.parametrize(
    ("size", "copied"),
    [((100, 178), (48, 86)), ((178, 100), (86, 48)), ((48, 97), (48, 96)), ((47, 31), (46, 30))],
    ids=["landscape", "portrait", "equal", "smaller and odd"],
)
def test_sizes_of_copies(size: tuple[int, int], copied: tuple[int, int], tmp_path: Path) -> None:
    """Sizes are even, within a pixel of the aspect ratio, and never larger than the source."""
    height, width = size
    options = {"codec": "libx264", "pix_fmt": "yuv444p"}  # allows odd sizes
    write_numbered(tmp_path / "source.mp4", 3, height=height, width=width, **options)
    resize_video(tmp_path / "source.mp4", tmp_path / "copy.mp4", 48)
    frames = read_frames(tmp_path / "copy.mp4", range(3))
    assert frames.shape[1:3] == copied
    assert [read_number(frame) for frame in frames] == [0, 1, 2]


def test_copy_is_rotated_and_without_sound(tmp_path: Path) -> None:
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    write_numbered(plain, 6, height=96, width=192)
    with av.open(str(plain)) as reader, av.open(str(turned), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.set_display_rotation(90)
        sound = writer.add_stream("aac", rate=8000)
        sound.layout = "mono"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        writer.mux(sound.encode(silence))
        writer.mux(sound.encode())
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    resize_video(turned, tmp_path / "copy.mp4", 48)
    expected = np.rot90(read_frames(plain, range(6)), axes=(1, 2))[:, ::2, ::2]
    frames = read_frames(tmp_path / "copy.mp4", range(6))
    assert frames.shape == expected.shape == (6, 96, 48, 3)
    assert np.abs(frames.astype(int) - expected).mean() < 8
    with av.open(str(turned)) as before, av.open(str(tmp_path / "copy.mp4")) as after:
        assert [stream.type for stream in before.streams] == ["video", "audio"]
        assert [stream.type for stream in after.streams] == ["video"]


@pytest.mark.parametrize(("rotation", "ratio"), [(0, Fraction(16, 15)), (90, Fraction(15, 16))])
def test_copy_keeps_the_aspect_ratio(rotation: int, ratio: Fraction, tmp_path: Path) -> None:
    write_numbered(tmp_path / "plain.mp4", 4, height=96, width=120, ratio="16/15")
    remux(tmp_path / "plain.mp4", tmp_path / "source.mp4", rotation=rotation)
    resize_video(tmp_path / "source.mp4", tmp_path / "copy.mp4", 48)
    assert probe(tmp_path / "source.mp4").sample_aspect_ratio == Fraction(16, 15)
    copy = probe(tmp_path / "copy.mp4")
    assert copy.sample_aspect_ratio == ratio
    assert (copy.height, copy.width) == ((60, 48) if rotation else (48, 60))


def test_damaged_video_is_copied_up_to_the_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, copy = tmp_path / "source.mp4", tmp_path / "copy.mp4"
    write_numbered(source, 60, options={"g": "60", "bf": "0"}, height=96, width=192)
    zero_third_quarter(source)
    count = probe(source).num_frames
    with open_video(source) as video:
        assert 0 < count < video.num_frames
    with caplog.at_level(logging.WARNING):
        assert resize_video(source, copy, 48) == count
    with open_video(source, verify=True) as video:  # the decoder may have concealed damage in the last ones
        shown = [read_number(frame) for frame in video.read(range(count))]
    assert [read_number(frame) for frame in read_frames(copy, range(count))] == shown
    assert f"source.mp4: ends after {count} frames" in caplog.text


def test_copy_appears_only_when_complete(tmp_path: Path) -> None:
    """An error changes no earlier copy and leaves no other file."""
    write_numbered(tmp_path / "source.mp4", 30)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "source.mp4").read_bytes()[:200])
    copies = tmp_path / "copies"
    resize_video(tmp_path / "source.mp4", copies / "copy.mp4", 32)
    earlier = (copies / "copy.mp4").read_bytes()
    with pytest.raises(DecodeError, match=r"cut\.mp4"):
        resize_video(tmp_path / "cut.mp4", copies / "copy.mp4", 32)
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4: no such file"):
        resize_video(tmp_path / "absent.mp4", copies / "copy.mp4", 32)
    for short_side in (0, 31):
        with pytest.raises(ValueError, match=f"short_side must be even and >= 2, got {short_side}"):
            resize_video(tmp_path / "source.mp4", copies / "copy.mp4", short_side)
    with pytest.raises(OSError, match=r"source\.mp4"):  # the folder would be a file
        resize_video(tmp_path / "source.mp4", tmp_path / "source.mp4" / "copy.mp4", 32)
    (copies / "folder.mp4").mkdir()
    with pytest.raises(OSError, match=r"folder\.mp4"):  # fails after the copy is written
        resize_video(tmp_path / "source.mp4", copies / "folder.mp4", 32)
    assert (copies / "copy.mp4").read_bytes() == earlier
    assert {path.name for path in copies.iterdir()} == {"copy.mp4", "folder.mp4"}


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real videos are absent")
def test_real_files_keep_their_frames(tmp_path: Path) -> None:
    for name in ("clean/v_SoccerJuggling_g24_c01.avi", "odd/nasa_13013.mp4", "odd/corrupted.mp4", "odd/unordered.mov"):
        source, copy = REAL / "videos" / name, tmp_path / "copy.mp4"
        before, after = probe(source), (resize_video(source, copy, 64), probe(copy))[1]
        assert (after.num_frames, after.fps) == (before.num_frames, pytest.approx(before.fps, rel=1e-3)), name
        assert abs(after.width - before.width * after.height / before.height) <= 1, name
        np.testing.assert_allclose(times_s(copy), times_s(source), atol=1e-9)
        middle = before.num_frames // 2
        small = read_frames(source, [middle], short_side=min(after.height, after.width))
        assert np.abs(small.astype(int) - read_frames(copy, [middle])[:, :, : small.shape[2]]).mean() < 8, name
