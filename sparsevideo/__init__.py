"""Video-first action recognition with SparseFormer: `import sparsevideo` needs torch alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparsevideo.classifier import Classifier as Classifier
    from sparsevideo.classifier import Prediction as Prediction
    from sparsevideo.classifier import load as load
    from sparsevideo.data.datasets import VideoDataset as VideoDataset
    from sparsevideo.data.records import read_records as read_records
    from sparsevideo.data.transforms import TestTransform as TestTransform
    from sparsevideo.io.backends import open_video as open_video
    from sparsevideo.io.writer import write_video as write_video
    from sparsevideo.models.create import create_model as create_model
    from sparsevideo.models.create import list_pretrained as list_pretrained
    from sparsevideo.models.elastic import with_budget as with_budget
    from sparsevideo.models.inflate import inflate as inflate
    from sparsevideo.models.presets import list_models as list_models
    from sparsevideo.models.sparseformer import SparseFormer as SparseFormer
    from sparsevideo.models.weights import load_model as load_model
    from sparsevideo.models.weights import load_weights as load_weights
    from sparsevideo.models.weights import save_weights as save_weights
    from sparsevideo.release import push_to_hub as push_to_hub

# Public name -> module that defines it; the module is imported when the name is first used.
_PUBLIC = {
    "Classifier": "sparsevideo.classifier",
    "Prediction": "sparsevideo.classifier",
    "SparseFormer": "sparsevideo.models.sparseformer",
    "TestTransform": "sparsevideo.data.transforms",
    "VideoDataset": "sparsevideo.data.datasets",
    "create_model": "sparsevideo.models.create",
    "inflate": "sparsevideo.models.inflate",
    "list_models": "sparsevideo.models.presets",
    "list_pretrained": "sparsevideo.models.create",
    "load": "sparsevideo.classifier",
    "load_model": "sparsevideo.models.weights",
    "load_weights": "sparsevideo.models.weights",
    "open_video": "sparsevideo.io.backends",
    "push_to_hub": "sparsevideo.release",
    "read_records": "sparsevideo.data.records",
    "save_weights": "sparsevideo.models.weights",
    "with_budget": "sparsevideo.models.elastic",
    "write_video": "sparsevideo.io.writer",
}
_SUBMODULES = {"data", "io", "models"}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _SUBMODULES:
        return import_module(f"sparsevideo.{name}")
    raise AttributeError(f"module 'sparsevideo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_SUBMODULES})
