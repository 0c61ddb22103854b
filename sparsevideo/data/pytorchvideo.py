"""The only importer of pytorchvideo: its names, and its data sets with our reader in them.

pytorchvideo 0.1.5 imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 made private. The old name
stands in only while pytorchvideo is imported, so nobody else comes to rely on it. Names are imported when asked for.
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
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, RandomSampler, Sampler

from sparsevideo.data.records import Records, read_records
from sparsevideo.io.backends import open_video, resolve_decoder
from sparsevideo.io.errors import DecodeError

logger = logging.getLogger(__name__)

_OLD_NAME = "torchvision.transforms.functional_tensor"
# pytorchvideo's modules whose names are offered here
_MODULES = (
    *("pytorchvideo.transforms", "pytorchvideo.data.clip_sampling"),
    *("pytorchvideo.data.labeled_video_dataset", "pytorchvideo.data.video", "pytorchvideo.data"),
)


def __getattr__(name: str) -> Any:
    """Return any name of pytorchvideo's transforms, clip samplers and data sets.

    Those that open video files have our reader. SSv2, Charades, Ava, Domsev and EpicKitchen read folders of frames or
    manifests of their own, and are pytorchvideo's as they are.
    """
    return _dataset_class() if name == "LabeledVideoDataset" else _theirs(name)


def _theirs(name: str) -> Any:
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


@cache
def _dataset_class() -> Any:
    """Derive pytorchvideo's class of labelled videos, which is imported late."""

    class LabeledVideoDataset(_theirs("LabeledVideoDataset")):  # type: ignore[misc]
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

    LabeledVideoDataset.__qualname__ = "LabeledVideoDataset"  # where it is found when it is unpickled
    return LabeledVideoDataset


def _check(decode_audio: bool, num_frames: int | None, short_side: int | None) -> None:
    if decode_audio:
        raise ValueError("this reader gives no sound; pass decode_audio=False, or use pytorchvideo.data itself")
    if any(count is not None and count < 1 for count in (num_frames, short_side)):
        raise ValueError(f"num_frames and short_side must be at least 1, got {num_frames} and {short_side}")


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
    """Build pytorchvideo's own `LabeledVideoDataset`, with our reader in it: an existing pipeline changes its import.

    `kinetics`, `Kinetics` and `Ucf101` are other names of this function, as in pytorchvideo.

    Its clips are `video` (3, T, H, W) uint8: of the same frames, bit for bit, as pytorchvideo's pyav reader gives as
    floats, followed by its `UniformTemporalSubsample(num_frames)` if there is a `num_frames` (it may stay in
    `transform`: it changes nothing). Then these frames alone are decoded. The other keys are pytorchvideo's: `label`,
    `video_index`, `video_name`, `clip_index`, `aug_index`. Like pytorchvideo this believes the file: clips are drawn
    from the duration that the header claims, and frames are in the order of their time stamps, wrong as they are in
    DivX avi files with packed B-frames. Frames that pytorchvideo loses by seeking too far (mpeg transport streams, open
    groups of pictures) are there.

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
        decoder: See `resolve_decoder`.
        num_frames: T, frames of a clip; None takes all that the clip has.
        short_side: Scale frames to this short side while decoding; None keeps their size.

    Raises:
        FileNotFoundError: The folder, the list or a listed file does not exist.
        ValueError: `decode_audio`, an impossible number, an unknown decoder, or an unreadable list.

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
    how: dict[str, Any] = {"decoder": decoder, "num_frames": num_frames, "short_side": short_side}
    return _dataset_class()(records, clip_sampler, video_sampler, transform, **how)


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
    """Build pytorchvideo's data set of HMDB51 with our reader; labels are class names, as pytorchvideo has them.

    Args:
        data_path: The folder of the split files, `<class>_test_split<1, 2 or 3>.txt`.
        clip_sampler: As for `labeled_video_dataset`.
        video_sampler: As for `labeled_video_dataset`.
        transform: As for `labeled_video_dataset`.
        video_path_prefix: The folder that holds a folder of videos for each class.
        split_id: 1, 2 or 3.
        split_type: "train", "test" or "unused".
        decode_audio: There is no sound here; True is an error.
        decoder: See `resolve_decoder`.
        num_frames: As for `labeled_video_dataset`.
        short_side: As for `labeled_video_dataset`.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no files of this split.
        ValueError: No such split, `decode_audio`, an impossible number, or an unknown decoder.
    """
    if split_id not in (1, 2, 3) or split_type not in ("train", "test", "unused"):
        raise ValueError(
            f"split_id must be 1, 2 or 3 and split_type train, test or unused, got {split_id}, {split_type}"
        )
    if not any(Path(data_path).glob(f"*_test_split{split_id}*.txt")):
        raise FileNotFoundError(f"{data_path}: no folder with files <class>_test_split{split_id}.txt")
    paths = import_module(_theirs("Hmdb51").__module__).Hmdb51LabeledVideoPaths.from_dir(
        data_path, split_id=split_id, split_type=split_type
    )
    paths.path_prefix = video_path_prefix
    how: dict[str, Any] = {"decoder": decoder, "num_frames": num_frames, "short_side": short_side}
    return _dataset_class()(paths, clip_sampler, video_sampler, transform, decode_audio, **how)


class _Generator(torch.Generator):
    """A generator that reaches workers which are no forks: torch's own has its state in shared memory, gone by then."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _generator, (self.get_state().tolist(),)


def _generator(state: list[int]) -> _Generator:
    generator = _Generator()
    generator.set_state(torch.tensor(state, dtype=torch.uint8))
    return generator


class _Videos:
    """Pytorchvideo's `LabeledVideoPaths` and `VideoPathHandler` in one; what passes between them is a video's index."""

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
        self._failed = torch.zeros(len(records), dtype=torch.bool).share_memory_()  # by the workers, too

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        return index, {"label": int(self.records.labels[index])} if self.infos is None else self.infos[index]

    def video_from_path(self, index: int, decode_audio: bool = False, decoder: str = "auto") -> "_OpenVideo":
        _theirs("Video").register(_OpenVideo)
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
        self._path = videos.records.source(index)
        self.name = videos.records.path(index).name
        with ExitStack() as stack:  # closes the file where this fails
            self._video = stack.enter_context(open_video(self._path, videos.decoder))
            pts = self._video.pts
            self._times = self._video.times if None in pts else np.asarray(pts, dtype=np.int64)
            start, duration = self._video.header_times
            self._start = start or 0
            # Pytorchvideo 0.1.5 subtracts the start from the duration, too: files that do not begin at 0 (transport
            # streams, mp4 with an empty edit) lose as many seconds, or have less than none.
            length = self._times.max() - self._start if duration is None else duration
            whole: Fraction | float = int(length) * self._video.time_base
            spans = videos.records.spans
            span = [0, math.inf] if spans is None else spans[index].tolist()  # a whole 0 keeps times exact
            if videos.records.in_frames and span != [0, math.inf]:
                try:
                    frames = videos.records.frame_range(index, self._video.num_frames)
                except ValueError as error:
                    raise DecodeError(f"{self._path}: {error}") from error
                # Half a unit before a frame is shown: rounding must not lose it.
                shown = [*(np.sort(self._times) - self._start - 0.5) * float(self._video.time_base), math.inf]
                span = [shown[frames.start], shown[frames.stop]]
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
            if self._videos.num_frames is not None:  # as UniformTemporalSubsample does
                numbers = numbers[torch.linspace(0, len(numbers) - 1, self._videos.num_frames).long()]
            try:
                frames = self._video.read(numbers, self._videos.short_side)
            except (DecodeError, OSError) as error:
                reason = self._videos.records.reason(self._index, error)
        if frames is None:
            self._videos.tell(self._index, reason)
            return {"video": None, "audio": None}
        return {"video": torch.from_numpy(frames).permute(3, 0, 1, 2), "audio": None}  # (3, T, H, W)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()
