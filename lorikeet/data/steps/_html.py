"""HTML as browsers show it to Markdown: what a copied chat has, on a tree that selectolax (Lexbor) parsed.

Text is never escaped: these are replies that a model wrote as Markdown once, and `\\_` would teach it to write that.
Code blocks become fences with the language that the page names; a page's own furniture (buttons, icons, "Copy code",
counters of regenerated answers) goes. Math is taken from KaTeX's and MathJax's annotations. A tag that HTML does not
know was the author's text, `vector<int>` or `<name>`, and stays as text.

Blocks are written with blank lines around them, which `_tidy` thins out. Code takes no part in that: it stands aside
until the end and only a mark (`\\0`, a number, `\\0`) holds its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lorikeet.base.extras import require
from lorikeet.data.steps._fences import COPY, fence, language_and_code
from lorikeet.data.steps._html_tags import CONTAINERS, FURNITURE, INLINE

COUNTER = re.compile(r"\s*\d{1,3} / \d{1,3}\s*")
DEEPEST = 150  # levels of elements; a page a person copied has a tenth of that

_AROUND = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~", "strike": "~~"}
_SPACES = re.compile(r"[ \t\r\f]+")
_SPACED_LINE = re.compile(r" *\n\s*")
_MARK = re.compile(r"^(.*)\0(\d+)\0", re.MULTILINE)


class TooDeep(Exception):
    """Elements nested beyond DEEPEST."""


def to_markdown(html: str) -> str:
    """The Markdown of a piece of HTML. Raises TooDeep."""
    lexbor = require("selectolax.lexbor", extra="data", needed_by="the step html_to_markdown")
    body = lexbor.LexborHTMLParser(html.replace("\0", "")).body
    return _Page(html).whole(body) if body is not None else ""


class _Page:
    """One piece of HTML being written as Markdown."""

    def __init__(self, source: str):
        self.source = source
        self.aside: list[str] = []  # code blocks and display math, until the text around them is tidy
        self.depth = 0
        self.begun = False  # whether any text was seen: a counter stands before all of it

    def whole(self, body: Any) -> str:
        return _MARK.sub(self._put_back, _tidy(self.children(body)))

    def _put_back(self, match: re.Match[str]) -> str:
        """What stood aside, each of its lines behind the line's own beginning: a list's indent, a quote's `> `."""
        before = match[1]
        prefix = "".join(char if char in "> \t" else " " for char in before)
        lines = self.aside[int(match[2])].split("\n")
        return before + lines[0] + "".join(f"\n{prefix + line if line else prefix.rstrip()}" for line in lines[1:])

    def set_aside(self, text: str) -> str:
        self.begun = True
        self.aside.append(text)
        return f"\n\n\0{len(self.aside) - 1}\0\n\n"

    def children(self, node: Any) -> str:
        """The Markdown of everything inside a node."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooDeep
        found: list[str] = []
        child = node.first_child
        while child is not None:
            tag = child.tag
            if tag == "-text":
                found.append(self.text(child.text_content or ""))
            elif tag not in FURNITURE and tag[0] not in "-!_":
                special = _SPECIAL.get(tag)
                found.append(special(self, child) if special is not None else self.plain(child, tag))
            elif tag == "script":
                found.append(self.script(child))
            child = child.next
        self.depth -= 1
        return "".join(found)

    def text(self, text: str) -> str:
        if not self.begun and text and not text.isspace():
            if COUNTER.fullmatch(text):
                return ""
            self.begun = True
        if "\n" in text:
            return _SPACED_LINE.sub("\n", _SPACES.sub(" ", text)) if not text.isspace() else " "
        return _SPACES.sub(" ", text) if "  " in text or "\t" in text else text

    def plain(self, node: Any, tag: str) -> str:
        """An element without a rule of its own."""
        if tag in CONTAINERS:
            inside = self.children(node) if not _keeps_lines(node) else self.kept_lines(node)
            return f"\n{inside}\n"
        if tag in INLINE:
            if tag == "span" and "katex" in (kinds := node.attributes.get("class") or ""):
                return self.math(node, "display" in kinds)
            return self.children(node)
        inside = self.children(node)  # no tag of HTML's: what the author wrote
        named = "".join(f' {key}="{value}"' if value else f" {key}" for key, value in node.attributes.items())
        end = f"</{tag}>"
        return f"<{tag}{named}>{inside}{end if end in self.source.lower() else ''}"

    def kept_lines(self, node: Any) -> str:
        """A question as its author typed it: lines and indents count."""
        child = node.first_child
        while child is not None:
            if child.tag != "-text":
                return self.children(node)
            child = child.next
        text = node.text(deep=True)
        if not self.begun and (counter := re.match(r"\d{1,3} / \d{1,3}\n", text)):
            text = text[counter.end() :]
        return self.set_aside(text.strip("\n")) if text.strip() else ""

    def paragraph(self, node: Any) -> str:
        return f"\n\n{self.children(node)}\n\n"

    def heading(self, node: Any) -> str:
        title = " ".join(self.children(node).split())
        return f"\n\n{'#' * int(node.tag[1])} {title}\n\n" if title else ""

    def around(self, node: Any) -> str:
        inside, sign = self.children(node), _AROUND[node.tag]
        bare = inside.strip()
        if not bare or "\0" in bare or "\n\n" in bare:
            return inside  # emphasis over blocks is the page's layout
        lead, trail = inside[: len(inside) - len(inside.lstrip())], inside[len(inside.rstrip()) :]
        return f"{lead}{sign}{bare}{sign}{trail}"

    def code(self, node: Any) -> str:
        text = node.text(deep=True)
        if "\n" in text.strip("\n") and node.parent is not None and node.parent.tag in ("div", "body"):
            return self.set_aside(fence(*language_and_code(text, _language_of(node))))
        self.begun = self.begun or bool(text.strip())
        text = " ".join(text.split("\n"))
        runs = {len(run) for run in re.findall("`+", text)}
        ticks = next("`" * length for length in range(1, len(runs) + 2) if length not in runs)
        space = " " if text[:1] == "`" or text[-1:] == "`" else ""
        return f"{ticks}{space}{text}{space}{ticks}" if text.strip() else ""

    def pre(self, node: Any) -> str:
        inner = node.css_first("code")
        if inner is None:
            language, code = language_and_code(node.text(deep=True), _language_of(node))
        else:
            head = node.text(deep=True).split(inner.text(deep=True)[:40], 1)[0] if inner.text(deep=True) else ""
            language, code = language_and_code(inner.text(deep=True), _language_of(inner) or _title(head))
        return self.set_aside(fence(language, code)) if code.strip() else ""

    def link(self, node: Any) -> str:
        inside, target = self.children(node), (node.attributes.get("href") or "").strip()
        bare = inside.strip()
        if not target or not bare or bare == target or "\0" in bare or target.startswith(("javascript:", "#")):
            return inside
        return f"[{bare}]({target})" if not re.search(r"[\s()]", target) else f"[{bare}](<{target}>)"

    def image(self, node: Any) -> str:
        source, words = node.attributes.get("src") or "", " ".join((node.attributes.get("alt") or "").split())
        return words if not source or source.startswith("data:") else f"![{words}]({source})"

    def line_break(self, node: Any) -> str:
        return "\n"

    def rule(self, node: Any) -> str:
        return "\n\n---\n\n"

    def checkbox(self, node: Any) -> str:
        if node.attributes.get("type") != "checkbox":
            return ""
        return "[x] " if "checked" in node.attributes else "[ ] "

    def raised(self, node: Any) -> str:
        inside = self.children(node)
        return f"<{node.tag}>{inside}</{node.tag}>" if inside.strip() else ""

    def quote(self, node: Any) -> str:
        lines = _tidy(self.children(node)).split("\n")
        return "\n\n" + "\n".join(f"> {line}".rstrip() for line in lines) + "\n\n" if lines != [""] else ""

    def listed(self, node: Any) -> str:
        number = _integer(node.attributes.get("start"), 1) if node.tag == "ol" else None
        items: list[str] = []
        child = node.first_child
        while child is not None:
            if child.tag in ("ul", "ol") and items:  # a list straight in a list belongs to the item before it
                nested = self.listed(child).strip("\n")
                items[-1] += "\n" + "\n".join(f"   {line}" for line in nested.split("\n"))
            elif child.tag == "li" or (child.tag not in ("-text", "-comment") and child.tag not in FURNITURE):
                marker = "-" if number is None else f"{number}."
                items.append(_item(marker, _tidy(self.children(child))))
                number = None if number is None else number + 1
            child = child.next
        return "\n\n" + ("\n\n" if any("\n\n" in one for one in items) else "\n").join(items) + "\n\n" if items else ""

    def table(self, node: Any) -> str:
        rows: list[list[str]] = []
        for line in node.css("tr"):
            cells = [cell for cell in line.iter() if cell.tag in ("td", "th")]
            rows.append([self.cell(cell) for cell in cells])
        rows = [row for row in rows if any(row)]
        if not rows:
            return self.children(node)
        width = max(map(len, rows))
        first = next((line for line in node.css("tr") if line.css_first("td,th") is not None), None)
        sides = [_side(cell) for cell in first.iter() if cell.tag in ("td", "th")] if first is not None else []
        rule = (sides + ["---"] * width)[:width]
        lines = [row + [""] * (width - len(row)) for row in (rows[0], rule, *rows[1:])]
        return "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n\n"

    def cell(self, node: Any) -> str:
        inside = _tidy(self.children(node))
        kept = re.sub(r"\0(\d+)\0", lambda match: f"`{' '.join(self.aside[int(match[1])].strip('`').split())}`", inside)
        return "<br>".join(line for line in kept.replace("|", "\\|").split("\n") if line.strip())

    def math(self, node: Any, display: bool) -> str:
        annotation = node.css_first('annotation[encoding="application/x-tex"]')
        source = annotation.text(deep=True) if annotation is not None else node.attributes.get("alttext")
        if not (source and source.strip()):
            return node.text(deep=True) if node.tag == "math" else self.children(node)
        inner = node if node.tag == "math" else node.css_first("math")
        display = display or (inner is not None and inner.attributes.get("display") == "block")
        self.begun = True
        return self.set_aside(f"$$\n{source.strip()}\n$$") if display else f"${source.strip()}$"

    def script(self, node: Any) -> str:
        kind = node.attributes.get("type") or ""
        source = node.text(deep=True).strip()
        if not kind.startswith("math/tex") or not source:
            return ""
        return self.set_aside(f"$$\n{source}\n$$") if "display" in kind else f"${source}$"


_SPECIAL: dict[str, Callable[[_Page, Any], str]] = {
    "p": _Page.paragraph,
    "pre": _Page.pre,
    "code": _Page.code,
    **dict.fromkeys(("samp", "kbd", "tt"), _Page.code),
    "a": _Page.link,
    "img": _Page.image,
    "br": _Page.line_break,
    "hr": _Page.rule,
    "input": _Page.checkbox,
    "blockquote": _Page.quote,
    "table": _Page.table,
    "math": lambda page, node: page.math(node, False),
    **dict.fromkeys(("ul", "ol", "menu", "dir"), _Page.listed),
    **dict.fromkeys(("sup", "sub"), _Page.raised),
    **dict.fromkeys(_AROUND, _Page.around),
    **{f"h{level}": _Page.heading for level in range(1, 7)},
}


def _tidy(text: str) -> str:
    """Lines without spaces at their ends, and at most one empty line between two."""
    text = text.strip()
    if "\n" not in text:
        return text
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n[ \t]*(?:\n[ \t]*)+\n", "\n\n", re.sub(r"\n (?=\S)", "\n", text))


def _item(marker: str, text: str) -> str:
    """A list's item, its further lines below its first."""
    indent = " " * (len(marker) + 1)
    if text.startswith("["):
        text = re.sub(r"^(\[[x ]\])\s+", r"\1 ", text)  # a checkbox
    if "\n" not in text:
        return f"{marker} {text}"
    lines = re.sub(r"\n\n(?=(?:[-*]|\d+\.) )", "\n", text).split("\n")  # a list in a list stands close to its line
    return f"{marker} {lines[0]}" + "".join(f"\n{indent + line if line else ''}" for line in lines[1:])


def _language_of(node: Any) -> str:
    kinds = (node.attributes.get("class") or "").split()
    return next((kind.split("-", 1)[1] for kind in kinds if kind.startswith(("language-", "lang-"))), "")


def _title(head: str) -> str:
    """The language in the line above a code block: "pythonCopy code"."""
    words = COPY.sub("", head).split()
    return words[0].lower() if len(words) == 1 and len(words[0]) <= 20 else ""


def _keeps_lines(node: Any) -> bool:
    return "whitespace-pre" in (node.attributes.get("class") or "")


def _side(cell: Any) -> str:
    said = f"{cell.attributes.get('align') or ''} {cell.attributes.get('style') or ''}"
    return ":-:" if "center" in said else "--:" if "right" in said else ":--" if "left" in said else "---"


def _integer(value: str | None, default: int) -> int:
    return int(value) if value and re.fullmatch(r"-?\d{1,9}", value) else default
