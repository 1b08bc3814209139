"""Why a kind loses what it loses: how large its errors are, and what errors of that size do to the loss elsewhere.

For each way of rounding the linears of a model, in float32:

    size      |W' - W| / |W|, over all weights
    output    |x (W' - W)^T| / |x W^T|, over all linears, for the inputs x that the rows give them in the dense model
    loss      of the whole model with all linears rounded, and the change

The ways are the kinds; nf4 of -W (its 16 numbers are not symmetric: as good a quantiser, with other errors) and nf4
with a random sign for each block; noise of each kind's size in every block; and the kinds on q, k and v alone, on all
else, and in all columns of a weight but the one that meets its largest input. Several draws of what is random say how
much of a difference between two kinds is chance.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from quant_figures import markdown
from torch import Tensor

from lorikeet import api
from lorikeet.base.nouns import Batch
from lorikeet.base.rng import derive
from lorikeet.config import Recipe
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import LinearGroup
from lorikeet.quant._contract import Quant
from lorikeet.quant.fp4 import FP4
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant
from lorikeet.train.evaluate import evaluate

Way = Callable[[Tensor, torch.Generator], Tensor]
BLOCK, ROWS, ROW_TOKENS = 64, 16, 1280


def rounded(quant: Quant) -> Way:
    """As the kind keeps it."""
    return lambda weight, _: quant.freeze(weight).dense(torch.float32)


def flipped(quant: Quant) -> Way:
    """The kind on -W."""
    return lambda weight, _: -quant.freeze(-weight).dense(torch.float32)


def randomly_flipped(quant: Quant) -> Way:
    """The kind on W with a random sign for each block."""

    def way(weight: Tensor, generator: torch.Generator) -> Tensor:
        rows, width = weight.shape
        signs = torch.randint(0, 2, (rows, -(-width // BLOCK)), generator=generator) * 2.0 - 1
        signs = signs.repeat_interleave(BLOCK, dim=1)[:, :width]
        return quant.freeze(weight * signs).dense(torch.float32) * signs

    return way


def noise_of(quant: Quant) -> Way:
    """Normal noise as large as the kind's error in each block."""

    def way(weight: Tensor, generator: torch.Generator) -> Tensor:
        squares = (quant.freeze(weight).dense(torch.float32) - weight).square()
        size = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in squares.split(BLOCK, dim=1)], dim=1)
        return weight + torch.randn(weight.shape, generator=generator) * size.sqrt()

    return way


@dataclass(frozen=True)
class Rounding:
    """A way, where: in the groups whose first linear's name has `pattern`, and, in each, in all columns but those that
    meet the `spared` largest inputs."""

    way: Way
    pattern: str = ""
    spared: int = 0


def roundings() -> dict[str, Rounding]:
    """All, by their names in the table."""
    nf4, fp4 = NF4.model_validate({}), FP4.model_validate({})
    found: dict[str, Way] = {"dense": lambda weight, _: weight, "int8": rounded(Int8.model_validate({}))}
    found |= {"fp4": rounded(fp4), "nf4": rounded(nf4), "nf4 of -W": flipped(nf4)}
    found |= {f"nf4, random signs, draw {draw}": randomly_flipped(nf4) for draw in (1, 2)}
    for name, quant in (("nf4", nf4), ("fp4", fp4)):
        found |= {f"noise of {name}'s size, draw {draw}": noise_of(quant) for draw in (1, 2)}
    everything = {name: Rounding(way) for name, way in found.items()}
    three = ("fp4", "nf4", "nf4 of -W")
    everything |= {f"{name}, q, k, v alone": Rounding(found[name], "q_proj") for name in three}
    everything |= {f"{name}, all but q, k, v": Rounding(found[name], "(?<!q)_proj") for name in three}
    everything |= {f"{name}, all but the largest input's column": Rounding(found[name], spared=1) for name in three}
    return everything


def size_of(error: Tensor, weight: Tensor) -> tuple[float, float]:
    """The two sums of squares whose ratio is a relative error's square."""
    return error.square().sum().item(), weight.square().sum().item()


def output_of(error: Tensor, weight: Tensor, inputs: Tensor) -> tuple[float, float]:
    """The same of the outputs for `inputs`, the sum of x^T x [in, in]."""
    return ((error @ inputs) * error).sum().item(), ((weight @ inputs) * weight).sum().item()


def root_ratio(sums: Sequence[tuple[float, float]]) -> float:
    """Of all sums together."""
    return (sum(one for one, _ in sums) / sum(other for _, other in sums)) ** 0.5


def inputs_of(model: CausalLM, rows: Sequence[Batch]) -> dict[str, Tensor]:
    """Of each group, by its first linear's name: the sum of x^T x over the rows."""
    found: dict[str, Tensor] = {}
    plain = LinearGroup.forward

    def forward(self: LinearGroup, x: Tensor, prologue: Any = None) -> Tensor:
        seen = (x if prologue is None else prologue.forward(x)[0]).float()
        name = self.linears[0].name
        found[name] = found.get(name, torch.zeros(())) + seen.T @ seen
        return plain(self, x, prologue)

    LinearGroup.forward = forward  # type: ignore[method-assign]
    try:
        evaluate(model, rows)
    finally:
        LinearGroup.forward = plain  # type: ignore[method-assign]
    return found


def measured(model: CausalLM, rows: Sequence[Batch]) -> Iterator[tuple[str, dict[str, float]]]:
    """(way, its figures), one after another."""
    groups = {group.linears[0].name: group for group in model.groups()}
    dense = {name: group.weight.dense(torch.float32).clone() for name, group in groups.items()}
    inputs = inputs_of(model, rows[: max(1, len(rows) // 4)])
    base = 0.0
    for way, chosen in roundings().items():
        sizes, outputs = [], []
        for name, group in groups.items():
            generator = torch.Generator().manual_seed(derive(0, way, name))
            if not re.search(chosen.pattern, name):
                made = dense[name]
            else:
                made = chosen.way(dense[name], generator)
                columns = inputs[name].diagonal().topk(chosen.spared).indices
                made[:, columns] = dense[name][:, columns]
            sizes.append(size_of(made - dense[name], dense[name]))
            outputs.append(output_of(made - dense[name], dense[name], inputs[name]))
            group.weight.write(0, made)
        loss = evaluate(model, rows).loss
        base = loss if way == "dense" else base
        yield way, {"size": root_ratio(sizes), "output": root_ratio(outputs), "loss": loss, "change": loss - base}


def study(run: Recipe) -> dict[str, Any]:
    """The table of a recipe's model on its first held-out rows."""
    run, base, _, prepared = api.prepare(run)
    model = base.load(NoQuant())
    held_out = list(prepared.validation or prepared.train)[:ROWS]
    rows = [pack_row(row) for row in plan_rows(held_out, row_tokens=ROW_TOKENS)]
    found = {}
    for way, figures in measured(model, rows):
        found[way] = figures
        print(way, figures, file=sys.stderr, flush=True)
    print(markdown(
        ("way", "size of the error", "of the outputs", "held-out loss", "change"),
        [(way, f"{one['size']:.4f}", f"{one['output']:.4f}", f"{one['loss']:.4f}", f"{one['change']:+.4f}")
         for way, one in found.items()],
    ))  # fmt: skip
    return found
