"""HTML as browsers show it to Markdown: what a copied chat has.

Text is never escaped: these are replies that a model wrote as Markdown once, and `\\_` would teach it to write that.
Code blocks become fences with the language that the page names; a page's own furniture (buttons, icons, "Copy code",
counters of regenerated answers) goes. Math is taken from KaTeX's and MathJax's annotations. A tag that HTML does not
know was the author's text, `vector<int>` or `<name>`, and stays as text.

Blocks are written with blank lines around them, which `_tidy` thins out. Code takes no part in that: it stands aside
until the end and only a mark (`\\0`, a number, `\\0`) holds its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property

from lorikeet.data.steps import _html_reading, _html_written
from lorikeet.data.steps._fences import COPY, fence, language_and_code
from lorikeet.data.steps._html_reading import Tag, Token, first, shown, text_of
from lorikeet.data.steps._html_tags import CONTAINERS, FURNITURE, INLINE

COUNTER = re.compile(r"\s*\d{1,3} / \d{1,3}\s*")
DEEPEST = 150  # levels of elements; a page a person copied has a tenth of that

_AROUND = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~", "strike": "~~"}
_SPACES = re.compile(r"[ \t\r\f]+")
_SPACED_LINE = re.compile(r" *\n\s*")
_BLANK_START = re.compile(r"\n (?=\S)")
_COUNTER_LINE = re.compile(r"\d{1,3} / \d{1,3}\n")
_TICKS = re.compile("`+")
_MARK = re.compile(r"\0(\d+)\0")
_END_TAG = re.compile(r"</([a-zA-Z][^\s/>]*)\s*>")
_SAID = frozenset(("p", "li", "td", "th", "blockquote"))  # what stands in one of them is no page's counter


class TooDeep(Exception):
    """Elements nested beyond DEEPEST."""


def to_markdown(html: str) -> str:
    """The Markdown of a piece of HTML. Raises TooDeep."""
    html = html.replace("\0", "")
    return _Page(html, _html_written.tokens(html) or _html_reading.parsed(html)).whole()


class _Page:
    """One piece of HTML being written as Markdown. A rule writes one element, and takes its tokens up to its end."""

    def __init__(self, source: str, tokens: Iterable[Token]):
        self.source = source
        self.tokens = iter(tokens)
        self.open: list[str] = []  # the elements being written, outermost first
        self.aside: list[str] = []  # code blocks and display math, until the text around them is tidy
        self.begun = False  # whether any text was seen: a counter stands before all of it
        self.at = 0  # behind the last tag of the author's own, in the source

    def whole(self) -> str:
        before, *rest = _tidy(self.children(_html_reading.BODY)).split("\0")
        found = [before]
        for number, behind in zip(rest[::2], rest[1::2]):
            found += self._put_back(found[-1], self.aside[int(number)]), behind
        return "".join(found)

    def _put_back(self, before: str, aside: str) -> str:
        """What stood aside, each of its lines behind the line's own beginning: a list's indent, a quote's `> `."""
        start = before.rpartition("\n")[2]
        if not start:
            return aside
        prefix = "".join(char if char in "> \t" else " " for char in start)
        first, *others = aside.split("\n")
        return first + "".join(f"\n{prefix + line if line else prefix.rstrip()}" for line in others)

    def set_aside(self, text: str) -> str:
        self.begun = True
        self.aside.append(text)
        return f"\n\n\0{len(self.aside) - 1}\0\n\n"

    def children(self, tag: Tag) -> str:
        """The Markdown of everything inside an element."""
        self.open.append(tag.name)
        if len(self.open) > DEEPEST:
            raise TooDeep
        found: list[str] = []
        for text, child in self.tokens:
            if text:
                plain = self.begun and "\n" not in text and "  " not in text and "\t" not in text
                found.append(text if plain else self.text(text))
            if child.ends:
                break
            found.append((_RULES.get(child.name) or _Page.written)(self, child))
        self.open.pop()
        return "".join(found)

    def inside(self) -> list[Token]:
        """The tokens up to the end of the element that has just begun."""
        found, depth = [], 1
        for token in self.tokens:
            found.append(token)
            tag = token[1]
            if tag.begins:
                depth += 1
            elif tag.ends:
                depth -= 1
                if not depth:
                    break
        return found

    def children_of(self, tag: Tag, inside: list[Token]) -> str:
        """The Markdown of what `inside` gave."""
        following, self.tokens = self.tokens, iter(inside)
        made = self.children(tag)
        self.tokens = following
        return made

    def text(self, text: str) -> str:
        if not self.begun and text and not text.isspace():
            if COUNTER.fullmatch(text) and _SAID.isdisjoint(self.open):
                return ""
            self.begun = True
        if "\n" in text:
            return _SPACED_LINE.sub("\n", _SPACES.sub(" ", text)) if not text.isspace() else " "
        return _SPACES.sub(" ", text) if "  " in text or "\t" in text else text

    def furniture(self, tag: Tag) -> str:
        self.inside()
        return ""

    def nothing(self, tag: Tag) -> str:
        return ""

    def container(self, tag: Tag) -> str:
        return f"\n{self.kept_lines(tag) if _keeps_lines(tag) else self.children(tag)}\n"

    def span(self, tag: Tag) -> str:
        kinds = tag.attribute("class")
        return self.math(tag, "display" in kinds) if "katex" in kinds else self.children(tag)

    def written(self, tag: Tag) -> str:
        """No tag of HTML's: what the author wrote, capitals and all."""
        begins = self._source_of(tag)
        return f"{begins}{self.children(tag)}{self._ends.get(tag.name, '')}"

    def _source_of(self, tag: Tag) -> str:
        start = self._lower.find(f"<{tag.name}", self.at)
        stop = self.source.find(">", start) if start >= 0 else -1
        self.at = stop if stop >= 0 else len(self.source)
        said = self.source[start : stop + 1]
        if stop >= 0 and said.count('"') % 2 == 0:
            return said
        named = "".join(f' {key}="{value}"' if value else f" {key}" for key, value in tag.attributes.items())
        return f"<{tag.name}{named}>"

    @cached_property
    def _lower(self) -> str:
        lower = self.source.lower()
        return lower if len(lower) == len(self.source) else ""  # İ becomes two characters

    @cached_property
    def _ends(self) -> dict[str, str]:
        """Tags that end an element somewhere in the source: whether the author wrote one, and how."""
        return {match[1].lower(): f"</{match[1]}>" for match in _END_TAG.finditer(self.source)}

    def kept_lines(self, tag: Tag) -> str:
        """A question as its author typed it: lines and indents count."""
        inside = self.inside()
        if len(inside) > 1:
            return self.children_of(tag, inside)
        text = inside[0][0]
        if not self.begun and (counter := _COUNTER_LINE.match(text)):
            text = text[counter.end() :]
        return self.set_aside(text.strip("\n")) if text.strip() else ""

    def paragraph(self, tag: Tag) -> str:
        return f"\n\n{self.children(tag)}\n\n"

    def heading(self, tag: Tag) -> str:
        title = " ".join(self.children(tag).split())
        return f"\n\n{'#' * int(tag.name[1])} {title}\n\n" if title else ""

    def around(self, tag: Tag) -> str:
        inside, sign = self.children(tag), _AROUND[tag.name]
        bare = inside.strip()
        if not bare or "\0" in bare or "\n\n" in bare:
            return inside  # emphasis over blocks is the page's layout
        if len(bare) == len(inside):
            return f"{sign}{bare}{sign}"
        lead, trail = inside[: len(inside) - len(inside.lstrip())], inside[len(inside.rstrip()) :]
        return f"{lead}{sign}{bare}{sign}{trail}"

    def code(self, tag: Tag) -> str:
        text = text_of(self.inside())
        if "\n" in text and "\n" in text.strip("\n") and self.open[-1] in ("div", "body"):
            return self.set_aside(fence(*language_and_code(text, _language_of(tag))))
        self.begun = self.begun or bool(text.strip())
        text = " ".join(text.split("\n"))
        runs = {len(run) for run in _TICKS.findall(text)} if "`" in text else ()
        ticks = next("`" * length for length in range(1, len(runs) + 2) if length not in runs)
        space = " " if text[:1] == "`" or text[-1:] == "`" else ""
        return f"{ticks}{space}{text}{space}{ticks}" if text.strip() else ""

    def pre(self, tag: Tag) -> str:
        inside = self.inside()
        inner = first(inside, "code")
        if inner is None:
            language, code = language_and_code(text_of(inside), _language_of(tag))
        else:
            start, end = inner
            language = _language_of(inside[start][1]) or _title(text_of(shown(inside[: start + 1])))
            behind = COPY.sub("", text_of(shown(inside[end:])))  # of lines that are each a <code>, all but the first
            language, code = language_and_code(text_of(inside[start + 1 : end]) + behind, language)
        return self.set_aside(fence(language, code)) if code.strip() else ""

    def link(self, tag: Tag) -> str:
        inside, target = self.children(tag), tag.attribute("href").strip()
        bare = inside.strip()
        if not target or not bare or bare == target or "\0" in bare or target.startswith(("javascript:", "#")):
            return inside
        return f"[{bare}]({target})" if not re.search(r"[\s()]", target) else f"[{bare}](<{target}>)"

    def image(self, tag: Tag) -> str:
        source, words = tag.attribute("src"), " ".join(tag.attribute("alt").split())
        return words if not source or source.startswith("data:") else f"![{words}]({source})"

    def checkbox(self, tag: Tag) -> str:
        if tag.attribute("type") != "checkbox":
            return ""
        return "[x] " if "checked" in tag.attributes else "[ ] "

    def raised(self, tag: Tag) -> str:
        inside = self.children(tag)
        return f"<{tag.name}>{inside}</{tag.name}>" if inside.strip() else ""

    def quote(self, tag: Tag) -> str:
        lines = _tidy(self.children(tag)).split("\n")
        return "\n\n" + "\n".join(f"> {line}".rstrip() for line in lines) + "\n\n" if lines != [""] else ""

    def item(self, tag: Tag) -> str:
        inside = _tidy(self.children(tag))  # in no list
        return f"\n{_item('-', inside)}\n" if inside else ""

    def listed(self, tag: Tag) -> str:
        self.open.append(tag.name)
        if len(self.open) > DEEPEST:
            raise TooDeep
        number = _integer(tag.attributes.get("start"), 1) if tag.name == "ol" else None
        items: list[str] = []
        for text, child in self.tokens:
            if text and not text.isspace():  # in the list and in no item
                items.append(self.text(text).strip())
            if child.ends:
                break
            if child.name in ("ul", "ol") and items:  # a list straight in a list belongs to the item before it
                nested = self.listed(child).strip("\n")
                items[-1] += "\n" + "\n".join(f"   {line}" for line in nested.split("\n"))
            elif child.name in FURNITURE:
                self.inside()
            elif child.begins:
                marker = "-" if number is None else f"{number}."
                rule = _Page.children if child.name == "li" else _RULES.get(child.name) or _Page.written
                items.append(_item(marker, _tidy(rule(self, child))))
                number = None if number is None else number + 1
        self.open.pop()
        between = "\n\n" if any("\n\n" in one for one in items) else "\n"
        return f"\n\n{between.join(items)}\n\n" if items else ""

    def table(self, tag: Tag) -> str:
        lines: list[list[str]] = [[]]
        sides: list[str] = []
        caption = ""
        depth = 1
        for _, child in self.tokens:
            if child.ends:
                depth -= 1
                if not depth:
                    break
            elif child.name in ("td", "th"):
                lines[-1].append(self.cell(child))
                sides += [_side(child)] if not any(lines[:-1]) else []
            elif child.name == "caption":
                caption = _tidy(self.children(child))
            elif child.name in FURNITURE:
                self.inside()
            elif child.begins:
                depth += 1
                lines += [[]] if child.name == "tr" else []
        rows = [line for line in lines if any(line)]
        if not rows:
            return f"\n\n{caption}\n\n"
        width = max(map(len, rows))
        rule = (sides + ["---"] * width)[:width]
        full = [row + [""] * (width - len(row)) for row in (rows[0], rule, *rows[1:])]
        return f"\n\n{caption}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in full) + "\n\n"

    def cell(self, tag: Tag) -> str:
        inside = _tidy(self.children(tag))
        if "\0" in inside:
            inside = _MARK.sub(lambda mark: f"`{' '.join(self.aside[int(mark[1])].strip('`').split())}`", inside)
        return "<br>".join(line for line in inside.replace("|", "\\|").split("\n") if line.strip())

    def math(self, tag: Tag, display: bool) -> str:
        inside = self.inside()
        source = tag.attribute("alttext")
        if (annotation := first(inside, "annotation", encoding="application/x-tex")) is not None:
            source = text_of(inside[annotation[0] + 1 : annotation[1]])
        if not source.strip():
            return text_of(inside) if tag.name == "math" else self.children_of(tag, inside)
        inner = first(inside, "math")
        of = tag if tag.name == "math" else inside[inner[0]][1] if inner is not None else None
        display = display or (of is not None and of.attribute("display") == "block")
        self.begun = True
        return self.set_aside(f"$$\n{source.strip()}\n$$") if display else f"${source.strip()}$"

    def script(self, tag: Tag) -> str:
        kind = tag.attribute("type")
        source = text_of(self.inside()).strip()
        if not kind.startswith("math/tex") or not source:
            return ""
        return self.set_aside(f"$$\n{source}\n$$") if "display" in kind else f"${source}$"


_RULES: dict[str, Callable[[_Page, Tag], str]] = {
    **dict.fromkeys(FURNITURE, _Page.furniture),
    **dict.fromkeys(CONTAINERS, _Page.container),
    **dict.fromkeys(INLINE, _Page.children),
    "wbr": _Page.nothing,
    "li": _Page.item,
    "script": _Page.script,
    "span": _Page.span,
    "p": _Page.paragraph,
    "pre": _Page.pre,
    **dict.fromkeys(("code", "samp", "kbd", "tt"), _Page.code),
    "a": _Page.link,
    "img": _Page.image,
    "br": lambda page, tag: "\n",
    "hr": lambda page, tag: "\n\n---\n\n",
    "input": _Page.checkbox,
    "blockquote": _Page.quote,
    "table": _Page.table,
    "math": lambda page, tag: page.math(tag, False),
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
    if " \n" in text or "\t" in text:  # without a regular expression, which would look at every space
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n " in text:
        text = _BLANK_START.sub("\n", text)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def _item(marker: str, text: str) -> str:
    """A list's item, its further lines below its first."""
    indent = " " * (len(marker) + 1)
    if text.startswith("["):
        text = re.sub(r"^(\[[x ]\])\s+", r"\1 ", text)  # a checkbox
    if "\n" not in text:
        return f"{marker} {text}"
    lines = re.sub(r"\n\n(?=(?:[-*]|\d+\.) )", "\n", text).split("\n")  # a list in a list stands close to its line
    return f"{marker} {lines[0]}" + "".join(f"\n{indent + line if line else ''}" for line in lines[1:])


def _language_of(tag: Tag) -> str:
    kinds = tag.attribute("class").split()
    return next((kind.split("-", 1)[1] for kind in kinds if kind.startswith(("language-", "lang-"))), "")


def _title(head: str) -> str:
    """The language in the line above a code block: "pythonCopy code"."""
    words = COPY.sub("", head).split()
    return words[0].lower() if len(words) == 1 and len(words[0]) <= 20 else ""


def _keeps_lines(tag: Tag) -> bool:
    return "whitespace-pre" in tag.attribute("class")


def _side(cell: Tag) -> str:
    said = f"{cell.attribute('align')} {cell.attribute('style')}"
    return ":-:" if "center" in said else "--:" if "right" in said else ":--" if "left" in said else "---"


def _integer(value: str | None, default: int) -> int:
    return int(value) if value and re.fullmatch(r"-?\d{1,9}", value) else default
