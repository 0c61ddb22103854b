"""`sparsevideo quickstart` writes its results, plots and page; here with a few steps on a small data set."""

import json
from dataclasses import replace

import pytest

from sparsevideo.cli import main
from sparsevideo.command_lines import REQUEUE
from sparsevideo.commands import quickstart
from sparsevideo.data import moving_digits
from sparsevideo.engine.distributed import Interrupted


@pytest.fixture
def short(monkeypatch):
    load_config = quickstart.load_config

    def few_steps(name, out, seed):
        config = load_config(name, out, seed)
        config.data.num_workers = 0
        config.train = replace(config.train, max_steps=2, batch_size=8)
        return config

    def few_files(root, **sizes):
        return moving_digits.make_moving_digits(root, videos_per_class=(2, 1, 2), **sizes)

    monkeypatch.setattr(quickstart, "load_config", few_steps)
    monkeypatch.setattr(quickstart, "make_moving_digits", few_files)


def test_quickstart_writes_results_plots_and_a_page_and_can_be_repeated(short, tmp_path, capsys):
    out = tmp_path / "quickstart"
    results = quickstart.run(out)
    assert {"video", "video_one_view", "video_still"} <= results.keys()
    assert "pretrained:tiny_imagenet" in (out / "video" / "config.yaml").read_text()
    assert (results["video"]["clips"], results["video"]["crops"]) == (3, 1)
    assert json.loads((out / "results.json").read_text())["video"]["top1"] == results["video"]["top1"]
    page = (out / "index.html").read_text()
    for name in ("confusion.png", "curves.png", "strip.png", "sampling.mp4"):
        assert (out / name).stat().st_size > 1000
    assert page.count("data:image/png;base64,") == 3
    assert "moving digits, 3 x 1 views" in page
    printed = capsys.readouterr().out
    assert f"{results['video']['top1']:.1f} %" in printed
    assert str(out / "index.html") in printed.replace("\n", "")

    again = quickstart.run(out)  # continues where it stopped: at the end
    assert again["video"]["checkpoint_sha256"] == results["video"]["checkpoint_sha256"]
    with pytest.raises(ValueError, match="another quickstart"):
        quickstart.run(out, seed=1)


@pytest.mark.slow
def test_quickstart_from_scratch_starts_from_fresh_weights(short, tmp_path):
    quickstart.run(tmp_path / "scratch", from_scratch=True)
    assert "weights: newly initialized" in (tmp_path / "scratch" / "video" / "log.txt").read_text()


def test_quickstart_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no quickstart"):
        quickstart.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_quickstart_says_how_to_continue_after_an_interruption(short, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise Interrupted("stopped by SIGTERM, saved at step 1")

    monkeypatch.setattr(quickstart, "train_run", interrupted)
    assert main(["quickstart", f"--out={tmp_path / 'quickstart'}"]) == REQUEUE
    assert capsys.readouterr().err.endswith("saved at step 1; the same command resumes it\n")
