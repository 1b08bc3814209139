"""HTML to Markdown: what ChatGPT's page has, and what people write that only looks like HTML."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.steps.conftest import record, run
from lorikeet.data.steps import _html_reading, _html_tags, _html_written
from lorikeet.data.steps._fences import repaired
from lorikeet.data.steps._html import to_markdown

CODE_HEAD = '<div class="flex items-center"><span>python</span><button class="flex"><svg></svg>Copy code</button></div>'
CONVERTED = {
    "paragraphs": ("<p>One</p><p>Two</p>", "One\n\nTwo"),
    "emphasis": ("<p>a <strong>b </strong>c <em>d</em> <del>e</del></p>", "a **b** c *d* ~~e~~"),
    "inline code": ("<p>use <code>x_y*z</code> or <code>a`b</code></p>", "use `x_y*z` or ``a`b``"),
    "no escapes": ("<p>snake_case * 2 # [x]</p>", "snake_case * 2 # [x]"),
    "entities": ("<p>1 &lt; 2 &amp; 3</p>", "1 < 2 & 3"),
    "headings": ("<h1>A</h1><h3>B\nc</h3>", "# A\n\n### B c"),
    "breaks": ("<p>a<br>b<br/>c</p><hr>", "a\nb\nc\n\n---"),
    "list": ("<ul>\n<li>a</li>\n<li><p>b</p></li>\n</ul>", "- a\n- b"),
    "numbers go on": ('<ol start="4"><li>a</li><li>b</li></ol>', "4. a\n5. b"),
    "list in a list": ("<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>", "1. a\n   - b\n2. c"),
    "task list": ('<ul><li><input type="checkbox" checked> a</li></ul>', "- [x] a"),
    "code in a list": ("<ul><li>a<pre><code>x\n\n y</code></pre></li></ul>", "- a\n\n  ```\n  x\n\n   y\n  ```"),
    "quote": ("<blockquote><p>a</p><p>b</p></blockquote>", "> a\n>\n> b"),
    "table": (
        '<table><thead><tr><th>a</th><th align="right">b</th></tr></thead><tbody><tr><td>1|2</td><td></td></tr>'
        "</tbody></table>",
        "| a | b |\n| --- | --: |\n| 1\\|2 |  |",
    ),
    "link": ('<p><a href="https://a.b/c">d</a> <a href="https://e">https://e</a></p>', "[d](https://a.b/c) https://e"),
    "image": ('<img src="https://a/b.png" alt="c"><img src="data:image/png;xx" alt="d">', "![c](https://a/b.png)d"),
    "math": (
        '<p>so <span class="katex"><span class="katex-mathml"><math><semantics><mi>x</mi>'
        '<annotation encoding="application/x-tex">x^2_i</annotation></semantics></math></span>'
        '<span class="katex-html">x2</span></span> holds</p>',
        "so $x^2_i$ holds",
    ),
    "display math": (
        '<span class="katex-display"><span class="katex"><math display="block"><semantics>'
        '<annotation encoding="application/x-tex">\\sum\n_i</annotation></semantics></math></span></span>',
        "$$\n\\sum\n_i\n$$",
    ),
    "MathJax": ('<p>a<script type="math/tex">b^2</script></p>', "a$b^2$"),
    "script and style go": ("<style>p{}</style><script>x()</script><p>a</p><button>Copy code</button>", "a"),
    "comment": ("<p>a<!-- b -->c</p>", "ac"),
    "author's own tags": ("<p>vector<int> of <your name></p>", "vector<int> of <your name>"),
    "counter": ('<div class="flex"><span>2 / 3</span></div><p>Hello</p>', "Hello"),
    "a fraction is text": ("<p>1 / 2 is a half</p>", "1 / 2 is a half"),
    "page's code block": (
        f'<pre><div class="bg-black">{CODE_HEAD}<div><code class="hljs language-python"><span>def</span> f():\n'
        "    pass\n</code></div></div></pre>",
        "```python\ndef f():\n    pass\n```",
    ),
    "language from the head alone": (
        f"<pre><div>{CODE_HEAD}<div><code>x</code></div></div></pre>",
        "```python\nx\n```",
    ),
    "code block of text": ("<pre>bashCopy code\nls -l\n</pre>", "```bash\nls -l\n```"),
    "empty code block": ("<p>a</p><pre>Copy code</pre>", "a"),
    "fence in code": ("<pre><code>```\nx\n```</code></pre>", "````\n```\nx\n```\n````"),
    "typed lines": ('<div class="whitespace-pre-wrap">a\n  b\n\n\nc</div>', "a\n  b\n\n\nc"),
    "an item in no list": ("<div>a<li>b</li></div>", "a\n- b"),
    "a list straight in a list": ("<ul><ul><li>a</li></ul></ul>", "- - a"),
    "a break between items": ("<ul><li>a</li><br><li>b</li></ul>", "- a\n- b"),
    "a table in a table": (
        "<table><tr><td>a<table><tr><td>b</td></tr></table></td></tr></table>",
        "| a<br>\\| b \\|<br>\\| --- \\| |\n| --- |",
    ),
    "two code blocks in a heading": ("<h2><pre>a</pre><pre>b</pre></h2>", "## ```\n   a\n   ``` ```\n b\n ```"),
    "a counter in pieces": ('<div><span>2<!-- --> / <!-- -->3</span></div><p>Hello</p>', "Hello"),
    "head like the code": (
        "<pre><div><span>python</span>Copy code</div><code>python x.py</code></pre>",
        "```python\npython x.py\n```",
    ),
    "broken": ("<p>a<b>c</p><ul><li>d", "a**c**\n\n- **d**"),
    "lines that are each a code": ("<pre><code>a\n</code><code>b</code>\n<code>c</code></pre>", "```\na\nb\nc\n```"),
    "a button behind the code": ("<pre><code>a</code><div><button>Copy code</button></div></pre>", "```\na\n```"),
    "breaks in code": ("<pre>a<br>  b<br><br>c</pre>", "```\na\n  b\n\nc\n```"),
    "code of lines that are blocks": ("<pre><div>a</div><div>  b</div></pre>", "```\na\n  b\n```"),
    "code straight in a list": ("<ul><li>a</li><pre><code>x\n  y</code></pre></ul>", "- a\n- ```\n  x\n    y\n  ```"),
    "words straight in a list": ("<ul>Fruit:<li>a</li>and<li>b</li>more</ul>", "Fruit:\n- a\nand\n- b\nmore"),
    "a table's caption": (
        "<table><caption>Sums of <b>x</b></caption><tbody><tr><td>a</td></tr></tbody></table>",
        "Sums of **x**\n\n| a |\n| --- |",
    ),
    "author's capitals": (
        "<p>Map<String, List<Integer>> and <T> or <MyPart key='A' On>x</MyPart></p>",
        "Map<String, List<Integer>> and <T> or <MyPart key='A' On>x</MyPart>",
    ),
    "a fraction that is all": ("<p>3 / 4</p>", "3 / 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERTED)
def test_converted(case: str) -> None:
    html, expected = CONVERTED[case]
    assert to_markdown(html) == expected


KEPT = {
    "plain": "Is a < b and c > d?",
    "markdown with code": "Use this:\n```html\n<p>Hi</p>\n```\nDone.",
    "question about HTML": "What does <div> do, and why <p>so</p>?",
    "a whole page pasted": "<html><body><p>Fix it</p></body></html>",
    "a doctype": "<!DOCTYPE html><p>Fix it</p>",
    "generics": "List<String> x = new ArrayList<>();",
    "math": "1 / 2 is a half",
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_no_page_stays(case: str) -> None:
    ((kept,), log) = run("html_to_markdown", record(KEPT[case], "Yes, 2 < 3."))
    assert kept.texts() == [KEPT[case], "Yes, 2 < 3."]
    assert log.changed == 0


def test_a_page_s_question_loses_its_entities() -> None:
    ((kept,), log) = run("html_to_markdown", record("Why &lt;b&gt;?", "<p>So.</p>"))
    assert kept.texts() == ["Why <b>?", "So."]
    assert log.changes == {"HTML to Markdown": 1, "entities": 1}
    ((kept,), log) = run("html_to_markdown", record("Is &lt; an entity of <b>?", "<p>So.</p>"))
    assert kept.texts()[0] == "Is &lt; an entity of <b>?"


REPAIRED = {
    "```\npythonCopy code\nx = 1\n```": "```python\nx = 1\n```",
    "```pythonCopy codex = 1\n```": "```python\nx = 1\n```",
    "a\n```\nCopy code\n```": "a",
    "aCopy12 chars / 3 words": "a",
    "2 / 3\nHello": "Hello",
    "2 / 3": "2 / 3",
    "press Copy code": "press Copy code",
}


@pytest.mark.parametrize("text", REPAIRED)
def test_what_copying_left_is_repaired(text: str) -> None:
    assert repaired(text).strip() == REPAIRED[text]


def test_any_and_all_convert_more() -> None:
    text = "What does <b>this</b> <p>do</p>?"
    assert run("html_to_markdown", record(text, "x"), which="any")[0][0].texts()[0] != text
    assert run("html_to_markdown", record("a\n\n\n\nb", "x"), which="all")[1].changed == 1


def test_html_nested_too_deeply_is_rejected() -> None:
    deep = "<div>" * 400 + "x" + "</div>" * 400
    kept, log = run("html_to_markdown", record("q", deep))
    assert not kept and log.dropped == {"HTML nested too deeply": 1}


WORDS = st.text("abc xyz_*`<>&\n", max_size=30)
TAGS = st.sampled_from(sorted(_html_tags.TAGS | {"foo", "x-y"}))
TREES = st.recursive(
    WORDS, lambda inner: st.tuples(TAGS, st.lists(inner, max_size=4)).map(lambda t: f"<{t[0]}>{''.join(t[1])}</{t[0]}>")
)


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_any_tree_becomes_text_without_marks(html: str) -> None:
    made = to_markdown(html)
    assert "\0" not in made and made == made.strip()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abcdefghij", min_size=3, max_size=8), min_size=1, max_size=8))
def test_words_of_paragraphs_and_code_survive(words: list[str]) -> None:
    html = "".join(f"<p>{word}</p><pre><code>{word}1\n{word}2</code></pre><ul><li>{word}</li></ul>" for word in words)
    made = to_markdown(html)
    assert all(made.count(word) >= 4 for word in words)


SAID_OUTRIGHT = (
    *(html for name, (html, _) in CONVERTED.items() if name in ("paragraphs", "emphasis", "entities", "math", "quote")),
    "<pre>\n\nx</pre>",
    " \n<p>a</p>\n",
    '<p><a href="?a=1&amp;b=2" HREF="x">b</a> &#39;c&#x27;</p>',
    "<table><thead>\n<tr><th>a</th></tr></thead></table>",
    '<button><svg fill="none"><path d="M1"></path></svg>Copy code</button>',
)


@pytest.mark.parametrize("html", SAID_OUTRIGHT)
def test_what_a_browser_writes_is_read_in_one_pass(html: str) -> None:
    assert _html_written.tokens(html) == _html_reading.parsed(html)


NOT_SAID_OUTRIGHT = {
    "a tag left open": "<p>a<b>c</p>",
    "a paragraph that the next ends": "<p>a<p>b",
    "a block in a paragraph": "<p>a<div>b</div></p>",
    "text that leaves a table": "<table>a<tbody></tbody></table>",
    "rows without a body": "<table><tr><td>a</td></tr></table>",
    "a link in a link": '<a href="a"><b><a href="b">c</a></b></a>',
    "an item that ends the one before": "<ul><li>a<li>b</ul>",
    "HTML in math": "<math><mi><b>x</b></mi></math>",
    "a page's head": "<title>a</title><p>b</p>",
    "a comment": "<p>a<!-- b -->c</p>",
    "an author's tag": "<p>vector<int></p>",
    "a bare bracket": "<p>1 < 2</p>",
    "an entity without its end": "<p>1 &lt 2</p>",
    "an unusual entity": "<p>&copy;</p>",
    "a line end of Windows": "<p>a\r\nb</p>",
    "an end too many": "<p>a</p></p>",
    "levels without end": "<div>" * 120 + "</div>" * 120,
}


@pytest.mark.parametrize("case", NOT_SAID_OUTRIGHT)
def test_what_needs_the_rules_of_html_is_left_to_lexbor(case: str) -> None:
    assert _html_written.tokens(NOT_SAID_OUTRIGHT[case]) is None


def test_any_number_of_tags_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_html_written, "_MOST", 3)
    for number in range(20):
        html = f'<p class="{number}"><b>a</b></p>'
        assert _html_written.tokens(html) == _html_reading.parsed(html)


ATTRIBUTES = st.sampled_from(["", ' class="a"', ' href="b&amp;c"', " checked", ' start="2"', " class=un"])
PLAIN = st.sampled_from(["", "a b", " ", "\n", "\nx", "&lt;", "&amp;lt;", "&copy;", "<", "é "])
USUAL = st.sampled_from(
    "div p span b a ul ol li pre code table tbody tr td h2 button svg path math mi blockquote".split()  # noqa: SIM905
)


@st.composite
def pages(draw: st.DrawFn, levels: int = 4) -> str:
    """HTML as browsers write it, mostly: some of its elements stand where they may not, or never end."""
    parts = [draw(PLAIN)]
    for _ in range(draw(st.integers(0, 3)) if levels else 0):
        tag, inside = draw(USUAL), draw(pages(levels - 1))
        if tag in ("ul", "table"):  # these hold few others, and would never be right
            inside = f"<li>{inside}</li>" if tag == "ul" else f"<tbody><tr><td>{inside}</td></tr></tbody>"
        end = draw(st.sampled_from([f"</{tag}>"] * 9 + [""]))
        parts += [f"<{tag}{draw(ATTRIBUTES)}>{inside}{end}", draw(PLAIN)]
    return "".join(parts)


@settings(max_examples=150, deadline=None)
@given(pages())
def test_reading_in_one_pass_is_reading_as_browsers_do(html: str) -> None:
    read = _html_written.tokens(html)
    assert read is None or read == _html_reading.parsed(html)


def test_an_address_keeps_its_ampersands() -> None:
    asked = "Is &lt;b&gt; in http://a/?x=1&section=2&copy=3 &eacute; &notit; &#233;?"
    ((kept,), _) = run("html_to_markdown", record(asked, "<p>So.</p>"))
    assert kept.texts()[0] == "Is <b> in http://a/?x=1&section=2&copy=3 é &notit; é?"
