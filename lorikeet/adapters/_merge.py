"""Folding an adapter into its base, and the proof that the result is base + adapter.

The base that takes the update may be the one in memory, as it was trained on (made dense from what it is kept as), or
the checkpoint's own numbers; the sum is written dense or quantised again. One dense tensor is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorikeet.adapters._contract import Adapter
from lorikeet.base.errors import CheckpointError
from lorikeet.base.tensor_file import finite
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear
from lorikeet.ops.attention import PackedView
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.quant.none import DenseWeight, NoQuant
from lorikeet.tokens._contract import Tokenizer

Source = Callable[[str], Tensor]  # the checkpoint's own tensor by its name


def merged_tensors(
    model: CausalLM, adapter: Adapter, dtype: torch.dtype, *, source: Source | None = None, into: Quant | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor) of the merged network, one at a time: floats in `dtype`, each sum rounded once.

    source: the weights that take the update, where they are not the model's own. into: how linears are stored."""
    linears, kept = dict(model.linears()), _kept(model, into or NoQuant())
    others = adapter.merged_others(model)
    for slot in model.slots():
        if slot.name in others:
            yield slot.name, _plain(slot.name, others.pop(slot.name), dtype)
            continue
        stem, _, suffix = slot.name.rpartition(".")  # a parameter of the network itself has no stem
        linear = linears.get(stem)
        tensor = slot.read(model.dtype) if source is None else source(slot.name)
        if linear is not None and suffix == "weight":
            own = tensor.T if slot.transposed else tensor
            tensor = adapter.merged(linear if source is None else _with_weight(linear, own))
            if stem in kept:
                yield from _stored(stem, kept[stem], tensor, dtype)
                continue
            tensor = tensor.T if slot.transposed else tensor
        elif linear is not None:
            bias = adapter.merged_bias(linear)
            assert bias is not None
            tensor = bias
        yield slot.name, _plain(slot.name, tensor, dtype)
    for name, tensor in others.items():  # those that the base does not have
        yield name, _plain(name, tensor, dtype)


def base_tensors(
    model: CausalLM, dtype: torch.dtype, *, source: Source | None = None, into: Quant | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor) of the base alone. into: None writes linears as the model keeps them, byte for byte;
    a kind stores them so, from the numbers of `source` or else from the model's own."""
    linears, kept = dict(model.linears()), _kept(model, into or NoQuant())
    for slot in model.slots():
        stem, _, suffix = slot.name.rpartition(".")
        linear = linears.get(stem) if suffix == "weight" else None
        parts = linear.give() if linear is not None and into is None else None
        if parts is not None:
            yield from ((f"{stem}.{part}", tensor) for part, tensor in parts.items())
            continue
        tensor = slot.read(model.dtype) if source is None else source(slot.name)
        if linear is not None and stem in kept:
            yield from _stored(stem, kept[stem], (tensor.T if slot.transposed else tensor).to(dtype), dtype)
        else:
            yield slot.name, _plain(slot.name, tensor, dtype)


def dense_linears(model: CausalLM, into: Quant) -> list[str]:
    """The linears that `into` leaves dense."""
    kept = _kept(model, into)
    return [name for name, _ in model.linears() if name not in kept]


def written_bytes(model: CausalLM, dtype: torch.dtype, into: Quant | None) -> int:
    """About how many bytes a folder of the network takes: `into` and `dtype` as in `base_tensors`. Scales that are in 8
    bits in memory are wider in a folder, by less than a tenth."""
    kept = {} if into is None else _kept(model, into)
    weights = 0
    for group in model.groups():
        for linear in group.linears:
            size = linear.out_features, linear.in_features
            if into is None and not isinstance(group.weight, DenseWeight):
                share = linear.out_features / group.weight.out_features
                weights += int(_nbytes(group.weight) * share * 1.1)
            elif linear.name in kept:
                weights += _nbytes(kept[linear.name].empty(*size, dtype, torch.device("meta")))
            else:
                weights += math.prod(size) * dtype.itemsize
    named = {f"{name}.weight" for name, _ in model.linears()}
    others = sum(math.prod(slot.shape) for slot in model.slots() if slot.name not in named)
    return weights + others * dtype.itemsize


def _nbytes(weight: FrozenWeight) -> int:
    return sum(tensor.nbytes for tensor in (*weight.parameters(), *weight.buffers()))


def _kept(model: CausalLM, into: Quant) -> dict[str, Quant]:
    """How `into` keeps each linear that it quantises. Linears of one group go together, as they do in memory."""
    found: dict[str, Quant] = {}
    for group in model.groups():
        names = [linear.name for linear in group.linears]
        quant = NoQuant() if group.routes else into.keeps(names)
        if not isinstance(quant, NoQuant):
            found |= dict.fromkeys(names, quant)
    return found


def _stored(name: str, quant: Quant, weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """A dense weight [out, in], rounded to the nearest of `quant`, as a folder holds it. Raises CheckpointError."""
    kept = quant.empty(weight.shape[0], weight.shape[1], dtype, weight.device)
    kept.write(0, weight)
    parts = kept.give(0, len(weight))
    if parts is None:
        options = quant.model_dump(mode="json", exclude={"kind", "target_modules"})
        said = ", ".join(f"{option}={value}" for option, value in options.items())
        raise CheckpointError(
            f"{name}: a folder has no form for this weight in {quant.model_dump()['kind']}",
            given=f"{weight.shape[0]} rows of {weight.shape[1]} inputs, {said}",
            allowed="inputs that are a multiple of the block",
            try_="another block_size (or group_size), or --into none",
        )
    yield from ((f"{name}.{part}", tensor) for part, tensor in parts.items())


def _plain(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As a folder holds it. Raises CheckpointError for a number that `dtype` cannot say: it would be infinite there."""
    if not tensor.is_floating_point():
        return tensor.cpu()
    ready = tensor.detach().to(dtype)
    if not finite(ready):
        raise CheckpointError(
            f"{name}: numbers too large for {str(dtype).removeprefix('torch.')}",
            given=f"{tensor.detach().abs().max().item():.3g}",
            allowed=f"at most {torch.finfo(dtype).max:.6g}",
            try_="--dtype bfloat16 or float32",
        )
    return ready.cpu()


def _with_weight(linear: FrozenLinear, weight: Tensor) -> FrozenLinear:
    """The same linear, with its adapter, over another weight [out, in]."""
    other = FrozenLinear(linear.name, slice(0, len(weight)), DenseWeight(weight.to(linear.device)), None)
    other.bias, other.adapter = linear.bias, linear.adapter
    return other


@dataclass(frozen=True)
class MergeCheck:
    """Logits of the merged model against base + adapter, at the last token of each probe."""

    max_difference: float  # largest absolute difference of a logit
    kl: float  # mean KL divergence, nats
    agreement: float  # share of probes with the same most likely token
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.kl <= self.tolerance


@torch.no_grad()
def compare(left: CausalLM, right: CausalLM, probes: list[list[int]], tolerance: float) -> MergeCheck:
    """Compare two networks on token lists. `tolerance` bounds the mean KL; rounding to 16 bits costs about 1e-3."""
    differences, divergences, agreements = [], [], []
    for probe in probes:
        tokens = torch.tensor(probe, device=left.device)
        positions = torch.arange(len(probe), device=left.device)
        view_of = torch.full((len(probe),), len(probe), dtype=torch.int32)
        logits = []
        for model in (left, right):
            hidden = model.hidden(tokens, positions, PackedView(view_of, positions.cpu()))
            logits.append(model.head.logits(hidden))
        p, q = logits[0].log_softmax(-1), logits[1].log_softmax(-1)
        differences.append((logits[0] - logits[1]).abs().max().item())
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
        agreements.append((logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean().item())
    count = len(probes)
    return MergeCheck(max(differences), sum(divergences) / count, sum(agreements) / count, tolerance)


def probes(tokenizer: Tokenizer) -> list[list[int]]:
    """Token lists to compare two networks on: the beginnings of texts of several kinds."""
    texts = (
        "The capital of France is",
        "def add(a, b):\n    return",
        "1, 2, 3, 4,",
        "Dear Sir or Madam,\nI am writing to",
        "Water boils at one hundred degrees",
        "import numpy as",
        "Once upon a time there was a",
        "Le chat est sur la",
    )
    return [tokenizer.encode(text)[0] for text in texts]
