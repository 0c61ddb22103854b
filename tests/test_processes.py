"""Several processes compute the results of one process."""

import json
import os
import shutil
import subprocess
import sys
from time import sleep

import numpy as np
import pytest
import torch
from toy_runs import VIDEO, one_thread

from sparsevideo.cli import OK, main
from sparsevideo.models.weights import load_model, read_weights
from sparsevideo.reports.predictions import load_predictions

SPARSEVIDEO = ["-m", "sparsevideo"]


def torchrun(processes, *argv, wait=True):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if wait:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def one_process(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={out}", "--data.flip_prob=0"]) == OK
    return out


@pytest.fixture(scope="module")
def many(one_process, digits, tmp_path_factory):
    """41 videos, and the results of one process without workers."""
    root = tmp_path_factory.mktemp("many")
    videos = sorted(digits.glob("videos/*/*/*.mp4"))
    for number in range(41):
        folder = root / "videos" / "test" / videos[number % len(videos)].parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos[number % len(videos)], folder / f"{number:03d}.mp4")
    assert main(["test", *test_of(one_process, root), f"--out={root / 'alone'}"]) == OK
    return root


def test_of(run, root):
    return [str(run / "checkpoints" / "last.pt"), f"--data.root={root}", "--views=2x2"]


test_of.__test__ = False


def predict_of(run, root):
    return [str(run / "checkpoints" / "last.pt"), str(root / "videos"), "--views=2x2", "--num-workers=1"]


def assert_same_test(folder, many):
    """Check the metrics, and that the predictions are equal to 1e-6, in the same order."""
    alone, together = (load_predictions(folder) for folder in (many / "alone", folder))
    assert alone.names == together.names and alone.labels.tolist() == together.labels.tolist()
    assert np.abs(alone.scores - together.scores).max() < 1e-6
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (many / "alone", folder))
    assert theirs["listed"] == theirs["scored"] == 41
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {"environment", "time", "loss"}
    assert abs(ours["loss"] - theirs["loss"]) < 1e-6  # rounding depends on the batch size
    return theirs


@pytest.mark.slow
def test_a_corrupt_video_is_listed_on_any_rank(one_process, digits, tmp_path):
    """22 of 23 videos can be read. No process waits forever, and the results of rank 0 are complete."""
    test = tmp_path / "videos" / "test"
    shutil.copytree(digits / "videos" / "test", test)
    (test / "up" / "0001.mp4").write_bytes(b"corrupt")
    (test / "up" / "0002.mp4").unlink()
    args = [one_process / "checkpoints" / "last.pt", f"--data.root={tmp_path}", f"--out={tmp_path / 'results'}"]
    done = torchrun(2, *SPARSEVIDEO, "test", *args)
    assert done.returncode != OK  # torchrun replaces the exit code 3 of rank 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (results["listed"], results["scored"]) == (23, 22)
    assert [failure["name"] for failure in results["failed"]] == ["videos/test/up/0001.mp4"]
    assert len(np.load(tmp_path / "results" / "predictions.npz")["scores"]) == 23


@pytest.mark.slow
def test_ranks_count_a_corrupt_video_once(digits, tmp_path):
    """1 of 48 files is less than 3 %, though both ranks read it. Resuming with another global batch is refused."""
    shutil.copytree(digits / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "train" / "up" / "0001.mp4").write_bytes(b"corrupt")
    args = [*VIDEO, f"--data.root={tmp_path}", f"--out={tmp_path / 'run'}", "--data.max_bad_fraction=0.03"]
    args += ["--train.validate_every=0", "--train.batch_size=6"]
    done = torchrun(2, *SPARSEVIDEO, "train", *args, "--train.max_steps=16")  # four epochs
    assert done.returncode == OK, done.stderr[-3000:]
    assert "could not read videos/train/up/0001.mp4" in done.stderr
    done = torchrun(1, *SPARSEVIDEO, "train", *args, "--train.max_steps=18", "--resume")
    assert "global batch 12 (2 x 1 x 6) -> 6 (1 x 1 x 6)" in done.stderr


CURVE = [*VIDEO, "--data.flip_prob=0", "--train.max_steps=20", "--train.log_every=1", "--train.validate_every=10"]
CURVE += ["--train.ema=0.9"]
GLOBAL_BATCH = 12


def curve_of(strategy, processes, accumulate):
    batch_size = GLOBAL_BATCH // processes // accumulate
    split = [f"--train.strategy={strategy}", f"--train.batch_size={batch_size}", f"--train.accumulate={accumulate}"]
    return ["train", *CURVE, *split]


@pytest.fixture(scope="module")
def two_ranks(one_process, many, digits, tmp_path_factory):
    """Folder with the results of several commands of two ranks, which are started once because that is slow."""
    out = tmp_path_factory.mktemp("two")
    commands = [
        ["test", *test_of(one_process, many), f"--out={out / 'test'}", "--data.num_workers=2"],
        ["predict", *predict_of(one_process, many), f"--out={out / 'predict'}", f"--save-video={out / 'copies'}"],
        [*curve_of("ddp", 2, 1), f"--data.root={digits}", f"--out={out / 'train'}"],
        ["train", *VIDEO, f"--data.root={out / 'nowhere'}", f"--out={out / 'bad'}"],
    ]
    script = ["import sys", "from sparsevideo.cli import main", "if __name__ == '__main__':"]
    script += [f"    assert main({argv}) == {OK}" for argv in commands[:-1]] + [f"    sys.exit(main({commands[-1]}))"]
    (out / "ranks.py").write_text("\n".join(script))
    done = torchrun(2, out / "ranks.py")
    (out / "stderr").write_text(done.stderr)
    (out / "code").write_text(str(done.returncode))
    return out


def test_bad_input_ends_all_ranks(two_ranks):
    output = (two_ranks / "stderr").read_text()
    assert "AssertionError" not in output, output[-3000:]  # all commands but the last one succeed
    assert (two_ranks / "code").read_text() != str(OK)
    assert "nowhere: no such folder" in output


def test_two_processes_predict_what_the_test_of_one_scores(two_ranks, many):
    alone, together = (load_predictions(folder) for folder in (many / "alone", two_ranks / "predict"))
    assert [str(many / name) for name in alone.names] == together.names
    assert np.abs(alone.scores - together.scores).max() < 1e-6
    assert len(list((two_ranks / "copies").rglob("*.mp4"))) == 41


def test_two_processes_with_loader_processes_give_the_same_scores(two_ranks, many):
    """The ranks have different numbers of files, without padding."""
    assert assert_same_test(two_ranks / "test", many)["environment"]["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (3, 0), (3, 2)])
def test_scores_do_not_depend_on_processes_and_workers(processes, workers, one_process, many, tmp_path):
    options = [*test_of(one_process, many), f"--out={tmp_path}", f"--data.num_workers={workers}"]
    done = torchrun(processes, *SPARSEVIDEO, "test", *options)
    assert done.returncode == OK, done.stderr[-3000:]
    assert assert_same_test(tmp_path, many)["environment"]["world_size"] == processes


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pkill") is None, reason="no pkill here, which ends torchrun and its ranks at once")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (3, 2), (2, 3)])
def test_a_killed_test_is_resumed_by_another_number_of_processes(before, after, one_process, many, tmp_path):
    options = [*test_of(one_process, many), f"--out={tmp_path}", "--test.batch_size=1"]
    process = torchrun(before, *SPARSEVIDEO, "test", *options, wait=False)
    while sum(path.stat().st_size for path in tmp_path.glob("unfinished/*.rows")) < 500:
        assert process.poll() is None, process.stderr.read()
        sleep(0.005)
    subprocess.run(["pkill", "-KILL", "-f", f"out={tmp_path}"], check=True)  # torchrun and its ranks
    process.wait()
    assert not (tmp_path / "results.json").exists()
    done = torchrun(after, *SPARSEVIDEO, "test", *options)
    assert done.returncode == OK, done.stderr[-3000:]
    assert "resuming: " in done.stderr
    assert_same_test(tmp_path, many)


@pytest.fixture(scope="module")
def curve(digits, tmp_path_factory):
    """Run of twenty steps of one process."""
    out = tmp_path_factory.mktemp("curve") / "run"
    with one_thread():
        assert main([*curve_of("auto", 1, 1), f"--data.root={digits}", f"--out={out}"]) == OK
    return out


def assert_same_curve(run, curve):
    """Check that losses, gradient norms and validation scores are equal to 1e-5, and the averaged weights to 1e-4."""
    ours, theirs = ([json.loads(line) for line in (out / "metrics.jsonl").open()] for out in (run, curve))
    assert len(ours) == len(theirs) == 22
    for line, expected in zip(ours, theirs, strict=True):
        assert line.pop("split") == expected.pop("split")
        assert line == pytest.approx(expected, rel=1e-5)
    last = read_weights(run / "checkpoints" / "last.pt")
    for name, tensor in read_weights(curve / "checkpoints" / "last.pt")["model_ema"].items():
        assert torch.allclose(last["model_ema"][name], tensor, rtol=1e-4, atol=1e-6), name


def test_two_processes_train_like_one(two_ranks, curve):
    assert_same_curve(two_ranks / "train", curve)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 3), (3, 1), (3, 2)])
def test_ddp_and_fsdp_train_any_split_of_the_global_batch_as_one_process(
    strategy, processes, accumulate, curve, digits, tmp_path
):
    args = [*curve_of(strategy, processes, accumulate), f"--data.root={digits}", f"--out={tmp_path / 'run'}"]
    done = torchrun(processes, *SPARSEVIDEO, *args)
    assert done.returncode == OK, done.stderr[-3000:]
    assert_same_curve(tmp_path / "run", curve)


@pytest.mark.slow
def test_fsdp_shards_are_merged_on_request_and_resumed_by_one_process(curve, digits, tmp_path, capsys):
    """A signal stops two ranks with FSDP. One process without FSDP resumes the run."""
    out = tmp_path / "run"
    args = [*CURVE, f"--data.root={digits}", f"--out={out}", "--train.batch_size=6", "--train.strategy=fsdp"]
    process = torchrun(2, *SPARSEVIDEO, "train", *args, wait=False)
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 5:
        assert process.poll() is None, process.stderr.read()
        sleep(0.05)
    process.terminate()  # torchrun forwards the signal
    assert "saved at step" in process.communicate(timeout=60)[1]
    last = out / "checkpoints" / "last.pt"
    assert last.is_dir()
    assert main(["convert", str(last), f"--out={tmp_path / 'whole.safetensors'}"]) == OK
    assert "averaged weights, 0.0" in capsys.readouterr().out
    _, content = load_model(tmp_path / "whole.safetensors")
    averaged = read_weights(last)["model_ema"]
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in content["model"].items())
    assert main(["train", *CURVE, f"--data.root={digits}", f"--out={out}", "--train.batch_size=12", "--resume"]) == OK
    assert_same_curve(out, curve)
