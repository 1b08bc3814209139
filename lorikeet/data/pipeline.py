"""Files to prepared examples: read, convert, render, encode, cut, store; streaming, with every loss counted.

All rows go into one store; the split into training and validation is a choice of indices over it. Which
conversations validate follows from the seed and their tokens alone, so rows that are the same never stand on both
sides, and adding rows moves few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BeforeValidator, Field, field_validator

from lorikeet.base.errors import DataError, LorikeetError, TemplateError
from lorikeet.base.files import cache_dir, new_folder, sha256_file
from lorikeet.base.kinds import kind_field
from lorikeet.base.log import progress
from lorikeet.base.nouns import Conversation
from lorikeet.base.rng import derive
from lorikeet.data.dataset import Examples, Writer
from lorikeet.data.files import Advance, source_sha256
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.auto import Auto
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates._contract import Template, TemplateOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.data.truncate import Encoder, Truncation
from lorikeet.tokens._contract import Tokenizer

# raised when the same inputs begin to give other examples: stores made before are then made again
_VERSION = 2
_FIRST_ROWS = 8  # that a format is detected from
_BIG_BYTES = 8 << 20  # files from this size on show a progress bar

Files = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class DataOptions(LossOptions):
    """The recipe's `data`: which files, how they read, how they are rendered, and what is learned."""

    train: Files = Field(
        min_length=1,
        description="Training files: .json .jsonl .csv .parquet .txt, also with .gz.",
        examples=[["mine.json"]],
    )
    validation: float | int | Files | None = Field(
        None,
        description="Held out: a fraction below 1, a number of conversations, or files of their own; null for none.",
    )
    format: kind_field("lorikeet.data.formats", Format) = Field(  # type: ignore[valid-type]
        Auto.model_validate({}),
        description="How rows read: auto, alpaca, sharegpt, messages, columns, text, or your own .py file.",
    )
    template: kind_field("lorikeet.data.templates", TemplateOptions) = Field(  # type: ignore[valid-type]
        Jinja.model_validate({}),
        description="How conversations are rendered: jinja (the model's own), alpaca, chatml, vicuna, or yours.",
    )
    max_length: int = Field(2048, ge=8, description="Longest conversation in tokens; longer ones follow `truncation`.")
    truncation: Truncation = Field(
        "keep_reply",
        description="Longer ones: drop them, cut their end, or keep_reply (shorten the prompt from its start).",
    )
    max_examples: int | None = Field(None, ge=1, description="Use only the first so many rows of the training files.")
    bad_rows: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be used: stop with an error, or skip it and count it."
    )
    cache: bool = Field(
        True, description="Use examples prepared before from the same inputs; false prepares them again."
    )

    @field_validator("validation", mode="before")
    @classmethod
    def _sensible_validation(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, float) and not (0 < value < 1 or value.is_integer())):
            raise ValueError("must be a fraction between 0 and 1, a number of conversations, or a list of files")
        if isinstance(value, (int, float)) and value <= 0:
            raise ValueError("must be at least 1 conversation, a fraction between 0 and 1, or null for none")
        return int(value) if isinstance(value, float) and value >= 1 else value


@dataclass(slots=True)
class Counts:
    """What became of the rows. A conversation that a template lays out once per reply gives several examples."""

    rows: int = 0
    kept: int = 0  # rows with at least one example
    examples: int = 0
    cut: int = 0  # examples shortened to max_length
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> how many
    tokens: int = 0
    trained_tokens: int = 0

    def drop(self, reason: str) -> None:
        """Count one more row or reply that is left out for `reason`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """For counts.json and the run's summary."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        left_out = "".join(f", {count} left out ({reason})" for reason, count in self.dropped.items())
        cut = f", {self.cut} cut to max_length" if self.cut else ""
        return (
            f"{self.rows} rows, {self.examples} examples{cut}{left_out}; "
            f"{self.tokens} tokens, {self.trained_tokens} of them trained"
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples ready to pack."""

    train: Examples
    validation: Examples | None
    counts: Counts  # of the training files, before validation is split off
    validation_counts: Counts | None  # of validation files; None where validation is split off


def prepare(options: DataOptions, tokenizer: Tokenizer, template: Template, *, seed: int) -> Prepared:
    """The examples of `options.train` and of the validation split or files, from the cache or made now.

    Raises DataError and TemplateError for rows that cannot be used (unless bad_rows=skip), and DataError where
    nothing is left to train on or to validate with.
    """
    encoder = Encoder(template, tokenizer, options, options.max_length, options.truncation)
    store = _store(options.train, options, encoder, options.max_examples)
    counts = Counts(**store.counts)
    if options.validation is None:
        return Prepared(store, None, counts, None)
    if isinstance(options.validation, list):
        held_out = _store(options.validation, options, encoder, None)
        return Prepared(store, held_out, counts, Counts(**held_out.counts))
    held = _held_out(store.conversation_hashes, options.validation, seed)
    train, validation = (Examples(store.folder, np.flatnonzero(mask)) for mask in (~held, held))
    return Prepared(train, validation, counts, None)


def conversations(
    files: Sequence[str], format: Format, *, reply: bool = True, bad_rows: str = "error"
) -> Iterator[Conversation]:
    """The conversations of files of any kind. `reply=False`: rows may lack the answer (predict)."""
    for conversation, error in _read(files, format, reply):
        if error is not None and bad_rows == "error":
            raise error
        if conversation is not None:
            yield conversation


def _read(
    files: Sequence[str], format: Format, reply: bool, advance: Advance | None = None
) -> Iterator[tuple[Conversation | None, DataError | None]]:
    """Each row's conversation, or the error of a row that cannot be read. Errors of whole files are raised."""
    for file in files:
        rows = format.rows(file, advance)
        first = list(islice(rows, _FIRST_ROWS))
        settled = format.settle([row for row, _ in first], file)
        for row, origin in chain(first, rows):
            try:
                yield settled.read(row, origin, reply=reply), None
            except DataError as error:
                yield None, error


def _store(files: Sequence[str], options: DataOptions, encoder: Encoder, limit: int | None) -> Examples:
    folder = cache_dir() / "examples" / _key(files, options, encoder, limit)
    if not (options.cache and (folder / "counts.json").is_file()):
        with new_folder(folder) as temporary:
            _write(temporary, files, options, encoder, limit)
    return Examples(folder)


def _key(files: Sequence[str], options: DataOptions, encoder: Encoder, limit: int | None) -> str:
    """A hash over everything that decides the examples, and the file names, because origins name them."""
    kind = str(options.format.kind)
    parts = {
        "version": _VERSION,
        "files": [[file, source_sha256(file)] for file in files],
        "format": [options.format.model_dump(mode="json"), sha256_file(Path(kind)) if kind.endswith(".py") else ""],
        "template": encoder.template.fingerprint,
        "tokenizer": encoder.tokenizer.fingerprint,
        "options": options.model_dump(
            mode="json", include={"loss", "role_weights", "max_length", "truncation", "bad_rows"}
        ),
        "limit": limit,
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _write(folder: Path, files: Sequence[str], options: DataOptions, encoder: Encoder, limit: int | None) -> None:
    counts = Counts()
    writer = Writer(folder)
    with _bytes_bar(files) as advance:
        for conversation, fault in islice(_read(files, options.format, True, advance), limit):
            counts.rows += 1
            error: LorikeetError | None = fault
            if conversation is not None:
                error = _add(conversation, encoder, writer, counts)
            if error is not None:
                if options.bad_rows == "error":
                    raise error
                counts.drop("cannot be used")
    if counts.examples == 0:
        raise DataError(
            "no row is left to learn from",
            given=str(counts),
            allowed="at least one conversation with a trained token",
            try_="a larger data.max_length, or data.truncation=keep_reply",
        )
    writer.close(counts.as_dict())


@contextmanager
def _bytes_bar(files: Sequence[str]) -> Iterator[Advance | None]:
    """A progress bar over the bytes of big files; nothing for small ones."""
    total = sum(Path(file).stat().st_size for file in files)
    if total < _BIG_BYTES:
        yield None
        return
    with progress() as bar:
        task = bar.add_task("preparing data (bytes)", total=total)
        yield lambda count: bar.advance(task, count)


def _add(conversation: Conversation, encoder: Encoder, writer: Writer, counts: Counts) -> LorikeetError | None:
    """Append the conversation's examples, or return the error of one that cannot be used."""
    try:
        pieces = list(encoder.pieces(conversation))
    except TemplateError as error:
        return error
    if all(piece.dropped == "no trained token" for piece in pieces):
        roles = " ".join(message.role for message in conversation.messages)
        return DataError(
            f"{conversation.origin}: no token of this conversation is learned",
            given=f"roles {roles}; data.loss={encoder.loss.loss}",
            allowed="at least one trained message",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.tokens.tobytes())
    conversation_hash = int.from_bytes(digest.digest()[:8], "little")
    before = counts.examples
    for piece in pieces:
        if piece.dropped is not None:
            counts.drop(piece.dropped)
            continue
        writer.add(piece.tokens, piece.weights, conversation.origin, conversation_hash)
        counts.examples += 1
        counts.cut += piece.cut
        counts.tokens += len(piece.tokens)
        counts.trained_tokens += int(np.count_nonzero(piece.weights))
    counts.kept += counts.examples > before
    return None


def _held_out(hashes: np.ndarray, wanted: float | int, seed: int) -> np.ndarray:
    """[examples] bool: which validate. `hashes` [examples] uint64, the same for examples of one conversation."""
    conversations = np.unique(hashes)
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(conversations)))
    if count >= len(conversations):
        raise DataError(
            "data.validation: leaves nothing to train on",
            given=f"{count} of {len(conversations)} different conversations",
            allowed=f"at most {len(conversations) - 1}",
            try_="data.validation=0.1, or more training data",
        )
    order = np.argsort(_mixed(conversations ^ np.uint64(derive(seed, "validation"))), kind="stable")
    return np.isin(hashes, conversations[order[:count]])


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: [n] uint64 to as good as random [n] uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
