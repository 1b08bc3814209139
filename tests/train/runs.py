"""A small run on disk, begun and gone on with the way the `train` verb does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import pack_row, plan_step, steps_per_epoch
from lorikeet.train.loop import train
from lorikeet.train.metrics import Metrics
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.resuming import resume
from lorikeet.train.run import Outcome, Run
from parity import tiny

OPTIONS: dict[str, Any] = {"learning_rate": 0.05, "warmup_steps": 2, "examples_per_step": 6, "weight_decay": 0.01}
ROW_TOKENS = 24  # several micro-batches a step


def examples(count: int = 20) -> list[Example]:
    """Counting upwards from somewhere: easily learned."""
    return [tiny.example([(i + j) % tiny.VOCAB for j in range(6 + i % 7)]) for i in range(count)]


def run_in(
    folder: Path, *, steps: int = 7, lora: dict[str, Any] | None = None, share: bool = True, **changed: Any
) -> Run:
    """A run that has not begun; everything random in it follows from fixed seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny.decoder(dtype=torch.float32)
    adapter = Lora(**{"r": 4} | (lora or {}))
    adapter.attach(model, seed=0)
    data = examples()

    def batches(step: int) -> Sequence[Batch]:
        epoch, within = divmod(step, steps_per_epoch(len(data), OPTIONS["examples_per_step"]))
        return plan_step(
            data, seed=0, epoch=epoch, step=within, examples_per_step=OPTIONS["examples_per_step"],
            row_tokens=ROW_TOKENS, share=share and adapter.lora_dropout == 0,
        )[0]  # fmt: skip

    saver = partial(save_adapter, adapter=adapter, model=model, identity={"base": "tiny"})
    values: dict[str, Any] = {
        "folder": folder, "model": model, "parameters": adapter.parameters(model), "batches": batches,
        "steps": steps, "save_adapter": saver, "validation": [pack_row([one]) for one in data[:3]],
        "identity": {"data": "abc", "lora": adapter.model_dump(mode="json")},
    }  # fmt: skip
    return Run(**values | changed)


def go_on(run: Run, options: TrainOptions, *, force: bool = False) -> Outcome:
    """Resume from the newest whole checkpoint."""

    def fill_from(last: Path) -> None:
        adapter, tensors, _ = read_adapter(last)
        fill(run.model, adapter, tensors, source=last)

    stepper = Stepper(run.parameters, options)
    return train(run, options, done=resume(run, stepper, fill_from, force=force), stepper=stepper)


def losses(folder: Path, kind: str = "train") -> dict[int, float]:
    rows = Metrics(folder / "metrics.jsonl").rows()
    return {row["step"]: row["loss"] for row in rows if row["kind"] == kind}


def calling(run: Run, at: int, action: Callable[[], None]) -> Run:
    """The same run, with `action` happening while step `at` (from 0) is prepared."""
    batches = run.batches

    def watched(step: int) -> Sequence[Batch]:
        if step == at:
            action()
        return batches(step)

    run.batches = watched
    return run
