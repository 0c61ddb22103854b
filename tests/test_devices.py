"""A training step and a test keep all tensors on the device, here the meta device, which has only shapes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

import sparsevideo
from sparsevideo import build
from sparsevideo.config import Config, DataConfig

META = torch.device("meta")


class OnMeta(Fabric):
    """Fabric with the meta device."""

    @property
    def device(self):
        return META


def model(ndim):
    name = "video_sparseformer_nano" if ndim == 3 else "sparseformer_nano"
    return sparsevideo.create_model(name, num_classes=5).to(META)


def pixels(ndim, *leading):
    return torch.zeros(*leading, 3, *([4] if ndim == 3 else []), 32, 48, dtype=torch.uint8)


@pytest.mark.parametrize("settings", [{}, {"erase_prob": 1.0}, {"erase_prob": 1.0, "erase_mode": "const"}], ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_training_step(ndim, settings):
    batch = {"image" if ndim == 2 else "video": pixels(ndim, 2), "label": torch.tensor([1, 4])}
    prepare = build.build_batch_transform(replace(DataConfig(), **settings), ndim, META, train_classes=5)
    inputs, labels = prepare(batch)
    assert inputs.device == labels.device == META
    network = model(ndim)
    F.cross_entropy(network(inputs), labels, label_smoothing=0.1).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("share_stem", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_test(ndim, share_stem):
    views = 1 if share_stem else 3
    batch = {"image" if ndim == 2 else "video": pixels(ndim, 2, views), "clip_index": torch.zeros(2, 3)}
    if share_stem:
        batch |= {"boxes": torch.rand(2, 3, 4), "frames": torch.zeros(2, 3, 4, dtype=torch.int64)}
    config = Config()
    config.test.batch_size = 2  # fewer than the three views
    score = build.build_predictor(config, model(ndim), OnMeta())
    with torch.no_grad():
        scores = score(batch)
    assert scores.shape == (2, 3, 5)
    assert scores.device == META
