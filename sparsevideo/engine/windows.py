"""Scores of windows of a video whose frames go through the stem once, however many windows they are in.

Letters: T frames of a window, V crops, K classes, C stem channels, H W size of the features, R slots of the ring.
"""

import heapq
from typing import Literal

import torch
from torch import Tensor

from sparsevideo.data.windows import Window
from sparsevideo.engine.predict import MultiViewPredictor
from sparsevideo.models.sampling import Views


class WindowScorer:
    """Scores windows in the order of their frames.

    The features of each frame are computed when its first window needs them, or earlier by `prefetch`, and stay in a
    ring until no later window needs them. Frames go through the stem one by one, and windows through the network one by
    one, so the scores of a window do not depend on the other windows, to the last bit.

    Args:
        predictor: The network, with logits as its output.
        activation: "softmax", or "sigmoid" for classes that do not exclude each other.
        mean_of_logits: Take the mean over the crops of logits instead of probabilities.
    """

    def __init__(
        self,
        predictor: MultiViewPredictor,
        *,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        mean_of_logits: bool = False,
    ) -> None:
        self.predictor, self.activation, self.mean_of_logits = predictor, activation, mean_of_logits
        self._ring: Tensor | None = None  # (R, H, W, C)
        self._first_frame = 0  # of the last window; no later window needs a frame before it
        self._slot_of: dict[int, int] = {}  # frame index -> slot
        self._free: list[int] = []  # a heap: low slots are used again first, so high ones need no memory

    @torch.inference_mode()
    def __call__(self, window: Window) -> Tensor:
        """Return (K,) float32 probabilities, the mean over the crops."""
        self._first_frame = window.frame_indices[0]
        for index in [index for index in self._slot_of if index < self._first_frame]:
            heapq.heappush(self._free, self._slot_of.pop(index))
        with self.predictor.fabric.autocast():
            for frame in zip(window.frame_indices, window.pixels, strict=True):
                self._run_stem(*frame)
            assert self._ring is not None  # a window has frames
            ring = self._ring.movedim(-1, 1)  # (R, C, H, W)
            corners = window.corners.to(ring.device)
            frames = torch.tensor([self._slot_of[index] for index in window.frame_indices], device=ring.device)
            if self.predictor.model.ndim == 3:
                views = Views(frames.new_zeros(len(corners)), corners, frames.expand(len(corners), -1))
                logits = self.predictor.outputs(ring.transpose(0, 1)[None], views)  # (1, C, R, H, W) -> (V, K)
            else:
                logits = self.predictor.outputs(ring, Views(frames.expand(len(corners)), corners))  # (V, K)
        if self.mean_of_logits:
            logits = logits.mean(0, keepdim=True)
        scores = logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid()
        return scores.mean(0).cpu()

    @torch.inference_mode()
    def prefetch(self, frame_index: int, pixels: Tensor) -> None:
        """Compute the features of a frame (3, S, S) uint8 before its window is complete."""
        if frame_index >= self._first_frame:
            with self.predictor.fabric.autocast():
                self._run_stem(frame_index, pixels)

    def _run_stem(self, frame_index: int, pixels: Tensor) -> None:
        """Put the features of a frame into a free slot, if they are in none yet."""
        if frame_index in self._slot_of:
            return
        pixels = pixels.to(self.predictor.fabric.device)[None]  # (1, 3, S, S)
        feat = self.predictor.model.stem(self.predictor.normalize(pixels))[0].movedim(0, -1)  # (H, W, C)
        if not self._free:
            self._grow(feat)
        assert self._ring is not None
        self._slot_of[frame_index] = heapq.heappop(self._free)
        self._ring[self._slot_of[frame_index]] = feat

    def _grow(self, feat: Tensor) -> None:
        """Double the number of slots for features (H, W, C)."""
        old = feat.new_empty(0, *feat.shape) if self._ring is None else self._ring
        num_slots = max(16, 2 * len(old))
        self._free += range(len(old), num_slots)  # still a heap: these are the highest
        self._ring = feat.new_empty(num_slots, *feat.shape)
        self._ring[: len(old)] = old
