"""The project speaks plain technical English: retired words and docstrings that open with a question stay away."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for top in ("sparsevideo", "tests", "tools", "benchmarks") for path in (ROOT / top).rglob("*.py"))
PAGES = [
    path
    for pattern in (
        *("*.md", "*.yml", "*.cff", "*.toml", "*.cfg", "Makefile", ".ci/run"),
        *("docs/**/*.md", "configs/**/*.yaml", "tools/*.sh", "findings/*.sh"),
    )
    for path in ROOT.glob(pattern)
]
CODE.remove(Path(__file__).resolve())

# Parts of identifiers, between underscores and capitals.
RETIRED_IDENTIFIERS = {
    *("told", "said", "seen", "mine", "place", "places", "look", "looks", "gaze", "torn", "anew", "twin", "obituary"),
    *("colour", "centre", "verb", "wants"),
}
# Words of comments, docstrings, messages and pages.
RETIRED_WORDS = {
    *(
        "told",
        "said",
        "torn",
        "anew",
        "twin",
        "twins",
        "obituary",
        "colour",
        "colours",
        "coloured",
        "centre",
        "centred",
    ),
    *("centres", "wants", "gaze", "legible"),
}
QUESTION = re.compile(r"(What|Where|Whether|Which|How|Who|When|Why)\b")


def parts_of(identifier: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", identifier)}


def identifiers(tree: ast.AST) -> set[str]:
    """Names that the file itself defines: variables, attributes it assigns, functions, classes, arguments."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def words(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Za-z]+", re.sub(r"`[^`]*`", "", text))}


def prose(source: str) -> list[tuple[int, str]]:
    """Comments and strings of a file, each with its line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [(token.start[0], token.string) for token in tokens if token.type in kinds]


def docstrings(tree: ast.AST) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CODE, ids=named)
def test_vocabulary_of_code(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert not {name for name in identifiers(tree) if parts_of(name) & RETIRED_IDENTIFIERS}
    assert not [(line, words(text) & RETIRED_WORDS) for line, text in prose(source) if words(text) & RETIRED_WORDS]
    assert not [text.splitlines()[0] for text in docstrings(tree) if QUESTION.match(text)]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_vocabulary_of_pages(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [(n, words(line) & RETIRED_WORDS) for n, line in enumerate(lines, 1) if words(line) & RETIRED_WORDS]


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("told = 1", {"told"}),
        ("def _look_up(place): ...", {"_look_up", "place"}),
        ("self.seen = 1", {"seen"}),
        ("class TornFile: ...", {"TornFile"}),
        ("other.told()", set()),
        ("placeholder = looking", set()),
    ],
)
def test_vocabulary_finds_retired_identifiers(code: str, refused: set[str]) -> None:
    assert {name for name in identifiers(ast.parse(code)) if parts_of(name) & RETIRED_IDENTIFIERS} == refused


def test_vocabulary_finds_retired_words_and_questions() -> None:
    source = '"""Whether it is told."""\nx = f"a {1} torn"  # of another colour\ny = "`told`"\n'
    found = set().union(*(words(text) & RETIRED_WORDS for _, text in prose(source)))
    assert found == {"told", "torn", "colour"}
    assert [bool(QUESTION.match(text)) for text in docstrings(ast.parse(source))] == [True]
