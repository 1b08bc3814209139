"""Does a template suit a tokenizer: are the control tokens its turns are written with there?

A template whose tokens the tokenizer lacks would spell them out as text. A base model without any chat format can
learn that; for a model that has its own format it is a mistake (llama3's turns for a Gemma), so it is refused with
the kinds that do suit.
"""

from __future__ import annotations

from pydantic import Field

from lorikeet.base.errors import TemplateError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.tokens._contract import Tokenizer

_PACKAGE = "lorikeet.data.templates"


class MarkedOptions(TemplateOptions):
    """Base of the kinds whose turns are written with control tokens of one family of models."""

    allow_text_markers: bool | None = Field(
        None,
        description="Write control tokens that the tokenizer lacks as plain text; null: only for models without any "
        "chat format of their own.",
    )


def suiting(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """(kinds written with control tokens that this tokenizer has, kinds of plain text that any model can learn)."""
    own = ["jinja"] if tokenizer.chat_template is not None else []
    text = []
    for name in kinds(_PACKAGE):
        marks = kind_class(_PACKAGE, TemplateOptions, name).model_validate({"kind": name}).marks(tokenizer)
        if not marks and name != "jinja":
            text.append(name)
        elif marks and all(mark in tokenizer.control for mark in marks):
            own.append(name)
    return own, text


def check_suits(options: TemplateOptions, tokenizer: Tokenizer) -> None:
    """Raise TemplateError where `options` writes turns with control tokens that `tokenizer` lacks, unless its option
    allow_text_markers asks for that, or is null and the model has no chat format at all."""
    missing = [mark for mark in options.marks(tokenizer) if mark not in tokenizer.control]
    allowed = options.allow_text_markers if isinstance(options, MarkedOptions) else None
    if not missing or allowed:
        return
    own, text = suiting(tokenizer)
    if allowed is None and not own:
        return
    kind = options.model_dump().get("kind", "template")
    raise TemplateError(
        f"data.template: {kind} does not suit this model, whose tokenizer lacks its control tokens",
        given=f"{kind}, written with {' '.join(missing)}",
        allowed=f"{' '.join(own) or 'no kind has this tokenizer as its own'}; and as plain text: {' '.join(text)}",
        try_=f"data.template={(own or text)[0]}, or data.template='{{kind: {kind}, allow_text_markers: true}}'",
    )


def has_word(tokenizer: Tokenizer, text: str) -> bool:
    """Is `text` one token: a control token, or one that the vocabulary holds whole (<think> of some models)?"""
    return text in tokenizer.control or len(tokenizer.encode(text)[0]) == 1
