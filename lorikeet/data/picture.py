"""Examples as a picture: an HTML page where each token says where it comes from, or an SVG drawing.

Both are one file that needs nothing else. Colours are those of the terminal: learned text green, context grey, control
tokens framed, what was cut away red; a legend says so.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lorikeet.base.errors import OutputError
from lorikeet.base.files import write_file

TRAINED, CONTEXT, CUT, WEIGHT = "trained", "context", "cut", "weight"
_COLOURS = {TRAINED: "#0b6e2d", CONTEXT: "#5b6670", CUT: "#b3261e", WEIGHT: "#8a6100"}
_FILLS = {TRAINED: "#dff3e4", CONTEXT: "none", CUT: "#fbe4e2", WEIGHT: "none"}
_FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
_COLUMNS, _WIDE, _TALL, _EDGE = 100, 8.0, 19, 16  # of the drawing: characters in a line, SVG units


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text with one look. `hint` is what the page says when a pointer rests on it."""

    text: str
    look: str
    control: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """One example (or a row without any) as pieces of text."""

    title: str
    pieces: Sequence[Piece]


def write_picture(path: Path, shown: Iterable[Shown]) -> None:
    """Write an .html or .svg file. Raises OutputError for another ending."""
    if path.suffix not in (".html", ".svg"):
        raise OutputError(
            f"{path}: a picture of this kind cannot be written",
            given=path.suffix or "no ending",
            allowed=".html .svg",
            try_=f"{path.stem}.html",
        )
    write_file(path, as_html(shown) if path.suffix == ".html" else as_svg(list(shown)))


def as_html(shown: Iterable[Shown]) -> str:
    """A page; every token is an element with a hint."""
    styles = "\n".join(
        f".{look} {{ color: {_COLOURS[look]}; background: {'transparent' if fill == 'none' else fill}; }}"
        for look, fill in _FILLS.items()
    )
    blocks = "\n".join(
        f"<h2>{escape(one.title)}</h2>\n<pre>{''.join(map(_element, one.pieces))}</pre>" for one in shown
    )
    legend = "  ".join(_element(piece) for piece in _legend())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Conversations as the model sees them</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2933; }}
h2 {{ font-size: 1rem; margin: 2rem 0 .3rem; }}
pre {{ font: 14px/1.6 {_FONT}; white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #d5dae0;
  border-radius: 6px; padding: .8rem 1rem; margin: 0; }}
span:hover {{ outline: 1px solid #1f2933; }}
.control {{ border: 1px solid currentColor; border-radius: 3px; padding: 0 2px; }}
.cut {{ text-decoration: line-through; }}
{styles}
</style></head><body>
<pre>{legend}</pre>
{blocks}
</body></html>
"""


def _legend() -> list[Piece]:
    return [
        Piece("trained", TRAINED, hint="learned: has a loss weight"),
        Piece("context", CONTEXT, hint="read, not learned"),
        Piece("control token", CONTEXT, control=True, hint="one token with a name"),
        Piece("cut", CUT, hint="left out"),
    ]


def _element(piece: Piece) -> str:
    looks = piece.look + (" control" if piece.control else "")
    hint = f' title="{escape(piece.hint)}"' if piece.hint else ""
    return f'<span class="{looks}"{hint}>{escape(_visible(piece.text))}</span>'


def _visible(text: str) -> str:
    """Characters that no page or drawing may hold, as signs."""
    made = (chr(0x2400 + ord(one)) if ord(one) < 32 and one not in "\n\t" else one for one in text)
    return "".join(made).encode("utf-8", "replace").decode("utf-8")


def as_svg(shown: Sequence[Shown]) -> str:
    """A drawing, 100 columns wide."""
    lines: list[list[Piece]] = [_legend_line(), []]
    titles = set()
    for one in shown:
        titles.add(len(lines))
        lines.append([Piece(one.title, "title")])
        lines += [*_wrapped(one.pieces), []]
    while lines and not lines[-1]:
        lines.pop()
    width, height = int(_COLUMNS * _WIDE + 2 * _EDGE), len(lines) * _TALL + 2 * _EDGE
    body = "\n".join(
        part for number, line in enumerate(lines) for part in _drawn(line, _EDGE + number * _TALL, number in titles)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Conversations as the model sees them" font-family="{escape(_FONT)}" font-size="13">\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff" stroke="#d5dae0"/>\n{body}\n</svg>\n'
    )


def _legend_line() -> list[Piece]:
    return [part for piece in _legend() for part in (piece, Piece("   ", CONTEXT))]


def _wrapped(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """The pieces cut into lines at their own line ends and at the edge."""
    line: list[Piece] = []
    used = 0
    for piece in pieces:
        for number, part in enumerate(_visible(piece.text).replace("\t", "    ").split("\n")):
            if number:
                yield line
                line, used = [], 0
            start, reached = 0, used
            for at, character in enumerate(part):
                if reached + columns(character) > _COLUMNS:
                    yield [*line, Piece(part[start:at], piece.look, piece.control)]
                    line, start, reached = [], at, 0
                reached += columns(character)
            if part[start:]:
                line.append(Piece(part[start:], piece.look, piece.control))
            used = reached
    yield line


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese characters and emoji take two."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _drawn(line: Sequence[Piece], top: float, title: bool) -> Iterator[str]:
    x = float(_EDGE)
    for piece in line:
        size = columns(piece.text) * _WIDE
        fill = _FILLS.get(piece.look, "none")
        if fill != "none" or piece.control:
            stroke = f' stroke="{_COLOURS[piece.look]}"' if piece.control else ""
            box = f'x="{x:.1f}" y="{top + 1:.1f}" width="{size:.1f}" height="{_TALL - 2}"'
            yield f'<rect {box} fill="{fill}" rx="2"{stroke}/>'
        if piece.text.strip():
            # spaces at the ends would be dropped, and the length is of what is drawn
            text, before = piece.text.strip(), columns(piece.text[: len(piece.text) - len(piece.text.lstrip())])
            looks = ' font-weight="600" fill="#1f2933"' if title else f' fill="{_COLOURS[piece.look]}"'
            looks += ' text-decoration="line-through"' if piece.look == CUT else ""
            place = f'x="{x + before * _WIDE:.1f}" y="{top + 14:.1f}" textLength="{columns(text) * _WIDE:.1f}"'
            yield f'<text {place}{looks} xml:space="preserve">{escape(text)}</text>'
        x += size
