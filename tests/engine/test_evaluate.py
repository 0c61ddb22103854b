"""Every video is scored once, with every view; whatever fails is counted."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from sparsevideo.engine.evaluate import evaluate


def batches(indices, views, failures=()):
    """Inputs are logits already: view v of video i says i + v of class 1 and 0 of class 0."""
    index = torch.tensor(indices, dtype=torch.int64)
    logits = torch.stack([torch.stack([torch.tensor([0.0, i + v]) for v in range(views)]) for i in indices])
    yield {"video": logits, "video_index": index, "label": index * 0, "failures": list(failures)}


def run(stream, num_videos, views):
    return evaluate(
        Fabric(),
        torch.nn.Identity(),
        stream,
        prepare=lambda batch: (batch["video"].flatten(0, 1), batch["label"]),
        num_videos=num_videos,
        num_classes=2,
        num_views=views,
    )


def test_scores_are_the_mean_of_the_views_softmax_in_the_order_of_the_list():
    predictions = run(batches([2, 0, 1], views=3), 3, 3)
    expected = [np.mean([np.exp(i + v) / (1 + np.exp(i + v)) for v in range(3)]) for i in range(3)]
    assert predictions.scores[:, 1] == pytest.approx(expected, rel=1e-6)
    assert predictions.scores.sum(1) == pytest.approx(1, rel=1e-6)
    assert predictions.failures == {}


def test_failed_videos_score_nothing_and_are_named():
    predictions = run(batches([0, 2], 1, failures=[(1, "a.mp4", "torn")]), 3, 1)
    assert predictions.failures == {1: "torn"}
    assert not predictions.scores[1].any()


@pytest.mark.parametrize("indices", [[0, 1], [0, 1, 2, 2]], ids=["one missing", "one twice"])
def test_a_video_missing_or_scored_twice_is_an_error(indices):
    def stream():
        for index in indices:
            yield from batches([index], 2)

    with pytest.raises(RuntimeError, match=r"1 videos were not scored exactly once with 2 views: \[2\]"):
        run(stream(), 3, 2)
