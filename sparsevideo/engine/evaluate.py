"""Scores of whole videos: every video once, every view once, from any number of processes.

Letters: B videos, V views (clips x crops), K classes.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from sparsevideo.engine.logging import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What a network says of every listed video.

    Attributes:
        scores: (n, K) float32 mean of the views' softmax; zeros where a video failed.
        failures: Index of each video that could not be read to the reason.
    """

    scores: np.ndarray
    failures: dict[int, str]


@torch.no_grad()
def evaluate(
    fabric: Fabric,
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    prepare: Callable[[Mapping[str, Any]], tuple[Tensor, Tensor]],
    num_videos: int,
    num_classes: int,
    num_views: int,
) -> Predictions:
    """Score this process' share of the videos, then gather.

    Args:
        fabric: Devices, precision, processes.
        model: Set up by `fabric`; left in evaluation mode.
        batches: This process' share; pixels (B, V, ...), `video_index` (B,), and `failures` of what could not be read.
        prepare: Batch to inputs (B*V, ...) and labels on the device.
        num_videos: Videos listed, over all processes.
        num_classes: K.
        num_views: V.

    Raises:
        RuntimeError: A video was seen by no process or by two.
    """
    model.eval()
    # Scores and a count of views: every process fills its own rows, so the sum over processes is exact.
    table = torch.zeros(num_videos, num_classes + 1, device=fabric.device)
    failures: dict[int, str] = {}
    bar = progress_bar("test", num_videos, show=fabric.is_global_zero)
    for batch in batches:
        failures.update((index, reason) for index, _, reason in batch["failures"])
        index = batch["video_index"].to(fabric.device)
        if len(index):
            inputs, _ = prepare(batch)
            scores = model(inputs).float().softmax(-1)  # (B*V, K)
            table[index, :-1] += scores.unflatten(0, (len(index), -1)).sum(1)
            table[index, -1] += num_views
        bar.advance(bar.task_ids[0], (len(index) + len(batch["failures"])) * fabric.world_size)
    bar.stop()

    table = cast(Tensor, fabric.all_reduce(table, reduce_op="sum"))
    shares = [fabric.broadcast(failures, src=rank) for rank in range(fabric.world_size)]
    failures = dict(sorted(item for share in shares for item in share.items()))
    wanted = torch.full_like(table[:, -1], num_views)
    wanted[list(failures)] = 0
    if not torch.equal(table[:, -1], wanted):
        wrong = (table[:, -1] != wanted).nonzero().flatten().tolist()
        raise RuntimeError(f"{len(wrong)} videos were not scored exactly once with {num_views} views: {wrong[:5]}")
    return Predictions((table[:, :-1] / num_views).cpu().numpy(), failures)
