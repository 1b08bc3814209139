"""Replies one after the other: what the last ones read is in the cache, so a turn of a chat reads what is new."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorikeet.infer.answering_linears import BASE
from lorikeet.infer.batch import Batch
from lorikeet.infer.engine import Engine
from lorikeet.infer.reply import Event, Request
from lorikeet.infer.sampling import GenerateOptions

LEAST_TOKENS = 2048  # of the cache at first; it doubles as a conversation grows


class OneByOne:
    """A batch for one request at a time, made anew where one asks for more room, or was broken off."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.folders: dict[str, Path] = {}  # of adapters that requests may name
        self._batch: Batch | None = None
        self._made_for: tuple[int, object] | None = None

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of one request. Whatever breaks it off, Ctrl-C too, leaves nothing half done behind."""
        batch = self._for(request)
        batch.add(request)
        try:
            while batch.busy:
                yield from batch.step()
        except BaseException:
            self.close()
            raise

    def load(self, name: str, folder: Path) -> None:
        """Read an adapter's folder, for requests that name it. Raises LorikeetError for one that does not fit, and for
        a name that is taken."""
        if self._batch is None:
            self._batch = self._make(GenerateOptions(), LEAST_TOKENS)
        self._batch.load_adapter(name, folder)
        self.folders[name] = folder

    @property
    def names(self) -> list[str]:
        """What a request may name besides None, the model as it was opened."""
        return [BASE, *self.folders]

    def close(self) -> None:
        """Give back the cache; the next request makes another."""
        if self._batch is not None:
            self._batch.close()
            self._batch = None

    def _for(self, request: Request) -> Batch:
        """The batch, with room for this request."""
        options = request.options
        self.engine.check(request)
        needed = (len(request.prompt) + self.engine.room(request)) * options.num_beams
        kept = self._batch
        if kept is not None and kept.cache_tokens >= needed and self._made_for == _way(options):
            return kept
        self.close()
        tokens = LEAST_TOKENS
        while tokens < needed:
            tokens *= 2
        self._batch = self._make(options, tokens)
        return self._batch

    def _make(self, options: GenerateOptions, tokens: int) -> Batch:
        self._made_for = _way(options)
        batch = Batch(self.engine, rows=options.num_beams, cache_tokens=tokens, dequantize=options.dequantize)
        for name, folder in self.folders.items():
            batch.load_adapter(name, folder)
        return batch


def _way(options: GenerateOptions) -> tuple[int, object]:
    """The options that a batch is made for."""
    return options.num_beams, options.dequantize
