"""What all templates share once bound to a tokenizer: BOS exactly once, documents, stops, the fingerprint.

A template says only how turns look (`turns`). A document (role `text`) looks the same under every template:
BOS, the text, EOS.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import orjson

from lorikeet.base.errors import TemplateError
from lorikeet.base.kinds import kind_class, kinds, own_code
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._contract import Part, Segment, TemplateOptions
from lorikeet.data.templates._suits import check_suits
from lorikeet.tokens._contract import Tokenizer

# raised when the same options begin to render differently: prepared data made before is then made again
_VERSION = 1


class BoundTemplate:
    """A template and its tokenizer; subclasses write `turns`."""

    def __init__(
        self,
        options: TemplateOptions,
        tokenizer: Tokenizer,
        *,
        end: str | None,
        stops: Sequence[str] = (),
        source: str = "",
    ):
        """`end` is the token or text that closes a reply; EOS always stops too. `stops` are further texts at which a
        reply ends. Raises TemplateError where the turns' control tokens are not this tokenizer's."""
        check_suits(options, tokenizer)
        self.options, self.tokenizer = options, tokenizer
        control = tokenizer.control
        ends = [token for token in dict.fromkeys((tokenizer.eos_token, end)) if token]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(control[token] for token in ends if token in control))
        self.stop_tokens = frozenset(token for token in ends if token in control)
        texts = (end, *stops) if end and end not in control else tuple(stops)
        self.stop_strings: tuple[str, ...] = tuple(text for text in texts if text)
        said = [options.model_dump(mode="json"), source, tokenizer.fingerprint, end, *own_code(options)]
        self.fingerprint = hashlib.sha256(orjson.dumps([_VERSION, *said])).hexdigest()

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        """The segments of a conversation of turns."""
        raise NotImplementedError

    def render(self, conversation: Conversation, *, reply: bool = False) -> list[Segment]:
        """Segments of the conversation, with BOS exactly once in front where the tokenizer has one."""
        if any(message.role == "text" for message in conversation.messages):
            segments = self._document(conversation, reply)
        else:
            segments = [segment for segment in self.turns(conversation, reply) if segment.text]
        bos = self.tokenizer.bos_token
        if bos is None or bos not in self.tokenizer.control:
            return segments
        if segments and segments[0].control and segments[0] == Segment(bos, control=True):
            return segments
        return [Segment(bos, control=True), *segments]

    def _document(self, conversation: Conversation, reply: bool) -> list[Segment]:
        if len(conversation.messages) != 1:
            raise self.cannot(conversation, "a document stands alone, it cannot be one of several messages")
        eos = self.tokenizer.eos_token
        segments = [Segment(conversation.messages[0].content, message=0, part="content")]
        if eos is not None and eos in self.tokenizer.control and not reply:
            segments.append(Segment(eos, control=True, message=0, part="end"))
        return segments

    def token(self, text: str, *, message: int | None = None, end: bool = False) -> Segment:
        """`text` as a control token where the tokenizer has it, else as plain text."""
        return Segment(text, text in self.tokenizer.control, message, "end" if end else "structure")

    def eos(self, message: int) -> list[Segment]:
        """What closes message `message` where EOS does; nothing for a tokenizer without EOS."""
        eos = self.tokenizer.eos_token
        return [self.token(eos, message=message, end=True)] if eos else []

    def content(self, message: int, text: str, part: Part = "content") -> Segment:
        """`text` of message `message`, never a control token."""
        return Segment(text, message=message, part=part)

    def own_words(self, text: str) -> list[Segment]:
        """The template's own text, with the control tokens that it names."""
        return split_control(text, self.tokenizer)

    def cannot(self, conversation: Conversation, why: str, *, allowed: str | None = None) -> TemplateError:
        """The error of a conversation this template cannot say."""
        kind = self.options.model_dump().get("kind", "template")
        where = f"{conversation.origin}: " if conversation.origin else ""
        return TemplateError(
            f"{where}template {kind}: {why}",
            given=f"roles {' '.join(message.role for message in conversation.messages)}"[:200],
            allowed=allowed,
            try_="another data.template, or data.bad_rows=skip to leave such rows out",
        )

    def plain(self, conversation: Conversation, roles: Iterable[str]) -> None:
        """Raise TemplateError for roles this template has no words for, or for tools where it has none."""
        allowed = tuple(roles)
        for index, message in enumerate(conversation.messages):
            if message.role not in allowed:
                raise self.cannot(
                    conversation, f"it has no words for the role '{message.role}'", allowed=" ".join(allowed)
                )
            if message.role == "system" and index:
                raise self.cannot(conversation, "a system message can only come first")
        if not self.options.says_tools:
            self.no_tools(conversation)

    def no_tools(self, conversation: Conversation) -> None:
        """Raise TemplateError for a conversation with tools or calls to them."""
        if conversation.tools or any(message.tool_calls for message in conversation.messages):
            named = [
                name
                for name in kinds("lorikeet.data.templates")
                if kind_class("lorikeet.data.templates", TemplateOptions, name).says_tools
            ]
            raise self.cannot(conversation, "it has no words for tools", allowed=" ".join(named))

    def turn_by_turn(self, conversation: Conversation) -> tuple[Message | None, list[tuple[int, Message]]]:
        """(system message or None, [(index, message)]) of a conversation in which user and assistant alternate.

        Raises TemplateError where they do not, as the published templates of such models do."""
        numbered = list(enumerate(conversation.messages))
        system = numbered.pop(0)[1] if numbered and numbered[0][1].role == "system" else None
        turns = [role for role in (m.role for _, m in numbered if not m.tool_calls) if role != "tool"]
        if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(turns)):
            raise self.cannot(
                conversation, "user and assistant have to alternate", allowed="user assistant user assistant ..."
            )
        if system is not None and not turns:
            raise self.cannot(conversation, "the system prompt stands in a user's message, and there is none")
        return system, numbered


def split_control(text: str, tokenizer: Tokenizer) -> list[Segment]:
    """A template's OWN text, cut where it names control tokens; never call this on what a message says."""
    names = sorted((name for name in tokenizer.control if name in text), key=len, reverse=True)
    if not names:
        return [Segment(text)] if text else []
    pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return [Segment(piece, control=bool(number % 2)) for number, piece in enumerate(pieces) if piece]
