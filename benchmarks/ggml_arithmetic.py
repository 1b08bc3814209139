"""Our network in float32 that rounds where ggml's CPU backend rounds: what llama.cpp says of a file, foretold.

All sums are float32 there, as here. What is rounded first (sources: llama.cpp's ggml/src/ggml-cpu/ggml-cpu.c,
vec_dot_type of a weight's type; ops.cpp, ggml_compute_forward_flash_attn_ext_f16; src/llama-graph.cpp, build_attn_mha):

- the inputs of a product with a weight of F16 or BF16, to that type;
- keys (behind the rope) and values, where the cache is F16;
- with such a cache and without flash attention, queries and probabilities, to F16 too: a product of two activations is
  one with a weight, there;
- with flash attention, in a batch of fewer than 64 tokens: queries, and the sum over values after each key; in a larger
  one, nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.attention import PackedView, Prefix, visible
from lorikeet.ops.lora_linear import Prologue

# the names of llama.cpp's graph: of a product, what it reads and gives
PRODUCTS = {
    "v_proj": ("attn_norm", "Vcur"),
    "o_proj": ("kqv_out", "attn_out"),
    "gate_proj": ("ffn_norm", "ffn_gate"),
    "up_proj": ("ffn_norm", "ffn_up"),
    "down_proj": ("ffn_swiglu", "ffn_out"),
}
QKV, ATTENTION = ("Qcur", "Kcur", "Vcur"), "kqv_out"
LAST, RESULT = "result_norm", "result_output"
NODES = {*(name for pair in PRODUCTS.values() for name in pair), *QKV, ATTENTION, LAST, RESULT}
TILE = 64  # queries, from which on flash attention sums in float32 (GGML_FA_TILE_Q)


@dataclass(frozen=True)
class Arithmetic:
    """What is rounded; nothing, by default."""

    products: torch.dtype = torch.float32  # the inputs of products with weights
    cache: torch.dtype = torch.float32  # keys and values
    flash: bool = False


@torch.no_grad()
def logits(model: CausalLM, ids: list[int], arithmetic: Arithmetic | None = None) -> Tensor:
    """[T, V] float32 of the text `ids`, read in one batch."""
    arithmetic = arithmetic or Arithmetic()
    seen, positions = torch.full((len(ids),), len(ids), dtype=torch.int32), torch.arange(len(ids))
    plain = arithmetic.cache == torch.float32
    view = PackedView(seen, positions) if plain else _RoundedView(seen, positions, arithmetic)
    with _rounded_products(model, arithmetic.products):
        hidden = model.hidden(torch.tensor(ids), positions, view)
    return model.head.logits(_rounded(hidden, arithmetic.products))


def plain(model: CausalLM) -> bool:
    """Whether `one_by_one` is for it: linears named as Llama's, without biases, and attention without more to it."""
    spec, linears = getattr(model, "spec", None), dict(model.linears())
    named = {name.rsplit(".", 1)[-1] for name in linears} >= set(PRODUCTS)
    attention = spec is not None and not (spec.scale or spec.softcap or spec.final_softcap or any(spec.windows))
    return named and attention and all(linear.bias is None for linear in linears.values())


@torch.no_grad()
def one_by_one(
    model: CausalLM, nodes: Mapping[str, np.ndarray], arithmetic: Arithmetic | None = None
) -> tuple[float, float]:
    """How far ours are from llama.cpp's where each product, and each attention, is given llama.cpp's own inputs: of
    products and of attentions, the length of the difference relative to that of the result, the largest of all.

    `nodes`: those of NODES, each [T, D]. For networks that are `plain`."""
    arithmetic = arithmetic or Arithmetic()
    there = {name: torch.from_numpy(node) for name, node in nodes.items()}
    shape, count = model.shape, len(there[RESULT])
    seen, positions = torch.full((count,), count, dtype=torch.int32), torch.arange(count)
    view = _RoundedView(seen, positions, arithmetic)
    linears = {tuple(name.split(".")[-3::2]): linear for name, linear in model.linears()}  # (layer, its name)
    products, attentions = [], []
    for layer in range(shape.layers):
        for name, (source, result) in PRODUCTS.items():
            weight = linears[str(layer), name].dense(torch.float32)
            made = _rounded(there[f"{source}-{layer}"], arithmetic.products) @ weight.T
            products.append(_apart(made, there[f"{result}-{layer}"]))
        q, k, v = (there[f"{name}-{layer}"].view(count, -1, shape.head_dim) for name in QKV)
        made = view.attend(layer, q, k, v, scale=shape.head_dim**-0.5)
        attentions.append(_apart(made.reshape(count, -1), there[f"{ATTENTION}-{layer}"]))
    made = model.head.logits(_rounded(there[LAST], arithmetic.products))
    return max(*products, _apart(made, there[RESULT])), max(attentions)


def _apart(made: Tensor, there: Tensor) -> float:
    return float((made - there).norm() / there.norm())


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).float()


@contextmanager
def _rounded_products(model: CausalLM, dtype: torch.dtype) -> Iterator[None]:
    groups = [group for group in model.groups() if dtype != torch.float32]
    assert all(group.attached is None for group in groups), "an adapter computes here"
    for group in groups:
        group.attached = partial(_product, group, dtype)
    try:
        yield
    finally:
        for group in groups:
            group.attached = None


def _product(group: LinearGroup, dtype: torch.dtype, source: Tensor, prologue: Prologue | None = None) -> Tensor:
    x = source if prologue is None else prologue.forward(source)[0]
    y, bias = group.weight.linear(_rounded(x, dtype)), group.bias()
    return y if bias is None else y + bias


class _RoundedView(PackedView):
    """One text whose keys and values are kept in `arithmetic.cache`."""

    def __init__(self, visible_until: Tensor, positions: Tensor, arithmetic: Arithmetic):
        super().__init__(visible_until, positions)
        self.arithmetic = arithmetic

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """See `View.attend`."""
        assert prefix is None
        kept = partial(_rounded, dtype=self.arithmetic.cache)
        group = q.shape[1] // k.shape[1]
        k, v = (kept(x).repeat_interleave(group, dim=1) for x in (k, v))
        exact = self.arithmetic.flash and len(q) >= TILE
        scores = torch.einsum("qhe,khe->hqk", q if exact else kept(q), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~visible(self.visible_until, self.positions, window), float("-inf"))
        if self.arithmetic.flash and not exact:
            return _one_key_at_a_time(scores, v, self.arithmetic.cache)
        shares = scores.softmax(-1)
        return torch.einsum("hqk,khe->qhe", shares if exact else kept(shares), v)


def _one_key_at_a_time(scores: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """scores [H, T, K], v [K, H, E] -> [T, H, E]: softmax and sum in one pass over the keys, the sum over values kept
    in `dtype`."""
    heads, count, keys = scores.shape
    total, largest = scores.new_zeros(heads, count, 1), scores.new_full((heads, count, 1), float("-inf"))
    found = scores.new_zeros(heads, count, v.shape[-1])
    for key in range(keys):
        score = scores[:, :, key : key + 1]
        seen, new = score > float("-inf"), torch.maximum(largest, score)
        before = torch.where(score > largest, torch.exp(largest - new), 1.0)
        share = torch.exp(score - new)
        sum_ = _rounded(_rounded(found * before, dtype) + share * v[key][:, None], dtype)
        found, total = torch.where(seen, sum_, found), torch.where(seen, total * before + share, total)
        largest = new
    return (found / total).transpose(0, 1)
