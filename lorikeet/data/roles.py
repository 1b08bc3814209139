"""Who says each token of a prepared example: for measuring by role.

The store keeps ids and loss weights alone. The conversations are read and rendered once more, this time with a number
for each role in the place of the weights, and found again by where they came from and by their ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lorikeet.base.log import no_lines
from lorikeet.base.nouns import Conversation, Example
from lorikeet.data.loss import LossOptions
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.rows import conversations
from lorikeet.data.sources import open_all, validation_of
from lorikeet.data.templates._contract import Template
from lorikeet.data.truncate import Encoder
from lorikeet.tokens._contract import Tokenizer

ROLES = ("markup", "system", "user", "assistant", "tool", "text")  # a token's number is its role's place, from 1
_CODES = {role: float(code) for code, role in enumerate(ROLES, 1) if role != "markup"}
_AS_CODES = LossOptions.model_validate({"loss": "all", "role_weights": _CODES})


def roles_of(
    examples: Sequence[Example], options: DataOptions, tokenizer: Tokenizer, template: Template
) -> Iterator[np.ndarray | None]:
    """For each example the place in ROLES of each of its tokens [L] int64, or None where its conversation was cut
    otherwise than it is here."""
    wanted = {(one.origin.file, one.origin.row) for one in examples if one.origin is not None}
    found = dict(_rendered(options, wanted, Encoder(template, tokenizer, _AS_CODES, options.max_length, "keep_reply")))
    for one in examples:
        where = None if one.origin is None else (one.origin.file, one.origin.row)
        pieces = found.get(where, []) if where is not None else []
        yield next((codes for tokens, codes in pieces if np.array_equal(tokens, one.tokens)), None)


def asked_of(
    examples: Sequence[Example], options: DataOptions, tokenizer: Tokenizer, template: Template
) -> Sequence[Example]:
    """The examples with the replies as all that is trained: what stands before the last one is a prompt to answer.
    Where more than replies is learned, the trained tokens do not say where a reply begins. An example without one, or
    whose conversation was cut otherwise, stays as it is."""
    if options.loss in ("replies", "last_reply"):
        return examples
    said = ROLES.index("assistant")
    made = []
    with no_lines():
        known = list(roles_of(examples, options, tokenizer, template))
    for one, roles in zip(examples, known):
        weights = one.weights if roles is None else np.where(roles == said, one.weights, 0).astype(one.weights.dtype)
        made.append(replace(one, weights=weights) if weights.any() else one)
    return made


Where = tuple[str, int]
Coded = tuple[np.ndarray, np.ndarray]


def _rendered(options: DataOptions, wanted: set[Where], encoder: Encoder) -> Iterator[tuple[Where, list[Coded]]]:
    held_out, left = validation_of(options), set(wanted)
    for source in open_all(held_out if isinstance(held_out, list) else options.train):
        files = [file for file in source.files if any(Path(file) == Path(name) for name, _ in wanted)]
        format = source.options.format or options.format
        read: Iterable[Conversation] = conversations(files, format, bad_rows="skip")
        for one in read:
            where = None if one.origin is None else (one.origin.file, one.origin.row)
            if where is None or where not in wanted:
                continue
            # what a message says of its own weight would overrule the codes
            bare = replace(one, messages=tuple(replace(said, trained=None, weight=None) for said in one.messages))
            pieces, _ = encoder.usable(bare)
            yield where, [(piece.tokens, _codes(piece.weights)) for piece in pieces if piece.dropped is None]
            left.discard(where)
            if not left:  # the rest of a large file is not read for nothing
                return


def _codes(weights: np.ndarray) -> np.ndarray:
    codes = np.maximum(weights.astype(np.int64) - 1, 0)
    if len(codes) > 1:
        codes[0] = 0  # nothing predicts the first token, whoever says it
    return codes
