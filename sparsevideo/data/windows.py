"""Windows over frames that arrive one by one: of a long video, or of a live source.

Letters: T frames of a window that the network gets, S H W size of the prepared frames.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sparsevideo.data.clip_sampling import SAME_RATE, STAMP_S, clip_span, spread_clips, uniform_clip
from sparsevideo.data.transforms import StreamTransform
from sparsevideo.io.stream import FrameStream, TimedFrame

_MAX_WAITING = 2  # windows that wait for the network before decoding pauses
_USUAL_INTERVAL_S = 0.04  # of a source that states no frame rate, until its second frame arrives


@dataclass(frozen=True)
class Window:
    """Frames that the network gets together.

    Attributes:
        frame_indices: T rising indices of the frames.
        pixels: T prepared frames (3, H, W) uint8.
        start_s: Time at which the first frame of the window is shown, in seconds from the first frame.
        end_s: Time at which the last one ends.
        arrived_s: time.monotonic() when the last frame arrived.
    """

    frame_indices: tuple[int, ...]
    pixels: tuple[Tensor, ...]
    start_s: float
    end_s: float
    arrived_s: float


class _Tick(NamedTuple):
    """A prepared frame on the timeline; with a target frame rate, a frame may have several ticks or none."""

    frame_index: int
    time_s: float
    pixels: Tensor
    arrived_s: float


class WindowSchedule:
    """Forms windows of the frames of a stream.

    A window starts at the first frame that is shown at or after 0, `step_s`, 2 `step_s`, ... seconds. It has all frames
    up to its length, of which the network gets T. At the end, one more window ends with the last frame, if this frame
    is not in a window yet. A video that is shorter than a window is one window: consecutive sampling repeats its last
    frame, uniform sampling spreads T frames over it. No window spans a lost connection.

    Args:
        num_frames: T.
        frame_stride: Take every n-th frame.
        step_s: Seconds from the start of one window to the start of the next; at most one window starts per frame.
        uniform_s: Length of a window in seconds, of which uniform sampling takes T frames; None: consecutive sampling.
        target_fps: Frames per second that the stride counts in; None: those of the stream.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(
        self,
        num_frames: int,
        frame_stride: int,
        *,
        step_s: float,
        uniform_s: float | None = None,
        target_fps: float | None = None,
    ) -> None:
        for name, value in (("step_s", step_s), ("uniform_s", uniform_s), ("target_fps", target_fps)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value}")
        self.num_frames, self.frame_stride, self.step_s = num_frames, frame_stride, step_s
        self.uniform_s, self.target_fps = uniform_s, target_fps
        self._length = clip_span(num_frames, frame_stride)  # in ticks; with uniform sampling, known at the first frame
        self._connection = 0
        self._interval_s = _USUAL_INTERVAL_S
        self._restart()

    def _restart(self) -> None:
        self._recent: deque[_Tick] = deque(maxlen=self._length)
        self._starts: deque[int] = deque()  # ticks at which windows have started that are not complete
        self._num_ticks, self._end = 0, 0  # _end: number of ticks up to the end of the last window
        self._first_s = self._next_start_s = 0.0
        self._last: _Tick | None = None  # the newest frame, if there is a target frame rate

    def add(self, frame: TimedFrame, pixels: Tensor, interval_s: float | None) -> list[Window]:
        """Add the next frame; return the windows that it completes.

        Args:
            frame: The frame.
            pixels: (3, H, W) uint8, the frame as the network gets it.
            interval_s: Seconds that a frame is shown; None if unknown.
        """
        if frame.connection != self._connection:
            self._connection = frame.connection
            self._restart()
        newest = _Tick(frame.frame_index, frame.time_s, pixels, frame.arrived_s)
        previous = self._last or (self._recent[-1] if self._recent else None)
        if interval_s is not None:
            self._interval_s = interval_s
        elif previous is not None:
            self._interval_s = frame.time_s - previous.time_s
        if previous is None:
            self._first_s = self._next_start_s = frame.time_s
            if self.uniform_s is not None:
                rate = self.target_fps or 1 / self._interval_s
                self._length = max(1, round(self.uniform_s * rate))
                self._recent = deque(maxlen=self._length)
        if self.target_fps is None:
            return self._add_tick(newest)
        windows = [] if self._last is None else self._resample(self._last, frame.time_s)
        self._last = newest
        return windows

    def finish(self) -> list[Window]:
        """End the stream; return the windows that are left."""
        windows: list[Window] = []
        if self._last is not None:
            windows = self._resample(self._last, self._last.time_s + self._interval_s)
        if self._num_ticks > self._end:
            windows.append(self._window())
        return windows

    @property
    def _tolerance_s(self) -> float:
        """Seconds that a frame counts before its time, because times may be rounded to milliseconds."""
        return min(STAMP_S, self._interval_s / 4)

    def _resample(self, shown: _Tick, until_s: float) -> list[Window]:
        """Add the ticks at which a frame is shown; see `clip_sampling.at_fps`."""
        assert self.target_fps is not None
        windows: list[Window] = []
        while True:
            tick_s = self._num_ticks / self.target_fps
            if self._first_s + tick_s * (1 + SAME_RATE) + self._tolerance_s >= until_s:
                return windows
            windows += self._add_tick(shown._replace(time_s=self._first_s + tick_s))

    def _add_tick(self, tick: _Tick) -> list[Window]:
        if tick.time_s >= self._next_start_s - self._tolerance_s:
            self._starts.append(self._num_ticks)
            num_steps = int((tick.time_s - self._first_s + self._tolerance_s) / self.step_s) + 1
            self._next_start_s = self._first_s + num_steps * self.step_s
        self._recent.append(tick)
        self._num_ticks += 1
        if not self._starts or self._starts[0] + self._length > self._num_ticks:
            return []
        self._starts.popleft()
        return [self._window()]

    def _window(self) -> Window:
        """Return the window that ends with the newest tick."""
        ticks = list(self._recent)
        self._end = self._num_ticks
        if self.uniform_s is None:
            (positions,) = spread_clips(len(ticks), self.num_frames, self.frame_stride, 1)
        else:
            positions = uniform_clip(len(ticks), self.num_frames)
        chosen = [ticks[position] for position in positions]
        interval_s = 1 / self.target_fps if self.target_fps else self._interval_s
        return Window(
            tuple(tick.frame_index for tick in chosen),
            tuple(tick.pixels for tick in chosen),
            ticks[0].time_s,
            ticks[-1].time_s + interval_s,
            ticks[-1].arrived_s,
        )


class WindowFeed:
    """Windows of a stream, whose frames a thread decodes while the network works; iterate over it once.

    Args:
        stream: The frames.
        schedule: Forms the windows.
        prepare: Prepares each frame for the network.
        newest_only: Hand out the newest window and drop the older ones that wait, for a source that does not wait.
            False pauses decoding if two windows wait.
        on_frame: Function that gets each frame, in the thread.

    Attributes:
        num_frames: Frames so far.
        num_dropped: Windows that were dropped.

    Raises:
        TimeoutError: While iterating: the source hangs.
    """

    def __init__(
        self,
        stream: FrameStream,
        schedule: WindowSchedule,
        prepare: StreamTransform,
        *,
        newest_only: bool = False,
        on_frame: Callable[[TimedFrame], None] | None = None,
    ) -> None:
        self.stream, self.schedule, self.prepare = stream, schedule, prepare
        self.newest_only, self.on_frame = newest_only, on_frame
        self.num_frames = self.num_dropped = 0
        self._waiting: deque[Window] = deque()
        self._changed = threading.Condition()
        self._is_done = self._is_closed = False
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Window]:
        thread = threading.Thread(target=self._decode, name="decode", daemon=True)
        thread.start()
        try:
            while (window := self._next()) is not None:
                yield window
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def _next(self) -> Window | None:
        with self._changed:
            while not self._waiting and not self._is_done:
                self._changed.wait(timeout=1)
                # FFmpeg ends most waits itself, but not those for a pipe.
                if not self._waiting and time.monotonic() > self.stream.active_s + self.stream.timeout_s + 5:
                    raise TimeoutError(f"{self.stream.name}: no frame within {self.stream.timeout_s:g} s")
            self._changed.notify_all()
            return self._waiting.popleft() if self._waiting else None

    def _decode(self) -> None:
        try:
            for frame in self.stream:
                if self._is_closed:
                    return
                if self.on_frame is not None:
                    self.on_frame(frame)
                self.num_frames += 1
                self._hand_out(self.schedule.add(frame, self.prepare(frame.image), self.stream.interval_s))
            self._hand_out(self.schedule.finish())
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _hand_out(self, windows: list[Window]) -> None:
        for window in windows:
            with self._changed:
                if self.newest_only:
                    self.num_dropped += len(self._waiting)
                    self._waiting.clear()
                self._changed.wait_for(lambda: len(self._waiting) < _MAX_WAITING or self._is_closed)
                self._waiting.append(window)
                self._changed.notify_all()
