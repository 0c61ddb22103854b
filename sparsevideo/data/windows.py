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
_MAX_EARLY = 64  # prepared frames that wait for the stem; further ones go through it with their window
_GRACE_S = 5.0  # FFmpeg's own time limit comes first
_USUAL_INTERVAL_S = 0.04  # of a source that states no frame rate, until its second frame arrives


@dataclass(frozen=True)
class Window:
    """Frames that the network gets together.

    Attributes:
        frame_indices: T indices of the frames, never falling.
        pixels: T prepared frames (3, S, S) uint8.
        corners: (V, 4) corners of the crops, see `StreamTransform`.
        start_s: Time at which the first frame of the window is shown, in seconds from the first frame of the stream.
        end_s: Time at which the last one ends.
        arrived_s: time.monotonic() when the last frame arrived.
    """

    frame_indices: tuple[int, ...]
    pixels: tuple[Tensor, ...]
    corners: Tensor
    start_s: float
    end_s: float
    arrived_s: float


class _Tick(NamedTuple):
    """A frame on the timeline; with a target frame rate, a frame may have several ticks or none."""

    frame_index: int
    time_s: float
    arrived_s: float
    pixels: Tensor | None  # None if no window needs them


class WindowSchedule:
    """Forms windows of the frames of a stream.

    A window starts at the first frame that is shown at or after 0, `step_s`, 2 `step_s`, ... seconds. It has all frames
    up to its length, of which the network gets T. At the end, one more window covers the frames that are in no window
    yet; with consecutive sampling it starts a multiple of the stride after the last one, so fewer frames than a stride
    may be left. A video that is shorter than a window is one window: consecutive sampling repeats its last frame,
    uniform sampling spreads T frames over it. No window spans a lost connection.

    Args:
        prepare: Prepares the frames that a window needs.
        num_frames: T.
        frame_stride: Take every n-th frame.
        step_s: Seconds from the start of one window to the start of the next; at most one window starts per frame.
        window_s: Length of a window in seconds, of which uniform sampling takes T frames; None: consecutive sampling.
        target_fps: Frames per second that the stride counts in; None: those of the stream.

    Raises:
        ValueError: A number is not from 1e-6 to 1e9.
    """

    def __init__(
        self,
        prepare: StreamTransform,
        num_frames: int,
        frame_stride: int,
        *,
        step_s: float,
        window_s: float | None = None,
        target_fps: float | None = None,
    ) -> None:
        for name, value in (("step_s", step_s), ("window_s", window_s), ("target_fps", target_fps)):
            if value is not None and not 1e-6 <= value <= 1e9:
                raise ValueError(f"{name} must be from 1e-6 to 1e9, got {value}")
        self.prepare, self.num_frames, self.step_s = prepare, num_frames, step_s
        self.window_s, self.target_fps = window_s, target_fps
        self._stride = frame_stride if window_s is None else 1
        self._length = clip_span(num_frames, self._stride)  # in ticks; of uniform sampling, set at the first frame
        self._interval_s = _USUAL_INTERVAL_S
        self._connection = 0
        self._restart()

    def _restart(self) -> None:
        self._recent: deque[_Tick] = deque()
        self._starts: deque[int] = deque()  # ticks at which windows have started that are not complete
        self._last_start: int | None = None  # of the last complete window
        self._num_ticks = 0
        self._first_s = self._next_start_s = 0.0
        self._newest: TimedFrame | None = None
        self._last_frame: TimedFrame | None = None  # of the last tick
        self._new: list[tuple[int, Tensor]] = []

    def add(self, frame: TimedFrame, interval_s: float | None) -> list[Window]:
        """Add the next frame, which is shown for `interval_s` (None if unknown); return the windows it completes."""
        if frame.connection != self._connection:
            self._connection = frame.connection
            self._restart()
        previous, self._newest = self._newest, frame
        if interval_s is not None:
            self._interval_s = interval_s
        elif previous is not None:
            self._interval_s = frame.time_s - previous.time_s
        if previous is None:
            self._first_s = self._next_start_s = frame.time_s
            if self.window_s is not None:
                self._length = max(1, round(self.window_s * (self.target_fps or 1 / self._interval_s)))
            self._recent = deque(maxlen=self._length + self._stride)
        if self.target_fps is None:
            return self._add_tick(frame, frame.time_s)
        return [] if previous is None else self._resample(previous, frame.time_s)

    def take_prepared(self) -> list[tuple[int, Tensor]]:
        """Return the frames, as index and pixels, that have been prepared since the last call for coming windows."""
        new, self._new = self._new, []
        return new

    def finish(self) -> list[Window]:
        """End the stream; return the windows that are left."""
        windows: list[Window] = []
        if self._newest is None:
            return windows
        if self.target_fps is not None:
            windows += self._resample(self._newest, self._newest.time_s + self._interval_s)
        assert self._last_frame is not None  # the first frame always has a tick
        if self._last_start is None:
            last = self._recent.pop()
            pixels = self._prepared(self._last_frame) if last.pixels is None else last.pixels
            self._recent.append(last._replace(pixels=pixels))
            windows.append(self._window(0))
        elif shift := (self._num_ticks - self._last_start - self._length) // self._stride * self._stride:
            windows.append(self._window(self._last_start + shift))
        return windows

    @property
    def _tolerance_s(self) -> float:
        """Seconds that a frame counts before its time, because times may be rounded to milliseconds."""
        return min(STAMP_S, self._interval_s / 4)

    def _resample(self, frame: TimedFrame, until_s: float) -> list[Window]:
        """Add the ticks at which a frame is shown; see `clip_sampling.at_fps`."""
        assert self.target_fps is not None
        windows: list[Window] = []
        while True:
            tick_s = self._num_ticks / self.target_fps
            if self._first_s + tick_s * (1 + SAME_RATE) + self._tolerance_s >= until_s:
                return windows
            windows += self._add_tick(frame, self._first_s + tick_s)

    def _add_tick(self, frame: TimedFrame, time_s: float) -> list[Window]:
        if time_s >= self._next_start_s - self._tolerance_s:
            self._starts.append(self._num_ticks)
            num_steps = int((time_s - self._first_s + self._tolerance_s) / self.step_s) + 1
            self._next_start_s = self._first_s + num_steps * self.step_s
        # Frames between those of the network are not converted. The last window may be continued up to the end.
        starts = self._starts if self._last_start is None else (self._last_start, *self._starts)
        is_needed = any((self._num_ticks - start) % self._stride == 0 for start in starts)
        pixels = self._prepared(frame) if is_needed else None
        if pixels is not None and self._starts:
            self._new.append((frame.frame_index, pixels))
        self._recent.append(_Tick(frame.frame_index, time_s, frame.arrived_s, pixels))
        self._num_ticks += 1
        self._last_frame = frame
        if not self._starts or self._starts[0] + self._length > self._num_ticks:
            return []
        self._last_start = self._starts.popleft()
        return [self._window(self._last_start)]

    def _prepared(self, frame: TimedFrame) -> Tensor:
        last = self._recent[-1] if self._recent else None
        if last is not None and last.frame_index == frame.frame_index and last.pixels is not None:
            return last.pixels
        return self.prepare(frame.image)

    def _window(self, start: int) -> Window:
        """Return the window that starts at a tick; it ends early if there are no more ticks."""
        ticks = list(self._recent)[start - self._num_ticks :][: self._length]
        if self.window_s is None:
            (positions,) = spread_clips(len(ticks), self.num_frames, self._stride, 1)
        else:
            positions = uniform_clip(len(ticks), self.num_frames)
        chosen = [ticks[position] for position in positions]
        pixels = tuple(tick.pixels for tick in chosen if tick.pixels is not None)
        assert len(pixels) == self.num_frames and self.prepare.corners is not None
        interval_s = 1 / self.target_fps if self.target_fps else self._interval_s
        return Window(
            frame_indices=tuple(tick.frame_index for tick in chosen),
            pixels=pixels,
            corners=self.prepare.corners,
            start_s=round(ticks[0].time_s, 6),
            end_s=round(ticks[-1].time_s + interval_s, 6),
            arrived_s=ticks[-1].arrived_s,
        )


class WindowFeed:
    """Windows of a stream, whose frames a thread decodes while the network works; iterate over it once.

    Args:
        stream: The frames.
        schedule: Forms the windows.
        newest_only: Hand out the newest window and drop the older ones that wait, for a source that does not wait.
            False pauses decoding if two windows wait.
        on_frame: Function that gets each frame, in the thread.
        early: Function that gets the prepared frames of coming windows, as index and pixels, while no window waits.

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
        *,
        newest_only: bool = False,
        on_frame: Callable[[TimedFrame], None] | None = None,
        early: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.early = early
        self.stream, self.schedule, self.newest_only, self.on_frame = stream, schedule, newest_only, on_frame
        self.num_frames = self.num_dropped = 0
        self._waiting: deque[Window] = deque()
        self._early_frames: deque[tuple[int, Tensor]] = deque(maxlen=_MAX_EARLY)
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
        while True:
            with self._changed:
                while not self._waiting and not self._early_frames and not self._is_done:
                    self._changed.wait(timeout=1)
                    # FFmpeg ends most waits itself, but not those for a pipe.
                    if not self._waiting and time.monotonic() > self.stream.active_s + self.stream.timeout_s + _GRACE_S:
                        raise TimeoutError(f"{self.stream.name}: no frame within {self.stream.timeout_s:g} s")
                self._changed.notify_all()
                if self._waiting:
                    return self._waiting.popleft()
                if not self._early_frames:
                    return None
                early_frame = self._early_frames.popleft()
            assert self.early is not None
            self.early(*early_frame)

    def _decode(self) -> None:
        try:
            for frame in self.stream:
                if self._is_closed:
                    return
                if self.on_frame is not None:
                    self.on_frame(frame)
                self.num_frames += 1
                windows, prepared = self.schedule.add(frame, self.stream.interval_s), self.schedule.take_prepared()
                if self.early is not None:
                    with self._changed:
                        self._early_frames.extend(prepared)
                        self._changed.notify_all()
                self._hand_out(windows)
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
