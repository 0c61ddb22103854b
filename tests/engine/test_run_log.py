"""The log of a run folder is complete after a killed run and repeats no line."""

import json
import logging

import pytest

from sparsevideo.engine.run_log import Meter, RunLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(loss):
    return {"loss": loss, "top1": 50.0, "top5": 100.0}


def test_resuming_deletes_lines_after_the_step_and_an_incomplete_line(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.validation(step, 0.0, scores(1.0 / step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "val", "st')
    with RunLog(tmp_path, start_step=20) as log:
        log.validation(30, 0.0, scores(5.0))
    logged = lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in logged] == [(10, 0.1), (20, 0.05), (30, 5.0)]


def test_other_ranks_write_nothing(tmp_path):
    with RunLog(None) as log:
        log.validation(1, 0.0, scores(1.0))
    assert not list(tmp_path.iterdir())


def test_an_error_ends_up_in_the_text_log(tmp_path):
    with pytest.raises(ValueError, match="boom"), RunLog(tmp_path):
        logging.getLogger("sparsevideo.engine.train").info("a step")
        raise ValueError("boom")
    text = (tmp_path / "log.txt").read_text()
    assert "a step" in text
    assert "stopped by ValueError: boom" in text


def test_meter_averages_since_the_last_pop():
    meter = Meter()
    meter.add(loss=1.0)
    meter.add(loss=3.0)
    assert meter.pop_means()["loss"] == 2.0
    meter.add(loss=7.0)
    assert meter.pop_means()["loss"] == 7.0
