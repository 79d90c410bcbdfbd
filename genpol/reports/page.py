"""One self-contained page: panels of text, tables, figures and pictures, all inside the HTML.

Every helper takes plain text and escapes it, and returns HTML. Nothing on the page points outside
it, so it can be opened offline and sent to somebody.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
body { margin: 0; background: #f4f4f2; color: #1d1d1f; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 920px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 28px; margin: 8px 0 20px; }
h2 { font-size: 20px; margin: 0 0 10px; }
section { background: #fff; border: 1px solid #e2e2de; border-radius: 8px; padding: 20px 24px;
  margin-bottom: 20px; }
p { margin: 0 0 12px; max-width: 75ch; }
table { border-collapse: collapse; margin: 4px 0 14px; width: 100%; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid #e2e2de; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: #55555a; }
pre { background: #f4f4f2; border-radius: 6px; padding: 12px 14px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, monospace; }
figure { margin: 0 0 14px; }
.wide { overflow-x: auto; }
.wide table { font-size: 13.5px; }
.wide th, .wide td { padding: 6px 7px; }
td + td { white-space: nowrap; }
td:first-child { min-width: 6em; }
.pair, td:first-child { overflow-wrap: anywhere; }
figcaption { font-size: 14px; color: #55555a; }
img.chart { width: 100%; height: auto; }
.pairs { display: grid; grid-template-columns: repeat(4, 1fr); gap: 18px 14px; }
.pair { font-size: 12.5px; line-height: 1.35; }
.pair .two { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; margin-bottom: 4px; }
.pair img { width: 100%; display: block; image-rendering: pixelated; border: 1px solid #e2e2de; }
.strip { margin-bottom: 14px; font-size: 12.5px; line-height: 1.35; }
.strip .row { display: grid; gap: 4px; margin-bottom: 4px; }
.strip img { width: 100%; display: block; image-rendering: pixelated; border: 1px solid #e2e2de; }
.good { color: #1a7f37; font-weight: 600; }
.part { color: #8a5a00; }
.note { font-size: 14px; color: #55555a; }
@media (max-width: 760px) { .pairs { grid-template-columns: repeat(2, 1fr); } }
"""


@dataclass(frozen=True)
class Panel:
    """A titled section of the page; `html` is already escaped."""

    title: str
    html: str


@dataclass(frozen=True)
class Pair:
    """Two pictures (PNG bytes) of one prompt; the marks are shown under them, None for none.

    A mark is the share of what was asked for that the picture shows, in [0, 1], or words.
    """

    caption: str
    before: bytes
    after: bytes
    before_mark: float | str | None = None
    after_mark: float | str | None = None


def page(panels: Sequence[Panel], title: str = "genpol demo") -> str:
    """The whole HTML document."""
    sections = "\n".join(
        f"<section>\n<h2>{escape(panel.title)}</h2>\n{panel.html}\n</section>" for panel in panels
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{sections}\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is a class of the style sheet, such as "note"."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{escape(text)}</pre>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    inside = f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody>"
    return f'<div class="wide"><table>\n{inside}\n</table></div>'


def image(png: bytes, alt: str, kind: str = "") -> str:
    """A PNG inside the page."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<img class="{kind}" src="{source}" alt="{escape(alt)}">'


def figure(png: bytes, caption: str) -> str:
    """A chart over the whole width, with a caption."""
    return (
        f"<figure>{image(png, caption, 'chart')}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def pairs(items: Sequence[Pair]) -> str:
    """A grid of before/after pictures, each pair with its prompt underneath."""
    cells = []
    for item in items:
        two = "".join(
            f"<div>{image(png, f'{when}: {item.caption}')}{mark(value)}</div>"
            for when, png, value in (
                ("before", item.before, item.before_mark),
                ("after", item.after, item.after_mark),
            )
        )
        cells.append(f'<div class="pair"><div class="two">{two}</div>{escape(item.caption)}</div>')
    return '<div class="pairs">\n' + "\n".join(cells) + "\n</div>"


@dataclass(frozen=True)
class Strip:
    """Pictures (PNG bytes) of one prompt side by side, each with a mark under it; see `Pair`."""

    caption: str
    pictures: Sequence[bytes]
    marks: Sequence[float | str | None]


def strips(items: Sequence[Strip], names: Sequence[str]) -> str:
    """Rows of pictures, one for each prompt, with the names of the columns above the first."""
    columns = f"repeat({len(names)}, minmax(0, 170px))"
    grid = f'<div class="row" style="grid-template-columns: {columns}">'
    head = "".join(f'<div class="note">{escape(name)}</div>' for name in names)
    rows = [f'<div class="strip">{grid}{head}</div></div>']
    for item in items:
        cells = "".join(
            f"<div>{image(png, f'{name}: {item.caption}')}{mark(value)}</div>"
            for name, png, value in zip(names, item.pictures, item.marks, strict=True)
        )
        rows.append(f'<div class="strip">{grid}{cells}</div>{escape(item.caption)}</div>')
    return "\n".join(rows)


def mark(value: float | str | None) -> str:
    """A tick for 1, else the share in per cent; words as they are; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f'<span class="note">{escape(value)}</span>'
    if value >= 1:
        return '<span class="good">✓ all</span>'
    return f'<span class="part">{value:.0%}</span>'


def duration(seconds: float) -> str:
    """Seconds or minutes, in words."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"
