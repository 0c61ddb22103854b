"""Import rules between the parts of the package, checked in the source code."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparsevideo"
FILES = sorted(PACKAGE.rglob("*.py"))

# Part of the package: all that it may import besides the standard library.
ALLOWED = {
    "models": {"torch", "einops", "safetensors", "sparsevideo.models", "sparsevideo.utils"},
    "config.py": set(),
    "exported": {"av", "numpy", "onnxruntime"},
}
# Part of the package: all parts of ours that it may import; other libraries are not restricted here.
OURS = {
    part: {f"sparsevideo.{other}" for other in others.split()}
    for part, others in {
        "utils": "utils",
        "io": "io utils",
        "data": "data io utils",
        "engine": "engine data models io utils config",
    }.items()
}
# File: libraries that take seconds to import, so importing the file must not import them. They are imported where a
# setting or a step needs them. `data/datasets.py` is what every loader worker imports.
LATE = {
    "cli.py": {"torch", "numpy"},
    "data/datasets.py": {"torchvision", "pytorchvideo", "timm", "lightning_fabric", "sklearn", "scipy", "matplotlib"},
    "commands/runs.py": {"torchvision", "pytorchvideo", "timm", "lightning_fabric", "sklearn", "scipy", "matplotlib"},
    "commands/train.py": {"torchvision", "pytorchvideo", "timm", "sklearn", "scipy", "matplotlib"},
    "commands/test.py": {"torchvision", "pytorchvideo", "timm", "sklearn", "scipy", "matplotlib"},
}
# Library: the only files that may import it.
ONLY = {
    "pytorchvideo": {"data/pytorchvideo.py"},
    "av": {f"io/{name}.py" for name in ("errors", "frames", "packets", "pyav", "reader", "stream", "writer")}
    | {"exported/predict.py"},
    "decord": {"io/backends.py"},
    "torchcodec": {"io/backends.py"},
}


def imports(path, at_once=False):
    """Yield the dotted names that a file imports, also in functions and behind TYPE_CHECKING unless `at_once`."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
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
        if part in OURS and within(name, {"sparsevideo"}) and name != "sparsevideo.__version__":
            assert within(name, OURS[part]), f"{file} imports {name}"
        for library, only in ONLY.items():
            assert not within(name, {library}) or file in only, f"{file} imports {name}: {only} alone may"


def imported_at_once(path):
    """Return all names that importing a file imports, also through our other files."""
    found, todo = {}, [path]
    while todo:
        path = todo.pop()
        found[path] = list(imports(path, at_once=True))
        names = [name.partition(".")[2].replace(".", "/") for name in found[path] if within(name, {"sparsevideo"})]
        files = {PACKAGE / file for name in names for file in (f"{name}.py", f"{name.rpartition('/')[0]}.py")}
        todo += [file for file in files if file.is_file() and file not in found]
    return {name for names in found.values() for name in names}


@pytest.mark.parametrize("file", LATE)
def test_imports_of_slow_libraries_are_late(file):
    found = imported_at_once(PACKAGE / file)
    assert any(within(name, {"torch", "yaml"}) for name in found)  # it follows our own files
    assert not {name for name in found if within(name, LATE[file])}


def text_calls_without_encoding(tree):
    """Yield the lines of calls that read or write text in the default encoding of the system."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        words = [value.value for value in [*node.args, *(word.value for word in node.keywords)] if is_text(value)]
        opens = name in ("open", "fdopen") and owner not in ("av", "os", "Image", "tarfile", "self", "self.records")
        binary = any(re.fullmatch("[rwax+]*b[rwax+]*", word) for word in words)
        positional = name in ("read_text", "write_text") and len(node.args) > (name == "write_text")
        text = any(word.arg in ("text", "universal_newlines") and is_true(word.value) for word in node.keywords)
        if text or (opens and not binary) or (name in ("read_text", "write_text", "FileHandler") and not positional):
            yield node.lineno


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8', 'replace')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("open(path)", True),
        ("path.open('a')", True),
        ("path.open('rb')", False),
        ("open(path, mode='wb')", False),
        ("open(path, 'w', encoding='utf-8')", False),
        ("logging.FileHandler(path)", True),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("av.open(path)", False),
    ],
)
def test_text_calls_without_encoding_are_found(code, found):
    assert bool([*text_calls_without_encoding(ast.parse(code))]) == found


@pytest.mark.parametrize("folder", ["sparsevideo", "tools", "benchmarks"])
def test_text_is_utf_8_on_all_systems(folder):
    assert not [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in text_calls_without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_files_start_with_a_docstring():
    files = [
        path for folder in ("sparsevideo", "tests", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert files
    undocumented = [str(path.relative_to(ROOT)) for path in files if not path.read_text().startswith(('"""', 'r"""'))]
    assert undocumented == []
