"""`sparsevideo visualize`: pictures of the clip that a test scores, the evidence in them, and one line for an error."""

import json
import wave

import numpy as np
import pytest
import torch
from PIL import Image

import sparsevideo
from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.commands import visualize
from sparsevideo.io import read_frames, write_video

PICTURES = ("strip.png", "density.png", "evidence.png")


@pytest.fixture(scope="module")
def video(digits):
    return digits / "videos" / "test" / "right" / "0001.mp4"


def visualized(capsys, *args):
    assert main(["visualize", *map(str, args), "--json"]) == OK
    return json.loads(capsys.readouterr().out)


def test_visualize_draws_the_clip_that_a_test_of_one_view_scores(trained, video, tmp_path, capsys):
    results = visualized(capsys, trained, video, f"--out={tmp_path / 'deep' / 'out'}")
    prediction = sparsevideo.load(trained, device="cpu").predict(video, views="1x1", topk=1)
    assert (results["predicted"],) == prediction.labels
    assert results["score"] == pytest.approx(prediction.scores[0], abs=1e-6)
    assert results["frames"] == [5, 7, 9, 11]  # the middle 7 of 17 frames, every second one
    assert results["span_s"] == pytest.approx([0.5, 1.2])
    assert results["crop"] == [0, 0, 1, 1]
    evidence = results["evidence"]
    assert evidence["label"] == results["predicted"]
    assert np.shape(evidence["tokens"]) == (3, 16) and np.shape(evidence["tubes"]) == (3, 4)
    tokens = np.array(evidence["tokens"])
    assert np.array(evidence["tubes"]) == pytest.approx(tokens.reshape(3, 4, 4).sum(-1), abs=1e-6)
    assert evidence["steps"] == pytest.approx(tokens.sum(-1), abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == sorted([*PICTURES, "sampling.mp4"])
    for name in PICTURES:
        picture = np.asarray(Image.open(results["files"][name.removesuffix(".png")]))
        assert min(picture.shape[:2]) > 200 and picture.std() > 10
    frames = read_frames(results["files"]["sampling"], range(4))
    assert frames.shape == (4, 364, 640, 3)


def test_visualize_prints_the_prediction_and_the_paths_and_writes_into_the_run_folder(trained, video, capsys):
    assert main(["visualize", str(trained / "checkpoints" / "last.pt"), str(video), "--label=up"]) == OK
    printed = capsys.readouterr().out.splitlines()
    assert "4 frames from 0.50 s to 1.20 s" in printed[0]
    assert printed[1].startswith("  logit of up: ")
    assert printed[2:] == [str(trained / "visualize-0001" / name) for name in (*PICTURES, "sampling.mp4")]
    assert all((trained / "visualize-0001" / name).stat().st_size > 1000 for name in PICTURES)


@pytest.mark.parametrize(("at", "frames"), [(0, [0, 2, 4, 6]), (0.5, [5, 7, 9, 11]), (1.4, [14, 16, 16, 16])])
def test_visualize_at_starts_the_clip_at_that_time(trained, video, tmp_path, capsys, monkeypatch, at, frames):
    monkeypatch.setattr(visualize, "_draw", lambda out, explained: {})
    assert visualized(capsys, trained, video, f"--at={at}", f"--out={tmp_path}")["frames"] == frames


def test_visualize_compares_two_checkpoints_on_one_clip(trained, video, tmp_path, capsys):
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["data"] |= {"num_frames": 2, "frame_stride": 4}
    for tensor in content["model"].values():
        tensor.mul_(0.9)
    torch.save(content, tmp_path / "other.pt")
    alone = visualized(capsys, trained, video, f"--out={tmp_path / 'alone'}")
    both = visualized(capsys, trained, video, "--compare", tmp_path / "other.pt", f"--out={tmp_path / 'both'}")
    assert alone["compared"] is None
    assert both["evidence"] == alone["evidence"] and both["compared"]["evidence"] != alone["evidence"]
    assert both["compared"]["frames"] == [6, 10] and both["compared"]["checkpoint"] == str(tmp_path / "other.pt")
    for name in ("strip", "density", "evidence"):
        one, two = (np.asarray(Image.open(results["files"][name])) for results in (alone, both))
        assert np.array_equal(two[: len(one), : one.shape[1]], one) and len(two) > 1.5 * len(one)
    assert read_frames(both["files"]["sampling"], [3]).shape == (1, 728, 640, 3)


def test_visualize_accepts_images(image_run, digits, tmp_path, capsys):
    image = digits / "images" / "test" / "7" / "0001.jpg"
    results = visualized(capsys, image_run, image, "--label=3", f"--out={tmp_path}")
    prediction = sparsevideo.load(image_run, device="cpu").predict(image, topk=1)
    assert (results["predicted"],) == prediction.labels and results["evidence"]["label"] == "3"
    assert results["span_s"] is None and np.shape(results["evidence"]["tubes"]) == (3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PICTURES)


def test_visualize_draws_class_names_of_other_scripts(trained, video, tmp_path, capsys):
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    content["classes"][:2] = ["跳ぶ", "$_{"]
    torch.save(content, tmp_path / "named.pt")
    results = visualized(capsys, tmp_path / "named.pt", video, "--label=跳ぶ", f"--out={tmp_path / 'out'}")
    assert results["evidence"]["label"] == "跳ぶ"


def test_visualize_refuses_bad_input_in_one_line(trained, image_run, digits, video, tmp_path, capsys):
    def error(*args, code=FAILED):
        assert main(["visualize", *map(str, args), f"--out={tmp_path / 'out'}"]) == code
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        return line

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    (tmp_path / "empty.mp4").touch()
    image = digits / "images" / "test" / "7" / "0001.jpg"
    assert error(trained, tmp_path / "none.mp4").endswith("none.mp4: no such file")
    assert "is a folder; pass a file" in error(trained, tmp_path)
    assert "sound.wav: holds no video stream" in error(trained, tmp_path / "sound.wav")
    assert "empty.mp4: does not decode" in error(trained, tmp_path / "empty.mp4")
    assert "0001.jpg: is an image, but" in (line := error(trained, image)) and line.endswith("pass a video")
    assert "0001.mp4: is a video, but" in (line := error(image_run, video)) and line.endswith("pass an image")
    assert "has no class 'rihgt'; did you mean 'right'?" in error(trained, video, "--label=rihgt")
    assert "has no class 'zzz'; it has clockwise, counter-clockwise" in error(trained, video, "--label=zzz")
    assert "no frame in the span from 9.0 s" in error(trained, video, "--at=9")
    assert "--at must be >= 0 seconds, got -1" in error(trained, video, "--at=-1")
    assert "--at is for videos" in error(image_run, image, "--at=1")
    assert "no such checkpoint" in error(tmp_path / "none.pt", video)
    assert "is a video, but" in error(trained, video, "--compare", image_run)
    error(trained, video, "--at=soon", code=USAGE)
    assert not (tmp_path / "out").exists()


def test_visualize_accepts_a_video_shorter_than_a_clip(trained, tmp_path, capsys):
    write_video(tmp_path / "short.mp4", np.full((2, 40, 60, 3), 90, np.uint8))
    results = visualized(capsys, trained, tmp_path / "short.mp4", f"--out={tmp_path / 'out'}")
    assert results["frames"] == [0, 1, 1, 1]
    assert results["crop"] == pytest.approx([1 / 6, 0, 5 / 6, 1])
