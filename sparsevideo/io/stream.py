"""Frames of a file, a camera, a pipe or a network address, decoded once and in order, in constant memory."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np

from sparsevideo.io.errors import DecodeError, as_decode_error, reason_of
from sparsevideo.io.frames import FrameConverter, open_container, sample_aspect_ratio, time_base
from sparsevideo.io.pixels import output_size, resize
from sparsevideo.io.sources import Remote, RemoteFile, is_url

logger = logging.getLogger(__name__)

_MAX_JUMP_S = 60.0  # a larger step of the time stamps is a jump of the clock, not time in which a picture is shown
_MAX_CORRUPT = 100  # packets in a row that do not decode, after which a live source is opened again
_USUAL_FPS = 25  # of a source that states no frame rate
_MAX_DELAY_S = 30.0  # between two attempts to connect
# Live sources in MPEG-TS are analyzed before the first frame comes out, by default for five seconds.
_LIVE_OPTIONS = {"analyzeduration": "1000000"}  # microseconds
_OBJECT_STORES = ("s3", "gs", "gcs", "az", "memory")  # which fsspec reads; FFmpeg reads other addresses


@dataclass(frozen=True)
class TimedFrame:
    """A frame of a stream.

    Attributes:
        frame_index: Index of the frame, from 0, over all connections.
        time_s: Seconds since the first frame.
        arrived_s: time.monotonic() after the frame was decoded.
        connection: Index of the connection, from 0; frames are missing between two connections.
        convert: Function that returns `image`.
    """

    frame_index: int
    time_s: float
    arrived_s: float
    connection: int
    convert: Callable[[], np.ndarray] = field(repr=False)

    @cached_property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright; it is converted when it is first used."""
        return self.convert()


class FrameStream:
    """Frames of a source in order; iterate over it once.

    Times are those of the time stamps. If a time stamp is missing, does not rise or jumps by more than a minute, the
    frame follows its predecessor at the frame rate. So do all frames of avi files, which store no times. Frames of
    another size than the first are resized to it.

    A file ends at the first packet that does not decode (`truncated_because`), also one at a URL. A live source leaves
    out such packets (`num_corrupt`). If a live device or network address ends or fails after its first frame, it is
    opened again, after 1, 2, 4, ... and at most 30 seconds.

    Args:
        address: A file, a named pipe, a URL such as `http://`, `rtsp://`, `udp://`, `tcp://` or `s3://`, a device such
            as `/dev/video0`, or `-` for standard input.
        format: FFmpeg's name of the format or of the device driver, such as `v4l2`, `mpegts` or `rawvideo`; None
            recognizes it.
        options: FFmpeg's options of the format, such as `video_size` and `framerate`.
        short_side: See `Video.read`.
        square_pixels: See `Video.read`.
        live: The source is live. A file is then read at its own pace: its frames come at their times.
        timeout_s: Longest wait for a connection and for a packet, in seconds.
        reconnects: Attempts in a row to open a device or a network address again.

    Attributes:
        name: The address without secrets, for messages; see `Remote`.
        duration_s: Duration that the header of a file states, in seconds; None until it is open, or unknown.
        interval_s: Seconds that one frame is shown, by the frame rate; None until the source is open, or unknown.
        num_corrupt: Packets that did not decode and were left out.
        truncated_because: Why a file ended before its end; None if it did not.
        active_s: time.monotonic() of the last sign of life; later than now while it waits before it connects again.

    Raises:
        FileNotFoundError: While iterating: there is no such file or device.
        DecodeError: While iterating: the source is not a video, holds no frame, or cannot be opened again.
        TimeoutError: While iterating: nothing came in time.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        short_side: int | None = None,
        square_pixels: bool = False,
        live: bool = False,
        timeout_s: float = 10.0,
        reconnects: int = 0,
    ) -> None:
        self.address, self.options = os.fspath(address), dict(options or {})
        if "listen" in self.options.get("rtsp_flags", ""):  # FFmpeg 8.1 refuses its own default, to wait forever
            self.options.setdefault("listen_timeout", str(ceil(min(timeout_s, 1e6))))
        self.format = format or ("v4l2" if self.address.startswith("/dev/video") else None)
        self.name = "standard input" if self.address == "-" else self.address
        if is_url(self.address):
            self.name = str(Remote(self.address))
        self.short_side, self.square_pixels, self.timeout_s = short_side, square_pixels, timeout_s
        is_file = self.format in (None, "rawvideo") and Path(self.address).is_file()
        self._is_live, self._has_pace = live and not is_file, live and is_file
        is_pipe = self.address == "-" or Path(self.address).is_fifo()
        self.reconnects = reconnects if self._is_live and not is_pipe else 0
        self.duration_s: float | None = None
        self.interval_s: float | None = None
        self.num_corrupt = 0
        self.truncated_because: str | None = None
        self.active_s = time.monotonic()
        self._size: tuple[int, int] | None = None  # of all frames
        self._num_frames = 0
        self._converting = threading.Lock()  # FFmpeg crashes if two threads use a converter, such as that of a preview

    def __iter__(self) -> Iterator[TimedFrame]:
        started_s: float | None = None
        connection, attempts, connected_s, last_s = 0, 0, 0.0, 0.0  # times of the stream
        while True:
            reason = "it ended"
            try:
                for time_s, convert in self._frames():
                    now_s = self.active_s = time.monotonic()
                    if started_s is None:
                        started_s = now_s
                    elif attempts:
                        connection += 1
                        connected_s = max(now_s - started_s, last_s + (self.interval_s or 1 / _USUAL_FPS))
                    attempts, last_s = 0, connected_s + time_s
                    if self._has_pace and (wait_s := started_s + time_s - now_s) > 0:
                        self.active_s = now_s + wait_s
                        time.sleep(wait_s)
                        now_s = self.active_s = time.monotonic()
                    yield TimedFrame(self._num_frames, last_s, now_s, connection, convert)
                    self._num_frames += 1
            except (DecodeError, OSError) as error:
                if not self.reconnects or started_s is None:
                    raise
                reason = str(error).removeprefix(f"{self.name}: ")
            if not self.reconnects or started_s is None:
                break
            if attempts == self.reconnects:
                raise DecodeError(f"{self.name}: {reason}; it was opened again {attempts} times without success")
            delay_s = min(2.0**attempts, _MAX_DELAY_S)
            attempts += 1
            logger.warning(
                "%s: %s; opening it again in %.0f s (%d of %d)", self.name, reason, delay_s, attempts, self.reconnects
            )
            self.active_s = time.monotonic() + delay_s
            time.sleep(delay_s)
        if not self._num_frames:
            raise DecodeError(f"{self.name}: holds no frame that decodes ({self.truncated_because or 'it is empty'})")

    def _frames(self) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
        """Open the source; yield the seconds of its frames since the first one of this connection, and their images."""
        url: Any = self.address
        if self.address == "-":
            url = "pipe:0"
        elif is_url(self.address):
            if self.address.partition("://")[0] in _OBJECT_STORES:
                url = RemoteFile(Remote(self.address))
        elif self.format is None:
            if Path(self.address).is_dir():
                raise IsADirectoryError(f"{self.name}: is a folder; pass one video")
            url = f"file:{self.address}"  # else FFmpeg takes a name such as "concat:a" for a protocol
        self.active_s = time.monotonic()
        with self._named_errors():
            container, stream = open_container(
                *(url, self.name),
                holds_back=not self._is_live,
                format=self.format,
                options=_LIVE_OPTIONS | self.options if self._is_live else self.options,
                timeout=(self.timeout_s, self.timeout_s),
            )
        converter, base = FrameConverter(self.name), time_base(stream)
        rate = stream.average_rate or stream.guessed_rate
        self.interval_s = float(1 / rate) if rate else None
        self.duration_s = container.duration / av.time_base if container.duration else None
        usual_step = 1 / (Fraction(rate or _USUAL_FPS) * base)
        ticks, start_pts = Fraction(-usual_step), None
        ratio = sample_aspect_ratio(stream) if self.square_pixels else Fraction(1)
        with container, self._named_errors(), as_decode_error(self.name):
            for frame in self._decode(container, stream):
                converter.observe(frame)
                pts = None if container.format.name == "avi" else frame.pts
                step = None if pts is None or start_pts is None else pts - start_pts - ticks
                ticks += step if step is not None and 0 < step * base <= _MAX_JUMP_S else usual_step
                if pts is not None and (step is None or abs(step) * base > _MAX_JUMP_S):
                    start_pts = pts - ticks
                yield float(ticks * base), partial(self._convert, converter, frame, ratio)

    def _convert(self, converter: FrameConverter, frame: av.VideoFrame, ratio: Fraction) -> np.ndarray:
        """Return a frame as (H, W, 3) RGB of the size of the first one."""
        with self._converting:
            image = converter.to_rgb(frame)
        if self._size is None:
            self._size = output_size(image.shape[:2], ratio, self.short_side, turned=converter.is_turned)
        return image if image.shape[:2] == self._size else resize(image, self._size)

    def _decode(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        num_corrupt = 0  # in a row
        for packet in container.demux(stream):
            self.active_s = time.monotonic()
            try:
                yield from stream.decode(packet if packet.size else None)
                num_corrupt = 0
            except av.FFmpegError as error:
                if not self._is_live:
                    self.truncated_because = reason_of(error)
                    return
                num_corrupt += 1
                self.num_corrupt += 1
                if num_corrupt == _MAX_CORRUPT:
                    raise

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise errors that fit the source: FFmpeg ends a wait with ExitError, and a live source is no file."""
        try:
            yield
        except FileNotFoundError as error:
            if not self.address.startswith("/dev/"):
                raise
            raise FileNotFoundError(f"{self.name}: no such device; pass one that exists") from error
        except DecodeError as error:
            cause = error.__cause__
            if isinstance(cause, av.error.ExitError):
                advice = "check that it is there and sends, or wait longer"
                raise TimeoutError(f"{self.name}: nothing came within {self.timeout_s:g} s; {advice}") from error
            is_here = not is_url(self.address) and not self.address.startswith("/dev/")
            if is_here or not isinstance(cause, av.FFmpegError):
                raise
            raise DecodeError(f"{self.name}: {reason_of(cause)}; check that it is there and sends video") from error
