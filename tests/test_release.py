"""`sparsevideo release`: what is loaded from a release, in a folder or from a hub, is what was trained."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from hub_server import hub
from toy_runs import VIDEO

import sparsevideo
from sparsevideo.cli import FAILED, OK, main
from sparsevideo.models.weights import load_model


def error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


@pytest.fixture(scope="module")
def released(trained, digits, tmp_path_factory):
    """A release of the video run, with one test."""
    folder = tmp_path_factory.mktemp("release")
    best = str(trained / "checkpoints" / "best.pt")
    assert main(["test", best, f"--data.root={digits}", f"--out={folder / 'test'}", "--views=2x1"]) == OK
    args = ["--results", str(folder / "test" / "results.json"), "--training-data=Moving digits", "--license=apache-2.0"]
    assert main(["release", str(trained), str(folder / "out"), *args]) == OK
    return folder / "out"


def test_a_release_holds_the_weights_the_scores_and_a_card(released, trained):
    about = json.loads((released / "config.json").read_text())
    (test,) = about["results"]
    assert test["data"] == about["training_data"] == "Moving digits"
    assert (test["split"], test["clips"], test["files"], test["unreadable"]) == ("test", 2, 24, 0)
    assert about["settings"]["data"]["root"] == "."
    assert about["architecture"]["num_classes"] == len(about["classes"]) == 8
    model, _ = load_model(trained / "checkpoints" / "best.pt")
    got = sparsevideo.load(released).model.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in model.state_dict().items())
    _, front, text = (released / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license"] == "apache-2.0" and card["pipeline_tag"] == "video-classification"
    (result,) = card["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(test["top1"], 2)
    assert f"| Moving digits | test | 24 | 2 x 1 | {test['top1']:.2f} |" in text and about["sha256"] in text


def test_commands_take_a_release_as_they_take_a_checkpoint(released, trained, digits, capsys):
    video = str(next(digits.glob("videos/test/up/*.mp4")))
    answers = []
    for source in (released, trained):
        assert main(["predict", str(source), video]) == OK
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_training_starts_from_a_release(released, digits, capsys):
    args = [*VIDEO, f"--data.root={digits}", f"--model.weights={released}", "--dry-run"]
    assert main(["train", *args]) == OK
    assert "0 missing, 0 unexpected" in capsys.readouterr().out


def test_a_half_precision_release_of_images(image_run, tmp_path):
    assert main(["release", str(image_run), str(tmp_path / "out"), "--half"]) == OK
    model, wanted = sparsevideo.load(tmp_path / "out").model, sparsevideo.load(image_run).model
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, wanted.head.weight.half().float())
    assert "image-classification" in (tmp_path / "out" / "README.md").read_text()


def test_weights_of_the_package_load_by_name():
    classifier = sparsevideo.load("video_sparseformer_nano.scfd")
    assert classifier.classes == ("fight", "noFight")


def change(about, **entries):
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, **entries}))


def test_a_release_with_other_files_than_it_describes_is_refused(released, tmp_path, capsys):
    def copy(name):
        folder = tmp_path / name
        folder.mkdir()
        for file in released.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    other = copy("hash")
    change(other / "config.json", sha256="0" * 64)
    with pytest.raises(ValueError, match=r"model\.safetensors: has the SHA-256 \w+, but config\.json says 0000"):
        sparsevideo.load(other)
    other = copy("classes")
    change(other / "config.json", classes=["a", "b"])
    with pytest.raises(ValueError, match=r"its classes are not those of model\.safetensors"):
        sparsevideo.load(other)
    other = copy("foreign")
    (other / "config.json").write_text('{"model_type": "vit"}')
    assert main(["predict", str(other), "video.mp4"]) == FAILED
    assert "config.json: is not of a release of sparsevideo" in error(capsys)
    other = copy("partial")
    (other / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        sparsevideo.load(other)


def test_what_cannot_be_released_is_refused(released, trained, image_run, tmp_path, capsys):
    assert main(["release", str(trained), str(tmp_path)]) == FAILED
    assert "exists; choose another folder, so that no release or edited card is lost" in error(capsys)
    assert main(["release", str(trained), str(tmp_path / "out"), "--push-to-hub=digits"]) == FAILED
    assert "digits: a repository of the Hugging Face Hub is called owner/name" in error(capsys)
    about = json.loads((released / "config.json").read_text())
    results = tmp_path / "results.json"
    results.write_text(json.dumps(about["results"][0]))
    assert main(["release", str(trained), str(tmp_path / "out"), "--results", str(results)]) == FAILED
    assert "results.json: not the results.json of `sparsevideo test`" in error(capsys)
    original = released.parent / "test" / "results.json"
    assert main(["release", str(image_run), str(tmp_path / "out"), "--results", str(original)]) == FAILED
    assert "is a test of other weights" in error(capsys)
    sparsevideo.save_weights(tmp_path / "bare.pt", sparsevideo.create_model("video_sparseformer_nano"))
    assert main(["release", str(tmp_path / "bare.pt"), str(tmp_path / "out")]) == FAILED
    assert "bare.pt: has no classes and no config" in error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_release_goes_to_a_hub_and_comes_back(released, trained, digits, tmp_path):
    video = str(next(digits.glob("videos/test/up/*.mp4")))

    def run(*words, **variables):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_none", **variables}
        command = [sys.executable, "-m", "sparsevideo", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    with hub() as (address, repositories):
        done = run("release", trained, tmp_path / "out", "--push-to-hub=anna/digits", HF_ENDPOINT=address)
        assert done.returncode == OK, done.stderr
        assert {*repositories["anna/digits"]} >= {"model.safetensors", "config.json", "README.md"}
        online = run("predict", "anna/digits", video, HF_ENDPOINT=address)
        assert online.returncode == OK, online.stderr
        assert online.stdout == run("predict", trained, video).stdout
        absent = run("predict", "anna/nothing", video, HF_ENDPOINT=address)
        assert absent.returncode == FAILED and "anna/nothing: no such file or folder, and not at the" in absent.stderr
        revision = run("predict", "anna/digits@v9", video, HF_ENDPOINT=address)
        assert revision.returncode == FAILED and "anna/digits@v9: no such file" in revision.stderr
    # The hub is gone.
    assert run("predict", "anna/digits", video, HF_ENDPOINT=address).stdout == online.stdout
    lost = run("predict", "anna/other", video, HF_ENDPOINT=address)
    assert lost.returncode == FAILED and "cannot be reached; to use it offline, pass a folder" in lost.stderr
    assert lost.stderr.count("\n") == 1
