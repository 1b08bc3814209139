"""Long conversations cut at their turns into pieces that fit, counted as training will: rendered, with the model's ids.

The cut is before a question. Every piece begins with the system prompt, every exchange of the conversation is in one
piece, and an exchange that alone is longer than the limit follows the policy that its option names. (FastChat's script
loses the last exchange when it overflows there, and writes an empty piece before a long first one.)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from lorikeet.base.errors import TemplateError
from lorikeet.base.kinds import kind_field
from lorikeet.data.encode import encode, encode_conversation
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.formats.messages import Messages
from lorikeet.data.formats.sharegpt import ShareGPT
from lorikeet.data.loss import LossOptions
from lorikeet.data.steps._contract import Log, Step, split
from lorikeet.data.steps._exchanges import exchanges
from lorikeet.data.steps._record import Record, Turn
from lorikeet.data.templates._contract import Template, TemplateOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.tokens._contract import After, Tokenizer

TOO_LONG = "an exchange longer than max_tokens"
_REPLY_TOKENS = 4  # by which a rendering can differ, per reply, from the one that training splits at replies
_MEMORY = 1_000_000  # characters whose ids are remembered: a conversation's pieces are counted again and again


class SplitTurns(Step):
    """Conversations in pieces of at most `max_tokens` tokens, each with the system prompt."""

    kind: Literal["split_turns"] = "split_turns"
    model: str = Field(
        min_length=1, description="Whose tokens count: a folder, a GGUF file or a name.", examples=["smollm2-135m"]
    )
    max_tokens: int = Field(2048, ge=16, description="Longest piece in tokens, as the template renders it.")
    too_long: Literal["drop", "keep", "cut"] = Field(
        "drop",
        description="One exchange longer than that: leave it out, keep it whole (training cuts it), or cut its reply.",
    )
    template: kind_field("lorikeet.data.templates", TemplateOptions) = Field(  # type: ignore[valid-type]
        Jinja.model_validate({}), description="How conversations are rendered: the model's own template, or a kind."
    )

    def start(self) -> None:
        self.ruler()

    def fingerprint(self) -> str:
        return self.ruler().template.fingerprint  # the tokenizer's is in it

    def ruler(self) -> Ruler:
        """What counts tokens; made once in a process."""
        return _ruler(self.model, self.template)

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        ruler = self.ruler()
        try:
            return self._pieces(record, ruler, log)
        except TemplateError as error:
            log.drop(record, "the template cannot say it", error.what)
            return []

    def _pieces(self, record: Record, ruler: Ruler, log: Log) -> list[Record]:
        if ruler.fits(record, record.turns, self.max_tokens):
            return [record]
        system, found = exchanges(record.turns)
        if found and not any(turn.role == "assistant" for turn in found[-1]):
            log.cut(record, found.pop(), "no reply to it")
        pieces: list[list[Turn]] = []
        for exchange in found:
            if pieces and ruler.fits(record, [*system, *pieces[-1], *exchange], self.max_tokens):
                pieces[-1] += exchange
                continue
            fitting = self._alone(record, system, exchange, ruler, log)
            if fitting:
                pieces.append(fitting)
        if not pieces:
            log.drop(record, TOO_LONG)
            return []
        whole = [[*system, *piece] for piece in pieces]
        if len(whole) == 1:
            record.turns = whole[0]
            return [record]
        log.change(record, "split")
        return split(record, whole, log)

    def _alone(
        self, record: Record, system: list[Turn], exchange: list[Turn], ruler: Ruler, log: Log
    ) -> list[Turn] | None:
        """The exchange as a piece of its own may begin with it, by the policy where it is too long."""
        if ruler.fits(record, [*system, *exchange], self.max_tokens):
            return list(exchange)
        if self.too_long == "keep":
            log.see("over-long exchanges kept whole")
            return list(exchange)
        reply = exchange[-1]
        if self.too_long == "cut" and reply.role == "assistant" and not reply.calls:
            kept = ruler.longest(record, [*system, *exchange], self.max_tokens)
            if kept:
                log.cut(record, [reply.text[kept:]], "the reply's end beyond max_tokens")
                return [*exchange[:-1], Turn(reply.speaker, reply.text[:kept], rest=dict(reply.rest))]
        log.cut(record, exchange, TOO_LONG)
        return None


class _Remembering:
    """A tokenizer that remembers the ids of the last texts."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.known: dict[tuple[str, After], tuple[list[int], list[tuple[int, int]]]] = {}
        self.size = 0  # characters of what is known

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, *, after: After = "start") -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and spans, as the tokenizer gives them."""
        key = (text, after)
        if key not in self.known:
            self.size += len(text)
            if self.size > _MEMORY:
                self.known.clear()
                self.size = len(text)
            self.known[key] = self.tokenizer.encode(text, after=after)
        return self.known[key]


class Ruler(NamedTuple):
    """Counts the tokens of turns as training would see them."""

    tokenizer: Tokenizer
    template: Template

    def fits(self, record: Record, turns: Sequence[Turn], most: int) -> bool:
        """Whether the record with these turns has at most so many tokens."""
        read = _format(record).read
        conversation = read(record.part_of(list(turns), 0).as_row(), record.origin, reply=False)
        segments = self.template.render(conversation)
        ids, _ = encode(segments, [0.0] * len(segments), self.tokenizer)
        replies = sum(message.role == "assistant" for message in conversation.messages)
        thinks = any("<think>" in message.content for message in conversation.messages)
        if not thinks and abs(len(ids) - most) > _REPLY_TOKENS * replies:
            return len(ids) <= most
        if not replies:
            return len(ids) <= most
        return self.tokens(conversation) <= most

    def tokens(self, conversation: Any) -> int:
        """Of the longest text that training makes of the conversation (one, for most templates)."""
        laid = encode_conversation(conversation, self.template, self.tokenizer, LossOptions())
        return max((len(ids) for _, ids, _ in laid), default=0)

    def longest(self, record: Record, turns: Sequence[Turn], most: int) -> int:
        """How many characters of the last turn fit, none of them cut as people see it; 0 for none."""
        last = turns[-1]

        def fit(count: int) -> bool:
            shorter = Turn(last.speaker, last.text[:count], rest=last.rest)
            return not shorter.content.strip() or self.fits(record, [*turns[:-1], shorter], most)

        low, high = 0, len(last.text)
        while high - low > 0:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fit(middle) else (low, middle - 1)
        kept = whole(last.text, low)
        while kept and not fit(kept):  # rarely, a text has more tokens than a longer one
            kept = whole(last.text, kept - 1)
        return kept if last.text[:kept].strip() else 0


def whole(text: str, at: int) -> int:
    """`at`, or the last place before it that is not inside of what people see as one character: an emoji of several, a
    flag, a letter with its accents (Unicode's annex 29, without the scripts that join letters)."""
    while 0 < at < len(text) and _goes_on(text, at):
        at -= 1
    return at


def _goes_on(text: str, at: int) -> bool:
    before, character = text[at - 1], text[at]
    if _flag(before) and _flag(character):  # two make a flag
        start = at
        while start and _flag(text[start - 1]):
            start -= 1
        return (at - start) % 2 == 1
    joined = "\u200d" in (before, character) or (before, character) == ("\r", "\n")
    skin_or_tag = "\U0001f3fb" <= character <= "\U0001f3ff" or "\U000e0020" <= character <= "\U000e007f"
    return joined or skin_or_tag or unicodedata.category(character).startswith("M")


def _flag(character: str) -> bool:
    """Whether it is one of the letters that flags are spelled with."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _format(record: Record) -> Format:
    if record.layout == "alpaca":
        return Alpaca()
    if record.layout == "messages":
        return Messages(messages=record.column)
    return ShareGPT(messages=record.column, role_tag=record.keys[0], content_tag=record.keys[1])


_RULERS: dict[tuple[str, str], Ruler] = {}


def _ruler(model: str, options: TemplateOptions) -> Ruler:
    key = options.model_dump_json()
    if (model, key) not in _RULERS:
        from lorikeet.checkpoints.download import resolve
        from lorikeet.checkpoints.open import open_checkpoint
        from lorikeet.tokens.open import open_tokenizer

        path = resolve(model)
        ready = path.is_dir() and (path / "tokenizer.json").is_file()
        tokenizer = _Remembering(open_tokenizer(path, None if ready else open_checkpoint(path)))
        _RULERS[model, key] = Ruler(tokenizer, options.bind(tokenizer))
    return _RULERS[model, key]
