"""Windows over frames that arrive one by one: which frames they have, and what happens if the network is slow."""

import threading
import time

import numpy as np
import pytest

from sparsevideo.data.clip_sampling import at_fps, spread_clips, uniform_clip
from sparsevideo.data.transforms import StreamTransform, TestTransform
from sparsevideo.data.windows import WindowFeed, WindowSchedule
from sparsevideo.io.stream import FrameStream, TimedFrame


def image(index):
    return np.full((8, 12, 3), index % 256, np.uint8)


def frames(times_s, connections=None):
    connections = connections or [0] * len(times_s)
    return [
        TimedFrame(index, float(time_s), 0.0, connection, lambda index=index: image(index))
        for index, (time_s, connection) in enumerate(zip(times_s, connections, strict=True))
    ]


def windows(schedule_args, times_s, interval_s=None, connections=None, **options):
    schedule = WindowSchedule(StreamTransform(TestTransform(8)), *schedule_args, **options)
    found = [window for frame in frames(times_s, connections) for window in schedule.add(frame, interval_s)]
    found += schedule.finish()
    for window in found:  # the pixels are those of the frames
        assert [int(pixels[0, 0, 0]) for pixels in window.pixels] == [index % 256 for index in window.frame_indices]
    return found


def reference(total, num_frames, stride, step):
    """Starts of windows in frames, by the rules of the docstring, with all frames at hand."""
    span = (num_frames - 1) * stride + 1
    starts = [start for start in range(0, total, step) if start + span <= total] or [0]
    if starts[-1] + span + stride <= total:
        starts.append(starts[-1] + (total - starts[-1] - span) // stride * stride)
    return [tuple(min(start + i * stride, total - 1) for i in range(num_frames)) for start in starts]


@pytest.mark.parametrize("total", [1, 5, 13, 14, 15, 16, 40, 41, 64])
@pytest.mark.parametrize(("num_frames", "stride", "step"), [(4, 4, 2), (5, 3, 4), (4, 2, 20), (1, 1, 1), (8, 1, 8)])
def test_schedule_takes_the_frames_of_the_rules(total, num_frames, stride, step):
    found = windows((num_frames, stride), np.arange(total) / 25, 1 / 25, step_s=step / 25)
    assert [window.frame_indices for window in found] == reference(total, num_frames, stride, step)
    for window in found:
        assert window.start_s == pytest.approx(window.frame_indices[0] / 25)
        assert window.end_s == pytest.approx(min(window.frame_indices[-1] + 1, total) / 25)


def test_schedule_of_a_short_video_is_the_clip_of_a_test():
    (only,) = windows((8, 2), np.arange(6) / 25, 1 / 25, step_s=1)
    assert only.frame_indices == tuple(spread_clips(6, 8, 2, 1)[0]) == (0, 2, 4, 5, 5, 5, 5, 5)
    (only,) = windows((8, 2), np.arange(6) / 25, 1 / 25, step_s=1, window_s=10)
    assert only.frame_indices == tuple(uniform_clip(6, 8))


def test_schedule_with_window_sampling_spreads_the_frames_over_each_window():
    found = windows((4, 7), np.arange(30) / 10, 0.1, step_s=0.5, window_s=1.0)
    assert [window.frame_indices for window in found] == [
        tuple(start + uniform_clip(10, 4)) for start in (0, 5, 10, 15, 20)
    ]


@pytest.mark.parametrize("fps", [8.0, 12.5, 25.0, 40.0])
def test_schedule_with_a_target_rate_resamples_as_a_test_does(fps):
    times_s = np.arange(50) / 25
    timeline = at_fps(times_s, fps)
    found = windows((4, 2), times_s, 1 / 25, step_s=4 / fps, target_fps=fps)
    assert [window.frame_indices for window in found] == [
        tuple(timeline[list(positions)].tolist()) for positions in reference(len(timeline), 4, 2, 4)
    ]
    assert found[1].start_s == pytest.approx(4 / fps)


@pytest.mark.parametrize("total", range(1, 30))
def test_schedule_of_a_short_video_with_a_target_rate_repeats_the_frame_of_the_last_tick(total):
    times_s = np.arange(total) / 10
    timeline = at_fps(times_s, 5)
    (only,) = windows((8, 2), times_s, 0.1, step_s=1, target_fps=5)
    assert only.frame_indices == tuple(timeline[list(spread_clips(len(timeline), 8, 2, 1)[0])].tolist())


def test_schedule_starts_windows_by_time_at_a_variable_rate():
    times_s = [0, 0.1, 0.9, 1.0, 1.05, 3.2, 3.3, 3.4, 3.5, 4.6]
    found = windows((2, 1), times_s, step_s=1.0)
    # Starts at or after 0, 1, 2, 3, 4 seconds; 3.2 s is the first frame after both 2 and 3 seconds.
    assert [window.frame_indices[0] for window in found] == [0, 3, 5, 8]
    millisecond = np.round(np.arange(60) / 30, 3)  # as Matroska stores 30 frames a second
    found = windows((4, 1), millisecond, 1 / 30, step_s=16 / 30)
    assert [window.frame_indices[0] for window in found] == [0, 16, 32, 48, 56]


def test_schedule_never_spans_a_lost_connection():
    times_s = [*np.arange(10) / 10, *(30 + np.arange(10) / 10)]
    found = windows((4, 2), times_s, 0.1, connections=[0] * 10 + [1] * 10, step_s=0.2)
    assert [window.frame_indices[0] for window in found] == [0, 2, 10, 12]
    assert found[2].start_s == 30.0


def test_schedule_converts_only_the_frames_that_windows_need():
    converted = []
    schedule = WindowSchedule(StreamTransform(TestTransform(8)), 4, 4, step_s=8 / 25)
    for index in range(60):
        frame = TimedFrame(index, index / 25, 0.0, 0, lambda index=index: converted.append(index) or image(index))
        schedule.add(frame, 1 / 25)
    schedule.finish()
    assert converted == list(range(0, 60, 4))


@pytest.mark.parametrize(
    "options",
    [
        {"step_s": 0},
        {"step_s": 1e-320},
        {"step_s": 1, "window_s": -1},
        {"step_s": 1, "window_s": 1e300},
        {"step_s": 1, "target_fps": 0},
    ],
)
def test_schedule_refuses_numbers_that_are_not_positive_or_immense(options):
    with pytest.raises(ValueError, match="must be from 1e-6 to 1e9"):
        WindowSchedule(StreamTransform(TestTransform(8)), 4, 1, **options)


class Frames(FrameStream):
    """A source whose frames the test hands out."""

    def __init__(self, given, pace_s=0.0, error=None):
        super().__init__("frames", timeout_s=1.0)
        self.given, self.pace_s, self.error, self.num_given = given, pace_s, error, 0

    def __iter__(self):
        for frame in self.given:
            self.active_s = time.monotonic()
            self.num_given += 1
            yield frame
            time.sleep(self.pace_s)
        if self.error is not None:
            raise self.error


def feed(stream, **options):
    schedule = WindowSchedule(StreamTransform(TestTransform(8)), 2, 1, step_s=0.08)
    stream.interval_s = 0.04
    return WindowFeed(stream, schedule, **options)


def test_feed_waits_for_a_slow_network():
    stream = Frames(frames(np.arange(200) / 25))
    starts = []
    for window in feed(stream):
        if len(starts) < 5:
            time.sleep(0.02)
            assert stream.num_given <= 2 * (len(starts) + 5)  # decoding pauses, so memory does not grow
        starts.append(window.frame_indices[0])
    assert starts == list(range(0, 200, 2))


def test_feed_hands_out_frames_early_while_no_window_waits():
    early, arrived = [], threading.Condition()

    class Waiting(Frames):
        """The second frame of each window comes after the first one has been handed out."""

        def __iter__(self):
            for frame in super().__iter__():
                yield frame
                if frame.frame_index % 2 == 0:
                    with arrived:
                        assert arrived.wait_for(lambda index=frame.frame_index: index in early, timeout=10)

    def take(index, pixels):
        assert int(pixels[0, 0, 0]) == index
        with arrived:
            early.append(index)
            arrived.notify_all()

    starts = [window.frame_indices[0] for window in feed(Waiting(frames(np.arange(20) / 25)), early=take)]
    assert starts == list(range(0, 20, 2)) and {*starts} <= {*early} and early == sorted(early)


def test_feed_without_early_frames_keeps_none():
    fed = feed(Frames(frames(np.arange(50) / 25)))
    assert len(list(fed)) == 25
    assert not fed.schedule.take_prepared()


def test_feed_hands_out_the_newest_window_and_counts_the_others():
    stream = Frames(frames(np.arange(100) / 25), pace_s=0.002)
    fed = feed(stream, newest_only=True)
    starts = []
    for window in fed:
        starts.append(window.frame_indices[0])
        time.sleep(0.03)
    assert starts == sorted(set(starts)) and starts[-1] == 98
    assert fed.num_dropped > 10 and len(starts) + fed.num_dropped == 50 and fed.num_frames == 100


def test_feed_gives_all_complete_windows_before_an_error():
    starts = []
    with pytest.raises(OSError, match="cable"):
        for window in feed(Frames(frames(np.arange(9) / 25), error=OSError("cable"))):
            starts.append(window.frame_indices[0])
    assert starts == [0, 2, 4, 6]


def test_feed_ends_if_the_source_hangs(monkeypatch):
    monkeypatch.setattr("sparsevideo.data.windows._GRACE_S", 0.0)
    hang = threading.Event()

    class Hanging(Frames):
        def __iter__(self):
            yield from super().__iter__()
            hang.wait(20)

    starts = []
    with pytest.raises(TimeoutError, match=r"frames: no frame within 1 s"):
        for window in feed(Hanging(frames(np.arange(6) / 25))):
            starts.append(window.frame_indices[0])
    hang.set()
    assert starts == [0, 2, 4]


def test_feed_that_is_left_early_stops_its_thread():
    iterator = iter(feed(Frames(frames(np.arange(500) / 25))))
    next(iterator)
    iterator.close()
    deadline_s = time.monotonic() + 5
    while any(thread.name == "decode" for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
