"""The kinds of storage that are compared: their names in tables, their options, and how many bits they really take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lorikeet.models.causal_lm import CausalLM

Options = dict[str, Any]

DENSE = "bf16"
KINDS: dict[str, Options] = {
    DENSE: {"kind": "none"},
    "int8": {"kind": "int8"},
    "fp4": {"kind": "fp4"},
    "fp4 double": {"kind": "fp4", "double_quant": True},
    "nf4": {"kind": "nf4"},
    "nf4 double": {"kind": "nf4", "double_quant": True},
    "nf4 block 128": {"kind": "nf4", "block_size": 128},
    # a dense model loaded as GPTQ is rounded to nearest
    "int4 nearest, group 128": {"kind": "gptq", "group_size": 128},
    "int4 nearest, group 64": {"kind": "gptq", "group_size": 64},
}
MADE: dict[str, Options] = {  # by `lorikeet quantize`: the options of that command
    "gptq, group 128": {"bits": 4, "group_size": 128},
    "gptq, group 64": {"bits": 4, "group_size": 64},
}


def with_kind(recipe: Options, kind: str, model: str | None = None) -> Options:
    """A recipe with its frozen weights kept as `kind` says; `model` is the quantised folder of a kind of MADE."""
    if kind in MADE:
        assert model is not None
        return recipe | {"model": recipe["model"] | {"path": model}}
    return recipe | {"quant": KINDS[kind]}


def kept(weight: nn.Module) -> Iterator[Tensor]:
    """What a frozen weight holds in memory."""
    yield from weight.parameters()
    yield from weight.buffers()


def bits_per_weight(model: CausalLM) -> tuple[float, float]:
    """Bits of all that is kept for the linears, for each of their weights: over those that are quantised (all, where
    none is), and over all linears."""
    quantised, everything = [0, 0], [0, 0]
    for group in model.groups():
        tensors = list(kept(group.weight))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        weights = group.weight.out_features * group.weight.in_features
        integer = any(tensor.dtype in (torch.uint8, torch.int8) for tensor in tensors)
        for total in (quantised, everything) if integer else (everything,):
            total[0] += 8 * size
            total[1] += weights
    of_all = everything[0] / everything[1]
    return quantised[0] / quantised[1] if quantised[1] else of_all, of_all
