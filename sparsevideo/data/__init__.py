"""Load lists and folders of videos and images as batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsevideo.data.datasets import ImageDataset as ImageDataset
    from sparsevideo.data.datasets import VideoDataset as VideoDataset
    from sparsevideo.data.records import read_records as read_records
    from sparsevideo.data.transforms import TestTransform as TestTransform
    from sparsevideo.data.transforms import TrainTransform as TrainTransform

# Public name -> module that defines it, imported when first used: the submodules import each other.
_PUBLIC = {
    "ImageDataset": "datasets",
    "TestTransform": "transforms",
    "TrainTransform": "transforms",
    "VideoDataset": "datasets",
    "read_records": "records",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsevideo.data' has no attribute {name!r}")
    return getattr(import_module(f"sparsevideo.data.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
