"""Training with drawn budgets: all processes, batches and resumed runs draw the same values."""

import json
import shutil
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from test_cli import assert_equal_weights, interrupted_and_resumed
from test_processes import SPARSEVIDEO, torchrun
from toy_runs import IMAGE, VIDEO

from sparsevideo.cli import OK, main
from sparsevideo.config import Config
from sparsevideo.engine.train import forward_backward
from sparsevideo.models.elastic import ElasticSparseFormer, with_budget
from sparsevideo.models.weights import load_model, read_weights

BUDGETS = {"num_tubes": [1, 4, 6], "num_frames": [2, 4], "num_points": [2, 3, 4]}
DRAWN = [*VIDEO, *(f"--train.{name}={counts}" for name, counts in BUDGETS.items())]
CURVE = [*DRAWN, "--data.flip_prob=0", "--train.max_steps=8", "--train.log_every=1", "--train.validate_every=0"]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_draw_the_values_of_one_process(digits, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    args = [*CURVE, f"--data.root={digits}"]
    assert main(["train", *args, f"--out={alone}", "--train.batch_size=8"]) == OK
    done = torchrun(
        2, *SPARSEVIDEO, "train", *args, f"--out={together}", "--train.batch_size=2", "--train.accumulate=2"
    )
    assert done.returncode == OK, done.stderr[-3000:]
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)


def test_a_resumed_run_draws_the_values_of_an_uninterrupted_run(digits, tmp_path, capsys):
    """With drop path and activation checkpointing. The log names the values; the checkpoint has the whole network."""
    args = [*DRAWN, f"--data.root={digits}", "--model.args.drop_path=0.2", "--model.args.activation_checkpointing=true"]
    assert main(["train", *args, f"--out={tmp_path / 'whole'}"]) == OK
    message = "drawn in each step: num_tubes from 1, 4, 6; num_frames from 2, 4; num_points from 2, 3, 4"
    assert message in capsys.readouterr().err
    resumed = interrupted_and_resumed(args, tmp_path / "resumed")
    assert_equal_weights(resumed, read_weights(tmp_path / "whole" / "checkpoints" / "last.pt")["model"])
    model, _ = load_model(tmp_path / "whole" / "checkpoints" / "best.pt")
    assert (model.num_tubes, model.hparams["num_points"]) == (4, 4)
    with_budget(model, num_tubes=6, num_points=2)
    assert main(["train", *args, f"--out={tmp_path / 'whole'}", "--resume", "--train.num_tubes=[1]"]) == OK
    assert "train.num_tubes [1, 4, 6] -> [1]" in capsys.readouterr().err


class Recorder(torch.nn.Module):
    """Network that records its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls = []

    def forward(self, x, **budget):
        self.calls.append((x[0, 0, :, 0, 0].tolist(), budget))
        return self.weight * x.mean((2, 3, 4))


def called(budgets, seed, accumulate=2):
    """Return the inputs of the network in one step, for clips with numbered frames."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model = Recorder()
    config = Config()
    config.train.seed, config.train.accumulate, config.train.label_smoothing = seed[0], accumulate, 0.0
    state = SimpleNamespace(
        config=config, fabric=fabric, model=fabric.setup_module(model), step=seed[1], budgets=budgets
    )
    clip = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(2, 3, -1, 4, 4)
    batches = ({"video_name": [], "failures": []} for _ in count())
    forward_backward(state, batches, lambda batch: (clip, torch.tensor([0, 1])))
    return model.calls


def test_draws_are_independent_and_even():
    budgets = {"num_tubes": [1, 2], "num_frames": [2, 8], "num_points": [4, 9]}
    counts = {}
    for step in range(160):
        first, second = called(budgets, (0, step))
        assert first == second
        key = (*first[1].values(), len(first[0]))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 8 and min(counts.values()) > 5  # 20 are expected, with a deviation of 4.2
    assert [called(budgets, (1, step)) for step in range(20)] != [called(budgets, (0, step)) for step in range(20)]


@pytest.mark.parametrize("frames", [1, 2, 4, 8])
def test_fewer_frames_are_evenly_spaced_from_the_first_frame(frames):
    (call,) = called({"num_frames": [frames]}, (0, 0), accumulate=1)
    assert call == (list(range(0, 8, 8 // frames)), {})


def test_without_budgets_the_network_is_not_wrapped(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ElasticSparseFormer, "__init__", lambda *_, **__: pytest.fail("wrapped"))
    args = ["train", *VIDEO, f"--data.root={digits}", "--train.validate_every=0"]
    assert main([*args, f"--out={tmp_path / 'none'}"]) == OK
    assert "drawn" not in capsys.readouterr().err
    assert main([*args, f"--out={tmp_path / 'frames'}", "--train.num_frames=[2]", "--train.strategy=fsdp"]) == OK


@pytest.fixture
def calls(monkeypatch):
    """Frames and budget of each call of the network in training."""
    calls, forward = [], ElasticSparseFormer.forward

    def noted(self, x, **budget):
        calls.append((x.shape[2], budget))
        return forward(self, x, **budget)

    monkeypatch.setattr(ElasticSparseFormer, "forward", noted)
    return calls


def test_a_run_draws_in_each_step(calls, digits, tmp_path):
    args = [*CURVE, f"--data.root={digits}", "--train.accumulate=2", "--train.batch_size=2"]
    assert main(["train", *args, f"--out={tmp_path}"]) == OK
    steps = calls[::2]
    assert len(steps) == 8 and steps == calls[1::2]
    assert {frames for frames, _ in steps} == {2, 4}
    for name in ("num_tubes", "num_points"):
        drawn = {budget[name] for _, budget in steps}
        assert len(drawn) > 1 and drawn <= set(BUDGETS[name])


def test_a_dry_run_takes_the_largest_budget(calls, digits, capsys):
    assert main(["train", *DRAWN, f"--data.root={digits}", "--dry-run"]) == OK
    assert calls == [(4, {"num_tubes": 6, "num_points": 4})]
    assert "drawn in each step: num_tubes from 1, 4, 6" in capsys.readouterr().out


def test_an_image_network_draws_points(digits, tmp_path):
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={tmp_path}", "--train.num_points=[2,4]"]) == OK


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (IMAGE, "num_tubes=[1]", "sparseformer_nano is an image model; only num_points can be drawn"),
        (IMAGE, "num_frames=[1]", "sparseformer_nano is an image model; only num_points can be drawn"),
        (VIDEO, "num_frames=[2,3]", "each must divide data.num_frames, 4"),
        (VIDEO, "num_points=[2,5]", "each must be at most 4, the num_points of the network"),
        (VIDEO, "num_points=[1,2]", "each must be at least 2"),
        (VIDEO, "num_tubes=[0]", "each must be at least 1"),
        (VIDEO, "num_frames=[0]", "each must be at least 1"),
        ([*VIDEO, "--train.strategy=fsdp"], "num_points=[2]", "which is not possible with train.strategy fsdp"),
        ([*VIDEO, "--train.strategy=fsdp"], "num_tubes=[2]", "which is not possible with train.strategy fsdp"),
    ],
)
def test_wrong_budgets_are_refused_before_the_first_step(kind, setting, message, digits, tmp_path, capsys):
    assert main(["train", *kind, f"--data.root={digits}", f"--out={tmp_path}", f"--train.{setting}"]) != OK
    output = capsys.readouterr().err
    assert message in output
    name, _, counts = setting.partition("=")
    assert f"train.{name} is {counts.replace(',', ', ')}" in output
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_compiled_networks_with_several_budgets_have_the_same_losses(digits, tmp_path):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler")
    args = ["train", *CURVE, f"--data.root={digits}", "--train.num_tubes=[]", "--train.num_points=[2,4]"]
    for compiled in ("false", "true"):
        assert main([*args, f"--out={tmp_path / compiled}", f"--train.compile={compiled}"]) == OK
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-4)
