"""Conversations for eyes: a terminal's panels, a page whose tokens say where they come from, a drawing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from data.conftest import TinyTokenizer
from data.templates.families import bind
from lorikeet.base.errors import OutputError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.loss import LossOptions
from lorikeet.data.picture import Piece, Shown, as_html, as_svg, columns, write_picture
from lorikeet.data.show import legend, panel, shown
from lorikeet.data.truncate import Encoder
from lorikeet.data.walk import Walked

TALK = (Message("user", "say <0>"), Message("assistant", "it is 0 🦜"))


def row_of(tokenizer: TinyTokenizer, *messages: Message, **options: object) -> tuple[Walked, Encoder]:
    loss = LossOptions(role_weights=options.pop("role_weights", {}))  # type: ignore[arg-type]
    encoder = Encoder(
        bind("jinja", tokenizer), tokenizer, loss, options.get("max_length", 1000), options.get("truncation", "cut")
    )
    conversation = Conversation(messages or TALK, origin=Origin("f.jsonl", 3, 4))
    pieces, error = encoder.usable(conversation)
    return Walked(Origin("f.jsonl", 3, 4), "train", {}, conversation, pieces, error), encoder


def test_colours_and_weights(tokenizer: TinyTokenizer) -> None:
    row, encoder = row_of(tokenizer, role_weights={"user": 0.25})
    (one,) = shown(row, encoder)
    text = panel(one).renderable
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    assert green == "say <0><|im_end|>it is 0 🦜<|im_end|>"
    assert "⟨0.25⟩say <0>" in text.plain and "⟨1⟩" not in text.plain
    assert one.title.startswith("f.jsonl:4  ") and "trained" in one.title


def test_brackets_where_there_are_no_colours(tokenizer: TinyTokenizer) -> None:
    row, encoder = row_of(tokenizer)
    (one,) = shown(row, encoder)
    console = Console(width=60, color_system=None)
    with console.capture() as captured:
        console.print(panel(one, brackets=True))
        console.print(legend(brackets=True))
    assert "⟦it is 0 🦜<|im_end|>⟧" in captured.get() and captured.get().count("⟦") == 2


def test_each_token_says_where_it_comes_from(tokenizer: TinyTokenizer) -> None:
    row, encoder = row_of(tokenizer)
    (one,) = shown(row, encoder, tokens=True)
    assert "".join(piece.text for piece in one.pieces if piece.look == "trained") == "it is 0 🦜<|im_end|>"
    hints = [piece.hint for piece in one.pieces if piece.look == "trained"]
    assert "message 1, characters 0 to " in hints[0] and hints[-1].endswith("the template's, ends message 1")
    page = as_html([one])
    assert page.count("<h2>") == 1 and "&lt;|im_end|&gt;</span>" in page and "<|im_end|>" not in page


def test_what_was_cut_is_shown(tokenizer: TinyTokenizer) -> None:
    long = (*TALK, Message("user", "and now " * 20), Message("assistant", "the answer is " * 9))
    row, encoder = row_of(tokenizer, *long, max_length=90, truncation="cut")
    (one,) = shown(row, encoder)
    cut = "".join(piece.text for piece in one.pieces if piece.look == "cut")
    assert "answer" in cut and "cut from" in one.title
    row, encoder = row_of(tokenizer, *long, max_length=90, truncation="drop")
    (one,) = shown(row, encoder)
    assert "left out: longer than max_length" in one.title and one.pieces[0].look == "cut"


def test_a_row_that_cannot_be_used(tokenizer: TinyTokenizer) -> None:
    row, encoder = row_of(tokenizer, Message("user", "a"), Message("assistant", "b", trained=False))
    (one,) = shown(row, encoder)
    assert "cannot be used" in one.title and "no token" in one.pieces[0].text


def test_the_drawing_holds_all_text_in_its_width() -> None:
    pieces = [Piece("a" * 130 + "\n  你好 \x00\t", "trained"), Piece("<s>", "context", control=True), Piece("", "cut")]
    drawing = ElementTree.fromstring(as_svg([Shown("f:1", pieces)]))
    width = float(drawing.attrib["width"])
    texts = [one for one in drawing.iter() if one.tag.endswith("text")]
    said = "".join(one.text or "" for one in texts)
    assert said.count("a") >= 130 and "你好" in said and "<s>" in said and "\x00" not in said
    for one in texts:
        assert float(one.attrib["x"]) + float(one.attrib["textLength"]) <= width
    assert columns("你好a") == 5


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=re.escape(".html .svg")):
        write_picture(tmp_path / "a.png", [])
