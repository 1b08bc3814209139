"""Replies in the making, together: requests come, are cancelled and go between passes over the weights.

One thread owns a batch. `step` is one pass: tokens of prompts that wait are read, or replies get their next token.
Where there is both they take turns, and of the prompts then only so many tokens are read that nobody waits long.
Replies of one pass may have adapters of their own; prompts that are read in one pass have one.

A deterministic request is computed alone, from its first token to its last, in steps that only its own length decides:
what else is answered meanwhile changes no shape, no sum and no kernel. That costs it the company's speed.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorikeet.base.errors import LorikeetError
from lorikeet.infer.answering_linears import BASE, OWN, Update, answering_linears
from lorikeet.infer.beams import BeamSearch
from lorikeet.infer.dense_copies import Dequantize, memory_of
from lorikeet.infer.named_adapters import Loaded, check_takes, read_updates
from lorikeet.infer.reading import Read, Reading, Text
from lorikeet.infer.reply import Event, Reply, Request
from lorikeet.infer.sampling import pick_each
from lorikeet.models.kv_cache import PAGE, Kv, KvCache

if TYPE_CHECKING:
    from lorikeet.infer.engine import Engine

ROW_TOKENS = 2048  # of the cache for each row, where nobody says how many
SHARE = 8  # of free memory the cache takes one part in so many, at most, where nobody says
SLICES = 8  # where replies wait, one part in so many of the usual tokens is read at once
ECHOED = 128  # tokens of a prompt whose logits are there at once
REFILL = 0.25  # of a patient batch's rows wait for prompts before some are read: that costs a pass over the weights


@dataclass(eq=False)
class _Row:
    """One request that has a place in the cache."""

    reply: Reply
    texts: list[Text]  # one, or one for each beam
    last: int = 0  # the pass that it last had a part in
    search: BeamSearch | None = None

    @property
    def text(self) -> Text:
        return self.texts[0]

    @property
    def adapter(self) -> str | None:
        return self.reply.adapter

    @property
    def size(self) -> int:
        """How many rows it is, once its prompt is read."""
        return self.reply.request.options.num_beams

    @property
    def alone(self) -> bool:
        return self.reply.request.options.deterministic


class Batch:
    """Up to `rows` replies at once over the weights of `engine`, with keys and values of up to `cache_tokens`. At most
    about `prefill_tokens` of prompts are read in one pass.

    `patient`: nobody waits for single replies, so prompts are read when it is worth a pass. While a batch is there,
    its model must not train; `close` ends that."""

    def __init__(
        self,
        engine: Engine,
        *,
        rows: int = 16,
        cache_tokens: int | None = None,
        kv: Kv = "auto",
        prefill_tokens: int = 2048,
        patient: bool = False,
        dequantize: Dequantize = "auto",
    ):
        self.engine, self.rows, self.prefill_tokens, self.patient = engine, rows, prefill_tokens, patient
        self.prompt_tokens = self.reused_tokens = self.generated_tokens = 0
        self._slice = max(PAGE, prefill_tokens // SLICES)
        self._reading = Reading(engine.model, cache_tokens or _usual_tokens(engine, rows, kv), kv)
        self._waiting: deque[Reply] = deque()
        self._entering: list[_Row] = []  # whose prompts are being read
        self._live: list[_Row] = []
        self._gone: list[Event] = []
        self._passes, self._read_last = 0, False
        self._loaded: dict[str, Loaded] = {}  # by name; those that are leaving have none
        self._leaving: list[Loaded] = []
        stack = ExitStack()
        self._end = weakref.finalize(self, stack.close)  # also where nobody closes it
        cache = self._reading.cache  # without one a pass has all tokens of the texts
        beside, most = (0, self.cache_tokens) if cache is None else (cache.nbytes, rows)
        stack.enter_context(engine.copies(dequantize, beside, most))
        self._answering = stack.enter_context(answering_linears(engine.model))

    def close(self) -> None:
        """Forget everything; the model is as it was before."""
        self._end()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting or self._entering or self._live or self._gone)

    @property
    def free(self) -> int:
        """Rows without a reply."""
        return self.rows - sum(row.size for row in (*self._entering, *self._live))

    @property
    def cache_tokens(self) -> int:
        """How many tokens all texts may have together."""
        return self._reading.tokens

    @property
    def adapters(self) -> list[str]:
        """Names of those that are loaded."""
        return list(self._loaded)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Read an adapter from its folder, for requests that name it. Raises LorikeetError for one that does not fit,
        and for a name that is taken."""
        self._check_name(name)
        self.take_adapter(name, self.read_adapter(folder))

    def read_adapter(self, folder: Path) -> dict[str, Update]:
        """What `take_adapter` takes; it may be read in another thread while this one computes. Raises LorikeetError for
        an adapter that does not fit."""
        engine = self.engine
        check_takes(engine.model)
        return read_updates(folder, engine.model, engine.base, engine.template.fingerprint)

    def take_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        """Have an adapter that was read, between two passes. Raises LorikeetError for a name that is taken."""
        self._check_name(name)
        loaded = Loaded(name)
        self._answering.load(loaded.key, updates)
        self._loaded[name] = loaded

    def _check_name(self, name: str) -> None:
        if not name or name == BASE or name in self._loaded:
            raise LorikeetError("an adapter cannot have this name", given=repr(name), allowed="a name that is free")

    def unload_adapter(self, name: str) -> None:
        """No further request can name this adapter; it goes when the last reply that has it is over. Raises
        LorikeetError for a name that is not loaded."""
        self._leaving.append(self._find(name))
        del self._loaded[name]
        self._let_go()

    def _find(self, name: str) -> Loaded:
        if name not in self._loaded:
            allowed = ", ".join([BASE, *self._loaded])
            raise LorikeetError("no adapter of this name is loaded", given=name, allowed=allowed)
        return self._loaded[name]

    def _let_go(self) -> None:
        """Adapters that are leaving and that nobody has any more."""
        asked = {reply.adapter for reply in self._waiting} | {row.adapter for row in (*self._entering, *self._live)}
        for one in [one for one in self._leaving if one.key not in asked]:
            self._answering.unload(one.key)
            self._leaving.remove(one)

    def add(self, request: Request) -> None:
        """Take a request. Raises LorikeetError for one that cannot be answered."""
        engine, prompt = self.engine, len(request.prompt)
        engine.check(request)
        adapter = OWN
        if request.adapter == BASE:
            check_takes(engine.model)
            adapter = BASE
        elif request.adapter is not None:
            adapter = self._find(request.adapter).key
        most = self._reading.room(request.options.num_beams)
        if prompt >= most:
            raise LorikeetError(
                "the prompt leaves no room for a reply in the cache of keys and values",
                given=f"{prompt} tokens",
                allowed=f"fewer than {most}",
            )
        if request.options.num_beams > self.rows:
            raise LorikeetError("more beams than rows", given=request.options.num_beams, allowed=f"at most {self.rows}")
        if any(reply.request.name == request.name for reply in self._replies()):
            raise LorikeetError("two requests have one name", given=request.name, allowed="a name of its own")
        room = min(engine.room(request), most - prompt)
        self._waiting.append(Reply(request, room, engine.tokenizer, engine.template, engine.stop_ids, adapter))
        self.prompt_tokens += prompt

    def _replies(self) -> list[Reply]:
        return [*self._waiting, *(row.reply for row in (*self._entering, *self._live))]

    def cancel(self, name: Hashable) -> None:
        """End a request; its last event comes with the next step. A name that is not there changes nothing."""
        for reply in self._replies():
            if reply.request.name == name:
                reply.reason = "cancelled"
                self._gone += reply.events()
        self._waiting = deque(reply for reply in self._waiting if reply.reason is None)
        self._leave()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One pass over the weights, and what can then be said; [] when there is nothing to do."""
        events, self._gone = self._gone, []
        self._admit()
        self._passes += 1
        if self._entering and not (self._live and self._read_last):
            self._read_last = True
            events += self._read()
        elif self._live:
            self._read_last = False
            events += self._go_on()
        self._leave()
        return events

    def _admit(self) -> None:
        """Give rows and room in the cache to requests that wait, in their order."""
        enough = max(1, min(len(self._waiting), int(REFILL * self.rows))) if self.patient and self._live else 1
        if self.free < enough:
            return
        while self._waiting and self.free >= self._waiting[0].request.options.num_beams:
            reply = self._waiting[0]
            request, options = reply.request, reply.request.options
            text = self._reading.begin(
                request.prompt,
                reply.most,
                (reply.adapter or "").encode(),
                reuse=not (options.deterministic or request.echo),
                shares=not options.deterministic,
                forks=options.num_beams - 1,
            )
            if text is None:
                return
            reply.reused = text.place.length
            self.reused_tokens += reply.reused
            search = BeamSearch(reply) if options.num_beams > 1 else None
            self._entering.append(_Row(reply, [text], search=search))
            self._waiting.popleft()

    def _read(self) -> list[Event]:
        """Read tokens of prompts; those that are read to their end get the first token of their reply."""
        rows, counts = self._to_read()
        self._answering.serve([(rows[0].adapter, 0)])
        starts = [row.text.place.length for row in rows]
        every = any(row.reply.echoes_scores for row in rows)
        read = self._reading.read([row.text for row in rows], counts, every=every)
        echoes = [event for i in range(len(rows)) for event in self._echo(rows[i], starts[i], read, i)]
        ready = [i for i, row in enumerate(rows) if not row.text.unread]
        if not ready:
            return echoes
        done = [rows[i] for i in ready]
        self._entering = [row for row in self._entering if row.text.unread]
        self._live += done
        return echoes + self._take(done, self.engine.model.head.logits(read.states[read.last[ready]]))

    def _echo(self, row: _Row, start: int, read: Read, which: int) -> list[Event]:
        """The prompt, once it was read, where the request asks for it."""
        reply, path = row.reply, read.paths[which]
        if not reply.request.echo:
            return []
        if reply.echoes_scores:
            for some in path.split(ECHOED):
                reply.read(start, self.engine.model.head.logits(read.states[some]))
                start += len(some)
        return [] if row.text.unread else [reply.echoed()]

    def _to_read(self) -> tuple[list[_Row], list[int]]:
        """Rows of one adapter, and how many tokens of each are read now."""
        first = self._entering[0]
        if first.alone:  # the count must follow from its own length
            return [first], [self._count(first, self._slice, self._slice)]
        left = self._slice if self._live and not self.patient else self.prefill_tokens
        rows, counts = list[_Row](), list[int]()
        for row in self._entering:
            if row.alone or row.adapter != first.adapter:
                continue
            count = self._count(row, left, self._slice)
            if rows and count > left:
                break
            rows.append(row)
            counts.append(count)
            left -= count
            if left < PAGE:
                break
        return rows, counts

    def _count(self, row: _Row, left: int, least: int) -> int:
        """Tokens of a row to read where `left` are to be read: what would be a short rest is read, too."""
        unread = row.text.unread
        return unread if row.text.whole or unread <= left + least // 2 else left

    def _go_on(self) -> list[Event]:
        """The next token of the replies that have waited longest for one, of all that can have it in one pass."""
        texts = [text for row in self._live for text in row.texts]
        apart = self._reading.cache is None or any(map(self._reading.outgrows, texts))  # rows of a pass are not these
        groups: dict[object, list[_Row]] = {}
        for row in self._live:
            key = id(row) if row.alone else row.adapter if apart else None
            groups.setdefault(key, []).append(row)
        rows = min(groups.values(), key=lambda group: min(row.last for row in group))
        rows = sorted(rows, key=lambda row: row.adapter or "")
        adapters = [row.adapter for row in rows for _ in row.texts]
        self._answering.serve([(adapter, len(list(some))) for adapter, some in groupby(adapters)])
        states = self._reading.go_on([text for row in rows for text in row.texts])
        return self._take(rows, self.engine.model.head.logits(states))

    def _take(self, rows: Sequence[_Row], logits: Tensor) -> list[Event]:
        """The next token of each reply, from its rows of the logits, and what can then be said."""
        events: list[Event] = []
        starts = list(accumulate((len(row.texts) for row in rows), initial=0))
        plain = [(row, start) for row, start in zip(rows, starts) if row.search is None]
        some = logits if len(plain) == len(rows) else logits[[start for _, start in plain]]
        for (row, _), token in zip(plain, pick_each(some, [row.reply.sampler for row, _ in plain]) if plain else []):
            row.reply.add(token)
            row.text.ids.append(token)
            events += row.reply.events()
        for row, start in zip(rows, starts):
            row.last = self._passes
            if row.search is not None:
                self._search(row, row.search, logits[start : start + len(row.texts)])
                events += row.reply.events() if row.search.done else ()
        self.generated_tokens += len(rows)
        return events

    def _search(self, row: _Row, search: BeamSearch, logits: Tensor) -> None:
        """Continue the beams of a row."""
        parents = search.advance(logits.expand(row.size, -1))
        if search.done:
            row.reply = search.best
            return
        if len(row.texts) == 1:
            parents = [0] * row.size
        before, kept, reading = row.texts, set(parents), self._reading
        for i, text in enumerate(before):
            if i not in kept:
                reading.end(text)
        row.texts = []
        for parent in parents:
            row.texts.append(reading.fork(before[parent]) if parent not in kept else before[parent])
            kept.discard(parent)
        for text, token in zip(row.texts, search.tokens):
            text.ids.append(token)

    def _leave(self) -> None:
        """Rows of replies that have ended become free."""
        for rows in (self._entering, self._live):
            for row in [row for row in rows if row.reply.reason is not None]:
                for text in row.texts:
                    self._reading.end(text)
                rows.remove(row)
        if self._leaving:
            self._let_go()


def _usual_tokens(engine: Engine, rows: int, kv: Kv) -> int:
    """Tokens of a cache of which nobody says how large it is: what the rows usually take, one text of any length, and
    no large part of the memory."""
    model = engine.model
    context = model.shape.max_position
    fits = memory_of(model.device)[1] // SHARE * PAGE // KvCache.bytes_of(model.shape, 1, PAGE, model.dtype, kv)
    return min(max(context, rows * min(context, ROW_TOKENS)), max(fits, ROW_TOKENS))
