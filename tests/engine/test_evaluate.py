"""Each video is scored once with all views; failures are counted; an interrupted test is resumed."""

import json

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from sparsevideo.engine.evaluate import Journal, evaluate, row_width


def batches(indices, views, failures=()):
    """Yield a batch in which view v of video i has the scores 0 and i + v, and the short side is 100 + i."""
    index = torch.tensor(indices, dtype=torch.int64)
    scores = torch.stack([torch.stack([torch.tensor([0.0, i + v]) for v in range(views)]) for i in indices])
    numbers = torch.arange(views).expand(len(index), -1)
    yield {
        "scores": scores,
        "video_index": index,
        "short_side": 100 + index,
        "repeats_frames": torch.tensor([i == 2 for i in indices]),
        "sample_aspect_ratio": torch.tensor([16 / 15 if i == 0 else 1.0 for i in indices], dtype=torch.float64),
        "clip_index": numbers // 2,
        "aug_index": numbers % 2,
        "failures": list(failures),
    }


def run(load, num_videos, views, journal=None, num_clips=None):
    return evaluate(
        Fabric(),
        load if callable(load) else lambda indices: load,
        score=lambda batch: batch["scores"],
        num_videos=num_videos,
        num_scores=2,
        num_views=views,
        num_clips=num_clips,
        journal=journal,
    )


def test_scores_are_the_mean_of_the_views_in_the_order_of_the_list():
    scores = run(batches([2, 0, 1], views=3), 3, 3)
    assert scores.means.tolist() == [[0, 1], [0, 2], [0, 3]]
    assert scores.short_sides.tolist() == [100, 101, 102]
    assert scores.sample_aspect_ratios.tolist() == pytest.approx([16 / 15, 1, 1])
    assert list(scores.repeating) == [2]
    assert scores.failures == {}


def test_clips_have_rows_and_seconds_of_their_own_also_after_an_interruption(tmp_path):
    """Two clips of two crops. The seconds of frame 1,000,001 at 29.97 frames per second are exact."""
    seconds = [[[0.0, 0.96], [0.96, 33366.7]], [[1_000_000 / 29.97, 1_000_001 / 29.97], [5.0, 6.0]]]
    spans = torch.tensor(seconds, dtype=torch.float64)

    def load(indices):
        for index in indices:
            (batch,) = batches([index], 4)
            yield batch | {"clip_spans": spans[[index]]}

    def part(indices):
        yield from load(indices[:1])
        raise Killed

    def journal():
        return Journal(tmp_path / "unfinished", {}, row_width(2, 2))

    with pytest.raises(Killed):
        run(part, 3, 4, journal(), num_clips=2)
    scores = run(lambda indices: failing(load, indices), 3, 4, journal(), num_clips=2)
    assert scores.means[:, :, 1].tolist() == [[0.5, 2.5], [1.5, 3.5], [0, 0]]
    assert scores.means.shape == (3, 2, 2) and scores.short_sides.tolist() == [100, 101, 0]
    assert scores.sample_aspect_ratios.tolist() == pytest.approx([16 / 15, 1, 0])
    assert np.abs(scores.clip_spans[:2] - spans.numpy()).max() < 1e-9
    assert scores.clip_spans[0].tolist() == [[0, 0.96], [0.96, 33366.7]] and not scores.clip_spans[2].any()


def failing(load, indices):
    """The last of three videos cannot be read."""
    assert indices == [1, 2]
    (batch,) = load([1])
    yield batch | {"failures": [(2, "c.mp4", "corrupt")]}


def test_failed_videos_score_nothing_and_are_named():
    scores = run(batches([0, 2], 1, failures=[(1, "a.mp4", "corrupt")]), 3, 1)
    assert scores.failures == {1: "corrupt"}
    assert not scores.means[1].any()
    assert scores.short_sides.tolist() == [100, 0, 102]


@pytest.mark.parametrize("indices", [[0, 1], [0, 1, 2, 2]], ids=["one missing", "one twice"])
def test_a_video_missing_or_scored_twice_is_an_error(indices):
    def stream():
        for index in indices:
            yield from batches([index], 2)

    with pytest.raises(RuntimeError, match=r"1 videos were not scored exactly once with 2 views: \[2\]"):
        run(stream(), 3, 2)


def test_a_view_scored_twice_instead_of_another_is_an_error():
    (batch,) = batches([0, 1], 4)
    batch["aug_index"] = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]])
    with pytest.raises(RuntimeError, match=r"1 videos were not scored exactly once with 4 views: \[1\]"):
        run([batch], 2, 4)


class Killed(Exception):
    pass


def test_an_interrupted_test_scores_no_video_again(tmp_path):
    asked = []

    def load(indices, until=99):
        asked.append(indices)
        for number, index in enumerate(indices):
            if number == until:
                raise Killed
            yield from batches([index], 2)

    def journal():
        return Journal(tmp_path / "unfinished", {"weights": "a"}, width=row_width(2))

    for _ in range(2):
        with pytest.raises(Killed):
            run(lambda indices: load(indices, until=2), 7, 2, journal())
    (corrupt,) = list((tmp_path / "unfinished").glob("*.rows"))[:1]
    corrupt.write_bytes(corrupt.read_bytes() + b"half a row")
    np.zeros(1, dtype="i8,5f4").tofile(tmp_path / "unfinished" / "zeros.rows")  # like after a power failure
    scores = run(load, 7, 2, journal())
    assert asked == [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [4, 5, 6]]
    alone = run(lambda indices: load(indices), 7, 2)
    assert np.array_equal(scores.means, alone.means)
    assert np.array_equal(scores.short_sides, alone.short_sides)
    journal().remove()
    assert not list(tmp_path.iterdir())


def test_a_failed_video_is_tried_again(tmp_path):
    journal = Journal(tmp_path / "unfinished", {}, width=row_width(2))
    run(batches([0], 1, failures=[(1, "a.mp4", "disk away")]), 2, 1, journal)
    scores = run(batches([1], 1), 2, 1, Journal(tmp_path / "unfinished", {}, width=row_width(2)))
    assert scores.failures == {}
    assert scores.means[:, 1].tolist() == [0, 1]


def test_a_journal_of_another_test_is_refused_with_what_differs(tmp_path):
    journal = Journal(tmp_path / "unfinished", {"weights": "a", "test.clips": 4}, width=row_width(2))
    journal.add(np.array([0]), np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match=r"unfinished results of other settings \(test.clips 4 -> 10\)"):
        Journal(tmp_path / "unfinished", {"weights": "a", "test.clips": 10}, width=row_width(2))
    assert json.loads((tmp_path / "unfinished" / "about.json").read_text())["test.clips"] == 4


def test_a_journal_without_scores_takes_other_settings(tmp_path):
    Journal(tmp_path / "unfinished", {"test.clips": 4}, width=row_width(2))
    Journal(tmp_path / "unfinished", {"test.clips": 10}, width=row_width(2))
    assert json.loads((tmp_path / "unfinished" / "about.json").read_text()) == {"test.clips": 10}
