"""Conversations as the model will see them, for eyes: trained tokens coloured, control tokens visible, counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import numpy as np
from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text

from lorikeet.base.nouns import Example
from lorikeet.tokens._contract import Tokenizer

_TRAINED, _CONTEXT, _CONTROL = "bold green", "dim", "reverse"
_OPEN, _CLOSE = "\u27e6", "\u27e7"  # around what is trained, where no colour says it


def show(
    examples: Iterable[Example], tokenizer: Tokenizer, n: int = 5, *, colours: bool = True
) -> Iterator[RenderableType]:
    """One panel for each of the first `n` examples, and a last line that explains the colours, or the brackets that
    stand for them."""
    for example in islice(examples, n):
        trained = int(np.count_nonzero(example.weights))
        title = f"{example.origin or 'example'}  {len(example.tokens)} tokens, {trained} trained"
        yield Panel(coloured(example, tokenizer, brackets=not colours), title=Text(title), title_align="left")
    if not colours:
        yield Text(f"{_OPEN}trained{_CLOSE}  ⟨weight⟩ where it is not 1")
        return
    yield Text.assemble(
        ("trained", _TRAINED),
        "  ",
        ("context", _CONTEXT),
        "  ",
        ("control token", _CONTROL),
        "  ⟨weight⟩ where it is not 1",
    )


def coloured(example: Example, tokenizer: Tokenizer, *, brackets: bool = False) -> Text:
    """The example's text; each run of tokens with the same weight has one style. `brackets` also enclose what is
    trained."""
    control = set(tokenizer.control.values())
    text = Text(no_wrap=False, overflow="fold")  # a console that does not wrap would cut the lines off
    tokens = [int(token) for token in example.tokens]
    keys = [(float(weight), token in control) for token, weight in zip(tokens, example.weights)]
    shown = 1.0  # the weight last written: runs of the same weight are not labelled again
    position, inside = 0, False
    for (weight, is_control), run in groupby(keys):
        count = len(list(run))
        words = tokenizer.decode(tokens[position : position + count], skip_control=False)
        position += count
        style = _TRAINED if weight > 0 else _CONTEXT
        if brackets and (weight > 0) != inside:
            inside = weight > 0
            text.append(_OPEN if inside else _CLOSE)
        if weight not in (0.0, 1.0) and weight != shown:
            text.append(f"⟨{weight:g}⟩", "yellow")
        shown = weight if weight > 0 else 1.0
        text.append(words, f"{style} {_CONTROL}" if is_control else style)
    if inside:
        text.append(_CLOSE)
    return text
