"""`sparsevideo localize`: shares and peaks in true boxes beside three baselines; files and frames are counted."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.command_lines import INCOMPLETE
from sparsevideo.commands.localize import untrained
from sparsevideo.io import write_video
from sparsevideo.models.weights import load_model

FRAMES = [5, 7, 9, 11]  # of the middle clip


@pytest.fixture(scope="module")
def sidecar(digits):
    return json.loads((digits / "videos.json").read_text())


def localized(capsys, trained, *args, code=OK):
    assert main(["localize", str(trained / "checkpoints" / "best.pt"), *map(str, args), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def write_boxes(path, sidecar, names, frames, scale=1.0):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "frame", "x0", "y0", "x1", "y1"])
        for name in names:
            writer.writerows([name, frame, *np.array(sidecar[name]["boxes"][frame]) * scale] for frame in frames)


@pytest.fixture(scope="module")
def whole(trained, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("localize")
    argv = [str(trained / "checkpoints" / "best.pt"), f"--boxes={digits / 'videos.json'}", f"--out={out}"]
    assert main(["localize", *argv]) == OK
    return out, json.loads((out / "localize.json").read_text())


def test_localize_scores_all_listed_files_beside_three_baselines(whole, sidecar, trained):
    out, results = whole
    assert results["files"] == {
        "listed": 24,
        "without_boxes": 0,
        "left_out_by_limit": 0,
        "unreadable": 0,
        "scored": 24,
    }
    assert results["frames"] == {"in_clips": 96, "scored": 96, "without_boxes": 0, "outside_the_crop": 0}
    boxes = np.array([sidecar[name]["boxes"] for name in sidecar if "/test/" in name])[:, FRAMES]  # (24, 4, 4)
    area = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).mean()
    center = ((boxes[..., :2] <= 0.5) & (boxes[..., 2:] > 0.5)).all(-1).mean()
    for measure in ("points", "peaks"):
        found = results[measure]
        assert set(found) == {"network", "untrained", "uniform", "center"}
        assert found["uniform"]["percent"]["value"] == pytest.approx(100 * area, abs=1e-4)
        for name in ("network", "untrained"):
            assert len(found[name]["percent"]) == 3
            for each in found[name]["percent"]:
                assert 0 <= each["low"] <= each["value"] <= each["high"] <= 100
    assert results["peaks"]["center"]["percent"]["value"] == pytest.approx(100 * center)
    assert results["settings"]["data.num_frames"] == 4 and results["environment"]["packages"]
    assert (out / "localize.png").stat().st_size > 1000 and (out / "around.png").stat().st_size > 1000


def test_localize_prints_a_table_with_intervals_and_counts(trained, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    argv = [str(trained / "checkpoints" / "best.pt"), f"--boxes={digits / 'videos.json'}", f"--out={tmp_path}"]
    assert main(["localize", *argv, "--limit=4"]) == OK
    printed = capsys.readouterr().out
    for text in ("this network", "untrained network", "center prior", "uniform points", "step 3 of 3"):
        assert printed.count(text) == 2
    assert "4 files scored of 24 listed (0 without boxes, 20 left out by --limit, 0 unreadable)" in printed
    assert "16 frames of 16" in printed and "times the uniform baseline" in printed


def test_localize_of_pixels_equals_that_of_fractions(whole, trained, digits, sidecar, tmp_path, capsys):
    names = [name for name in sidecar if "/test/" in name]
    write_boxes(tmp_path / "pixels.csv", sidecar, names, range(17), scale=80)
    results = localized(capsys, trained, f"--boxes={tmp_path / 'pixels.csv'}", f"--out={tmp_path}")
    for measure in ("points", "peaks"):
        for name, found in whole[1][measure].items():
            expected, percent = found["percent"], results[measure][name]["percent"]
            for one, two in zip(
                *(each if isinstance(each, list) else [each] for each in (expected, percent)), strict=True
            ):
                assert two == pytest.approx(one)


def test_localize_counts_frames_and_files_that_it_does_not_score(trained, digits, sidecar, tmp_path, capsys):
    """Of three annotated files one has no box on two frames, one has boxes outside the crop, one does not decode."""
    root = tmp_path / "root"
    for number in range(4):
        name = f"videos/test/left/000{min(number, 2)}.mp4"
        target = root / f"videos/test/left/{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(digits / name, target)
    wide = np.zeros((17, 40, 80, 3), np.uint8)
    write_video(root / "videos/test/left/1.mp4", wide)
    (root / "videos/test/left/2.mp4").write_bytes(b"no video")
    lines = ["path,frame,x0,y0,x1,y1", *(f"videos/test/left/0.mp4,{frame},0.2,0.2,0.5,0.5" for frame in (5, 6, 11))]
    lines += [f"videos/test/left/1.mp4,{frame},0,0,0.2,1" for frame in (5, 7)]  # left of the middle square
    lines += [f"videos/test/left/1.mp4,{frame},0,0,0.5,1" for frame in (9, 11)]  # half of it
    lines += ["videos/test/left/2.mp4,5,0,0,1,1", "videos/test/left/9.mp4,5,0,0,1,1"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    args = [f"--boxes={tmp_path / 'boxes.csv'}", f"--data.root={root}", f"--out={tmp_path / 'out'}"]
    results = localized(capsys, trained, *args, code=INCOMPLETE)
    assert results["files"] == {"listed": 4, "without_boxes": 1, "left_out_by_limit": 0, "unreadable": 1, "scored": 2}
    assert results["frames"] == {"in_clips": 8, "scored": 4, "without_boxes": 2, "outside_the_crop": 2}
    assert list(results["failed"]) == ["videos/test/left/2.mp4"]
    areas = [0.09, 0.09, 0.5, 0.5]
    assert results["points"]["uniform"]["percent"]["value"] == pytest.approx(100 * np.mean(areas))


def test_untrained_network_has_the_architecture_and_fixed_fresh_weights(trained):
    model, _ = load_model(trained / "checkpoints" / "best.pt")
    before = torch.random.get_rng_state()
    first, second = untrained(model), untrained(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.hparams == model.hparams
    state = first.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in second.state_dict().items())
    assert not torch.equal(state["head.weight"], model.state_dict()["head.weight"])


def test_localize_refuses_bad_input_in_one_line(trained, digits, sidecar, tmp_path, capsys):
    def error(*args, code=FAILED):
        assert main(["localize", str(trained / "checkpoints" / "best.pt"), *args, f"--out={tmp_path / 'out'}"]) == code
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        return line

    assert "boxes" in error(code=USAGE)
    assert "none.csv: no such file of boxes" in error(f"--boxes={tmp_path / 'none.csv'}")
    boxes = f"--boxes={digits / 'videos.json'}"
    assert "--limit must be >= 1, got 0" in error(boxes, "--limit=0")
    assert "--train.epochs=3: a test uses only the settings" in error(boxes, "--train.epochs=3", code=USAGE)
    other = tmp_path / "other.csv"
    other.write_text("path,frame,x0,y0,x1,y1\nwrong/a.mp4,0,0,0,1,1\n")
    line = error(f"--boxes={other}")
    assert "has boxes of wrong/a.mp4, but none of the 24 listed files, such as videos/test/" in line
    write_boxes(other, sidecar, [name for name in sidecar if "/test/" in name], [0])
    assert "none of the 96 frames of 24 clips has a box in its crop" in error(f"--boxes={other}")
    assert not (tmp_path / "out").exists()
