"""Tiny random decoders, adapters and rows: what the parity tests compare ways of computing on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._storage import fill, read_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.base.nouns import Batch, Example
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM, Shape
from lorikeet.models.decoder import Decoder
from lorikeet.models.experts import ExpertSizes
from lorikeet.models.families._experts import MixtureFamily
from lorikeet.models.kv_cache import Kv, KvCache, Place, pages_for
from lorikeet.models.spec import DecoderSpec
from lorikeet.ops.rope import Rope
from lorikeet.quant.none import NoQuant
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step

CPU = torch.device("cpu")
VOCAB = 23
Computed = tuple[float, dict[str, Tensor]]  # a step's loss and the gradient of each parameter


def with_saved(model: CausalLM, folder: Path) -> tuple[Adapter, dict[str, Any]]:
    """The adapter in `folder`, ours or PEFT's, on the model: (its options, what lorikeet.json says)."""
    adapter, tensors, identity = read_adapter(folder)
    adapter.attach(model, seed=9)  # no adapter that is saved begins so
    fill(model, adapter, tensors, source=folder)
    return adapter, identity


def decoder(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 6,
    width: int = 16,
    layers: int = 2,
    vocab: int = VOCAB,
    tied: bool = True,
    bias: bool = False,
    window: int | None = None,
    max_position: int = 64,
    experts: ExpertSizes | None = None,
) -> Decoder:
    """A decoder with random weights, norms and biases, perhaps with experts for its feed-forward."""
    shape = Shape(vocab, width, layers, heads, kv_heads, head_dim, 20, max_position, {})
    rope, windows = Rope(head_dim, 10000.0, max_position), () if window is None else (window,) * layers
    spec = DecoderSpec(shape, rope, 1e-5, tied, bias, bias, bias, windows=windows)
    if experts is not None:
        spec = MixtureFamily().with_experts(spec, experts)
    model = Decoder(spec, Build(NoQuant(), dtype, CPU))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3, generator=generator)
            if "norm" in name:
                parameter.add_(1)
    return model


def cache(model: CausalLM, texts: int, tokens: int, kv: Kv = "auto") -> tuple[KvCache, list[Place]]:
    """A cache with places for so many texts of up to so many tokens."""
    each = pages_for(tokens)
    places = [Place(list(range(1 + i * each, 1 + (i + 1) * each))) for i in range(texts)]
    return KvCache(model.shape, 1 + texts * each, model.dtype, model.device, kv), places


def with_lora(model: Decoder, seed: int = 0, **options: Any) -> dict[str, torch.nn.Parameter]:
    """Attach a LoRA whose A and B are random, B too, and return what trains."""
    adapter = Lora(**{"r": 3} | options)
    adapter.attach(model, seed=seed)
    parameters = adapter.parameters(model)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.3, generator=generator)
    return parameters


def loss_and_gradients(
    model: Decoder,
    parameters: dict[str, torch.nn.Parameter],
    batches: Sequence[Batch],
    *,
    checkpointing: bool | int = False,
    seed: int = 0,
) -> Computed:
    """Through the whole `train_step`, without clipping and at a rate of zero, so that nothing moves."""
    model.gradient_checkpointing = checkpointing
    stepper = Stepper(parameters, TrainOptions(optim="sgd", max_grad_norm=0))
    result = train_step(model, stepper, batches, learning_rate=0.0, seed=seed)
    gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return result.loss, gradients


def assert_same(left: Computed, right: Computed, rtol: float = 1e-9) -> None:
    """Loss and every gradient agree, and the gradients are not all zero."""
    assert left[1].keys() == right[1].keys()
    np.testing.assert_allclose(left[0], right[0], rtol=rtol)
    for name, gradient in left[1].items():
        largest = gradient.abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(
            gradient, right[1][name], rtol=rtol, atol=rtol * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def example(tokens: Sequence[int], weights: Sequence[float] | None = None) -> Example:
    """Without weights every token but the first is trained."""
    given = [1.0] * len(tokens) if weights is None else list(weights)
    given[0] = 0.0
    return Example(np.array(tokens, np.int32), np.array(given, np.float32))


def random_tokens(rng: np.random.Generator, size: int, vocab: int = VOCAB) -> list[int]:
    return rng.integers(0, vocab, size).tolist()


def one_by_one(model: Decoder, examples: Sequence[Example]) -> list[Tensor]:
    """Hidden states of each conversation alone, in its own row."""
    from lorikeet.data.pack import pack_row
    from lorikeet.ops.attention import PackedView

    rows = [pack_row([one]) for one in examples]
    return [model.hidden(row.tokens, row.positions, PackedView(row.visible_until, row.positions)) for row in rows]
