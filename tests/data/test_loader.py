"""Batches do not depend on the number of workers or ranks, nor on when a run was resumed."""

from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered import write_numbered
from torch.utils.data import Dataset

from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.loader import EpochSampler, collate, shard, test_loader, train_loader
from sparsevideo.data.records import Records, read_records
from sparsevideo.data.transforms import TestTransform, TrainTransform

Batches = list[list[tuple[int, int]]]


def batches(count: int, *args, **kwargs) -> Batches:
    return list(islice(EpochSampler(*args, **kwargs), count))


def test_an_epoch_sees_every_sample_once_but_the_last_few() -> None:
    sampler = EpochSampler(23, 4, seed=1)
    assert sampler.steps_per_epoch == 5
    for epoch in range(3):
        keys = list(chain(*islice(sampler, 5 * epoch, 5 * epoch + 5)))
        assert {key[0] for key in keys} == {epoch}
        assert len({key[1] for key in keys}) == 20 and {key[1] for key in keys} <= set(range(23))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = batches(10, 20, 4, seed=1)
    assert first == batches(10, 20, 4, seed=1)
    assert first != batches(10, 20, 4, seed=2)
    assert [key[1] for batch in first[:5] for key in batch] != [key[1] for batch in first[5:] for key in batch]
    assert batches(2, 20, 4, shuffle=False) == [[(0, i) for i in range(4)], [(0, i) for i in range(4, 8)]]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_what_one_rank_sees(world_size: int) -> None:
    alone = batches(9, 50, 12, seed=3)
    ranks = [batches(9, 50, 12 // world_size, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("start_step", [1, 4, 5, 13])
def test_a_resumed_run_goes_on_exactly(start_step: int) -> None:
    whole = batches(20, 23, 4, seed=1)
    assert batches(20 - start_step, 23, 4, seed=1, start_step=start_step) == whole[start_step:]


def test_a_batch_larger_than_the_data_stops() -> None:
    assert EpochSampler(24, 8, world_size=3).steps_per_epoch == 1
    for batch_size in (9, 0):
        with pytest.raises(
            ValueError, match=rf"batch of {batch_size} on each of 3 processes, from 24 samples: train\."
        ):
            EpochSampler(24, batch_size, world_size=3)


def test_shards_split_a_test_without_padding() -> None:
    for world_size in (1, 2, 3, 4, 7):
        shares = [shard(5, rank, world_size) for rank in range(world_size)]
        assert sorted(index for share in shares for index in share) == list(range(5))


def test_collate() -> None:
    good = {"video": torch.ones(3, 2, 4, 4), "label": 1, "video_index": 4, "video_name": "x", "failures": []}
    replaced = {**good, "label": 2, "failures": [(5, "bad", "why")]}
    bad = {"label": 0, "video_index": 6, "video_name": "y", "failures": [(6, "y", "why")]}
    batch = collate([good, bad, replaced])
    assert batch["video"].shape == (2, 3, 2, 4, 4)
    assert batch["label"].tolist() == [1, 2] and batch["video_name"] == ["x", "x"]
    assert batch["failures"] == [(6, "y", "why"), (5, "bad", "why")]
    nothing = collate([bad])
    assert "video" not in nothing and len(nothing["video_index"]) == len(nothing["label"]) == 0
    assert nothing["failures"] == [(6, "y", "why")]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    root = tmp_path_factory.mktemp("videos")
    for index in range(10):
        path = root / "ab"[index % 2] / f"{index}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_numbered(path, 20, options={"g": "12"})
    (root / "b/5.mp4").write_bytes(b"no video")
    return read_records(root, kind="video")


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key


def test_workers_change_nothing(records: Records) -> None:
    train = VideoDataset(records, num_frames=4, frame_stride=2, transform=TrainTransform(32), seed=5)
    test = VideoDataset(records, num_frames=4, frame_stride=2, transform=TestTransform(32, 3), num_clips=2)
    runs = []
    for num_workers in (0, 2):
        loader = train_loader(train, EpochSampler(len(train), 3, seed=5), num_workers=num_workers)
        tests = test_loader(test, shard(len(test), 0, 1), batch_size=3, num_workers=num_workers)
        runs.append([*islice(loader, 8), *tests])
    assert_same(runs[0], runs[1])
    alone = runs[0][8:]
    assert [failure[1] for batch in alone for failure in batch["failures"]] == ["b/5.mp4"]
    assert sorted(int(index) for batch in alone for index in batch["video_index"]) == sorted(
        set(range(10)) - {batch["failures"][0][0] for batch in alone if batch["failures"]}
    )


class Threads(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return {"video": torch.tensor(torch.get_num_threads()), "failures": []}


def test_workers_run_on_one_thread_and_are_no_plain_forks() -> None:
    """A fork would inherit torch's thread pool without its threads."""
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # the pool is up
    loader = test_loader(Threads(), range(2), batch_size=1, num_workers=1)
    assert [int(batch["video"]) for batch in loader] == [1, 1]
    assert loader.multiprocessing_context.get_start_method() in ("forkserver", "spawn")


def test_real_batches_feed_from_paths_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "class a").mkdir()
    write_numbered(tmp_path / "class a/video 1.mp4", 8)
    dataset = VideoDataset(
        read_records(tmp_path, kind="video"), num_frames=4, frame_stride=2, transform=TrainTransform(32)
    )
    batch = next(iter(train_loader(dataset, EpochSampler(1, 1))))
    assert batch["video"].shape == (1, 3, 4, 32, 32) and batch["video_name"] == ["class a/video 1.mp4"]
    assert np.all(batch["label"].numpy() == 0)
