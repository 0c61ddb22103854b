"""pytorchvideo imports, and leaves nothing behind."""

import subprocess
import sys

import pytest

from sparsevideo.data import ptv


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_the_alias_is_gone_after_the_import() -> None:
    out = run(
        "import sys, importlib.util\n"
        "from sparsevideo.data import ptv\n"
        "print('pytorchvideo' in sys.modules)\n"
        "print(ptv.Normalize.__module__)\n"
        "print('torchvision.transforms.functional_tensor' in sys.modules)\n"
        "print(importlib.util.find_spec('torchvision.transforms._functional_tensor') is not None)\n"
    )
    lazily, module, alias, private = out.split()
    assert lazily == "False"  # only when a name is asked for
    assert module.startswith("pytorchvideo.transforms")
    assert alias == "False" or private == "False"  # the old name is there only where torchvision has it


def test_a_failing_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchvideo.transforms", None)  # so importing it fails
    with pytest.raises(ImportError, match=r"pytorchvideo does not import .*; try: pip install"):
        _ = ptv.Normalize


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = ptv.NoSuchThing
