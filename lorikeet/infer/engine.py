"""Prompts in, replies out, many at once: one packed prefill, then one token per reply and pass until all have ended.

Prompts of like length go together; a finished reply leaves the batch. Text comes out as it is made, except what could
still turn into a stop string or is half a character.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lorikeet.base.errors import LorikeetError, ModelError
from lorikeet.base.nouns import Conversation
from lorikeet.data.encode import encode_prompt
from lorikeet.data.templates._contract import Template
from lorikeet.infer.dense_copies import dense_copies
from lorikeet.infer.sampling import GenerateOptions, Sampler
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import Decode, KvCache, Prefill
from lorikeet.tokens._contract import Tokenizer

Reason = Literal["stop", "length"]
WINDOW = 8  # tokens decoded again with each new one, so that a character split over tokens comes out whole


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
        size = min((request.options.batch_size for request in requests), default=1)
        waiting = sorted(requests, key=lambda request: len(request.prompt))
        keep = all(request.options.dense_copies for request in requests)
        with dense_copies(self.model) if keep else nullcontext():
            for start in range(0, len(waiting), size):
                yield from self._batch(waiting[start : start + size])

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
    def _batch(self, requests: Sequence[Request]) -> Iterator[Event]:
        """The cache is made for the longest prompt and reply; both views run the same network."""
        limit = self.model.shape.max_position
        lengths = [len(request.prompt) for request in requests]
        room = [min(request.options.max_new_tokens, limit - length) for request, length in zip(requests, lengths)]
        capacity = max(length + new for length, new in zip(lengths, room))
        cache = KvCache(self.model.shape, len(requests), capacity, self.model.dtype, self.model.device)
        live = [
            _Reply(request, new, self.tokenizer, self.template, self.stop_ids) for request, new in zip(requests, room)
        ]
        logits = self._read(cache, [request.prompt for request in requests])
        while True:
            for reply, row in zip(live, logits):
                reply.add(reply.sampler.pick(row))
                yield from reply.events()
            going = [i for i, reply in enumerate(live) if reply.reason is None]
            if not going:
                return
            if len(going) < len(live):
                cache.keep(torch.tensor(going, device=self.model.device))
                live = [live[i] for i in going]
            if any(reply.length - 1 == self.model.shares_within for reply in live):
                # this token changes what the ones before it compute, so what is kept of them is of no use
                logits = self._read(cache, [[*reply.request.prompt, *reply.ids] for reply in live])
                continue
            decode = Decode(cache)
            tokens = torch.tensor([reply.ids[-1] for reply in live], device=self.model.device)
            hidden = self.model.hidden(tokens, decode.positions, decode)
            logits = self.model.head.logits(hidden).cpu()
            decode.advance()

    def _read(self, cache: KvCache, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read whole texts into the cache; the logits of what follows each [B, V], on the CPU."""
        prefill = Prefill(cache, texts, self.model.shares_within)
        hidden = self.model.hidden(prefill.tokens, prefill.positions, prefill)
        return self.model.head.logits(hidden[prefill.last]).cpu()


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
