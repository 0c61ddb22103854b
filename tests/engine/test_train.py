"""The training loop warns of waiting for data, and stops if too many files are unreadable."""

import logging
from itertools import repeat
from time import sleep

import pytest
import torch
from lightning_fabric import Fabric

from sparsevideo.config import Config
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.engine.distributed import StopSignal
from sparsevideo.engine.optim import adamw, warmup_cosine
from sparsevideo.engine.run_log import RunLog
from sparsevideo.engine.state import BadFiles, TrainState
from sparsevideo.engine.train import train

BATCH = {"video_name": ["a", "b"], "failures": []}


def run(batches, tmp_path, *, steps=8, log_every=4):
    fabric = Fabric(accelerator="cpu", devices=1)
    config = Config()
    config.train.log_every = log_every
    network = torch.nn.Linear(2, 3)
    network.hparams = {}
    optimizer = adamw(network, lr=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    state = TrainState(
        config=config,
        fabric=fabric,
        classes=["a", "b", "c"],
        network=network,
        model=fabric.setup_module(network),
        optimizer=fabric.setup_optimizers(optimizer),
        schedule=warmup_cosine(steps, lr=0.1, min_lr=0.0, warmup_lr=0.0, warmup_ratio=0.0),
        sampler=EpochSampler(2 * steps, 2),
        total_steps=steps,
        bad_files=BadFiles(10, 0.1),
    )

    def preprocess(batch):
        sleep(0.01)  # time of a step
        return torch.ones(2, 2), torch.tensor([0, 1])

    train(
        state,
        batches,
        preprocess=preprocess,
        validate=None,
        checkpoints=tmp_path,
        log=RunLog(None),
        stop=StopSignal(),
    )


def waiting(*seconds):
    for pause in seconds:
        sleep(pause)
        yield BATCH


@pytest.mark.parametrize(
    ("pauses", "num_warnings"),
    [
        ((0.1,) * 8, 1),  # in both lines of the log, warned of once
        ((0.0,) * 8, 0),
        ((0.5,) + (0.0,) * 7, 0),  # the start of the loader processes
        ((0.0,) * 4 + (0.1,) * 4, 1),
    ],
)
def test_much_waiting_for_data_is_warned_of_once(pauses, num_warnings, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "sparsevideo"):
        run(waiting(*pauses), tmp_path)
    advice = [line for line in caplog.messages if "of the time is spent waiting for data" in line]
    assert len(advice) == num_warnings
    assert all("data.num_workers" in line for line in advice)


def test_one_process_stops_in_the_step_in_which_too_many_files_have_failed(tmp_path):
    steps_read = []

    def failing():
        for number, batch in enumerate(repeat(BATCH)):
            steps_read.append(number)
            yield {**batch, "failures": [(number, f"{number}.mp4", "corrupt")]}

    with pytest.raises(ValueError, match=r"2 of 10 files could not be read, the last one 1\.mp4: corrupt"):
        run(failing(), tmp_path)
    assert steps_read == [0, 1]
