"""Our linears, experts, head and layers in a network of transformers'.

What a module is, is found by trying: one weight [out, in] or [in, out] and perhaps a bias, whose forward is a matmul
with it, is a linear, whatever its class. Stacked experts are those whose gate is one of our activations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lorikeet.models import _hf_attention as serve
from lorikeet.models._hf_names import Piece
from lorikeet.models.experts import ExpertGroup, run_experts
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.swiglu import Activation, reference_swiglu

Layout = Literal["rows", "columns"]  # of a weight: [out, in], or [in, out]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh", "gelu")
TRIED = 1 << 26  # weights of more numbers are not tried at full size


class Linear(nn.Module):
    """In the place of a linear of transformers': any leading dimensions, and the attributes that modules look at."""

    def __init__(self, group: LinearGroup, dtype: torch.dtype):
        super().__init__()
        self.group, self._dtype = group, dtype

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return self.group(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    @property
    def weight(self) -> Tensor:
        return self.group.linears[0].dense(self._dtype)

    @property
    def bias(self) -> Tensor | None:
        return self.group.linears[0].bias

    @property
    def in_features(self) -> int:
        return self.group.linears[0].in_features

    @property
    def out_features(self) -> int:
        return self.group.linears[0].out_features


class Capture(nn.Module):
    """In the place of the head: keeps what it is given, the last hidden states, and answers with next to nothing."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.weight, self.bias = weight, bias
        self._taken: list[Tensor] = []
        self.answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, 1], or `answer`."""
        self._taken.append(x)
        return x[..., :1] if self.answer is None else self.answer

    def take(self) -> Tensor:
        """What it was given last."""
        taken = self._taken.pop()
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what was given."""
        self._taken.clear()


class OnMeta(TorchFunctionMode):
    """While it is the mode, `torch.empty` makes tensors without memory: a network's weights, but not its tables."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **kwargs | ({"device": "meta"} if func is torch.empty else {}))


def layout_of(module: nn.Module, tried: dict[type, Layout | None]) -> Layout | None:
    """Which way the module's weight lies, if it is a linear at all. `tried` remembers classes."""
    own = dict(module.named_parameters(recurse=False))
    if not {"weight"} <= own.keys() <= {"weight", "bias"} or own["weight"].dim() != 2 or list(module.children()):
        return None
    kind = type(module)
    if kind not in tried:
        tried[kind] = "rows" if kind is nn.Linear else _try(module, own)
    return tried[kind]


def _try(module: nn.Module, own: dict[str, nn.Parameter]) -> Layout | None:
    shape, generator = own["weight"].shape, torch.Generator().manual_seed(0)
    if isinstance(module, nn.Embedding) or shape.numel() > TRIED:
        return None
    alike = copy.copy(module)
    weight, bias = torch.randn(*shape, generator=generator), None
    alike._parameters = dict(module._parameters) | {"weight": nn.Parameter(weight)}  # a bias may be there, and None
    if "bias" in own:
        bias = torch.randn(own["bias"].shape, generator=generator)
        alike._parameters["bias"] = nn.Parameter(bias)
    layouts: tuple[tuple[Layout, Tensor], ...] = (("rows", weight), ("columns", weight.T))
    for layout, matrix in layouts:
        x = torch.randn(2, 3, matrix.shape[1], generator=generator)
        try:
            found = alike(x)
            if torch.allclose(found, F.linear(x, matrix, bias), rtol=1e-3, atol=1e-3):
                return layout
        except Exception:  # someone's own code, given what it may not be made for
            continue
    return None


def gate_of(module: nn.Module) -> Activation | None:
    """The activation of stacked experts [E, 2F, D] and [E, D, F]; None for experts of another form."""
    gate_up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter) or gate_up.dim() != 3:
        return None
    experts, rows, width = gate_up.shape
    plain = (getattr(module, "is_concatenated", False), getattr(module, "has_gate", False)) == (True, True)
    odd = any(getattr(module, name, True) for name in ("is_transposed", "has_bias", "has_post_expert_norm"))
    if not plain or odd or down.shape != (experts, width, rows // 2):
        return None
    x = torch.linspace(-4, 4, 6 * 7).view(7, 6)
    for activation in ACTIVATIONS:
        try:
            if torch.allclose(module._apply_gate(x), reference_swiglu(x, activation), rtol=1e-5, atol=1e-6):  # type: ignore[operator]
                return activation
        except Exception:  # a gate that needs more than x
            return None
    return None


def experts_of(keys: Sequence[str], found: Sequence[Piece]) -> list[tuple[str, list[str]]] | None:
    """(the experts' name in a checkpoint, the leaves of each) for each key, where every expert's linears lie apart."""
    names = []
    for key in keys:
        mine = [piece for piece in found if piece.key == key]
        parts = [piece.stem.rsplit(".", 2) for piece in mine]
        if any(len(part) != 3 or not piece.name.endswith(".weight") for part, piece in zip(parts, mine)):
            return None
        owners, leaves = {part[0] for part in parts}, list(dict.fromkeys(part[2] for part in parts))
        order = [(int(part[1]), leaves.index(part[2])) for part in parts if part[1].isdigit()]
        if len(owners) != 1 or order != [(e, i) for e in range(len(mine) // len(leaves)) for i in range(len(leaves))]:
            return None
        names.append((owners.pop(), leaves))
    return names


def experts(module: nn.Module, x: Tensor, chosen: Tensor, share: Tensor) -> Tensor:
    """For transformers' ExpertsInterface: x [T, D], chosen and share [T, k] -> [T, D]."""
    serving = serve.now()
    if serving is not None and serving.asked is not None:
        return torch.empty_like(x)
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if isinstance(gate_up, ExpertGroup) and isinstance(down, ExpertGroup):
        return run_experts(gate_up, down, module.lorikeet_activation, x, chosen, share)  # type: ignore[arg-type]
    return type(module).forward.__wrapped__(module, x, chosen, share)  # type: ignore[attr-defined]


def layers_of(network: nn.Module, count: int | None) -> tuple[str, list[nn.Module]]:
    """(name, layers): the largest list of modules, of `count` where there is such a one."""
    lists = [(name, list(module)) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [one for one in lists if len(one[1]) == count] or lists

    def size(one: tuple[str, list[nn.Module]]) -> int:
        return sum(parameter.numel() for module in one[1] for parameter in module.parameters())

    return max(fitting, key=size, default=("", []))


def watch_layers(layers: Sequence[nn.Module]) -> None:
    """Each layer says that it is the one that computes, and computes twice where that is asked."""
    for index, layer in enumerate(layers):
        layer.forward = _watched(index, ref(layer))


def _watched(index: int, layer: Callable[[], nn.Module | None]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        module, serving = layer(), serve.now()
        assert module is not None
        plain = type(module).forward
        if serving is None:
            return plain(module, *args, **kwargs)
        inside = serve.at_layer(serving, index)
        if inside.way == "mask" and isinstance(kwargs.get("alibi"), Tensor):
            kwargs["alibi"] = serve.by_position(kwargs["alibi"], inside.positions)

        def run(*args: Any, **kwargs: Any) -> Any:
            with serve.entered(inside):
                return plain(module, *args, **kwargs)

        if index < inside.twice:
            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)
        return run(*args, **kwargs)

    return forward


def tensors_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name in the state dict, tensor), each tensor once."""
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
