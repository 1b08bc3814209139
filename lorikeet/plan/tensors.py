"""Every tensor's storage from birth to death, by what it is for: how many bytes stood when most of them did.

`Tensors` is a dispatch mode. On real tensors it measures; with `fake=True` floats become fake (a shape and a dtype,
no memory) and it predicts. Integers stay real: ids, positions and indices decide shapes, so the host's work on them
(packing views, buckets of attention, routes of experts) is done as in a run, and no shape has to be guessed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lorikeet.kernels import counting

KINDS = (
    "weights", "quantisation state", "trained", "gradients", "optimizer", "saved activations", "temporaries", "head"
)  # fmt: skip
HEAD = "head"  # the place of the head and its loss
_aten = torch.ops.aten
# what an op of PyTorch's takes for itself on a CPU and gives back before it returns, as a share of its first argument
_INSIDE = {_aten.logsumexp: 1.0}


@dataclass(slots=True, eq=False)
class Life:
    """One storage."""

    size: int  # bytes
    born: int  # by the clock, which counts births and deaths
    phase: str
    place: str  # the module that was computing
    died: int | None = None
    kind: str | None = None  # where it is known, else it follows from `phase` and `saved`
    saved: bool = False  # it was there when the pass that made it ended


@dataclass(frozen=True)
class Peak:
    """The moment when most bytes stood."""

    bytes: int = 0
    clock: int = -1
    phase: str = ""
    place: str = ""
    op: str = ""


class Tensors(TorchDispatchMode):
    """Watches all storages that ops make or meet. `phase` is set by whoever runs the step, places by `watch`."""

    def __init__(self, *, fake: bool):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        self.phase = "before"
        self.live = self.clock = 0
        self.peak = Peak()
        self.flops: dict[str, float] = {}  # by phase
        self._lives: dict[int, Life] = {}  # storage's address -> life
        self._all: list[Life] = []
        self._references: dict[int, weakref.ref[Any]] = {}
        self._stack: list[str] = []
        self._place = ""  # where the backward pass is
        self._recomputed = 0  # the clock when the outermost module began
        self._draw = torch.Generator().manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # a fake tensor is asked for its device at every turn
            return args[0].fake_device
        kwargs = kwargs or {}
        if _is_made_of_others(func):  # below autograd such an op arrives whole: `linear` hides a matmul
            with self:
                return func.decompose(*args, **kwargs)
        given = list(_tensors((*args, *kwargs.values())))
        out = func(*args, **kwargs) if self.fake is None else self._without_numbers(func, types, args, kwargs, given)
        packet = getattr(func, "overloadpacket", None)
        if self.phase == "backward" and not self._stack:
            self._find_place(given)
        for tensor in given:
            self.see(tensor)
        for tensor in _tensors((out,)):
            self.see(tensor)
        extra = int(_INSIDE[packet] * given[0].nbytes) if packet in _INSIDE and given else 0
        self._look(str(packet), extra)
        if packet in flop_registry:
            self.count(str(packet), flop_registry[packet](*args, **kwargs, out_val=out))
        return out

    def _without_numbers(
        self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]
    ) -> Any:
        assert self.fake is not None
        fakes = [tensor for tensor in given if isinstance(tensor, FakeTensor)]
        if given and not fakes:
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default and not _counts(fakes[0]):
            return True if fakes[0].dtype == torch.bool else 1.0  # a loss, a norm, a test for finite numbers
        out: Any = self.fake.dispatch(func, types, args, kwargs)
        if func is _aten.topk.default:  # experts' routes: any k of them, as good as a router that is in balance
            values, indices = out
            drawn = torch.rand(given[0].shape, generator=self._draw).topk(args[1], *args[2:3]).indices
            return values, drawn.to(indices.dtype)
        if not given and isinstance(out, Tensor) and _counts(out) and "empty" not in func.name():
            return func(*args, **kwargs)
        return out

    def count(self, name: str, flops: float) -> None:
        """Add operations to those of the phase."""
        self.flops[self.phase] = self.flops.get(self.phase, 0.0) + flops

    def see(self, tensor: Tensor, kind: str | None = None, place: str | None = None) -> Life | None:
        """The life of the tensor's storage; it begins now where nobody saw it before. None for what has no storage."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and the like
            return None
        key = storage._cdata
        life = self._lives.get(key)
        if life is None:
            self.clock += 1
            life = Life(storage.nbytes(), self.clock, self.phase, self._where())
            self._lives[key] = life
            self._all.append(life)
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
            self.live += life.size
        if kind is not None:
            life.kind = kind
        if place is not None:
            life.place = place
        return life

    def _forget(self, key: int) -> None:
        life = self._lives.pop(key, None)
        self._references.pop(key, None)
        if life is not None:
            self.clock += 1
            life.died = self.clock
            self.live -= life.size

    def _look(self, op: str, extra: int) -> None:
        if self.live + extra > self.peak.bytes:
            self.peak = Peak(self.live + extra, self.clock, self.phase, self._where(), op)

    def start(self) -> None:
        """Forget the peak and the operations so far, but not what is alive."""
        self.peak, self.flops = Peak(), {}
        self._all = [life for life in self._all if life.died is None]

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind at the peak; their sum is the peak."""
        found = dict.fromkeys(KINDS, 0)
        clock = self.peak.clock
        for life in self._all:
            if life.born <= clock and (life.died is None or life.died > clock):
                found[_kind(life)] += life.size
        inside = HEAD if self.peak.place == HEAD else "temporaries"
        found[inside] += self.peak.bytes - sum(found.values())
        return found

    # -- where it is

    def _where(self) -> str:
        return self._stack[-1] if self._stack else self._place

    def _find_place(self, given: Iterable[Tensor]) -> None:
        """The backward pass is where the tensors that it reads were made, or belong."""
        places = [
            life.place
            for tensor in given
            if (life := self._lives.get(tensor.untyped_storage()._cdata)) is not None
            and life.place
            and (life.phase == "forward" or life.kind in ("weights", "trained"))
        ]
        if places:
            self._place = max(places, key=len)

    def enter(self, place: str) -> None:
        """A module begins."""
        if not self._stack:
            self._recomputed = self.clock
        self._stack.append(place)

    def leave(self) -> None:
        """A module ends. What a recomputed block leaves behind in the backward pass is saved for that block's."""
        if self._stack:
            self._place = self._stack.pop()
        if not self._stack and self.phase == "backward":
            self.keep(since=self._recomputed)

    def keep(self, since: int = 0) -> None:
        """A forward pass ends: what it made and what is still there is saved for the backward pass."""
        for life in self._lives.values():
            if life.born > since and life.phase in ("forward", "backward"):
                life.saved = True

    def own(self, tensors: Mapping[str, Tensor], kind: Callable[[str, Tensor], str] | str) -> None:
        """Say what these are for; the names of parameters say where they belong."""
        for name, tensor in tensors.items():
            self.see(tensor, kind if isinstance(kind, str) else kind(name, tensor), name.rpartition(".")[0])

    def counting(self) -> Any:
        """A context in which compiled kernels tell their operations."""
        return counting.counting(self.count)


@cache
def _is_made_of_others(func: Any) -> bool:
    """Whether the op is only a name for others, wherever it runs."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return isinstance(func, torch._ops.OpOverload) and func.has_kernel_for_dispatch_key(key)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an op's arguments or results; lists of them are looked into."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _counts(tensor: Tensor) -> bool:
    """Whether it holds integers that a host may read: ids, indices, lengths."""
    return tensor.dtype in (torch.int64, torch.int32)


def _kind(life: Life) -> str:
    if life.kind is not None:
        return life.kind
    if life.place == HEAD:
        return HEAD
    return "saved activations" if life.saved else "temporaries"
