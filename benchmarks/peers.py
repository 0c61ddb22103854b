"""Other networks that our loop trains, at the cost of our nano networks, to compare accuracies at equal compute.

    python -m benchmarks.peers

prints a table of all networks: arguments, parameters and multiply-accumulates. `benchmarks.pretraining` trains them.
Like our nano networks, they have neither dropout nor drop path.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from pytorchvideo.models.x3d import create_x3d
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import resnet as video_resnet
from torchvision.models.video.swin_transformer import SwinTransformer3d

from sparsevideo.commands import train
from sparsevideo.models import create, presets, weights
from sparsevideo.models.layers import Stem
from sparsevideo.models.sampling import Views
from sparsevideo.models.sparseformer import Features, SparseFormer
from sparsevideo.reports.profile import count_parameters

NUM_CLASSES = 200  # of Tiny-ImageNet; the costs below include the head
OURS = {2: "sparseformer_nano", 3: "video_sparseformer_nano"}
INPUTS = {2: (1, 3, 64, 64), 3: (1, 3, 16, 64, 64)}
R2PLUS1D = {"ndim": 3, "architecture": "r2plus1d", "layers": [2, 2, 2, 2], "channels": [12, 22, 44, 88]}
# Name of a network -> its axes, its architecture and the arguments of that. Channels and widths are those at which the
# cost is that of our network with 200 classes.
PEERS: dict[str, dict[str, Any]] = {
    "vit_patch8": {
        "ndim": 2,
        "architecture": "vit",
        **{"img_size": 64, "patch_size": 8, "embed_dim": 66, "depth": 4, "num_heads": 3},
    },
    "vit_patch16": {
        "ndim": 2,
        "architecture": "vit",
        **{"img_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 5, "num_heads": 4},
    },
    "resnet": {
        "ndim": 2,
        "architecture": "resnet",
        **{"layers": [2, 2, 2, 2], "channels": [20, 40, 80, 160], "stem_type": "deep", "stem_width": 10},
    },
    "r2plus1d": R2PLUS1D,
    "r2plus1d_differences": {**R2PLUS1D, "differences": True},
    "x3d": {
        "ndim": 3,
        "architecture": "x3d",
        **{"stem_dim_in": 12, "width_factor": 1.0, "depth_factor": 2.2, "head_dim_out": 1024},
    },
    "swin3d": {
        "ndim": 3,
        "architecture": "swin3d",
        **{"patch_size": [2, 4, 4], "window_size": [4, 4, 4]},
        **{"embed_dim": 24, "depths": [2, 2, 3], "num_heads": [1, 2, 4]},
    },
    "sparseformer_differences": {
        **presets.preset("video_sparseformer_nano"),
        **{"architecture": "sparseformer_differences", "motion": False},
    },
    "frame_average": {**presets.preset("sparseformer_nano"), "ndim": 3, "architecture": "frame_average"},
}


class Peer(nn.Module):
    """Another network with the interface of SparseFormer that training and testing use.

    Args:
        ndim: 2 for images (B, 3, H, W), 3 for clips (B, 3, T, H, W).
        num_classes: Outputs of the head.
        architecture: Name in `ARCHITECTURES`.
        differences: Replace the pixels of each frame of a clip by their change since the frame before.
        args: Arguments of the architecture.

    Raises:
        ValueError: An image network cannot have differences.
    """

    def __init__(self, *, ndim: int, num_classes: int, architecture: str, differences: bool = False, **args: Any):
        super().__init__()
        if differences and ndim == 2:
            raise ValueError("differences: an image has one frame; set it to false")
        self.ndim, self.num_classes, self.differences = ndim, num_classes, differences
        self.hparams = {"ndim": ndim, "num_classes": num_classes, "architecture": architecture, **args}
        self.hparams |= {"differences": True} if differences else {}
        self.network = ARCHITECTURES[architecture](num_classes=num_classes, **args)
        self.stem = nn.Identity()  # a test calls stem, `forward_tokens` and `forward_head` in this order

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return self.network(x.diff(dim=2, prepend=x[:, :, :1]) if self.differences else x)

    def forward_tokens(self, x: Tensor, views: Views | None = None) -> Features:
        """Return the logits (B, K) as tokens.

        Raises:
            ValueError: There are views, which only SparseFormer samples from shared features.
        """
        if views is not None:
            raise ValueError(f"test.share_stem is not possible with {self.hparams['architecture']}; set it to false")
        return Features(self(x), [], [])

    def forward_head(self, logits: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K).

        Raises:
            ValueError: `pre_logits` is set; a peer has no features to extract.
        """
        if pre_logits:
            raise ValueError(f"{self.hparams['architecture']} has only scores, no features")
        return logits

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position embeddings."""
        embeddings = ("pos_embed", "relative_position_bias_table")
        return {name for name, _ in self.named_parameters() if name.endswith(embeddings)}


class _DifferenceStem(Stem):
    """Stem of the change of each pixel since the frame before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.diff(dim=2, prepend=x[:, :, :1]))


class OnDifferences(SparseFormer):
    """Video network whose stem gets the change of each pixel since the frame before."""

    def __init__(self, *, architecture: str, **hparams: Any):
        super().__init__(**hparams)
        self.stem = _DifferenceStem(self.hparams["stem_channels"], self.ndim)
        self.hparams["architecture"] = architecture


class FrameAverage(SparseFormer):
    """Image network on each frame of clips (B, 3, T, H, W); its logits are the mean over the frames.

    The tensors have the names of the image network, so files of its weights can be loaded.
    """

    def __init__(self, *, architecture: str, **hparams: Any):
        super().__init__(**{**hparams, "ndim": 2})
        self.ndim = 3
        self.hparams["architecture"] = architecture

    def forward_tokens(self, feat: Tensor, views: Views | None = None) -> Features:
        """Return the tokens (B, T, N, D) of features (B, C, T, H, W) of the stem."""
        frames = super().forward_tokens(feat.transpose(1, 2).flatten(0, 1), views)  # (B*T, N, D)
        return replace(frames, tokens=frames.tokens.unflatten(0, (len(feat), -1)))

    def forward_head(self, tokens: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K) of tokens (B, T, N, D), or with `pre_logits` the classifier's inputs (B, D).

        The classifier is linear, so the logits of the mean input are the mean of the logits.
        """
        pooled = self.norm(tokens.mean(dim=2)).mean(dim=1)
        return pooled if pre_logits else self.head(pooled)


class NarrowVideoResNet(video_resnet.VideoResNet):
    """R(2+1)D with other numbers of channels, and with a max pool after the stem, as in image networks.

    Args:
        num_classes: Outputs of the head.
        layers: Blocks of each of the four stages.
        channels: Channels of each stage.
    """

    def __init__(self, *, num_classes: int, layers: list[int], channels: list[int]):
        self.channels = dict(zip((64, 128, 256, 512), channels, strict=True))  # torchvision's -> ours
        first, middle = channels[0], round(45 / 64 * channels[0])
        super().__init__(
            video_resnet.BasicBlock,
            [video_resnet.Conv2Plus1D] * 4,
            layers,
            stem=lambda: nn.Sequential(
                nn.Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
                nn.BatchNorm3d(middle),
                nn.ReLU(inplace=True),
                nn.Conv3d(middle, first, (3, 1, 1), padding=(1, 0, 0), bias=False),
                nn.BatchNorm3d(first),
                nn.ReLU(inplace=True),
                nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            ),
        )
        self.fc = nn.Linear(channels[-1], num_classes)
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def _make_layer(self, block: Any, conv_builder: Any, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.channels[64]
        return super()._make_layer(block, conv_builder, self.channels[planes], blocks, stride)


def _x3d(num_classes: int, **args: Any) -> nn.Module:
    network = create_x3d(model_num_class=num_classes, dropout_rate=0.0, head_activation=None, **args)
    network.blocks[-1].pool.pool = nn.AdaptiveAvgPool3d(1)  # its own has the size of one kind of clips
    return network


def _vit(**args: Any) -> nn.Module:
    return VisionTransformer(class_token=False, global_pool="avg", **args)


def _resnet(**args: Any) -> nn.Module:
    return ResNet(BasicBlock, **args)


def _swin3d(**args: Any) -> nn.Module:
    return SwinTransformer3d(stochastic_depth_prob=0.0, **args)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vit": _vit,
    "resnet": _resnet,
    "r2plus1d": NarrowVideoResNet,
    "x3d": _x3d,
    "swin3d": _swin3d,
}


def build_network(**hparams: Any) -> nn.Module:
    """Build a SparseFormer or a peer from its arguments."""
    kinds = {None: SparseFormer, "frame_average": FrameAverage, "sparseformer_differences": OnDifferences}
    return kinds.get(hparams.get("architecture"), Peer)(**hparams)


@contextmanager
def peers_allowed() -> Iterator[None]:
    """Let `model.name` be the name of a peer, and let training and testing rebuild it from a checkpoint."""
    with ExitStack() as patches:
        patches.enter_context(patch.dict(presets._PRESETS, PEERS))
        for module in (create, weights, train):
            patches.enter_context(patch.object(module, "SparseFormer", build_network))
        yield


def create_network(name: str, num_classes: int = NUM_CLASSES) -> nn.Module:
    """Build a network of ours or a peer from its name."""
    with peers_allowed():
        return create.create_model(name, num_classes=num_classes)


def count_gmac(model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Count the multiply-accumulates of a forward pass in 10^9, with the counter of `sparsevideo.reports.profile`."""
    meta_copy = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        meta_copy(torch.empty(*input_shape, device="meta"))
    return counter.get_total_flops() / 2e9


def table() -> str:
    """Return the arguments and the cost of all networks, in Markdown."""
    lines = [f"{NUM_CLASSES} classes; images of 64 x 64 pixels, clips of 16 frames of 64 x 64 pixels.\n"]
    lines += ["| network | arguments | parameters, M | GMAC | GMAC / ours |", "|---|---|---|---|---|"]
    for ndim, ours in OURS.items():
        base = count_gmac(create_network(ours), INPUTS[ndim])
        for name in [ours, *(name for name, args in PEERS.items() if args["ndim"] == ndim)]:
            model = create_network(name)
            args = ", ".join(
                f"{key} {value}" for key, value in PEERS.get(name, {}).items() if key not in ("ndim", "architecture")
            )
            gmac = count_gmac(model, INPUTS[ndim])
            lines += [f"| {name} | {args} | {count_parameters(model) / 1e6:.3f} | {gmac:.4f} | {gmac / base:.2f} |"]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(table())


if __name__ == "__main__":
    main()
