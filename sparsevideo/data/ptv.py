"""The only importer of pytorchvideo; closes the hole that keeps it from importing.

pytorchvideo 0.1.5 imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 made private. The old name
stands in only while pytorchvideo is imported, so nobody else comes to rely on it. Names are imported when asked for.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_OLD_NAME = "torchvision.transforms.functional_tensor"
# name -> pytorchvideo's module that defines it
_NAMES = {
    "ConstantClipsPerVideoSampler": "pytorchvideo.data.clip_sampling",
    "Normalize": "pytorchvideo.transforms",
    "RandomClipSampler": "pytorchvideo.data.clip_sampling",
    "UniformTemporalSubsample": "pytorchvideo.transforms",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        with _old_name_present():
            return getattr(import_module(_NAMES[name]), name)
    except ImportError as error:
        raise ImportError(f"pytorchvideo does not import ({error}); try: pip install 'pytorchvideo>=0.1.5'") from error


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
