"""Committed files give the same pixels with all supported versions of PyAV: color, bit depth and orientation.

`python tests/io/test_colors.py` writes the files again: lossless H.264, and PNG images of the decoded frames.
"""

import platform
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image
from test_reader import needs

from sparsevideo.io.backends import read_frames
from sparsevideo.io.image import read_image

FILES = sorted((Path(__file__).parent / "colors").glob("*.mp4"))
# Swscale rounds differently on each kind of processor.
TOLERANCE = 0 if platform.machine() in ("x86_64", "AMD64") else 2

SIDE = 16  # of a patch, in pixels
COLORS = [[(20, 200, 40), (200, 30, 40), (30, 40, 220)], [(230, 220, 30), (128, 128, 128), (250, 250, 250)]]
SCENE = np.array(COLORS, np.uint8).repeat(SIDE, axis=0).repeat(SIDE, axis=1)  # (32, 48, 3)
# Matrix, primaries and transfer by their numbers in ITU-T H.273; the matrix by its number in swscale
MATRICES = {"untagged": (2, 2, 2, 5), "bt601": (6, 6, 6, 5), "bt709": (1, 1, 1, 1), "bt2020": (9, 9, 14, 9)}
RANGES = {"limited": 1, "full": 2}
# (a, b, c, d) of the display matrix, and the function from the image as shown to the image as stored
ORIENTATIONS = {
    "quarter_turn": ((0, -1, 1, 0), lambda image: np.rot90(image, -1)),
    "half_turn": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "three_quarter_turn": ((0, 1, -1, 0), lambda image: np.rot90(image, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_pixels_equal_the_committed_ones(path: Path) -> None:
    (frame,) = read_frames(path, [0])
    np.testing.assert_allclose(frame.astype(int), read_image(path.with_suffix(".png")), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_colors_and_orientation_are_those_of_the_scene(path: Path) -> None:
    """The tolerance covers 8 bits of limited range and halved chroma; a wrong matrix changes 13 levels or more."""
    (frame,) = read_frames(path, [0])
    centers = np.s_[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE]
    assert frame.shape == SCENE.shape
    np.testing.assert_allclose(frame[centers].astype(int), SCENE[centers], rtol=0, atol=4)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_gpu_gives_the_colors_of_the_cpu(path: Path) -> None:
    """Pixels in the middle of each patch: between patches, the two interpolate chroma differently."""
    needs("torchcodec-cuda")
    ours, theirs = (read_frames(path, [0], decoder=decoder)[0] for decoder in ("pyav", "torchcodec-cuda"))
    centers = np.s_[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(theirs[centers].astype(int), ours[centers], rtol=0, atol=2)


def test_number_of_files() -> None:
    assert len(FILES) == 14


def write(
    name: str,
    matrix: str = "bt709",
    levels: str = "limited",
    pix_fmt: str = "yuv420p",
    orientation: tuple[int, int, int, int] | None = None,
    scene: np.ndarray = SCENE,
) -> None:
    path = Path(__file__).parent / "colors" / f"{name}.mp4"
    space, primaries, transfer, swscale = MATRICES[matrix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *scene.shape[:2], pix_fmt
        if orientation:
            a, b, c, d = (one << 16 for one in orientation)
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        context = stream.codec_context
        context.colorspace, context.color_range = space, RANGES[levels]
        context.color_primaries, context.color_trc = primaries, transfer
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene), format="rgb24")
        how = {"dst_colorspace": swscale, "dst_color_range": RANGES[levels]}
        frame = VideoReformatter().reformat(rgb, format=pix_fmt, **how)
        frame.colorspace, frame.color_range = space, RANGES[levels]
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    Image.fromarray(read_frames(path, [0])[0]).save(path.with_suffix(".png"))


if __name__ == "__main__":
    for matrix in MATRICES:
        for levels in RANGES:
            write(f"{matrix}_{levels}", matrix, levels)
    for matrix in ("bt709", "bt2020"):
        write(f"{matrix}_10_bits", matrix, pix_fmt="yuv420p10le")
    for name, (orientation, stored) in ORIENTATIONS.items():
        write(name, orientation=orientation, scene=stored(SCENE))
