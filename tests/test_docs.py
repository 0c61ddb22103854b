"""What README and docs name in Python is there."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def resolve(name):
    """Import or get what a dotted name stands for; raises ImportError or AttributeError."""
    found = None
    for depth, part in enumerate(name.split(".")):
        try:
            found = getattr(found, part) if depth else import_module(part)
        except AttributeError:
            found = import_module(".".join(name.split(".")[: depth + 1]))
    return found


def names_in(code):
    """Dotted names of the package that a block of Python imports, or takes from what it has imported."""
    tree, imported = ast.parse(code), {"sparsevideo": "sparsevideo"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sparsevideo"):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from imported.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            yield f"{imported[node.value.id]}.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_python_blocks_and_text_are_there(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names = {name for block in blocks for name in names_in(block)}
    for name in names | set(re.findall(r"`(sparsevideo(?:\.\w+)+)(?:\(|`)", text)):
        resolve(name)
