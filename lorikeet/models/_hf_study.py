"""Looking at a network of transformers' before it has weights: its linears, experts, head, and how it attends.

It is run once on tensors that have shapes and no numbers (ids and positions are real, so whatever decides by them can).
Each way of attending is tried in turn, and the first that hears of one call from every layer is taken. The head is
asked what becomes of some numbers: logits are multiplied and capped in the networks that do so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorikeet.base.errors import ModelError
from lorikeet.models import _hf_attention as serve
from lorikeet.models import _hf_graph as graph
from lorikeet.models._hf_model import Outline, Stack
from lorikeet.models._hf_names import Piece, pieces
from lorikeet.models.causal_lm import Shape
from lorikeet.ops.attention import PackedView

LENGTH = 6


@dataclass(frozen=True)
class _Run:
    """What one pass without numbers showed."""

    way: serve.Way
    asked: list[serve.Asked]
    width: int
    logits: Tensor | None  # of `_answers`


class _WithoutNumbers(TorchDispatchMode):
    """Ops on fake tensors give fake tensors; what has numbers is computed."""

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self._fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            with self._fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def look(
    make: Callable[[], Any], undo: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]], config: dict[str, Any]
) -> tuple[Shape, Outline]:
    """`make` builds the network, with the head it comes with; `undo` names its tensors as a checkpoint does.

    Raises ModelError where the network has no head, or does something to its logits that ours does not."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        network = make()
    text = network.config.get_text_config()
    head = head_of(network)
    found = pieces({key: tuple(tensor.shape) for key, tensor in graph.tensors_of(network)}, lambda x: undo(network, x))
    stacks = tuple(_stacks(network, found))
    linears = dict(_linears(network, found, head))
    if not linears and not stacks:
        raise ModelError(
            f"{type(network).__name__} has no linears that are found",
            given=" ".join(sorted({type(module).__name__ for module in network.modules()}))[:200],
            allowed="modules with one weight that are a matmul",
        )
    count = getattr(text, "num_hidden_layers", None)
    layers, blocks = graph.layers_of(network, count)
    module = network.get_submodule(head)
    capture = graph.Capture(module.weight, getattr(module, "bias", None))
    vocabulary, width = module.weight.shape
    replace_module(network, head, capture)
    graph.watch_layers(blocks)
    called = _note_calls(network)
    with torch.no_grad():
        run = _first_that_serves(network, capture, fake, len(blocks))
    # a module that takes the weight of its linear itself would not hear of an adapter there
    linears = {name: layout for name, layout in linears.items()
               if name in called or name.rpartition(".")[0] not in called}  # fmt: skip
    if run.width != width:
        raise ModelError(
            f"{type(network).__name__}: its head reads {width} numbers of a token, and is given {run.width}",
            try_="model.source=native, where the family is known",
        )
    scale, softcap = (1.0, None) if run.logits is None else _fitted(network, run.logits)
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    asked = [one for one in run.asked if one.layer >= 0] or [serve.Asked(0, 1, heads, 4)]
    wide = max([width, *(_out(network, name, layout) for name, layout in linears.items())])
    shape = Shape(
        vocab_size=vocabulary,
        width=width,
        layers=len(blocks),
        heads=max(one.heads for one in asked),
        kv_heads=max(one.kv_heads for one in asked),
        head_dim=max(one.width for one in asked),
        ffn_width=int(getattr(text, "intermediate_size", None) or wide),
        max_position=_context(text),
        config=config,
    )
    prefix = getattr(network, "base_model_prefix", "")
    return shape, Outline(run.way, layers, head, scale, softcap, linears, stacks, tuple(found), prefix)


def _note_calls(network: nn.Module) -> set[str]:
    """Fills with the names of the modules that are called."""
    called: set[str] = set()
    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    return called


def head_of(network: Any) -> str:
    """The name of the head. Raises ModelError where there is none that is a linear."""
    head = network.get_output_embeddings()
    for name, module in network.named_modules():
        if module is head and isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 2:
            return name
    raise ModelError(
        f"{type(network).__name__} has no head that is a linear",
        given=type(head).__name__,
        allowed="a causal language model",
    )


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the one called `name` is."""
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)


@contextmanager
def attending(network: Any, implementation: str) -> Iterator[None]:
    """While the block runs, the network looks for this implementation of attention."""
    before = network.config._attn_implementation
    network.config._attn_implementation = implementation
    try:
        yield
    finally:
        network.config._attn_implementation = before


def _linears(network: nn.Module, found: list[Piece], head: str) -> Iterator[tuple[str, graph.Layout]]:
    """(module, layout) of each linear that is one tensor in a checkpoint."""
    tried: dict[type, graph.Layout | None] = {}
    whole = {piece.key for piece in found if piece.rows is None}
    stems = {piece.key: piece.stem for piece in found}
    for name, module in network.named_modules():
        if name == head or f"{name}.weight" not in whole:
            continue
        layout = graph.layout_of(module, tried)
        bias = stems.get(f"{name}.bias")
        if layout is not None and bias in (None, stems[f"{name}.weight"]):
            yield name, layout


def _stacks(network: nn.Module, found: list[Piece]) -> Iterator[Stack]:
    """The experts that ours can be, each of whose linears is a tensor of its own in a checkpoint."""
    for name, module in network.named_modules():
        activation = graph.gate_of(module)
        if activation is None:
            continue
        names = graph.experts_of([f"{name}.gate_up_proj", f"{name}.down_proj"], found)
        if names is None or (len(names[0][1]), len(names[1][1])) != (2, 1):
            continue
        (owner, leaves), (other, down) = names
        yield Stack(name, (owner, tuple(leaves)), (other, tuple(down)), activation)


def _first_that_serves(network: Any, capture: graph.Capture, fake: FakeTensorMode, layers: int) -> _Run:
    own = network.config._attn_implementation
    windows = getattr(network.config.get_text_config(), "sliding_window", None) is not None
    ways: list[tuple[serve.Way, str]] = [("interface", serve.UNMASKED)]
    ways += [] if windows else [("sdpa", own)]
    ways += [("mask", serve.NAME), ("padded", own)]
    error: Exception | None = None
    for way, implementation in ways:
        try:
            run = _run(network, capture, fake, way, implementation)
        except Exception as found:  # transformers' code, or someone's own, asked for what it may not be made for
            capture.clear()
            error = found
            continue
        if way in ("interface", "sdpa") and sorted(one.layer for one in run.asked) != list(range(layers)):
            continue
        if way == "mask" and {one.layer for one in run.asked} != {-1}:
            continue
        if way in ("mask", "padded") or run.asked:
            return run
    raise ModelError(
        f"{type(network).__name__} cannot be run without numbers",
        given=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        allowed="networks that decide nothing by the numbers in their activations",
        try_="model.source=native, where the family is known",
    ) from error


def _run(network: Any, capture: graph.Capture, fake: FakeTensorMode, way: serve.Way, implementation: str) -> _Run:
    tokens = torch.zeros(LENGTH, dtype=torch.int64)
    positions = torch.arange(LENGTH)
    view = PackedView(torch.full((LENGTH,), LENGTH, dtype=torch.int32), positions)
    asked: list[serve.Asked] = []
    capture.answer = _numbers().expand(1, LENGTH, -1)
    serving = serve.Serving(view, positions, way, asked=asked)
    places = inspect.signature(network.forward).parameters
    given = {"position_ids": positions[None]} if "position_ids" in places and way != "padded" else {}
    with attending(network, implementation), serve.entered(serving), _WithoutNumbers(fake):
        out = network(input_ids=tokens[None], use_cache=False, **given)
    capture.answer = None
    taken, logits = capture.take(), getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or isinstance(logits, FakeTensor) or logits.shape[-1] != len(_numbers()):
        logits = None
    return _Run(way, asked, taken.shape[-1], None if logits is None else logits[0, -1].double())


def _numbers() -> Tensor:
    return torch.tensor([-3e5, -40.0, -2.0, -1e-3, 0.0, 1e-3, 0.5, 7.0, 90.0, 3e5], dtype=torch.float64)


def _fitted(network: nn.Module, logits: Tensor) -> tuple[float, float | None]:
    """(scale, softcap) that make `logits` of `_numbers`. Raises ModelError where none do."""
    numbers = _numbers()
    scale = (logits[5] / numbers[5]).item()
    cap = logits[-1].item()
    for softcap in (None, cap):
        made = scale * numbers
        made = made if softcap is None else softcap * torch.tanh(made / softcap)
        if torch.allclose(made, logits, rtol=1e-4, atol=1e-6):
            return float(f"{scale:.7g}"), None if softcap is None else float(f"{softcap:.7g}")
    raise ModelError(
        f"{type(network).__name__} does something else to its logits than to multiply and cap them",
        given=f"{[round(one, 3) for one in logits.tolist()]} of {numbers.tolist()}",
        try_="model.source=native, where the family is known",
    )


def _out(network: nn.Module, name: str, layout: graph.Layout) -> int:
    weight = network.get_parameter(f"{name}.weight")
    return weight.shape[0 if layout == "rows" else 1]


def _context(text: Any) -> int:
    """How long a text may be; ALiBi sets no end, and says how long the texts were that it was trained on."""
    for name in ("max_position_embeddings", "seq_length", "max_seq_len", "n_positions"):
        if isinstance(getattr(text, name, None), int):
            return getattr(text, name)
    return 2048
