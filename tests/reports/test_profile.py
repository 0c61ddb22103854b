"""Counts of a forward pass agree with the published tables and with a formula."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsevideo import create_model
from sparsevideo.reports.profile import count_macs, count_parameters

# name: parameters in millions, GMACs of all operations, GMACs as published; 224 x 224, clips of 32 frames
TABLE = {
    "sparseformer_tiny": (31.5, 2.18, 2.07),
    "sparseformer_small": (47.6, 3.99, 3.85),
    "sparseformer_base": (81.1, 7.99, 7.81),
    "video_sparseformer_tiny": (31.3, 23.1, 22.2),
    "video_sparseformer_small": (47.4, 39.2, 38.0),
    "video_sparseformer_base": (80.9, 75.1, 73.6),
}
# GMACs of stem, focusing, cortex
PARTS = {
    "video_sparseformer_tiny": (5.66, 4.8, 12.6),
    "video_sparseformer_small": (5.66, 8.3, 25.2),
    "video_sparseformer_base": (5.66, 13.4, 55.8),
}


def counted(name, **args):
    with torch.device("meta"):
        model = create_model(name, **args)
    video = name.startswith("video")
    return model, count_macs(model, (1, 3, 32, 224, 224) if video else (1, 3, 224, 224))


def by_hand(h, *, frames=1, height=224, width=224):
    """Compute the multiply-accumulates of each part from the arguments."""
    has_motion = h["motion"] and h["ndim"] == 3
    N, P, C = h["num_tokens"] * h["num_tubes"], h["num_points"], h["stem_channels"]

    def attention(d):
        return 4 * N * d * d + 2 * N * N * d

    def mlp(d):
        return 2 * N * d * int(d * h["mlp_ratio"])

    def products():
        return N * P * C * C + N * P * P * C

    def sampling(d):
        generator = N * (d * (d // 4) + (d // 4) * (C * C + P * P))
        adjust, offset = N * d * 2 * h["ndim"], N * d * P * h["ndim"]
        motion = N * P * C * C if has_motion else 0
        return adjust + offset + motion + generator + products() + N * P * C * d

    d_f, d_c, steps = h["focus_dim"], h["cortex_dim"], h["focus_repeats"] + 1
    return {
        "stem": frames * (height // 2) * (width // 2) * C * 3 * 49,
        "focusing": h["focus_repeats"] * (attention(d_f) + sampling(d_f) + mlp(d_f)),
        "transition": N * d_f * d_c,
        "cortex": h["cortex_depth"] * (attention(d_c) + mlp(d_c)) + sampling(d_c),
        "head": d_c * h["num_classes"],
        "mixing_products": steps * products(),
        "sampling": steps * N * P * C * 2 ** h["ndim"] * (2 if has_motion else 1),
    }


@pytest.mark.parametrize("name", TABLE)
def test_count_macs_gives_the_published_numbers(name):
    model, macs = counted(name, motion=False)  # the published network does not sample motion
    parameters, all_ops, as_published = TABLE[name]
    assert count_parameters(model) / 1e6 == pytest.approx(parameters, rel=0.01)
    assert macs.all_ops / 1e9 == pytest.approx(all_ops, rel=0.01)
    assert macs.as_published / 1e9 == pytest.approx(as_published, rel=0.01)
    if name in PARTS:
        assert [n / 1e9 for n in (macs.stem, macs.focusing, macs.cortex)] == pytest.approx(PARTS[name], rel=0.01)


@pytest.mark.parametrize("motion", [True, False])
@pytest.mark.parametrize("name", [*TABLE, "sparseformer_nano", "video_sparseformer_nano"])
def test_count_macs_agrees_with_the_formula(name, motion):
    model, macs = counted(name, motion=motion)
    frames = 32 if name.startswith("video") else 1
    assert vars(macs) == by_hand(model.hparams, frames=frames)


def test_count_macs_parts_add_up_and_the_model_stays_unchanged():
    """A model with values, in training mode, with checkpointing: the parts are complete, and the model is unchanged."""
    model = create_model("video_sparseformer_nano", activation_checkpointing=True, drop_path=0.1).train()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    macs = count_macs(model, (2, 3, 4, 64, 32))
    # Attention written out: not every torch knows the fused kernel's cost on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(2, 3, 4, 64, 32))
    assert macs.all_ops == counter.get_total_flops() // 2
    one = count_macs(model.train(), (1, 3, 4, 64, 32))
    assert vars(macs) == {name: 2 * count for name, count in vars(one).items()}
    assert model.training and all(p.device.type == "cpu" for p in model.parameters())
    assert all(id(p) == before[name][0] and torch.equal(p, before[name][1]) for name, p in model.named_parameters())


def test_count_parameters_counts_a_shared_parameter_once():
    layer = torch.nn.Linear(3, 4)
    assert count_parameters(torch.nn.Sequential(layer, layer)) == 16


def test_count_macs_refuses_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\)"):
        count_macs(create_model("video_sparseformer_nano"), (1, 3, 64, 64))
