"""Commands of the command line, and their messages and exit codes for wrong input."""

import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
import torch._inductor.config
import yaml
from toy_runs import AUGMENTED, IMAGE, VIDEO

import sparsevideo
from sparsevideo.cli import _MEMORY_ADVICE, FAILED, OK, USAGE, _error_message, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.commands import runs
from sparsevideo.config import TEST_PROTOCOLS
from sparsevideo.models.create import create_model
from sparsevideo.models.weights import load_model, read_weights
from sparsevideo.parser import _OTHER_NAMES, _SECTIONS
from sparsevideo.reports.predictions import load_predictions


def error(capsys):
    """Return the error line of a failed command, without the lines of its log."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_is_complete(trained):
    assert {path.name for path in trained.iterdir()} >= {"config.yaml", "environment.json", "metrics.jsonl", "log.txt"}
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [("train", 4), ("val", 4)]
    for name in ("last", "best"):
        checkpoint = torch.load(trained / "checkpoints" / f"{name}.pt", weights_only=True)
        assert checkpoint["classes"][:2] == ["clockwise", "counter-clockwise"]
        assert checkpoint["step"] == 4
        assert "token_roi" in checkpoint["model"]


def test_the_resolved_config_runs_again_and_gives_the_same_weights(trained, digits, tmp_path):
    assert main(["train", "--config", str(trained / "config.yaml"), f"--out={tmp_path / 'again'}"]) == OK
    first, second = (read_weights(run / "checkpoints" / "last.pt") for run in (trained, tmp_path / "again"))
    assert first["config"] == second["config"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


def test_training_without_a_validation_split_is_logged(digits, tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    for split in ("train", "test"):
        (root / split).symlink_to(digits / "videos" / split)
    args = ["train", *VIDEO, f"--data.root={root}", "--data.list={split}", "--train.max_steps=1"]
    assert main([*args, f"--out={tmp_path / 'run'}", "--train.validate_every=null"]) == OK
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no validation" in line]
    assert line.startswith(f"{root / 'val'}: no such folder or list file")
    assert {line["split"] for line in metrics(tmp_path / "run")} == {"train"}
    assert (tmp_path / "run" / "checkpoints" / "best.pt").exists()
    # If the settings ask for validation, its absence is an error.
    assert main([*args, f"--out={tmp_path / 'second'}", "--train.validate_every=1"]) == FAILED
    line = error(capsys)
    assert f"{root / 'val'}: no such folder" in line and "train.validate_every 0" in line
    # If they turn validation off, there is no warning.
    assert main([*args, "--dry-run", "--train.validate_every=0"]) == OK
    assert "no validation" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.empty(1 << 50), "out of memory ([enforce fail"),
        (lambda: np.zeros((1 << 50,)), "out of memory (Unable to allocate"),
        (lambda: bytearray(1 << 60), "out of memory (MemoryError"),
    ],
    ids=["torch", "numpy", "python"],
)
@pytest.mark.parametrize(
    ("command", "advice"),
    [("train", "lower train.batch_size"), ("test", "lower test.batch_size"), ("probe", "close other programs")],
)
def test_too_little_memory_is_one_line_with_advice(make, message, command, advice):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make()
    line = _error_message(caught.value, command)
    assert message in line and advice in line and "\n" not in line


def test_the_settings_of_the_advice_exist():
    settings = {f"{section}.{name}" for section, values in _SECTIONS.items() for name in vars(values)}
    named = set(re.findall(r"\b(?:train|test|data|model)\.[\w.]+\b", " ".join(_MEMORY_ADVICE.values())))
    assert named - settings == {"model.args.activation_checkpointing"}
    assert "activation_checkpointing" in create_model("video_sparseformer_nano").hparams


def test_a_batch_that_does_not_fit_ends_without_a_traceback(digits, tmp_path, capsys, monkeypatch):
    """The allocation is real and larger than the memory of any machine."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: torch.empty(1 << 50))
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={tmp_path / 'run'}"]) == FAILED
    assert "out of memory" in error(capsys)


@pytest.mark.slow
def test_compiling_without_a_compiler_is_an_error_with_advice(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    args = ["train", *VIDEO, f"--data.root={digits}", "--data.num_frames=1", "--train.compile=true", "--dry-run"]
    args += ["--model.args.cortex_depth=1", "--model.args.focus_repeats=1"]  # faster to trace
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):  # like the variable CXX
        assert main(args) == FAILED
    torch._dynamo.reset()
    output = capsys.readouterr().err
    line = output.splitlines()[-1]
    assert line.startswith("error: torch.compile failed (") and "set train.compile false" in line
    assert "Traceback" not in output


def interrupted_and_resumed(args, out):
    """Train, interrupt the run in the third step, resume it, and return the final weights."""
    args = ["train", *args, f"--out={out}", "--train.checkpoint_every=1"]
    killed = torch.Tensor.backward

    def interrupt(self, *rest, **named):
        killed(self, *rest, **named)
        interrupt.steps += 1
        if interrupt.steps == 3:
            raise KeyboardInterrupt

    interrupt.steps = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", interrupt)
        assert main(args) == 130
    assert read_weights(out / "checkpoints" / "last.pt")["step"] == 2
    assert main([*args, "--resume"]) == OK
    return read_weights(out / "checkpoints" / "last.pt")["model"]


def assert_equal_weights(ours, theirs):
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name


def test_resumed_run_ends_as_an_uninterrupted_one(trained, digits, tmp_path):
    resumed = interrupted_and_resumed([*VIDEO, f"--data.root={digits}"], tmp_path / "resumed")
    assert_equal_weights(resumed, read_weights(trained / "checkpoints" / "last.pt")["model"])


@pytest.mark.parametrize("kind", [VIDEO, IMAGE], ids=["video", "image"])
def test_a_resumed_run_with_all_augmentations_and_loader_processes_is_the_same(kind, digits, tmp_path):
    """All random choices are functions of the seed and the step, in any process."""
    args = [*kind, f"--data.root={digits}", *AUGMENTED, "--train.validate_every=0"]
    assert main(["train", *args, f"--out={tmp_path / 'whole'}"]) == OK
    resumed = interrupted_and_resumed([*args, "--data.num_workers=2"], tmp_path / "resumed")
    assert_equal_weights(resumed, read_weights(tmp_path / "whole" / "checkpoints" / "last.pt")["model"])


def test_a_dry_run_describes_the_run_and_writes_nothing(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry = ["train", *VIDEO, f"--data.root={digits}", "--optim.lr_base_size=64", "--optim.layer_decay=0.5"]
    assert main([*dry, "--train.accumulate=3", "--dry-run"]) == OK
    output = capsys.readouterr().out
    assert "global batch 12 = 1 x 3 x 4 (processes x accumulate x batch_size); 4 steps, 4 an epoch" in output
    assert "learning rate 0.000188 = 0.001 x global batch 12 / 64" in output
    assert "a batch of one process: (4, 3, 4, 32, 32) torch.uint8" in output
    assert "a validation batch: scores (8, 8)" in output
    assert "learning rate x 0.125, weight decay 0.05" in output  # three layers below the head
    assert list(tmp_path.iterdir()) == []
    assert main(["train", *VIDEO, f"--data.root={digits}"]) == USAGE
    assert "--out is missing" in error(capsys)


def test_a_step_without_a_finite_loss_is_not_taken_and_names_the_files(digits, tmp_path, capsys):
    """The learning rate of the first step is far too high, so the loss of the second step is not finite."""
    args = ["train", *VIDEO, f"--data.root={digits}", f"--out={tmp_path}", "--optim.lr=1e30", "--optim.warmup_lr=1e30"]
    assert main([*args, "--train.checkpoint_every=1"]) == FAILED
    output = error(capsys)
    assert re.search(r"step [123], learning rate \S+: the loss is not finite \(loss nan", output)
    assert output.count("videos/train/") == 4
    last = read_weights(tmp_path / "checkpoints" / "last.pt")
    assert all(torch.isfinite(tensor).all() for tensor in last["model"].values())


def test_ema_is_validated_tested_and_kept_as_the_best(digits, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={out}", "--train.ema=0.9", "--optim.lr=0.1"]) == OK
    best, last = (read_weights(out / "checkpoints" / name) for name in ("best.pt", "last.pt"))
    assert_equal_weights(best["model"], last["model_ema"])
    assert not torch.equal(last["model"]["head.weight"], last["model_ema"]["head.weight"])
    assert_equal_weights(load_model(out / "checkpoints" / "last.pt")[0].state_dict(), last["model_ema"])


def test_frozen_parts_keep_their_weights(trained, digits, tmp_path):
    start = trained / "checkpoints" / "last.pt"
    args = ["train", *VIDEO, f"--data.root={digits}", f"--out={tmp_path}", f"--model.weights={start}"]
    assert main([*args, "--optim.train_only=[norm, head]", "--train.ema=0.5"]) == OK
    before, after = (read_weights(path)["model"] for path in (start, tmp_path / "checkpoints" / "last.pt"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_training_overfits_eight_clips_in_fifty_steps(digits, tmp_path):
    (tmp_path / "eight.csv").write_text(
        "".join(f"{sorted(folder.iterdir())[0]},{folder.name}\n" for folder in (digits / "videos" / "train").iterdir())
    )
    args = ["--config", "quickstart/video_nano.yaml", f"--data.root={tmp_path}", "--data.list=eight.csv"]
    args += ["--data.num_workers=0", "--data.flip_prob=0", "--data.crop_scale=[1,1]", "--data.crop_ratio=[1,1]"]
    args += ["--model.args.cortex_depth=2", "--model.args.focus_repeats=2"]
    args += ["--train.batch_size=8", "--train.max_steps=50", "--train.log_every=8", "--optim.lr=2e-3"]
    assert main(["train", *args, f"--out={tmp_path / 'run'}"]) == OK
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["top1"] == 100


@pytest.mark.slow
def test_a_compiled_network_has_the_same_losses(digits, tmp_path):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler")
    args = ["train", *VIDEO, f"--data.root={digits}", "--data.flip_prob=0"]
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        assert main([*args, f"--out={tmp_path / name}", f"--train.compile={compiled}", "--train.log_every=1"]) == OK
    plain, compiled = (
        [json.loads(line).get("loss", 0.0) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_wandb_that_is_not_installed_is_named(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={tmp_path}", "--train.wandb=project"]) == FAILED
    assert "pip install wandb" in error(capsys)


def test_wandb_gets_the_logged_values_and_a_resumed_run_has_the_same_id(digits, tmp_path):
    """In offline mode and separate processes. W&B writes a file for `wandb sync`."""
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    command = [
        sys.executable,
        "-m",
        "sparsevideo",
        "train",
        *VIDEO,
        f"--data.root={digits}",
        f"--out={tmp_path / 'run'}",
    ]
    command += ["--train.wandb=digits", "--train.log_every=2"]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    for more in ([], ["--resume", "--train.max_steps=8", "--allow-changes"]):
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == OK, done.stderr
    folders = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1  # one id
    for folder in folders:
        (sent,) = folder.glob("*.wandb")
        assert all(name in sent.read_bytes() for name in (b"train/loss", b"val/top1", b"speed/iter_s"))


def test_a_run_folder_is_not_overwritten(trained, digits, capsys):
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={trained}"]) == FAILED
    assert "--resume" in error(capsys)


def test_results_of_several_views_name_the_views(trained, tmp_path, capsys):
    out = tmp_path / "test"
    args = ["test", str(trained / "checkpoints" / "best.pt"), "--views=2x3", f"--out={out}", "--json"]
    assert main(args) == OK
    printed = json.loads(capsys.readouterr().out)
    results = json.loads((out / "results.json").read_text())
    assert printed == results
    assert (results["clips"], results["crops"], results["listed"], results["scored"]) == (2, 3, 24, 24)
    assert 0 <= results["top1"] <= results["top5"] <= 100
    assert len(results["checkpoint_sha256"]) == 64


def test_images_train_inflate_and_start_a_video_run(digits, tmp_path, capsys):
    image, video = tmp_path / "image", tmp_path / "video"
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={image}"]) == OK
    assert main(["test", str(image / "checkpoints" / "last.pt")]) == OK
    weights = tmp_path / "video.safetensors"
    args = ["inflate", str(image / "checkpoints" / "last.pt"), f"--out={weights}", "--num-tubes=2"]
    capsys.readouterr()
    assert main(args) == OK
    output = capsys.readouterr().out
    model, content = load_model(weights)
    assert all(name in output for name in model.state_dict())
    assert model.num_tubes == 2
    assert content["classes"] == [str(digit) for digit in range(10)]
    args = [*VIDEO, f"--data.root={digits}", f"--model.weights={weights}", "--model.args.num_tubes=2"]
    assert main(["train", *args, f"--out={video}"]) == OK
    assert "head.weight" in (video / "log.txt").read_text()  # new head, for eight classes instead of ten


def test_bfloat16_trains_and_tests(digits, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={out}", "--train.precision=bf16-mixed"]) == OK
    checkpoint = str(out / "checkpoints" / "last.pt")
    scores = []
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        folder = tmp_path / precision
        assert main(["test", checkpoint, f"--test.precision={precision}", f"--out={folder}"]) == OK
        scores.append(np.load(folder / "predictions.npz")["scores"])
    assert np.abs(scores[1] - scores[0]).max() < 0.02
    assert np.abs(scores[2] - scores[0]).max() < 0.05


def test_a_closed_pipe_is_not_an_error():
    command = f"{shlex.quote(sys.executable)} -m sparsevideo config show | true"
    assert subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stderr == ""


def test_config_show_prints_all_settings_resolved(capsys):
    assert main(["config", "show", *VIDEO, "--optim.lr", "0.25"]) == OK
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optim"]["lr"] == 0.25
    assert shown["model"]["args"]["focus_dim"] == 32
    assert shown["data"]["flip_labels"] == {"left": "right", "clockwise": "counter-clockwise"}


def test_models_list_and_help_and_version(capsys):
    assert main(["models", "list", "--json"]) == OK
    assert [model["name"] for model in json.loads(capsys.readouterr().out)] == sparsevideo.list_models()
    assert main(["models", "list"]) == OK
    assert "video_sparseformer_nano        1.1 M  pretrained: scfd, tiny_imagenet\n" in capsys.readouterr().out
    assert main(["--help"]) == OK
    assert "quickstart" in capsys.readouterr().out
    assert main(["train", "--help"]) == OK
    assert "Learning rate after the warm-up" in capsys.readouterr().out
    assert main(["--version"]) == OK
    assert capsys.readouterr().out.strip() == sparsevideo.__version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["data"], "make-digits"),
        (["train", "--out=x", "--optim.learning_rat=1"], "optim.learning_rat"),
        (["train", "--out=x", "--optim.lrr=1"], "did you mean --optim.lr"),
        (["train", "--out=x", "--optim.lr=fast"], "optim.lr"),
        (["train", "--out=x", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["train", "--out=x", "--data.ro=y"], "did you mean --data.root"),
        (["train"], "out"),
        (["test", "x.pt", "--views=3by4"], "--views is '3by4'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(argv, message, capsys):
    assert main(argv) == USAGE
    assert message in error(capsys)


@pytest.mark.parametrize(
    ("command", "option", "hint"),
    [
        ("train", "--batch_size", "--train.batch_size"),
        ("train", "--batch-size", "--train.batch_size"),
        ("train", "--data.batch_size", "--train.batch_size"),
        ("test x.pt", "--batch_size", "--test.batch_size"),
        ("train", "--precision", "--train.precision"),
        ("train", "--lr", "--optim.lr"),
        ("train", "--learning_rate", "--optim.lr"),
        ("train", "--optim.learning_rate", "--optim.lr"),
        ("train", "--train.lr", "--optim.lr"),
        ("train", "--epochs", "--train.epochs"),
        ("train", "--num_frames", "--data.num_frames"),
        ("train", "--num-workers", "--data.num_workers"),
        ("train", "--output_dir", "--out"),
        ("train", "--allow-change", "--allow-changes"),
        ("data scan x", "--num_workers", "--workers"),
    ],
)
def test_an_unknown_option_gets_a_hint(command, option, hint, capsys):
    assert main([*command.split(), option, "1"]) == USAGE
    assert error(capsys).endswith(f"; did you mean {hint}?")


def test_hints_of_a_test_leave_out_settings_that_it_refuses(capsys):
    assert main(["test", "x.pt", "--lr", "1"]) == USAGE
    assert "did you mean" not in error(capsys)


def test_num_classes_is_not_a_setting(capsys):
    assert main(["train", "--num_classes", "5"]) == USAGE
    assert "the list of files decides the number of classes" in error(capsys)


def test_names_of_other_tools_map_to_settings():
    words = {name for settings in _SECTIONS.values() for name in vars(settings)} | {"out"}
    assert not words & _OTHER_NAMES.keys()
    assert not set(_OTHER_NAMES.values()) - words


@pytest.mark.parametrize("text", ["", "train:\n", "train:\ndata:\n", "train: {batch_size: }", "optim:\n  lr_scale:\n"])
def test_an_empty_setting_of_a_run_file_has_its_default(text, tmp_path, capsys):
    assert main(["config", "show"]) == OK
    defaults = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(text)
    assert main(["config", "show", "--config", str(tmp_path / "run.yaml")]) == OK
    assert capsys.readouterr().out == defaults


def test_empty_sections_and_null_settings_of_a_run_file(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("train:\nmodel: {weights: null}\ndata: {num_frames: 6, short_side: null}\n")
    assert main(["config", "show", "--config", str(tmp_path / "run.yaml"), "--train.batch_size=3"]) == OK
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["data"]["num_frames"], shown["data"]["short_side"], shown["train"]["batch_size"]) == (6, None, 3)


def test_settings_in_chinese_work_on_a_system_without_utf_8(tmp_path):
    (tmp_path / "run.yaml").write_text("\ufeffdata:\n  flip_labels: {向左: 向右}\n", encoding="utf-8")
    command = [sys.executable, "-m", "sparsevideo", "config", "show", "--config", str(tmp_path / "run.yaml")]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run(command, env=plain, capture_output=True, check=True).stdout
    assert yaml.safe_load(shown.decode("utf-8"))["data"]["flip_labels"] == {"向左": "向右"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: 3\n", "train must hold settings"),
        (b"- a\n", "a run file must hold sections"),
        (b"data:\n  list: [\n", ", line 3: not YAML"),
        (b"data: \x07\n", "not YAML"),
        ("data: {root: 向左}".encode("gbk"), "not encoded in UTF-8"),
    ],
)
def test_a_malformed_run_file_is_named(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_bytes(content)
    assert main(["config", "show", "--config", str(tmp_path / "run.yaml")]) == USAGE
    line = error(capsys)
    assert str(tmp_path / "run.yaml") in line
    assert message in line


def test_an_unknown_key_in_a_run_file_is_named_with_the_nearest(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("optim:\n  wieght_decay: 0.1\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--out=x"]) == USAGE
    line = error(capsys)
    assert "wieght_decay" in line
    assert "optim.weight_decay" in line


def bad_weights(path, kind):
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": print}))
    elif kind == "corrupt":
        torch.save({"model": {"w": torch.ones(1000)}}, path)
        path.write_bytes(path.read_bytes()[:600])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "other":
        torch.save({"layer1.weight": torch.ones(3)}, path)
    return path


@pytest.mark.parametrize("kind", ["absent", "empty", "text", "pickle", "corrupt", "other"])
@pytest.mark.parametrize("command", ["test", "inflate"])
def test_unusable_weights_are_named(kind, command, tmp_path, capsys):
    path = bad_weights(tmp_path / "weights.pt", kind)
    out = [f"--out={tmp_path / 'out.pt'}"]
    assert main([command, str(path), *out]) == FAILED
    assert str(path) in error(capsys)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.name=video_sparseformer_tin"], "video_sparseformer_tiny"),
        (["--model.args.num_tube=2"], "num_tubes"),
        (["--data.root=/nowhere/at/all"], "/nowhere/at/all"),
        (["--data.list=films/{split}"], "films/train"),
        (["--data.flip_labels.lift=right"], "lift"),
        (["--train.batch_size=4000"], "train.batch_size"),
        (["--train.log_every=0"], "train.log_every"),
        (["--train.label_smoothing=2"], "train.label_smoothing"),
        (["--optim.clip_grad=0"], "optim.clip_grad"),
        (["--test.short_side=8"], "test.short_side is 8; it must be at least data.size"),
        (["--test.protocol=slowfast", "--test.crops=2"], "slowfast has 1 or 3 crops, got 2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_setting_stops_the_run_before_it_writes_anything(args, message, digits, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *VIDEO, f"--data.root={digits}", *args, f"--out={out}"]) == FAILED
    assert message in error(capsys)
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("setting", "value", "choices"),
    [
        ("train.precision", "16-mixed", "32-true, bf16-mixed"),
        ("data.decoder", "vlc", "auto, pyav, torchcodec, torchcodec-cuda, decord"),
        ("test.protocol", "middle", ", ".join(TEST_PROTOCOLS)),
    ],
)
def test_a_wrong_choice_is_refused_with_all_choices(setting, value, choices, tmp_path, capsys):
    message = f"error: {setting} is '{value}'; it must be one of {choices}"
    section, name = setting.split(".")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({section: {name: value}}))
    for words in ([f"--{setting}={value}"], [f"--{setting}", value], [f"--config={tmp_path / 'run.yaml'}"]):
        assert main(["train", "--out=x", *words]) == USAGE
        assert error(capsys) == message


def test_an_output_folder_that_is_a_file_is_refused(trained, digits, tmp_path, capsys):
    (tmp_path / "file").touch()
    weights = str(trained / "checkpoints" / "best.pt")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        for argv in (["train", *VIDEO, f"--data.root={digits}"], ["test", weights], ["quickstart"]):
            assert main([*argv, f"--out={out}"]) == FAILED
            assert "choose another --out" in error(capsys)
    assert main(["inflate", weights, f"--out={weights}"]) == FAILED
    assert "choose another --out" in error(capsys)


def test_a_checkpoint_is_resumed_only_by_its_own_run(trained, digits, tmp_path, capsys):
    base = ["train", *VIDEO, f"--data.root={digits}"]
    corrupt = tmp_path / "corrupt" / "checkpoints" / "last.pt"
    corrupt.parent.mkdir(parents=True)
    corrupt.write_bytes((trained / "checkpoints" / "last.pt").read_bytes()[:5000])
    other = [f"--resume={trained / 'checkpoints' / 'last.pt'}", f"--out={tmp_path / 'run'}"]
    for argv, message in [
        ([f"--resume={trained / 'checkpoints' / 'best.pt'}", other[1]], "best.pt: has no optimizer state"),
        ([*other, "--model.args.cortex_dim=64"], "last.pt: trained with cortex_dim=32, but the model has 64"),
        ([*other, "--train.max_steps=2"], "is at step 4, but this run has only 2 steps"),
        (["--resume", f"--out={tmp_path / 'corrupt'}"], "last.pt: not a readable"),
    ]:
        assert main([*base, *argv]) == FAILED
        assert message in error(capsys)


def test_without_validation_the_best_checkpoint_is_the_last(digits, tmp_path):
    out = tmp_path / "run"
    args = [*VIDEO, f"--data.root={digits}", "--train.validate_every=0", "--train.checkpoint_every=1", f"--out={out}"]
    assert main(["train", *args]) == OK
    assert [read_weights(out / "checkpoints" / f"{name}.pt")["step"] for name in ("last", "best")] == [4, 4]


def test_the_name_of_a_checkpoint_does_not_matter(trained, tmp_path):
    copy = tmp_path / "weights"
    copy.write_bytes((trained / "checkpoints" / "best.pt").read_bytes())
    assert main(["test", "--out", str(tmp_path / "results.pt"), str(copy)]) == OK
    results = json.loads((tmp_path / "results.pt" / "results.json").read_text())
    assert (results["num_frames"], results["size"], results["clips"]) == (4, 32, 3)


def test_no_git_is_needed(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={tmp_path / 'run'}"]) == OK
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["commit"] is None


def test_the_commit_is_marked_if_files_have_changed(tmp_path, monkeypatch):
    source = tmp_path / "sparsevideo" / "commands" / "runs.py"
    source.parent.mkdir(parents=True)
    source.write_text("")

    def git(*argv):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["tag", "v1", "-m", "a release"]):
        git(*argv)
    monkeypatch.setattr(runs, "__file__", str(source))
    assert runs._commit() == git("rev-parse", "HEAD")
    source.write_text("changed")
    assert runs._commit() == git("rev-parse", "HEAD") + "-dirty"


def test_weights_of_another_architecture_or_kind_are_refused(trained, digits, tmp_path, capsys):
    weights = trained / "checkpoints" / "best.pt"
    base = ["train", *VIDEO, f"--data.root={digits}", f"--model.weights={weights}", f"--out={tmp_path / 'run'}"]
    assert main([*base, "--model.args.cortex_dim=64"]) == FAILED
    assert "trained with cortex_dim=32, but the model has 64" in error(capsys)
    assert main([*base, "--model.args.num_heads=8"]) == FAILED
    assert "num_heads" in error(capsys)
    image = ["train", *IMAGE, f"--data.root={digits}", f"--model.weights={weights}", f"--out={tmp_path / 'run'}"]
    assert main(image) == FAILED
    assert "video weights" in error(capsys)


def test_a_checkpoint_of_other_classes_is_refused(trained, digits, tmp_path, capsys):
    other = tmp_path / "videos" / "test"
    other.mkdir(parents=True)
    (other / "jumping").symlink_to(digits / "videos" / "test" / "up")
    assert main(["test", str(trained / "checkpoints" / "best.pt"), f"--data.root={tmp_path}"]) == FAILED
    line = error(capsys)
    assert "jumping" in line
    assert "clockwise" in line


@pytest.fixture
def with_a_corrupt_video(digits, tmp_path):
    root = tmp_path / "corrupt"
    for split in ("train", "val", "test"):
        for motion in (digits / "videos" / split).iterdir():
            (root / "videos" / split / motion.name).mkdir(parents=True)
            for video in motion.iterdir():
                (root / "videos" / split / motion.name / video.name).write_bytes(video.read_bytes())
    for split in ("train", "test"):
        corrupt = root / "videos" / split / "up" / "0000.mp4"
        corrupt.write_bytes(corrupt.read_bytes()[:300])
    return root


def test_a_corrupt_video_is_counted_as_wrong_and_listed(trained, with_a_corrupt_video, tmp_path, capsys):
    out = tmp_path / "results"
    args = ["test", str(trained / "checkpoints" / "best.pt"), f"--data.root={with_a_corrupt_video}", f"--out={out}"]
    assert main(args) == INCOMPLETE
    results = json.loads((out / "results.json").read_text())
    assert (results["listed"], results["scored"]) == (24, 23)
    assert [failure["name"] for failure in results["failed"]] == ["videos/test/up/0000.mp4"]
    assert "up/0000.mp4" in capsys.readouterr().err


def test_training_continues_after_a_corrupt_video_up_to_the_allowed_fraction(with_a_corrupt_video, tmp_path, capsys):
    base = ["train", *VIDEO, f"--data.root={with_a_corrupt_video}", "--train.max_steps=12"]
    assert main([*base, f"--out={tmp_path / 'strict'}"]) == FAILED
    line = error(capsys)
    assert "up/0000.mp4" in line
    assert "data.max_bad_fraction" in line
    assert main([*base, f"--out={tmp_path / 'lenient'}", "--data.max_bad_fraction=0.05"]) == OK
    assert "up/0000.mp4" in (tmp_path / "lenient" / "log.txt").read_text()


def test_a_scan_is_used_by_the_next_run(trained, with_a_corrupt_video, digits, tmp_path, capsys):
    test = [
        "test",
        str(trained / "checkpoints" / "last.pt"),
        f"--data.root={with_a_corrupt_video}",
        f"--out={tmp_path}",
    ]
    assert main(["data", "scan", str(with_a_corrupt_video)]) == INCOMPLETE
    assert main(test) == INCOMPLETE
    output = capsys.readouterr().err
    assert "sparsevideo-index.jsonl: contains 24 of 24 files, 1 of them bad" in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["index"] == str(with_a_corrupt_video / "sparsevideo-index.jsonl")
    (failed,) = results["failed"]
    assert failed["name"] == "videos/test/up/0000.mp4" and "marked bad by the scan" in failed["reason"]

    train = ["train", *VIDEO, f"--data.root={with_a_corrupt_video}", f"--out={tmp_path / 'run'}"]
    assert main(train) == FAILED  # before the first step
    assert "1 of 48 files to train on are bad, the first one" in error(capsys)
    assert not (tmp_path / "run").exists()
    assert main([*train, "--data.max_bad_fraction=0.1"]) == OK

    index = with_a_corrupt_video / "sparsevideo-index.jsonl"
    index.write_text(index.read_text().replace("videos/", "others/"))
    assert main(test) == INCOMPLETE  # an index that the settings do not name may be unusable
    assert "contains none of the 24 videos listed" in capsys.readouterr().err
    assert main([*test, f"--data.index={index}"]) == FAILED  # one that they name must be usable
    assert "contains none of the 24 videos listed" in error(capsys)


def test_results_on_a_kinetics_csv_count_missing_files(trained, digits, tmp_path, capsys):
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number, video in enumerate(sorted((digits / "videos" / "test").rglob("*.mp4"))):
        name = f"-abcdefg{number:03d}"
        rows.append(f"{video.parent.name},{name},5,15,validate")
        (tmp_path / video.parent.name).mkdir(exist_ok=True)
        (tmp_path / video.parent.name / f"{name}_000005_000015.mp4").write_bytes(video.read_bytes())
    rows.append("up,gonegonegon,0,10,validate")
    (tmp_path / "validate.csv").write_text("\n".join(rows))
    args = [f"--data.root={tmp_path}", "--data.list=validate.csv", f"--out={tmp_path / 'results'}"]
    assert main(["test", str(trained / "checkpoints" / "last.pt"), *args]) == OK
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (results["listed"], results["missing"], results["scored"]) == (24, 1, 24)


def test_training_refuses_a_single_class_and_a_folder_of_splits(digits, tmp_path, capsys):
    args = ["train", *VIDEO, f"--out={tmp_path / 'run'}"]
    one = sorted((digits / "videos" / "train").iterdir())[0]
    for split in ("train", "val"):
        shutil.copytree(one, tmp_path / "one" / split / one.name)
    assert main([*args, f"--data.root={tmp_path / 'one'}", "--data.list={split}"]) == FAILED
    assert f"files to train on are of one class, {one.name}; a classifier needs at least two" in error(capsys)
    assert main([*args, f"--data.root={digits / 'videos'}", "--data.list=."]) == FAILED
    assert "holds the folders test, train, val, which are splits, not classes; set data.list to {split}" in error(
        capsys
    )


def test_numbered_labels_get_their_names_from_a_file(digits, tmp_path):
    folders = sorted((digits / "videos" / "train").iterdir())
    names = [folder.name for folder in folders][::-1]
    for split in ("train", "val"):
        files = [(path, names.index(path.parent.name)) for path in sorted((digits / "videos" / split).rglob("*.mp4"))]
        (tmp_path / f"{split}.csv").write_text("".join(f"{path},{number}\n" for path, number in files))
    (tmp_path / "names.txt").write_text("\n".join([*names, "never"]))
    args = ["train", *VIDEO, f"--data.root={tmp_path}", "--data.list={split}.csv", "--data.classes=names.txt"]
    assert main([*args, f"--out={tmp_path / 'run'}"]) == OK
    assert read_weights(tmp_path / "run" / "checkpoints" / "best.pt")["classes"] == [*names, "never"]


def test_class_balanced_sampling_is_resumed(digits, tmp_path):
    folders = sorted((digits / "videos" / "train").iterdir())
    files = [path for folder in folders for path in sorted(folder.iterdir())[: 1 if folder is folders[0] else None]]
    (tmp_path / "list.csv").write_text("".join(f"{path},{path.parent.name}\n" for path in files))
    common = ["train", *VIDEO, f"--data.root={tmp_path}", "--data.list=list.csv", "--train.checkpoint_every=2"]
    weights = []
    for balance in (0, 1):
        args = [*common, f"--data.class_balance={balance}"]
        assert main([*args, f"--out={tmp_path / str(balance)}"]) == OK
        weights.append(read_weights(tmp_path / str(balance) / "checkpoints" / "last.pt")["model"])
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    previous = tmp_path / "1" / "checkpoints" / "previous.pt"
    assert main([*args, f"--out={tmp_path / 'resumed'}", f"--resume={previous}"]) == OK
    assert_equal_weights(read_weights(tmp_path / "resumed" / "checkpoints" / "last.pt")["model"], weights[1])
    assert main([*args, f"--out={tmp_path / 'x'}", "--data.class_balance=1.5"]) == FAILED


def test_an_unreadable_image_is_named(digits, tmp_path, capsys):
    shutil.copytree(digits / "images", tmp_path / "images")
    broken = sorted((tmp_path / "images" / "train").rglob("*.jpg"))[0]
    broken.write_bytes(b"corrupt")
    args = ["train", *IMAGE, f"--data.root={tmp_path}", "--train.max_steps=20", f"--out={tmp_path / 'run'}"]
    assert main([*args, "--data.max_bad_fraction=0"]) == FAILED
    assert f"{broken}: does not decode (unknown image format)" in error(capsys)


def test_images_in_tar_shards_train_like_those_in_folders(digits, tmp_path):
    for split in ("train", "val"):
        files = sorted((digits / "images" / split).rglob("*.jpg"))
        for shard in range(2):
            with tarfile.open(tmp_path / f"{split}-{shard:04d}.tar", "w") as tar:
                for number, file in list(enumerate(files))[shard * len(files) // 2 : (shard + 1) * len(files) // 2]:
                    label = tarfile.TarInfo(f"{number:05d}.cls")
                    label.size = len(file.parent.name)
                    tar.add(file, f"{number:05d}.jpg")
                    tar.addfile(label, io.BytesIO(file.parent.name.encode()))
    folders, shards = (tmp_path / name for name in ("folders", "shards"))
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={folders}"]) == OK
    args = [f"--data.root={tmp_path}", "--data.list={split}-{0000..0001}.tar", "--data.num_workers=2"]
    assert main(["train", *IMAGE, *args, f"--out={shards}"]) == OK
    assert_equal_weights(*(read_weights(run / "checkpoints" / "last.pt")["model"] for run in (folders, shards)))


def test_videos_in_tar_shards_train_and_test_like_those_in_folders(digits, tmp_path):
    for split in ("train", "val", "test"):
        with tarfile.open(tmp_path / f"{split}-0000.tar", "w") as tar:
            for number, file in enumerate(sorted((digits / "videos" / split).rglob("*.mp4"))):
                label = tarfile.TarInfo(f"{number:05d}.cls")
                label.size = len(file.parent.name)
                tar.add(file, f"{number:05d}.mp4")
                tar.addfile(label, io.BytesIO(file.parent.name.encode()))
    folders, shards = (tmp_path / name for name in ("folders", "shards"))
    in_shards = [f"--data.root={tmp_path}", "--data.list={split}-0000.tar"]
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={folders}"]) == OK
    assert main(["train", *VIDEO, *in_shards, "--data.num_workers=2", f"--out={shards}"]) == OK
    assert_equal_weights(*(read_weights(run / "checkpoints" / "last.pt")["model"] for run in (folders, shards)))
    tests = [tmp_path / "test_folders", tmp_path / "test_shards"]
    last = shards / "checkpoints" / "last.pt"
    assert main(["test", str(last), f"--data.root={digits}", "--data.list=videos/{split}", f"--out={tests[0]}"]) == OK
    assert main(["test", str(last), f"--out={tests[1]}"]) == OK
    ours, theirs = (load_predictions(out / "predictions.npz") for out in tests)
    assert np.array_equal(ours.scores, theirs.scores) and theirs.names[0] == "test-0000.tar/00000.mp4"


def test_debug_raises_the_error():
    with pytest.raises(FileNotFoundError):
        main(["inflate", "nowhere.pt", "--out=x.pt", "--debug"])
