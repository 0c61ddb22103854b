"""The bare loop of the training benchmark trains as the engine does."""

import sys
from typing import Any

import pytest

from benchmarks import training as tool
from sparsevideo.config import Config


@pytest.mark.skipif(sys.platform != "linux", reason="the tool reads /proc")
@pytest.mark.parametrize("ema", [None, 0.9])
def test_bare_loop_has_the_losses_that_a_run_logs(monkeypatch: pytest.MonkeyPatch, ema: float | None) -> None:
    load_config = tool.load_config

    def small(*args: Any, **kwargs: Any) -> Config:
        config = load_config(*args, **kwargs)
        config.train.batch_size, config.train.log_every = 2, 3
        return config

    monkeypatch.setattr(tool, "load_config", small)
    times = tool.loop_times(2, ema)  # compares the losses
    assert [len(steps) for steps in times.values()] == [2, 2]  # the first block is left out
    for step in times["run"] + times["bare"]:
        parts = [step[part] for part in tool.WORK]  # each part is the function that the tool patches
        assert min(parts) > 0
        assert sum(parts) < step["whole"]


def test_overhead_is_the_time_outside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(work_s: float, whole_s: float) -> dict[str, float]:
        return {part: work_s / len(tool.WORK) for part in tool.WORK} | {"whole": whole_s}

    blocks = {"run": [step(0.098, 0.103), step(0.098, 0.101)], "bare": [step(0.099, 0.1), step(0.099, 0.1)]}
    assert tool.overhead(blocks) == ["102.00", "100.00", "3.00", "3.00 (2.00 to 4.00)", "1.020"]
