"""Map-style data sets of videos and of images. All randomness is a function of (seed, epoch, index)."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
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
from sparsevideo.data.segments import WHOLE, segment_name
from sparsevideo.data.transforms import Box, TestTransform, TrainTransform, resized_crop
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.image import read_image
from sparsevideo.io.reader import Video

Item = dict[str, Any]
Rngs = Sequence[np.random.Generator]

# Height and width of frames -> the boxes to cut out of them for each clip, and height and width of the results.
_Cuts = Callable[[int, int], tuple[list[list[Box]], tuple[int, int]]]

SAMPLINGS = ("consecutive", "uniform")
_MAX_BAD_IN_A_ROW = 20  # with so many something other than the files is wrong


class _Read(NamedTuple):
    """Pixels of one file."""

    pixels: Tensor  # (k, A, 3, T, S, S) uint8: A boxes of each of k clips
    size: tuple[int, int]  # height and width of the frames from which they were cut
    stored_size: tuple[int, int]  # the same of the frames in the file
    clip_spans: Tensor | None = None  # (k, 2) float64 seconds, if asked for
    sample_aspect_ratio: float = 1.0  # width over height of a stored pixel


class _LabelledFiles(Dataset[Item | list[Item]]):
    """What both data sets share: the item's keys, seeds, boxes and the failure policy."""

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
            raise ValueError(f"a file gives at least one sample, got num_repeats = {num_repeats}")
        if share_stem and not isinstance(transform, TestTransform):
            raise ValueError("share_stem is for tests: training crops differ from clip to clip")
        if share_stem and isinstance(transform, TestTransform) and transform.rule:
            raise ValueError("share_stem has crops of its own: the transform's protocol must be ends")
        self.records, self.transform, self.seed = records, transform, seed
        self.num_repeats, self.num_clips, self.share_stem = num_repeats, num_clips, share_stem

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Item | list[Item]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        if isinstance(self.transform, TestTransform):
            return self._test_item(index)
        items = self._training_items(epoch, index, self.transform)
        return items if self.num_repeats > 1 else items[0]

    @abstractmethod
    def _read(self, index: int, rngs: Rngs) -> tuple[_Read, np.ndarray]:
        """Read a file: one clip for each of `rngs`, or without any all clips of a test, or the frames that they share.

        The second is (k, T): where the frames of each clip are among those read, for clips that share them.
        """

    @abstractmethod
    def _pixels(self, views: Tensor) -> Item:
        """Name the pixels (..., 3, T, S, S)."""

    def _cuts(self, rngs: Rngs) -> _Cuts:
        """Return what chooses, for frames of (height, width), the boxes of every clip, and the shape of the results."""
        transform = self.transform
        if not isinstance(transform, TestTransform):
            return lambda height, width: (
                [transform.boxes(height, width, rng) for rng in rngs],
                transform.shape(height, width),
            )
        if self.share_stem:
            return lambda height, width: ([[(0, 0, height, width)]], transform.whole_shape(height, width))
        return lambda height, width: (
            [transform.boxes(height, width)] * self.num_clips,
            transform.shape(height, width),
        )

    def _resized(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterable[tuple[int, np.ndarray]]:
        """Scale whole frames as the test protocol does, before they are cropped."""
        transform = self.transform
        if not isinstance(transform, TestTransform):
            return frames
        return ((number, transform.resize(frame)) for number, frame in frames)

    def _training_items(self, epoch: int, index: int, transform: TrainTransform) -> list[Item]:
        failures: list[tuple[int, str, str]] = []
        for number in range(index, index + min(len(self), _MAX_BAD_IN_A_ROW)):
            place = number % len(self)
            rngs = [np.random.default_rng((self.seed, epoch, index, r)) for r in range(self.num_repeats)]
            try:
                with reading(self._segment_path(place)):
                    read = self._read(place, rngs)[0]
            except (DecodeError, OSError) as error:
                failures.append((place, self.records.name(place), self.records.reason(place, error)))
                continue
            items = []
            for clip_index, (view, rng) in enumerate(zip(read.pixels[:, 0], rngs, strict=True)):  # (3, T, S, S)
                pixels, label = transform.finish(view, int(self.records.labels[place]), rng)
                origin = self._origin(place) | {"label": label, "clip_index": clip_index, "aug_index": 0}
                origin["sample_aspect_ratio"] = read.sample_aspect_ratio
                items.append(self._pixels(pixels) | origin | {"failures": failures if clip_index == 0 else []})
            return items
        raise DecodeError(
            f"{len(failures)} files in a row do not decode (is data.root all there? `sparsevideo data scan` lists what"
            f" does not decode); the first: {failures[0][-1]}"
        )

    def _test_item(self, index: int) -> Item:
        assert isinstance(self.transform, TestTransform)
        item: Item = {"label": int(self.records.labels[index])} | self._origin(index)
        try:
            with reading(self._segment_path(index)):
                read, numbers = self._read(index, [])
        except (DecodeError, OSError) as error:
            return item | {"failures": [(index, self.records.name(index), self.records.reason(index, error))]}
        height, width = read.size
        boxes = self.transform.boxes(height, width)
        item |= self._pixels(read.pixels.flatten(0, 1)) | {"short_side": min(read.stored_size), "failures": []}
        item["sample_aspect_ratio"] = read.sample_aspect_ratio
        item["clip_index"] = torch.arange(self.num_clips).repeat_interleave(len(boxes))
        item["aug_index"] = torch.arange(len(boxes)).repeat(self.num_clips)
        if read.clip_spans is not None:
            item["clip_spans"] = read.clip_spans
        if self.share_stem:
            corners = [(x / width, y / height, (x + w) / width, (y + h) / height) for y, x, h, w in boxes]
            item["boxes"] = torch.tensor(corners).repeat(self.num_clips, 1)  # (V, 4)
            item["frames"] = torch.from_numpy(numbers).repeat_interleave(len(boxes), dim=0)  # (V, T)
        return item

    def _origin(self, index: int) -> Item:
        return {"video_index": index, "video_name": self.records.segment(index)}

    def _segment_path(self, index: int) -> str:
        return segment_name(str(self.records.path(index)), self.records.span(index), self.records.spans_unit)


class VideoDataset(_LabelledFiles):
    """Clips of videos. The index is a video's number, or (epoch, number).

    In training an item is one random clip: `video` (3, T, S, S) uint8; a list of `num_repeats` if above 1,
    from one opening of the file. A file that does not decode is replaced by the next in the list, and told in
    `failures`: a list of (video_index, name, reason).

    In a test an item holds all views of one video: `video` (V, 3, T, S, S) uint8, V = clips x crops, clip after clip,
    from one opening of the file, and `short_side`, that of the stored frames. A file that does not decode is not
    replaced: it has `failures` and no `video`. With `share_stem`, `video` is (1, 3, F, H, W), the frames that the clips
    consist of, each once and whole; which of them make up a view say `frames` (V, T), and which part of them `boxes`
    (V, 4), corners (x, y, x, y) as fractions.

    Both have `sample_aspect_ratio`, a float, see `Video.sample_aspect_ratio`. The other keys are pytorchvideo's:
    `label`, `video_index`, `video_name` (with its seconds where only a part of it counts, see `Records.segment`), and
    `clip_index` and `aug_index` (the crop), which are numbers in training and (V,) tensors in a test.

    Frames are decoded one by one, and no more of each than its boxes is kept.

    Args:
        records: The videos: files, or members of tar shards. If a record has a segment, clips are taken from it.
        num_frames: T, frames in a clip.
        frame_stride: Take every n-th frame.
        transform: A `TrainTransform` without `num_clips`, a `TestTransform` with it.
        num_clips: Clips of each video in a test; None in training.
        protocol: Protocol that chooses the frames of test clips, a name in `protocols.PROTOCOLS`.
        sampling: "consecutive": every n-th frame from a start on; "uniform": one frame from each of T equal parts of
            the whole video, see `clip_sampling.uniform_clips`. The stride and the protocol do not matter then.
        target_fps: Frames per second that the stride counts in, whatever the video's own; None takes those it has, or
            the default of the test protocol.
        num_repeats: Clips of each video in training.
        seed: Of the random choices in training.
        decoder: See `resolve_decoder`.
        short_side: Scale frames to this short side while decoding; None keeps their size.
        square_pixels: Scale frames whose pixels are not square while decoding, see `Video.read`.
        repeat_middle_frame: Repeat the video's middle frame instead, to see what motion is worth.
        share_stem: In a test, give whole frames once instead of cutting views out of them.
        with_clip_spans: In a test, give `clip_spans` (num_clips, 2) float64 too: the seconds that each clip covers, see
            `clip_sampling.clip_spans`.
        index: What a scan found out about the files.
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
        repeat_middle_frame: bool = False,
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
            raise ValueError(f"unknown sampling {sampling!r}; it is one of {', '.join(SAMPLINGS)}")
        self.num_frames, self.frame_stride, self.protocol = num_frames, frame_stride, protocol
        self.sampling, self.target_fps = sampling, target_fps
        consecutive_test = num_clips is not None and sampling == "consecutive"
        self._scales_span = protocols.find_protocol(protocol).scales_span and consecutive_test
        self.decoder, self.short_side, self.repeat_middle_frame = (
            resolve_decoder(decoder),
            short_side,
            repeat_middle_frame,
        )
        self.index, self.with_clip_spans, self.square_pixels = index, with_clip_spans, square_pixels
        self._choose(1, [])  # impossible numbers stop here rather than in a worker

    def _read(self, index: int, rngs: Rngs) -> tuple[_Read, np.ndarray]:
        path = self.records.source(index)
        table = None if self.index is None else self.index.checked_table(index, path)
        with open_video(path, self.decoder, table=table) as video:
            timeline = self._timeline(video, index)
            header = self._header(video, len(timeline)) if self._scales_span else None
            numbers = timeline[self._choose(len(timeline), rngs, header)]  # (k, T)
            distinct, places = np.unique(numbers, return_inverse=True)
            wanted = distinct[None] if self.share_stem else numbers
            frames = video.frames(distinct, self.short_side, square_pixels=self.square_pixels)
            pixels, size = _cut(self._resized(frames), wanted, self._cuts(rngs))
            spans = None
            if self.with_clip_spans:
                seconds = clip_sampling.clip_spans(video.times_s, numbers)
                if not self.records.in_frames:  # a frame of a segment may end after the segment does
                    seconds = seconds.clip(*self.records.span(index))
                spans = torch.from_numpy(seconds)
            read = _Read(pixels, size, video.stored_size or size, spans, float(video.sample_aspect_ratio))
            return read, places.reshape(numbers.shape)

    def _timeline(self, video: Video, index: int) -> np.ndarray:
        """Return the numbers of the frames that clips are taken from."""
        frames, span = np.arange(video.num_frames), self.records.span(index)
        target_fps = None if self._scales_span else self.target_fps
        try:
            if self.records.in_frames:  # exact at any rate, and without the times
                frames, span = frames[self.records.frame_range(index, len(frames))], WHOLE
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

    def _choose(self, total: int, rngs: Rngs, header: protocols.Header | None = None) -> np.ndarray:
        """Choose the (k, T) places on a timeline to read."""
        size = self.num_frames, self.frame_stride
        if self.sampling == "uniform":
            places = (
                np.stack([clip_sampling.uniform_clip(total, self.num_frames, rng) for rng in rngs])
                if rngs
                else clip_sampling.uniform_clips(total, self.num_frames, self.num_clips)
            )
        elif rngs:
            places = np.stack([clip_sampling.random_clip(total, *size, rng) for rng in rngs])
        else:
            args = (*size, self.num_clips, header, self.target_fps)
            places = protocols.protocol_clips(self.protocol, total, *args)
        return np.full_like(places, clip_sampling.middle_frame(total)) if self.repeat_middle_frame else places

    def _pixels(self, views: Tensor) -> Item:
        return {"video": views}


class ImageDataset(_LabelledFiles):
    """Images: `image` (3, S, S) with a `TrainTransform`, (V, 3, S, S) with a `TestTransform`, V = crops.

    All else is as in `VideoDataset`.

    Args:
        records: The images: files, or members of tar shards.
        transform: What happens to their pixels.
        num_repeats: Samples of each image in training.
        seed: Of the random choices in training.
        share_stem: As in `VideoDataset`.
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

    def _read(self, index: int, rngs: Rngs) -> tuple[_Read, np.ndarray]:
        image = read_image(self.records.open(index), str(self.records.path(index)))
        numbers = np.zeros((len(rngs) or 1, 1), dtype=np.int64)
        pixels, size = _cut(self._resized([(0, image)]), numbers, self._cuts(rngs))
        return _Read(pixels, size, image.shape[:2]), numbers

    def _pixels(self, views: Tensor) -> Item:
        return {"image": views.squeeze(-3)}


def _cut(frames: Iterable[tuple[int, np.ndarray]], numbers: np.ndarray, cuts: _Cuts) -> tuple[Tensor, tuple[int, int]]:
    """Cut every box out of the frames as they come.

    Args:
        frames: (number, (H, W, 3)), each once, all of one size.
        numbers: (k, T) frames of each clip.
        cuts: (H, W) -> the A boxes of each of the k clips, and the shape of what they become.

    Returns:
        (k, A, 3, T, *shape) uint8, and (H, W).
    """
    views: np.ndarray | None = None
    for number, frame in frames:
        if views is None:
            size = frame.shape[:2]
            boxes, shape = cuts(*size)
            # Channels stay last in memory, as they are decoded and as the network's convolution wants them.
            views = np.empty((len(numbers), len(boxes[0]), numbers.shape[1], *shape, 3), np.uint8)
        cut: dict[Box, np.ndarray] = {}  # clips may share a frame, and in a test all share their boxes
        for clip, place in zip(*np.nonzero(numbers == number), strict=True):
            for crop, box in enumerate(boxes[clip]):
                if box not in cut:
                    cut[box] = resized_crop(frame, box, shape).permute(1, 2, 0).numpy()  # (H', W', 3)
                views[clip, crop, place] = cut[box]
    assert views is not None  # `frames` yields every wanted frame or raises
    return rearrange(torch.from_numpy(views), "k a t h w c -> k a c t h w"), size
