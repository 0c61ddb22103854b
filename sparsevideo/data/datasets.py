"""Map-style data sets of videos and of images. All randomness is a function of (seed, epoch, index)."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from sparsevideo.data.clips import middle_frame, random_clip, spread_clips
from sparsevideo.data.decode import DecodeError, open_video, read_image, resolve_decoder
from sparsevideo.data.records import Records
from sparsevideo.data.transforms import TestTransform, TrainTransform

Item = dict[str, Any]

_MAX_BAD_IN_A_ROW = 20  # with so many something other than the files is wrong


class _LabelledFiles(Dataset[Item]):
    """What both data sets share: the item's keys, seeds and the failure policy."""

    def __init__(self, records: Records, transform: TrainTransform | TestTransform, seed: int) -> None:
        self.records, self.transform, self.seed = records, transform, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        if isinstance(self.transform, TestTransform):
            return self._test_item(index, self.transform)
        return self._training_item(epoch, index, self.transform)

    @abstractmethod
    def _load(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        """Decode clips (k, T, H, W, 3): one chosen by `rng`, or without it all clips of a test."""

    @abstractmethod
    def _pixels(self, video: Tensor) -> Item:
        """Name the pixels (..., 3, T, S, S)."""

    def _training_item(self, epoch: int, index: int, transform: TrainTransform) -> Item:
        failures: list[tuple[int, str, str]] = []
        for number in range(index, index + min(len(self), _MAX_BAD_IN_A_ROW)):
            place = number % len(self)
            rng = np.random.default_rng((self.seed, epoch, index))
            try:
                (frames,) = self._load(self.records.path(place), rng)
            except (DecodeError, OSError) as error:
                failures.append((place, self.records.name(place), str(error)))
                continue
            video, label = transform(frames, int(self.records.labels[place]), rng)
            views = {"label": label, "clip_index": 0, "aug_index": 0}
            return self._pixels(video) | views | self._origin(place) | {"failures": failures}
        raise DecodeError(f"{len(failures)} files in a row do not decode; the first: {failures[0][-1]}")

    def _test_item(self, index: int, transform: TestTransform) -> Item:
        item = {"label": int(self.records.labels[index])} | self._origin(index)
        try:
            clips = self._load(self.records.path(index), None)
        except (DecodeError, OSError) as error:
            return item | {"failures": [(index, self.records.name(index), str(error))]}
        k = len(clips)
        video = transform(rearrange(clips, "k t h w c -> (k t) h w c"))  # (crops, 3, k * T, S, S)
        views = {
            "clip_index": torch.arange(k).repeat_interleave(transform.crops),
            "aug_index": torch.arange(transform.crops).repeat(k),
        }
        return item | self._pixels(rearrange(video, "a c (k t) h w -> (k a) c t h w", k=k)) | views | {"failures": []}

    def _origin(self, index: int) -> Item:
        return {"video_index": index, "video_name": self.records.name(index)}


class VideoDataset(_LabelledFiles):
    """Clips of videos. The index is a video's number, or (epoch, number).

    In training an item is one random clip: `video` (3, T, S, S) uint8. A file that does not decode is replaced by the
    next in the list, and told in `failures`: a list of (video_index, name, reason).

    In a test an item holds all views of one video: `video` (V, 3, T, S, S) uint8, V = clips x crops, clip after clip,
    from one opening of the file. A file that does not decode is not replaced: it has `failures` and no `video`.

    The other keys are pytorchvideo's: `label`, `video_index`, `video_name`, and `clip_index` and `aug_index` (the
    crop), which are 0 in training and (V,) tensors in a test.

    Args:
        records: The videos.
        num_frames: T, frames in a clip.
        frame_stride: Take every n-th frame.
        transform: A `TrainTransform` without `num_clips`, a `TestTransform` with it.
        num_clips: Clips of each video in a test; None in training.
        convention: How a test spreads its clips, see `clips.spread_clips`.
        seed: Of the random choices in training.
        decoder: See `decode.resolve_decoder`.
        short_side: Scale frames to this short side while decoding; None keeps their size.
        still: Repeat the video's middle frame instead, to see what motion is worth.
    """

    def __init__(
        self,
        records: Records,
        *,
        num_frames: int,
        frame_stride: int,
        transform: TrainTransform | TestTransform,
        num_clips: int | None = None,
        convention: str = "ends",
        seed: int = 0,
        decoder: str = "auto",
        short_side: int | None = None,
        still: bool = False,
    ) -> None:
        super().__init__(records, transform, seed)
        if isinstance(transform, TestTransform) != (num_clips is not None):
            raise ValueError(f"num_clips and TestTransform go together; got {num_clips} and {type(transform).__name__}")
        self.num_frames, self.frame_stride, self.convention = num_frames, frame_stride, convention
        self.num_clips = 1 if num_clips is None else num_clips
        self.decoder, self.short_side, self.still = resolve_decoder(decoder), short_side, still
        self._numbers(1, None)  # impossible numbers stop here rather than in a worker

    def _load(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        with open_video(path, self.decoder) as video:
            numbers = self._numbers(video.num_frames, rng)
            frames = video.read(numbers.ravel(), self.short_side)
        return rearrange(frames, "(k t) h w c -> k t h w c", t=self.num_frames)

    def _numbers(self, total: int, rng: np.random.Generator | None) -> np.ndarray:
        """Choose the (k, T) frames to read."""
        if rng is None:
            numbers = spread_clips(total, self.num_frames, self.frame_stride, self.num_clips, self.convention)
        else:
            numbers = random_clip(total, self.num_frames, self.frame_stride, rng)[None]
        return np.full_like(numbers, middle_frame(total)) if self.still else numbers

    def _pixels(self, video: Tensor) -> Item:
        return {"video": video}


class ImageDataset(_LabelledFiles):
    """Images: `image` (3, S, S) with a `TrainTransform`, (V, 3, S, S) with a `TestTransform`, V = crops.

    All else is as in `VideoDataset`.

    Args:
        records: The images.
        transform: What happens to their pixels.
        seed: Of the random choices in training.
    """

    def __init__(self, records: Records, *, transform: TrainTransform | TestTransform, seed: int = 0) -> None:
        super().__init__(records, transform, seed)

    def _load(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        return read_image(path)[None, None]

    def _pixels(self, video: Tensor) -> Item:
        return {"image": video.squeeze(-3)}
