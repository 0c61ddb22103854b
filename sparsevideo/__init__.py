"""Video-first action recognition with SparseFormer: `import sparsevideo` needs torch alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparsevideo.models.elastic import with_budget as with_budget
    from sparsevideo.models.inflate import inflate as inflate
    from sparsevideo.models.presets import create_model as create_model
    from sparsevideo.models.presets import list_models as list_models
    from sparsevideo.models.sparseformer import SparseFormer as SparseFormer
    from sparsevideo.models.weights import load_weights as load_weights

# public name -> module that defines it; imported when first asked for
_PUBLIC = {
    "SparseFormer": "sparsevideo.models.sparseformer",
    "create_model": "sparsevideo.models.presets",
    "inflate": "sparsevideo.models.inflate",
    "list_models": "sparsevideo.models.presets",
    "load_weights": "sparsevideo.models.weights",
    "with_budget": "sparsevideo.models.elastic",
}
_SUBMODULES = {"data", "io", "models"}
__all__ = ["SparseFormer", "__version__", "create_model", "inflate", "list_models", "load_weights", "with_budget"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _SUBMODULES:
        return import_module(f"sparsevideo.{name}")
    raise AttributeError(f"module 'sparsevideo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_SUBMODULES})
