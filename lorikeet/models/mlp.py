"""The dense feed-forward of a block: down(act(gate x) * up x)."""

from __future__ import annotations

from torch import Tensor, nn

from lorikeet.models.build import Build
from lorikeet.ops.swiglu import Activation, swiglu


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

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.down(swiglu(self.gate_up(x), self.activation))
