"""The dense feed-forward of a block: down(act(gate x) * up x)."""

from __future__ import annotations

from torch import Tensor, nn

from lorikeet.models.build import Build, Norm
from lorikeet.ops.swiglu import Activation, Gated


class Mlp(nn.Module):
    """`gate_up` names two linears, gate first, or one that holds both."""

    def __init__(
        self,
        build: Build,
        gate_up: tuple[str, ...],
        down: str,
        width: int,
        ffn_width: int,
        *,
        activation: Activation = "silu",
        bias: bool = False,
    ):
        super().__init__()
        sizes = [2 * ffn_width // len(gate_up)] * len(gate_up)
        self.activation = activation
        self.gate_up = build.linears(gate_up, sizes, width, bias=bias)
        self.down = build.linears([down], [width], ffn_width, bias=bias)

    def forward(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """x [T, D] -> [T, D] of x, or of norm(x). Kept for the backward pass: x, gate and up."""
        gate_up = self.gate_up(x) if norm is None else norm.before(self.gate_up, x)
        return self.down(gate_up, Gated(self.activation))
