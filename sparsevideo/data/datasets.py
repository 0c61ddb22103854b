"""Map-style data sets of videos and of images. All randomness is a function of (seed, epoch, index)."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from sparsevideo.data import clip_sampling, protocols
from sparsevideo.data.frame_index import Index
from sparsevideo.data.loader import reading
from sparsevideo.data.records import Records
from sparsevideo.data.segments import WHOLE, frame_range
from sparsevideo.data.transforms import Box, TestTransform, TrainTransform, resized_crop
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.reader import Video

Item = dict[str, Any]
Rngs = Sequence[np.random.Generator]

SAMPLINGS = ("consecutive", "uniform")
_MAX_BAD_IN_A_ROW = 20  # more are not the fault of the files


class _Decoded(NamedTuple):
    """Crops of one file."""

    pixels: Tensor  # (k, A, 3, T, S, S) uint8: A boxes of each of k clips
    size: tuple[int, int]  # height and width of the frames before the crop
    stored_size: tuple[int, int]  # height and width of the frames in the file
    frame_indices: np.ndarray  # (k, T) of each clip in the file
    positions: np.ndarray  # (k, T): of each clip's frames among the decoded ones, for clips that share them
    clip_spans: Tensor | None = None  # (k, 2) float64 seconds
    sample_aspect_ratio: float = 1.0  # width over height of a stored pixel
    repeats_frames: bool = False  # the video has too few frames for a clip


class _LabeledFiles(Dataset[Item | list[Item]]):
    """Common part of both data sets: the item's keys, seeds, boxes and the failure policy."""

    def __init__(
        self,
        records: Records,
        transform: TrainTransform | TestTransform,
        *,
        seed: int,
        num_repeats: int,
        num_clips: int = 1,
        share_stem: bool = False,
    ) -> None:
        if num_repeats < 1:
            raise ValueError(f"num_repeats must be >= 1, got {num_repeats}")
        if share_stem and not isinstance(transform, TestTransform):
            raise ValueError("share_stem is for tests: training crops differ from clip to clip; set it to False")
        if share_stem and isinstance(transform, TestTransform) and transform.rule:
            raise ValueError("share_stem has crops of its own; the transform's protocol must be ends")
        self.records, self.transform, self.seed = records, transform, seed
        self.num_repeats, self.num_clips, self.share_stem = num_repeats, num_clips, share_stem

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Item | list[Item]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        if isinstance(self.transform, TestTransform):
            return self._test_item(index, self.transform)
        items = self._training_items(epoch, index, self.transform)
        return items if self.num_repeats > 1 else items[0]

    @abstractmethod
    def _decode(self, index: int, rngs: Rngs) -> _Decoded:
        """Decode one training clip of a file for each of `rngs`; if there are none, all clips of a test."""

    @abstractmethod
    def _name_pixels(self, views: Tensor) -> Item:
        """Return the item's key and pixels of views (..., 3, T, S, S)."""

    def _plan_crops(self, height: int, width: int, rngs: Rngs) -> tuple[list[list[Box]], tuple[int, int]]:
        """Return the boxes of each clip in frames of this size, and the height and width of the results."""
        transform = self.transform
        if not isinstance(transform, TestTransform):
            return [transform.boxes(height, width, rng) for rng in rngs], (transform.size, transform.size)
        if self.share_stem:
            return [[(0, 0, height, width)]], transform.whole_shape(height, width)
        return [transform.boxes(height, width)] * self.num_clips, transform.shape(height, width)

    def _crop_frames(
        self, frames: Iterable[tuple[int, np.ndarray]], frame_indices: np.ndarray, rngs: Rngs
    ) -> tuple[Tensor, tuple[int, int]]:
        """Cut the boxes of all clips out of each frame as it is decoded.

        Args:
            frames: (frame index, (H, W, 3)), each once, all of one size.
            frame_indices: (k, T) of each clip.
            rngs: See `_decode`.

        Returns:
            (k, A, 3, T, S, S) uint8, A boxes of each clip, and the height and width of the frames before the crop.
        """
        views: np.ndarray | None = None
        for frame_index, frame in frames:
            if isinstance(self.transform, TestTransform):
                frame = self.transform.resize(frame)
            if views is None:
                height, width = frame.shape[:2]
                boxes, shape = self._plan_crops(height, width, rngs)
                # Channels stay last in memory: frames are decoded so, and the network's convolution reads them so.
                views = np.empty((len(frame_indices), len(boxes[0]), frame_indices.shape[1], *shape, 3), np.uint8)
            crops: dict[Box, np.ndarray] = {}  # clips may share a frame, and in a test all share their boxes
            for clip, position in zip(*np.nonzero(frame_indices == frame_index), strict=True):
                for crop, box in enumerate(boxes[clip]):
                    if box not in crops:
                        crops[box] = resized_crop(frame, box, shape).permute(1, 2, 0).numpy()  # (S, S, 3)
                    views[clip, crop, position] = crops[box]
        assert views is not None  # `frames` yields at least one frame or raises
        return rearrange(torch.from_numpy(views), "k a t h w c -> k a c t h w"), (height, width)

    def _training_items(self, epoch: int, index: int, transform: TrainTransform) -> list[Item]:
        failures: list[tuple[int, str, str]] = []
        for step in range(min(len(self), _MAX_BAD_IN_A_ROW)):
            file_index = (index + step) % len(self)
            rngs = [np.random.default_rng((self.seed, epoch, index, r)) for r in range(self.num_repeats)]
            try:
                with reading(self.records.segment_path(file_index)):
                    decoded = self._decode(file_index, rngs)
            except (DecodeError, OSError) as error:
                failures.append((file_index, self.records.name(file_index), self.records.reason(file_index, error)))
                continue
            items = []
            for clip_index, (view, rng) in enumerate(zip(decoded.pixels[:, 0], rngs, strict=True)):  # (3, T, S, S)
                pixels, label = transform.finish(view, int(self.records.labels[file_index]), rng)
                origin = self._origin(file_index) | {"label": label, "clip_index": clip_index, "aug_index": 0}
                origin["sample_aspect_ratio"] = decoded.sample_aspect_ratio
                items.append(self._name_pixels(pixels) | origin | {"failures": failures if clip_index == 0 else []})
            return items
        raise DecodeError(
            f"{len(failures)} files in a row do not decode; check that data.root is complete (`sparsevideo data scan`"
            f" lists the files that do not decode); the first: {failures[0][-1]}"
        )

    def _test_item(self, index: int, transform: TestTransform) -> Item:
        item: Item = {"label": int(self.records.labels[index])} | self._origin(index)
        try:
            with reading(self.records.segment_path(index)):
                decoded = self._decode(index, [])
        except (DecodeError, OSError) as error:
            return item | {"failures": [(index, self.records.name(index), self.records.reason(index, error))]}
        height, width = decoded.size
        boxes = transform.boxes(height, width)
        item |= self._name_pixels(decoded.pixels.flatten(0, 1))
        item |= {"short_side": min(decoded.stored_size), "failures": []}
        item["stored_size"] = torch.tensor(decoded.stored_size)
        item["frame_indices"] = torch.from_numpy(decoded.frame_indices)
        item["crops"] = transform.corners(height, width)  # (A, 4)
        item["sample_aspect_ratio"] = decoded.sample_aspect_ratio
        item["repeats_frames"] = decoded.repeats_frames
        item["clip_index"] = torch.arange(self.num_clips).repeat_interleave(len(boxes))
        item["aug_index"] = torch.arange(len(boxes)).repeat(self.num_clips)
        if decoded.clip_spans is not None:
            item["clip_spans"] = decoded.clip_spans
        if self.share_stem:
            item["boxes"] = item["crops"].repeat(self.num_clips, 1)  # (V, 4)
            item["frames"] = torch.from_numpy(decoded.positions).repeat_interleave(len(boxes), dim=0)  # (V, T)
        return item

    def _origin(self, index: int) -> Item:
        return {"video_index": index, "video_name": self.records.segment(index)}


class VideoDataset(_LabeledFiles):
    """Clips of videos. The key is a video's index, or (epoch, index).

    In training an item is one random clip: `video` (3, T, S, S) uint8; if `num_repeats` is above 1, a list of so many,
    from one opening of the file. A file that does not decode is replaced by the next in the list, and reported in
    `failures`: a list of (video_index, name, reason).

    In a test an item holds all views of one video: `video` (V, 3, T, S, S) uint8, V = clips x crops, clip after clip,
    from one opening of the file; `short_side` and `stored_size` (height and width) of the stored frames;
    `repeats_frames`, whether it has fewer frames than a clip; `frame_indices` (clips, T) in the file; and `crops`
    (A, 4), the corners (x, y, x, y) of each crop as fractions. A file that does not decode is not replaced: it has
    `failures` and no `video`. With `share_stem`, `video` is (1, 3, F, H, W), the frames of all clips, each once and
    whole; `frames` (V, T) has the positions of each view's frames among them, and `boxes` (V, 4) its corners.

    Both have `sample_aspect_ratio`, a float, see `Video.sample_aspect_ratio`. The other keys are pytorchvideo's:
    `label`, `video_index`, `video_name` (with its seconds if only a part of it counts, see `Records.segment`), and
    `clip_index` and `aug_index` (the crop), which are ints in training and (V,) tensors in a test.

    Frames are decoded one by one, and only their crops are kept.

    Args:
        records: The videos: files, or members of tar shards. If a record has a segment, clips are taken from it.
        num_frames: T, frames in a clip.
        frame_stride: Take every n-th frame.
        transform: A `TrainTransform` without `num_clips`, a `TestTransform` with it.
        num_clips: Clips of each video in a test; None in training.
        protocol: Protocol that chooses the frames of test clips, a name in `protocols.PROTOCOLS`.
        sampling: "consecutive": every n-th frame from a start on; "uniform": one frame from each of T equal parts of
            the whole video, see `clip_sampling.uniform_clips`, which ignores the stride and the protocol.
        target_fps: Frames per second that the stride counts in. None: the video's own, or the test protocol's default.
        num_repeats: Clips of each video in training.
        seed: Seed of the random choices in training.
        decoder: See `resolve_decoder`.
        short_side: Resize frames to this short side while decoding; None keeps their size.
        square_pixels: Resize frames whose pixels are not square while decoding, see `Video.read`.
        frame_order: Order of the frames of each clip, a name in `clip_sampling.FRAME_ORDERS`, see
            `clip_sampling.order_frames`. Frames are decoded in the order of the file.
        share_stem: In a test, return whole frames once instead of views.
        with_clip_spans: In a test, also return `clip_spans` (num_clips, 2) float64, see `clip_sampling.clip_spans`.
        index: Result of a scan of the files.
    """

    def __init__(
        self,
        records: Records,
        *,
        num_frames: int,
        frame_stride: int,
        transform: TrainTransform | TestTransform,
        num_clips: int | None = None,
        protocol: str = "ends",
        sampling: str = "consecutive",
        target_fps: float | None = None,
        num_repeats: int = 1,
        seed: int = 0,
        decoder: str = "auto",
        short_side: int | None = None,
        square_pixels: bool = False,
        frame_order: str = "forward",
        share_stem: bool = False,
        with_clip_spans: bool = False,
        index: Index | None = None,
    ) -> None:
        clips_each = 1 if num_clips is None else num_clips
        super().__init__(
            records, transform, seed=seed, num_repeats=num_repeats, num_clips=clips_each, share_stem=share_stem
        )
        if isinstance(transform, TestTransform) != (num_clips is not None):
            raise ValueError(f"num_clips and TestTransform go together; got {num_clips} and {type(transform).__name__}")
        if sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
        if frame_order not in clip_sampling.FRAME_ORDERS:
            orders = ", ".join(clip_sampling.FRAME_ORDERS)
            raise ValueError(f"unknown frame order {frame_order!r}; it must be one of {orders}")
        self.num_frames, self.frame_stride, self.protocol = num_frames, frame_stride, protocol
        self.sampling, self.target_fps = sampling, target_fps
        consecutive_test = num_clips is not None and sampling == "consecutive"
        self._scales_span = protocols.find_protocol(protocol).scales_span and consecutive_test
        self.decoder, self.short_side = resolve_decoder(decoder), short_side
        self.frame_order, self.square_pixels = frame_order, square_pixels
        self.index, self.with_clip_spans = index, with_clip_spans
        self._choose_frames(1, [])  # impossible settings stop here rather than in a worker

    def _decode(self, index: int, rngs: Rngs) -> _Decoded:
        path = self.records.source(index)
        table = None if self.index is None else self.index.checked_table(index, path)
        with open_video(path, self.decoder, table=table) as video:
            timeline = self._timeline(video, index)
            header = self._header(video, len(timeline)) if self._scales_span else None
            clips = timeline[self._choose_frames(len(timeline), rngs, header)]  # (k, T)
            repeats = any(len({*clip}) < len(clip) for clip in clips.tolist())
            middle, name = timeline[len(timeline) // 2], self.records.segment(index)
            frame_indices = clip_sampling.order_frames(clips, self.frame_order, middle=middle, name=name)
            distinct, positions = np.unique(frame_indices, return_inverse=True)
            frames = video.frames(distinct, self.short_side, square_pixels=self.square_pixels)
            pixels, size = self._crop_frames(frames, distinct[None] if self.share_stem else frame_indices, rngs)
            spans = None
            if self.with_clip_spans:
                seconds = clip_sampling.clip_spans(video.times_s, frame_indices)
                if not self.records.in_frames:  # a frame of a segment may end after the segment does
                    seconds = seconds.clip(*self.records.span(index))
                spans = torch.from_numpy(seconds)
            stored_size, ratio = video.stored_size or size, float(video.sample_aspect_ratio)
            positions = positions.reshape(frame_indices.shape)
            return _Decoded(pixels, size, stored_size, frame_indices, positions, spans, ratio, repeats)

    def _timeline(self, video: Video, index: int) -> np.ndarray:
        """Return the indices of the frames that clips are taken from."""
        frames, span = np.arange(video.num_frames), self.records.span(index)
        target_fps = None if self._scales_span else self.target_fps
        try:
            if self.records.in_frames:  # exact at any rate, and without the times
                frames, span = frames[frame_range(span, len(frames))], WHOLE
            if span == WHOLE and target_fps is None:
                return frames  # times may cost the decoding of the whole file
            times_s = video.times_s
            if span != WHOLE:
                frames = clip_sampling.within(times_s, *span)
            if target_fps is not None:
                frames = frames[clip_sampling.at_fps(times_s[frames], target_fps)]
        except ValueError as error:
            raise DecodeError(f"{video.path}: {error}") from error
        return frames

    def _header(self, video: Video, total: int) -> protocols.Header:
        """Return the times of the `total` frames that clips are taken from."""
        if video.frame_rate is None:
            raise DecodeError(f"{video.path}: states no frame rate, which test protocol {self.protocol} needs")
        duration = video.header_times[1]
        if total < video.num_frames or duration is None:
            return protocols.Header.usual(total, float(video.frame_rate))
        return protocols.Header(video.frame_rate, video.time_base, duration)

    def _choose_frames(self, total: int, rngs: Rngs, header: protocols.Header | None = None) -> np.ndarray:
        """Choose (k, T) positions on a timeline."""
        if self.sampling == "uniform" and rngs:
            return np.stack([clip_sampling.uniform_clip(total, self.num_frames, rng) for rng in rngs])
        if self.sampling == "uniform":
            return clip_sampling.uniform_clips(total, self.num_frames, self.num_clips)
        if rngs:
            size = self.num_frames, self.frame_stride
            return np.stack([clip_sampling.random_clip(total, *size, rng) for rng in rngs])
        args = (self.num_frames, self.frame_stride, self.num_clips, header, self.target_fps)
        return protocols.protocol_clips(self.protocol, total, *args)

    def _name_pixels(self, views: Tensor) -> Item:
        return {"video": views}


class ImageDataset(_LabeledFiles):
    """Images: `image` (3, S, S) with a `TrainTransform`, (V, 3, S, S) with a `TestTransform`, V = crops.

    All else, also the arguments, is as in `VideoDataset`.
    """

    def __init__(
        self,
        records: Records,
        *,
        transform: TrainTransform | TestTransform,
        num_repeats: int = 1,
        seed: int = 0,
        share_stem: bool = False,
    ) -> None:
        super().__init__(records, transform, seed=seed, num_repeats=num_repeats, share_stem=share_stem)

    def _decode(self, index: int, rngs: Rngs) -> _Decoded:
        image = self.records.image(index)
        frame_indices = np.zeros((len(rngs) or 1, 1), dtype=np.int64)
        pixels, size = self._crop_frames([(0, image)], frame_indices, rngs)
        return _Decoded(pixels, size, image.shape[:2], frame_indices, frame_indices)

    def _name_pixels(self, views: Tensor) -> Item:
        return {"image": views.squeeze(-3)}
