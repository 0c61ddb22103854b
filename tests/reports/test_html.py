"""HTML reports: they fetch nothing, escape every text and describe every figure."""

import base64
from html.parser import HTMLParser

import pytest

from sparsevideo.reports import html

PNG = b"\x89PNG\r\n\x1a\n not much of an image"
EVIL = '<script>alert("1")</script> & $title ${body}'


class Elements(HTMLParser):
    """Elements of a page with their attributes, and its texts; fails if an element is not closed."""

    VOID = ("meta", "img")

    def __init__(self, page):
        super().__init__()
        self.found, self.words, self.open = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture
def written(tmp_path):
    def write(title, sections):
        html.write_page(tmp_path / "index.html", title, sections)
        return Elements((tmp_path / "index.html").read_text(encoding="utf-8"))

    return write


def test_page_escapes_every_text(written, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    blocks = [
        html.text(EVIL),
        html.table([EVIL, EVIL], [[EVIL, EVIL]]),
        html.facts({EVIL: EVIL}),
        html.figure(tmp_path / "a.png", alt=EVIL, caption=EVIL),
    ]
    page = written(EVIL, {EVIL: blocks})
    assert "script" not in {tag for tag, _ in page.found}
    assert page.words.count(EVIL) == 2 + 1 + 1 + 4 + 2 + 1  # title twice, heading, then the blocks
    assert [attrs["alt"] for tag, attrs in page.found if tag == "img"] == [EVIL]


def test_table_breaks_lines_in_cells_with_letters_only(written):
    page = written("a", {"b": [html.table(["name", "x"], [["long name", "61.7 (49.0–73.3)", "taken for this", "–"]])]})
    cells = [attrs.get("class") for tag, attrs in page.found if tag == "td"]
    assert cells == [None, "text", None]


def test_figures_are_embedded(written, tmp_path):
    for name in ("a.png", "b.mp4"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    page = written(
        "t", {"s": [html.figure(tmp_path / "a.png", "an image", "1"), html.figure(tmp_path / "b.mp4", "a video", "2")]}
    )
    (image,) = [attrs for tag, attrs in page.found if tag == "img"]
    (video,) = [attrs for tag, attrs in page.found if tag == "video"]
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == "an image"
    assert video["src"].startswith("data:video/mp4;base64,") and video["aria-label"] == "a video"
    for element, name in ((image, "a.png"), (video, "b.mp4")):
        assert base64.b64decode(element["src"].partition(",")[2]) == PNG + name.encode()


def test_page_fetches_nothing(written, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    page = written("t", {"s": [html.figure(tmp_path / "a.png", "x", "y"), html.text("z")]})
    assert {tag for tag, _ in page.found}.isdisjoint({"script", "link", "iframe", "a"})
    addresses = [attrs[key] for _, attrs in page.found for key in ("src", "href") if key in attrs]
    assert len(addresses) == 1 and addresses[0].startswith("data:")
    style = "".join(page.words)
    assert "url(" not in style and "@import" not in style


def test_page_keeps_the_order_of_sections_and_cells(written):
    page = written("Title", {"One": [html.table(["run", "top-1"], [["image", "91 %"], ["video", "98 %"]])], "Two": []})
    words = [word for word in page.words if word]
    shown = words[words.index("Title", words.index("Title") + 1) :]
    assert shown == ["Title", "One", "run", "top-1", "image", "91 %", "video", "98 %", "Two"]
    scopes = [attrs["scope"] for tag, attrs in page.found if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]


def test_tiles_are_a_grid_of_blocks(written):
    page = written("t", {"s": [html.tiles([html.text("a"), html.text("b")])]})
    assert [attrs.get("class") for tag, attrs in page.found if tag == "div"] == ["tiles", None, None]


def test_figure_names_a_file_that_cannot_be_shown(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(ValueError, match=r"a\.txt: must be an image or a video, got text/plain"):
        html.figure(tmp_path / "a.txt", "x", "y")
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        html.figure(tmp_path / "b.png", "x", "y")
