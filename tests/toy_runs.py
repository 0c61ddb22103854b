"""Command lines of four-step runs with a tiny network, and processes for them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

NANO = {"focus_dim": 32, "cortex_dim": 32, "cortex_depth": 2, "num_tokens": 4, "num_points": 4, "stem_channels": 8}
NANO_ARGS = [f"--model.args.{name}={value}" for name, value in {**NANO, "num_heads": 4, "focus_repeats": 2}.items()]
QUICK = [*NANO_ARGS, "--data.num_workers=0", "--data.size=32", "--train.max_steps=4", "--train.batch_size=4"]
VIDEO = ["--config", "configs/quickstart/video_nano.yaml", *QUICK, "--data.num_frames=4"]
IMAGE = ["--config", "quickstart/image_nano.yaml", *QUICK]
AUGMENTED = ["--data.short_side_jitter=[40,64]", "--data.rand_augment=9", "--data.color_jitter=[0.4,0.4,0.4,0.1]"]
AUGMENTED += ["--data.erase_prob=0.5", "--data.mixup=0.8", "--data.cutmix=1.0", "--data.num_repeats=2"]


@contextmanager
def one_thread():
    """Use one thread, like a process with OMP_NUM_THREADS=1, because results depend on the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interruptible(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process that can be interrupted even from the background; end its process group afterwards."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, **pipes, **heed, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
