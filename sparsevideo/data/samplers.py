"""Choose the samples of each training batch and of each rank; independent of the number of workers and ranks."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index) for training.

    The order is a function of (seed, epoch). A global batch is the next `world_size * accumulate * batch_size` entries.
    Each rank takes its slice of it, in `accumulate` batches. Two ranks with half the batch each, or one that
    accumulates two halves, get the samples of one rank with the whole batch.

    `step` counts the global batches that a loader has handed out, over all epochs. Batches that workers have prepared
    in advance do not count. A new iteration continues at `step`.

    Args:
        num_samples: Entries in the data set.
        batch_size: Samples of one rank in one batch.
        accumulate: Batches of a rank in one global batch.
        shuffle: False keeps the order of the data set.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
        start_step: First value of `step`, to resume a run.
        pad: Complete the last global batch of an epoch with the epoch's first entries; False drops it.
        weights: (num_samples,) positive. Draw each entry in proportion to its weight instead of once an epoch: as often
            as `num_samples` draws make it on average, rounded up or down at random. Needs `shuffle`.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        accumulate: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        pad: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        if weights is not None and (len(weights) != num_samples or not shuffle):
            raise ValueError(f"weights must be one for each of {num_samples} samples, with shuffle")
        self.weights = weights
        self.num_samples, self.batch_size, self.accumulate = num_samples, batch_size, accumulate
        self.shuffle, self.seed, self.rank, self.world_size, self.pad = shuffle, seed, rank, world_size, pad
        self.batches = start_step * accumulate  # handed out to this rank
        if batch_size < 1 or accumulate < 1 or num_samples < (1 if pad else self.global_batch):
            raise ValueError(
                f"a global batch of {self.split} from {num_samples} samples: train.batch_size and train.accumulate must"
                " be >= 1, and the global batch not larger than the data set; set smaller ones"
            )

    @property
    def step(self) -> int:
        """Global batches handed out."""
        return self.batches // self.accumulate

    @step.setter
    def step(self, step: int) -> None:
        self.batches = step * self.accumulate

    @property
    def global_batch(self) -> int:
        """Samples in a global batch."""
        return self.world_size * self.accumulate * self.batch_size

    @property
    def split(self) -> str:
        """Size of a global batch and its factors, for messages: processes x batches accumulated x batch size."""
        return f"{self.global_batch} ({self.world_size} x {self.accumulate} x {self.batch_size})"

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        steps, rest = divmod(self.num_samples, self.global_batch)
        return steps + (1 if self.pad and rest else 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the settings that decide the batches; equal on all ranks."""
        names = ("step", "num_samples", "global_batch", "split", "seed", "shuffle", "pad")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the step of another sampler, with any split of its global batch over ranks.

        Raises:
            ValueError: The state belongs to other batches.
        """
        if changed := self.differences(state):
            raise ValueError(f"the sampler's state belongs to other batches: {', '.join(changed)}; change them back")
        self.step = state["step"]

    def differences(self, state: Mapping[str, Any]) -> list[str]:
        """Return the settings by which a sampler's state belongs to other batches, such as "seed 0 -> 1".

        Raises:
            ValueError: The state is not that of a sampler.
        """
        current = self.state_dict()
        if absent := current.keys() - state.keys():
            raise ValueError(f"not the state of a sampler: it lacks {', '.join(sorted(absent))}")
        changed = [
            f"{name} {state[name]} -> {current[name]}"
            for name in ("num_samples", "seed", "shuffle", "pad")
            if state[name] != current[name]
        ]
        if state["global_batch"] != self.global_batch:
            changed.append(f"global batch {state['split']} -> {self.split}")
        return changed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, first_step = divmod(self.step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            order: np.ndarray = np.arange(self.num_samples)
            if self.shuffle:
                rng = np.random.default_rng((self.seed, epoch))
                order = rng.permutation(order)
                if self.weights is not None:  # systematic sampling: low variance, and `num_samples` draws in all
                    sums = np.cumsum(self.weights[order])
                    edges = np.floor(sums / sums[-1] * self.num_samples + rng.random()).astype(np.int64)
                    order = rng.permutation(np.repeat(order, np.diff(edges, prepend=0)))
            if self.pad:
                order = np.resize(order, self.steps_per_epoch * self.global_batch)  # repeats the first entries
            share = self.accumulate * self.batch_size
            for step in range(first_step if epoch == first_epoch else 0, self.steps_per_epoch):
                first = (step * self.world_size + self.rank) * share
                for start in range(first, first + share, self.batch_size):
                    yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


def shard(num_samples: int, rank: int, world_size: int, *, pad: bool = False) -> Sequence[int]:
    """Return the indices of a rank's share of a test: each sample belongs to exactly one rank.

    With `pad` the first samples are repeated so that all shares have one length, for loops whose ranks stay in step.
    """
    if not pad:
        return range(rank, num_samples, world_size)
    end = -(-num_samples // world_size) * world_size
    return [index % num_samples for index in range(rank, end, world_size)]
