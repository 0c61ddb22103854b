"""A run that is killed, torn, asked to end or short of disk loses nothing: what is killed is a real process."""

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

from sparsevideo.cli import FAILED, OK, REQUEUE, main
from sparsevideo.engine import checkpoint
from sparsevideo.models.weights import read_weights

STEPS = 16
RUN = [*VIDEO, f"--train.max_steps={STEPS}", "--train.log_every=3", "--train.validate_every=8"]
RUN += ["--train.checkpoint_every=2", "--train.ema=0.9", "--train.accumulate=2", "--train.batch_size=2"]


def start(*argv):
    """A process group of its own, as a cluster's step is."""
    command = [sys.executable, "-m", "sparsevideo", "train", *map(str, argv)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def finish(*argv):
    """Go on to the end, in this process: starting one takes longer than the run."""
    with one_thread():
        assert main(["train", *map(str, argv), "--resume"]) == OK


def wait_for_step(process, out, step):
    """Until the log has a line of that step or a later one."""
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
    """All that a run is: weights, their average, the optimizer, where it stands, what it has logged."""
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
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(*RUN, f"--data.root={digits}", f"--out={out}")
    return out


@pytest.fixture(scope="module")
def killed(digits, tmp_path_factory):
    """The folder of a run that was killed between two checkpoints, with two of them."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = start(*RUN, f"--data.root={digits}", f"--out={out}")
    wait_for_step(process, out, 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return out


@pytest.fixture
def interrupted(killed, digits, tmp_path):
    """The command line of a run that was killed."""
    shutil.copytree(killed, tmp_path / "run")
    return [*RUN, f"--data.root={digits}", f"--out={tmp_path / 'run'}"]


def test_killed_again_and_again_it_ends_as_if_nothing_had_been(interrupted, whole, tmp_path):
    """SIGKILL while a step, a validation or a checkpoint is under way; loader processes in the second try."""
    process = start(*interrupted, "--resume", "--data.num_workers=2")
    wait_for_step(process, tmp_path / "run", 9)
    sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(*interrupted)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6, 9, 12])
def test_killed_with_every_augmentation(step, digits, tmp_path):
    args = [*RUN, *AUGMENTED, f"--data.root={digits}"]
    process = start(*args, f"--out={tmp_path / 'run'}", "--data.num_workers=1")
    wait_for_step(process, tmp_path / "run", step)
    os.killpg(process.pid, signal.SIGKILL)
    finish(*args, f"--out={tmp_path / 'run'}", "--data.num_workers=2")
    finish(*args, f"--out={tmp_path / 'whole'}", "--data.num_workers=2")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow  # test_slurm.py has the same for two ranks
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_next_step_and_asks_to_be_run_again(number, whole, digits, tmp_path):
    """As Slurm sends it before the time is up: to the loader's processes, too."""
    args = [*RUN, f"--data.root={digits}", f"--out={tmp_path / 'run'}", "--train.checkpoint_every=1000"]
    process = start(*args, "--data.num_workers=2")
    wait_for_step(process, tmp_path / "run", 3)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == REQUEUE, said
    assert f"asked to end by {number.name}, saved at step" in said
    stands = read_weights(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    assert 3 <= stands < STEPS
    finish(*args)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_torn_checkpoint_is_told_and_the_one_before_taken(interrupted, whole, tmp_path, capsys):
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    finish(*interrupted)
    said = capsys.readouterr().err
    assert "last.pt: not a readable weights file" in said
    assert f"going on from {last.with_name('previous.pt')}" in said
    assert_same_end(tmp_path / "run", whole)


def test_killed_between_two_renames_the_one_before_is_there(interrupted, whole, tmp_path):
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    assert main(["train", *interrupted]) == FAILED  # no new run over an old one
    finish(*interrupted)
    assert_same_end(tmp_path / "run", whole)


@pytest.fixture
def small_disk():
    """Writing more than 100 kB to a file fails, as on a full disk."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_good_checkpoint(interrupted, tmp_path, small_disk, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    before = {path.name: path.read_bytes() for path in checkpoints.glob("[!.]*")}
    left = set(checkpoints.glob(".*"))  # by the kill
    assert main(["train", *interrupted, "--resume"]) == FAILED
    said = capsys.readouterr().err
    assert re.search(r"(last|best)\.pt: could not be written", said)  # wherever the kill had left it
    assert "what was there before is whole" in said
    assert {path.name: path.read_bytes() for path in checkpoints.glob("[!.]*")} == before
    assert set(checkpoints.glob(".*")) <= left


def test_resume_refuses_a_changed_schedule_with_both_values_unless_allowed(interrupted, capsys):
    changed = ["--train.max_steps=20", "--train.batch_size=4", "--optim.lr=1e-4"]
    assert main(["train", *interrupted, "--resume", *changed]) == FAILED
    said = capsys.readouterr().err
    assert "train.max_steps 16 -> 20" in said
    assert "global batch 4 (1 x 2 x 2) -> 8 (1 x 2 x 4)" in said
    assert "optim.lr 0.001 -> 0.0001" in said
    assert main(["train", *interrupted, "--resume", *changed, "--allow-changes"]) == OK
    assert "so not the same run: optim.lr 0.001 -> 0.0001" in capsys.readouterr().err


def test_the_same_global_batch_split_otherwise_is_the_same_run(interrupted, whole, tmp_path, capsys):
    assert main(["train", *interrupted, "--resume", "--train.batch_size=4", "--train.accumulate=1"]) == OK
    assert "not the same run" not in capsys.readouterr().err
    ours, theirs = (
        [line["loss"] for line in logged(out) if line["split"] == "train"] for out in (tmp_path / "run", whole)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_killed_between_two_saves_the_best_is_there_in_the_end(digits, tmp_path, monkeypatch):
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
