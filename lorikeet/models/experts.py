"""The feed-forward of a mixture of experts: a router, E experts of which each token uses k, perhaps one that all share.

    p = softmax(router x)        the k largest, divided by their sum where the family says so
    y = sum of p_e * expert_e(x)   [ + sigmoid(gate x) * shared(x) ]

The experts' gates and ups are one storage [E * 2F, D] and their downs another [E * D, F]; every expert's linear stays
a named member, so loading, merging and quantisation know nothing of experts. The arithmetic is in ops/experts.py. The
router does not train unless an adapter names it, and no balancing loss is added: with few steps on little data a
frozen router keeps the balance it was trained to (transformers, too, adds one only where output_router_logits asks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorikeet.models.build import Build
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.models.mlp import Mlp
from lorikeet.ops.experts import Experts, mixture
from lorikeet.ops.lora_linear import LowRank
from lorikeet.ops.swiglu import Activation
from lorikeet.quant._contract import FrozenWeight


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


@dataclass(frozen=True)
class ExpertUpdates:
    """What an adapter adds to each expert of a group: for each member A [E, R, in] and B [E, rows, R] in turn."""

    members: tuple[LowRank, ...]
    factors: tuple[Tensor, ...]
    dropout: float = 0.0


class ExpertGroup(LinearGroup):
    """One linear of all experts, or gate and up: members come expert by expert. Applied by `Mixture`, never itself."""

    updates: ExpertUpdates | None  # set by an adapter, instead of `attached`

    def __init__(self, owner: str, leaves: Sequence[str], sizes: Sequence[int], count: int, weight: FrozenWeight):
        names = [f"{owner}.{expert}.{leaf}" for expert in range(count) for leaf in leaves]
        super().__init__(names, list(sizes) * count, weight, [None] * len(names))
        self.owner, self.leaves, self.count = owner, tuple(leaves), count
        self.updates = None

    def of_leaf(self, leaf: str) -> list[FrozenLinear]:
        """The linear `leaf` of every expert."""
        return self.linears[self.leaves.index(leaf) :: len(self.leaves)]

    def forward(self, x: Tensor) -> Tensor:
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

        def group(leaves: tuple[str, ...], out: int, width: int) -> ExpertGroup:
            storage = build.quant.empty(sizes.count * len(leaves) * out, width, build.dtype, build.device)
            return ExpertGroup(f"{inside}.experts", leaves, [out] * len(leaves), sizes.count, storage)

        self.router = build.linears([f"{inside}.{names.router}"], [sizes.count], width)
        self.router.routes = True
        self.gate_up = group((names.gate, names.up), sizes.width, width)
        self.down = group((names.down,), width, sizes.width)
        self.shared: Mlp | None = None
        if names.shared is not None and names.shared_gate is not None and sizes.shared_width:
            shared = f"{inside}.{names.shared}"
            leaves = (f"{shared}.{names.gate}", f"{shared}.{names.up}")
            self.shared = Mlp(build, leaves, f"{shared}.{names.down}", width, sizes.shared_width, activation=activation)
            self.shared_gate = build.linears([f"{inside}.{names.shared_gate}"], [1], width)
            self.shared_gate.routes = True

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        chosen, share = self.route(x)
        updates = [group.updates or ExpertUpdates((), ()) for group in (self.gate_up, self.down)]
        experts = Experts(
            self.sizes.count,
            self.gate_up.weight,
            self.down.weight,
            self.activation,
            updates[0].members,
            updates[1].members,
            max(update.dropout for update in updates) if torch.is_grad_enabled() else 0.0,
        )
        y = mixture(x, chosen, share, experts, (*updates[0].factors, *updates[1].factors))
        if self.shared is not None:
            y = y + self.shared_gate(x).sigmoid() * self.shared(x)
        return y

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> (the experts of each token [T, k], their shares [T, k] in float32 or wider)."""
        logits = self.router(x)
        probabilities = logits.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        share, chosen = probabilities.topk(self.sizes.chosen, dim=-1)
        if self.sizes.normalised:
            share = share / share.sum(-1, keepdim=True)
        return chosen, share


def expert_groups(model: nn.Module) -> Iterator[ExpertGroup]:
    """Every group of experts' linears, in the order of the layers."""
    return (module for module in model.modules() if isinstance(module, ExpertGroup))
