"""Folding an adapter into its base, and the proof that the result is base + adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorikeet.adapters._contract import Adapter
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView
from lorikeet.tokens._contract import Tokenizer


def merged_tensors(model: CausalLM, adapter: Adapter, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor in `dtype`) of the merged network, one at a time. Each sum is rounded once."""
    linears = dict(model.linears())
    for name, tensor in model.tensors():
        stem, _, suffix = name.rpartition(".")  # a parameter of the network itself has no stem
        linear = linears.get(stem)
        if linear is not None:
            bias = adapter.merged_bias(linear)
            merged = adapter.merged(linear) if suffix == "weight" else bias
            assert merged is not None
            tensor = merged
        yield name, (tensor.detach().to(dtype) if tensor.is_floating_point() else tensor).cpu()


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
