"""Scores of all views of a batch of files.

Letters: B files, V views (clips x crops), K classes, D width of the cortex, T frames, H W, S crop size.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from sparsevideo.data.transforms import Normalize
from sparsevideo.models.sampling import Views
from sparsevideo.models.sparseformer import SparseFormer


class MultiViewPredictor:
    """The device's half of a test: batch of B files -> scores (B, V, K), or features (B, V, D).

    A batch holds pixels, uint8 under `image` or `video`, and `clip_index` (B, V). The pixels are those of each view,
    (B, V, 3, [T,] S, S); or, with `boxes` (B, V, 4) and for clips `frames` (B, V, T), those of whole frames
    (B, 1, 3, [F,] H, W), which go through the stem once, and from whose features all views are sampled.

    Args:
        model: The network, in evaluation mode.
        fabric: Device and precision.
        mean: Mean of each channel of pixels in [0, 1].
        std: Standard deviation of each channel.
        batch_size: Views that go through the network together.
        output: "softmax" or "logits" for scores; "features" for the inputs of the classifier.
    """

    def __init__(
        self,
        model: SparseFormer,
        fabric: Fabric,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        output: str = "softmax",
    ) -> None:
        self.model, self.fabric, self.batch_size, self.output = model, fabric, batch_size, output
        self.normalize = Normalize(mean, std).to(fabric.device)

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """Return (B, V, K) scores or (B, V, D) features, float32."""
        num_files, num_views = batch["clip_index"].shape
        pixels = self._to_device(batch["image" if self.model.ndim == 2 else "video"])  # (B*V, 3, [T,] S, S)
        num_parts = math.ceil(num_files * num_views / self.batch_size)
        with self.fabric.autocast():
            if "boxes" in batch:
                frames = self._to_device(batch["frames"]) if self.model.ndim == 3 else None
                source = torch.arange(num_files, device=pixels.device).repeat_interleave(num_views)
                views = Views(source, self._to_device(batch["boxes"]), frames)
                feat = self.model.stem(self.normalize(pixels))
                parts = torch.arange(len(views), device=pixels.device).chunk(num_parts)
                outputs = [self.outputs(feat, views[part]) for part in parts]
            else:
                outputs = [self.outputs(self.model.stem(self.normalize(part))) for part in pixels.chunk(num_parts)]
        return torch.cat(outputs).unflatten(0, (num_files, num_views))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.fabric.device, non_blocking=True).flatten(0, 1)

    def outputs(self, feat: Tensor, views: Views | None = None) -> Tensor:
        """Return (V, K) scores or (V, D) features, float32, of features of the stem or of views of them."""
        tokens = self.model.forward_tokens(feat, views).tokens
        outputs = self.model.forward_head(tokens, pre_logits=self.output == "features").float()
        return outputs.softmax(-1) if self.output == "softmax" else outputs
