"""P-tuning v2 (Liu et al. 2022), or prefix tuning (Li & Liang 2021): P learned keys and values in every layer.

Every text continues them; the arithmetic is in ops/prefix.py. By default they begin as the keys and values that the
base itself has of some tokens, where random numbers would begin by hurting it. With `prefix_projection` the table is
what it began as, plus what an MLP of PEFT's shape makes of P learned vectors; it is saved as the table it amounts to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters._virtual_tokens import TABLE, VirtualTokens, master
from lorikeet.base.rng import torch_rng
from lorikeet.kernels import has_numbers
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView, Prefix, View
from lorikeet.ops.prefix import PrefixedView, RecordedView


class PrefixTuning(VirtualTokens):
    """Learned keys and values before every text."""

    kind: Literal["prefix"] = "prefix"
    prefix_projection: bool = Field(False, description="Learn the table through an MLP: linear, tanh, linear.")
    encoder_hidden_size: int | None = Field(
        None, ge=1, le=1 << 16, description="Width between the MLP's two linears; by default that of a layer's keys."
    )
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    usual_rate: ClassVar[float] = 1e-2
    merge_refusal: ClassVar[str | None] = (
        "keys and values of its own are no weights, so they cannot be folded in; serve it as an adapter"
    )

    @model_validator(mode="after")
    def _width_has_effect(self) -> Self:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError("encoder_hidden_size has no effect without prefix_projection")
        return self

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        self.check_context(model)
        size, shape = self.num_virtual_tokens, model.shape
        layout = (size, shape.layers, 2, shape.kv_heads, shape.head_dim)
        dtype = master(model.dtype)
        table = torch.empty(layout, dtype=dtype)
        if self.start == "random" and not self.prefix_projection:
            table.normal_(generator=torch_rng(seed, "prefix"))  # as torch.nn.Embedding begins in PEFT
        elif self.start != "random":
            ids = self.first_tokens(model, seed)
            if has_numbers(model.head.weight):
                table.copy_(base_keys_and_values(model, ids))
        table = table.flatten(1).to(model.device)
        if self.prefix_projection:
            width = shape.kv_heads * shape.head_dim
            hidden = self.encoder_hidden_size or width
            made: nn.Module = Projection(table, width, hidden, seed, alone=self.start == "random")
        else:
            made = Table(table)
        self.take_context(model)
        model.prefix = Before(made, layout[1:], model.dtype)
        model.surround(model.prefix.around)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return dict(_made(model).named_parameters())

    def tensors(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.tensors`: the table, as PEFT saves it."""
        return {TABLE: _made(model)().detach()}

    def resumed(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.resumed`: the MLP, which cannot be told from its table."""
        made = _made(model)
        return made.state_dict(keep_vars=True) if isinstance(made, Projection) else {}

    def from_peft_tensors(self, model: CausalLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Adapter.from_peft_tensors`. A table alone is what an MLP begins at: it is added to that."""
        made = _made(model)
        if not isinstance(made, Projection) or "start" in tensors or TABLE not in tensors:
            return tensors
        learned = (made() - made.start).detach()
        return tensors | made.state_dict() | {"start": tensors[TABLE].to(learned) - learned}

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        shape = model.shape
        return {
            **self.settings(self.peft_type),
            "num_layers": shape.layers,
            "num_attention_heads": shape.kv_heads,
            "token_dim": shape.kv_heads * shape.head_dim,
            "encoder_hidden_size": shape.kv_heads * shape.head_dim,
            "prefix_projection": False,
        }


def _made(model: CausalLM) -> nn.Module:
    before = model.prefix
    assert isinstance(before, Before), "attach first"
    return before.made


@torch.no_grad()
def base_keys_and_values(model: CausalLM, ids: Tensor) -> Tensor:
    """[P, layers, 2, K, E]: what the network's layers make of the tokens `ids` [P], read as a text."""
    size = len(ids)
    recorded = RecordedView(PackedView(torch.full((size,), size, dtype=torch.int32), torch.arange(size)))
    model.hidden(ids.to(model.device), torch.arange(size, device=model.device), recorded)
    shape = model.shape
    recorded.check(shape.layers, (shape.kv_heads, shape.head_dim))
    return torch.stack([torch.stack(recorded.kept[layer], 1) for layer in range(shape.layers)], 1).cpu()


class Table(nn.Module):
    """The table [P, layers * 2 * K * E] itself, float32."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.prompt_embeddings = nn.Parameter(table)

    def forward(self) -> Tensor:
        """The table."""
        return self.prompt_embeddings


class Projection(nn.Module):
    """start + linear(tanh(linear(embedding))). The last linear begins at zero, or as torch.nn.Linear does if it is
    `alone`, with a start of zeros as in PEFT."""

    start: Tensor

    def __init__(self, start: Tensor, width: int, hidden: int, seed: int, *, alone: bool):
        super().__init__()
        size, out = start.shape

        def drawn(name: str, bound: float, *sizes: int) -> nn.Parameter:
            values = torch.empty(sizes, dtype=start.dtype)
            values.uniform_(-bound, bound, generator=torch_rng(seed, "prefix", name))
            return nn.Parameter(values.to(start.device))

        first, last = 1 / math.sqrt(width), 1 / math.sqrt(hidden) if alone else 0.0
        self.register_buffer("start", torch.zeros_like(start) if alone else start)
        self.embedding = drawn("embedding", math.sqrt(3), size, width)  # a variance of 1, as torch.nn.Embedding's
        self.first_weight, self.first_bias = drawn("a", first, hidden, width), drawn("b", first, hidden)
        self.last_weight, self.last_bias = drawn("c", last, out, hidden), drawn("d", last, out)

    def forward(self) -> Tensor:
        """[P, layers * 2 * K * E], float32."""
        inside = torch.tanh(F.linear(self.embedding, self.first_weight, self.first_bias))
        return self.start + F.linear(inside, self.last_weight, self.last_bias)


class Before(nn.Module):
    """Puts a table's keys and values before what the network reads."""

    def __init__(self, made: nn.Module, layout: tuple[int, ...], dtype: torch.dtype):
        super().__init__()
        self.made, self.layout, self.dtype = made, layout, dtype

    def layers(self) -> list[Prefix]:
        """The keys and values [P, K, E] of each layer."""
        table = self.made().unflatten(1, self.layout).permute(1, 2, 0, 3, 4)  # [layers, 2, P, K, E]
        pairs = table.to(self.dtype, memory_format=torch.contiguous_format).unbind()
        return [(pair[0], pair[1]) for pair in pairs]

    def around(self, hidden: Callable[..., Tensor], tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.surround`."""
        prefixed = PrefixedView(view, self.layers())
        states = hidden(tokens, positions + len(prefixed.prefix[0][0]), prefixed)
        prefixed.check()
        return states
