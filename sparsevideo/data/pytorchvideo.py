"""The names of pytorchvideo, imported when they are first used, and its data sets with our reader. Its only importer.

pytorchvideo 0.1.5 imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 made private, for its
`affine` alone. During the import a module with an `affine` made of torchvision's public one replaces it. Its matrices
were equal in float32 for 10 million random shears.
"""

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, RandomSampler, Sampler

from sparsevideo.data.records import Records, read_records
from sparsevideo.data.segments import WHOLE, frame_range
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import DecodeError

logger = logging.getLogger(__name__)

_OLD_NAME = "torchvision.transforms.functional_tensor"
# Modules of pytorchvideo whose names are offered here.
_MODULES = (
    *("pytorchvideo.transforms", "pytorchvideo.data.clip_sampling"),
    *("pytorchvideo.data.labeled_video_dataset", "pytorchvideo.data.video", "pytorchvideo.data"),
)


def __getattr__(name: str) -> Any:
    """Return any name of pytorchvideo's transforms, clip samplers and data sets.

    Those that open video files have our reader. SSv2, Charades, Ava, Domsev and EpicKitchen read folders of frames or
    manifests of their own; they are unchanged.
    """
    return _dataset_class() if name == "LabeledVideoDataset" else _find(name)


def _find(name: str) -> Any:
    try:
        with _replaced_module(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about imports of pytorchvideo itself
            for module in () if name.startswith("_") else map(import_module, _MODULES):
                if hasattr(module, name):
                    return getattr(module, name)
    except ImportError as error:
        raise ImportError(f"pytorchvideo does not import ({error}); try: pip install 'pytorchvideo>=0.1.5'") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def _replaced_module() -> Iterator[None]:
    """Offer the torchvision module that pytorchvideo imports, with the one function that it uses."""
    module = sys.modules[_OLD_NAME] = ModuleType(_OLD_NAME)
    module.affine = _affine  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del sys.modules[_OLD_NAME]


def _affine(
    video: torch.Tensor, matrix: Sequence[float], interpolation: str, fill: Sequence[float] | None
) -> torch.Tensor:
    """Apply an affine matrix (6 numbers) that shears along one axis and translates."""
    from torchvision.transforms import functional as F

    shear = [math.degrees(math.atan(matrix[1])), math.degrees(math.atan(matrix[3]))]
    offset = [-matrix[2], -matrix[5]]
    return F.affine(video, 0.0, offset, 1.0, shear, F.InterpolationMode(interpolation), fill)


@cache
def _dataset_class() -> Any:
    """Derive from pytorchvideo's class of labeled videos, which is imported late."""

    class LabeledVideoDataset(_find("LabeledVideoDataset")):  # type: ignore[misc]
        """Pytorchvideo's data set of (path, {"label": ...}) pairs, with our reader; see `labeled_video_dataset`."""

        def __init__(
            self,
            labeled_video_paths: Records | Sequence[tuple[str, dict[str, Any] | None]],
            clip_sampler: Callable[..., Any],
            video_sampler: type[Sampler] = RandomSampler,
            transform: Callable[[dict[str, Any]], Any] | None = None,
            decode_audio: bool = False,
            decoder: str = "auto",
            *,
            num_frames: int | None = None,
            short_side: int | None = None,
        ) -> None:
            _check(decode_audio, num_frames, short_side)
            infos = None
            if isinstance(labeled_video_paths, Records):
                records = labeled_video_paths
            else:
                pairs = [labeled_video_paths[index] for index in range(len(labeled_video_paths))]
                infos = [dict(info or {}) for _, info in pairs]
                records = Records.build(Path(), (), (os.fspath(path) for path, _ in pairs), [0] * len(pairs))
            videos = _Videos(records, infos, num_frames, short_side, resolve_decoder(decoder))
            super().__init__(videos, clip_sampler, video_sampler, transform, decode_audio=False)
            self.video_path_handler = videos
            if video_sampler is RandomSampler:
                self._video_random_generator = self._video_sampler.generator = _Generator()

    LabeledVideoDataset.__qualname__ = "LabeledVideoDataset"  # its name for pickle
    return LabeledVideoDataset


def _check(decode_audio: bool, num_frames: int | None, short_side: int | None) -> None:
    if decode_audio:
        raise ValueError("decode_audio must be False, because this reader has no sound; use pytorchvideo.data for it")
    if any(count is not None and count < 1 for count in (num_frames, short_side)):
        raise ValueError(f"num_frames and short_side must be >= 1, got {num_frames} and {short_side}")


def labeled_video_dataset(
    data_path: str | Path,
    clip_sampler: Callable[..., Any],
    video_sampler: type[Sampler] = RandomSampler,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    video_path_prefix: str | Path = "",
    decode_audio: bool = False,
    decoder: str = "auto",
    *,
    num_frames: int | None = None,
    short_side: int | None = None,
) -> IterableDataset[dict[str, Any]]:
    """Build pytorchvideo's own `LabeledVideoDataset` with our reader: an existing pipeline only changes its import.

    `kinetics`, `Kinetics` and `Ucf101` are other names of this function, as in pytorchvideo.

    Its clips are `video` (3, T, H, W) uint8: the frames of pytorchvideo's pyav reader, bit for bit, which are floats
    there, followed by `UniformTemporalSubsample(num_frames)` if there is a `num_frames` (a second one in `transform`
    changes nothing). Only these frames are decoded. The other keys are pytorchvideo's: `label`, `video_index`,
    `video_name`, `clip_index`, `aug_index`. As in pytorchvideo, clips are drawn from the duration in the file's header,
    and frames are in the order of their time stamps, which are wrong in DivX avi files with packed B-frames. Frames
    that pytorchvideo loses by seeking too far (mpeg transport streams, open groups of pictures) are included.

    A video that does not open, or a clip without a frame that decodes, is left out, as in pytorchvideo. Each is logged
    as a warning with path and reason, and `dataset.video_path_handler.failures` names these videos, those of loader
    workers included.

    Also as in pytorchvideo: `constant_clips_per_video` of its release 0.1.5 spaces n clips by 1/n of the video, so it
    never reaches the end; the order depends on the number of loader workers; `DistributedSampler` repeats videos so
    that all ranks have as many. `VideoDataset` does none of this.

    Args:
        data_path: A folder with a folder of videos for each class, or any list that `read_records` reads.
        clip_sampler: Chooses the clips of a video, see `make_clip_sampler`.
        video_sampler: A class; chooses the order of the videos.
        transform: Applied to each item; None changes nothing.
        video_path_prefix: The folder that paths in a list are relative to.
        decode_audio: Must be False.
        decoder: See `resolve_decoder`.
        num_frames: T, frames of a clip; None takes all frames of the clip.
        short_side: Resize frames to this short side while decoding; None keeps their size.

    Raises:
        FileNotFoundError: The folder, the list or a listed file does not exist.
        ValueError: `decode_audio`, a number below 1, an unknown decoder, or an unreadable list.

    Example:
        >>> from sparsevideo.data.pytorchvideo import kinetics, make_clip_sampler
        >>> def clips_for_training(folder):
        ...     return kinetics(folder, make_clip_sampler("random", 2.0), num_frames=16, short_side=256)
    """
    _check(decode_audio, num_frames, short_side)
    decoder = resolve_decoder(decoder)
    if Path(data_path).is_dir():
        records = read_records(data_path, kind="video")
    else:
        records = read_records(video_path_prefix or ".", str(Path(data_path).absolute()), kind="video")
    return _dataset_class()(
        records, clip_sampler, video_sampler, transform, False, decoder, num_frames=num_frames, short_side=short_side
    )


kinetics = Kinetics = Ucf101 = labeled_video_dataset  # as in pytorchvideo


def Hmdb51(  # pytorchvideo's name
    data_path: str | Path,
    clip_sampler: Callable[..., Any],
    video_sampler: type[Sampler] = RandomSampler,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    video_path_prefix: str | Path = "",
    split_id: int = 1,
    split_type: str = "train",
    decode_audio: bool = False,
    decoder: str = "auto",
    *,
    num_frames: int | None = None,
    short_side: int | None = None,
) -> IterableDataset[dict[str, Any]]:
    """Build pytorchvideo's data set of HMDB51 with our reader; labels are class names, as in pytorchvideo.

    `data_path` is the folder of the split files, `<class>_test_split<1, 2 or 3>.txt`, and `video_path_prefix` the
    folder that holds a folder of videos for each class. `split_id` is 1, 2 or 3, and `split_type` "train", "test" or
    "unused". The other arguments are those of `labeled_video_dataset`.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no files of this split.
        ValueError: No such split, `decode_audio`, a number below 1, or an unknown decoder.
    """
    if split_id not in (1, 2, 3) or split_type not in ("train", "test", "unused"):
        raise ValueError(
            f"split_id must be 1, 2 or 3 and split_type train, test or unused, got {split_id}, {split_type}"
        )
    if not any(Path(data_path).glob(f"*_test_split{split_id}*.txt")):
        raise FileNotFoundError(
            f"{data_path}: no files <class>_test_split{split_id}.txt; give the folder that has them"
        )
    paths = import_module(_find("Hmdb51").__module__).Hmdb51LabeledVideoPaths.from_dir(
        data_path, split_id=split_id, split_type=split_type
    )
    paths.path_prefix = video_path_prefix
    args = (paths, clip_sampler, video_sampler, transform, decode_audio, decoder)
    return _dataset_class()(*args, num_frames=num_frames, short_side=short_side)


class _Generator(torch.Generator):
    """A generator that can be sent to spawned workers: the state of torch's own is in shared memory, lost by then."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_generator, (self.get_state().tolist(),)


def _restore_generator(state: list[int]) -> _Generator:
    generator = _Generator()
    generator.set_state(torch.tensor(state, dtype=torch.uint8))
    return generator


class _Videos:
    """Pytorchvideo's `LabeledVideoPaths` and `VideoPathHandler` in one; a video's index takes the place of its path."""

    def __init__(
        self,
        records: Records,
        infos: list[dict[str, Any]] | None,
        num_frames: int | None,
        short_side: int | None,
        decoder: str,
    ) -> None:
        self.records, self.infos = records, infos  # None: the records' labels
        self.num_frames, self.short_side, self.decoder = num_frames, short_side, decoder
        self._failed = torch.zeros(len(records), dtype=torch.bool).share_memory_()  # shared with the workers

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        return index, {"label": int(self.records.labels[index])} if self.infos is None else self.infos[index]

    def video_from_path(self, index: int, decode_audio: bool = False, decoder: str = "auto") -> "_OpenVideo":
        _find("Video").register(_OpenVideo)
        try:
            return _OpenVideo(self, index)
        except (DecodeError, OSError) as error:
            self.report_failure(index, self.records.reason(index, error))
            raise

    def report_failure(self, index: int, reason: str) -> None:
        """Log and remember that a video is left out."""
        self._failed[index] = True
        logger.warning("left out: %s", reason)

    @property
    def failures(self) -> list[str]:
        """Names, with the seconds if the list has them, of the videos that were left out so far."""
        return [self.records.segment(index) for index in self._failed.nonzero().ravel().tolist()]


class _OpenVideo:
    """Pytorchvideo's `Video`, by registration: its base class is imported late."""

    def __init__(self, videos: _Videos, index: int) -> None:
        self._videos, self._index = videos, index
        self._path = videos.records.source(index)
        self.name = videos.records.path(index).name
        with ExitStack() as stack:  # closes the file if this fails
            self._video = stack.enter_context(open_video(self._path, videos.decoder))
            pts = self._video.pts
            self._times = self._video.times if None in pts else np.asarray(pts, dtype=np.int64)
            start, duration = self._video.header_times
            self._start = start or 0
            # Pytorchvideo 0.1.5 subtracts the start from the duration, too: files that do not begin at 0 (transport
            # streams, mp4 with an empty edit) lose as many seconds, or have a negative duration.
            length = self._times.max() - self._start if duration is None else duration
            whole: Fraction | float = int(length) * self._video.time_base
            self._from_s, self._to_s = self._span_s()
            self.duration = min(whole, self._to_s) - self._from_s
            self._stack = stack.pop_all()

    def _span_s(self) -> tuple[float, float]:
        """Return the first and last second of the record."""
        records, span = self._videos.records, self._videos.records.span(self._index)
        if records.spans is None:
            return 0, math.inf  # the int 0 keeps times exact
        if not records.in_frames or span == WHOLE:
            return span
        try:
            frames = frame_range(span, self._video.num_frames)
        except ValueError as error:
            raise DecodeError(f"{self._path}: {error}") from error
        # Half a unit before a frame's time: rounding must not lose the frame.
        starts = [*(np.sort(self._times) - self._start - 0.5) * float(self._video.time_base), math.inf]
        return starts[frames.start], starts[frames.stop]

    def get_clip(self, start_sec: float | Fraction, end_sec: float | Fraction) -> dict[str, torch.Tensor | None]:
        """Read the clip [start_sec, end_sec), in seconds from the header's start, or from the record's."""
        seconds = self._from_s + start_sec, min(self._from_s + end_sec, self._to_s)
        units = (second / self._video.time_base for second in seconds)
        start, end = (unit if unit == math.inf else math.ceil(unit) + self._start for unit in units)
        # As in pytorchvideo, the first frame past the end ends the clip, and time stamps are not corrected. In DivX
        # files with packed B-frames they are wrong: neighboring frames are exchanged.
        late = np.flatnonzero(self._times >= end)
        frame_indices = np.flatnonzero(self._times[: late[0] if len(late) else None] >= start)
        frame_indices = frame_indices[np.argsort(self._times[frame_indices], kind="stable")]
        frames, reason = None, f"{self._path}: no frame from {float(seconds[0]):g} s to {float(seconds[1]):g} s"
        if len(frame_indices):
            if self._videos.num_frames is not None:  # as UniformTemporalSubsample does
                frame_indices = frame_indices[torch.linspace(0, len(frame_indices) - 1, self._videos.num_frames).long()]
            try:
                frames = self._video.read(frame_indices, self._videos.short_side)
            except (DecodeError, OSError) as error:
                reason = self._videos.records.reason(self._index, error)
        if frames is None:
            self._videos.report_failure(self._index, reason)
            return {"video": None, "audio": None}
        return {"video": torch.from_numpy(frames).permute(3, 0, 1, 2), "audio": None}  # (3, T, H, W)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()
