"""Segments follow the stated rules; their files are what players and programs read."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from sparsevideo.reports.timeline import ScoredWindow, Segment, SegmentMerger, format_time, save_segments, webvtt
from sparsevideo.reports.timeline_plot import save_timeline_plot

CLASSES = ["run", "jump", "swim"]


def merge(rows, step_s=1.0, length_s=2.0, **options):
    merger = SegmentMerger(CLASSES, **options)
    for index, row in enumerate(rows):
        merger.add(ScoredWindow(index * step_s, index * step_s + length_s, np.array(row, np.float32)))
    return [(segment.label, segment.start_s, segment.end_s, round(segment.score, 4)) for segment in merger.finish()]


def run(*scores):
    """Scores of `run`; the rest is shared by the other classes."""
    return [[score, (1 - score) / 2, (1 - score) / 2] for score in scores]


def test_merger_of_one_window_is_its_span():
    assert merge(run(0.8)) == [("run", 0.0, 2.0, 0.8)]
    assert merge([]) == [] and merge(run(0.4)) == []


def test_merger_borders_lie_between_the_middles_of_windows():
    # Middles at 1, 2, 3, 4: windows count for [0, 1.5], [1.5, 2.5], [2.5, 3.5], [3.5, 5].
    rows = [*run(0.9, 0.9), [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]
    assert merge(rows) == [("run", 0.0, 2.5, 0.9), ("jump", 2.5, 5.0, 0.8)]
    assert merge(run(0.1, 0.9, 0.1, 0.1), leave=0.2)[0][:3] == ("run", 1.5, 2.5)


def test_merger_continues_down_to_the_lower_threshold():
    rows = run(0.45, 0.6, 0.45, 0.35, 0.2, 0.45)
    assert merge(rows, enter=0.5, leave=0.3) == [("run", 1.5, 4.5, round((0.6 + 0.45 + 0.35) / 3, 4))]
    assert [segment[1:3] for segment in merge(rows, enter=0.5, leave=0.5)] == [(1.5, 2.5)]
    assert [segment[1:3] for segment in merge(rows, enter=0.45, leave=0.45)] == [(0.0, 3.5), (5.5, 7.0)]


def test_merger_ends_a_segment_where_another_class_starts():
    rows = [[0.9, 0.1, 0.0], [0.45, 0.55, 0.0], [0.45, 0.48, 0.07], [0.9, 0.1, 0.0]]
    # In the third window neither reaches 0.5: the newer segment continues.
    assert [segment[:3] for segment in merge(rows)] == [("run", 0.0, 1.5), ("jump", 1.5, 3.5), ("run", 3.5, 5.0)]


def test_merger_multilabel_takes_each_class_by_itself():
    rows = [[0.9, 0.8, 0.1], [0.9, 0.1, 0.1], [0.2, 0.9, 0.1]]
    assert [segment[:3] for segment in merge(rows, multilabel=True)] == [
        ("jump", 0.0, 1.5),
        ("run", 0.0, 2.5),
        ("jump", 2.5, 4.0),
    ]


def test_merger_leaves_out_short_segments():
    rows = run(0.9, 0.9, 0.9, 0.1, 0.9)
    assert [segment[1:3] for segment in merge(rows, leave=0.2, min_duration_s=2.0)] == [(0.0, 3.5)]


@pytest.mark.parametrize("options", [{"enter": 0.2}, {"enter": 1.5}, {"leave": -0.1}, {"enter": float("nan")}])
def test_merger_refuses_impossible_thresholds(options):
    with pytest.raises(ValueError, match="0 <= leave <= enter <= 1"):
        SegmentMerger(CLASSES, **options)
    with pytest.raises(ValueError, match="min_duration_s must be >= 0, got -1"):
        SegmentMerger(CLASSES, min_duration_s=-1)


def test_format_time_rounds_once():
    assert [format_time(s) for s in (0, 59.9996, 3599.9999, 360_000)] == [
        *("00:00:00.000", "00:01:00.000", "01:00:00.000", "100:00:00.000")
    ]


SEGMENTS = [Segment(0.0, 2.5, "走る", 0.91234567), Segment(2.5, 70.25, 'say "hi", <b> & wave\n\nagain', 0.5)]


def test_segments_are_written_as_csv_json_and_subtitles(tmp_path):
    save_segments(tmp_path, SEGMENTS)
    rows = list(csv.DictReader((tmp_path / "segments.csv").open(encoding="utf-8", newline="")))
    assert [row["label"] for row in rows] == [segment.label for segment in SEGMENTS]
    assert float(rows[1]["end_s"]) == 70.25
    assert [Segment(**each) for each in json.loads((tmp_path / "segments.json").read_text("utf-8"))] == SEGMENTS
    cues = (tmp_path / "segments.vtt").read_text("utf-8").split("\n\n")
    assert cues[0] == "WEBVTT" and len(cues) == 3
    assert cues[1] == "00:00:00.000 --> 00:00:02.500\n走る 0.91"
    assert cues[2].splitlines()[1] == 'say "hi", &lt;b&gt; &amp; wave again 0.50'


def test_webvtt_has_no_cue_that_ends_when_it_starts():
    assert webvtt([Segment(1.0, 1.0001, "run", 0.9)]) == "WEBVTT\n"


def test_subtitles_are_read_by_ffmpeg(tmp_path):
    import av

    save_segments(tmp_path, SEGMENTS)
    with av.open(str(tmp_path / "segments.vtt")) as container:
        packets = [packet for packet in container.demux() if packet.size]
        times_s = [(float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base)) for p in packets]
    assert times_s == [(0.0, 2.5), (2.5, 70.25)]


@pytest.mark.parametrize(("num_windows", "num_classes"), [(1, 1), (3, 2), (5000, 400)])
def test_timeline_plot_shows_at_most_ten_classes(num_windows, num_classes, tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(num_classes), num_windows).astype(np.float32)
    classes = [f"class with a long name {label}" for label in range(num_classes)]
    starts_s = np.arange(num_windows) * 0.64
    segments = [Segment(0.0, 1.0, classes[-1], 0.9)]
    path = tmp_path / "plot.png"
    save_timeline_plot(path, np.stack([starts_s, starts_s + 2.56], axis=1), scores, segments, classes)
    with Image.open(path) as image:
        assert image.width == 1408 and image.height == pytest.approx(128 * (0.55 * min(10, num_classes) + 0.9), abs=1)
        assert len(image.convert("RGB").getcolors(10**6)) > 10
