"""Floating point operations that PyTorch's own counter cannot see: those of compiled kernels.

A face of a kernel calls `count` beside the kernel, also where the kernel is skipped because a tensor has no numbers.
Unless someone counts, that is one look at a context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, float], None]
_report: ContextVar[Report | None] = ContextVar("report_of_flops", default=None)


def count(name: str, flops: float) -> None:
    """The kernel `name` does so many operations now. A matmul [n, k] @ [k, m] has 2 n k m."""
    report = _report.get()
    if report is not None:
        report(name, flops)


@contextmanager
def counting(report: Report) -> Iterator[None]:
    """`report(name, flops)` hears what kernels do in the block, backward passes included (on a CPU they run in the
    thread that asks for them)."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)
