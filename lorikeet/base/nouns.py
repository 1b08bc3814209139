"""The nouns that flow through Lorikeet, top to bottom: Conversation -> Example -> Batch.

Shapes, here and everywhere: T tokens in a row, N trained predictions, B rows, D width, H heads,
K key/value heads, E head width, F feed-forward width, V vocabulary, R rank, P prefix length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # commands that only read and write rows start without it
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a conversation came from; rides along for errors and the ledger."""

    file: str
    row: int  # counted from 0 within the file
    line: int | None = None  # counted from 1, where the format has lines

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, user, assistant, tool, or text (a whole raw document)."""

    role: str
    content: str
    trained: bool | None = None  # None: the loss policy decides
    weight: float | None = None  # None: 1 where trained
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None  # who speaks, or which tool answers, as OpenAI's messages have it
    tool_call_id: str | None = None  # which call a tool's message answers
    context: str | None = None  # the end of `content` that is an alpaca row's input, for templates with a word for it


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a person wrote and what the model should answer, before any token exists."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin | None = None
    stride: int | None = None  # of a document: tokens that a window repeats of the one before; None: max_length / 8

    def prompt(self) -> Conversation:
        """The conversation up to, not including, a final assistant message."""
        if self.messages and self.messages[-1].role == "assistant":
            return replace(self, messages=self.messages[:-1])
        return self

    @property
    def reference(self) -> str | None:
        """The final assistant message's text, if the conversation ends with one."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else None


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as token ids. `weights[i]` is the loss weight of predicting `tokens[i]`."""

    tokens: np.ndarray  # [L] int32
    weights: np.ndarray  # [L] float32; weights[0] is always 0: nothing predicts the first token
    origin: Origin | None = None


@dataclass(slots=True)
class Batch:
    """One packed micro-batch (a row). Conversations that share a prefix are laid out depth first.

    Key k is seen by the queries q with `k <= q < visible_until[k]`; that one rule is causal, packed and
    shared-prefix attention. `predict_at` repeats a position where a shared prefix branches. A trained
    token inside a shared prefix carries the sum of the weights of the conversations that share it.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64, rotary position; a branch continues its prefix
    visible_until: Tensor  # [T] int32
    predict_at: Tensor  # [N] int64, which hidden state predicts
    targets: Tensor  # [N] int64, the token it should predict
    weights: Tensor  # [N] float32
    total_weight: float  # sum of weights, known on the host
    source_tokens: int  # tokens of the conversations as rendered alone: sharing does not lower it
    adapter_index: Tensor | None = field(default=None)  # [T] int32: which adapter a token uses (serving)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`; `visible_until` stays on the host, where attention plans."""
        move = {
            name: getattr(self, name).to(device) for name in ("tokens", "positions", "predict_at", "targets", "weights")
        }
        return replace(self, **move)
