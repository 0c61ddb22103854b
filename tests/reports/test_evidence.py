"""Class evidence is the exact derivative of a logit by the size of each sampled feature, and is drawn by its sign."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from toy_runs import NANO

from sparsevideo import create_model
from sparsevideo.models.layers import AdaptiveMixing
from sparsevideo.reports.evidence import AGAINST, FOR, Evidence, class_evidence, save_evidence
from sparsevideo.reports.visualize import SamplingTrace, trace_sampling

TINY = {**NANO, "num_heads": 4, "focus_repeats": 2, "num_classes": 3}


def network(name="video_sparseformer_nano", **args):
    """A float64 network whose boxes, points and mixing depend on the input, as after training."""
    torch.manual_seed(0)
    model = create_model(name, **TINY, **args).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.reset_parameters()
    return model


def logits_with(model, x, sampled, scaled=(0, 0, 0), factor=1.0):
    """Logits with given sampled features (1, N, P, C) at each step, that of one (step, token, point) scaled."""
    features = [each.clone() for each in sampled]
    step, token, point = scaled
    features[step][:, token, point] *= factor
    replacements = iter(features)
    mixings = [module for module in model.modules() if isinstance(module, AdaptiveMixing)]
    hooks = [m.register_forward_pre_hook(lambda _, args: (next(replacements), args[1])) for m in mixings]
    with torch.no_grad():
        logits = model(x.unsqueeze(0))[0]
    for hook in hooks:
        hook.remove()
    return logits


def sampled_features(model, x):
    found = []
    mixings = [module for module in model.modules() if isinstance(module, AdaptiveMixing)]
    hooks = [m.register_forward_pre_hook(lambda _, args: found.append(args[0].clone())) for m in mixings]
    with torch.no_grad():
        model(x.unsqueeze(0))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["video_sparseformer_nano", "sparseformer_nano"])
def test_evidence_is_the_change_of_the_logit_when_one_sampled_feature_grows(name):
    model = network(name).eval()
    x = torch.randn(3, 4, 24, 32) if model.ndim == 3 else torch.randn(3, 24, 32)
    x = x.double()
    evidence = class_evidence(model, x, label=1)
    sampled = sampled_features(model, x)
    assert logits_with(model, x, sampled).numpy() == pytest.approx(model(x[None])[0].detach().numpy(), abs=1e-12)
    steps, tokens, points = evidence.points.shape
    assert (steps, tokens, points) == (len(sampled), *sampled[0].shape[1:3])
    rng, small = np.random.default_rng(0), 1e-4
    for scaled in [(step, rng.integers(tokens), rng.integers(points)) for step in range(steps) for _ in range(5)]:
        up, down = (logits_with(model, x, sampled, scaled, 1 + sign * small)[1] for sign in (1, -1))
        slope = float(up - down) / (2 * small)
        assert evidence.points[scaled] == pytest.approx(slope, rel=1e-4, abs=1e-9)
    assert np.abs(evidence.points).max() > 1e-4  # the network depends on its samples


def test_evidence_adds_up_to_tokens_tubes_and_steps():
    trace = SamplingTrace(np.zeros((2, 4, 6)), np.zeros((2, 4, 3, 3)), num_tubes=2)
    evidence = Evidence(trace, np.zeros(3), 0, np.arange(24.0).reshape(2, 4, 3))
    assert evidence.tokens.tolist() == [[3, 12, 21, 30], [39, 48, 57, 66]]
    assert evidence.tubes.tolist() == [[15, 51], [87, 123]]
    assert evidence.steps.tolist() == [66, 210]


def test_evidence_is_for_the_predicted_class_unless_another_one_is_named():
    model = network()
    x = torch.randn(3, 4, 24, 32)
    predicted = class_evidence(model, x)
    logits = model.eval()(x[None])[0].detach().numpy()
    assert predicted.label == logits.argmax() and predicted.logits == pytest.approx(logits, abs=1e-6)
    same = class_evidence(model, x, predicted.label)
    other = class_evidence(model, x, (predicted.label + 1) % 3)
    assert np.array_equal(same.points, predicted.points) and not np.allclose(other.points, predicted.points)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"label must be from 0 to 2, got {label}"):
            class_evidence(model, x, label)


@pytest.mark.parametrize("training", [True, False])
def test_evidence_leaves_no_gradient_no_hook_and_the_mode(training):
    model = network(drop_path=0.5).train(training)
    x = torch.randn(3, 4, 24, 32)
    evidence = class_evidence(model, x)
    assert model.training == training and all(module.training == training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert x.grad is None
    assert not any(module._forward_pre_hooks for module in model.modules())
    trace = trace_sampling(model, x)  # without drop path, so equal
    assert np.array_equal(evidence.trace.points, trace.points) and np.array_equal(evidence.trace.rois, trace.rois)
    with pytest.raises(ValueError, match="input must be clips"):
        class_evidence(model, torch.randn(3, 24, 32))
    model.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        class_evidence(model, x)
    assert model.training == training and not any(module._forward_pre_hooks for module in model.modules())


def test_evidence_is_the_same_with_activation_checkpointing_and_inside_inference_mode():
    x = torch.randn(3, 4, 24, 32)
    expected = class_evidence(network(), x).points
    assert class_evidence(network(activation_checkpointing=True), x).points == pytest.approx(expected, abs=1e-6)
    model = network()
    with torch.inference_mode():
        assert np.array_equal(class_evidence(model, x * 1).points, expected)


def test_evidence_of_a_point_outside_the_frame_is_zero():
    model = network()
    with torch.no_grad():
        model.token_roi[0] = torch.tensor([3.0, 3.0, 0.0, 3.1, 3.1, 1.0])
        model.focus.adjust.proj.weight.zero_()
    evidence = class_evidence(model, torch.randn(3, 4, 24, 32))
    assert (evidence.points[0, 0] == 0).all() and (evidence.points[0, 1] != 0).any()


def colored(picture, color):
    """Centroid (x, y) of the pixels of this hue, in fractions of the picture; None if there are few."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    close = np.abs(picture / np.maximum(picture.max(-1, keepdims=True), 1e-3) - rgb / rgb.max()).max(-1) < 0.06
    close &= picture.max(-1) > 0.3
    rows, columns = np.nonzero(close)
    return None if len(rows) < 30 else (columns.mean() / picture.shape[1], rows.mean() / picture.shape[0], len(rows))


def test_save_evidence_draws_the_sign_as_color_and_the_size_as_area(tmp_path):
    points = np.array([[[[0.25, 0.5, 0.5], [0.75, 0.5, 0.5]]]])
    trace = SamplingTrace(np.zeros((1, 1, 6)), points, num_tubes=1)
    evidence = Evidence(trace, np.zeros(2), 0, np.array([[[4.0, -1.0]]]))
    save_evidence(tmp_path / "evidence.png", np.zeros((1, 40, 40, 3), np.uint8), evidence, "$5")
    picture = imread(tmp_path / "evidence.png")[..., :3]
    frame = picture[(picture.max(-1) < 0.05).mean(1) > 0.2]  # the rows of the black frame
    left, right = colored(frame, FOR), colored(frame, AGAINST)
    assert left[0] < 0.5 < right[0]
    assert left[2] / right[2] == pytest.approx(4, rel=0.4)


@pytest.mark.parametrize(("tubes", "frames"), [(1, 1), (4, 12), (32, 32)])
def test_save_evidence_accepts_images_and_clips(tmp_path, tubes, frames):
    rng = np.random.default_rng(0)
    trace = SamplingTrace(np.zeros((3, tubes, 6)), rng.random((3, tubes, 4, 3)), num_tubes=tubes)
    evidence = Evidence(trace, np.zeros(2), 0, rng.normal(size=(3, tubes, 4)))
    pixels = rng.integers(256, size=(frames, 20, 30, 3), dtype=np.uint8)
    save_evidence(tmp_path / "evidence.png", pixels, evidence, "left", title="a clip")
    picture = imread(tmp_path / "evidence.png")[..., :3]
    assert colored(picture, FOR) and colored(picture, AGAINST)
