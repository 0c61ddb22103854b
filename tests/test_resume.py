"""Resuming of runs after a kill, a signal, a corrupt checkpoint or a full disk, in real processes."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from time import monotonic, sleep

import pytest
import torch
from toy_runs import AUGMENTED, VIDEO, one_thread

from sparsevideo.cli import FAILED, OK, main
from sparsevideo.command_lines import REQUEUE
from sparsevideo.engine import checkpoint
from sparsevideo.models.weights import read_weights

STEPS = 16
RUN = [*VIDEO, f"--train.max_steps={STEPS}", "--train.log_every=3", "--train.validate_every=8"]
RUN += ["--train.checkpoint_every=2", "--train.ema=0.9", "--train.accumulate=2", "--train.batch_size=2"]


def start(*argv):
    """Start a run in its own process group, like a step of a cluster job."""
    command = [sys.executable, "-m", "sparsevideo", "train", *map(str, argv)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def finish(*argv):
    """Resume a run to its end in this process, which is faster than starting another."""
    with one_thread():
        assert main(["train", *map(str, argv), "--resume"]) == OK


def wait_for_step(process, out, step):
    """Wait until the log has a line of that step or a later one."""
    end = monotonic() + 180
    while monotonic() < end and process.poll() is None:
        if any(line["step"] >= step for line in logged(out)):
            return
        sleep(0.02)
    raise AssertionError(f"ended before step {step}: {process.stderr.read()}")


def logged(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def assert_same_end(run, whole):
    """Check that weights, average, optimizer, step and logs of two runs are equal."""
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (flat(read_weights(folder / "checkpoints" / name)) for folder in (run, whole))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if not key.endswith(("elapsed_s", "data_s")):
                same = torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
                assert same, (name, key)


def flat(content, prefix=""):
    if not isinstance(content, dict | list | tuple) or not content:
        return {prefix: content}
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    return {name: value for key, each in entries for name, value in flat(each, f"{prefix}.{key}").items()}


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(*RUN, f"--data.root={digits}", f"--out={out}")
    return out


@pytest.fixture(scope="module")
def killed(digits, tmp_path_factory):
    """Folder of a run that was killed between two checkpoints. It has `last.pt` and `previous.pt`."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = start(*RUN, f"--data.root={digits}", f"--out={out}")
    wait_for_step(process, out, 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return out


@pytest.fixture
def interrupted(killed, digits, tmp_path):
    """Command line of a killed run."""
    shutil.copytree(killed, tmp_path / "run")
    return [*RUN, f"--data.root={digits}", f"--out={tmp_path / 'run'}"]


@pytest.mark.slow
def test_a_run_killed_twice_ends_like_an_uninterrupted_one(interrupted, whole, tmp_path):
    """SIGKILL during a step, a validation or a checkpoint. The second try has loader processes."""
    process = start(*interrupted, "--resume", "--data.num_workers=2")
    wait_for_step(process, tmp_path / "run", 9)
    sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(*interrupted)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6, 9, 12])
def test_a_killed_run_with_all_augmentations_ends_like_an_uninterrupted_one(step, digits, tmp_path):
    args = [*RUN, *AUGMENTED, f"--data.root={digits}"]
    process = start(*args, f"--out={tmp_path / 'run'}", "--data.num_workers=1")
    wait_for_step(process, tmp_path / "run", step)
    os.killpg(process.pid, signal.SIGKILL)
    finish(*args, f"--out={tmp_path / 'run'}", "--data.num_workers=2")
    finish(*args, f"--out={tmp_path / 'whole'}", "--data.num_workers=2")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow  # test_slurm.py has the same for two ranks
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_next_step(number, whole, digits, tmp_path):
    """Slurm sends it before the time limit, to the loader processes as well."""
    args = [*RUN, f"--data.root={digits}", f"--out={tmp_path / 'run'}", "--train.checkpoint_every=1000"]
    process = start(*args, "--data.num_workers=2")
    wait_for_step(process, tmp_path / "run", 3)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == REQUEUE, output
    assert f"stopped by {number.name}, saved at step" in output
    stands = read_weights(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    assert 3 <= stands < STEPS
    finish(*args)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_corrupt_checkpoint_is_named_and_the_previous_one_loaded(interrupted, whole, tmp_path, capsys):
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    finish(*interrupted)
    output = capsys.readouterr().err
    assert "last.pt: not a readable weights file" in output
    assert f"resuming from {last.with_name('previous.pt')}" in output
    assert_same_end(tmp_path / "run", whole)


def test_a_run_killed_between_two_renames_resumes_from_the_previous_checkpoint(interrupted, whole, tmp_path):
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    assert main(["train", *interrupted]) == FAILED  # a new run does not replace an old one
    finish(*interrupted)
    assert_same_end(tmp_path / "run", whole)


@pytest.fixture
def small_disk():
    """Make writes of more than 100 kB to a file fail, like on a full disk."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_good_checkpoint(interrupted, tmp_path, small_disk, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    before = {path.name: path.read_bytes() for path in checkpoints.glob("[!.]*")}
    left = set(checkpoints.glob(".*"))  # unfinished files of the killed run
    assert main(["train", *interrupted, "--resume"]) == FAILED
    output = capsys.readouterr().err
    assert re.search(r"(last|best)\.pt: could not be written", output)  # depends on the step of the kill
    assert "the previous checkpoint is complete" in output
    assert {path.name: path.read_bytes() for path in checkpoints.glob("[!.]*")} == before
    assert set(checkpoints.glob(".*")) <= left


def test_resume_refuses_a_changed_schedule_with_both_values_unless_allowed(interrupted, capsys):
    changed = ["--train.max_steps=20", "--train.batch_size=4", "--optim.lr=1e-4"]
    assert main(["train", *interrupted, "--resume", *changed]) == FAILED
    output = capsys.readouterr().err
    assert "train.max_steps 16 -> 20" in output
    assert "global batch 4 (1 x 2 x 2) -> 8 (1 x 2 x 4)" in output
    assert "optim.lr 0.001 -> 0.0001" in output
    assert main(["train", *interrupted, "--resume", *changed, "--allow-changes"]) == OK
    assert "so the result will differ: optim.lr 0.001 -> 0.0001" in capsys.readouterr().err


def test_another_split_of_the_global_batch_is_the_same_run(interrupted, whole, tmp_path, capsys):
    assert main(["train", *interrupted, "--resume", "--train.batch_size=4", "--train.accumulate=1"]) == OK
    assert "the result will differ" not in capsys.readouterr().err
    ours, theirs = (
        [line["loss"] for line in logged(out) if line["split"] == "train"] for out in (tmp_path / "run", whole)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_run_killed_between_two_saves_writes_best_after_resuming(digits, tmp_path, monkeypatch):
    args = [*VIDEO, f"--data.root={digits}", f"--out={tmp_path / 'run'}", "--train.max_steps=1", "--resume"]
    save, saved = checkpoint.save, []

    def killed(path, content, **options):
        if saved:
            raise KeyboardInterrupt
        save(path, content, **options)
        saved.append(path)

    monkeypatch.setattr(checkpoint, "save", killed)
    assert main(["train", *args]) == 130
    monkeypatch.setattr(checkpoint, "save", save)
    assert main(["train", *args]) == OK
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("[!.]*")} == {"best.pt", "last.pt"}
