"""Scores of windows are those of a test, bit for bit alike in any order, and each frame goes through the stem once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import toy

from sparsevideo import build
from sparsevideo import config as settings
from sparsevideo.classifier import Classifier
from sparsevideo.io.writer import write_video

CLASSES = [f"class {label}" for label in range(7)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (40, 56, 3), np.uint8)
    write_video(path, np.stack([np.roll(still, index, axis=1) for index in range(61)]), fps=25)
    return path


def classifier(ndim=3, data=None, **test):
    config = settings.Config(
        data=settings.DataConfig(size=32, num_frames=4, frame_stride=3, **(data or {})),
        test=settings.TestConfig(**test),
    )
    return Classifier(toy(ndim), CLASSES, config, device="cpu")


def score(model, video, **options):
    return list(model.score_windows(model.stream(video), **options))


def as_vector(prediction):
    by_label = dict(zip(prediction.labels, prediction.scores, strict=True))
    return [by_label[name] for name in CLASSES]


@pytest.mark.parametrize(
    ("ndim", "views", "test"),
    [
        (3, "1x1", {}),
        (3, "1x3", {"share_stem": True}),
        (3, "1x1", {"full_frame": True}),
        (3, "1x1", {"scores": "logits"}),
        (3, "1x1", {"short_side": 36}),
        (3, "1x1", {"protocol": "slowfast"}),
        (2, "1x1", {}),
        (2, "1x3", {"share_stem": True}),
    ],
)
def test_score_windows_gives_the_scores_of_predict(ndim, views, test, video):
    from sparsevideo.io import read_frames

    crops = int(views[-1])
    model = classifier(ndim, crops=crops, **test)
    found = score(model, video, step_s=0.2)
    frames, length = read_frames(video, range(61)), 10 if ndim == 3 else 1
    assert len(found) == {3: 11, 2: 13}[ndim]
    for window in found[:: 5 if ndim == 3 else 4]:
        start = round(window.start_s * 25)
        pixels = frames[start : start + length] if ndim == 3 else frames[start]
        expected = torch.tensor(as_vector(model.predict(pixels, views=views, topk=7, fps=25 if ndim == 3 else None)))
        if test.get("scores") == "logits":
            expected = expected.softmax(0)
        assert window.scores == pytest.approx(expected.numpy(), abs=1e-6)


def test_score_windows_runs_the_stem_once_per_sampled_frame(video, monkeypatch):
    model, counts = classifier(), []
    stem = model.model.stem.forward
    monkeypatch.setattr(model.model.stem, "forward", lambda x: counts.append(len(x)) or stem(x))
    found = score(model, video, step_s=0.12)  # starts at every third frame
    assert len(found) == 18 and sum(counts) == 21  # of 61 frames, each third one


def test_score_windows_does_not_depend_on_the_other_windows(video):
    model = classifier()
    config = model._config(None, 0)
    feed = build.build_windows(config, 3, model.stream(video), step_s=0.08)
    windows = list(feed)
    scorer = build.build_window_scorer(config, model.model, model.fabric)
    every = [scorer(window) for window in windows]
    some = build.build_window_scorer(config, model.model, model.fabric)
    for index in (0, 1, 5, 6, 7, 20, len(windows) - 1):  # others are dropped
        assert torch.equal(some(windows[index]), every[index])


def test_prefetched_frames_give_the_same_scores(video):
    model = classifier()
    config = model._config(None, 0)
    windows = list(build.build_windows(config, 3, model.stream(video), step_s=0.2))
    late, early = (build.build_window_scorer(config, model.model, model.fabric) for _ in range(2))
    for index, window in enumerate(windows):
        for following in windows[index : index + 2]:
            for frame in zip(following.frame_indices, following.pixels, strict=True):
                early.prefetch(*frame)
        assert torch.equal(early(window), late(window))
        early.prefetch(0, windows[0].pixels[0])  # is not needed any more
        assert window.frame_indices[0] == 0 or 0 not in early._slot_of


def test_score_windows_multilabel_is_a_sigmoid(video):
    model = classifier()
    soft, multi = (score(model, video, step_s=1.0, multilabel=flag) for flag in (False, True))
    for a, b in zip(soft, multi, strict=True):
        odds = np.log(b.scores / (1 - b.scores))
        assert a.scores == pytest.approx(np.exp(odds) / np.exp(odds).sum(), abs=1e-5)
        assert not 0.99 < b.scores.sum() < 1.01


def test_score_windows_uses_the_ring_of_a_long_video_again(video):
    model = classifier()
    config = model._config(None, 0)
    scorer = build.build_window_scorer(config, model.model, model.fabric)
    sizes = {
        (scorer(window), len(scorer._ring))[1]
        for window in build.build_windows(config, 3, model.stream(video), step_s=0.04)
    }
    assert sizes == {16}


def test_windows_of_uniform_sampling_need_a_length(video):
    uniform = classifier(data={"sampling": "uniform"})
    with pytest.raises(ValueError, match=r"data\.sampling is uniform, .* set the length of a window"):
        score(uniform, video)
    assert len(score(uniform, video, window_s=0.8, step_s=0.4)) == 6  # the last one ends with the video
    with pytest.raises(ValueError, match=r"window is 0\.8 s, but it follows from data\.num_frames"):
        score(classifier(), video, window_s=0.8)


def test_windows_refuse_crops_of_shared_frames_that_do_not_fit(video):
    model = classifier(crops=3, protocol="slowfast")
    with pytest.raises(ValueError, match="share_stem has its own crops"):
        score(model, video)
    model.config = replace(model.config, data=replace(model.config.data, size=30), test=settings.TestConfig(crops=3))
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        score(model, video)
