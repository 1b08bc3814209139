"""Milliseconds of an update and bytes of state for each optimizer, in turns: python benchmarks/optimizers.py"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lorikeet.base.kinds import kinds
from lorikeet.train.optim import OptimOptions, Stepper

TURNS, STEPS = 3, 6


def prepared(kind: str, count: int) -> tuple[Callable[[], float], float]:
    """(one update, timed in milliseconds; state bytes per parameter)."""
    parameter = torch.nn.Parameter(torch.randn(count // 1000, 1000))
    stepper = Stepper({"w": parameter}, OptimOptions(optim=kind, max_grad_norm=0))
    parameter.grad = torch.randn_like(parameter) * 1e-3

    def update() -> float:
        start = time.perf_counter()
        stepper.optimizer.step(1e-4)
        return 1e3 * (time.perf_counter() - start)

    update()
    return update, sum(tensor.nbytes for tensor in stepper.state_dict().values()) / parameter.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=4_000_000)
    count = parser.parse_args().parameters
    names = kinds("lorikeet.train.optimizers")
    ready = {name: prepared(name, count) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(TURNS):
        for name, (update, _) in ready.items():
            found[name].append(statistics.median(update() for _ in range(STEPS)))
    print("| `train.optim` | ms | state bytes per parameter |\n|---|---|---|")
    for name in sorted(names, key=lambda name: ready[name][1], reverse=True):
        print(f"| `{name}` | {statistics.median(found[name]):.1f} | {ready[name][1]:.3f} |")


if __name__ == "__main__":
    main()
