"""Does the way a step is computed change what it computes? Each way against another that differs in one thing.

Loss and gradients of one step over a few conversations, computed twice for each row of the table: accumulated or in one
row, padded or not, packed or each alone, prefixes shared or repeated, layers kept or computed twice, and so on. One
last row holds the step as the run computes it against the plain one (plain_step.py), where all of these meet.

Limits. In float32 two right computations differ by their rounding alone, some 1e-6: 1e-4 is asked. In bfloat16 and
float16 rounding makes differences that depend on the model, and they are measured: the plain step once more, with the
sum inside each matrix product taken in two halves. A difference up to FACTOR times that is taken for rounding, and one
up to the dtype's rounding unit.

What trains begins at zero in some adapters (LoRA's B), where half of the gradients are zero and nothing could be told
apart; so tensors of zeros are filled with small numbers first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorikeet import kernels
from lorikeet.base.nouns import Batch, Example
from lorikeet.base.rng import torch_rng
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.train.noise import QUIET, NoiseOptions
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step
from lorikeet.verify.plain_step import (
    Computed,
    DefinedView,
    Halved,
    HeadSum,
    Recorder,
    by_hand,
    one_by_one,
    twin,
)

FLOORS = {torch.float64: 1e-9, torch.float32: 1e-4}  # of other dtypes the limit is what rounding makes
FACTOR = 4.0
SMALL = 0.02  # standard deviation of what tensors of zeros are filled with


@dataclass(frozen=True)
class Difference:
    """Relative: of the loss, of all gradients together, and of the worst tensor's gradient."""

    loss: float
    gradient: float
    tensor: float
    worst: str = ""  # the tensor's name

    def within(self, limits: Difference) -> bool:
        """False too for what is not a number."""
        return all(getattr(self, name) <= getattr(limits, name) for name in ("loss", "gradient", "tensor"))


@dataclass(frozen=True)
class Row:
    """One way to compute against another."""

    what: str
    compared: str
    verdict: str  # kept | BROKEN | not here
    difference: Difference | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the certificate."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class Settings:
    """How the run computes."""

    train: TrainOptions  # with row_tokens decided
    share: bool  # whether the run's rows share prefixes
    may_share: bool  # whether they could, were nothing drawn
    kernels: kernels.Kernels
    threads: int

    @property
    def noise(self) -> NoiseOptions:
        return NoiseOptions.model_validate({name: getattr(self.train, name) for name in NoiseOptions.model_fields})


def relative(found: Computed, expected: Computed) -> Difference:
    """How far `found` is from `expected`. A tensor with next to no gradient is measured against all of them."""
    pairs = {name: (found.gradients[name], one) for name, one in expected.gradients.items()}
    lengths = {name: one.double().norm().item() for name, (_, one) in pairs.items()}
    apart = {name: (a.double() - b.double()).norm().item() for name, (a, b) in pairs.items()}
    whole = math.hypot(*lengths.values())
    share = whole / math.sqrt(len(pairs)) / 10 or 1.0
    each = {name: apart[name] / max(lengths[name], share) for name in pairs}
    worst = max(each, key=lambda name: math.inf if math.isnan(each[name]) else each[name])
    loss = abs(found.loss - expected.loss) / (abs(expected.loss) or 1.0)
    return Difference(loss, math.hypot(*apart.values()) / (whole or 1.0), each[worst], worst)


def limits(dtype: torch.dtype, noise: Difference | None) -> Difference:
    """What is allowed in `dtype`, where rounding alone was found to make `noise`; None: by the dtype alone."""
    if noise is None:
        floor = FLOORS[dtype]
        return Difference(floor, floor, 10 * floor)  # one tensor's rounding is not evened out by the others'
    least = torch.finfo(dtype).eps / 2  # two losses may round alike by chance
    loss, gradient, tensor = (max(least, FACTOR * one) for one in (noise.loss, noise.gradient, noise.tensor))
    return Difference(loss, gradient, tensor)


def choose(examples: Sequence[Example], *, conversations: int, tokens: int) -> list[Example]:
    """A few of the first 256 examples, the first ones that fit into `tokens` together; where none does, the end of the
    shortest."""
    looked = [examples[i] for i in range(min(256, len(examples)))]
    found: list[Example] = []
    for example in looked:
        used = sum(len(one.tokens) for one in found)
        if len(found) < conversations and used + len(example.tokens) <= tokens:
            found.append(example)
    if found:
        return found
    shortest = min(looked, key=lambda example: len(example.tokens))
    weights = shortest.weights[-tokens:].copy()
    weights[0] = 0
    return [Example(shortest.tokens[-tokens:], weights, shortest.origin)]


class Invariance:
    """The comparisons, over one model with what trains on it."""

    def __init__(
        self,
        model: CausalLM,
        parameters: Mapping[str, nn.Parameter],
        examples: Sequence[Example],
        settings: Settings,
    ):
        self.model, self.settings = model, settings
        self.examples = [*examples, twin(min(examples, key=lambda example: len(example.tokens)))]
        quiet = settings.train.model_copy(update={"optimizer_in_backward": False})
        self.recorder = Recorder(parameters, quiet)
        with torch.no_grad():
            for name, parameter in parameters.items():
                if not parameter.any():
                    drawn = torch.randn(parameter.shape, generator=torch_rng(settings.train.seed, "small", name))
                    parameter.copy_(SMALL * drawn)

    def rows(self) -> Iterator[Row]:
        """The table, row by row as it is computed."""
        for what, compared, pair in self._pairs():
            if isinstance(pair, str):
                yield Row(what, compared, "not here", reason=pair)
                continue
            found = relative(*pair())
            yield Row(what, compared, "kept" if found.within(self.limits) else "BROKEN", found)

    @cached_property
    def noise(self) -> Difference:
        """What rounding alone makes."""
        with Halved():
            halved = self._by_hand(view=DefinedView)
        return relative(halved, self.plain)

    @cached_property
    def limits(self) -> Difference:
        dtype = self.model.dtype
        return limits(dtype, None if dtype in FLOORS else self.noise)

    @cached_property
    def plain(self) -> Computed:
        """The plain step."""
        return self._by_hand(view=DefinedView)

    @cached_property
    def packed(self) -> Computed:
        """All conversations in one row, no prefix shared."""
        return self._step([pack_row(self._ordered(), share=False)])

    @cached_property
    def bare(self) -> Computed:
        """The same without padding, from whole logits."""
        return self._bare()

    @cached_property
    def as_run(self) -> Computed:
        """The run's own way."""
        return self._as_run()

    def _pairs(self) -> Iterator[tuple[str, str, str | Callable[[], tuple[Computed, Computed]]]]:
        settings, long = self.settings, max(len(one.tokens) for one in self.examples)
        parts = plan_rows(self.examples, row_tokens=max(long, sum(len(o.tokens) for o in self.examples) // 3))
        yield (
            "accumulation",
            f"{len(parts)} rows against one",
            lambda: (self._step([pack_row(part, share=False) for part in parts]), self.packed),
        )
        yield (
            "padding",
            "rows padded to multiples of 64 against rows as they are",
            lambda: (self.packed, self._bare(loss=_chunks(None))),
        )
        yield (
            "packing",
            f"{len(self.examples)} conversations in a row against each alone",
            lambda: (self.bare, self._by_hand(eager=False)),
        )
        cannot = "" if settings.may_share else "this model's rows share no prefixes"
        yield "sharing", "a prefix once against repeated", cannot or (lambda: (self._bare(share=True), self.bare))
        dropout = "with dropout as the run draws it" if self._drawn else "nothing is drawn"
        yield (
            "checkpointing",
            f"layers computed twice against once, {dropout}",
            lambda: (self._drawing(True), self._drawing(False)),
        )
        yield (
            "chunked loss",
            "logits in chunks against whole logits",
            lambda: (self._bare(loss=_chunks(3)), self.bare),
        )
        yield (
            "attention",
            "as it runs against its definition",
            lambda: (self._by_hand(eager=False), self._by_hand(eager=False, view=DefinedView)),
        )
        on_cpu = self.model.device.type == "cpu"
        there = on_cpu and settings.kernels != "eager" and kernels.identity() != "eager"
        yield (
            "kernels",
            "compiled against plain PyTorch",
            (lambda: (self.as_run, self._as_run(eager=True))) if there else "plain PyTorch computes this run",
        )
        yield (
            "threads",
            "two against one",
            (lambda: (self._as_run(threads=2), self._as_run(threads=1))) if on_cpu else "not on the CPU",
        )
        yield "all of it", "as the run computes against the plain step", lambda: (self.as_run, self.plain)

    @property
    def _drawn(self) -> bool:
        return self.settings.noise.draws or bool(_dropouts(self.model))

    def _ordered(self) -> list[Example]:
        (row,) = plan_rows(self.examples, row_tokens=1 << 40, share=False)
        return row

    def _as_run(self, *, eager: bool = False, threads: int | None = None) -> Computed:
        options = self.settings.train
        assert options.row_tokens is not None
        rows = plan_rows(self.examples, row_tokens=options.row_tokens, share=self.settings.share)
        batches = [pack_row(row, share=self.settings.share) for row in rows]
        with self._computing(eager=eager, threads=threads, checkpointing=options.gradient_checkpointing):
            return self._run(batches, QUIET)

    def _step(self, batches: Sequence[Batch]) -> Computed:
        with self._computing():
            return self._run(batches, QUIET)

    def _drawing(self, twice: bool) -> Computed:
        """A step with what the run draws, in rows that allow it."""
        share = self.settings.share and not self._drawn
        with self._computing(checkpointing=twice, quiet=False):
            return self._run([pack_row(self._ordered(), share=share)], self.settings.noise)

    def _bare(self, *, share: bool = False, **options: Any) -> Computed:
        """All conversations in one row, without padding."""
        with self._computing():
            return by_hand(self.model, self.recorder, [pack_row(self._ordered(), share=share)], **options)

    def _by_hand(self, *, eager: bool = True, **options: Any) -> Computed:
        with self._computing(eager=eager, threads=1 if eager else None):
            return by_hand(self.model, self.recorder, one_by_one(self.examples), **options)

    def _run(self, batches: Sequence[Batch], noise: NoiseOptions) -> Computed:
        """The very step of a run, but that nothing moves."""
        seed = self.settings.train.seed
        result = train_step(self.model, self.recorder, batches, learning_rate=0.0, seed=seed, noise=noise)
        return Computed(result.loss, self.recorder.gradients())

    @contextmanager
    def _computing(
        self,
        *,
        eager: bool = False,
        threads: int | None = None,
        checkpointing: bool | int = False,
        quiet: bool = True,
    ) -> Iterator[None]:
        """One way to compute; `quiet` is without dropout."""
        before, twice = torch.get_num_threads(), self.model.gradient_checkpointing
        dropouts = _dropouts(self.model) if quiet else {}
        torch.set_num_threads(threads or self.settings.threads)
        kernels.choose("eager" if eager else self.settings.kernels)
        self.model.gradient_checkpointing = checkpointing
        for module in dropouts:
            module.dropout = 0.0  # type: ignore[assignment]
        try:
            yield
        finally:
            for module, probability in dropouts.items():
                module.dropout = probability  # type: ignore[assignment]
            self.model.gradient_checkpointing = twice
            kernels.choose(self.settings.kernels)
            torch.set_num_threads(before)


def _chunks(count: int | None) -> HeadSum:
    """The head's own sum of losses, in so many chunks or as it chooses them."""

    def loss(head: Head, states: Tensor, row: Batch) -> Tensor:
        chunk = None if count is None else max(1, len(row.targets) // count)
        return head.loss(states, row.targets, row.weights, chunk=chunk).loss

    return loss


def _dropouts(model: nn.Module) -> dict[nn.Module, float]:
    """The modules that drop, and how often."""
    found = {module: getattr(module, "dropout", None) for module in model.modules()}
    return {module: value for module, value in found.items() if isinstance(value, float) and value > 0}


def table(rows: Sequence[Row], allowed: Difference) -> list[str]:
    """For people."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'':<{width}}  {'loss':>8} {'gradient':>9} {'tensor':>8}   verdict"]
    for row in rows:
        if row.difference is None:
            lines.append(f"{row.what:<{width}}  {'-':>8} {'-':>9} {'-':>8}   not here: {row.reason}")
            continue
        figures = [row.difference.loss, row.difference.gradient, row.difference.tensor]
        told = f"{row.what:<{width}}  {figures[0]:>8.1e} {figures[1]:>9.1e} {figures[2]:>8.1e}   {row.verdict}"
        where = f" (worst: {row.difference.worst})" if row.verdict == "BROKEN" else ""
        lines.append(f"{told}: {row.compared}{where}")
    return [*lines, f"{'limit':<{width}}  {allowed.loss:>8.1e} {allowed.gradient:>9.1e} {allowed.tensor:>8.1e}"]
