"""The recipe's data: its sources, opened, prepared one by one, split and mixed.

Each source has a store of its own, so adding one prepares none of the others again; the split into training and
validation is a choice of indices over all of them. Which conversations validate follows from the seed and their
tokens alone, so rows that are the same never stand on both sides, and adding rows moves few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from lorikeet.base.errors import DataError
from lorikeet.base.kinds import kind_field
from lorikeet.base.log import note
from lorikeet.base.nouns import Example
from lorikeet.base.rng import derive
from lorikeet.data.dataset import Examples
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.auto import Auto
from lorikeet.data.loss import LossOptions
from lorikeet.data.mix import MixOptions, Mixture
from lorikeet.data.rows import Counts, store
from lorikeet.data.sources import Opened, Sources, check_sources, open_all, say_validation, validation_of
from lorikeet.data.system_prompt import shared
from lorikeet.data.templates._contract import Template, TemplateOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.data.truncate import Encoder, Truncation
from lorikeet.tokens._contract import Tokenizer

MOST_TURNS = 1 << 20  # that are counted before a run begins: a second or two
LEAST_LENGTH = 8  # tokens: fewer hold no question and its answer


class DataOptions(LossOptions):
    """The recipe's `data`: which sources, how they read, how they are rendered, and what is learned."""

    train: Sources = Field(
        min_length=1,
        description="Training data: files (.json .jsonl .csv .parquet .txt .md, also with .gz), folders, URLs, "
        "`hf:org/name`; or mappings with the options of a source.",
        examples=[["mine.json"]],
    )
    mix: MixOptions = Field(default_factory=MixOptions, description="How sources with weights are mixed.")
    validation: float | int | Literal["auto"] | Sources | None = Field(
        "auto",
        description="Held out: a fraction below 1, a number of conversations, or sources of their own; null for none; "
        "auto: the validation split (else the test split) of a folder in `train`, where it has one.",
    )
    format: kind_field("lorikeet.data.formats", Format) = Field(  # type: ignore[valid-type]
        Auto.model_validate({}),
        description="How rows read: a format's name, alone or with its options, or your own .py file.",
    )
    template: kind_field("lorikeet.data.templates", TemplateOptions) = Field(  # type: ignore[valid-type]
        Jinja.model_validate({}),
        description="How conversations are rendered: jinja (the model's own template), another kind, or your .py file.",
    )
    max_length: int = Field(
        2048, ge=LEAST_LENGTH, description="Longest conversation in tokens; longer ones follow `truncation`."
    )
    truncation: Truncation = Field(
        "keep_reply",
        description="Longer ones: drop them, cut their end, or keep_reply (shorten the prompt from its start; cut a "
        "document into windows that lose nothing).",
    )
    max_examples: int | None = Field(None, ge=1, description="Use only the first so many rows of the training files.")
    bad_rows: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be used: stop with an error, or skip it and count it."
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Processes that prepare a file; null: one a core for files of 8 MiB and more, one for others.",
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples ready to pack."""

    train: Examples | Mixture
    validation: Examples | Mixture | None
    counts: Counts  # of the training sources, before validation is split off
    validation_counts: Counts | None  # of validation sources; None where validation is split off
    sources: list[dict[str, Any]]  # name, weight, passes (per epoch) and counts of each training source
    system: str | None = None  # the system prompt that the training conversations share

    @property
    def epoch_examples(self) -> int:
        """How many examples an epoch draws."""
        return self.train.epoch_examples if isinstance(self.train, Mixture) else len(self.train)

    @property
    def foreseen_examples(self) -> int:
        """How many of an epoch's examples can be looked at beforehand: the turns of a mix are counted one by one."""
        mixed = isinstance(self.train, Mixture) and self.train.turns is not None
        return min(self.epoch_examples, MOST_TURNS) if mixed else self.epoch_examples

    def preview(self) -> Iterator[Example]:
        """The training examples, of several sources in turn, for eyes."""
        parts = self.train.parts if isinstance(self.train, Mixture) else [self.train]
        return (example for row in zip_longest(*parts) for example in row if example is not None)

    def as_dict(self) -> dict[str, Any]:
        """For the run's summary."""
        return self.counts.as_dict() | ({"sources": self.sources} if len(self.sources) > 1 else {})

    def __str__(self) -> str:
        lines = [str(self.counts)]
        for one in self.sources if len(self.sources) > 1 else []:
            weight = "" if one["weight"] is None else f"weight {one['weight']:g}, {one['passes']:.3g} passes an epoch; "
            lines.append(f"  {one['source']}: {weight}{Counts(**one['counts'])}")
        if isinstance(self.train, Mixture) and self.train.turns is not None:
            lines.append(f"  an epoch draws {self.epoch_examples} examples")
        return "\n".join(lines)


def prepare(options: DataOptions, tokenizer: Tokenizer, template: Template, *, seed: int) -> Prepared:
    """The examples of `options.train` and of the validation split or sources, from the cache or made now.

    Raises DataError and TemplateError for rows that cannot be used (unless bad_rows=skip), DataError where nothing is
    left to train on or to validate with, and DownloadError for a source that cannot be fetched.
    """
    check_sources(options)
    encoder = Encoder(template, tokenizer, options, options.max_length, options.truncation)
    opened = open_all(options.train)
    say_validation(options)
    wanted = validation_of(options)
    held_out = open_all(wanted) if isinstance(wanted, list) else []  # looked at before anything is read
    stores = _stores(opened, options, encoder, options.max_examples)
    opened = opened[: len(stores)]
    train, validation, held_counts = stores, None, None
    if isinstance(wanted, list):
        held_stores = _stores(held_out, options, encoder, None)
        validation, held_counts = _joined(held_stores), _sum(held_stores)
    elif wanted is not None:
        train, parts = _split(stores, wanted, seed)
        validation = _joined(parts)
    mixed = _mixed_sources(train, opened, options)
    passes = mixed.passes() if isinstance(mixed, Mixture) else [1.0]
    sources = [
        {"source": one.title, "weight": one.options.weight, "passes": times, "counts": made.counts}
        for one, times, made in zip(opened, passes, stores)
    ]
    system = shared([one.system for one in stores])
    return Prepared(mixed, validation, _sum(stores), held_counts, sources, system)


def _stores(opened: Sequence[Opened], options: DataOptions, encoder: Encoder, limit: int | None) -> list[Examples]:
    """Each source's examples; `limit` is of the rows of all of them, in order."""
    stores: list[Examples] = []
    left = limit
    for one in opened:
        if left == 0:
            note(f"{one.title}: not read, data.max_examples={limit} is reached before it")
            break
        limits = [most for most in (left, one.options.max_examples) if most is not None]
        format = one.options.format or options.format
        stores.append(store(one.files, format, options, encoder, min(limits, default=None)))
        left = None if left is None else left - stores[-1].counts["rows"]
    return stores


def _mixed_sources(parts: Sequence[Examples], opened: Sequence[Opened], options: DataOptions) -> Examples | Mixture:
    """The sources as one training set. Raises DataError where validation took all of a source with a weight."""
    weights = [one.options.weight for one in opened if one.options.weight is not None]
    if not weights:
        return _joined(parts)
    for one, part in zip(opened, parts):
        if not len(part):
            raise DataError(
                f"data.validation: takes every conversation of {one.title}, which has a weight in the mix",
                given=f"{part.counts['examples']} examples in that source",
                allowed="at least one example left in each source",
                try_="a smaller data.validation, or the source without a weight",
            )
    return Mixture(parts, weights, options.mix.epoch)


def _joined(stores: Sequence[Examples]) -> Examples | Mixture:
    return stores[0] if len(stores) == 1 else Mixture(stores)


def _split(stores: Sequence[Examples], wanted: float | int, seed: int) -> tuple[list[Examples], list[Examples]]:
    """(training, validation), one of each per store."""
    held = held_out(np.concatenate([one.conversation_hashes for one in stores]), wanted, seed)
    masks = np.split(held, np.cumsum([len(one) for one in stores])[:-1])
    train, validation = (
        [Examples(one.folder, np.flatnonzero(mask == side)) for one, mask in zip(stores, masks)]
        for side in (False, True)
    )
    return train, validation


def _sum(stores: Sequence[Examples]) -> Counts:
    total = Counts()
    for one in stores:
        total.add(Counts(**one.counts))
    return total


def held_out(hashes: np.ndarray, wanted: float | int, seed: int) -> np.ndarray:
    """[examples] bool: which validate under data.validation=`wanted`.

    `hashes` [examples] uint64, the same for examples of one conversation."""
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
