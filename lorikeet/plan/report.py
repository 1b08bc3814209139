"""What `lorikeet plan` says: a page for eyes, the same as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorikeet.base.yaml_lines import dump
from lorikeet.plan.memory import GIB, training_seconds
from lorikeet.plan.process import Process
from lorikeet.plan.search import Changes, Trial, Tried
from lorikeet.plan.simulate import Simulated
from lorikeet.plan.steps import Planned
from lorikeet.quant._contract import Quant


@dataclass(frozen=True)
class Report:
    """Everything that a plan found out."""

    model: str
    layers: int
    dtype: str
    quant: Quant
    device: str
    device_here: bool
    why_unknown: str | None  # why the data are not known
    row_tokens: int
    checkpointing: bool | int
    planned: Planned
    simulated: Simulated
    process: Process
    free_bytes: int | None
    matmul_flops: float | None  # a timed matmul, operations per second
    limit_bytes: int | None
    now: Trial
    answers: list[Tried] = field(default_factory=list)

    @property
    def step_flops(self) -> float:
        """Of the whole step, from the rows that were run."""
        return self.simulated.total_flops / self.planned.share

    @property
    def run_flops(self) -> float | None:
        """Of all steps, by their tokens; None where the data are not known."""
        if not self.planned.looked_at:
            return None
        return self.step_flops * self.planned.run_tokens / sum(row.tokens for row in self.planned.rows)

    @property
    def fits(self) -> bool | None:
        """Within --memory, as it is or with changes; None where nobody asked."""
        if self.limit_bytes is None:
            return None
        return self.now.fits(self.limit_bytes) or any(tried.fits for tried in self.answers)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON. Bytes, seconds, operations."""
        found, planned = self.simulated, self.planned
        facts: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "quant": self.quant.model_dump(mode="json"),
            "device": self.device,
            "device_here": self.device_here,
            "trainable_parameters": found.trainable,
            "row_tokens": self.row_tokens,
            "gradient_checkpointing": self.checkpointing,
            "data": "known" if self.why_unknown is None else self.why_unknown,
            "step": {
                "number": planned.step + 1 or None,
                "looked_at": planned.looked_at,
                "steps": planned.steps or None,
                "rows": [vars(row) for row in planned.rows],
            },
            "peak_tensor_bytes": found.peak_bytes,
            "bytes": found.by_kind,
            "peak_at": {"phase": found.phase, "place": found.place, "op": found.op},
            "process_bytes": self.process.total,
            "free_bytes": self.free_bytes,
            "flops": {"step": self.step_flops, "run": self.run_flops, **found.flops},
            "matmul_flops_per_second": self.matmul_flops,
            "step_seconds": self.seconds(self.step_flops),
            "run_seconds": self.seconds(self.run_flops),
        }
        if self.limit_bytes is not None:
            facts |= {"memory_bytes": self.limit_bytes, "fits": self.fits, "as_it_is": self.now.fits(self.limit_bytes)}
            facts["answers"] = [_answer(tried) for tried in self.answers]
        return facts

    def seconds(self, flops: float | None) -> tuple[float, float] | None:
        """(shortest, longest) likely time; None where no matmul was timed."""
        if flops is None or not self.matmul_flops:
            return None
        return training_seconds(flops, self.matmul_flops)


def render(report: Report) -> RenderableType:
    """The page."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, amount, line in _memory(report):
        table.add_row(name, amount, Text(line))
    parts: list[RenderableType] = [Text(line) for line in _head(report)]
    parts += [Text(), table, Text(), *(Text(line) for line in _tail(report))]
    return Group(*parts)


def _head(report: Report) -> Iterator[str]:
    found, planned = report.simulated, report.planned
    yield (
        f"{report.model}: {report.layers} layers, {report.dtype} on {report.device}{report.quant.remark}; "
        f"{found.trainable:,} trainable parameters"
    )
    rows = _rows(report)
    if report.why_unknown is not None:
        yield f"the data are not known ({report.why_unknown}): rows are taken to be full"
        yield f"a step: {rows}"
    else:
        of = f"{planned.looked_at:,} steps looked at" if planned.looked_at > 1 else "its only step"
        yield f"step {planned.step + 1:,} costs most of {of}: {rows}"
    if report.device.startswith("cuda"):
        yield "counted on the CPU's ops: a GPU's attention keeps a little less"


def _rows(report: Report) -> str:
    rows = report.planned.rows
    sizes = " + ".join(f"{row.tokens:,}" for row in rows[:4]) + (" + ..." if len(rows) > 4 else "")
    learned = sum(row.predictions for row in rows)
    return f"{len(rows)} row{'s' * (len(rows) > 1)} of {sizes} tokens, {learned:,} learned"


def _memory(report: Report) -> Iterator[tuple[str, str, str]]:
    """(what, how much, remark) of each line."""
    found, process = report.simulated, report.process
    for kind, size in found.by_kind.items():
        if size:
            yield kind, mib(size), ""
    yield "tensors", mib(found.peak_bytes), f"at the peak: {where(found, report.layers)}"
    if report.device.startswith("cuda"):
        yield "of the GPU", mib(process.total), "with the driver's context and what the allocator loses"
    else:
        yield "process", mib(process.total), "with Python, torch, the tokenizer and what the allocator loses"
    if report.free_bytes is not None:
        fits = "it fits" if process.total <= report.free_bytes else "it does not fit: --memory says what would"
        yield "free now", mib(report.free_bytes), fits


def _tail(report: Report) -> Iterator[str]:
    flops = " + ".join(f"{amount / 1e12:.3g} {phase}" for phase, amount in report.simulated.flops.items() if amount)
    yield f"{report.step_flops / 1e12:.3g} TFLOP the step ({flops}" + _of_rows(report) + ")"
    if (seconds := report.seconds(report.step_flops)) is not None:
        assert report.matmul_flops is not None
        yield f"{_between(seconds)} the step, at {report.matmul_flops / 1e12:.2f} TFLOP/s of a timed matmul"
    if (seconds := report.seconds(report.run_flops)) is not None:
        yield f"{_between(seconds)} the run of {report.planned.steps:,} steps, without validation"
    if report.limit_bytes is not None:
        yield ""
        yield from _answers(report)


def _of_rows(report: Report) -> str:
    shown = len(report.planned.batches)
    return "" if shown == len(report.planned.rows) else f"; of {shown} of its {len(report.planned.rows)} rows"


def _answers(report: Report) -> Iterator[str]:
    limit = report.limit_bytes
    assert limit is not None
    if report.now.fits(limit):
        yield f"fits {mib(limit)} as it is"
        return
    good = [tried for tried in report.answers if tried.fits]
    yield f"needs {mib(report.now.bytes)} as it is, most of it {report.now.largest}; {mib(limit)} are allowed"
    for number, tried in enumerate(good):
        yield f"\n{'this fits' if not number else 'this too'} ({mib(tried.trial.bytes)}; {tried.ladder.cost}):"
        yield yaml_lines(tried.trial.changes)
    rest = [tried for tried in report.answers if not tried.fits]
    if rest:
        yield "\nnot enough:"
    for tried in rest:
        yield f"  {tried.ladder.name}: {mib(tried.trial.bytes)} even with {flat(tried.trial.changes)}"
        yield f"    most of it is {tried.trial.largest}"


def _answer(tried: Tried) -> dict[str, Any]:
    trial = tried.trial
    return {
        "fits": tried.fits,
        "change": tried.ladder.name,
        "same_model": tried.ladder.exact,
        "cost": tried.ladder.cost,
        "recipe": nested(trial.changes),
        "process_bytes": trial.bytes,
        "flops_per_token": trial.flops_per_token,
        "largest": trial.largest,
    }


def nested(changes: Changes) -> dict[str, dict[str, Any]]:
    """{"train.row_tokens": 512} as a recipe has it: {"train": {"row_tokens": 512}}."""
    made: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        made.setdefault(section, {})[name] = value
    return made


def yaml_lines(changes: Changes) -> str:
    """The recipe's lines that say so."""
    return dump(nested(changes)).rstrip("\n")


def flat(changes: Changes) -> str:
    """The changes as a command line has them."""
    return " ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items()
    )


def where(found: Simulated, layers: int) -> str:
    """The peak's place in words: `backward pass, block 29 of 30 (feed_forward.down), mm`."""
    phase = {"optimizer": "optimizer's update"}.get(found.phase, f"{found.phase} pass")
    place = re.sub(r"\.(attached|members\.\d+(\.adapter)?|weight)\b", "", found.place)
    match = re.search(r"\.(\d+)(?:\.(.*))?$", place) or re.search(r"\.(\d+)\.(.*)$", place)
    if match is not None:
        inside = f" ({match[2]})" if match[2] else ""
        place = f"block {int(match[1]) + 1} of {layers}{inside}"
    place = {"head": "the head and its loss"}.get(place, place)
    return ", ".join(part for part in (phase, place if found.phase != "optimizer" else "", found.op) if part)


def mib(size: int) -> str:
    """Bytes for eyes."""
    if size >= GIB:
        return f"{size / GIB:.2f} GiB"
    return f"{size / (1 << 20):.0f} MiB" if size >= 1 << 20 else f"{size / (1 << 10):.0f} KiB"


def _between(seconds: tuple[float, float]) -> str:
    return f"{_time(seconds[0])} to {_time(seconds[1])}"


def _time(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
