"""Read and write video and image files."""

from sparsevideo.io.backends import open_video as open_video
from sparsevideo.io.backends import probe as probe
from sparsevideo.io.backends import read_frames as read_frames
from sparsevideo.io.backends import resolve_decoder as resolve_decoder
from sparsevideo.io.errors import DecodeError as DecodeError
from sparsevideo.io.image import read_image as read_image
from sparsevideo.io.stream import FrameStream as FrameStream
from sparsevideo.io.writer import VideoWriter as VideoWriter
from sparsevideo.io.writer import write_video as write_video
