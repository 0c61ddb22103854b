"""The run files in configs/: each is minimal, builds its network, trains, and matches its header."""

import contextlib
import io
import json
import math
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser
from toy_runs import NANO_ARGS

from sparsevideo import build, cli
from sparsevideo import config as sections
from sparsevideo.cli import OK, main
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.models.create import create_model
from sparsevideo.models.weights import read_weights

ROOT = Path(__file__).parents[1]
RUN_FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
IMAGENET = [name for name in RUN_FILES if "/imagenet/" in name]
KINETICS = [name for name in RUN_FILES if "/kinetics400/video_" in name]
FINETUNE = [name for name in RUN_FILES if "/finetune/" in name]
RECIPES = [*IMAGENET, *KINETICS, "configs/kinetics400/linear_probe.yaml", *FINETUNE]
PAGE = "docs/recipes.md"

CLASSES = {"imagenet": 1000, "kinetics400": 400, "finetune": 400}  # by folder; own videos may have another number
MILLIONS = {"sparseformer_tiny": 31.5, "sparseformer_small": 47.6, "sparseformer_base": 81.1}  # published
MILLIONS |= {"video_sparseformer_tiny": 31.3, "video_sparseformer_small": 47.4, "video_sparseformer_base": 80.9}

each_run_file = pytest.mark.parametrize("name", RUN_FILES)


def leaves(tree, prefix=""):
    """Settings by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@cache
def shown(name):
    """Return the output of `sparsevideo config show` for a run file."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["config", "show", "--config", str(ROOT / name)]) == OK
    return yaml.safe_load(output.getvalue())


def settings(name):
    built = {key: getattr(sections, f"{key.title()}Config")(**values) for key, values in shown(name).items()}
    return sections.Config(**built)


def header(name):
    """Return the lines of the comment above the first key, without `#`."""
    lines = (ROOT / name).read_text().splitlines()
    return [line[1:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


@cache
def commands(name):
    """Commands of a header or a page, as (devices, machines, arguments of `sparsevideo`)."""
    text = (ROOT / name).read_text() if name.endswith(".md") else "\n".join(header(name))
    found = []
    for line in re.findall(r"^ *((?:sparsevideo|torchrun) .*)$", re.sub(r"\\\n\s*", "", text), flags=re.MULTILINE):
        program, *words = shlex.split(line)
        if program == "sparsevideo":
            found.append((1, 1, words))
            continue
        launched = get_args_parser().parse_args(words)
        assert launched.module and launched.training_script == "sparsevideo", line
        nodes = int(launched.nnodes.rpartition(":")[2])
        found.append((nodes * int(launched.nproc_per_node), nodes, launched.training_script_args))
    return found


class Parsed(Exception):
    """Carries the result of parsing out of a command, which then does not run."""


@pytest.fixture
def parse(monkeypatch, capsys):
    """Parse a command line without running the command."""
    original = cli.Parser.parse

    def stop_after(parser, argv):
        raise Parsed(original(parser, argv))

    def parse(argv):
        monkeypatch.chdir(ROOT)
        with monkeypatch.context() as patch, pytest.raises(Parsed) as parsed:
            patch.setattr(cli.Parser, "parse", stop_after)
            pytest.fail(f"sparsevideo {shlex.join(argv)} ended with {main(argv)}: {capsys.readouterr().err}")
        return parsed.value.args[0]

    return parse


def test_every_folder_has_its_run_files():
    assert [len(names) for names in (IMAGENET, KINETICS, RECIPES)] == [1, 1, 5]
    assert set(RECIPES) < set(RUN_FILES)
    assert all(len(header(name)) <= 15 for name in RUN_FILES)


@each_run_file
def test_a_run_file_holds_only_what_differs_from_the_defaults(name):
    defaults = sections.config_to_dict(sections.Config())
    with torch.device("meta"):
        defaults["model"]["args"] = create_model(settings(name).model.name).hparams
    defaults = {**dict(leaves(defaults)), "model.args": {}}
    written, resolved = yaml.safe_load((ROOT / name).read_text()), dict(leaves(shown(name)))
    weights = written.get("model", {}).get("weights", "pretrained:")
    assert weights.startswith("pretrained:"), "files of weights are given on the command line"
    # An empty section has no resolved value of its own.
    repeated = {
        key for key, _ in leaves(written) if key not in resolved or resolved[key] == defaults.get(key, math.nan)
    }
    assert repeated == set()


@pytest.mark.parametrize("name", MILLIONS)
def test_the_networks_have_the_sizes_in_the_paper(name):
    """`model.name` selects the other sizes of a recipe."""
    recipe = KINETICS[0] if name.startswith("video_") else IMAGENET[0]
    with torch.device("meta"):
        classes = range(CLASSES[Path(recipe).parent.name])
        model, _ = build.build_model(replace(settings(recipe).model, name=name), classes)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1e6 * MILLIONS[name], rel=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_a_test_batch_holds_all_views_of_a_file(name):
    test = settings(name).test
    assert test.batch_size >= test.clips * test.crops


def shrunk(name, digits):
    """Return options that make a run small and keep its recipe."""
    config, kind = settings(name), "videos" if "video_" in settings(name).model.name else "images"
    args = [*NANO_ARGS, "--model.weights=null", "--data.size=32", "--data.num_workers=0", "--train.max_steps=2"]
    args += [
        f"--train.batch_size={2 * config.data.num_repeats}",
        f"--data.root={digits}",
        f"--data.list={kind}/{{split}}",
    ]
    return args + (["--data.num_frames=4", "--model.args.num_tubes=2"] if kind == "videos" else [])


@each_run_file
def test_two_steps_of_the_recipe_train(name, digits, tmp_path):
    args, config = shrunk(name, digits), settings(name)
    assert main(["train", "--config", str(ROOT / name), *args, f"--out={tmp_path}"]) == OK
    (train, val) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (train["split"], train["step"], val["split"]) == ("train", 2, "val")
    assert math.isfinite(train["loss"]) and math.isfinite(train["grad_norm"])
    assert 0 <= val["top1"] <= 100

    ran = dict(leaves(yaml.safe_load((tmp_path / "config.yaml").read_text())))
    changed = {key for key, value in leaves(shown(name)) if key != "model.args" and ran[key] != value}
    assert changed <= {arg[2:].partition("=")[0] for arg in args}
    checkpoint = read_weights(tmp_path / "checkpoints" / "last.pt")
    assert ("model_ema" in checkpoint) == (config.train.ema is not None)
    learning = re.findall(r"of which ([\d.]+) M are trained", (tmp_path / "log.txt").read_text())
    assert len(learning) == bool(config.optim.train_only)


def test_a_dry_run_of_fine_tuning_writes_nothing(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "configs/finetune/published.yaml"
    assert main(["train", "--config", str(ROOT / name), *shrunk(name, digits), "--dry-run"]) == OK
    output = capsys.readouterr().out
    assert "global batch 16 = 1 x 8 x 2" in output
    groups = dict(re.findall(r"learning rate x ([\d.]+), weight decay 0.05: .*\((.*)\)", output))
    scales = {"0.3164": "stem.conv.weight", "0.4219": "focus.", "0.5625": "cortex.0.", "0.75": "cortex.1."}
    assert all(groups[scale].startswith(first) for scale, first in {**scales, "10": "head.weight"}.items())
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_for_own_videos_starts_from_released_weights(digits, capsys):
    argv = ["train", "--config", str(ROOT / "configs/finetune/own_videos.yaml"), f"--data.root={digits}/videos"]
    assert main([*argv, "--data.num_workers=0", "--dry-run"]) == OK
    assert "0 missing, 0 unexpected" in capsys.readouterr().out


def schedule(name, devices, files):
    """Samples in a global batch, optimizer steps, learning rate by step."""
    config = settings(name)
    repeats, batch_size = config.data.num_repeats, config.train.batch_size
    assert batch_size % repeats == 0
    sampler = EpochSampler(files, batch_size // repeats, accumulate=config.train.accumulate, world_size=devices)
    steps = build.total_steps(config, sampler.steps_per_epoch)
    rate = build.build_schedule(config.optim, steps, sampler.global_batch * repeats)
    return sampler.global_batch * repeats, steps, [rate(step) for step in range(steps)]


@pytest.mark.parametrize("name", RECIPES)
def test_batch_rate_and_steps_match_the_header(name):
    config = settings(name)
    match = re.search(
        r"Global batch (\d+) = (\d+) x (\d+) x (\d+) \(devices x accumulate x batch_size\), peak learning rate (\S+), "
        r"([\d,]+) steps with ([\d,]+) (?:images|videos)",
        " ".join(" ".join(header(name)).split()),
    )
    assert match, "the header must state global batch, peak learning rate and steps"
    batch, devices, accumulate, batch_size = (int(number) for number in match.groups()[:4])
    files, expected_steps = (int(match[group].replace(",", "")) for group in (7, 6))
    assert (accumulate, batch_size) == (config.train.accumulate, config.train.batch_size)
    assert devices == (1 if "finetune" in name else 8)
    samples, steps, rates = schedule(name, devices, files)
    assert (samples, steps) == (batch, expected_steps)
    assert f"{max(rates):.3g}" == f"{float(match[5]):.3g}"


@pytest.mark.parametrize(
    ("name", "files", "batch", "epochs", "warmup_epochs", "base_size", "rates"),
    [
        (IMAGENET[0], 1_281_167, 1024, 300, 20, 512, [5e-7, 5e-4, 5e-6]),  # the published one
        (KINETICS[0], 240_000, 64, 30, 2.5, 64, [1e-5, 1e-4, 0]),  # Video Swin-T's, as mmaction2 reproduced it
    ],
    ids=["imagenet", "kinetics400"],
)
def test_schedule_of_run_files_is_the_one_that_is_named(name, files, batch, epochs, warmup_epochs, base_size, rates):
    """An epoch in the papers has one sample per file, with and without repeated augmentation."""
    samples, steps, rate = schedule(name, 8, files)
    assert samples == pytest.approx(batch, rel=0.02)
    assert steps * samples / files == pytest.approx(epochs, rel=1e-3)
    assert rate.index(max(rate)) * samples / files == pytest.approx(warmup_epochs, rel=1e-3)
    assert [each * base_size / samples for each in (rate[0], max(rate), rate[-1])] == pytest.approx(rates)


@pytest.mark.parametrize("name", [*RUN_FILES, PAGE])
def test_the_commands_parse(name, parse):
    trains = 0
    for devices, _, argv in commands(name):
        args = parse(argv)
        if argv[0] != "train":
            continue
        trains += 1
        recipe = argv[argv.index("--config") + 1]
        assert recipe in (RECIPES if name == PAGE else [name]), argv
        with torch.device("meta"):
            create_model(args.model.name, **args.model.args)  # refuses unknown arguments
        if recipe in RECIPES and "--dry-run" not in argv:  # the global batch does not depend on devices and memory
            usual = settings(recipe).train
            batch = usual.batch_size * usual.accumulate * (1 if "finetune" in recipe else 8)
            assert devices * args.train.accumulate * args.train.batch_size == batch, argv
    assert trains


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_commands_for_training_on_one_and_two_machines_and_for_testing(name):
    every = [*commands(name), *commands(PAGE)]
    trained = {(devices, nodes) for devices, nodes, argv in every if argv[0] == "train" and name in argv}
    assert {(8, 1), (8, 2), (1, 1)} <= trained
    out = next(argv[argv.index("--out") + 1] for _, _, argv in commands(name) if argv[0] == "train")
    assert any(argv[:1] == ["test"] and argv[1].startswith(out) for _, _, argv in every)


def test_tools_in_the_recipes_exist():
    text = "".join((ROOT / name).read_text() for name in (*RECIPES, PAGE))
    assert all((ROOT / tool).exists() for tool in re.findall(r"tools/\w+\.py", text))
