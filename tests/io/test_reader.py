"""Read frames by index: exact frames, exact counts, and errors that name the file."""

import gc
import io
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import REAL, decode_numbers, numbered_frame, read_number, remux, write_frames, write_numbered
from PIL import Image

from sparsevideo.io import backends
from sparsevideo.io.backends import open_video, probe, read_frames
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.image import read_image
from sparsevideo.io.pixels import format_ratio, resize
from sparsevideo.io.pyav import ANY_METADATA

DECODERS = ("pyav", "torchcodec", "decord")
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared real videos are absent")
X265 = "log-level=none:pools=1:frame-threads=1:crf=10"  # by default it prints, and its output varies
LISTED, COUNTED = True, False

# container, codec, encoder options, and how frames are found: listed from packets or counted by decoding
FILES = {
    "gop 12, B-frames": ("mp4", "libx264", {"g": "12", "bf": "3"}, LISTED),
    "intra refresh": ("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0:scenecut=0"}, LISTED),
    "gop 250, B-frames": ("mp4", "libx264", {"g": "250", "bf": "3"}, LISTED),
    "no B-frames": ("mp4", "libx264", {"g": "12", "bf": "0"}, LISTED),
    "h264, open gop": ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=7:bframes=3"}, LISTED),
    "keyframes alone": ("mov", "libx264", {"g": "1"}, LISTED),
    "hevc, open gop": ("mp4", "libx265", {"x265-params": f"keyint=12:bframes=3:{X265}"}, LISTED),
    "mkv without a count": ("mkv", "libx264", {"g": "12", "bf": "3"}, LISTED),
    "vp9": ("webm", "libvpx-vp9", {"g": "12", "cpu-used": "8", "deadline": "realtime"}, LISTED),
    "Xvid-like avi": ("avi", "mpeg4", {"g": "12", "bf": "0"}, LISTED),
    "avi with B-frames": ("avi", "mpeg4", {"g": "12", "bf": "2"}, COUNTED),
    "h264 in avi": ("avi", "libx264", {"g": "12", "bf": "3"}, COUNTED),
    "vp8, with hidden frames": ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "40"}, COUNTED),
    "transport stream": ("ts", "libx264", {"g": "12", "bf": "3"}, COUNTED),
    "mpeg program stream": ("mpg", "mpeg2video", {"g": "12", "bf": "2"}, COUNTED),
}


def needs(decoder: str) -> str:
    """Skip the test if a decoder does not work."""
    try:
        return backends.resolve_decoder(decoder)
    except ValueError as error:
        pytest.skip(str(error))


def numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", FILES)
def test_frames_are_exact_in_any_order(kind: str, decoder: str, tmp_path: Path) -> None:
    suffix, codec, options, listed = FILES[kind]
    path = tmp_path / f"video.{suffix}"
    for _ in range(5):
        write_numbered(path, 100, codec=codec, options=options)
        if codec != "libx265" or decode_numbers(path) == list(range(100)):
            break  # x265 sometimes encodes another picture than its input
    rng = np.random.default_rng(0)
    with open_video(path, needs(decoder)) as video:
        assert video.num_frames == 100
        assert (video._list is not None) == listed
        for indices in ([0], [99], [50, 3, 50, 99, 0, 3], range(100), rng.integers(100, size=40), [20, 60, 24]):
            assert numbers(video.read(indices)) == list(indices)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["gop 12, B-frames", "mkv without a count", "avi with B-frames", "transport stream"])
def test_bytes_are_read_like_their_file(kind: str, decoder: str, tmp_path: Path) -> None:
    suffix, codec, options, _ = FILES[kind]
    path = tmp_path / f"video.{suffix}"
    write_numbered(path, 40, codec=codec, options=options)
    content, indices = path.read_bytes(), [39, 3, 20, 3]
    with path.open("rb") as file:
        for source in (content, bytearray(content), memoryview(content), BytesIO(content), file):
            assert numbers(read_frames(source, indices, decoder=needs(decoder))) == indices
    assert probe(content) == probe(path)


def test_bytes_that_are_no_video_are_named() -> None:
    with pytest.raises(TypeError, match="open the file in binary mode"):
        read_frames(io.StringIO("no video"), [0])
    for content in (b"", b"no video"):
        with pytest.raises(DecodeError, match=f"{len(content)} bytes in memory: does not decode"):
            read_frames(content, [0])


@pytest.mark.parametrize("gop", [1, 2, 3, 12])
def test_irregular_times_and_short_gops(gop: int, tmp_path: Path) -> None:
    """With keyframes this close, a seek in mp4 lands on a later keyframe than requested."""
    path = tmp_path / "video.mp4"
    write_numbered(path, 100, options={"g": str(gop), "bf": "2"}, irregular=True)
    indices = np.random.default_rng(0).integers(100, size=60)
    with open_video(path) as video:
        assert video._list is not None
        assert [numbers(video.read([index]))[0] for index in indices] == indices.tolist()
        assert numbers(video.read(indices)) == indices.tolist()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of all frames that are decoded, wanted or not."""
    indices = []
    decode_indexed = backends.Video._decode_indexed

    def record(self: backends.Video, packet: av.Packet | None) -> Iterator[tuple[int, av.VideoFrame]]:
        for index, frame in decode_indexed(self, packet):
            indices.append(index)
            yield index, frame

    monkeypatch.setattr(backends.Video, "_decode_indexed", record)
    return indices


def test_only_frames_from_the_keyframe_on_are_decoded(tmp_path: Path, decoded: list[int]) -> None:
    path = tmp_path / "video.mp4"
    write_numbered(path, 300, options={"g": "12", "bf": "0", "sc_threshold": "0"})
    with open_video(path) as video:
        assert numbers(video.read([290, 5, 150, 5])) == [290, 5, 150, 5]
    assert sorted(decoded) == [*range(6), *range(144, 151), *range(288, 291)]  # from the keyframe before each


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_frames_left_out_change_no_pixel(codec: str, tmp_path: Path, decoded: list[int]) -> None:
    """The decoder leaves out frames that are not needed, and gives the same pixels as plain decoding."""
    rng = np.random.default_rng(0)
    scene = rng.integers(256, size=(96, 400, 3), dtype=np.uint8).repeat(2, axis=0)  # noise that moves
    path = tmp_path / "video.mp4"
    options = {"g": "30", "bf": "3", "threads": "1", "x265-params": f"keyint=30:bframes=3:b-pyramid=1:{X265}"}
    write_frames(path, (scene[i : i + 96, 3 * i : 3 * i + 128] for i in range(90)), codec, options=options)
    with av.open(str(path)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with open_video(path) as video:
        for indices in (range(0, 90, 2), range(1, 90, 4), [17], [88, 89], rng.integers(90, size=12)):
            np.testing.assert_array_equal(video.read(indices), plain[np.asarray(indices)])
        decoded.clear()
        video.read(range(1, 60, 4))
    assert len(decoded) < 50  # of 58 up to the last wanted


def test_table_replaces_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "video.mp4", 60, options={"g": "12", "bf": "3"})
    write_numbered(tmp_path / "video.ts", 60, options={"g": "12", "bf": "3"})
    tables = {}
    for name, step in [("video.mp4", 512), ("video.ts", 0)]:
        with open_video(tmp_path / name) as video:
            tables[name] = video.table
            times = video.times
        assert (tables[name].num_frames, tables[name].step) == (60, step)
        with open_video(tmp_path / name, table=tables[name]) as video:
            np.testing.assert_array_equal(video.times, times)
        with open_video(tmp_path / name, verify=True) as video:
            assert str(video.table) == str(tables[name])
    monkeypatch.setattr(backends.Video, "_list_frames", None)  # a call would raise
    monkeypatch.setattr(backends.Video, "_count_frames", None)
    for name, table in tables.items():
        with open_video(tmp_path / name, table=table) as video:
            assert video.num_frames == 60
            assert numbers(video.read([59, 13, 12, 40, 0])) == [59, 13, 12, 40, 0]
    monkeypatch.undo()
    write_numbered(tmp_path / "uneven.mp4", 20, irregular=True)
    with open_video(tmp_path / "uneven.mp4") as video:
        assert video.table is None


def test_times(tmp_path: Path) -> None:
    write_numbered(tmp_path / "uneven.mp4", 20, irregular=True)
    write_numbered(tmp_path / "video.ts", 20, options={"bf": "3"})
    write_numbered(tmp_path / "video.avi", 20, codec="mpeg4", options={"bf": "2"})  # its times are in coding order
    with open_video(tmp_path / "uneven.mp4") as video:
        np.testing.assert_allclose(video.times_s, [(n + n * n // 3) / 25 for n in range(20)], atol=1e-9)
    write_numbered(tmp_path / "video.h264", 20)  # has none
    for name in ("video.ts", "video.avi", "video.h264"):
        with open_video(tmp_path / name) as video:
            np.testing.assert_allclose(video.times_s, np.arange(20) / 25, atol=1e-4)


def test_frames_of_another_size_are_resized_to_the_first(tmp_path: Path) -> None:
    write_numbered(tmp_path / "small.ts", 20, height=48, width=64)
    write_numbered(tmp_path / "large.ts", 20, height=96, width=96)
    (tmp_path / "both.ts").write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    with open_video(tmp_path / "both.ts") as video:
        assert video.num_frames == 40
        frames = video.read([3, 19, 25, 39])
        assert frames.shape == (4, 48, 64, 3) and numbers(frames) == [3, 19, 5, 19]
        assert video.read([3, 25], 24).shape == (2, 24, 32, 3)


def test_very_large_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "video.mp4", 4, height=64, width=64)
    assert probe(tmp_path / "video.mp4").num_frames == 4
    monkeypatch.setattr("sparsevideo.io.frames._MAX_PIXELS", 64 * 63)
    with pytest.raises(DecodeError, match=r"video\.mp4"):
        read_frames(tmp_path / "video.mp4", [0])


def test_probe_of_a_file_without_frame_count(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    write_numbered(path, 40, height=48, width=96)
    info = backends.VideoInfo(num_frames=40, fps=25.0, width=96, height=48, duration_s=1.6, codec="h264")
    assert probe(path) == info
    with open_video(path) as video:
        assert video.info == info


def test_one_frame(tmp_path: Path) -> None:
    write_numbered(tmp_path / "video.mp4", 1)
    assert probe(tmp_path / "video.mp4").num_frames == 1
    assert read_frames(tmp_path / "video.mp4", [0, 0, 0]).shape == (3, 64, 64, 3)


def test_short_side(tmp_path: Path) -> None:
    sizes = [("a", 48, 96, (32, 64)), ("b", 96, 48, (64, 32)), ("c", 16, 24, (32, 48)), ("d", 48, 76, (32, 51))]
    for name, height, width, shape in sizes:
        write_numbered(tmp_path / f"{name}.mp4", 8, height=height, width=width)
        frames = read_frames(tmp_path / f"{name}.mp4", [7, 2], short_side=32)
        assert frames.shape == (2, *shape, 3)
        assert numbers(frames) == [7, 2]


def write_wide_pixels(path: Path, ratio: str, *, codec: str = "libx264", stream: str = "", angle: int = 0) -> None:
    """Write eight frames of 48 x 80 with a sample aspect ratio; the H.264 stream may state another."""
    plain = path.with_name(f"plain{path.suffix}")
    images = [numbered_frame(number, 48, 80) for number in range(8)]
    for image in images:
        image[..., 0] = np.linspace(0, 255, 80).astype(np.uint8)
    options = {"g": "4", "bf": "0", "qmin": "1", "qmax": "2"}
    write_frames(plain, images, codec, options=options, sample_aspect_ratio=Fraction(ratio))
    filters = f"h264_metadata=sample_aspect_ratio={stream}" if stream else ""
    remux(plain, path, rotation=angle or None, filters=filters)


# file, sample aspect ratio, height and width with square pixels; the stored size is 48 x 80
SHAPES = {
    "pasp": ("mp4", {"ratio": "16/15"}, "16:15", (48, 85)),
    "pasp before the codec's": ("mp4", {"ratio": "64/45", "stream": "1/1"}, "64:45", (48, 114)),
    "DisplayWidth": ("mkv", {"ratio": "40/33"}, "40:33", (48, 97)),
    "H.264 in a transport stream": ("ts", {"ratio": "1/1", "stream": "4/3"}, "4:3", (48, 107)),
    "MPEG-2": ("mpg", {"ratio": "16/15", "codec": "mpeg2video"}, "16:15", (48, 85)),
    "MPEG-4": ("avi", {"ratio": "16/11", "codec": "mpeg4"}, "16:11", (48, 116)),
    "tall pixels": ("mov", {"ratio": "1/2"}, "1:2", (48, 40)),
    "turned": ("mp4", {"ratio": "16/15", "angle": 90}, "16:15", (85, 48)),
    "turned the other way": ("mov", {"ratio": "1/2", "angle": 270}, "1:2", (40, 48)),
    "upside down": ("mp4", {"ratio": "3/2", "angle": 180}, "3:2", (48, 120)),
    "square": ("mp4", {"ratio": "1/1"}, "1:1", (48, 80)),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", SHAPES)
def test_square_pixels_equal_those_of_ffmpeg(kind: str, decoder: str, tmp_path: Path) -> None:
    suffix, how, ratio, shape = SHAPES[kind]
    path = tmp_path / f"video.{suffix}"
    write_wide_pixels(path, **how)
    with open_video(path, needs(decoder)) as video:
        stored, square = (video.read([5, 0], square_pixels=square) for square in (False, True))
        assert format_ratio(video.sample_aspect_ratio) == format_ratio(video.info.sample_aspect_ratio) == ratio
        turns = how.get("angle", 0) // 90
        assert stored.shape[1:3] == video.stored_size == ((80, 48) if turns % 2 else (48, 80))
        assert (video.info.height, video.info.width) == video.stored_size
        assert square.shape == (2, *shape, 3) and numbers(np.rot90(square, -turns, axes=(1, 2))) == [5, 0]
        for short_side in (24, 100):
            small = video.read([5], short_side, square_pixels=True)
            other = round(short_side * max(shape) / min(shape))
            assert min(small.shape[1:3]) == short_side and abs(max(small.shape[1:3]) - other) <= 1
            assert (small.shape[1] < small.shape[2]) == (shape[0] < shape[1])
            once = resize(stored[0], small.shape[1:3])  # two resizes would be softer
            np.testing.assert_array_equal(small[0], once)
    np.testing.assert_array_equal(read_frames(path, [5, 0], square_pixels=True, decoder=decoder), square)
    if not (ffmpeg := shutil.which("ffmpeg")):
        pytest.skip("the ffmpeg command, against which pixels are compared, is absent")
    command = [ffmpeg, "-v", "error", "-noautorotate", "-i", path, "-vf", "scale=iw*sar:ih:flags=bilinear"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True)
    height, width = (shape[1], shape[0]) if turns % 2 else shape
    expected = np.frombuffer(bytearray(done.stdout), np.uint8)
    width = len(expected) // (8 * height * 3)  # ffmpeg rounds down
    assert abs(width - (shape[0] if turns % 2 else shape[1])) <= 1
    expected = resize(np.rot90(expected.reshape(8, height, width, 3)[5], turns), shape)
    assert np.abs(expected.astype(int) - square[0]).mean() < 4


@pytest.mark.parametrize(
    ("stated", "ratio"),
    [
        *[((1, 1000), 1), ((1000, 1), 1), ((5, 1), 1), ((4, 1), 4), ((1, 4), 0.25), ((0, 1), 1), ((1, 0), 1)],
        *[((-4, 3), 1), ((2**31 - 1, 2**31 - 2), 1), ((5120, 5127), Fraction(731, 732))],
    ],
)
def test_implausible_ratios_are_ignored(stated: tuple[int, int], ratio: float, tmp_path: Path) -> None:
    """Ratios beyond 4:1 or 1:4; that of the codec is square."""
    write_wide_pixels(tmp_path / "video.mp4", "4/3", stream="1/1")
    content = bytearray((tmp_path / "video.mp4").read_bytes())
    at = content.index(b"pasp") + 4
    content[at : at + 8] = struct.pack(">ii", *stated)
    (tmp_path / "video.mp4").write_bytes(content)
    with open_video(tmp_path / "video.mp4") as video:
        assert video.sample_aspect_ratio == ratio
        assert video.read([0], square_pixels=True).shape == (1, 48, round(80 * ratio), 3)


# Arguments of `remux`, and the function from frames (T, H, W, 3) as stored to frames as shown
ORIENTATIONS = {
    "90 degrees": ({"rotation": 90}, lambda stored: np.rot90(stored, 1, axes=(1, 2))),
    "180 degrees": ({"rotation": 180}, lambda stored: np.rot90(stored, 2, axes=(1, 2))),
    "270 degrees": ({"rotation": 270}, lambda stored: np.rot90(stored, 3, axes=(1, 2))),
    "left and right": ({"matrix": (-1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)}, lambda stored: stored[:, :, ::-1]),
    "top and bottom": ({"matrix": (1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30)}, lambda stored: stored[:, ::-1]),
    "transposed": ({"matrix": (0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30)}, lambda stored: stored.swapaxes(1, 2)),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_frames_are_rotated_and_mirrored(orientation: str, decoder: str, tmp_path: Path) -> None:
    """Phones write rotated video, and front cameras mirrored video."""
    how, show = ORIENTATIONS[orientation]
    plain, changed = tmp_path / "plain.mp4", tmp_path / "changed.mp4"
    write_numbered(plain, 30, options={"g": "12"}, height=48, width=96)
    remux(plain, changed, **how)
    expected = show(read_frames(plain, range(30)))
    with open_video(changed, needs(decoder)) as video:
        np.testing.assert_array_equal(video.read(range(30)), expected)
        assert (video.info.height, video.info.width) == expected.shape[1:3]
        for index in (0, 29, 12, 13):
            np.testing.assert_array_equal(video.read([index])[0], expected[index])


def test_ten_bits(tmp_path: Path) -> None:
    write_numbered(tmp_path / "video.mp4", 20, pix_fmt="yuv420p10le")
    assert numbers(read_frames(tmp_path / "video.mp4", [19, 4])) == [19, 4]


def test_best_of_several_streams_is_read(tmp_path: Path) -> None:
    write_numbered(tmp_path / "small.mp4", 5, height=32, width=32)
    write_numbered(tmp_path / "large.mp4", 8)
    with av.open(str(tmp_path / "both.mkv"), "w") as both:
        readers = [av.open(str(tmp_path / name)) for name in ("small.mp4", "large.mp4")]
        streams = [both.add_stream_from_template(reader.streams.video[0]) for reader in readers]
        streams[1].disposition = av.stream.Disposition.default
        for reader, stream in zip(readers, streams, strict=True):
            for packet in (packet for packet in reader.demux(video=0) if packet.size):
                packet.stream = stream
                both.mux(packet)
            reader.close()
    assert probe(tmp_path / "both.mkv").height == 64
    assert numbers(read_frames(tmp_path / "both.mkv", range(8))) == list(range(8))


def test_truncated_file_has_its_remaining_frames(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_numbered(whole, 60, options={"g": "12"})
    remux(whole, cut, movflags="faststart")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames == 60  # the header is unchanged
    with open_video(cut) as video:
        assert 10 < video.num_frames < 60
        assert numbers(video.read(range(video.num_frames))) == list(range(video.num_frames))


def test_file_that_starts_between_keyframes(tmp_path: Path) -> None:
    """Packets before the first keyframe cannot be decoded, so they are not frames."""
    write_numbered(tmp_path / "whole.mp4", 40, options={"g": "12", "bf": "0", "sc_threshold": "0"})
    remux(tmp_path / "whole.mp4", tmp_path / "cut.mkv", lambda packets: packets[5:])
    shown = decode_numbers(tmp_path / "cut.mkv")
    with open_video(tmp_path / "cut.mkv") as video:
        assert video.num_frames == len(shown) == 28
        assert numbers(video.read([27, 0])) == [39, 12]


def test_start_removed_by_an_edit_list(tmp_path: Path) -> None:
    def shift(packets: list[av.Packet]) -> list[av.Packet]:
        for packet in packets:
            packet.pts, packet.dts = packet.pts - 7 * 512, packet.dts - 7 * 512
        return packets

    write_numbered(tmp_path / "whole.mp4", 40, options={"g": "12", "bf": "0"})
    remux(tmp_path / "whole.mp4", tmp_path / "cut.mp4", shift, avoid_negative_ts="disabled")
    shown = decode_numbers(tmp_path / "cut.mp4")
    assert shown == list(range(7, 40))
    with open_video(tmp_path / "cut.mp4") as video:
        assert video.num_frames == 33
        assert numbers(video.read([0, 32, 9])) == [7, 39, 16]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("libx264", ".mkv"), ("mpeg4", ".mp4")])
def test_decoding_times_instead_of_presentation_times(codec: str, suffix: str, decoder: str, tmp_path: Path) -> None:
    """A copy of an avi file without re-encoding has only decoding times."""

    def decoding_times(packets: list[av.Packet]) -> list[av.Packet]:
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number * packets[0].duration
        return packets

    whole, copy = tmp_path / "whole.mp4", tmp_path / f"copy{suffix}"
    write_numbered(whole, 40, codec=codec, options={"g": "12", "bf": "2"})
    remux(whole, copy, decoding_times)
    assert numbers(read_frames(copy, [*range(8), 39, 20, 27], decoder=needs(decoder))) == [*range(8), 39, 20, 27]


def test_frames_that_share_a_time(tmp_path: Path) -> None:
    """Matroska stores times in milliseconds: above 1000 frames per second they repeat."""
    write_numbered(tmp_path / "video.mkv", 60, options={"bf": "0"}, fps=1500)
    with open_video(tmp_path / "video.mkv") as video:
        assert video.num_frames == 60
        assert numbers(video.read([59, 30, 31])) == [59, 30, 31]


def test_placeholder_packets_give_no_frame(tmp_path: Path) -> None:
    """Xvid writes them for frames without motion."""
    placeholder = bytes.fromhex("000001b6554f")  # start of a picture; type P, time 10, "not coded"

    def insert(packets: list[av.Packet]) -> list[av.Packet]:
        empty = av.Packet(placeholder)
        empty.time_base = packets[0].time_base
        packets.insert(10, empty)
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
        return packets

    write_numbered(tmp_path / "whole.avi", 30, codec="mpeg4", options={"bf": "0"})
    remux(tmp_path / "whole.avi", tmp_path / "video.avi", insert)
    assert decode_numbers(tmp_path / "video.avi") == list(range(30))
    with open_video(tmp_path / "video.avi") as video:
        assert video.num_frames == 30
        assert numbers(video.read([29, 12, 5])) == [29, 12, 5]


def test_errors_of_pyav_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV raises IndexError if streams appear in the middle of a damaged transport stream."""

    def fail(self: backends.Video, packet: av.Packet | None) -> Iterator[tuple[int, av.VideoFrame]]:
        raise IndexError("list index out of range")
        yield

    write_numbered(tmp_path / "video.mp4", 10)
    monkeypatch.setattr(backends.Video, "_decode_indexed", fail)
    with pytest.raises(DecodeError, match=r"video\.mp4: does not decode \(IndexError: list index out of range\)"):
        read_frames(tmp_path / "video.mp4", [0])


def test_errors_name_the_file(tmp_path: Path) -> None:
    contents = {"empty.mp4": b"", "text.mp4": b"no video\n" * 99, "cut.mp4": b""}
    write_numbered(tmp_path / "whole.mp4", 20)
    contents["cut.mp4"] = (tmp_path / "whole.mp4").read_bytes()[:-400]  # its index is at the end
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=name):
            read_frames(tmp_path / name, [0])
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4: no such file"):
        read_frames(tmp_path / "absent.mp4", [0])
    with pytest.raises(DecodeError, match="directory"):
        probe(tmp_path)


def write_damaged(path: Path) -> None:
    """Frames 30 to 35 do not decode."""
    write_numbered(path, 60, options={"g": "12", "bf": "0", "sc_threshold": "0"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        position, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][30]
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)


def test_damage_affects_only_frames_that_depend_on_it(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_damaged(path)
    with open_video(path) as video:
        assert numbers(video.read([29, 0])) == [29, 0]
        with pytest.raises(DecodeError, match=r"video\.mp4"):
            video.read([30])
        assert numbers(video.read([59, 36])) == [59, 36]  # after the next keyframe
    with open_video(path, verify=True) as video:
        assert video.num_frames == 30 and video.table.step == 0  # packets list 60 frames
        assert numbers(video.read([29, 0])) == [29, 0]
        assert video.truncated_because == "Invalid data found when processing input"
    assert probe(path).num_frames == 30


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_before_damage_are_exact(decoder: str, tmp_path: Path) -> None:
    """PyAV continues after the frames that another decoder has given."""
    write_damaged(tmp_path / "video.mp4")
    with open_video(tmp_path / "video.mp4", needs(decoder)) as video, pytest.raises(DecodeError, match=r"video\.mp4"):
        for index, frame in video.frames(range(60)):
            assert read_number(frame) == index


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv"])
def test_flipped_bits_raise_only_decode_errors(suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "video"
    write_numbered(tmp_path / f"whole.{suffix}", 20, options={"g": "6"})
    whole = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
    num_read = num_refused = 0
    for _ in range(150):
        content = whole.copy()
        content[rng.integers(len(content), size=12)] ^= rng.integers(256, size=12, dtype=np.uint8)
        path.write_bytes(content[: rng.integers(len(content) // 2, 2 * len(content))].tobytes())
        try:
            with open_video(path) as video:
                assert video.read(rng.integers(video.num_frames, size=4)).ndim == 4
            num_read += 1
        except DecodeError:
            num_refused += 1
    assert num_read > 0 and num_refused > 0


def test_frames_that_do_not_exist(tmp_path: Path) -> None:
    write_numbered(tmp_path / "video.mp4", 10)
    for indices in ([10], [-1], [], [1.9], [float("nan")]):
        with pytest.raises(ValueError, match=r"video\.mp4: frame indices must be integers from 0 to 9"):
            read_frames(tmp_path / "video.mp4", indices)
    with pytest.raises(ValueError, match=r"video\.mp4: the short side must be >= 1"):
        read_frames(tmp_path / "video.mp4", [0], short_side=0)


def test_unknown_and_missing_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'gstreamer'; data\.decoder must be one of auto, pyav, torchcodec, torch"):
        read_frames(tmp_path / "video.mp4", [0], decoder="gstreamer")
    backends.resolve_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # the import fails
    with pytest.raises(ValueError, match=r"torchcodec does not decode here \(.*\); try: pip install torchc"):
        read_frames(tmp_path / "video.mp4", [0], decoder="torchcodec")
    assert backends.resolve_decoder("auto") == "pyav"
    monkeypatch.setattr(backends, "_SELF_TEST", b"no video")
    backends.resolve_decoder.cache_clear()
    with pytest.raises(ValueError, match=r"pyav does not decode here \(.*gray\.mkv.*\).*; torchcodec does not"):
        backends.resolve_decoder("auto")
    backends.resolve_decoder.cache_clear()


def test_unsafe_files_of_other_decoders_are_read_by_pyav(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Decord may hang on a transport stream, so it must not open one."""
    path = tmp_path / "video.ts"
    write_numbered(path, 30)
    needs("decord")
    monkeypatch.setattr("decord.VideoReader", None)  # a call would raise
    backends._warn_of_fallback.cache_clear()
    for _ in range(2):
        assert numbers(read_frames(path, [29, 3], decoder="decord")) == [29, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "decord does not read some mpegts files correctly; PyAV decodes these"
    ]
    write_numbered(tmp_path / "video.mp4", 30)
    assert numbers(read_frames(tmp_path / "video.mp4", [3], decoder="decord")) == [3]  # PyAV decodes it after the error


def test_files_are_closed(tmp_path: Path) -> None:
    write_numbered(tmp_path / "video.ts", 10)
    (tmp_path / "audio.mp4").write_bytes(b"no video")
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("the system does not list open files")
    before = len(list(open_files.iterdir()))
    for _ in range(20):
        with open_video(tmp_path / "video.ts") as video:  # opened twice, because its frames are counted by decoding
            video.read([3])
        with pytest.raises(ValueError, match="from 0 to 9"):
            read_frames(tmp_path / "video.ts", [10])
        with pytest.raises(DecodeError):
            probe(tmp_path / "audio.mp4")
    assert len(list(open_files.iterdir())) == before


def test_frames_leave_the_memory_at_once(tmp_path: Path) -> None:
    write_numbered(tmp_path / "video.mp4", 40)
    gc.collect()
    gc.disable()  # it would hide reference cycles
    try:
        with open_video(tmp_path / "video.mp4") as video:
            video.read(range(40))
            assert sum(type(each) is av.VideoFrame for each in gc.get_objects()) < 10
    finally:
        gc.enable()


def test_protocol_names_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "plain.mp4", 4)
    Path("plain.mp4").rename("concat:a b.mp4")
    assert numbers(read_frames("concat:a b.mp4", [3])) == [3]


def test_images(tmp_path: Path) -> None:
    image = Image.fromarray(numbered_frame(5, 48, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees clockwise for display
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "turned.jpg"), np.rot90(np.asarray(image), -1), atol=40)
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("L").save(tmp_path / "gray.png")
    for name in ("palette.png", "gray.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(image))
    content = (tmp_path / "turned.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.jpg", "empty.png"):
        with pytest.raises(DecodeError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DecodeError, match=r"^shard/x\.png: does not decode \(unknown image format\); remove"):
        read_image(io.BytesIO(), "shard/x.png")
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg: no such file"):
        read_image(tmp_path / "absent.jpg")


REAL_COUNTS = {
    "clean/R6llTwEh07w.mp4": 303,
    "clean/RATRACE_wave_f_nm_np1_fr_goo_37.avi": 72,  # DivX with packed B-frames: 73 packets
    "clean/v_SoccerJuggling_g23_c01.avi": 240,
    "odd/av1_video.mkv": 125,
    "odd/flipping_a_pancake.mkv": 310,
    "odd/h264_10bits.mp4": 30,
    "odd/h265_video.mp4": 10,
    "odd/nasa_13013.mp4": 390,  # the better of two video streams
    "odd/non_utf8_metadata.avi": 83,
    "odd/unordered.mov": 4,
    "odd/video_0.mov": 3,
    "odd/video_90.mov": 3,
    "odd/video_180.mov": 3,
    "odd/video_270.mov": 3,
}


@needs_real
@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_files_against_plain_decoding(name: str) -> None:
    path = REAL / "videos" / name
    total = REAL_COUNTS[name]
    wanted = np.random.default_rng(0).integers(total, size=12)
    plain = {}
    with av.open(str(path), **ANY_METADATA) as container:
        for index, frame in enumerate(container.decode(container.streams.best("video"))):
            if index in wanted:
                plain[index] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    assert index + 1 == total
    with open_video(path) as video:
        assert video.num_frames == total
        np.testing.assert_array_equal(video.read(wanted), np.stack([plain[index] for index in wanted]))


@needs_real
def test_real_files_with_false_headers() -> None:
    assert probe(REAL / "videos/odd/corrupted.mp4").num_frames == 28  # its header states 50
    with pytest.raises(DecodeError, match=r"corrupted\.mp4"):
        read_frames(REAL / "videos/odd/corrupted.mp4", range(50))
    with pytest.raises(DecodeError, match=r"audio_only\.wav: holds no video stream"):
        probe(REAL / "videos/odd/audio_only.wav")


@needs_real
@pytest.mark.parametrize("decoder", ["torchcodec", "decord"])
@pytest.mark.parametrize("name", sorted(path.name for path in (REAL / "videos/clean").glob("*")))
def test_all_decoders_agree(name: str, decoder: str) -> None:
    path = REAL / "videos/clean" / name
    needs(decoder)
    with open_video(path, "pyav") as ours, open_video(path, decoder) as theirs:
        assert theirs.num_frames == ours.num_frames
        indices = np.linspace(0, ours.num_frames - 1, 20).astype(int)
        for short_side in (None, 128):
            difference = ours.read(indices, short_side).astype(int) - theirs.read(indices, short_side)
            assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (4, 2), (255, 255, 255)).convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (2, 4, 3) and pixels.dtype == np.uint8 and pixels.min() > 250


def test_range_of_images_with_16_bits_and_floats(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    Image.fromarray(ramp).save(tmp_path / "gray16.png")
    assert np.abs(read_image(tmp_path / "gray16.png")[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DecodeError, match=r"float\.tif.*no known range"):
        read_image(tmp_path / "float.tif")
