"""The run that is stopped in kill9.py, disk_full.py and checkpoint_time.py: its options, its recipe, its process, and
what its folder says of it. SmolLM2 with LoRA on generated notes, or any model with any kind."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lorikeet import config
from lorikeet.demo.notes import write_task
from lorikeet.train.chain import KIND, START
from lorikeet.train.metrics import Metrics
from lorikeet.verify.resume import compare, tensor_difference

NEEDED = {"bias": {"norms": True}}  # where a kind's defaults are not enough


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that all of these scripts have; `about`: the script's own docstring."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smollm2-135m", help="anything a recipe's model.path can be")
    made.add_argument("--dtype", default="bfloat16", help="model.dtype")
    made.add_argument("--adapter", default="lora", help="adapter.kind")
    made.add_argument("--quant", default="none", help="quant.kind")
    made.add_argument("--json", type=Path, help="write the figures here")
    return made


def asked_for(asked: argparse.Namespace) -> dict[str, str]:
    """What was asked for, for the figures."""
    return {name: getattr(asked, name) for name in ("model", "dtype", "adapter", "quant")}


def recipe_of(
    asked: argparse.Namespace,
    folder: Path,
    train: dict[str, Any],
    *,
    notes: int,
    validation: int,
    data: Path | None = None,
    dropout: float = 0.0,
    samples: int = 0,
) -> config.Recipe:
    """What is trained, into `folder`/whole: `notes` generated rows, or those of `data`, cut to 256 tokens."""
    rows = write_task(folder / "notes", notes, 1, 0)[0] if data is None else data.resolve()
    adapter: dict[str, Any] = {"kind": asked.adapter, **NEEDED.get(asked.adapter, {})}
    if dropout and asked.adapter in ("lora", "dora"):
        adapter["lora_dropout"] = dropout
    return config.parse({
        "output_dir": str(folder / "whole"),
        "model": {"path": asked.model, "dtype": asked.dtype},
        "adapter": adapter,
        "quant": {"kind": asked.quant},
        "data": {"train": [str(rows)], "validation": validation, "max_length": 256},
        "train": {"row_tokens": 256, **train},
        "evaluate": {"before": True, "samples": samples},
        **({"generate": {"max_new_tokens": 4}} if samples else {}),
    })  # fmt: skip


def start(
    recipe: config.Recipe, run: Path, *words: str, file: Path | None = None, **streams: Any
) -> subprocess.Popen[Any]:
    """`lorikeet train` into `run`, as a person would give it; `file`: where the recipe is written. What it says goes to
    RUN.log, unless `streams` says otherwise."""
    file = file or run.with_suffix(".yaml")
    config.save(recipe.model_copy(update={"output_dir": run}), file)
    command = [sys.executable, "-m", "lorikeet.cli.main", "train", str(file), *words]
    if streams:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, **streams)
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ))


def links(run: Path) -> list[int]:
    """The steps that the run's record has."""
    return [row["step"] for row in Metrics(run / "metrics.jsonl").rows() if row.get("kind") == KIND]


def starts(run: Path) -> list[dict[str, Any]]:
    """The run's beginnings."""
    return [row for row in Metrics(run / "metrics.jsonl").rows() if row.get("kind") == START]


def inode(run: Path) -> int:
    """Of the run's record, which every start writes anew; 0 where there is none."""
    file = run / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else 0


def differences(whole: Path, run: Path, steps: int) -> list[str]:
    """What of two finished runs is not the same, in the last checkpoint, the record and the adapter."""
    found = [f"{row.what}: {row.difference}" for row in compare(whole, run, steps) if row.difference]
    name = "adapter/adapter_model.safetensors"
    by = tensor_difference(load_file(whole / name), load_file(run / name))
    return [*found, f"the trained adapter: {by}"] if by else found
