"""A training step without numbers: the real `train_step` on fake tensors, and what it held when it held most.

Nothing here knows a formula of a layer. The network is built from its config, the adapter attaches itself, the
optimizer makes its state, and the step runs as in training, so whatever an op saves or allocates is counted. The same
function measures on real tensors (`measure`), which is how the prediction is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorikeet.adapters._contract import Adapter
from lorikeet.base.errors import LorikeetError, ModelError
from lorikeet.base.nouns import Batch
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.families._contract import Family
from lorikeet.models.mapped_rows import MappedRows
from lorikeet.models.spec import Spec
from lorikeet.plan.tensors import HEAD, Tensors
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step


@dataclass(frozen=True)
class Simulated:
    """What a step takes. Bytes are those of tensors; `by_kind` (tensors.KINDS) adds up to `peak_bytes`."""

    peak_bytes: int
    by_kind: dict[str, int]
    phase: str  # of the peak: forward, backward, optimizer
    place: str  # the module that was computing, by its name in the network
    op: str  # what was computed, by PyTorch's name
    flops: dict[str, float]  # by phase; a recomputed block counts in backward
    trainable: int

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def largest(self) -> str:
        """The kind of bytes that there are most of."""
        return max(self.by_kind, key=self.by_kind.__getitem__)


@dataclass(frozen=True)
class Network:
    """A network that can be built without its weights."""

    family: Family
    spec: Spec
    quant: Quant
    dtype: torch.dtype
    mapped: MappedRows | None = None  # what stays in the checkpoint's file

    def build(self, device: str = "cpu") -> CausalLM:
        """The network, empty; on the CPU under a fake mode, or on `meta`, it takes no memory."""
        build = Build(self.quant, self.dtype, torch.device(device), self.mapped)
        network = self.family.network(self.spec, build)
        build.check(network.groups())
        for group in network.groups():
            for linear in group.linears:
                group.weight.expect(linear.rows.start, linear.rows.stop)
        return network


def simulate(network: Network, adapter: Adapter, options: TrainOptions, batches: Sequence[Batch]) -> Simulated:
    """Run the step `batches` (of at least one row) without numbers.

    Raises ModelError for a network of one's own that looks at its numbers, and whatever the adapter finds wrong."""
    watched = Tensors(fake=True)
    assert watched.fake is not None
    with watched.fake:
        model = network.build()
        adapter.attach(model, seed=options.seed)
    try:
        return _run(model, adapter.parameters(model), options, batches, watched)
    except LorikeetError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, LorikeetError):
            raise error.__cause__ from error
        raise ModelError(
            "the step cannot be run without numbers",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            allowed="networks and adapters that decide nothing by the numbers in their activations",
            try_="a short run instead: train.max_steps=2 reports its peak_rss_bytes",
        ) from error


def measure(
    model: CausalLM, parameters: Mapping[str, nn.Parameter], options: TrainOptions, batches: Sequence[Batch]
) -> Simulated:
    """The same of a real network, which is trained by this step."""
    return _run(model, parameters, options, batches, Tensors(fake=False))


def _run(
    model: CausalLM,
    parameters: Mapping[str, nn.Parameter],
    options: TrainOptions,
    batches: Sequence[Batch],
    watched: Tensors,
) -> Simulated:
    model.gradient_checkpointing = options.gradient_checkpointing
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(places(model, watched))
        stack.enter_context(watched)
        stack.enter_context(watched.counting())
        _own(model, parameters, watched)
        stepper = _Watched(parameters, options, watched)
        stepper.begin()
        watched.start()
        train_step(model, stepper, batches, learning_rate=options.learning_rate, noise=options)
        stepper.clear()
    peak = watched.peak
    return Simulated(
        peak.bytes,
        watched.by_kind(),
        peak.phase,
        peak.place,
        peak.op.removeprefix("aten."),
        dict(watched.flops),
        sum(parameter.numel() for parameter in parameters.values()),
    )


class _Watched(Stepper):
    """The real stepper, which says where the step is and what its tensors are for."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: TrainOptions, watched: Tensors):
        super().__init__(parameters, options)
        self._tensors = watched

    def begin(self) -> None:
        """Make the optimizer's state, as a step before this one would have."""
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0)
        self.clear()
        self._tensors.phase = "forward"

    def backward(self, loss: Tensor, *, last_at: float | None = None) -> None:
        watched = self._tensors
        watched.keep()
        watched.phase = "backward"
        super().backward(loss, last_at=last_at)
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                watched.see(parameter.grad, "gradients")
        watched.phase = "forward"

    def step(self, rate: float) -> float:
        watched = self._tensors
        watched.phase = "optimizer"
        norm = super().step(rate)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, Tensor):
                    watched.see(tensor, "optimizer")
        return norm


def _own(model: CausalLM, parameters: Mapping[str, nn.Parameter], watched: Tensors) -> None:
    """Tell the weights, what a quantisation keeps beside them, and what trains."""
    trained = {id(parameter) for parameter in parameters.values()}
    beside: set[int] = set()
    for module in model.modules():
        if isinstance(module, FrozenWeight):
            stored = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            largest = max(stored, key=lambda tensor: tensor.nbytes, default=None)
            beside |= {id(tensor) for tensor in stored if tensor is not largest}

    def kind(_name: str, tensor: Tensor) -> str:
        if id(tensor) in trained:
            return "trained"
        return "quantisation state" if id(tensor) in beside else "weights"

    watched.own({**dict(model.named_parameters()), **dict(model.named_buffers())}, kind)


@contextmanager
def places(model: CausalLM, watched: Tensors) -> Iterator[None]:
    """While the block runs, `watched` hears which module computes; the head's loss is a place of its own."""
    handles: list[Any] = []

    def entering(name: str) -> Callable[..., None]:
        return lambda *_: watched.enter(name)

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(entering(name)))
            # a recomputed block ends with an exception as soon as it has what it needs
            handles.append(module.register_forward_hook(lambda *_: watched.leave(), always_call=True))
    head, loss = model.head, model.head.loss

    def told(*args: Any, **kwargs: Any) -> Any:
        watched.enter(HEAD)
        try:
            return loss(*args, **kwargs)
        finally:
            watched.leave()

    head.loss = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.loss
        for handle in handles:
            handle.remove()
