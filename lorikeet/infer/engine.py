"""Prompts in, replies out, many at once: packed prefills, then one token per reply and pass.

Prompts of like length go together; where a few replies have ended, as many prompts that wait take their rows. Text
comes out as it is made, except what could still turn into a stop string or is half a character.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lorikeet.base.errors import LorikeetError, ModelError
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation
from lorikeet.data.encode import encode_prompt
from lorikeet.data.templates._contract import Template
from lorikeet.infer.answering_linears import answering_linears
from lorikeet.infer.dense_copies import decide, dense_copies
from lorikeet.infer.reading import Reading, common_prefix
from lorikeet.infer.sampling import GenerateOptions, Sampler, pick_each
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import KvCache
from lorikeet.tokens._contract import Tokenizer

Reason = Literal["stop", "length"]
WINDOW = 8  # tokens decoded again with each new one, so that a character split over tokens comes out whole
REFILL = 0.25  # of the rows wait for prompts before some are read: a prefill costs a pass over the weights
READ_TOKENS = 4096  # of prompts that are read in one pass, at most, where there are several


@dataclass(frozen=True)
class Request:
    """`name` comes back with every event, and tells replies of one seed apart."""

    name: int
    prompt: Sequence[int]
    options: GenerateOptions


@dataclass(frozen=True)
class Event:
    """A piece of a reply. `reason` is set on its last event."""

    name: int
    text: str
    reason: Reason | None = None
    tokens: int = 0  # generated so far


class Engine:
    """A model that answers, with the tokenizer and template it was trained with."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, template: Template, identity: str = ""):
        """`identity` names the weights, base and adapter: half-done work of other weights is not gone on with."""
        self.model, self.tokenizer, self.template, self.identity = model, tokenizer, template, identity
        # the template's own ends first; a model may still say its own under a template of text
        self.stop_ids = tuple(dict.fromkeys((*template.stop_ids, *tokenizer.eos_ids)))
        self._said: set[bool] = set()  # which decisions about copies

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids after which the model answers: exactly those it was trained on."""
        return encode_prompt(conversation, self.template, self.tokenizer)

    def replies(
        self, conversations: Sequence[Conversation], options: GenerateOptions
    ) -> Iterator[tuple[int, str, Reason]]:
        """(index, reply, reason) of each conversation, in the order in which they finish."""
        texts: dict[int, list[str]] = {}
        requests = [Request(i, self.prompt(conversation), options) for i, conversation in enumerate(conversations)]
        for event in self.generate(requests):
            texts.setdefault(event.name, []).append(event.text)
            if event.reason is not None:
                yield event.name, "".join(texts.pop(event.name)), event.reason

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json: where a reply begins and ends, for other engines."""
        name, settings = self.tokenizer.bos_token, self.model.shape.config
        bos = self.tokenizer.control.get(name) if name else settings.get("bos_token_id")
        return {"bos_token_id": bos, "eos_token_id": list(self.stop_ids), "pad_token_id": self.tokenizer.pad_id}

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Events of all requests. Raises ModelError for a prompt that leaves no room to answer."""
        for request in requests:
            self._check(request)
        with self._copies(requests), answering_linears(self.model):
            yield from self._answer(requests)

    def _copies(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        """Dense copies of quantised weights, where the requests ask for them. What was decided is said once."""
        asked = {request.options.dequantize for request in requests}
        if not asked or False in asked:
            return nullcontext()
        rows = min(len(requests), min(request.options.batch_size for request in requests))
        longest = max(len(request.prompt) + self._room(request) for request in requests)
        cache = KvCache.bytes_of(self.model.shape, rows, longest, self.model.dtype)
        decided = decide(self.model, "auto" if "auto" in asked else True, cache)
        if decided is not None and decided.keep not in self._said:
            self._said.add(decided.keep)
            note(str(decided))
        return dense_copies(self.model) if decided is not None and decided.keep else nullcontext()

    def _check(self, request: Request) -> None:
        limit = self.model.shape.max_position
        if not request.prompt:
            raise LorikeetError("an empty prompt cannot be answered", given=f"request {request.name}")
        if len(request.prompt) >= limit:
            raise ModelError(
                f"the prompt fills the model's context of {limit} tokens",
                given=f"{len(request.prompt)} tokens",
                try_="a shorter prompt, or :clear in a chat",
            )

    @torch.inference_mode()
    def _answer(self, requests: Sequence[Request]) -> Iterator[Event]:
        waiting = deque(sorted((self._reply(request) for request in requests), key=lambda reply: reply.length))
        reading, live = self._reading(waiting), list[_Reply]()
        while live or waiting:
            fresh = _next(waiting, reading, live)
            if fresh:
                yield from _take(fresh, reading.read([reply.request.prompt for reply in fresh]))
                live += fresh
            for i in reversed(range(len(live))):  # from the last on, so that what takes a row's place stays
                if live[i].reason is not None:
                    reading.end(i)
                    live[i] = live[-1]
                    live.pop()
            if not live:
                continue
            if any(reply.length - 1 == self.model.shares_within for reply in live):
                # this token changes what the ones before it compute, so what is kept of them is of no use
                logits = reading.again([[*reply.request.prompt, *reply.ids] for reply in live])
            else:
                logits = reading.go_on([reply.ids[-1] for reply in live])
            yield from _take(live, logits)

    def _reply(self, request: Request) -> _Reply:
        return _Reply(request, self._room(request), self.tokenizer, self.template, self.stop_ids)

    def _room(self, request: Request) -> int:
        """Tokens that a reply may have."""
        return min(request.options.max_new_tokens, self.model.shape.max_position - len(request.prompt))

    def _reading(self, replies: Collection[_Reply]) -> Reading:
        """Rows for the replies. What all prompts begin with is computed once, unless some text outgrows sharing."""
        size = min((reply.request.options.batch_size for reply in replies), default=1)
        limit = self.model.shares_within
        shares = limit is None or all(reply.most <= limit for reply in replies)
        begun = common_prefix([reply.request.prompt for reply in replies]) if shares else 0
        return Reading(self.model, min(size, len(replies)), max((reply.most for reply in replies), default=0), begun)


def _next(waiting: deque[_Reply], reading: Reading, live: Collection[_Reply]) -> list[_Reply]:
    """The replies to begin now: none until enough rows are free, so that a prefill is worth its pass."""
    enough = max(1, min(len(waiting), int(REFILL * reading.most)))
    if not waiting or (live and reading.free < enough):
        return []
    found, tokens = [waiting.popleft()], 0
    tokens += found[0].length
    while waiting and len(found) < reading.free and tokens + waiting[0].length <= READ_TOKENS:
        found.append(waiting.popleft())
        tokens += found[-1].length
    return found


def _take(replies: Sequence[_Reply], logits: Tensor) -> Iterator[Event]:
    """The next token of each reply, from its row of the logits, and what can then be said."""
    for reply, token in zip(replies, pick_each(logits, [reply.sampler for reply in replies])):
        reply.add(token)
        yield from reply.events()


class _Reply:
    """One reply in the making."""

    def __init__(
        self, request: Request, room: int, tokenizer: Tokenizer, template: Template, stop_ids: Collection[int]
    ):
        self.request, self.room, self.tokenizer = request, room, tokenizer
        self.sampler = Sampler(request.options, request.prompt, request.name)
        self.stop_ids = stop_ids
        self.stops = [stop for stop in (*template.stop_strings, *request.options.stop) if stop]
        self.ids: list[int] = []
        self.reason: Reason | None = None
        self._text, self._said = "", 0

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the reply so far."""
        return len(self.request.prompt) + len(self.ids)

    @property
    def most(self) -> int:
        """Tokens of the prompt and of the longest reply that may come."""
        return len(self.request.prompt) + self.room

    def add(self, token: int) -> None:
        """Take the next token; decides whether the reply has ended."""
        if token in self.stop_ids:
            self.reason = "stop"
            return
        self.ids.append(token)
        self._text = self._decode()
        cuts = [self._text.find(stop, max(0, self._said - len(stop))) for stop in self.stops]
        found = [cut for cut in cuts if cut >= 0]
        if found:
            self._text, self.reason = self._text[: min(found)], "stop"
        elif len(self.ids) >= self.room:
            self.reason = "length"

    def events(self) -> Iterator[Event]:
        """What can be said now."""
        ready = len(self._text) if self.reason is not None else self._safe()
        piece = self._text[self._said : ready]
        self._said = max(self._said, ready)
        if piece or self.reason is not None:
            yield Event(self.request.name, piece, self.reason, len(self.ids))

    def _decode(self) -> str:
        """The whole text; only the last window is decoded again once what is before it is settled."""
        return self.tokenizer.decode(self.ids) if len(self.ids) < 4 * WINDOW else self._windowed()

    def _windowed(self) -> str:
        tail = self.ids[-WINDOW:]
        before, after = self.tokenizer.decode(tail[:-1]), self.tokenizer.decode(tail)
        if after.startswith(before) and not before.endswith("�") and self._text.endswith(before):
            return self._text + after[len(before) :]
        return self.tokenizer.decode(self.ids)

    def _safe(self) -> int:
        """How much of the text no stop string and no half character can still change."""
        end = len(self._text)
        while end and self._text[end - 1] == "�":
            end -= 1
        for stop in self.stops:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if self._text[:end].endswith(stop[:size]):
                    end -= size
                    break
        return end
