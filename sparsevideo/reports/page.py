"""One web page that shows a run's results and can be mailed: everything it shows is inside the file."""

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Protocol


class Block(Protocol):
    """A piece of a section."""

    def html(self) -> str:
        """Markup with every text escaped."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        """A `p` element."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows, the others are mostly numbers.

    Attributes:
        header: One heading a column.
        rows: The cells as they are to be read, units included.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """A `table` element that scrolls sideways where it is wider than the page."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        body = "".join(
            f'<tr><th scope="row">{escape(name)}</th>' + "".join(map(_cell, cells)) + "</tr>"
            for name, *cells in self.rows
        )
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(said: str) -> str:
    """Numbers stay on one line, words may need several."""
    words = ' class="text"' if any(map(str.isalpha, said)) else ""
    return f"<td{words}>{escape(said)}</td>"


@dataclass(frozen=True)
class Facts:
    """Names and what they are: how a number was made."""

    facts: Mapping[str, str]

    def html(self) -> str:
        """A `dl` element."""
        pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.facts.items())
        return f"<dl>{pairs}</dl>"


@dataclass(frozen=True)
class Figure:
    """An image or a video with a caption.

    Attributes:
        file: The file; its suffix says what it is.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
        large: As large as the page is wide, whatever its height.
    """

    file: Path
    alt: str
    caption: str
    large: bool = False

    def html(self) -> str:
        """A `figure` element with the file's bytes inside.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: Its suffix is neither an image's nor a video's.
        """
        kind = mimetypes.guess_type(self.file.name)[0] or "unknown"
        source = f'src="data:{kind};base64,{base64.b64encode(self.file.read_bytes()).decode()}"'
        alt = escape(self.alt)
        if kind.startswith("image/"):
            media = f'<img alt="{alt}" {source}>'
        elif kind.startswith("video/"):
            media = f'<video aria-label="{alt}" controls loop muted playsinline {source}></video>'
        else:
            raise ValueError(f"{self.file}: a figure is an image or a video, not {kind}")
        size = ' class="large"' if self.large else ""
        return f'<figure{size}><div class="wide">{media}</div><figcaption>{escape(self.caption)}</figcaption></figure>'


@dataclass(frozen=True)
class Tiles:
    """Blocks side by side, as many as there is room for: small figures with captions.

    Attributes:
        blocks: One a tile.
    """

    blocks: Sequence[Block]

    def html(self) -> str:
        """A `div` element that is a grid."""
        return '<div class="tiles">' + "".join(f"<div>{block.html()}</div>" for block in self.blocks) + "</div>"


def write_page(path: str | Path, title: str, sections: Mapping[str, Sequence[Block]]) -> None:
    """Write a page that needs no other file, no script and no network.

    Args:
        path: The HTML file to write; its folder must exist.
        title: Of the page.
        sections: Heading to what stands under it, in order.

    Raises:
        FileNotFoundError: A figure's file is missing.
        ValueError: A figure's file is neither an image nor a video.
    """
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(block.html() for block in blocks) + "\n</section>"
        for heading, blocks in sections.items()
    )
    page = _PAGE.substitute(title=escape(title), body=body)
    Path(path).write_text(page, encoding="utf-8")


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: light-dark(#1c2b3a, #dde4ea); --soft: light-dark(#5b6b7a, #98a6b3);
  --line: light-dark(#dfe5ea, #36424d); --page: light-dark(#fff, #161c22); --panel: light-dark(#f6f8fa, #1e262e); }
body { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { max-width: 42rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1.2rem .45rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th, th:first-child, td.text { white-space: normal; }
th:first-child, td.text { text-align: left; overflow-wrap: anywhere; min-width: 8rem; }
thead th { color: var(--soft); font-weight: 500; }
figure { margin: 1.5rem 0; }
img, video { display: block; max-width: 100%; max-height: 34rem; border-radius: 6px; background: #fff; }
.large img, .large video { max-height: none; }
figcaption { max-width: 42rem; margin-top: .5rem; color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.5rem; padding: 1rem; border-radius: 6px;
  background: var(--panel); }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1.25rem 1rem; }
.tiles figure, .tiles p { margin: 0; font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
.tiles p { color: var(--soft); }
@media (max-width: 40rem) {
  img { max-width: none; height: 20rem; }
  .large img { height: 44rem; }
  .tiles img { max-width: 100%; height: auto; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
