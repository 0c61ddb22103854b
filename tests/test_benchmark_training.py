"""The reference loop of the training benchmark computes the losses of the engine."""

import sys
from typing import Any

import pytest

from benchmarks import training as tool
from sparsevideo.config import Config


@pytest.mark.skipif(sys.platform != "linux", reason="the tool reads /proc")
@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_bare_loop_has_the_losses_that_a_run_logs(monkeypatch: pytest.MonkeyPatch, ema: float | None) -> None:
    settings = tool._settings

    def small(*args: Any, **kwargs: Any) -> Config:
        config = settings(*args, **kwargs)
        config.train.batch_size, config.train.log_every = 2, 3
        return config

    monkeypatch.setattr(tool, "_settings", small)
    times = tool.loop_times(2, ema)  # compares the losses
    assert [len(steps) for steps in times.values()] == [2, 2]  # the first block is left out
    for step in times["run"] + times["bare"]:
        parts = [step[part] for part in tool.WORK]  # the tool has timed each part
        assert min(parts) > 0
        assert sum(parts) < step["whole"]


def test_what_the_engine_adds_is_the_time_outside_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(work_s: float, whole_s: float) -> dict[str, float]:
        return {part: work_s / len(tool.WORK) for part in tool.WORK} | {"whole": whole_s}

    blocks = {"run": [step(0.098, 0.103), step(0.098, 0.101)], "bare": [step(0.099, 0.1), step(0.099, 0.1)]}
    assert tool.overhead(blocks) == ["102.00", "100.00", "3.00", "3.00 (2.00 to 4.00)", "1.020"]
