"""The feed-forward of a mixture of experts: a router, E experts of which each token uses k, perhaps one that all share.

    p = softmax(router x)        the k largest, divided by their sum where the family says so
    y = sum of p_e * expert_e(x)   [ + sigmoid(gate x) * shared(x) ]

The experts' gates and ups are one storage [E * 2F, D] and their downs another [E * D, F]; every expert's linear stays
a named member, so loading, merging and quantisation know nothing of experts. The arithmetic is in ops/experts.py. The
router does not train unless an adapter names it, and no balancing loss is added: with few steps on little data a
frozen router keeps the balance it was trained to (transformers, too, adds one only where output_router_logits asks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lorikeet.models.build import Build, Norm
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.models.mlp import Mlp
from lorikeet.ops.experts import Experts, mixture
from lorikeet.ops.lora_linear import LowRank, Prologue
from lorikeet.ops.swiglu import Activation
from lorikeet.quant._contract import FrozenWeight

STACKED_OWNER = "mlp"  # the name of a layer's feed-forward in transformers 5, whatever the published one


@dataclass(frozen=True)
class ExpertNames:
    """What a checkpoint calls the parts, behind the layer's name."""

    owner: str = "mlp"
    router: str = "gate"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str | None = None  # the expert of all tokens
    shared_gate: str | None = None


@dataclass(frozen=True)
class ExpertSizes:
    """E experts of width F, k of them for each token; `shared_width` is that of the shared one."""

    count: int
    chosen: int
    width: int
    normalised: bool  # whether a token's k shares are divided by their sum
    shared_width: int = 0


class ExpertUpdates(Protocol):
    """What an adapter adds to each expert of a group."""

    members: tuple[LowRank, ...]
    dropout: float

    def factors(self) -> tuple[Tensor, ...]:
        """A [E, R, in] and B [E, rows, R] of each member in turn."""
        ...


@runtime_checkable
class TrainedRows(Protocol):
    """A group's storage of which rows train themselves."""

    def trained_rows(self) -> tuple[slice, ...]:
        """Which rows of one expert."""
        ...

    def trained_weights(self) -> tuple[Tensor, ...]:
        """Their parameters [E, rows, in]."""
        ...


def expert_names(owner: str, leaves: Sequence[str], count: int) -> list[str]:
    """Of the linears `leaves` of each expert, in the order of their rows."""
    return [f"{owner}.{expert}.{leaf}" for expert in range(count) for leaf in leaves]


class ExpertGroup(LinearGroup):
    """One linear of all experts, or gate and up: members come expert by expert. Applied by `Mixture`, never itself.

    `owner` is the checkpoint's name of the experts; `stacked` is what transformers 5 calls their weights in one."""

    updates: ExpertUpdates | None  # set by an adapter, instead of `attached`

    def __init__(
        self, owner: str, stacked: str, leaves: Sequence[str], sizes: Sequence[int], count: int, weight: FrozenWeight
    ):
        names = expert_names(owner, leaves, count)
        super().__init__(names, list(sizes) * count, weight, [None] * len(names))
        self.owner, self.stacked, self.leaves, self.count = owner, stacked, tuple(leaves), count
        self.updates = None

    def of_leaf(self, leaf: str) -> list[FrozenLinear]:
        """The linear `leaf` of every expert."""
        return self.linears[self.leaves.index(leaf) :: len(self.leaves)]

    def of_expert(self, expert: int) -> list[FrozenLinear]:
        """The linears of one expert, neighbours in the storage."""
        return self.linears[expert * len(self.leaves) : (expert + 1) * len(self.leaves)]

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        raise AssertionError("experts are applied to the tokens that chose them, by `Mixture`")


class Mixture(nn.Module):
    """[T, D] -> [T, D]. `prefix` is the layer's name."""

    def __init__(
        self,
        build: Build,
        prefix: str,
        names: ExpertNames,
        sizes: ExpertSizes,
        width: int,
        activation: Activation = "silu",
    ):
        super().__init__()
        self.sizes, self.activation = sizes, activation
        inside = f"{prefix}.{names.owner}"

        def group(stacked: str, leaves: tuple[str, ...], out: int, width: int) -> ExpertGroup:
            owner, stacked = f"{inside}.experts", f"{prefix}.{STACKED_OWNER}.experts.{stacked}"
            storage = build.experts(expert_names(owner, leaves, sizes.count), sizes.count * len(leaves) * out, width)
            return ExpertGroup(owner, stacked, leaves, [out] * len(leaves), sizes.count, storage)

        self.router = build.linears([f"{inside}.{names.router}"], [sizes.count], width, routes=True)
        self.gate_up = group("gate_up_proj", (names.gate, names.up), sizes.width, width)
        self.down = group("down_proj", (names.down,), width, sizes.width)
        self.shared: Mlp | None = None
        if names.shared is not None and names.shared_gate is not None and sizes.shared_width:
            shared = f"{inside}.{names.shared}"
            leaves = (f"{shared}.{names.gate}", f"{shared}.{names.up}")
            self.shared = Mlp(build, leaves, f"{shared}.{names.down}", width, sizes.shared_width, activation=activation)
            self.shared_gate = build.linears([f"{inside}.{names.shared_gate}"], [1], width, routes=True)

    def forward(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """x [T, D] -> [T, D] of x, or of norm(x)."""
        x = x if norm is None else norm(x)
        y = run_experts(self.gate_up, self.down, self.activation, x, *self.route(x))
        if self.shared is not None:
            y = y + self.shared_gate(x).sigmoid() * self.shared(x)
        return y

    @property
    def expert_groups(self) -> tuple[ExpertGroup, ExpertGroup]:
        """The experts' linears, in the order in which they compute."""
        return self.gate_up, self.down

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> (the experts of each token [T, k], their shares [T, k] in float32 or wider)."""
        logits = self.router(x)
        probabilities = logits.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        share, chosen = probabilities.topk(self.sizes.chosen, dim=-1)
        if self.sizes.normalised:
            share = share / share.sum(-1, keepdim=True)
        return chosen, share


def run_experts(
    gate_up: ExpertGroup, down: ExpertGroup, activation: Activation, x: Tensor, chosen: Tensor, share: Tensor
) -> Tensor:
    """x [T, D] through the experts `chosen` for each token [T, k], with their shares [T, k] -> [T, D]."""
    updates = [gate_up.updates, down.updates]
    first, second = (() if update is None else update.members for update in updates)
    dropout = max((update.dropout for update in updates if update is not None), default=0.0)
    experts = Experts(
        gate_up.count,
        gate_up.weight,
        down.weight,
        activation,
        gate_up_members=first,
        down_members=second,
        gate_up_trained=gate_up.weight.trained_rows() if isinstance(gate_up.weight, TrainedRows) else (),
        down_trained=down.weight.trained_rows() if isinstance(down.weight, TrainedRows) else (),
        dropout=dropout if torch.is_grad_enabled() else 0.0,
    )
    factors = [factor for update in updates if update is not None for factor in update.factors()]
    storages = (gate_up.weight, down.weight)
    trained = [one for which in storages if isinstance(which, TrainedRows) for one in which.trained_weights()]
    return mixture(x, chosen, share, experts, factors, trained)
