"""The page of the model zoo is what its command prints, with all models and only measured numbers."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import zoo_table
from benchmarks.zoo_table import Measured, read_results, zoo_page
from sparsevideo.models.presets import list_models, preset
from sparsevideo.reports.profile import MacCount

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "docs" / "quickstart.json"
# A real result with fixed numbers, so a new run of the quickstart changes no test.
VIDEO = json.loads(QUICKSTART.read_text())["video"]
VIDEO |= {"top1": 99.58, "checkpoint_sha256": "83c4ab1d" * 8, "time": "2026-11-25T05:01:15+00:00"}
VIDEO["environment"] |= {"commit": "2897ba72" * 5, "device": "cpu"}
VIDEO["environment"]["packages"]["torch"] = "2.14.1"
del VIDEO["root"]
K400 = {"split": "val", "size": 224, "num_frames": 32, "frame_stride": 2, "clips": 4, "crops": 3}


def table(page):
    """Return each row of the page's table: heading to cell."""
    head, _, *rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|"))
    return [dict(zip((cell.strip() for cell in head), (cell.strip() for cell in row), strict=True)) for row in rows]


def rows_of(measured, model):
    return [row for row in table(zoo_page(measured, "command")) if row["model"] == model]


def result(model="video_sparseformer_nano", **changes):
    """Return the results of the quickstart with another network and protocol."""
    return {**VIDEO, "hparams": preset(model), **changes}


@pytest.fixture
def uncounted(monkeypatch):
    """Skip the counting, which runs every network; another test checks it."""
    monkeypatch.setattr(zoo_table, "count_macs", lambda network, shape: MacCount(*[10**9] * 7))


@pytest.mark.slow
def test_zoo_page_is_what_its_own_command_prints(monkeypatch, capsys):
    page = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m (benchmarks\.make_model_zoo .*) > docs/model_zoo\.md$", page, re.MULTILINE)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    runpy.run_module(sys.argv[0], run_name="__main__")
    assert capsys.readouterr().out == page, "make docs/model_zoo.md again, with the command that it shows"
    rows = {row["model"]: row for row in table(page)}
    assert set(rows) >= set(list_models())
    # All operations, by the published counter, parameters. The video network is the published one with motion, whose
    # own numbers are in reports/test_profile.py.
    for model, gmac in {
        "sparseformer_tiny": ("2.18 × 1", "2.07 × 1", "31.5"),
        "video_sparseformer_base": ("76.0 × 12", "74.6 × 12", "80.9"),
    }.items():
        row = rows[model]
        assert (row["GMAC × views\\*"], row["as published†"], row["parameters, M"]) == gmac
    nano = rows["video_sparseformer_nano"]
    assert nano["top-1"] and not nano["top-1, paper"]


def test_zoo_page_has_a_row_per_model_and_no_unmeasured_numbers(uncounted):
    rows = table(zoo_page([], "command"))
    assert [row["model"] for row in rows] == list_models()
    paper = {row["model"]: row["top-1, paper"] for row in rows}
    assert list(paper.values()) == ["81.0", "82.0", "82.6", "", "77.9", "79.1", "79.8‡", ""]
    for row in rows:
        assert not any(row[name] for name in ("top-1", "top-5", "scored / listed", "checkpoint", "commit"))
        shown = (row["data set"], row["frames × stride × crop"], row["views"])
        if "nano" in row["model"]:
            assert shown == ("", "", "")
        elif "video" in row["model"]:
            assert shown == ("Kinetics-400, val", "32 × 2 × 224", "4 × 3")
        else:
            assert shown == ("ImageNet-1K, val", "224", "1 × 1")


def test_zoo_page_shows_our_number_beside_the_papers_for_the_same_protocol(uncounted):
    """Another head, drop path or checkpointing is the same network."""
    hparams = {
        **preset("video_sparseformer_tiny"),
        "num_classes": 5,
        "drop_path": 0.3,
        "activation_checkpointing": True,
    }
    ours = result(**K400, hparams=hparams, top1=77.77, top5=93.21, scored=19750, listed=19761, missing=40)
    (row,) = rows_of([Measured("r.json", "Kinetics-400", ours)], "video_sparseformer_tiny")
    assert (row["top-1"], row["top-1, paper"], row["top-5"]) == ("77.8", "77.9", "93.2")
    assert row["scored / listed"] == "19750 / 19761 (40 more missing)"
    assert (row["checkpoint"], row["commit"]) == ("`83c4ab1d`", "`2897ba72`")
    assert row["GMAC × views\\*"] == "5.00 × 12" and row["as published†"] == "4.00 × 12"


@pytest.mark.parametrize(
    ("change", "cell", "shown"),
    [
        ({"clips": 1}, "views", "1 × 3"),
        ({"crops": 1}, "views", "4 × 1"),
        ({"size": 256}, "frames × stride × crop", "32 × 2 × 256"),
        ({"num_frames": 16}, "frames × stride × crop", "16 × 2 × 224"),
        ({"frame_stride": 4}, "frames × stride × crop", "32 × 4 × 224"),
        ({"frame_stride": None, "sampling": "uniform"}, "frames × stride × crop", "32 × uniform × 224"),
        ({"split": "test"}, "data set", "Kinetics-400, test"),
        ({"full_frame": True}, "frames × stride × crop", "32 × 2 × 224, whole frames"),
        ({"share_stem": True}, "frames × stride × crop", "32 × 2 × 224, views that share a stem"),
        ({"frame_order": "middle"}, "data set", "Kinetics-400, val, one frame repeated"),
        ({"frame_order": "reversed"}, "data set", "Kinetics-400, val, frames reversed"),
    ],
)
def test_zoo_page_has_a_row_for_another_protocol(uncounted, change, cell, shown):
    measured = [Measured("r.json", "Kinetics-400", result("video_sparseformer_tiny", **{**K400, **change}))]
    paper, ours = rows_of(measured, "video_sparseformer_tiny")
    assert (paper["top-1"], paper["top-1, paper"]) == ("", "77.9")
    assert (ours["top-1"], ours["top-1, paper"]) == ("99.6", "")
    assert ours[cell] == shown
    assert bool(ours["GMAC × views\\*"]) == bool(ours["as published†"]) == ("crop" not in cell or "," not in shown)


def test_zoo_page_has_a_row_for_another_data_set(uncounted):
    measured = [Measured("r.json", "My|set", result("video_sparseformer_tiny", **K400))]
    paper, ours = rows_of(measured, "video_sparseformer_tiny")
    assert (paper["data set"], ours["data set"]) == ("Kinetics-400, val", "My\\|set, val")
    assert not ours["top-1, paper"]


def test_zoo_page_shows_the_frame_rate(uncounted):
    (row,) = rows_of([Measured("r.json", "digits", result(target_fps=15.0))], "video_sparseformer_nano")
    assert row["frames × stride × crop"] == "8 × 2 at 15/s × 64"


def test_zoo_page_lists_other_networks_by_file(uncounted):
    other = result(hparams={**preset("video_sparseformer_nano"), "num_tubes": 2})
    page = zoo_page([Measured("runs/other/results.json", "digits", other)], "command")
    assert table(page)[-1]["model"] == "`runs/other/results.json`"
    assert table(page)[-2]["top-1"] == ""
    assert (
        "- `runs/other/results.json`: pyav, precision 32-true, cpu, mean of softmax, torch 2.14.1, 2026-11-25" in page
    )


def test_zoo_page_has_an_empty_cell_without_a_commit(uncounted):
    changed = result(environment={**VIDEO["environment"], "commit": None})
    (row,) = rows_of([Measured("r.json", "digits", changed)], "video_sparseformer_nano")
    assert row["commit"] == "" and row["top-1"] == "99.6"


def test_zoo_page_marks_code_that_differs_from_its_commit(uncounted):
    changed = result(environment={**VIDEO["environment"], "commit": "2897ba72" * 5 + "-dirty"})
    (row,) = rows_of([Measured("r.json", "digits", changed)], "video_sparseformer_nano")
    assert row["commit"] == "`2897ba72-dirty`"


def test_read_results_takes_data_set_and_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/lr=0.1")
    folder.mkdir(parents=True)
    (folder / "r.json").write_text(json.dumps(VIDEO))
    (folder / "root.json").write_text(json.dumps({**VIDEO, "root": "/sets/digits"}))
    (folder / "two.json").write_text(json.dumps({"video": VIDEO}))
    for argument, source, dataset in (
        ("runs/lr=0.1/r.json", "runs/lr=0.1/r.json", "8 classes"),
        ("Kinetics-400=runs/lr=0.1/r.json", "runs/lr=0.1/r.json", "Kinetics-400"),
        ("runs/lr=0.1/root.json", "runs/lr=0.1/root.json", "digits"),
        ("moving digits=runs/lr=0.1/two.json#video", "runs/lr=0.1/two.json#video", "moving digits"),
        ("runs/lr=0.1/two.json#video", "runs/lr=0.1/two.json#video", "8 classes"),
    ):
        assert read_results(argument) == Measured(source, dataset, read_results(argument).results)


@pytest.mark.parametrize(
    ("content", "argument", "reason"),
    [
        ("{", "r.json", "Expecting property name"),
        ("[]", "r.json", "list indices"),
        ("{}", "r.json", "no 'hparams' inside"),
        (json.dumps({"video": VIDEO}), "r.json#image", "no 'image' inside"),
        (json.dumps({"hparams": {"num_tokns": 3}}), "r.json", "num_tokns"),
        (
            json.dumps({"hparams": VIDEO["hparams"], **K400}),
            "r.json",
            "no frame_order, top1, top5, scored, listed, check",
        ),
    ],
)
def test_read_results_refuses_other_files(tmp_path, monkeypatch, content, argument, reason):
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{argument}: not the results of `sparsevideo test` \(.*{reason}"):
        read_results(argument)
    with pytest.raises(FileNotFoundError):
        read_results(f"other-{argument}")
