"""README and docs hold what they promise: Python runs, commands parse, links and names resolve."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

import sparsevideo
from sparsevideo.cli import OK, main
from sparsevideo.io import write_video
from sparsevideo.models.weights import save_weights
from sparsevideo.parser import Parser
from sparsevideo.reports.features import Features, save_features

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GLOSSARY = {
    *("roi", "tube", "sampling point", "sampled features", "sampling step", "stem", "focusing transformer"),
    *("cortex transformer", "inflation", "budget", "clip", "crop", "view", "full frame", "shared stem", "protocol"),
    *("segment", "index", "run file", "checkpoint"),
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page_name(page):
    return page.relative_to(ROOT).as_posix()


def read(page):
    return page.read_text(encoding="utf-8")


def blocks(page, *languages):
    return [block for language, block in FENCE.findall(read(page)) if language in languages]


def shell_lines(page):
    text = "\n".join(blocks(page, "", "sh", "bash", "shell"))
    return re.sub(r"\\\n\s*", "", text).splitlines()


def command_lines(page):
    """Arguments of `sparsevideo` in the shell blocks, also behind torchrun and behind the script for Slurm."""
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if not words or "..." in words:
            continue
        if words[0] == "sparsevideo":
            yield words[1:]
        elif words[0] == "torchrun":
            launched = get_args_parser().parse_args(words[1:])
            assert launched.module and launched.training_script == "sparsevideo", line
            yield launched.training_script_args
        elif "tools/slurm_train.sh" in words:
            yield ["train", *words[words.index("tools/slurm_train.sh") + 1 :]]


def anchors(page):
    """Anchors of the headings, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.fixture(scope="module")
def files(trained, digits, tmp_path_factory):
    """All files that the Python blocks name: real videos, a short real run, small weights."""
    folder = tmp_path_factory.mktemp("files")
    for run in ("runs/quickstart/video", "runs/finetuned", "runs/own_videos"):
        (folder / run).parent.mkdir(parents=True, exist_ok=True)
        (folder / run).symlink_to(trained)
    (folder / "runs/quickstart/data").symlink_to(digits)
    (folder / "videos").symlink_to(digits / "videos")
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(24, 48, 64, 3), dtype=np.uint8)
    for name in ("my_video.mp4", "other.mp4"):
        write_video(folder / name, pixels)
    (folder / "broken.mp4").write_bytes(b"no video")
    Image.fromarray(pixels[0]).save(folder / "photo.jpg")
    save_weights(folder / "sparseformer_v1_tiny_converted.pth", sparsevideo.create_model("sparseformer_nano"))
    labels, failed = np.array([0, 1]), np.array([False, False])
    names = ["left/a.mp4", "right/b.mp4"]
    save_features(folder / "train.npz", Features(names, labels, np.eye(2, dtype=np.float32), failed, ["left", "right"]))
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_name)
def test_python_blocks_run_in_order(page, files, tmp_path, monkeypatch):
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page_name(page)}, block {number}", "exec"), namespace)


class Parsed(BaseException):
    """Ends a command after its arguments have been parsed."""


# tests/test_configs.py parses the commands of the recipes.
WITH_COMMANDS = [page for page in PAGES if page.name != "recipes.md" and [*command_lines(page)]]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=page_name)
def test_commands_parse(page, monkeypatch, capsys):
    def stop_after(parser, argv):
        parse(parser, argv)
        raise Parsed

    parse = Parser.parse
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Parser, "parse", stop_after)
    for argv in command_lines(page):
        if {"--help", "--version"} & {*argv}:
            assert main(argv) == OK
            continue
        with pytest.raises(Parsed):
            pytest.fail(f"sparsevideo {shlex.join(argv)} ended with {main(argv)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_anchors_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page)))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{link} leaves docs: the website does not have it"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE)
    inline = re.findall(r"`make ([^`]+)`", FENCE.sub("", read(page)))
    lines = [line.removeprefix("make ") for line in shell_lines(page) if line.startswith("make ")]
    named = {word for text in (*inline, *lines) for word in shlex.split(text, comments=True) if "=" not in word}
    assert named <= {*targets}


def test_readme_is_short():
    assert len(read(README).splitlines()) <= 130
    assert len(read(README).split()) <= 1100


def test_glossary_has_the_agreed_entries():
    entries = dict(re.findall(r"^### (.+)\n\n(.+)", read(DOCS / "glossary.md"), re.MULTILINE))
    assert {title.lower() for title in entries} >= GLOSSARY


def test_every_page_is_in_the_navigation():
    def files_in(entry):
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry.values() if isinstance(entry, dict) else entry) for file in files_in(part)]

    navigation = files_in(yaml.safe_load(read(ROOT / "mkdocs.yml"))["nav"])
    assert sorted(navigation) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.json")), ids=page_name)
def test_raw_results_name_no_folder_of_a_machine(file):
    assert re.findall(r'"(?:/|[A-Z]:\\)[^"]*"', read(file)) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_nobody_is_sent_to_the_other_package_on_pypi(page):
    assert not re.findall(r"pip install (?:-\S+ )*['\"]?sparsevideo\b(?!-recognition)", read(page))


def test_citation_names_both_papers():
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    for paper in citation["references"]:
        assert paper["title"] in read(README)
        assert paper["url"].removeprefix("https://arxiv.org/abs/") in read(README)
    assert len(citation["references"]) == 2


def resolve(name):
    """Import or get the object of a dotted name; raises ImportError or AttributeError."""
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


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_names_of_the_package_exist(page):
    names = {name for block in blocks(page, "python") for name in names_in(block)}
    names |= set(re.findall(r"`(sparsevideo(?:\.\w+)+)(?:\(|`)", read(page)))
    names |= set(re.findall(r"^::: (\S+)$", read(page), re.MULTILINE))
    for name in names:
        resolve(name)
