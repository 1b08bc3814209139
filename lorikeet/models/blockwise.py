"""A network quantised by GPTQ, one block at a time: what is in memory is one block and what goes in and out of it.

The calibration rows go through the network as it will be: a block is rounded on what the rounded blocks before it
give, and with `true_sequential` each of its linears on what those before it give. Weights are read from the checkpoint
when their block's turn comes, and what a block came to is put on the disk at once; a block that is there from a walk
that was stopped is not rounded again, only walked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorikeet.base.errors import ModelError
from lorikeet.base.nouns import Batch
from lorikeet.checkpoints._blocks import Blocks
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.blockwise_experts import round_experts
from lorikeet.models.build import Build
from lorikeet.models.decoder import Block, Decoder
from lorikeet.models.experts import Mixture
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.models.load import Source, Watched, fill, identify
from lorikeet.models.slots import Slot, slots
from lorikeet.models.stored import StoredLinears, refuse_unknown, stored_quant
from lorikeet.ops.attention import PackedView, View
from lorikeet.ops.lora_linear import Prologue, lora_linear
from lorikeet.quant._gptq_layout import storable
from lorikeet.quant._gptq_solver import Hessian, SolverOptions, solve
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.none import NoQuant

META = torch.device("meta")

Parts = dict[str, dict[str, Tensor]]  # of each linear, what a file keeps of it
See = Callable[[Tensor], object]  # is given a group's inputs [T, in]


@dataclass(frozen=True)
class LinearError:
    """How far a linear's outputs moved, |X (W - W')^T|^2 / |X W^T|^2 on the calibration tokens it was rounded for. q,
    k and v, which are rounded together, are one; so are an expert's gate and up."""

    layer: int
    names: tuple[str, ...]
    error: float
    nearest_error: float  # of rounding to nearest
    tokens: int | None = None  # of the calibration, that reached it
    expert: int | None = None
    fell_back: bool = False  # an expert rounded mostly for the tokens of others: see blockwise_experts.py


@dataclass
class _Row:
    """One packed calibration row on its way through the blocks."""

    x: Tensor  # [T, D]
    ropes: dict[bool, tuple[Tensor, Tensor]]  # cos and sin [T, 1, E], of blocks with a window and without
    view: View


class _Entrance(nn.Module):
    """Stands where a block stands, and keeps what it would be given."""

    def __init__(self, window: int | None):
        super().__init__()
        self.window = window
        self.given: list[Tensor] = []

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View, wanted: None = None) -> Tensor:
        self.given = [x, cos, sin]
        return x


@dataclass
class Blockwise:
    """`walk` puts the quantised folder's tensors into `blocks`; `errors` fills while it runs."""

    checkpoint: Checkpoint
    options: SolverOptions
    rows: Sequence[Batch]
    dtype: torch.dtype
    device: torch.device
    true_sequential: bool = True
    after_block: Callable[[], object] = lambda: None
    errors: list[LinearError] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)  # linears whose sizes the format has no place for
    reordered: bool = False  # whether some linear's groups are not in the order of its inputs
    family: str | None = None  # the path of someone's own

    def __post_init__(self) -> None:
        family, spec = identify(self.checkpoint, self.family)
        stored = StoredLinears(self.checkpoint, stored_quant(self.checkpoint))
        refuse_unknown(self.checkpoint, stored.quant)
        if stored.quant is not None:
            raise ModelError(
                f"{self.checkpoint.path} is quantised already",
                given=stored.quant.model_dump()["kind"],
                try_="a dense model",
            )
        network = family.network(spec, Build(NoQuant(), self.dtype, META))
        if not isinstance(network, Decoder):
            remedy = "quant=nf4 or int8, which need no calibration; quant=gptq rounds to the nearest"
            given, known = f"{family.kind}: {spec.shape.layers} layers", "the families of docs/models.md"
            raise ModelError("GPTQ walks through native networks only", given=given, allowed=known, try_=remedy)
        self.network, self._source = network, Source(family, spec, Watched(self.checkpoint, self.dtype), stored)

    @property
    def layers(self) -> int:
        return len(self.network.blocks)

    @torch.no_grad()
    def walk(self, blocks: Blocks) -> None:
        """Round block after block. What `blocks` has already is taken as it is."""
        network = self.network
        self._plain("first", network.embedding, blocks, lambda: self._enter(network))
        for block in network.blocks:
            assert isinstance(block, Block)
            self._read(block)
            name = f"block-{block.index}"
            if name in blocks:
                self._take(block, blocks, name)
            else:
                before, parts = len(self.errors), self._round(block)
                told = {"errors": [asdict(error) for error in self.errors[before:]], "reordered": self.reordered}
                blocks.put(name, dict(_of_block(block, parts, self.dtype)), told)
            for row in self._rows:
                row.x = self._run(block, row)
            block.to(META)
            self.after_block()
        for name, part in (("norm", network.norm), ("head", network.untied)):
            if part is not None:
                self._plain(name, part, blocks)

    def tensors(self, blocks: Blocks) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all that the folder holds, one at a time, once the walk is done."""
        names = ["first", *(f"block-{i}" for i in range(self.layers)), "norm", "head"]
        for name in names:
            if name in blocks:
                yield from blocks.tensors(name)

    def _read(self, part: nn.Module) -> None:
        part.to_empty(device=self.device)
        fill(_slots(part), self._source, dtype=self.dtype, device=self.device)

    def _plain(
        self, name: str, part: nn.Module, blocks: Blocks, while_here: Callable[[], object] = lambda: None
    ) -> None:
        """A part that is not rounded."""
        self._read(part)
        while_here()
        if name not in blocks:
            blocks.put(name, {slot.name: slot.read(self.dtype) for slot in _slots(part)})
        part.to(META)

    def _take(self, block: Block, blocks: Blocks, name: str) -> None:
        """The block with the weights that an earlier walk found."""
        told = blocks.told(name)
        self.errors += [LinearError(**error | {"names": tuple(error["names"])}) for error in told["errors"]]
        self.reordered |= told["reordered"]
        kept, options = dict(blocks.tensors(name)), self.options
        format_ = "gptq" if options.sym else "gptq_v2"
        quant = Gptq(bits=options.bits, group_size=options.group_size, sym=options.sym, checkpoint_format=format_)
        for group in self._groups(block):
            for linear in group.linears:
                parts = {part: kept[f"{linear.name}.{part}"] for part in Gptq.stored_parts}
                whole = quant.empty(linear.out_features, linear.in_features, torch.float32, self.device)
                whole.take(0, linear.out_features, {part: tensor.to(self.device) for part, tensor in parts.items()})
                group.weight.write(linear.rows.start, whole.dense(torch.float32).to(self.dtype))

    def _groups(self, block: Block) -> list[LinearGroup]:
        """What is rounded of a block, in the order in which it computes. What routes tokens to experts stays dense."""
        groups = [part for part in block.modules() if isinstance(part, LinearGroup) and not part.routes]
        return [group for group in groups if self._storable(group)]

    def _enter(self, network: Decoder) -> None:
        """What the first block is given, of each row. The network's own `hidden` makes it, with its blocks away."""
        windows = {block.window is not None: block.window for block in network.blocks if isinstance(block, Block)}
        entrances = {windowed: _Entrance(window) for windowed, window in windows.items()}
        blocks, norm = network.blocks, network.norm
        network.blocks, network.norm = nn.ModuleList(entrances.values()), nn.Identity()  # type: ignore[assignment]
        self._rows = []
        for batch in self.rows:
            view = PackedView(batch.visible_until, batch.positions)
            network.hidden(batch.tokens.to(self.device), batch.positions.to(self.device), view)
            x = next(iter(entrances.values())).given[0]
            ropes = {windowed: (entrance.given[1], entrance.given[2]) for windowed, entrance in entrances.items()}
            self._rows.append(_Row(x, ropes, view))
        network.blocks, network.norm = blocks, norm

    def _run(self, block: Block, row: _Row) -> Tensor:
        out: Tensor = block(row.x, *row.ropes[block.window is not None], row.view)
        return out

    def _round(self, block: Block) -> Parts:
        """Round the block's linears, in the order in which they compute; the block then computes with the result."""
        groups = self._groups(block)
        mixtures = [part for part in block.modules() if isinstance(part, Mixture)]
        owners: dict[LinearGroup, Mixture] = {group: part for part in mixtures for group in part.expert_groups}
        steps = list(dict.fromkeys(owners.get(group, group) for group in groups))  # all experts are one
        found: Parts = {}
        for stage in [[step] for step in steps] if self.true_sequential else [steps]:
            hessians = {
                step: Hessian(step.weight.in_features, self.device) for step in stage if isinstance(step, LinearGroup)
            }
            fed: dict[Mixture, list[Tensor]] = {step: [] for step in stage if isinstance(step, Mixture)}
            seen: dict[LinearGroup, See] = {group: hessian.add for group, hessian in hessians.items()}
            seen |= {mixture.router: given.append for mixture, given in fed.items()}
            self._watch(block, seen)
            for step in stage:
                if isinstance(step, Mixture):
                    settle = partial(self._settle, found, block.index)
                    round_experts(step, fed.pop(step), settle, sequential=self.true_sequential)
                else:
                    self._settle(found, block.index, step, step.linears, hessians.pop(step))
        return found

    def _watch(self, block: Block, seen: dict[LinearGroup, See]) -> None:
        """Run all rows, and give each group's inputs [T, in] to its function."""
        for group, see in seen.items():
            group.attached = _collector(group, see, stop=len(seen) == 1)
        for row in self._rows:
            with suppress(_Enough):
                self._run(block, row)
        for group in seen:
            group.attached = None

    def _settle(
        self,
        found: Parts,
        layer: int,
        group: LinearGroup,
        linears: Sequence[FrozenLinear],
        hessian: Hessian,
        **told: Any,
    ) -> None:
        """Round `linears`, neighbours in the group: into the group's weight, and into `found` as a file keeps them."""
        start, stop = linears[0].rows.start, linears[-1].rows.stop
        solved = solve(group.weight.rows(start, stop, torch.float32), hessian.matrix, self.options)
        names, told = tuple(linear.name for linear in linears), {"tokens": int(hessian.rows)} | told
        self.errors.append(LinearError(layer, names, solved.error, solved.nearest_error, **told))
        self.reordered |= not torch.equal(solved.g_idx, solved.g_idx.sort().values)
        for linear in linears:
            rows = slice(linear.rows.start - start, linear.rows.stop - start)
            found[linear.name] = solved.parts(self.options.bits, rows, v1=self.options.sym)
        group.weight.write(start, solved.dense().to(self.dtype))

    def _storable(self, group: LinearGroup) -> bool:
        fits = all(storable(linear.out_features, linear.in_features, self.options.bits) for linear in group.linears)
        if not fits:
            self.dense += [linear.name for linear in group.linears]
        return fits


def _of_block(block: Block, parts: Parts, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that a file keeps of a block, in the order of its slots."""
    for slot in list(_slots(block)):
        linear_name = slot.name.removesuffix(".weight")
        if linear_name in parts:
            yield from ((f"{linear_name}.{part}", tensor) for part, tensor in parts.pop(linear_name).items())
        else:
            yield slot.name, slot.read(dtype)


class _Enough(Exception):
    """What the collector has seen is all that is wanted of the row."""


def _collector(group: LinearGroup, see: See, *, stop: bool) -> Callable[[Tensor, Prologue | None], Tensor]:
    """Computes in the group's place, and gives what it is fed to `see`."""

    def collect(x: Tensor, prologue: Prologue | None) -> Tensor:
        see(x if prologue is None else prologue.forward(x)[0])
        if stop:
            raise _Enough
        return lora_linear(x, group.weight, group.bias(), prologue=prologue)

    return collect


def _slots(part: nn.Module) -> Iterator[Slot]:
    """The slots of a part, or of the parts inside it."""
    own = getattr(part, "slots", None)
    return own() if own is not None else slots(part)
