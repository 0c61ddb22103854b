"""Undamaged files with unusual content: all decoders give the same frames as plain decoding."""

import io
import re
import struct
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from av.video.frame import PictureType
from numbered_videos import decode_numbers, mp4_boxes, numbered_frame, remux, write_frames, write_numbered
from PIL import Image, features
from test_reader import DECODERS, needs, numbers

from sparsevideo.io import pyav
from sparsevideo.io.backends import open_video, probe, read_frames
from sparsevideo.io.errors import DecodeError


def assert_frames(path: Path, expected: list[int], decoder: str) -> None:
    """Compare each frame alone in random order, and all frames together."""
    with open_video(path, needs(decoder)) as video:
        assert video.num_frames == len(expected)
        for index in np.random.default_rng(0).permutation(len(expected)).tolist():
            assert numbers(video.read([index])) == [expected[index]], index
        assert numbers(video.read(range(len(expected)))) == expected


def write_motion_jpeg(path: Path, orientation: int, num_frames: int = 3) -> np.ndarray:
    """Write pictures with EXIF like a camera; return (H, W, 3) as shown after rotation."""
    stored = np.zeros((48, 96, 3), np.uint8)
    stored[:16, :32] = 255  # a corner and half an edge, different in all eight orientations
    stored[16:32, :16] = 255
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x010F], exif[0x0112] = "some camera", orientation
    Image.fromarray(stored).save(content, "JPEG", exif=exif.tobytes(), quality=95)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuvj420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        container.start_encoding()
        for number in range(num_frames):
            packet = av.Packet(content.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    left_right, top_down, swap = stored[:, ::-1], stored[::-1], stored.swapaxes(0, 1)
    turned = stored[::-1, ::-1]
    shown = [stored, left_right, turned, top_down, swap, swap[:, ::-1], swap[::-1, ::-1], swap[::-1]]
    return shown[orientation - 1]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 2, 4, 5, 7])
def test_exif_in_motion_jpeg(orientation: int, suffix: str, decoder: str, tmp_path: Path) -> None:
    """PyAV before 19 has no name for this side data, and raised ValueError."""
    path = tmp_path / f"camera.{suffix}"
    shown = write_motion_jpeg(path, orientation)
    image = read_frames(path, [2], decoder=needs(decoder))[0]
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 5


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mov", "rawvideo", "gray"),
        ("mov", "rawvideo", "pal8"),
        ("mov", "smc", "pal8"),
        ("mov", "qtrle", "gray"),
        ("avi", "rawvideo", "pal8"),
        ("avi", "msrle", "pal8"),
        ("nut", "rawvideo", "pal8"),
    ],
)
def test_palettes(suffix: str, codec: str, pix_fmt: str, decoder: str, tmp_path: Path) -> None:
    path = tmp_path / f"video.{suffix}"
    levels = np.arange(256)
    palette = np.stack([np.full(256, 255), levels, levels, levels], 1).astype(np.uint8)
    images = [numbered_frame(number)[..., 0].copy() for number in range(20)]
    pixels = [(image, palette) for image in images] if pix_fmt == "pal8" else images
    frames = [av.VideoFrame.from_ndarray(each, format=pix_fmt) for each in pixels]
    for index, frame in enumerate(frames):
        frame.pts = index
    write_frames(path, frames, codec, pix_fmt=pix_fmt)
    assert decode_numbers(path) == list(range(20))
    assert_frames(path, list(range(20)), decoder)


def set_edits(source: Path, target: Path, edits: list[tuple[int, int]]) -> None:
    """Replace the edit list of an mp4 file: (duration in ms, media time in the stream's unit or -1 for a gap)."""
    content = bytearray(source.read_bytes())  # the boxes with positions are the last ones, so that pictures do not move
    starts, start, end = [], -8, len(content)
    for name in (b"moov", b"trak", b"edts", b"elst"):
        start, end = next(span for kind, *span in mp4_boxes(content, start + 8, end) if kind == name)
        starts.append(start)
    box = struct.pack(">I4sII", 16 + 12 * len(edits), b"elst", 0, len(edits))
    box += b"".join(struct.pack(">Iii", *edit, 1 << 16) for edit in edits)
    for outer in starts[:-1]:
        old = int.from_bytes(content[outer : outer + 4], "big")
        content[outer : outer + 4] = struct.pack(">I", old + len(box) - (end - start))
    content[start:end] = box
    target.write_bytes(content)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("b_frames", ["0", "2"])
@pytest.mark.parametrize(
    "edits",
    [
        [(1000, 0), (1000, 60 * 512)],
        [(1000, 5 * 512), (800, 50 * 512), (400, 80 * 512)],
        [(400, -1), (1000, 10 * 512), (300, -1), (1000, 61 * 512)],
        [(1000, 60 * 512), (1000, 3 * 512)],
        [(2000, 12 * 512), (500, 12 * 512)],
        [(2000, 0)],
    ],
    ids=["two parts", "three parts", "gaps", "order", "repeated", "end"],
)
def test_edit_lists(edits: list[tuple[int, int]], b_frames: str, decoder: str, tmp_path: Path) -> None:
    """Packets outside of the edits are delivered, with time stamps of other frames."""
    write_numbered(tmp_path / "whole.mp4", 100, options={"g": "12", "bf": b_frames})
    set_edits(tmp_path / "whole.mp4", tmp_path / "edited.mp4", edits)
    expected = decode_numbers(tmp_path / "edited.mp4")
    assert 40 < len(expected) < 70
    assert_frames(tmp_path / "edited.mp4", expected, decoder)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("where", ["first frame", "keyframes"])
def test_orientation_in_the_stream_alone(where: str, suffix: str, decoder: str, tmp_path: Path) -> None:
    """H.264 states the orientation in keyframes; it applies to the frames after them."""
    plain, turned = tmp_path / "plain.mp4", tmp_path / f"turned.{suffix}"
    headers = ",dump_extra=freq=keyframe" * (where == "keyframes")  # the filter changes only frames with headers
    write_numbered(plain, 40, options={"g": "12", "bf": "2"}, height=48, width=96)
    remux(plain, turned, filters=f"h264_mp4toannexb{headers},h264_metadata=display_orientation=insert:rotate=90")
    expected = np.rot90(read_frames(plain, range(40)), axes=(1, 2))
    with open_video(turned, needs(decoder)) as video:
        for index in (39, 5, 0, 13, 12, 24, 30):
            np.testing.assert_array_equal(video.read([index])[0], expected[index])
        np.testing.assert_array_equal(video.read(range(40)), expected)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("codec", ["libvpx-vp9", "mpeg4"])
def test_size_that_changes(codec: str, decoder: str, tmp_path: Path) -> None:
    """Recorded calls have such frames; they are resized to the first one."""
    options = {"g": "10", "bf": "0"} if codec != "libvpx-vp9" else {"g": "10", "cpu-used": "8", "deadline": "realtime"}
    write_numbered(tmp_path / "small.mkv", 20, codec=codec, options=options, height=48, width=64)
    write_numbered(tmp_path / "large.mkv", 20, codec=codec, options=options, height=96, width=96)
    filters = "dump_extra=freq=keyframe" if codec == "mpeg4" else "null"  # repeats the headers in the stream
    with av.open(str(tmp_path / "both.mkv"), "w") as writer:
        stream, offset = None, 0
        for name in ("small.mkv", "large.mkv"):
            with av.open(str(tmp_path / name)) as reader:
                source = reader.streams.video[0]
                stream = stream or writer.add_stream_from_template(source)
                chain = BitStreamFilterContext(filters, source)
                for packet in (packet for packet in reader.demux(video=0) if packet.size):
                    for changed in chain.filter(packet):
                        changed.pts, changed.dts, changed.stream = changed.pts + offset, changed.dts + offset, stream
                        writer.mux(changed)
            offset += 800
    with open_video(tmp_path / "both.mkv", needs(decoder)) as video:
        assert video.num_frames == 40
        frames = video.read(range(40))
        with open_video(tmp_path / "both.mkv", "pyav") as plain:
            np.testing.assert_array_equal(frames, plain.read(range(40)))
        assert frames.shape == (40, 48, 64, 3) and numbers(frames) == [*range(20), *range(20)]
        assert numbers(video.read([25, 3])) == [5, 3]


@pytest.mark.parametrize("decoder", DECODERS)
def test_unsupported_color_matrices(decoder: str, tmp_path: Path, caplog) -> None:
    """Numbers of ITU-T H.273, tables 2 and 4; swscale does not support matrices 8 and 10 to 14."""

    def pixel(matrix: int, primaries: int) -> list[int]:
        path = tmp_path / f"{matrix}-{primaries}.mp4"
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane, value in zip(frame.planes, (100, 90, 150), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace = matrix
        write_frames(path, [frame], options={"qp": "0"}, colorspace=matrix, color_primaries=primaries)
        return read_frames(path, [0], decoder=needs(decoder))[0, 30, 30].tolist()

    bt709, bt2020 = [136, 93, 16], [133, 89, 15]
    assert pixel(1, 1) == bt709 and pixel(9, 9) == bt2020
    assert pixel(12, 1) == pixel(13, 1) == bt709
    assert pixel(10, 9) == pixel(12, 9) == pixel(13, 9) == bt2020
    for matrix in (8, 11, 14):  # YCgCo, Y'D'zD'x, ICtCp
        with pytest.raises(DecodeError, match=rf"{matrix}-1\.mp4: unsupported color \(matrix coefficients {matrix}"):
            pixel(matrix, 1)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("codec", "options"),
    [("dvvideo", {}), ("libx264", {"x264-params": "interlaced=1"}), ("mpeg2video", {"flags": "+ildct+ilme"})],
)
def test_chroma_of_interlaced_frames(codec: str, options: dict[str, str], decoder: str, tmp_path: Path) -> None:
    """Other decoders interpolate chroma by fields: edges between colors differed from PyAV's by up to 188 levels."""
    path = tmp_path / "interlaced.mov"
    scene = np.full((576, 720, 3), (20, 200, 40), np.uint8)
    scene[100:300, 200:400] = (200, 30, 220)
    write_frames(path, (np.roll(scene, 33 * i, (0, 1)) for i in range(5)), codec, options=options)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    read = read_frames(path, range(5), decoder=needs(decoder))
    assert np.abs(read.astype(int) - shown).max() <= 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("levels", ["limited", "full"])
@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "gray"), ("ffv1", "gray10le"), ("libx265", "gray")])
def test_range_of_gray(codec: str, pix_fmt: str, levels: str, decoder: str, tmp_path: Path) -> None:
    low, high, color_range = (16, 235, 1) if levels == "limited" else (0, 255, 2)
    options = {"x265-params": "log-level=none:lossless=1"} if codec == "libx265" else {}
    image = np.full((64, 64), low, np.uint8)
    image[:, 32:] = high
    stored = image if pix_fmt == "gray" else image.astype(np.uint16) << 2 | (3 if levels == "full" else 0)
    frame = av.VideoFrame.from_ndarray(stored if pix_fmt == "gray" else stored * (image > 0), format=pix_fmt)
    frame.color_range = color_range
    path = tmp_path / "video.mkv"
    write_frames(path, [frame], codec, options=options, pix_fmt=pix_fmt, color_range=color_range)
    frames = read_frames(path, [0], decoder=needs(decoder))
    assert np.abs(frames[0, 30, [10, 50]].astype(int) - [[0] * 3, [255] * 3]).max() <= 1


@pytest.mark.parametrize("decoder", DECODERS)
def test_container_that_cannot_seek(decoder: str, tmp_path: Path) -> None:
    """Matroska cannot seek in VC-2: frames are read from the start."""
    path = tmp_path / "video.mkv"
    write_numbered(path, 20, codec=needs_encoder("vc2"), options={"strict": "experimental", "b": "2M"})
    with av.open(str(path)) as container, pytest.raises(av.PermissionError):
        container.seek(400, stream=container.streams.video[0])
    assert decode_numbers(path) == list(range(20))
    assert_frames(path, list(range(20)), decoder)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("num_frames", [2, 30])
@pytest.mark.parametrize("writer", ["FFmpeg", "Pillow"])
def test_avif_sequence_is_read(writer: str, num_frames: int, decoder: str, tmp_path: Path) -> None:
    """The first stream is a still picture."""
    path = tmp_path / "video.avif"
    if writer == "FFmpeg":
        write_numbered(path, num_frames, codec=needs_encoder("libsvtav1"), options={"g": "12", "preset": "12"})
    elif not features.check("avif"):
        pytest.skip("this Pillow does not write AVIF")
    else:
        first, *rest = (Image.fromarray(numbered_frame(number)) for number in range(num_frames))
        first.save(path, save_all=True, append_images=rest, duration=40, quality=90)
    with av.open(str(path)) as container:
        assert [stream.frames for stream in container.streams.video] == [1, num_frames]
    assert_frames(path, list(range(num_frames)), decoder)


def needs_encoder(name: str) -> str:
    if name not in av.codecs_available:
        pytest.skip(f"this PyAV has no {name}")
    return name


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", ["gif", "apng", "webp"])
def test_animated_images(suffix: str, decoder: str, tmp_path: Path) -> None:
    path = tmp_path / f"video.{suffix}"
    first, *rest = (Image.fromarray(numbered_frame(number)) for number in range(12))
    how = {"lossless": True} if suffix == "webp" else {}
    kind = "png" if suffix == "apng" else suffix
    first.save(path, kind, save_all=True, append_images=rest, duration=40, **how)
    if suffix == "webp" and pyav.MAJOR < 19:
        with pytest.raises(DecodeError, match=r"video\.webp: does not decode \(.*; animated WebP needs PyAV 19 or "):
            read_frames(path, [0], decoder=needs(decoder))
        pytest.skip("PyAV before 19 does not decode animated WebP")
    assert_frames(path, list(range(12)), decoder)


def write_late_pyramid(path: Path, start: str, num_frames: int = 80, *, states_delay: bool) -> None:
    """Write H.264 with frames of the types `start`, in turn, up to frame 39, and a B-pyramid after them."""
    source = path.with_name(f"source{path.suffix}")
    options = {"threads": "1", "x264-params": "keyint=24:bframes=3:b-pyramid=2:b-adapt=0:scenecut=0"}
    frames = [av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24") for number in range(num_frames)]
    for index, frame in enumerate(frames[:40]):
        frame.pict_type = PictureType[start[index % len(start)]]
    write_frames(source, frames, options=options)
    content = source.read_bytes()
    if not states_delay:
        with av.open(str(source)) as container:
            header = bytes(container.streams.video[0].codec_context.extradata)
        sps = header[8 : 8 + int.from_bytes(header[6:8], "big")]
        assert content.count(sps) == 1
        content = content.replace(sps, without_delay(sps))
    path.write_bytes(content)


def without_delay(sps: bytes) -> bytes:
    """Remove `bitstream_restriction`, which some cameras do not write, from x264's sequence parameter set."""
    bits = "".join(f"{byte:08b}" for byte in sps.replace(b"\0\0\3", b"\0\0"))
    code = "(1|01.|001..|0001...)"  # Exp-Golomb
    found = re.search(f"11{code * 6}10*$", bits)
    assert found
    bits = bits[: found.start()] + "01"
    content = int(bits.ljust(-len(bits) // 8 * -8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    content = re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", content)
    assert len(content) <= len(sps)
    return content.ljust(len(sps), b"\0")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("states_delay", [True, False])
@pytest.mark.parametrize("start", ["P", "PB"])
def test_b_frames_that_begin_late(start: str, states_delay: bool, suffix: str, decoder: str, tmp_path: Path) -> None:
    """FFmpeg learns while it decodes how many frames are delayed, and by default loses some of them."""
    path = tmp_path / f"video.{suffix}"
    if suffix == "ts":
        write_late_pyramid(tmp_path / "video.mp4", start, states_delay=states_delay)
        remux(tmp_path / "video.mp4", path)
    else:
        write_late_pyramid(path, start, states_delay=states_delay)
    if suffix == "mkv":
        assert (decode_numbers(path) == list(range(80))) == states_delay
    assert_frames(path, list(range(80)), decoder)
    with open_video(path, "pyav", verify=True) as video:  # like a scan
        table = video.table
        assert video.num_frames == 80 and table is not None and (table.step > 0) == (suffix != "ts")
    with open_video(path, decoder, table=table) as video:
        for index in (79, 40, 3, 41, 66):
            assert numbers(video.read([index])) == [index]


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "ts", "mp4"])
def test_duration_and_rate_come_from_the_time_stamps(suffix: str, tmp_path: Path) -> None:
    """The header states the rate given to the encoder, 25; the true rate decreases."""
    path, codec = tmp_path / f"video.{suffix}", "libvpx-vp9" if suffix == "webm" else "libx264"
    options = {"cpu-used": "8", "deadline": "realtime"} if suffix == "webm" else {}
    write_numbered(path, 28, codec=codec, options=options, irregular=True)
    times_s = np.array([(n + n * n // 3) / 25 for n in range(28)])
    duration_s = times_s[-1] + np.median(np.diff(times_s))
    info = probe(path)
    assert info.duration_s == pytest.approx(duration_s, abs=0.02)
    assert info.fps == pytest.approx(28 / duration_s, abs=0.02)


def test_default_device_of_torch_does_not_affect_decoders(tmp_path: Path) -> None:
    write_numbered(tmp_path / "video.mp4", 10)
    needs("torchcodec")
    torch.set_default_device("meta")
    try:
        frames = read_frames(tmp_path / "video.mp4", [7], decoder="torchcodec")
    finally:
        torch.set_default_device(None)
    assert numbers(frames) == [7]


def test_all_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lack of memory is the exception."""
    write_numbered(tmp_path / "video.mp4", 10)
    needs("pyav")  # the self-test has run
    for error in (KeyError("some tag"), TypeError("no frame"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "start")):
        monkeypatch.setattr("sparsevideo.io.frames.display_matrix", Mock(side_effect=error))
        with pytest.raises(DecodeError, match=rf"video\.mp4: does not decode \({type(error).__name__}: "):
            read_frames(tmp_path / "video.mp4", [0], decoder="pyav")
    monkeypatch.setattr("sparsevideo.io.frames.display_matrix", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        read_frames(tmp_path / "video.mp4", [0], decoder="pyav")
