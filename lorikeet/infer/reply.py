"""What is asked, what comes back, and one reply in the making: from ids to text that can be said.

Text comes out as it is made, except what could still turn into a stop string or is half a character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lorikeet.data.templates._contract import Template
from lorikeet.infer.logprobs import TokenLogprob, token_logprob
from lorikeet.infer.sampling import GenerateOptions, Sampler
from lorikeet.tokens._contract import Tokenizer

Reason = Literal["stop", "length", "cancelled"]
WINDOW = 8  # tokens decoded again with each new one, so that a character split over tokens comes out whole


@dataclass(frozen=True)
class Request:
    """`name` comes back with every event; a number tells replies of one seed apart, other names do not. `adapter` names
    a loaded one, `base` is the model without any, None the model as it was opened. `echo`: the prompt comes back first,
    as an event of its own. `skip_control`: control tokens are no part of the text (but some templates mark calls of
    tools with them)."""

    name: Any  # hashable
    prompt: Sequence[int]
    options: GenerateOptions
    adapter: str | None = None
    echo: bool = False
    skip_control: bool = True


@dataclass(frozen=True)
class Event:
    """A piece of a reply. `reason` is set on its last event. `ids` and `logprobs` are of the tokens since the last
    event, whose text may still be held back."""

    name: Any  # hashable
    text: str
    reason: Reason | None = None
    tokens: int = 0  # generated so far
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reused: int = 0  # tokens of the prompt that were in the cache already


class Reply:
    """One reply in the making."""

    def __init__(
        self,
        request: Request,
        room: int,
        tokenizer: Tokenizer,
        template: Template,
        stop_ids: Sequence[int],
        adapter: str | None = None,
    ):
        """`room`: tokens that it may have. `adapter`: as the linears know it."""
        self.adapter = adapter
        self.request, self.room, self.tokenizer = request, room, tokenizer
        # a number tells replies of one seed apart; but the seed alone says what a deterministic reply is
        numbered = isinstance(request.name, int) and not request.options.deterministic
        self.sampler = Sampler(request.options, request.prompt, request.name if numbered else 0, tokenizer, stop_ids)
        self.stop_ids = stop_ids
        of_template = () if self.sampler.guided else template.stop_strings  # a guide says itself where a reply ends
        self.stops = [stop for stop in (*of_template, *request.options.stop) if stop]
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason: Reason | None = None
        self.reused = 0
        self._text, self._said, self._told = "", 0, 0
        self._echoed: list[TokenLogprob] = []

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the reply so far."""
        return len(self.request.prompt) + len(self.ids)

    @property
    def most(self) -> int:
        """Tokens of the prompt and of the longest reply that may come."""
        return len(self.request.prompt) + self.room

    def add(self, token: int) -> None:
        """Take the next token, which the sampler has taken; decides whether the reply has ended. A reply that ends
        without being what its guide asks for was cut."""
        if token in self.stop_ids:
            self.reason = "stop"
            return
        self.ids.append(token)
        if self.sampler.logprob is not None:
            self.logprobs.append(self.sampler.logprob)
        self._text = self._decode()
        cuts = [self._text.find(stop, max(0, self._said - len(stop))) for stop in self.stops]
        found = [cut for cut in cuts if cut >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.reason = "stop" if self.sampler.accepts(self._text) else "length"
        elif self.sampler.ended is not None:
            self.reason = self.sampler.ended
        elif len(self.ids) >= self.room:
            self.reason = "length"

    @property
    def echoes_scores(self) -> bool:
        """Whether the prompt comes back with its tokens' logarithms."""
        return self.request.echo and self.request.options.logprobs is not None

    def read(self, start: int, logits: Tensor) -> None:
        """Take note of the prompt's tokens behind those from `start` on, whose logits [n, V] these are."""
        top, following = self.request.options.logprobs, self.request.prompt[start + 1 :]
        assert top is not None
        rows = zip(logits.cpu(), following)
        self._echoed += [token_logprob(row, token, top, self.tokenizer, first=False) for row, token in rows]

    def echoed(self) -> Event:
        """The prompt. Its first token has no logprob, because nothing comes before it."""
        prompt = tuple(self.request.prompt)
        return Event(self.request.name, self._text_of(prompt), ids=prompt, logprobs=tuple(self._echoed))

    def events(self) -> Iterator[Event]:
        """What can be said now."""
        ready = len(self._text) if self.reason is not None else self._safe()
        piece = self._text[self._said : ready]
        self._said = max(self._said, ready)
        if piece or self.reason is not None:
            since, self._told = self._told, len(self.ids)
            ids, logprobs = tuple(self.ids[since:]), tuple(self.logprobs[since:])
            yield Event(self.request.name, piece, self.reason, len(self.ids), ids, logprobs, self.reused)

    def fork(self) -> Reply:
        """Another that has said the same, for a beam that goes on otherwise."""
        twin = copy(self)
        twin.ids, twin.logprobs, twin.sampler = list(self.ids), list(self.logprobs), self.sampler.fork()
        return twin

    def _decode(self) -> str:
        """The whole text; only the last window is decoded again once what is before it is settled."""
        return self._text_of(self.ids) if len(self.ids) < 4 * WINDOW else self._windowed()

    def _text_of(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_control=self.request.skip_control)

    def _windowed(self) -> str:
        tail = self.ids[-WINDOW:]
        before, after = self._text_of(tail[:-1]), self._text_of(tail)
        if after.startswith(before) and not before.endswith("�") and self._text.endswith(before):
            return self._text + after[len(before) :]
        return self._text_of(self.ids)

    def _safe(self) -> int:
        """How much of the text no stop string and no half character can still change."""
        end = len(self._text)
        while end and self._text[end - 1] == "�":
            end -= 1
        may_begin = (
            size
            for stop in self.stops
            for size in range(min(len(stop) - 1, end), 0, -1)
            if self._text.endswith(stop[:size], 0, end)
        )
        return end - max(may_begin, default=0)
