"""The network equals the published one: golden tensors, both generations of names, image and clip."""

import json
import re
from pathlib import Path

import pytest
import reference
import torch
from safetensors import safe_open
from tiny_models import off_by

from sparsevideo import SparseFormer, load_weights
from sparsevideo.models import published
from sparsevideo.models.weights import load_model

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            not (FIXTURES / f"published_{kind}.safetensors").is_file(),
            reason=f"no golden tensors of the published {kind} network",
        ),
    )
    for kind in ("image", "video")
]

# Second generation -> first: the names of the released training code.
_FIRST_GENERATION = [
    (r"^initial_roi\.", "token_roi."),
    (r"^initial_embedding\.", "token_embedding."),
    (r"\.norm1\.", ".ln_attn."),
    (r"\.norm2\.", ".ffn.0."),
    (r"\.mlp\.fc1\.", ".ffn.1."),
    (r"\.mlp\.fc2\.", ".ffn.3."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.adaptive_mixing\.out_proj\.", ".adaptive_mixing.tuo_proj."),
    (r"^norm\.", "head.norm."),
    (r"^proj\.", "head.classifier."),
]


class Golden:
    def __init__(self, kind):
        with safe_open(FIXTURES / f"published_{kind}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            config = json.loads(file.metadata()["config"])
        self.weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        self.tensors = tensors
        del config["kind"]
        config.pop("num_frames", None)
        self.hparams = {"ndim": 2, **config} if kind == "image" else {"ndim": 3, "motion": False, **config}

    def first_generation(self):
        renamed = {}
        for name, tensor in self.weights.items():
            for pattern, first in _FIRST_GENERATION:
                name = re.sub(pattern, first, name)
            renamed[name] = tensor
        return renamed


@pytest.fixture(params=KINDS)
def golden(request):
    return Golden(request.param)


def test_network_scores_as_published(golden):
    model = SparseFormer(**golden.hparams).eval()
    model.load_state_dict(published.to_ours(golden.weights), strict=True)
    wanted, x = golden.tensors, golden.tensors["input"]
    with torch.no_grad():
        out = model.forward_features(x)
        assert off_by(model.stem(x), wanted["stem"]) < 1e-5
        # The published unit list: the focusing block after all its repeats, then one unit for each cortex block.
        assert off_by(out.rois[-2], wanted["unit_rois"][0]) < 1e-5
        for unit in wanted["unit_rois"][1:]:
            assert off_by(out.rois[-1], unit) < 1e-5
        assert off_by(out.rois[-1], wanted["roi"]) < 1e-5
        assert off_by(model.norm(out.tokens), wanted["tokens"]) < 1e-5
        assert off_by(model(x), wanted["logits"]) < 1e-5


def test_reference_scores_as_published(golden):
    """The reference of the other tests reproduces the same tensors."""
    state = published.to_ours(golden.weights)
    trace = reference.run(state, golden.tensors["input"], golden.hparams)
    assert off_by(trace.stem, golden.tensors["stem"]) < 1e-5
    assert off_by(trace.rois[-1], golden.tensors["roi"]) < 1e-5
    assert off_by(reference.norm(state, "norm", trace.tokens), golden.tensors["tokens"]) < 1e-5
    assert off_by(trace.logits, golden.tensors["logits"]) < 1e-5


def test_published_generations_have_the_same_state_dict(golden):
    first = golden.first_generation()
    assert first.keys() != golden.weights.keys()
    ours, of_first = published.to_ours(golden.weights), published.to_ours(first)
    assert ours.keys() == of_first.keys() == SparseFormer(**golden.hparams).state_dict().keys()
    assert all(torch.equal(ours[name], of_first[name]) for name in ours)


@pytest.mark.parametrize("generation", ["first", "second"])
def test_load_weights_takes_published_checkpoints(golden, generation):
    """The first generation was released under a `model` key, the second bare."""
    weights = {"model": golden.first_generation()} if generation == "first" else golden.weights
    model = SparseFormer(**golden.hparams).eval()
    report = load_weights(model, weights)
    assert (len(report.matched), list(report.missing), list(report.unexpected)) == (len(model.state_dict()), [], [])
    with torch.no_grad():
        assert off_by(model(golden.tensors["input"]), golden.tensors["logits"]) < 1e-5


def test_load_model_derives_the_arguments_of_a_published_file(golden, tmp_path):
    """Repeats change no shape and are as published; video weights do not say their tubes and are refused."""
    path = tmp_path / "published.pth"
    torch.save({"model": golden.first_generation()}, path)
    if golden.hparams["ndim"] == 3:
        with pytest.raises(ValueError, match="tubes"):
            load_model(path)
        return
    model, _ = load_model(path)
    assert {name: model.hparams[name] for name in golden.hparams} == {**golden.hparams, "focus_repeats": 4}
    assert torch.equal(model.head.bias, golden.weights["proj.bias"])
