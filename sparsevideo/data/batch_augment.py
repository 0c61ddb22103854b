"""Augmentation of whole training batches on their device, images or clips; all draws are from torch's generators.

`torchvision.transforms.v2` would change training: its Mixup and CutMix pair neighbors in the batch, and its random
erasing covers one box in all samples, with equal noise in all frames. With equal seeds none of 100 batches were equal.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevideo.data import pytorchvideo as ptv


class RandomErasing(nn.Module):
    """Random erasing (Zhong et al., 2017), timm's: cover a random box of some samples, the same box in all frames.

    The box has 2 % to a third of the area, and an aspect ratio between 0.3 and its inverse.

    Args:
        prob: Probability for each sample.
        mode: `pixel` covers with noise, new in each frame; `const` with zeros, the mean of normalized pixels.
    """

    def __init__(self, prob: float, mode: str = "pixel") -> None:
        super().__init__()
        if not 0 <= prob <= 1 or mode not in ("pixel", "const"):
            raise ValueError(f"erasing needs a probability from 0 to 1, and pixel or const; got {prob} and {mode!r}")
        self.prob, self.mode = prob, mode

    def forward(self, inputs: Tensor) -> Tensor:
        """Erase boxes of a copy of normalized inputs (B, 3, [T,] H, W)."""
        from timm.data.random_erasing import RandomErasing  # takes a second to import

        planes = inputs.flatten(1, -3).clone()  # (B, 3 [* T], H, W): timm erases images, of any number of channels
        state = random.getstate()
        random.seed(int(torch.randint(2**62, ())))  # timm draws from Python's generator
        try:
            RandomErasing(self.prob, mode=self.mode, device=inputs.device)(planes)
        finally:
            random.setstate(state)
        return planes.view(inputs.shape)


class MixupCutmix(nn.Module):
    """Pytorchvideo's Mixup and CutMix of each sample with its counterpart at the batch's other end.

    Mixup (Zhang et al., 2018) blends the two. CutMix (Yun et al., 2019) pastes a box, the same in all frames. If both
    are on, each batch gets one of them with equal probability. A batch has one mixing ratio.

    Args:
        num_classes: K.
        mixup_alpha: Mixup's ratio follows Beta(alpha, alpha); 0: no Mixup.
        cutmix_alpha: CutMix's ratio follows Beta(alpha, alpha); 0: no CutMix.
        prob: Probability for each batch.

    Example:
        >>> mix = MixupCutmix(num_classes=3, mixup_alpha=0.8)
        >>> inputs, targets = mix(torch.zeros(2, 3, 8, 8), torch.tensor([0, 2]))
        >>> targets.shape, targets[:, 1].tolist(), round(targets.sum().item(), 3)
        (torch.Size([2, 3]), [0.0, 0.0], 2.0)
    """

    def __init__(
        self, num_classes: int, *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0, prob: float = 1.0
    ) -> None:
        super().__init__()
        if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0 or not 0 <= prob <= 1:
            raise ValueError(
                "mixing needs an alpha above 0, none below 0, and a probability from 0 to 1; "
                f"got Mixup {mixup_alpha}, CutMix {cutmix_alpha} and {prob}"
            )
        self.num_classes, self.prob = num_classes, prob
        self.mix = ptv.MixVideo(
            cutmix_prob=0.5 if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0),
            mixup_alpha=mixup_alpha or 1.0,  # Beta(0, 0) does not exist; this one is not used
            cutmix_alpha=cutmix_alpha or 1.0,
            num_classes=num_classes,
        )

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            inputs: (B, 3, [T,] H, W) floats; not modified. A batch of one is not mixed.
            labels: (B,).

        Returns:
            The mixture, (B, 3, [T,] H, W), and each class's share in it, (B, K) float32, without label smoothing.
        """
        if len(inputs) > 1 and torch.rand(()).item() < self.prob:
            return self.mix(inputs.clone(), labels)  # pytorchvideo writes into its input
        return inputs, F.one_hot(labels, self.num_classes).float()
