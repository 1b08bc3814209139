"""Which rows and which layer made a number that is not finite: the step's rows are run once more, cut in half again
and again. Nothing moves, and it takes a few forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorikeet.base.nouns import Batch, Example
from lorikeet.base.rng import derive
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.halves import conversations, halves
from lorikeet.train.noise import NoiseOptions
from lorikeet.train.optim import Stepper
from lorikeet.train.step import batch_loss

MOST = 8  # rows that are named


@dataclass(frozen=True)
class Culprit:
    rows: list[str]  # where the conversations are from: file and line
    layer: str | None  # the first part of the network whose numbers were not finite, or whose gradient was not

    def line(self) -> str:
        """`data.jsonl:7, in model.layers.3.mlp`."""
        named = ", ".join(self.rows[:3]) + (f" and {len(self.rows) - 3} more" if len(self.rows) > 3 else "")
        return ", in ".join(filter(None, (named or "no single row", self.layer)))


def find(
    model: CausalLM,
    stepper: Stepper,
    parts: Sequence[tuple[str, Batch]],
    *,
    seed: int,
    noise: NoiseOptions,
    examples: Sequence[Example],
) -> Culprit:
    """Look for it. `parts` are the step's micro-batches by name; `examples` its conversations."""
    layers: list[str] = []

    def bad(name: str, row: Batch) -> bool:
        layer = _wrong(model, stepper, row, derive(seed, "micro-batch", name), seed, noise)
        if layer is not None:
            layers.append(layer)
        return layer is not None

    try:
        rows = [row for name, whole in parts if bad(name, whole) for row in _smallest(whole, name, bad)][:MOST]
    finally:
        stepper.clear()
    origins = [str(one.origin) for row in rows for one in examples if one.origin is not None and _is_in(one, row)]
    return Culprit(list(dict.fromkeys(origins))[:MOST], layers[-1] if layers else None)


def _smallest(row: Batch, name: str, bad: Callable[[str, Batch], bool]) -> list[Batch]:
    """The smallest parts of a bad row that are bad by themselves."""
    parts = halves(row)
    found = [part for part in parts or () if bad(name, part)]
    if not found:  # one conversation, or several that are bad only together
        return [row]
    return [one for part in found for one in _smallest(part, name, bad)][:MOST]


def _wrong(model: CausalLM, stepper: Stepper, row: Batch, draws: int, seed: int, noise: NoiseOptions) -> str | None:
    """Where the row's numbers stop being finite; None where they never do."""
    stepper.clear()
    torch.manual_seed(draws)
    with _first_not_finite(model) as found:
        loss = batch_loss(model, row.to(model.device), noise, seed).loss / max(row.total_weight, 1e-30)
    if not torch.isfinite(loss):
        return found[0] if found else "the head"
    stepper.backward(loss)
    bad = [
        name
        for name, parameter in stepper.parameters.items()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    return f"the gradient of {bad[-1]}" if bad else None


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """While the block runs, modules whose result is not finite are listed, the innermost first."""
    found: list[str] = []
    handles = []

    def watcher(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, result: Any) -> None:
            tensors = result if isinstance(result, tuple | list) else (result,)
            if any(isinstance(one, Tensor) and one.is_floating_point() and not one.isfinite().all() for one in tensors):
                found.append(name)

        return look

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(watcher(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_in(example: Example, row: Batch) -> bool:
    """Whether the row has this conversation, whole or as the beginning of another."""
    wanted = torch.from_numpy(example.tokens.astype("int64"))
    return any(
        len(index) >= len(wanted) and torch.equal(row.tokens[index[: len(wanted)]], wanted)
        for index in conversations(row)
    )
