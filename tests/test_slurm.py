"""Slurm: the tasks of srun are one run, the job script requeues a saved run, and the tasks of an array are parts."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from toy_runs import VIDEO

from sparsevideo.cli import FAILED, OK, main
from sparsevideo.command_lines import REQUEUE
from sparsevideo.data.loader import train_loader
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.engine.distributed import StopSignal
from sparsevideo.models.weights import read_weights
from sparsevideo.reports.predictions import load_predictions

SCRIPT = Path(__file__).parents[1] / "tools" / "slurm_train.sh"
STEPS = 12
RUN = [*VIDEO, f"--train.max_steps={STEPS}", "--train.log_every=1", "--train.validate_every=0"]


def srun(*argv, nodes=1, on_each=2, job="sparsevideo"):
    """Start tasks like srun. Each task and its children are a process group, which gets signals as a whole.

    They are a step that has only some of its job's nodes.
    """
    tasks = nodes * on_each
    variables = {
        "SLURM_JOB_ID": f"1{free_port() - 15000:04}",  # Fabric derives the port from it
        "SLURM_JOB_NAME": job,
        "SLURM_JOB_NODELIST": "elsewhere[1-8]",
        "SLURM_NODELIST": "elsewhere[1-8]",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": tasks,
        "SLURM_STEP_ID": 3,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_STEP_TASKS_PER_NODE": f"{on_each}(x{nodes})" if nodes > 1 else on_each,
        "OMP_NUM_THREADS": 1,  # results depend on the order of sums
    }
    command = [sys.executable, "-m", "sparsevideo", "train", *map(str, argv)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = []
    for rank in range(tasks):
        own = {"SLURM_PROCID": rank, "SLURM_NODEID": rank // on_each, "SLURM_LOCALID": rank % on_each}
        environment = {**os.environ, **{name: str(value) for name, value in {**variables, **own}.items()}}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **streams))
    return started


def free_port():
    """Return a free port in Fabric's range: 15000 + the last four digits of the job id."""
    for port in range(15000 + os.getpid() % 5000, 25000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("no port is free")


def ends(tasks):
    """Wait for the tasks to end; return exit codes and outputs."""
    try:
        output = [task.communicate(timeout=60)[1] for task in tasks]
    finally:
        for task in tasks:
            with suppress(ProcessLookupError):
                os.killpg(task.pid, signal.SIGKILL)
    return [task.returncode for task in tasks], output


def weights(out):
    return read_weights(out / "checkpoints" / "last.pt")["model"]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """An uninterrupted run of two tasks on one node."""
    out = tmp_path_factory.mktemp("whole") / "run"
    codes, output = ends(srun(*RUN, "--train.batch_size=2", f"--data.root={digits}", f"--out={out}"))
    assert codes == [OK, OK], output
    return out


@pytest.mark.slow
def test_tasks_of_srun_train_like_one_process_with_twice_the_batch(whole, digits, tmp_path):
    assert main(["train", *RUN, "--train.batch_size=4", f"--data.root={digits}", f"--out={tmp_path / 'run'}"]) == OK
    alone = weights(tmp_path / "run")
    assert all(torch.allclose(tensor, alone[name], rtol=1e-5, atol=1e-5) for name, tensor in weights(whole).items())


@pytest.mark.slow
def test_ranks_save_before_the_time_limit_and_the_run_is_resumed(whole, digits, tmp_path):
    """First in a job of salloc, then on two nodes. The loader processes get the signal as well."""
    out = tmp_path / "run"
    args = [*RUN, "--train.batch_size=2", f"--data.root={digits}", f"--out={out}", "--resume"]
    tasks = srun(*args, "--data.num_workers=1", job="interactive")
    metrics, end = out / "metrics.jsonl", monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert monotonic() < end
        assert all(task.poll() is None for task in tasks), ends(tasks)
        sleep(0.02)
    for task in tasks:
        os.killpg(task.pid, signal.SIGUSR1)
    codes, output = ends(tasks)
    assert codes == [REQUEUE, REQUEUE], output
    stands = read_weights(out / "checkpoints" / "last.pt")["step"]
    assert all(f"stopped by SIGUSR1, saved at step {stands}" in text for text in output)
    assert [re.findall(r"GLOBAL_RANK: (\d)", text) for text in output] == [["0"], ["1"]]  # no task has started others
    assert 3 <= stands < STEPS

    codes, output = ends(srun(*args, nodes=2, on_each=1))
    assert codes == [OK, OK], output
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())
    assert metrics.read_bytes() == (whole / "metrics.jsonl").read_bytes()


class Blank:
    def __getitem__(self, key):
        return {"image": torch.zeros(3, 8, 8), "label": 0, "video_index": 0, "video_name": "blank", "failures": []}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_loader_process_ignores_the_stop_signals(number):
    """The rest of the step and a validation still need it."""
    with StopSignal().recorded():
        loader = train_loader(Blank(), EpochSampler(64, 4), num_workers=1)
        batches = iter(loader)
        next(batches)
        os.kill(loader._iterator._workers[0].pid, number)
        for _ in range(40):  # more than are prefetched
            next(batches)
        assert loader._iterator._workers[0].is_alive()


def test_nodes_with_different_numbers_of_tasks_are_refused(monkeypatch, digits, tmp_path, capsys):
    for name, value in {"NUM_TASKS": "4", "NUM_NODES": "2", "TASKS_PER_NODE": "3,1", "NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={tmp_path / 'run'}"]) == FAILED
    assert "srun has started 3,1 tasks on 2 nodes" in capsys.readouterr().err


RUNNING, CANCELLED = "JobState=RUNNING Reason=None", "JobState=COMPLETING Reason=None"
TIME_LIMIT = "JobState=COMPLETING Reason=TimeLimit"


@pytest.fixture
def submit(tmp_path):
    """Run the script with replacements of srun and scontrol that record their arguments."""
    calls = tmp_path / "calls"

    def executable(name, *lines):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        note = f'printf -v call "<%s>" {name} "$@"; echo "$call" >> {calls}'
        path.write_text("\n".join(["#!/bin/bash", note, *lines]))
        path.chmod(0o755)

    def run(code, state, *argv, before="", installed=True, **variables):
        executable("srun", before, f"exit {code}")
        executable("scontrol", f'[[ $1 != show ]] || echo "JobId=7 JobName=sparsevideo {state} Dependency=(null)"')
        if installed:
            executable("sparsevideo")
        environment = {"PATH": str(tmp_path / "bin"), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", **variables}
        done = subprocess.run([SCRIPT, *argv], env=environment, capture_output=True, text=True, timeout=20, check=False)
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        (0, RUNNING, False),
        (1, RUNNING, False),
        (137, RUNNING, False),
        (75, RUNNING, True),
        (75, TIME_LIMIT, True),
        (75, CANCELLED, False),
    ],
)
def test_the_script_requeues_only_a_saved_run_that_is_not_cancelled(code, state, requeued, submit):
    done, calls = submit(code, state, "--out", "run")
    assert done.returncode == code
    assert calls.count("<scontrol><requeue><7>") == requeued
    assert ("submit the same command again" in done.stderr) == (code == 75 and not requeued)


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_the_script_ignores_the_signals_to_its_tasks(name, submit):
    done, calls = submit(75, TIME_LIMIT, before=f"kill -{name} $PPID")
    assert (done.returncode, calls[-1]) == (75, "<scontrol><requeue><7>")


def test_the_script_passes_its_arguments_on(submit):
    before = 'echo "$SRUN_CPUS_PER_TASK CPUs, $OMP_NUM_THREADS threads"'
    done, calls = submit(0, RUNNING, "--out", "a run", "--data.flip_prob=0", before=before, SLURM_CPUS_PER_TASK="6")
    assert calls[0].endswith("<sparsevideo><train><--out><a run><--data.flip_prob=0><--resume>")
    assert "6 CPUs, 6 threads" in done.stdout


def test_the_script_reports_an_inactive_environment(submit):
    done, calls = submit(0, RUNNING, installed=False)
    assert (done.returncode, calls) == (127, [])
    assert "activate" in done.stderr


def test_the_script_refuses_gpus_per_task(submit):
    done, calls = submit(0, RUNNING, SLURM_GPUS_PER_TASK="1")
    assert (done.returncode, calls) == (2, [])
    assert "use --gpus-per-node" in done.stderr


def test_the_script_parses_and_sbatch_reads_all_its_options():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    head = re.match(r"(#.*\n|\n)*", SCRIPT.read_text())[0]  # sbatch stops reading at the first command
    options = re.findall(r"^#SBATCH (.*)$", head, re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=USR1@120"} <= set(options)
    assert SCRIPT.read_text().count("\n#SBATCH") == len(options)


def test_the_tasks_of_an_array_predict_each_file_once(trained, digits, tmp_path):
    script, folder = SCRIPT.with_name("slurm_predict.sh"), digits / "videos/test"
    arguments = ["3", tmp_path / "out", trained / "checkpoints/best.pt", folder, "--views=1x1", "--topk=1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = []
    for task in ("1", "2", "3"):
        environment = {**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": "1"}
        subprocess.run([script, *arguments], env=environment, check=True, capture_output=True)
        found.append(load_predictions(tmp_path / "out" / task).names)
    names = sorted(map(str, folder.glob("*/*.mp4")))
    assert found == [names[0::3], names[1::3], names[2::3]]
    done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False, env={"PATH": path})
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch --array 1-PARTS")
