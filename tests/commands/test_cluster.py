"""`sparsevideo predict --ray`: a cluster gives the scores of one machine, whatever dies and whatever is broken."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import numpy as np
import pytest

import sparsevideo.commands.cluster
from benchmarks.cluster import find_workers
from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.reports.predictions import load_predictions

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")


def checkpoint(run):
    return str(run / "checkpoints" / "best.pt")


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """A folder with each test video under eight names, and a broken one."""
    folder = tmp_path_factory.mktemp("many")
    for number, video in enumerate(sorted((digits / "videos/test").glob("*/*.mp4"))):
        for copy in range(8):
            (folder / f"{number:02}-{copy}.mp4").symlink_to(video)
    (folder / "07-broken.mp4").write_bytes(video.read_bytes()[:900])
    return folder


def kill_workers(times, out, killed):
    """Kill a worker each time that more files have been scored, as often as asked."""
    end_s, size = monotonic() + 300, 0
    while len(killed) < times and monotonic() < end_s:
        scored = sum(path.stat().st_size for path in out.glob("unfinished/*.rows"))
        alive = [pid for pid in find_workers() if pid not in killed]
        if scored > size and alive:
            size = scored
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])
        sleep(0.05)


@pytest.mark.slow
def test_cluster_gives_the_results_of_one_machine_when_workers_are_killed(
    trained, files, cluster, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(sparsevideo.commands.cluster, "_FILES_PER_TASK", 8)
    command = ["predict", checkpoint(trained), str(files), "--views=4x3", "--topk=2"]
    assert main([*command, f"--out={tmp_path / 'here'}"]) == INCOMPLETE
    expected = capfd.readouterr().out
    killed = []
    killer = Thread(target=kill_workers, args=(3, tmp_path / "ray", killed))
    killer.start()
    assert main([*command, f"--ray={cluster}", "--ray-workers=2", f"--out={tmp_path / 'ray'}"]) == INCOMPLETE
    killer.join()
    assert len({*killed}) == 3
    assert capfd.readouterr().out == expected
    here, there = load_predictions(tmp_path / "here"), load_predictions(tmp_path / "ray")
    assert list(there.names) == list(here.names) == [str(path) for path in sorted(files.iterdir())]
    assert np.abs(there.scores - here.scores).max() < 1e-6
    table = parquet.read_table(tmp_path / "ray/predictions.parquet").to_pylist()
    assert [row["path"] for row in table] == list(here.names)
    broken = table.pop(here.names.index(str(files / "07-broken.mp4")))
    assert (broken["labels"], broken["scores"]) == (None, None) and "does not decode" in broken["error"]
    best = np.delete(here.scores, np.flatnonzero(here.failed), axis=0)
    assert [row["labels"][0] for row in table] == [here.classes[label] for label in best.argmax(1)]
    assert np.allclose([row["scores"][0] for row in table], best.max(1), atol=1e-6)
    assert {row["error"] for row in table} == {None}


@pytest.mark.slow
def test_cluster_knows_files_by_the_paths_of_the_command(trained, files, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    for number, video in enumerate(sorted(files.glob("0[012]-0.mp4"))):
        Path(f"clips/{number}.mp4").symlink_to(video)
    broken = b"caf\xe9.mp4".decode(errors="surrogateescape")
    Path("clips", broken).write_bytes(b"no video")
    # The order of shuffled frames depends on the name of the file.
    command = ["predict", checkpoint(trained), "clips", "--test.frame_order=shuffled", "--views=1x1"]
    for options in (["--out=here"], ["--out=ray", f"--ray={cluster}"]):
        done = subprocess.run([sys.executable, "-m", "sparsevideo", *command, *options], check=False)
        assert done.returncode == INCOMPLETE
    here, there = (json.loads(Path(out, "predictions.json").read_text()) for out in ("here", "ray"))
    assert here["failed"] == there["failed"]
    for one, other in zip(here["predictions"], there["predictions"], strict=True):
        assert one["path"] == other["path"] and one["scores"] == pytest.approx(other["scores"], abs=1e-6)
    assert "does not decode" in parquet.read_table("ray/predictions.parquet")["error"][3].as_py()


@pytest.mark.slow
def test_cluster_goes_on_after_a_file_that_takes_too_long(trained, files, cluster, tmp_path):
    good = sorted(files.glob("0[01]-*.mp4"))
    os.mkfifo(tmp_path / "waits.mp4")  # nobody writes to it
    inputs = [str(good[0]), str(tmp_path / "waits.mp4"), *map(str, good[1:])]
    command = ["predict", checkpoint(trained), *inputs, "--data.timeout_s=4", f"--out={tmp_path / 'out'}"]
    assert main([*command, f"--ray={cluster}"]) == INCOMPLETE
    found = load_predictions(tmp_path / "out")
    assert np.flatnonzero(found.failed).tolist() == [1] and (found.scores[~found.failed].max(1) > 0).all()
    error = parquet.read_table(tmp_path / "out/predictions.parquet")["error"][1].as_py()
    assert error.startswith(f"{tmp_path / 'waits.mp4'}: not read within 4 s")


@pytest.mark.slow
def test_interrupted_prediction_on_a_cluster_is_resumed(trained, files, cluster, tmp_path, caplog):
    out = tmp_path / "out"
    command = ["predict", checkpoint(trained), str(files), "--views=4x3", f"--ray={cluster}", f"--out={out}"]
    started = subprocess.Popen([sys.executable, "-m", "sparsevideo", *command], stderr=subprocess.DEVNULL)
    end_s = monotonic() + 120
    while not any(path.stat().st_size for path in out.glob("unfinished/*.rows")) and monotonic() < end_s:
        sleep(0.05)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    log = logging.getLogger("sparsevideo")
    log.addHandler(caplog.handler)
    assert main(command) == INCOMPLETE
    log.removeHandler(caplog.handler)
    (scored,) = re.findall(r"resuming: (\d+) of 193 files are scored", caplog.text)
    assert 0 < int(scored) < 192 and not (out / "unfinished").exists()
    assert load_predictions(out).failed.sum() == 1


@pytest.mark.slow
def test_errors_of_workers_are_one_line(trained, files, cluster, monkeypatch, capsys):
    command = ["predict", checkpoint(trained), str(files / "00-0.mp4"), f"--ray={cluster}"]
    assert main([*command, "--ray-workers=3"]) == FAILED
    (line,) = errors(capsys)
    assert "the nodes of the cluster have room for 2 workers (for each: CPUs 1, GPUs 0)" in line
    assert main([*command, "--num-workers=2"]) == FAILED  # no node has two CPUs
    assert "have room for 0 workers (for each: CPUs 2, GPUs 0)" in errors(capsys)[0]
    monkeypatch.setattr(sparsevideo.commands.cluster, "sha256", lambda path: "0")
    assert main(command) == FAILED
    (line,) = errors(capsys)
    assert line.endswith("on this node, it is not the checkpoint of the command; copy it to this node")


def test_addresses_without_a_cluster_are_one_line(trained, digits, capsys):
    command = ["predict", checkpoint(trained), str(digits / "videos/test/up")]
    for address, reason in {
        "127.0.0.1:9": "no answer (",
        "ray://127.0.0.1:10001": "it must be HOST:PORT, auto or local",
        "10.0.0.1": "it must be HOST:PORT, auto or local",
    }.items():
        assert main([*command, f"--ray={address}"]) == FAILED
        (line,) = errors(capsys)
        assert address in line and reason in line
    assert main([*command, "--ray-workers=2"]) == USAGE
    assert "add --ray ADDRESS" in errors(capsys)[0]
    assert main([*command, "--ray=local", "--ray-workers=0"]) == USAGE
    assert "--ray-workers must be >= 1, got 0" in errors(capsys)[0]


def test_ray_is_named_if_it_is_missing(trained, digits, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["predict", checkpoint(trained), str(digits / "videos/test/up"), "--ray=local"]) == FAILED
    assert "--ray needs the extra [cluster]" in errors(capsys)[0]
    monkeypatch.undo()
    assert main(["predict", checkpoint(trained), str(digits / "videos/test/up")]) == OK
