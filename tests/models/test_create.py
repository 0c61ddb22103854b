"""Networks by name, and the released weights with their cards."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from file_server import serving
from safetensors.torch import load_file
from tiny_models import TOY, clip, perturbed

from sparsevideo import create_model, list_models, list_pretrained
from sparsevideo.build import build_model
from sparsevideo.config import ModelConfig, config_from_dict
from sparsevideo.models import create, presets
from sparsevideo.models.weights import load_model, save_weights
from tools.release_weights import synthetic_logits

FILES = sorted(create.WEIGHTS.glob("*.safetensors"))
SAMPLES = Path(__file__).parent / "released"
ROOT = Path(__file__).parents[2]


def front_matter(file):
    return yaml.safe_load(file.with_suffix(".md").read_text(encoding="utf-8").split("---\n")[1])


def score(file):
    (model,) = front_matter(file)["model-index"]
    (result,) = model["results"]
    (metric,) = result["metrics"]
    return metric["value"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_score_in_a_card_is_that_of_the_predictions_with_these_weights(file):
    sample = np.load(SAMPLES / f"{file.stem}.npz")
    np.testing.assert_allclose(synthetic_logits(load_model(file)[0]), sample["logits"], rtol=1e-3, atol=1e-3)
    assert str(sample["sha256"]) == hashlib.sha256(file.read_bytes()).hexdigest() == front_matter(file)["sha256"]
    assert score(file) == round(100 * float((sample["predicted"] == sample["labels"]).mean()), 2)
    assert f"{score(file)} % top-1" in file.with_suffix(".md").read_text(encoding="utf-8")
    assert f"| {score(file)} |" in (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_released_weights_are_half_precision_and_name_no_folder(file):
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    model, content = load_model(file)
    assert len(content["classes"]) == model.num_classes
    config = config_from_dict(content["config"])
    assert config.data.root == "." and "/" not in f"{config.data.list} {config.model.weights}"
    assert front_matter(file)["model-index"][0]["name"] == file.stem


def test_released_weights_are_small_and_have_names_of_networks():
    assert FILES and sum(file.stat().st_size for file in create.WEIGHTS.iterdir()) < 12e6
    assert {file.name.split(".")[0] for file in FILES} <= set(list_pretrained()) <= set(list_models())


def test_create_model_loads_released_weights_and_their_number_of_classes():
    model = create_model("sparseformer_nano", pretrained="tiny_imagenet")
    stored = load_file(create.WEIGHTS / "sparseformer_nano.tiny_imagenet.safetensors")
    assert model.num_classes == 200
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.state_dict().items())


def test_released_weights_of_motion_alone_make_a_network_of_motion_alone():
    model = create_model("video_sparseformer_nano", pretrained="scfd").eval()
    assert model.num_classes == 2 and not model.appearance
    still = clip(3, frames=6, height=64, width=64)[:, :, :1].expand(-1, -1, 6, -1, -1)  # two clips
    with torch.no_grad():
        scores = model(still)
    torch.testing.assert_close(scores[0], scores[1])


def test_a_video_network_inflates_released_image_weights():
    image = create_model("sparseformer_nano", pretrained="tiny_imagenet").eval()
    video = create_model("video_sparseformer_nano", pretrained="tiny_imagenet", num_tubes=3).eval()
    frame = clip(2, height=64, width=64)
    with torch.no_grad():
        torch.testing.assert_close(
            video(frame.unsqueeze(2).expand(-1, -1, 6, -1, -1)), image(frame), rtol=1e-4, atol=1e-4
        )


def test_another_number_of_classes_gets_a_new_head(caplog):
    model = create_model("sparseformer_nano", pretrained="tiny_imagenet", num_classes=10)
    assert model.head.bias.shape == (10,) and "the head is new: the weights have 200 classes" in caplog.text


def test_settings_name_released_weights():
    settings = ModelConfig(name="video_sparseformer_nano", args={"num_tubes": 2}, weights="pretrained:tiny_imagenet")
    model, report = build_model(settings, range(10))
    assert report.replaced.keys() == {"head.weight", "head.bias"} and model.num_tubes == 2
    image = create_model("sparseformer_nano", pretrained="tiny_imagenet")
    assert torch.equal(model.token_embedding, image.token_embedding.repeat(2, 1))


def test_a_head_for_other_classes_is_new_even_if_their_number_agrees():
    settings = ModelConfig(name="sparseformer_nano", weights="pretrained:tiny_imagenet")
    names = load_model(create.WEIGHTS / "sparseformer_nano.tiny_imagenet.safetensors")[1]["classes"]
    assert not build_model(settings, names)[1].replaced
    assert build_model(settings, names[::-1])[1].replaced.keys() == {"head.weight", "head.bias"}


def test_a_wrong_number_of_tubes_is_named_before_inflation():
    with pytest.raises(ValueError, match="num_tubes must be a whole number >= 1, got -1"):
        create_model("video_sparseformer_nano", pretrained="tiny_imagenet", num_tubes=-1)


@pytest.mark.parametrize("name", ["sparseformer_nano", "sparseformer_tiny"])
@pytest.mark.parametrize("tag", ["tiny_imagnet", True, ""])
def test_unknown_weights_are_an_error_that_lists_those_that_exist(name, tag):
    released = rf"no released weights {tag!r} for \w+.*; released are .*sparseformer_nano: tiny_imagenet"
    with pytest.raises(ValueError, match=released):
        create_model(name, pretrained=tag)


def test_other_sizes_than_those_of_the_weights_are_an_error_that_names_the_argument():
    with pytest.raises(ValueError, match="trained with num_tokens=9, but the model has 16"):
        create_model("sparseformer_nano", pretrained="tiny_imagenet", num_tokens=16)
    with pytest.raises(ValueError, match=r"safetensors.*: trained with cortex_depth=4, but the model has 2"):
        settings = ModelConfig(
            name="video_sparseformer_nano", args={"cortex_depth": 2}, weights="pretrained:tiny_imagenet"
        )
        build_model(settings, range(10))


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """A folder with a small file in the place and with the names of the paper's weights."""
    model = perturbed(create_model("sparseformer_tiny", **TOY), 0.02)
    path = tmp_path / "mirror" / "sparseformer_v1_tiny_converted.pth"
    save_weights(path, model)
    monkeypatch.setitem(presets._PRESETS, "sparseformer_tiny", {"ndim": 2, **TOY})
    monkeypatch.setitem(presets._PRESETS, "video_sparseformer_tiny", {"ndim": 3, "num_tubes": 2, **TOY})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return model.eval(), path.parent


def test_weights_of_the_paper_are_downloaded_once(paper, tmp_path, monkeypatch):
    model, mirror = paper
    with serving(mirror) as address:
        monkeypatch.setenv("SPARSEVIDEO_WEIGHTS", f"{address.replace('anna:pass@', '')}/ranges")
        image = create_model("sparseformer_tiny", pretrained="in1k").eval()
    video = create_model("video_sparseformer_tiny", pretrained="in1k", num_classes=4)  # the server is gone
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in image.state_dict().items())
    assert torch.equal(video.token_embedding, model.token_embedding.repeat(2, 1)) and video.num_classes == 4
    (file,) = (tmp_path / "torch" / "hub" / "checkpoints").glob("*.pth")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"converted\.pth: has the SHA-256 \w+, but had"):
        create_model("sparseformer_tiny", pretrained="in1k")


def test_an_address_with_a_password_is_refused_and_not_shown(paper, monkeypatch):
    monkeypatch.setenv("SPARSEVIDEO_WEIGHTS", "http://anna:pass@127.0.0.1:9")
    with pytest.raises(ValueError, match=r"^an address with a user and a password is not supported"):
        create_model("sparseformer_tiny", pretrained="in1k")


def test_weights_of_the_paper_may_be_in_a_folder(paper, monkeypatch):
    model, mirror = paper
    monkeypatch.setenv("SPARSEVIDEO_WEIGHTS", str(mirror))
    settings = ModelConfig(name="sparseformer_tiny", weights="pretrained:in1k")
    assert torch.equal(build_model(settings, range(10))[0].token_roi, model.token_roi)
    with pytest.raises(
        FileNotFoundError, match=r"base_converted\.pth: no such file in the folder SPARSEVIDEO_WEIGHTS; it is"
    ):
        create_model("sparseformer_base", pretrained="in1k")


def test_weights_that_are_not_those_of_their_card_are_refused(tmp_path, monkeypatch):
    folder = shutil.copytree(create.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(create, "WEIGHTS", folder)
    file = folder / "sparseformer_nano.tiny_imagenet.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(file)) + ".*its card says .*; install it again"):
        create_model("sparseformer_nano", pretrained="tiny_imagenet")
