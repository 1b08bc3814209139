"""Rows to stored examples, a few hundred at a time: texts are encoded together, and processes share the work.

One row after the other is what preparing means; here it only happens faster. A conversation whose shape has a plan
(`shapes.py`) is filled in, the others go through `truncate.Encoder`; both come out in the order they came in, with the
errors that they would have had alone. What is in memory is one chunk of rows for each process, and a few on their way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from lorikeet.base.errors import DataError, LorikeetError
from lorikeet.base.nouns import Conversation, Origin
from lorikeet.data.formats._contract import Format
from lorikeet.data.shapes import Asked, Plan, Plans, fill, texts
from lorikeet.data.system_prompt import LOOKED_AT, system_of
from lorikeet.data.truncate import Encoder
from lorikeet.data.workers import in_order

Rows = list[tuple[dict[str, Any], Origin]]

_CHUNK = 256  # rows
_FIRST_ROWS = 8  # that a format is detected from


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a row."""

    origin: Origin
    examples: tuple[tuple[bytes, bytes, bool], ...] = ()  # ids (int32), weights (float32), whether it was cut
    dropped: tuple[str, ...] = ()  # why a layout of it gave no example
    conversation_hash: int = 0
    error: LorikeetError | None = None  # why nothing of it can be used
    fatal: bool = False  # an error that is not this row's alone
    system: str | None = None  # what the conversation begins with, of a file's first `LOOKED_AT` rows only


class Coder:
    """Encodes chunks of rows; learns the shapes that it meets."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._plans = Plans(encoder.template, encoder.tokenizer, encoder.loss)

    def rows(self, rows: Rows, format: Format) -> list[Done]:
        """What becomes of each row."""
        done: list[Done | None] = []
        waiting: list[tuple[int, Conversation, Plan, list[str]]] = []
        systems: dict[int, str] = {}
        for row, origin in rows:
            try:
                conversation = format.read(row, origin)
            except DataError as error:
                done.append(Done(origin, error=error))
                continue
            if origin.row < LOOKED_AT and (system := system_of(conversation)):
                systems[len(done)] = system
            plan = self._plans.of(conversation)
            asked = None if plan is None else texts(plan, conversation)
            if plan is None or asked is None:
                done.append(self._alone(conversation, origin))
                continue
            waiting.append((len(done), conversation, plan, asked))
            done.append(None)
        for (place, conversation, _, _), made in zip(waiting, self._filled(waiting)):
            origin = rows[place][1]
            done[place] = self._short_enough(*made, origin) or self._alone(conversation, origin)
        found = [one for one in done if one is not None]
        for place, system in systems.items():
            found[place] = replace(found[place], system=system)
        return found

    def _filled(self, waiting: Sequence[tuple[int, Conversation, Plan, list[str]]]) -> list[tuple[bytes, bytes]]:
        """Ids and weights of each conversation: all their texts are encoded at once."""
        parts = [part for _, _, plan, _ in waiting for part in plan if isinstance(part, Asked)]
        listed = [text for _, _, _, asked in waiting for text in asked]
        found: list[bytes] = [b""] * len(parts)
        for after in {part.after for part in parts}:
            places = [place for place, part in enumerate(parts) if part.after == after]
            encoded = self.encoder.tokenizer.encode_many([listed[place] for place in places], after=after)
            for place, ids in zip(places, encoded):
                found[place] = ids
        made, at = [], 0
        for _, _, plan, asked in waiting:
            made.append(fill(plan, found[at : at + len(asked)]))
            at += len(asked)
        return made

    def _short_enough(self, tokens: bytes, weights: bytes, origin: Origin) -> Done | None:
        """The row as one example; None where it is too long or where nothing of it is learned."""
        if len(tokens) > 4 * self.encoder.max_length or weights.count(0) == len(weights):
            return None
        return Done(origin, ((tokens, weights, False),), (), conversation_hash((tokens,)))

    def _alone(self, conversation: Conversation, origin: Origin) -> Done:
        try:
            pieces, unusable = self.encoder.usable(conversation)
        except LorikeetError as error:
            return Done(origin, error=error, fatal=True)
        if unusable is not None:
            return Done(origin, error=unusable)
        kept = tuple((one.tokens.tobytes(), one.weights.tobytes(), one.cut) for one in pieces if one.dropped is None)
        dropped = tuple(one.dropped for one in pieces if one.dropped is not None)
        return Done(origin, kept, dropped, conversation_hash(one.tokens.tobytes() for one in pieces))


def conversation_hash(parts: Iterable[bytes]) -> int:
    """64 bits of the ids (int32) of a conversation's examples; the split into training and validation goes by it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little")


def examples_of(
    file: str, format: Format, coder: Coder, advance: Callable[[int], None] | None, limit: int | None, workers: int
) -> Generator[Done, None, None]:
    """What becomes of each of the first `limit` rows of a file, in order. Raises what reading the file raises."""
    rows = format.rows(file, advance)
    first = list(islice(rows, _FIRST_ROWS))
    settled = format.settle([row for row, _ in first], file)
    chunks = _chunks(islice(chain(first, rows), limit))
    for done in in_order(chunks, lambda chunk: coder.rows(chunk, settled), workers):
        yield from done


def _chunks(rows: Iterator[tuple[dict[str, Any], Origin]]) -> Iterator[Rows]:
    """Lists of rows. Where reading fails, the rows before come first."""
    chunk: Rows = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except LorikeetError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
