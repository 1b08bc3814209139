"""How well `lorikeet plan` foretells memory: predicted and measured peaks of W1, W2 and W4.

    python benchmarks/plan_accuracy.py --data alpaca_en_demo.json [W1 W2 W4] [--folder runs/bench]

Each figure comes from a process of its own. The tensor peak is measured on real tensors, in the very step that was
planned; resident memory in the run's steps without any measuring mode, less what the imports take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import workloads

WORK = ("W1", "W2", "W4")
GIB = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="W1", default=WORK)
    parser.add_argument("--data", type=Path, required=True, help="alpaca rows: alpaca_en_demo.json")
    parser.add_argument("--folder", type=Path, default=workloads.FOLDER, help="where rows, recipes and models go")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="of the recipes")
    parser.add_argument("--steps", type=int, help="of the run whose resident memory is measured; default: all")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(PARTS[asked.part](Path(asked.workloads[0]), asked.override, asked.steps)))
        return 0
    print(
        f"{'':4}{'tensors predicted':>20}{'measured':>10}{'ratio':>8}{'less imports':>16}{'measured':>10}{'ratio':>8}"
    )
    found = {}
    for name in asked.workloads:
        recipe = _write(workloads.WORKLOADS[name], asked.data, asked.folder)
        row = {part: _own_process(part, recipe, asked) for part in PARTS}
        planned, tensors, resident = row["predicted"], row["tensors"], row["resident"]
        expected = planned["process_bytes"] - resident["imports"]
        held = resident["peak"] - resident["imports"]
        figures = (planned["peak_tensor_bytes"], tensors["peak_bytes"], expected, held)
        row["ratios"] = {"tensors": figures[0] / figures[1], "resident": figures[2] / figures[3]}
        found[name] = row
        gib = [f"{figure / GIB:.2f}" for figure in figures]
        ratios = [f"{ratio:.3f}" for ratio in row["ratios"].values()]
        print(f"{name:4}{gib[0]:>20}{gib[1]:>10}{ratios[0]:>8}{gib[2]:>16}{gib[3]:>10}{ratios[1]:>8}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _write(work: workloads.Workload, data: Path, folder: Path) -> Path:
    """The workload's recipe, with its rows and its model."""
    import yaml

    rows = workloads.write_rows(work, data, folder)
    made = workloads.recipe(work, rows.resolve(), workloads.model_path(work, folder, data))
    file = folder / f"{work.name}.yaml"
    file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return file


def _own_process(part: str, recipe: Path, asked: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, str(recipe), "--data", str(asked.data), "--part", part]
    command += [word for override in asked.override for word in ("--override", override)]
    command += [] if asked.steps is None else ["--steps", str(asked.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def predicted(recipe: Path, overrides: list[str], _steps: int | None) -> dict[str, Any]:
    """What `lorikeet plan --json` says."""
    from lorikeet import config
    from lorikeet.api.planning import plan

    return plan(config.load(recipe, overrides)).as_dict()


def tensors(recipe: Path, overrides: list[str], _steps: int | None) -> dict[str, Any]:
    """The same step on real tensors, by the same kinds."""
    from dataclasses import asdict

    from lorikeet import api, config
    from lorikeet.api.planning import costliest_step
    from lorikeet.plan.simulate import measure

    read, base, _, prepared = api.prepare(config.load(recipe, overrides))
    model = base.load(read.quant)
    read, planned = costliest_step(read, prepared, model)
    read.adapter.attach(model, seed=read.train.seed)
    return asdict(measure(model, read.adapter.parameters(model), read.train, planned.batches))


def resident(recipe: Path, overrides: list[str], steps: int | None) -> dict[str, Any]:
    """Resident memory after the imports and at the peak of training, without checkpoints and validation."""
    from lorikeet import api, config
    from lorikeet.api.planning import costliest_step
    from lorikeet.api.rows import longest_row, run_steps, step_batches
    from lorikeet.plan.process import resident as now
    from lorikeet.train.capacity import keep_holes_small
    from lorikeet.train.metrics import peak_rss_bytes
    from lorikeet.train.optim import Stepper
    from lorikeet.train.step import train_step

    imports = now().bytes
    read, base, _, prepared = api.prepare(config.load(recipe, overrides))
    held = now().bytes
    model = base.load(read.quant)
    read, _ = costliest_step(read, prepared, model)
    read.adapter.attach(model, seed=read.train.seed)
    loaded, peaks = now().bytes, [peak_rss_bytes()]
    keep_holes_small(model.shape, model.dtype, model.device, longest_row(read, prepared))
    stepper = Stepper(read.adapter.parameters(model), read.train)
    model.gradient_checkpointing = read.train.gradient_checkpointing
    for step in range(min(steps or run_steps(read, prepared), run_steps(read, prepared))):
        train_step(model, stepper, step_batches(prepared.train, read, model, step), learning_rate=1e-4)
        peaks.append(peak_rss_bytes())
    return {"imports": imports, "prepared": held, "loaded": loaded, "peaks": peaks, "peak": peaks[-1]}


PARTS = {"predicted": predicted, "tensors": tensors, "resident": resident}

if __name__ == "__main__":
    sys.exit(main())
