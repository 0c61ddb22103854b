"""The only importer of pytorchvideo: its names, and its data sets with our reader in them.

pytorchvideo 0.1.5 imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 made private. The old name
stands in only while pytorchvideo is imported, so nobody else comes to rely on it. Names are imported when asked for.
"""

import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, RandomSampler, Sampler

from sparsevideo.data.decode import DecodeError, open_video, resolve_decoder
from sparsevideo.data.records import Records, read_records

logger = logging.getLogger(__name__)

_OLD_NAME = "torchvision.transforms.functional_tensor"
# pytorchvideo's modules whose names are offered here
_MODULES = (
    *("pytorchvideo.transforms", "pytorchvideo.data.clip_sampling"),
    *("pytorchvideo.data.labeled_video_dataset", "pytorchvideo.data.video"),
)


def __getattr__(name: str) -> Any:
    """Return any name of pytorchvideo's transforms, clip samplers and data set of labelled videos."""
    try:
        with _old_name_present(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what pytorchvideo's own imports will lose one day
            for module in () if name.startswith("_") else map(import_module, _MODULES):
                if hasattr(module, name):
                    return getattr(module, name)
    except ImportError as error:
        raise ImportError(f"pytorchvideo does not import ({error}); try: pip install 'pytorchvideo>=0.1.5'") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def _old_name_present() -> Iterator[None]:
    """Let torchvision's private module answer to its old name, where the old name is gone."""
    try:
        import_module(_OLD_NAME)
    except ModuleNotFoundError:
        sys.modules[_OLD_NAME] = import_module("torchvision.transforms._functional_tensor")
        try:
            yield
        finally:
            del sys.modules[_OLD_NAME]
    else:
        yield


def labeled_video_dataset(
    data_path: str | Path,
    clip_sampler: Callable[..., Any],
    video_sampler: type[Sampler] = RandomSampler,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    video_path_prefix: str | Path = "",
    decode_audio: bool = False,
    decoder: str = "auto",
    *,
    num_frames: int,
    short_side: int | None = None,
) -> IterableDataset[dict[str, Any]]:
    """Build pytorchvideo's own `LabeledVideoDataset`, with our reader in it: an existing pipeline changes its import.

    Its clips are `video` (3, T, H, W) uint8: of the same frames, bit for bit, as pytorchvideo's pyav reader followed by
    its `UniformTemporalSubsample(num_frames)` gives as floats (which may stay in `transform`: it changes nothing).
    Only these frames are decoded. The other keys are pytorchvideo's: `label`, `video_index`, `video_name`,
    `clip_index`, `aug_index`. Like pytorchvideo this believes the file: clips are drawn from the duration that the
    header claims, and frames are in the order of their time stamps, wrong as they are in DivX avi files with packed
    B-frames. Frames that pytorchvideo loses by seeking too far (mpeg transport streams, open groups of pictures) are
    there.

    A video that does not open, or a clip without a frame that decodes, is left out, as pytorchvideo does, but each is
    logged as a warning with path and reason, and `dataset.video_path_handler.failures` names these videos, those of
    loader workers included.

    What stays pytorchvideo's: `constant_clips_per_video` of its release 0.1.5 spaces n clips by 1/n of the video, so
    never reaches its end; the order depends on the number of loader workers; `DistributedSampler` repeats videos to
    give every rank as many. `VideoDataset` does none of this.

    Args:
        data_path: A folder with a folder of videos for each class, or any list that `read_records` reads.
        clip_sampler: Chooses the clips of a video, see `make_clip_sampler`.
        video_sampler: A class; chooses the order of the videos.
        transform: What happens to each item; None keeps it as it is.
        video_path_prefix: The folder that paths in a list are relative to.
        decode_audio: There is no sound here; True is an error.
        decoder: See `decode.resolve_decoder`.
        num_frames: T, frames of a clip.
        short_side: Scale frames to this short side while decoding; None keeps their size.

    Raises:
        FileNotFoundError: The folder, the list or a listed file does not exist.
        ValueError: `decode_audio`, an impossible number, an unknown decoder, or an unreadable list.

    Example:
        >>> from sparsevideo.data.ptv import kinetics, make_clip_sampler
        >>> def clips_for_training(folder):
        ...     return kinetics(folder, make_clip_sampler("random", 2.0), num_frames=16, short_side=256)
    """
    if decode_audio:
        raise ValueError("this reader gives no sound; pass decode_audio=False, or use pytorchvideo.data itself")
    if num_frames < 1 or (short_side is not None and short_side < 1):
        raise ValueError(f"num_frames and short_side want at least 1, got {num_frames} and {short_side}")
    decoder = resolve_decoder(decoder)
    if Path(data_path).is_dir():
        records = read_records(data_path, kind="video")
    else:
        records = read_records(video_path_prefix or ".", str(Path(data_path).absolute()), kind="video")
    videos = _Videos(records, num_frames, short_side, decoder)
    dataset = __getattr__("LabeledVideoDataset")(videos, clip_sampler, video_sampler, transform, decode_audio=False)
    dataset.video_path_handler = videos
    if dataset._video_random_generator is not None:
        dataset._video_random_generator = dataset._video_sampler.generator = _Generator()
    return dataset


class _Generator(torch.Generator):
    """A generator that reaches workers which are no forks: torch's own has its state in shared memory, gone by then."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _generator, (self.get_state().tolist(),)


def _generator(state: list[int]) -> _Generator:
    generator = _Generator()
    generator.set_state(torch.tensor(state, dtype=torch.uint8))
    return generator


kinetics = labeled_video_dataset  # as it is in pytorchvideo


class _Videos:
    """Pytorchvideo's `LabeledVideoPaths` and `VideoPathHandler` in one; what passes between them is a video's index."""

    def __init__(self, records: Records, num_frames: int, short_side: int | None, decoder: str) -> None:
        self.records, self.num_frames, self.short_side, self.decoder = records, num_frames, short_side, decoder
        self._failed = torch.zeros(len(records), dtype=torch.bool).share_memory_()  # by the workers, too

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, dict[str, int]]:
        return index, {"label": int(self.records.labels[index])}

    def video_from_path(self, index: int, decode_audio: bool = False, decoder: str = "auto") -> "_OpenVideo":
        __getattr__("Video").register(_OpenVideo)
        try:
            return _OpenVideo(self, index)
        except (DecodeError, OSError) as error:
            self.tell(index, self.records.reason(index, error))
            raise

    def tell(self, index: int, reason: str) -> None:
        """Say and remember that a video is left out."""
        self._failed[index] = True
        logger.warning("left out: %s", reason)

    @property
    def failures(self) -> list[str]:
        """Names, with the seconds where a list gives them, of the videos that were left out so far."""
        return [self.records.segment(index) for index in self._failed.nonzero().ravel().tolist()]


class _OpenVideo:
    """Pytorchvideo's `Video`, which it becomes by registration: its base class is imported late."""

    def __init__(self, videos: _Videos, index: int) -> None:
        self._videos, self._index = videos, index
        self._path = videos.records.path(index)
        self.name = self._path.name
        with ExitStack() as stack:  # closes the file where this fails
            self._video = stack.enter_context(open_video(self._path, videos.decoder))
            stamps = self._video.stamps
            self._times = self._video.times if None in stamps else np.asarray(stamps, dtype=np.int64)
            start, duration = self._video.header_times
            self._start = start or 0
            # Pytorchvideo 0.1.5 subtracts the start from the duration, too: files that do not begin at 0 (transport
            # streams, mp4 with an empty edit) lose as many seconds, or have less than none.
            length = self._times.max() - self._start if duration is None else duration
            whole: Fraction | float = int(length) * self._video.time_base
            spans = videos.records.spans
            span = (0, math.inf) if spans is None else spans[index].tolist()  # a whole 0 keeps times exact
            self._from_s: float = span[0]
            self._to_s: float = span[1]
            self.duration = min(whole, self._to_s) - self._from_s
            self._stack = stack.pop_all()

    def get_clip(self, start_sec: float | Fraction, end_sec: float | Fraction) -> dict[str, torch.Tensor | None]:
        """Read the clip [start_sec, end_sec), in seconds from the header's start, or from the record's."""
        seconds = self._from_s + start_sec, min(self._from_s + end_sec, self._to_s)
        units = (second / self._video.time_base for second in seconds)
        start, end = (unit if unit == math.inf else math.ceil(unit) + self._start for unit in units)
        # As in pytorchvideo, the first frame past the end ends the clip, and time stamps are believed. In DivX files
        # with packed B-frames they are wrong: neighbouring frames change places.
        late = np.flatnonzero(self._times >= end)
        numbers = np.flatnonzero(self._times[: late[0] if len(late) else None] >= start)
        numbers = numbers[np.argsort(self._times[numbers], kind="stable")]
        frames, reason = None, f"{self._path}: no frame from {float(seconds[0]):g} s to {float(seconds[1]):g} s"
        if len(numbers):
            places = torch.linspace(0, len(numbers) - 1, self._videos.num_frames).long()  # UniformTemporalSubsample
            try:
                frames = self._video.read(numbers[places], self._videos.short_side)
            except (DecodeError, OSError) as error:
                reason = self._videos.records.reason(self._index, error)
        if frames is None:
            self._videos.tell(self._index, reason)
            return {"video": None, "audio": None}
        return {"video": torch.from_numpy(frames).permute(3, 0, 1, 2), "audio": None}  # (3, T, H, W)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()
