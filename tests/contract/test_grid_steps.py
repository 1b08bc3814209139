"""Each kind of adapter over each kind of quantisation, on networks of both sources: what three steps come to.

A step is packed, shares prefixes, computes with what is kept quantised. The plain reference reads one conversation at a
time with a native network whose weights are the dequantised ones, makes all logits, and moves with torch's own AdamW;
its gradients are held against differences of its losses. So whatever a kind does, it does the same everywhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.test_grid import GRID, OPTIONS, kind_of, refused
from lorikeet.adapters._contract import Adapter
from lorikeet.base.kinds import kind_class
from lorikeet.base.nouns import Example
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import Choice, NetworkSource, load
from lorikeet.ops.attention import PackedView
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step

SOURCES: tuple[NetworkSource, ...] = ("native", "transformers")
STEPS, RATE = 3, 0.01
TOLERANCE = 1e-5  # transformers makes its rotary tables in float32
DETACHED = {"dora"}  # as in PEFT its row lengths are constants to the gradient, which is then not the loss's
TRAINED = [(quant, adapter) for quant, adapter in GRID if not refused(quant, adapter)]


def network(folder: Path, quant: Quant, source: NetworkSource = "native") -> CausalLM:
    """In float64."""
    found = open_checkpoint(folder)
    return load(found, quant, dtype=torch.float64, device=torch.device("cpu"), family=Choice(source=source))


def attached(model: CausalLM, kind: str) -> tuple[Adapter, dict[str, nn.Parameter]]:
    """The adapter with its own first values, put on `model`, and what trains."""
    adapter = kind_of(kind).model_validate(OPTIONS.get(kind, {}))
    adapter.attach(model, seed=1)
    return adapter, adapter.parameters(model)


def conversations() -> list[Example]:
    """Four, of which two share a beginning."""
    rng = np.random.default_rng(0)

    def example(tokens: list[int]) -> Example:
        weights = rng.choice([0.0, 0.5, 1.0], len(tokens)).astype(np.float32)
        weights[0] = 0
        return Example(np.array(tokens, np.int32), weights)

    start, *rest = (rng.integers(0, 250, size).tolist() for size in (8, 6, 11, 17, 5))
    return [example(tokens) for tokens in (start + rest[0], start + rest[1], rest[2], rest[3])]


def plain_loss(model: CausalLM, examples: list[Example]) -> Tensor:
    """The mean by weight, each conversation alone, all logits at once."""
    total = torch.zeros((), dtype=torch.float64)
    for one in examples:
        row = pack_row([one])
        hidden = model.hidden(row.tokens, row.positions, PackedView(row.visible_until, row.positions))
        head = model.head
        logits = (hidden @ head.weight.T + (0 if head.bias is None else head.bias)) * head.scale
        losses = F.cross_entropy(logits[:-1], torch.from_numpy(one.tokens[1:]).long(), reduction="none")
        total = total + (losses * torch.from_numpy(one.weights[1:])).sum()
    return total / float(sum(one.weights.sum() for one in examples))


@cache
def reference(folder: Path, quant: str, kind: str) -> list[float]:
    """The three losses of the plain way."""
    kept = network(folder, kind_class("lorikeet.quant", Quant, quant).model_validate({}))
    model = network(folder, NoQuant())
    for mine, theirs in zip(model.groups(), kept.groups(), strict=True):
        mine.weight.write(0, theirs.weight.dense(torch.float64))
    adapter, parameters = attached(model, kind)
    factors = adapter.learning_rate_factors(model)
    moved = [{"params": [value], "lr": RATE * factors.get(name, 1.0)} for name, value in parameters.items()]
    optimizer = torch.optim.AdamW(moved, weight_decay=0.0)
    found = []
    for _ in range(STEPS):
        loss = plain_loss(model, conversations())
        optimizer.zero_grad()
        loss.backward()
        found.append(loss.item())
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
    if kind not in DETACHED:
        check_gradients(model, list(parameters.values()), conversations())
    return found


def check_gradients(
    model: CausalLM, parameters: list[nn.Parameter], examples: list[Example], width: float = 1e-4
) -> None:
    """Along the gradient the loss rises by its length."""
    gradients = torch.autograd.grad(plain_loss(model, examples), parameters, allow_unused=True, materialize_grads=True)
    length = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    ends = []
    with torch.no_grad():
        for way in (width, -2 * width):
            for parameter, gradient in zip(parameters, gradients):
                parameter += way / length * gradient
            ends.append(plain_loss(model, examples).item())
    assert length > 0 and (ends[0] - ends[1]) / (2 * width) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("quant, adapter", TRAINED)
def test_three_steps_are_those_of_the_plain_way(
    tiny_model: Path, source: NetworkSource, quant: str, adapter: str
) -> None:
    if source == "transformers":
        pytest.importorskip("transformers")
    model = network(tiny_model, kind_class("lorikeet.quant", Quant, quant).model_validate({}), source)
    assert model.source.startswith(source)
    kind, parameters = attached(model, adapter)
    stepper = Stepper(parameters, TrainOptions(learning_rate=RATE), kind.learning_rate_factors(model))
    row = pack_row(conversations())
    found = [train_step(model, stepper, [row], learning_rate=RATE).loss for _ in range(STEPS)]
    assert found == pytest.approx(reference(tiny_model, quant, adapter), rel=TOLERANCE)
    assert found[-1] < 0.999 * found[0]
