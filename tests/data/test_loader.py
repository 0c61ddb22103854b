"""Batches do not depend on the number of workers or ranks, nor on the step at which a run was resumed."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_videos import write_numbered
from torch.utils.data import ConcatDataset, Dataset, Subset

from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.loader import collate, reading, test_loader, train_loader
from sparsevideo.data.records import Records, read_records
from sparsevideo.data.samplers import EpochSampler, shard
from sparsevideo.data.transforms import TestTransform, TrainTransform

Batches = list[list[tuple[int, int]]]


def batches(count: int, *args, **kwargs) -> Batches:
    return list(islice(EpochSampler(*args, **kwargs), count))


def test_weighted_draws_are_in_proportion_for_any_split_and_resumption() -> None:
    """Two samples of 40 with nine times the weight: each is drawn 6 or 7 times, any other at most once."""
    weights = np.ones(40)
    weights[:2] = 9
    draws = [entry for batch in islice(EpochSampler(40, 8, seed=3, weights=weights), 100) for entry in batch]
    assert [epoch for epoch, _ in draws] == [index // 40 for index in range(800)]
    counts = np.bincount([40 * epoch + index for epoch, index in draws], minlength=800).reshape(20, 40)
    assert set(counts[:, :2].ravel()) == {6, 7} and set(counts[:, 2:].ravel()) == {0, 1}
    assert counts.mean(axis=0) == pytest.approx(40 * weights / weights.sum(), abs=0.3)
    assert len({counts[epoch].tobytes() for epoch in range(20)}) == 20
    ranks = [EpochSampler(40, 4, seed=3, weights=weights, rank=rank, world_size=2, start_step=7) for rank in range(2)]
    joined = [entry for batches in islice(zip(*ranks, strict=True), 93) for batch in batches for entry in batch]
    assert joined == draws[7 * 8 :]
    equal = [entry for batch in islice(EpochSampler(40, 8, seed=3, weights=np.full(40, 0.1)), 5) for entry in batch]
    assert sorted(index for _, index in equal) == list(range(40))
    for wrong in ({"weights": weights[1:]}, {"weights": weights, "shuffle": False}):
        with pytest.raises(ValueError, match="weights must be one for each of 40 samples, with shuffle"):
            EpochSampler(40, 8, **wrong)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_names_one_file_whose_pixels_are_not_square(
    num_workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, in the main process, which has the log file."""
    (tmp_path / "a").mkdir()
    for index, ratio in enumerate(("", "16/15", "16/15")):
        write_numbered(tmp_path / f"a/{index}.mp4", 8, ratio=ratio)
    records = read_records(tmp_path, kind="video")
    for square_pixels in (False, True):
        how = {"num_frames": 2, "frame_stride": 2, "transform": TrainTransform(32), "square_pixels": square_pixels}
        sampler = EpochSampler(3, 1, shuffle=False)
        list(islice(train_loader(VideoDataset(records, **how), sampler, num_workers=num_workers), 6))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "a/1.mp4: its pixels are not square (16:15) and are read as they are stored, as in all such files; set"
        " data.square_pixels to resize them"
    ]


def test_epoch_has_each_sample_once_except_the_last_few() -> None:
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
def test_ranks_share_the_samples_of_one_rank(world_size: int) -> None:
    alone = batches(9, 50, 12, seed=3)
    ranks = [batches(9, 50, 12 // world_size, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("start_step", [1, 4, 5, 13])
def test_resumed_sampler_continues_exactly(start_step: int) -> None:
    whole = batches(20, 23, 4, seed=1)
    assert batches(20 - start_step, 23, 4, seed=1, start_step=start_step) == whole[start_step:]
    halves = batches(40, 23, 2, accumulate=2, seed=1)
    rest = batches(40 - 2 * start_step, 23, 2, accumulate=2, seed=1, start_step=start_step)
    assert rest == halves[2 * start_step :]


@pytest.mark.parametrize("world_size", [1, 2])
def test_padding_repeats_the_start_of_the_epoch(world_size: int) -> None:
    ranks = [
        EpochSampler(23, 8 // world_size, seed=1, pad=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert ranks[0].steps_per_epoch == 3
    steps = [list(chain(*parts)) for parts in zip(*(islice(rank, 6) for rank in ranks), strict=True)]
    for epoch in range(2):
        keys = list(chain(*steps[3 * epoch : 3 * epoch + 3]))
        assert sorted(keys[:23]) == [(epoch, index) for index in range(23)]
        assert keys[23:] == keys[:1]
    assert EpochSampler(24, 8, pad=True).steps_per_epoch == 3  # nothing to pad
    assert batches(1, 3, 8, pad=True, shuffle=False) == [[(0, i % 3) for i in range(8)]]


def test_sampler_state_continues_with_any_split_over_ranks() -> None:
    whole = batches(9, 50, 12, seed=3)
    state = EpochSampler(50, 12, seed=3, start_step=5).state_dict()
    for world_size, accumulate in product((1, 2, 3), (1, 2)):
        size = {"accumulate": accumulate, "seed": 3, "world_size": world_size}
        samplers = [EpochSampler(50, 12 // world_size // accumulate, rank=rank, **size) for rank in range(world_size)]
        for sampler in samplers:
            sampler.load_state_dict(state)
            assert sampler.step == 5
        shares = [[list(islice(each, accumulate)) for _ in range(4)] for each in map(iter, samplers)]
        parts = [list(chain(*chain(*share))) for share in zip(*shares, strict=True)]
        assert parts == whole[5:]


def test_sampler_state_of_other_batches_is_an_error() -> None:
    state = EpochSampler(50, 4, seed=3, world_size=2, start_step=5).state_dict()
    for sampler, message in [
        (EpochSampler(50, 4, seed=3, world_size=3), r"global batch 8 \(2 x 1 x 4\) -> 12 \(3 x 1 x 4\);"),
        (EpochSampler(50, 8, seed=4), "belongs to other batches: seed 3 -> 4; change"),
        (EpochSampler(51, 8, seed=3), "num_samples 50 -> 51;"),
        (EpochSampler(50, 8, seed=3, shuffle=False, pad=True), "shuffle True -> False, pad False -> True;"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.load_state_dict(state)
        assert sampler.step == 0
    with pytest.raises(ValueError, match=r"it lacks seed$"):
        EpochSampler(50, 8).load_state_dict({name: state[name] for name in state if name != "seed"})


def test_batch_larger_than_the_data_is_an_error() -> None:
    assert EpochSampler(24, 8, world_size=3).steps_per_epoch == 1
    for batch_size in (9, 0):
        with pytest.raises(
            ValueError, match=rf"global batch of {3 * batch_size} \(3 x 1 x {batch_size}\) from 24 samples"
        ):
            EpochSampler(24, batch_size, world_size=3)
    with pytest.raises(ValueError, match=r"global batch of 0 \(1 x 0 x 8\) from 24 samples"):
        EpochSampler(24, 8, accumulate=0)
    with pytest.raises(ValueError, match="from 0 samples"):
        EpochSampler(0, 8, pad=True)


def test_shard_splits_a_test_with_and_without_padding() -> None:
    for world_size in (1, 2, 3, 4, 7):
        shares = [shard(5, rank, world_size) for rank in range(world_size)]
        assert sorted(index for share in shares for index in share) == list(range(5))
        padded = [shard(5, rank, world_size, pad=True) for rank in range(world_size)]
        assert {len(share) for share in padded} == {-(-5 // world_size)}
        assert [list(share) for share in padded] == [[*a, *b[len(a) :]] for a, b in zip(shares, padded, strict=True)]
        assert {share[-1] for share, own in zip(padded, shares, strict=True) if len(share) > len(own)} <= {0, 1, 2}


def test_collate() -> None:
    good = {"video": torch.ones(3, 2, 4, 4), "label": 1, "video_index": 4, "video_name": "x", "failures": []}
    replaced = {**good, "label": 2, "failures": [(5, "bad", "why")]}
    bad = {"label": 0, "video_index": 6, "video_name": "y", "failures": [(6, "y", "why")]}
    batch = collate([good, bad, replaced])
    assert batch["video"].shape == (2, 3, 2, 4, 4)
    assert batch["label"].tolist() == [1, 2] and batch["video_name"] == ["x", "x"]
    assert batch["failures"] == [(6, "y", "why"), (5, "bad", "why")]
    nested = collate([[good, replaced], [bad], good])  # several clips of one file
    assert nested["label"].tolist() == [1, 2, 1] and len(nested["failures"]) == 2
    nothing = collate([bad])
    assert "video" not in nothing and len(nothing["video_index"]) == len(nothing["label"]) == 0
    assert nothing["failures"] == [(6, "y", "why")]
    channels_last = good | {"video": torch.ones(2, 4, 4, 3).movedim(-1, 0)}
    for count in (1, 2):  # the memory layout is kept
        assert collate([channels_last] * count)["video"].stride()[1:] == (1, 48, 12, 3)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    root = tmp_path_factory.mktemp("videos")
    for index in range(10):
        path = root / ["a", "class b"][index % 2] / f"video {index}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_numbered(path, 20, options={"g": "12"})
    (root / "class b/video 5.mp4").write_bytes(b"no video")
    return read_records(root, kind="video")


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key


def training(records: Records) -> VideoDataset:
    return VideoDataset(records, num_frames=4, frame_stride=2, transform=TrainTransform(32), seed=5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("num_workers", "world_size"), [(1, 1), (2, 1), (3, 1), (2, 2), (0, 3), (1, 3)])
def test_batches_do_not_depend_on_workers_and_ranks(records: Records, num_workers: int, world_size: int) -> None:
    """Over two epochs, with a file that does not decode; a rank has its part of the batch of one process."""

    def run(num_workers: int, world_size: int) -> list[list[dict]]:
        streams = []
        for rank in range(world_size):
            sampler = EpochSampler(len(records), 6 // world_size, seed=5, pad=True, rank=rank, world_size=world_size)
            streams.append(list(islice(train_loader(training(records), sampler, num_workers=num_workers), 4)))
        return streams

    (alone,), ranks = run(0, 1), run(num_workers, world_size)
    assert any(batch["failures"] for batch in alone)
    assert [list(chain(*(batch["failures"] for batch in step))) for step in zip(*ranks, strict=True)] == [
        batch["failures"] for batch in alone
    ]
    for rank, stream in enumerate(ranks):
        part = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
        expected = [{key: batch[key][part] for key in batch if key != "failures"} for batch in alone]
        assert_same([{key: batch[key] for key in batch if key != "failures"} for batch in stream], expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_test_batches_do_not_depend_on_workers(records: Records) -> None:
    dataset = VideoDataset(records, num_frames=4, frame_stride=2, transform=TestTransform(32, 3), num_clips=2)
    alone, *others = [
        list(test_loader(dataset, shard(len(dataset), 0, 1), batch_size=3, num_workers=n)) for n in (0, 1, 3)
    ]
    for other in others:
        assert_same(other, alone)
    assert [failure[1] for batch in alone for failure in batch["failures"]] == ["class b/video 5.mp4"]
    assert sorted(int(index) for batch in alone for index in batch["video_index"]) == sorted(
        set(range(10)) - {batch["failures"][0][0] for batch in alone if batch["failures"]}
    )


def run_on(records: Records, state: dict[str, int] | None, num_workers: int, count: int) -> tuple[list[dict], dict]:
    """Return the next batches, as arrays, and the state after them."""
    sampler = EpochSampler(len(records), 3, seed=5)
    if state:
        sampler.load_state_dict(state)
    loader = iter(train_loader(training(records), sampler, num_workers=num_workers))
    batches = [next(loader) for _ in range(count)]  # workers are far ahead by now
    arrays = [{k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in batches]
    return arrays, sampler.state_dict()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_new_process_continues_after_the_last_batch_handed_out(records: Records, num_workers: int) -> None:
    whole, last = run_on(records, None, 0, 9)
    first, state = run_on(records, None, 2, 4)
    assert state["step"] == 4 and last["step"] == 9
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        rest, end = pool.submit(run_on, records, state, num_workers, 5).result()
    assert end == last
    for ours, theirs in zip([*first, *rest], whole, strict=True):
        for key in theirs:
            assert np.array_equal(ours[key], theirs[key]), key


def test_second_iteration_continues_the_first(records: Records) -> None:
    """Batches that workers have made in advance are made again, not skipped."""
    loader = train_loader(training(records), EpochSampler(len(records), 3, seed=5), num_workers=1)
    twice = [*islice(loader, 2), *islice(loader, 2)]
    assert_same(twice, list(islice(train_loader(training(records), EpochSampler(len(records), 3, seed=5)), 4)))


SIGNALS = {"crash": signal.SIGSEGV, "full disk": signal.SIGBUS, "killed inside": signal.SIGKILL}


class Dangerous(Dataset):
    """Hangs, dies or fails as the content of the file says."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        with reading(self.paths[index]):
            content = self.paths[index].read_text()
            if content == "hang":
                ctypes.PyDLL(None).sleep(1000)  # with Python's lock held, as in some decoders
            if content in SIGNALS:
                os.kill(os.getpid(), SIGNALS[content])
            if content == "leave":
                os._exit(7)
        if content == "killed outside":
            os.kill(os.getpid(), signal.SIGKILL)
        if content == "wrong":
            raise RuntimeError("a mistake")
        return {"video": torch.ones(3, 1, 1, 1), "failures": []}


@pytest.fixture
def dangerous(tmp_path: Path) -> Path:
    for content in ("fine", "hang", *SIGNALS, "killed outside", "wrong"):
        (tmp_path / content).write_text(content)
    (tmp_path / "videos/a").mkdir(parents=True)
    for index in range(2):
        os.mkfifo(tmp_path / f"videos/a/nobody writes {index}.mp4")
    return tmp_path


class FirstAlone(Dataset):
    """Its workers wait before any item but the first until the file `gate` exists."""

    def __init__(self, items: Dataset, gate: Path) -> None:
        self.items, self.gate = items, gate

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        while index > 0 and not self.gate.exists():
            time.sleep(0.01)
        return self.items[index]


def end_of(items: Dataset, gate: Path) -> OSError:
    """Return the error of a loader after all its workers but the first have ended by themselves."""
    dataset = FirstAlone(items, gate)
    loader = test_loader(dataset, range(len(dataset)), batch_size=1, num_workers=len(dataset), timeout_s=0.5)
    batches = iter(loader)
    assert next(batches)["video"].shape == (1, 3, 1, 1, 1)
    gate.touch()  # not earlier: on a busy machine, dead workers may be noticed before the first item has come
    workers = loader._iterator._workers  # type: ignore[union-attr]
    for worker in workers[1:]:
        worker.join(30)
        assert worker.exitcode is not None
    with pytest.raises(OSError) as caught:
        next(batches)
    for worker in workers:
        worker.join(10)
        assert worker.exitcode is not None  # also those that did not hang or die
    return caught.value


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_files_of_hanging_workers_are_named(dangerous: Path) -> None:
    videos = read_records(dangerous / "videos", kind="video")
    views = VideoDataset(videos, num_frames=4, frame_stride=2, transform=TestTransform(32), num_clips=1)
    both = Subset(views, [0]), Subset(training(videos), [1])
    error = end_of(ConcatDataset([Dangerous(dangerous / "fine", dangerous / "hang"), *both]), dangerous / "gate")
    assert isinstance(error, TimeoutError)
    reason = "not read within 0.5 s; remove it, or raise data.timeout_s if the disk is slow (`sparsevideo data scan`"
    files = [dangerous / "hang", videos.path(0), videos.path(1)]
    for message, file in zip(str(error).split(" finds such files); "), files, strict=True):
        assert message.startswith(f"{file}: {reason}")


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_files_of_dead_workers_are_named(dangerous: Path) -> None:
    ends = ("crash", "killed outside", "killed inside", "hang")
    error = end_of(Dangerous(dangerous / "fine", *(dangerous / end for end in ends)), dangerous / "gate")
    assert isinstance(error, ChildProcessError)  # not only slow ones
    first, second = str(error).split(" finds such files); ", 1)
    assert first.startswith(
        f"{dangerous / 'crash'}: a loader worker died while reading it (SIGSEGV); remove it or make"
    )
    assert second.startswith("a loader worker died between two files (SIGKILL); the memory or /dev/shm may be full")
    assert f"; {dangerous / 'killed inside'}: a loader worker died while reading it (SIGKILL); the memory" in second
    assert f"; {dangerous / 'hang'}: not read within 0.5 s" in second


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_file_of_a_dead_worker_is_named_with_its_advice(dangerous: Path) -> None:
    """Although connections break before exit codes are known. The advice depends on the signal."""
    path = dangerous / os.fsdecode(b"caf\xe9")
    for content, cause in [
        ("leave", r"\(exit code 7\); remove it or make it again"),
        ("full disk", r"\(SIGBUS\); the memory or /dev/shm may be full"),
    ]:
        path.write_text(content)
        with pytest.raises(ChildProcessError, match=r"caf\\xe9: a loader worker died while reading it " + cause):
            list(test_loader(Dangerous(path), [0], batch_size=1, num_workers=1))


def run_script(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    (folder / "script.py").write_text(text, encoding="utf-8")
    command = [sys.executable, str(folder / "script.py")]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)


@pytest.mark.slow
def test_script_without_a_guard_gets_an_error_that_explains_it(tmp_path: Path) -> None:
    run = run_script(
        tmp_path,
        "from sparsevideo.data.loader import test_loader\n"
        "print(list(test_loader([{}], [0], batch_size=1, num_workers=2)))\n",
    )
    assert run.returncode == 1 and not run.stdout
    assert run.stderr.splitlines()[-1] == (
        "ChildProcessError: a loader worker died at its start (child processes import the script: put its work under"
        ' `if __name__ == "__main__":`); it has printed the reason above'
    )


@pytest.mark.slow
def test_worker_that_dies_at_its_start_prints_its_reason(tmp_path: Path) -> None:
    run = run_script(
        tmp_path,
        "from sparsevideo.data.loader import test_loader\n"
        "class Items(list): pass\n"
        "if __name__ != '__main__': raise ValueError('no licence for this machine')\n"
        "next(iter(test_loader(Items([{}]), [0], batch_size=1, num_workers=1)))\n",
    )
    assert run.returncode == 1
    assert "ValueError: no licence for this machine" in run.stderr
    assert "ChildProcessError: a loader worker died at its start (exit code 1); it has printed" in run.stderr


def test_error_of_the_data_set_is_raised_unchanged(dangerous: Path) -> None:
    loader = test_loader(Dangerous(dangerous / "wrong"), [0], batch_size=1, num_workers=1, timeout_s=0.5)
    with pytest.raises(RuntimeError, match="a mistake"):
        list(loader)
    loader._iterator._workers[0].kill()  # type: ignore[union-attr]  # the traceback refers to it, so its end would take seconds


class Slow(Dataset):
    """Files that together exceed the limit of one file, and other work that exceeds it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        with reading(f"{index}"):
            time.sleep(0.15)
        if index == 7:
            time.sleep(1.2)
        return {"video": torch.ones(3, 1, 1, 1), "failures": []}


def test_timeout_is_per_file_not_per_batch() -> None:
    (batch,) = test_loader(Slow(), range(8), batch_size=8, num_workers=1, timeout_s=1)
    assert len(batch["video"]) == 8


def test_main_process_has_no_timeout() -> None:
    (batch,) = test_loader(Slow(), range(1), batch_size=1, timeout_s=0.01)
    assert len(batch["video"]) == 1


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_over_epochs(records: Records) -> None:
    loader = train_loader(training(records), EpochSampler(len(records), 2, seed=5), num_workers=2)
    batches = iter(loader)
    sizes = []
    for _ in range(4):
        list(islice(batches, 40 * 5))  # 40 epochs
        sizes.append([resident_mb(worker.pid) for worker in loader._iterator._workers])  # type: ignore[union-attr]
    growth = np.subtract(sizes[-1], sizes[0])  # 120 epochs
    assert (growth < 5).all(), sizes


class Threads(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return {"video": torch.full((3, 1, 1, 1), torch.get_num_threads()), "failures": []}


def test_workers_have_one_thread_and_are_not_forked_from_the_main_process() -> None:
    """A fork would inherit torch's thread pool without its threads."""
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # starts the thread pool
    loader = test_loader(Threads(), range(2), batch_size=1, num_workers=1)
    assert [int(batch["video"][0, 0]) for batch in loader] == [1, 1]
    assert loader.multiprocessing_context.get_start_method() in ("forkserver", "spawn")


SCRIPT = """
import time
import torch
from sparsevideo.data.loader import test_loader

class Blank:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return {"video": torch.zeros(3, 1, 1, 1), "failures": []}

if __name__ == "__main__":
    loader = test_loader(Blank(), range(1000), batch_size=1, num_workers=2)
    batches = iter(loader)
    next(batches)
    print(*(worker.pid for worker in loader._iterator._workers), flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_no_loader_process_outlives_a_killed_run(tmp_path: Path) -> None:
    """Nor does the fork server, their parent process; they would keep each other alive."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True) as process:
        workers = process.stdout.readline().split()
        forks = Path("/proc", workers[0], "stat").read_text().rpartition(")")[2].split()[1]
        process.kill()
    deadline = time.monotonic() + 60
    while left := [pid for pid in (*workers, forks) if Path("/proc", pid).exists()]:
        assert time.monotonic() < deadline, f"{left} live on"
        time.sleep(0.05)
