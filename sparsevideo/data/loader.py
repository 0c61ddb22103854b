"""From data sets to batches, the same ones whatever the number of workers and ranks."""

import multiprocessing
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

Item = dict[str, Any]


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for training, for ever.

    The order is a function of (seed, epoch). A global batch is the next `batch_size * world_size` entries, of which a
    rank takes its slice: two ranks with half the batch each see what one rank sees. An epoch's last entries, too few
    for a global batch, are left out.

    Args:
        num_samples: Entries in the data set.
        batch_size: Of one rank.
        shuffle: False keeps the order of the data set.
        seed: Of the order.
        rank: Of this process.
        world_size: Processes.
        start_step: Global batches to leave out at the start, over all epochs: a resumed run goes on exactly.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        if not 0 < batch_size * world_size <= num_samples:
            raise ValueError(
                f"a batch of {batch_size} on each of {world_size} processes, from {num_samples} samples: "
                "train.batch_size wants at least 1 and no more than there are"
            )
        self.num_samples, self.batch_size, self.shuffle, self.seed = num_samples, batch_size, shuffle, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            order = np.arange(self.num_samples)
            if self.shuffle:
                order = np.random.default_rng((self.seed, epoch)).permutation(order)
            for step in range(first_step if epoch == first_epoch else 0, self.steps_per_epoch):
                start = (step * self.world_size + self.rank) * self.batch_size
                yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


def shard(num_samples: int, rank: int, world_size: int) -> range:
    """Return a rank's share of a test: every sample belongs to exactly one rank."""
    return range(rank, num_samples, world_size)


def collate(items: list[Item]) -> Item:
    """Stack items into a batch.

    Items without pixels are left out, their `failures` kept: (video_index, name, reason) of all items in one list.
    A batch without any pixels has neither `video` nor `image`, an empty `video_index` and an empty `label`.
    """
    failures = [failure for item in items for failure in item["failures"]]
    whole = [item for item in items if "video" in item or "image" in item]
    if not whole:
        nothing = torch.empty(0, dtype=torch.int64)
        return {"label": nothing, "video_index": nothing, "video_name": [], "failures": failures}
    fields = [{key: value for key, value in item.items() if key != "failures"} for item in whole]
    return default_collate(fields) | {"failures": failures}


def train_loader(dataset: Dataset[Item], sampler: EpochSampler, *, num_workers: int = 0) -> DataLoader[Item]:
    """Load training batches, for ever."""
    return _loader(dataset, num_workers, batch_sampler=sampler)


def test_loader(
    dataset: Dataset[Item], indices: Sequence[int], *, batch_size: int, num_workers: int = 0
) -> DataLoader[Item]:
    """Load the items with the given indices once, in that order; see `shard`."""
    return _loader(dataset, num_workers, sampler=indices, batch_size=batch_size)


test_loader.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest makes of the name


def _loader(dataset: Dataset[Item], num_workers: int, **kwargs: Any) -> DataLoader[Item]:
    if num_workers > 0:
        # Torch has running threads here, which a plain fork would leave behind, locks held. The server that forks the
        # workers runs none, and imports what they need once for all of them.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload(["sparsevideo.data.datasets"])
        kwargs |= {"multiprocessing_context": context, "persistent_workers": True, "prefetch_factor": 4}
    return DataLoader(
        dataset,
        num_workers=num_workers,  # each runs torch on one thread
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        **kwargs,
    )
