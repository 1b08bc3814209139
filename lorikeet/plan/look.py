"""What a set of training data is like, from reading its rows and encoding a sample: the facts that a recipe needs.

Every row is read up to MOST_ROWS of a file (behind that their number is estimated from the bytes), and a random sample
is encoded by the model's tokenizer. The chat template is part of the look: of those that suit the tokenizer, the first
that can say every conversation of the sample.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lorikeet.base.errors import DataError, LorikeetError, TemplateError
from lorikeet.base.kinds import kind_class
from lorikeet.base.nouns import Conversation
from lorikeet.data.formats.auto import Auto
from lorikeet.data.loss import LossOptions
from lorikeet.data.sources import open_all
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.data.templates._suits import suiting
from lorikeet.data.truncate import Encoder
from lorikeet.tokens._contract import Tokenizer

MOST_ROWS = 200_000  # read of each file
SAMPLE = 2_000  # conversations that are encoded
TRIED = 64  # of those, how many decide the template
_FIRST_ROWS = 8
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}|<\|?(?:YOUR|INSERT)[ _]\w+\|?>")
_WITHOUT_LIMIT = 1 << 30  # tokens


@dataclass
class Rows:
    """What reading gave, before any token exists."""

    formats: list[str] = field(default_factory=list)  # kinds, each once
    rows: int = 0
    estimated: bool = False  # `rows` counts some that were not read
    read: int = 0  # rows that gave a conversation
    unreadable: int = 0
    first_fault: LorikeetError | None = None
    sample: list[Conversation] = field(default_factory=list)
    documents: int = 0  # rows that are plain text
    turns: int = 0  # rows with more than one question
    tools: int = 0
    placeholders: Counter[str] = field(default_factory=Counter)  # {{name}} -> how many rows have it
    hashes: set[bytes] = field(default_factory=set)

    def add(self, conversation: Conversation, generator: random.Random) -> None:
        """Count one conversation, and keep it with the probability that makes the sample uniform."""
        messages = conversation.messages
        self.read += 1
        self.documents += messages[0].role == "text"
        self.turns += sum(message.role == "user" for message in messages) > 1
        self.tools += bool(conversation.tools) or any(message.tool_calls for message in messages)
        texts = [message.content for message in messages]
        for name in {match[0] for text in texts for match in _PLACEHOLDER.finditer(text)}:
            self.placeholders[name] += 1
        self.hashes.add(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest())
        if len(self.sample) < SAMPLE:
            self.sample.append(conversation)
        elif (place := generator.randrange(self.read)) < SAMPLE:
            self.sample[place] = conversation


@dataclass(frozen=True)
class Look:
    """What a recipe is chosen from. Lengths are of the encoded sample, as long as conversations are by themselves."""

    rows: Rows
    template: str  # a kind of data/templates
    own_template: bool  # the model's own chat template, or one written with its control tokens
    refused: dict[str, str]  # template -> why it cannot say some conversation of the sample
    lengths: np.ndarray  # [n] int64: tokens of each conversation, control tokens included
    trained: np.ndarray  # [n] int64: of those, the learned ones
    reply_lengths: np.ndarray  # [n] int64: tokens of the last reply
    json_share: float  # of last replies that are a JSON object or list
    unusable: int  # of the sample, conversations that the template cannot say

    @property
    def documents(self) -> bool:
        """Whether most rows are plain text."""
        return 2 * self.rows.documents > self.rows.read

    @property
    def distinct(self) -> int:
        """Different conversations."""
        share = len(self.rows.hashes) / max(1, self.rows.read)
        return max(1, round(share * self.rows.rows)) if self.rows.estimated else len(self.rows.hashes)

    def percentile(self, share: float) -> int:
        """The length that `share` of the conversations do not exceed."""
        return int(np.quantile(self.lengths, share, method="higher"))


def look(sources: Sequence[str], tokenizer: Tokenizer) -> Look:
    """Read and encode. Raises DataError for what cannot be opened, and where no row can be used at all."""
    rows = read(sources)
    if not rows.sample:
        assert rows.first_fault is not None  # a file without rows is an error of its own
        raise rows.first_fault
    kind, refused = choose_template(rows, tokenizer)
    return _encode(rows, kind, refused, tokenizer)


def read(sources: Sequence[str]) -> Rows:
    """The rows of files, folders and whatever else `data.train` can name."""
    found, generator = Rows(), random.Random(0)
    for opened in open_all(list(sources)):
        for file in opened.files:
            _read_file(file, found, generator)
    return found


def _read_file(file: str, found: Rows, generator: random.Random) -> None:
    consumed = [0]

    def advance(count: int) -> None:
        consumed[0] += count

    auto = Auto.model_validate({})
    rows = auto.rows(file, advance)
    first = list(islice(rows, _FIRST_ROWS))
    settled = auto.settle([row for row, _ in first], file)
    kind = str(settled.model_dump()["kind"])
    found.formats += [] if kind in found.formats else [kind]
    number = 0
    for number, (row, origin) in enumerate(chain(first, rows), 1):
        try:
            found.add(settled.read(row, origin), generator)
        except DataError as error:
            found.unreadable += 1
            found.first_fault = found.first_fault or error
        if number == MOST_ROWS:
            total = number * Path(file).stat().st_size // max(1, consumed[0])
            found.estimated |= total > number
            number = max(number, total)
            break
    found.rows += number


def choose_template(rows: Rows, tokenizer: Tokenizer) -> tuple[str, dict[str, str]]:
    """(kind, why those before it were passed over). Raises TemplateError where none can say any conversation.

    First the model's own, then kinds written with its control tokens, then a layout in plain text that any model can
    learn: instruction and response for single questions, named speakers for several turns."""
    own, text = suiting(tokenizer)
    preferred = ["vicuna", "alpaca"] if rows.turns else ["alpaca", "vicuna"]
    plain = [kind for kind in preferred if kind in text]
    candidates = list(dict.fromkeys([*(["jinja"] if "jinja" in own else []), *own, *plain]))
    tried = rows.sample[:TRIED]
    refused: dict[str, str] = {}
    failures: dict[str, int] = {}
    fault: TemplateError | None = None
    for kind in candidates:
        try:
            encoder = _encoder(kind, tokenizer)
        except TemplateError as error:
            refused[kind], fault = error.what, fault or error
            continue
        failures[kind] = 0
        for conversation in tried:
            try:
                _whole(encoder, conversation)
            except LorikeetError as error:
                failures[kind] += 1
                refused.setdefault(kind, error.what)
                if isinstance(error, TemplateError):
                    fault = fault or error
        if not failures[kind]:
            break
    if not failures or min(failures.values()) == len(tried):
        raise fault or TemplateError("no template can say these conversations", given=" ".join(candidates))
    chosen = min(failures, key=lambda kind: failures[kind])  # of equals, the first
    refused.pop(chosen, None)
    return chosen, refused


def _encode(rows: Rows, kind: str, refused: dict[str, str], tokenizer: Tokenizer) -> Look:
    encoder = _encoder(kind, tokenizer)
    lengths, trained, replies, as_json, unusable = [], [], [], 0, 0
    for conversation in rows.sample:
        try:
            length, learned = _whole(encoder, conversation)
        except LorikeetError:
            unusable += 1
            continue
        lengths.append(length)
        trained.append(learned)
        reference = conversation.reference
        if reference is not None:
            replies.append(len(tokenizer.encode(reference)[0]))
            as_json += _is_json(reference)
    own, _ = suiting(tokenizer)
    return Look(
        rows, kind, kind in own, refused, np.array(lengths, np.int64), np.array(trained, np.int64),
        np.array(replies, np.int64), as_json / max(1, len(replies)), unusable,
    )  # fmt: skip


def _encoder(kind: str, tokenizer: Tokenizer) -> Encoder:
    options = kind_class("lorikeet.data.templates", TemplateOptions, kind).model_validate({"kind": kind})
    return Encoder(options.bind(tokenizer), tokenizer, LossOptions(), _WITHOUT_LIMIT, "drop")


def _whole(encoder: Encoder, conversation: Conversation) -> tuple[int, int]:
    """(tokens, learned tokens) of a conversation of any length. Raises DataError where nothing is learned."""
    pieces = [piece for piece in encoder.pieces(conversation) if piece.dropped is None]
    if not pieces:
        raise DataError(f"{conversation.origin}: no token of this conversation is learned")
    return max(len(piece.tokens) for piece in pieces), sum(int(np.count_nonzero(piece.weights)) for piece in pieces)


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict | list)
