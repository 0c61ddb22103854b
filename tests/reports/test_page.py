"""The page stands alone: nothing is fetched, nothing in it is taken for markup, every figure is described."""

import base64
from html.parser import HTMLParser

import pytest

from sparsevideo.reports.page import Facts, Figure, Table, Text, write_page

PNG = b"\x89PNG\r\n\x1a\n not much of an image"
EVIL = '<script>alert("1")</script> & $title ${body}'


class Elements(HTMLParser):
    """Every element with its attributes, the text, and whether what opens also closes."""

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
        write_page(tmp_path / "index.html", title, sections)
        return Elements((tmp_path / "index.html").read_text(encoding="utf-8"))

    return write


def test_every_text_is_shown_as_it_is_and_never_as_markup(written, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    blocks = [
        Text(EVIL),
        Table([EVIL, EVIL], [[EVIL, EVIL]]),
        Facts({EVIL: EVIL}),
        Figure(tmp_path / "a.png", alt=EVIL, caption=EVIL),
    ]
    page = written(EVIL, {EVIL: blocks})
    assert "script" not in {tag for tag, _ in page.found}
    assert page.words.count(EVIL) == 2 + 1 + 1 + 4 + 2 + 1  # title twice, heading, then the blocks
    assert [attrs["alt"] for tag, attrs in page.found if tag == "img"] == [EVIL]


def test_words_may_need_several_lines_and_numbers_stay_on_one(written):
    page = written("a", {"b": [Table(["name", "x"], [["long name", "61.7 (49.0–73.3)", "taken for this", "–"]])]})
    cells = [attrs.get("class") for tag, attrs in page.found if tag == "td"]
    assert cells == [None, "text", None]


def test_figures_travel_inside_the_page(written, tmp_path):
    for name in ("a.png", "b.mp4"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    page = written(
        "t", {"s": [Figure(tmp_path / "a.png", "an image", "1"), Figure(tmp_path / "b.mp4", "a video", "2")]}
    )
    (image,) = [attrs for tag, attrs in page.found if tag == "img"]
    (video,) = [attrs for tag, attrs in page.found if tag == "video"]
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == "an image"
    assert video["src"].startswith("data:video/mp4;base64,") and video["aria-label"] == "a video"
    for element, name in ((image, "a.png"), (video, "b.mp4")):
        assert base64.b64decode(element["src"].partition(",")[2]) == PNG + name.encode()


def test_nothing_is_fetched(written, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    page = written("t", {"s": [Figure(tmp_path / "a.png", "x", "y"), Text("z")]})
    assert {tag for tag, _ in page.found}.isdisjoint({"script", "link", "iframe", "a"})
    addresses = [attrs[key] for _, attrs in page.found for key in ("src", "href") if key in attrs]
    assert len(addresses) == 1 and addresses[0].startswith("data:")
    style = "".join(page.words)
    assert "url(" not in style and "@import" not in style


def test_sections_stand_in_order_and_tables_keep_their_cells(written):
    page = written("Title", {"One": [Table(["run", "top-1"], [["image", "91 %"], ["video", "98 %"]])], "Two": []})
    words = [word for word in page.words if word]
    shown = words[words.index("Title", words.index("Title") + 1) :]
    assert shown == ["Title", "One", "run", "top-1", "image", "91 %", "video", "98 %", "Two"]
    scopes = [attrs["scope"] for tag, attrs in page.found if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]


def test_a_figure_that_cannot_be_shown_is_named(written, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(ValueError, match=r"a\.txt: a figure is an image or a video, not text/plain"):
        written("t", {"s": [Figure(tmp_path / "a.txt", "x", "y")]})
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        written("t", {"s": [Figure(tmp_path / "b.png", "x", "y")]})
    assert not (tmp_path / "index.html").exists()
