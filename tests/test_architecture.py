"""Who may import whom: the arrows of the architecture, read off the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparsevideo"
FILES = sorted(PACKAGE.rglob("*.py"))

# part of the package: all that it may import beside the standard library
ALLOWED = {
    "models": {"torch", "einops", "safetensors", "sparsevideo.models"},
    "config.py": set(),
}
# part of the package: what of ours it may import at most; its libraries are its own affair
OURS = {"data": {"sparsevideo.data"}, "engine": {"sparsevideo.engine"}}
# library: the only files that may import it
ONLY = {
    "pytorchvideo": {"data/ptv.py"},
    "av": {"data/video.py", "data/encode.py"},
    "decord": {"data/decode.py"},
    "torchcodec": {"data/decode.py"},
}


def imports(path):
    """Absolute dotted names, those inside functions and behind TYPE_CHECKING included."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], node.module] if node.level else [node.module]
            yield from (".".join([*filter(None, base), alias.name]) for alias in node.names)


def within(name, roots):
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_follow_the_arrows(path):
    file = path.relative_to(PACKAGE).as_posix()
    part = file.partition("/")[0]
    for name in imports(path):
        if part in ALLOWED:
            assert within(name, ALLOWED[part] | sys.stdlib_module_names), f"{file} imports {name}"
        if part in OURS and within(name, {"sparsevideo"}):
            assert within(name, OURS[part]), f"{file} imports {name}"
        for library, only in ONLY.items():
            assert not within(name, {library}) or file in only, f"{file} imports {name}: {only} alone may"


def test_each_file_says_its_idea_on_line_1():
    files = [path for folder in ("sparsevideo", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert files
    silent = [str(path.relative_to(ROOT)) for path in files if not path.read_text().startswith(('"""', 'r"""'))]
    assert silent == []
