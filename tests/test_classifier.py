"""The front door: `sparsevideo.load` and `Classifier.predict` give what `sparsevideo test` gives."""

import numpy as np
import pytest
import torch
from numbered_videos import REAL
from toy_runs import NANO

import sparsevideo
from sparsevideo import config
from sparsevideo.cli import OK, main
from sparsevideo.config import Config, DataConfig
from sparsevideo.io import DecodeError, read_image
from sparsevideo.reports.predictions import load_predictions

NETWORK = {**NANO, "num_heads": 4, "num_classes": 3}


@pytest.fixture(scope="module")
def classifier(trained):
    return sparsevideo.load(trained, device="cpu")


@pytest.fixture(scope="module")
def files(digits):
    return sorted((digits / "videos" / "test").glob("*/*.mp4"))[:5]


def scores_by_path(run, root, out, views):
    """Scores of `sparsevideo test`, by path."""
    assert main(["test", str(run / "checkpoints/best.pt"), f"--data.root={root}", f"--out={out}", *views]) == OK
    predictions = load_predictions(out)
    return {str(root / name): row for name, row in zip(predictions.names, predictions.scores, strict=True)}


def all_scores(prediction, classes):
    by_label = dict(zip(prediction.labels, prediction.scores, strict=True))
    return [by_label[name] for name in classes]


def test_predict_gives_the_scores_of_the_test_command(classifier, trained, digits, files, tmp_path):
    expected = scores_by_path(trained, digits, tmp_path / "test", ["--views=2x3"])
    predictions = classifier.predict(files, views="2x3", topk=8)
    assert [each.path for each in predictions] == [str(path) for path in files]
    assert predictions.failures == {}
    for each in predictions:
        assert each.views == "2x3"
        assert list(each.scores) == sorted(each.scores, reverse=True)
        assert all_scores(each, classifier.classes) == pytest.approx(expected[each.path].tolist(), abs=1e-6)
    alone = classifier.predict(files[2], views="2x3", topk=8)
    assert all_scores(alone, classifier.classes) == pytest.approx(
        all_scores(predictions[2], classifier.classes), abs=1e-6
    )


def test_predict_applies_the_budgets_of_the_settings(trained, digits, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["test"] |= {"num_frames": 2, "num_tubes": 2, "num_points": 3}
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "best.pt")
    expected = scores_by_path(tmp_path, digits, tmp_path / "test", ["--views=1x1"])
    classifier, path = sparsevideo.load(tmp_path, device="cpu"), min(expected)
    assert classifier.model.hparams["num_tubes"] == 2
    prediction = classifier.predict(path, views="1x1", topk=8)
    assert all_scores(prediction, classifier.classes) == pytest.approx(expected[path].tolist(), abs=1e-6)


def test_predict_of_images_gives_the_scores_of_the_test_command(image_run, digits, tmp_path):
    expected = scores_by_path(image_run, digits, tmp_path / "test", [])
    classifier = sparsevideo.load(image_run / "checkpoints" / "best.pt", device="cpu")
    path = min(expected)
    prediction = classifier.predict(path, topk=10)
    assert all_scores(prediction, classifier.classes) == pytest.approx(expected[path].tolist(), abs=1e-6)
    in_memory = classifier.predict(read_image(path), topk=10)
    assert (in_memory.labels, in_memory.scores, in_memory.path) == (prediction.labels, prediction.scores, None)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("settings", [{}, {"sampling": "uniform"}, {"target_fps": 12.5, "short_side": 48}], ids=str)
def test_predict_of_frames_in_memory_is_that_of_their_file(classifier, files, settings, kind):
    data = DataConfig(**{**vars(classifier.config.data), **settings})
    other = sparsevideo.Classifier(classifier.model, classifier.classes, Config(data=data), device="cpu")
    with sparsevideo.open_video(files[0]) as video:
        frames, fps = video.read(range(video.num_frames)), float(video.frame_rate)
    from_file, from_memory = other.predict(files[0], views="2x1"), other.predict(kind(frames), views="2x1", fps=fps)
    assert (from_memory.labels, from_memory.scores) == (from_file.labels, from_file.scores)


def test_predict_takes_topk_and_the_views_of_the_settings(classifier, files):
    prediction = classifier.predict(str(files[0]), topk=2)
    assert (len(prediction.labels), len(prediction.scores), prediction.views) == (2, 2, "3x1")  # the recipe's
    assert str(prediction).startswith(f"{files[0]}: {prediction.labels[0]} {prediction.scores[0]:.3f}, ")
    assert len(classifier.predict(files[0], topk=100).labels) == 8
    settings = Config(data=classifier.config.data, test=config.TestConfig(clips=2, crops=3))
    other = sparsevideo.Classifier(classifier.model, classifier.classes, settings, device="cpu")
    assert other.predict(files[0]).views == "2x3"


def test_predict_of_a_list_goes_on_and_returns_the_failures(classifier, files, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    bad = [tmp_path / "notes.mp4", tmp_path / "empty.mp4", tmp_path / "absent.mp4", tmp_path]
    for num_workers in (0, 1):
        predictions = classifier.predict([bad[0], files[0], *bad[1:], files[1]], num_workers=num_workers)
        assert [each.path for each in predictions] == [str(files[0]), str(files[1])]
        assert list(predictions.failures) == [str(path) for path in bad]
        assert all(path in reason for path, reason in predictions.failures.items())
    assert classifier.predict([]) == []


def test_predict_of_one_bad_file_names_it(classifier, tmp_path):
    for content in (b"", b"not a video"):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(DecodeError, match=r"a\.mp4"):
            classifier.predict(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"b\.mp4: no such file"):
        classifier.predict(str(tmp_path / "b.mp4"))
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}: is a folder; pass a file"):
        classifier.predict(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": np.zeros((2, 8, 8), np.uint8)}, r"\(T, H, W, 3\) uint8"),
        ({"inputs": np.zeros((2, 8, 8, 3), np.float32)}, r"\(T, H, W, 3\) uint8.* float32"),
        ({"inputs": np.zeros((0, 8, 8, 3), np.uint8)}, "not empty"),
        ({"inputs": np.zeros((2, 8, 8, 3), np.uint8), "fps": 0}, "fps must be from 0.01"),
        ({"inputs": "a.mp4", "views": "4"}, "it must be clips x crops, such as 4x3"),
        ({"inputs": "a.mp4", "views": (4, 3)}, "it must be clips x crops, such as 4x3"),
        ({"inputs": "a.mp4", "topk": 0}, "topk must be >= 1, got 0"),
        ({"inputs": "a.mp4", "fps": 3}, "fps is for frames in memory"),
    ],
)
def test_predict_refuses_impossible_arguments(classifier, arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier.predict(**arguments)


@pytest.mark.parametrize("inputs", [[np.zeros((8, 8, 3), np.uint8)], None, 3], ids=repr)
def test_predict_refuses_what_is_no_path_and_no_array(classifier, inputs):
    with pytest.raises(TypeError, match=r"a path, a list of paths, or one array .* use np\.stack"):
        classifier.predict(inputs)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_load_refuses_a_device_that_is_not_there(trained, device):
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        sparsevideo.load(trained, device=device)


def test_predict_uses_no_index_and_evaluation_mode(classifier, files, tmp_path, monkeypatch, caplog):
    expected = classifier.predict(files[0])
    (tmp_path / "a.mp4").write_bytes(files[0].read_bytes())
    assert main(["data", "scan", str(tmp_path)]) == OK
    (tmp_path / "a.mp4").write_bytes(files[1].read_bytes())
    monkeypatch.chdir(tmp_path)
    classifier.model.train()
    caplog.clear()
    assert classifier.predict("a.mp4").scores == classifier.predict(files[1]).scores
    assert classifier.predict(np.array([str(files[0])])) == [expected]
    assert not classifier.model.training and caplog.text == ""


def test_predict_of_frames_without_times_says_that_fps_is_needed(classifier):
    data = DataConfig(**{**vars(classifier.config.data), "target_fps": 10.0})
    other = sparsevideo.Classifier(classifier.model, classifier.classes, Config(data=data), device="cpu")
    with pytest.raises(DecodeError, match="pass fps"):
        other.predict(np.zeros((20, 48, 48, 3), np.uint8))


def test_load_takes_a_run_its_checkpoint_and_saved_weights(classifier, trained, files, tmp_path, caplog):
    expected = classifier.predict(files[0])
    assert sparsevideo.load(trained / "checkpoints" / "best.pt", device="cpu").predict(files[0]) == expected
    model, info = sparsevideo.load_model(trained / "checkpoints" / "best.pt")
    assert info["classes"] == list(classifier.classes)
    sparsevideo.save_weights(tmp_path / "w.safetensors", model, classes=list(classifier.classes))
    loaded = sparsevideo.load(str(tmp_path / "w.safetensors"), device="cpu")
    assert loaded.classes == classifier.classes
    assert loaded.config == Config()  # weights alone say nothing of clips
    assert "has no settings of clips and pixels" in caplog.text
    assert main(["convert", str(trained / "checkpoints/best.pt"), f"--out={tmp_path / 'c.safetensors'}"]) == OK
    assert sparsevideo.load(tmp_path / "c.safetensors", device="cpu").predict(files[0]) == expected
    given = sparsevideo.load(tmp_path / "w.safetensors", config=classifier.config, device=torch.device("cpu", 0))
    assert given.predict(files[0]) == expected


def test_load_says_what_is_missing(tmp_path):
    model = sparsevideo.create_model("video_sparseformer_nano", **NETWORK)
    path = tmp_path / "bare.safetensors"
    sparsevideo.save_weights(path, model)
    with pytest.raises(ValueError, match=r"bare.safetensors: holds no class names; pass classes=.*, 3 names"):
        sparsevideo.load(path)
    with pytest.raises(ValueError, match=r"bare\.safetensors: got 2 class names; pass classes=.*, 3 names"):
        sparsevideo.load(path, classes=["a", "b"])
    assert sparsevideo.load(path, classes=["a", "b", "c"], device="cpu").classes == ("a", "b", "c")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: has no checkpoints/best.pt; pass a checkpoint"):
        sparsevideo.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such checkpoint$"):
        sparsevideo.load("nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"released image weights: sparseformer_tiny\.in1k$"):
        sparsevideo.load("sparseformer_tiny")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"bad\.pt: holds more than tensors"):
        sparsevideo.load(tmp_path / "bad.pt")


def test_load_of_a_run_of_another_version_names_the_file(trained, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["data"]["frames"] = 3
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old\.pt: the settings are not those of this version \(.*frames"):
        sparsevideo.load(tmp_path / "old.pt")


def test_load_works_inside_a_job_of_several_tasks(trained, files, classifier, monkeypatch):
    for name, value in {"JOB_ID": "7", "JOB_NAME": "j", "NTASKS": "8", "NTASKS_PER_NODE": "8", "PROCID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sparsevideo.load(trained, device="cpu").predict(files[0]) == classifier.predict(files[0])


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real videos are absent")
def test_predict_reads_real_videos(classifier):
    paths = sorted((REAL / "videos" / "clean").iterdir())
    predictions = classifier.predict(paths, views="2x1")
    assert [each.path for each in predictions] == [str(path) for path in paths]
    assert all(np.isfinite(each.scores).all() and sum(each.scores) < 1.00001 for each in predictions)


def test_public_names_are_importable():
    import sparsevideo.data
    import sparsevideo.io

    for module in (sparsevideo, sparsevideo.data):
        assert all(getattr(module, name) is not None for name in module.__all__)
        assert set(module.__all__) <= set(dir(module))
    for name in ("open_video", "probe", "read_frames", "read_image", "write_video", "DecodeError"):
        assert getattr(sparsevideo.io, name)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = sparsevideo.data.nothing_like_it
