"""Presets, weights files and their errors."""

import argparse
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import clip, perturbed, toy

import sparsevideo
from sparsevideo import create_model, list_models, load_weights
from sparsevideo.models.weights import load_model, save_weights

SIZES = ["tiny", "small", "base", "nano"]


@pytest.fixture(scope="module")
def source():
    return toy(2)


@pytest.fixture
def target():
    return toy(2, seed=5)


def test_list_models_has_images_and_clips():
    assert list_models() == [f"{kind}sparseformer_{size}" for kind in ("", "video_") for size in SIZES]


@pytest.mark.parametrize("name", [f"{kind}sparseformer_{size}" for kind in ("", "video_") for size in SIZES])
def test_create_model_builds_every_preset(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
        x = torch.empty(2, 3, 8, 64, 64) if name.startswith("video") else torch.empty(2, 3, 64, 64)
        assert model(x).shape == (2, 3)


def test_create_model_offers_the_nearest_name():
    with pytest.raises(ValueError, match="sparseformer_tiny"):
        create_model("sparsformer_tinny")
    with pytest.raises(TypeError, match="num_tubes"):
        create_model("video_sparseformer_nano", num_tube=8)
    with pytest.raises(TypeError, match="drop_path"):
        create_model("sparseformer_nano", droppath=0.1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("num_heads", 7), ("num_tokens", 0), ("num_tokens", 9.0), ("num_points", 1), ("num_tubes", 2)],
        *[("focus_dim", 0), ("mlp_ratio", 0), ("mlp_ratio", -1.0), ("drop_path", 1.0), ("padding", "zero")],
    ],
)
def test_create_model_names_arguments_out_of_range(argument, value):
    with pytest.raises(ValueError, match=argument):
        create_model("sparseformer_nano", **{argument: value})


def test_a_network_samples_features_or_motion():
    with pytest.raises(ValueError, match="motion and appearance are both False"):
        create_model("video_sparseformer_nano", motion=False, appearance=False)
    assert create_model("sparseformer_nano", motion=False, appearance=False).motion is False  # no effect for images


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", None])
def test_load_weights_takes_files_and_dicts(source, target, tmp_path, suffix):
    state = source.state_dict()
    weights = state if suffix is None else tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, weights)
    elif suffix:
        torch.save(state, weights)
    report = load_weights(target, weights)
    assert sorted(report.matched) == sorted(state)
    assert not (report.missing or report.unexpected or report.reshaped)
    x = clip(2)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state", "module", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_load_weights_removes_wrapper_names(source, target, key, prefix):
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    report = load_weights(target, {"epoch": 3, key: state})
    assert len(report.matched) == len(state) and not (report.missing or report.unexpected)
    assert torch.equal(target.head.weight, source.head.weight)


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "model._orig_mod.", "net.module.trunk."])
@pytest.mark.parametrize("key", ["state_dict", "model_state"])
def test_load_weights_finds_a_network_inside_a_module_by_its_prefix(source, target, key, prefix):
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    others = {"other_head.bias": torch.zeros(2), "loss.weight": torch.ones(4)}
    report = load_weights(target, {"epoch": 3, key: {**state, **others}}, strict=True)
    assert len(report.matched) == len(state)
    assert torch.equal(target.cortex[0].attn.qkv.weight, source.cortex[0].attn.qkv.weight)


def test_load_weights_refuses_unknown_names_inside_the_network(source, target):
    state = {f"model.{name}": tensor for name, tensor in source.state_dict().items()} | {"model.extra": torch.ones(1)}
    with pytest.raises(ValueError, match=r"1 unexpected \(extra\)"):
        load_weights(target, {"state_dict": state}, strict=True)


def test_load_weights_removes_names_of_compiled_and_checkpointed_parts(source, target):
    state = source.state_dict()
    for part, wrapped in {"cortex.0.": "cortex.0._checkpoint_wrapped_module.", "stem.": "stem._orig_mod."}.items():
        renamed = {name.replace(part, wrapped): tensor for name, tensor in state.items()}
        assert renamed.keys() != state.keys()
        state = renamed
    assert not load_weights(target, state).missing


def test_load_weights_refuses_a_file_of_several_networks(source, target):
    state = source.state_dict()
    both = {f"{prefix}{name}": tensor for prefix in ("student.", "teacher.") for name, tensor in state.items()}
    with pytest.raises(ValueError, match=r"^these weights: holds 2 networks, student\., teacher\.; save"):
        load_weights(target, {"state_dict": both})
    with pytest.raises(ValueError, match=r"holds head\.bias twice, once as module\.head\.bias"):
        load_weights(target, {**state, "module.head.bias": state["head.bias"]})


def test_load_weights_ignores_tensors_beside_the_state_dict(source, target):
    """A step counter stored as a tensor is not the state dict."""
    report = load_weights(target, {"step": torch.tensor(3), "model": source.state_dict()})
    assert not (report.missing or report.unexpected)


def test_load_weights_reports_missing_and_unexpected_names(source, target):
    state = source.state_dict()
    del state["head.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["focus.offset.bias"] = state["focus.offset.bias"].flatten()
    before = target.head.bias.clone()
    report = load_weights(target, state)
    assert list(report.missing) == ["head.bias"] and list(report.unexpected) == ["extra.weight"]
    assert list(report.reshaped) == ["focus.offset.bias"]
    assert torch.equal(target.head.bias, before) and torch.equal(target.head.weight, source.head.weight)
    assert torch.equal(target.focus.offset.bias, source.focus.offset.bias)
    for name in ("head.bias", "extra.weight", "focus.offset.bias"):
        assert name in str(report)


def test_load_weights_refuses_other_arguments_before_it_changes_the_model(source, target):
    before = target.head.weight.clone()
    checkpoint = {"hparams": {**source.hparams, "padding": "border"}, "model": source.state_dict()}
    with pytest.raises(ValueError, match="these weights: trained with padding=border, but the model has zeros"):
        load_weights(target, checkpoint)
    assert torch.equal(target.head.weight, before)


def test_a_training_may_start_with_another_appearance_than_that_of_the_weights():
    source, target = toy(3), toy(3, appearance=False, seed=5)
    checkpoint = {"hparams": source.hparams, "model": source.state_dict()}
    with pytest.raises(ValueError, match="trained with appearance=True, but the model has False"):
        load_weights(target, checkpoint)
    load_weights(target, checkpoint, new_head=True)
    assert torch.equal(target.token_embedding, source.token_embedding)


def test_load_weights_refuses_other_classes_or_keeps_a_new_head(source):
    target = toy(2, num_classes=11, seed=5)
    head = target.head.weight.clone()
    with pytest.raises(ValueError, match=r"head\.weight.*\(7, 32\).*\(11, 32\)"):
        load_weights(target, source.state_dict())
    report = load_weights(target, source.state_dict(), new_head=True)
    assert set(report.replaced) == {"head.weight", "head.bias"} and not (report.missing or report.unexpected)
    assert torch.equal(target.head.weight, head) and torch.equal(target.norm.weight, source.norm.weight)


def test_load_weights_strict_refuses_missing_names(source, target):
    state = source.state_dict()
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"head\.bias"):
        load_weights(target, state, strict=True)


@pytest.mark.parametrize(
    ("overrides", "name", "shapes"),
    [
        ({"num_tokens": 4}, "token_", ("(6, ", "(4, ")),
        ({"mlp_ratio": 2.0}, "mlp.fc", ("64", "32")),
        ({"num_points": 9}, "", ("4", "9")),
    ],
)
def test_load_weights_refuses_another_architecture_with_both_shapes(source, overrides, name, shapes):
    with pytest.raises(ValueError) as error:
        load_weights(toy(2, **overrides), source.state_dict())
    assert all(text in str(error.value) for text in (name, *shapes))


def test_load_weights_refuses_image_weights_for_a_video_model(source):
    with pytest.raises(ValueError, match="inflate"):
        load_weights(toy(3), source.state_dict())


def test_load_weights_refuses_a_transposed_matrix(source, target):
    """The same number of values in another order is not a reshape."""
    name = "cortex.1.mlp.fc1.weight"
    state = source.state_dict()
    state[name] = state[name].T.contiguous()
    with pytest.raises(ValueError, match=name):
        load_weights(target, state)


def test_load_weights_changes_nothing_if_it_refuses(source):
    target = toy(2, num_classes=11)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError):
        load_weights(target, source.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_load_weights_refuses_objects_in_a_pickle(source, target, tmp_path):
    path = tmp_path / "trainer.pt"
    torch.save({"model": source.state_dict(), "args": argparse.Namespace(lr=1.0)}, path)
    with pytest.raises(ValueError, match=r"trainer\.pt"):
        load_weights(target, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_weights_refuses_a_truncated_file(source, target, tmp_path, suffix):
    path = tmp_path / f"truncated{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_weights(target, path)


def test_saved_safetensors_have_the_mode_of_other_files_and_a_format(source, tmp_path):
    path, other = tmp_path / "a.safetensors", tmp_path / "other"
    save_weights(path, source, classes=["x"])
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"  # other libraries refuse files without it


def test_load_weights_names_a_missing_or_foreign_file(target, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(target, tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        load_weights(target, {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)})


# Tensor names of the authors' bootstrapped checkpoints: the released form and the form before its conversion.
BOOTSTRAPPED = {
    "released": [
        *("feat_extractor.conv1.weight", "initial_roi.weight", "initial_embedding.weight", "cls_embedding.weight"),
        *("layers.0.roi_offset_bias", "layers.0.pe_transition.0.weight", "layers.0.pe_transition.1.weight"),
        *("layers.0.attn.qkv.weight", "layers.0.roi_adjust_module.3.weight", "norm.weight", "proj.weight"),
    ],
    "without a class token": ["initial_roi.weight", "layers.3.pe_transition.1.bias", "layers.3.attn.qkv.weight"],
    "before the conversion": ["token_roi_cc.weight", "token_roi_wh.weight", "global_embedding.weight", "blocks.0.x"],
}


@pytest.mark.parametrize("names", BOOTSTRAPPED.values(), ids=BOOTSTRAPPED)
def test_load_weights_says_what_a_bootstrapped_checkpoint_is(names, target, tmp_path):
    state = {name: torch.zeros(4, 4) for name in names}
    torch.save({"model": state}, tmp_path / "btsp.pth")
    message = r"btsp\.pth: holds a bootstrapped SparseFormer \(arXiv 2312\.01987\).*; use .* sparseformer_v1_tiny"
    for load in (
        lambda path: load_weights(target, path),
        load_model,
        lambda path: load_model(path, "sparseformer_tiny"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "btsp.pth")
    if "initial_roi.weight" in state:
        with pytest.raises(ValueError, match="these weights: holds a bootstrapped SparseFormer"):
            load_weights(target, {f"visual.{name}": tensor for name, tensor in state.items()})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_model_builds_a_saved_network(tmp_path, suffix):
    model, path = toy(3), tmp_path / "new" / f"weights{suffix}"
    save_weights(path, model, classes=["a", "b"])
    again, content = load_model(path)
    assert again.hparams == model.hparams and content["classes"] == ["a", "b"]
    with torch.no_grad():
        assert torch.equal(again.eval()(clip(3)), model(clip(3)))


def test_load_model_needs_a_name_for_bare_tensors(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"bare\.pt.*sparseformer_tiny"):
        load_model(tmp_path / "bare.pt")
    nano = perturbed(create_model("sparseformer_nano", num_classes=5), 0.1)
    torch.save(nano.state_dict(), tmp_path / "nano.pt")
    again, _ = load_model(tmp_path / "nano.pt", "sparseformer_nano")
    assert torch.equal(again.head.weight, nano.head.weight)


def test_import_of_the_networks_needs_torch_alone():
    code = (
        "import sys, sparsevideo, sparsevideo.models\n"
        "sparsevideo.create_model('sparseformer_nano'), sparsevideo.inflate\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torchvision",
        "pytorchvideo",
        "av",
        "PIL",
        "sklearn",
        "scipy",
        "pandas",
        "matplotlib",
        "timm",
        "lightning_fabric",
    }
    assert heavy & set(ran.stdout.split()) == set()


def test_public_names_are_lazy_and_listed():
    names = "SparseFormer create_model inflate list_models load_weights models io data"
    assert set(names.split()) <= set(dir(sparsevideo))
    with pytest.raises(AttributeError, match="no_such_name"):
        sparsevideo.no_such_name  # noqa: B018
