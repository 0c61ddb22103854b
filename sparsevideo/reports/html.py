"""HTML pages without dependencies: images and videos are embedded, so one file holds a whole report."""

import base64
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NewType

Markup = NewType("Markup", str)
"""HTML in which every text is escaped."""


def text(words: str) -> Markup:
    """Return a paragraph."""
    return Markup(f"<p>{escape(words)}</p>")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table that scrolls sideways if it is wider than the page; the first column names the rows."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(map(_cell, cells)) + "</tr>" for name, *cells in rows
    )
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _cell(content: str) -> str:
    """Return a table cell; the class `text` allows line breaks in cells with letters."""
    kind = ' class="text"' if any(map(str.isalpha, content)) else ""
    return f"<td{kind}>{escape(content)}</td>"


def facts(values: Mapping[str, str]) -> Markup:
    """Return a list of names and values."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return Markup(f"<dl>{pairs}</dl>")


def figure(path: Path, alt: str, caption: str, *, large: bool = False) -> Markup:
    """Return an embedded image or video with a caption; `large` uses the whole width of the page.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The suffix is neither that of an image nor that of a video.
    """
    kind = mimetypes.guess_type(path.name)[0] or "unknown"
    source = f'src="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"'
    if kind.startswith("image/"):
        media = f'<img alt="{escape(alt)}" {source}>'
    elif kind.startswith("video/"):
        media = f'<video aria-label="{escape(alt)}" controls loop muted playsinline {source}></video>'
    else:
        raise ValueError(f"{path}: must be an image or a video, got {kind}")
    size = ' class="large"' if large else ""
    return Markup(f'<figure{size}><div class="wide">{media}</div><figcaption>{escape(caption)}</figcaption></figure>')


def tiles(blocks: Iterable[Markup]) -> Markup:
    """Return a grid of blocks, such as small figures."""
    return Markup('<div class="tiles">' + "".join(f"<div>{block}</div>" for block in blocks) + "</div>")


def write_page(path: Path, title: str, sections: Mapping[str, Iterable[Markup]]) -> None:
    """Write a page, from heading to content of each section, that needs no other file, no script and no network."""
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(blocks) + "\n</section>"
        for heading, blocks in sections.items()
    )
    path.write_text(_PAGE.substitute(title=escape(title), body=body), encoding="utf-8")


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
