"""What each adapter kind brings on the demo's task, and what it costs: SmolLM2-135M, the demo's recipe, other adapters.

    python benchmarks/methods.py learn [--method dora full]     train on 1,600 notes, answer 300 that no note is like
    python benchmarks/methods.py speed [--method dora full]     a few steps: tokens per second and peak memory
    python benchmarks/methods.py table                          both, as a table

A row of `learn` is of a whole run of `lorikeet demo`'s recipe with this adapter and its learning rate. It does not
depend on time, so it may run beside other work (`--threads 1`); `speed` wants the machine for itself. Each method is
measured in a process of its own. What was measured is kept in `--results` and not measured again; a run that was
stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import others
from peer_jobs import remember
from train_speed import GIB, NOTES, Workload

import lorikeet.demo
from lorikeet import api, config
from lorikeet.demo.notes import exact_match, write_task
from lorikeet.demo.run import HELD_OUT
from lorikeet.demo.run import NOTES as TRAINED
from lorikeet.train.metrics import peak_rss_bytes

LORA = {"kind": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TEXT = "Turn the note into one line of JSON."
# adapter and learning rate; the demo's recipe is the rest
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": (LORA, 8e-4),
    "dora": (LORA | {"kind": "dora"}, 8e-4),
    "full": ({"kind": "full"}, 1e-4),
    "prefix": ({"kind": "prefix", "num_virtual_tokens": 32}, 1e-2),
    "ia3": ({"kind": "ia3"}, 2e-2),
    "bias": ({"kind": "bias", "norms": True}, 1e-2),
    "head": ({"kind": "head"}, 1e-3),
    "prompt": ({"kind": "prompt", "num_virtual_tokens": 32, "init_text": TEXT}, 3e-2),
    "lora+": (LORA | {"loraplus_lr_ratio": 16}, 4e-4),
    "rslora": (LORA | {"use_rslora": True, "lora_alpha": 8}, 8e-4),  # 8 / sqrt(16) is LoRA's 32 / 16
    "pissa": (LORA | {"init_lora_weights": "pissa_niter_4"}, 4e-4),
}
SPEED_STEPS = 9  # of 8 notes; the first is not timed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["learn", "speed", "table"])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--folder", type=Path, default=NOTES / "methods", help="notes, runs and replies")
    parser.add_argument("--results", type=Path, default=NOTES / "methods.json", help="what was measured")
    parser.add_argument("--notes", type=int, default=TRAINED, help="learn: train on fewer notes, and fewer steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--round", default="", help="speed: measure again under this name; the table has the median")
    return parser.parse_args()


def recipe(method: str, folder: Path, threads: int, notes: int = TRAINED) -> dict[str, Any]:
    """The demo's recipe with this method, on the first `notes` of its notes."""
    values: dict[str, Any] = yaml.safe_load(Path(lorikeet.demo.__file__).with_name("recipe.yaml").read_text())
    train_file, _ = write_task(folder / f"task-{notes}", notes, HELD_OUT, seed=0)
    values["output_dir"] = str(folder / f"{method}-{notes}")
    values["data"]["train"] = [str(train_file)]
    values["model"]["threads"] = threads
    values["adapter"], values["train"]["learning_rate"] = METHODS[method]
    values["train"] |= {"seed": 0, "save_total_limit": 1}
    return values


def learn(method: str, folder: Path, threads: int, notes: int) -> dict[str, Any]:
    """Train and ask: losses and exact match."""
    torch.set_num_threads(threads)
    run = config.parse(recipe(method, folder, threads, notes))
    summary_file = run.output_dir / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.is_file() else api.train(run)
    replies = folder / f"{method}-{notes}.jsonl"
    held_out = folder / f"task-{notes}" / "held_out.jsonl"
    api.predict(str(run.output_dir), [held_out], replies, **run.generate.model_dump())
    rows = [json.loads(line) for line in replies.read_text().split("\n") if line]
    right = sum(exact_match(row["reply"], row["reference"]) for row in rows)
    names = ("trainable_parameters", "eval_loss_before", "eval_loss", "token_accuracy", "steps", "tokens", "seconds")
    return {name: summary[name] for name in names} | {
        "exact_match": right / len(rows), "asked": len(rows), "notes": notes,
    }  # fmt: skip


def speed(method: str, folder: Path, threads: int) -> dict[str, Any]:
    """Steps of the same run: tokens per second, memory."""
    torch.set_num_threads(threads)
    work = Workload(config.parse(recipe(method, folder, threads)))
    seconds, tokens = [], []
    with others() as busy:
        for number in range(SPEED_STEPS):
            start = time.perf_counter()
            result, _ = work.step(number)
            seconds.append(time.perf_counter() - start)
            tokens.append(result.tokens)
    return {
        "trainable_parameters": work.trainable, "tokens_per_second": sum(tokens[1:]) / sum(seconds[1:]),
        "peak_rss_gib": peak_rss_bytes() / GIB, "others_during": busy.share, "threads": threads,
    }  # fmt: skip


def alone(work: Any, *given: Any) -> dict[str, Any]:
    """`work(*given)` in a fresh process, whose peak memory is then its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def table(results: dict[str, Any], notes: int) -> str:
    """A line for each method that has a row; `notes`: trained on so many."""
    lines = [
        "| method | trains | learning rate | held-out loss before | after | exact match | tokens/s | peak RSS, GiB |"
    ]
    lines.append("|---" * 8 + "|")
    for method, (_, rate) in METHODS.items():
        learned = results.get(f"learn {method} {notes}")
        fast = [row for key, row in results.items() if key.split(" round ")[0] == f"speed {method}"]
        if not (learned or fast):
            continue
        trains = (learned or fast[0])["trainable_parameters"]
        losses = f"{learned['eval_loss_before']:.3f} | {learned['eval_loss']:.3f}" if learned else "- | -"
        match = f"{learned['exact_match']:.1%}" if learned else "-"
        rates = f"{statistics.median(row['tokens_per_second'] for row in fast):.0f}" if fast else "-"
        memory = f"{max(row['peak_rss_gib'] for row in fast):.2f}" if fast else "-"
        lines.append(f"| `{method}` | {trains:,} | {rate:g} | {losses} | {match} | {rates} | {memory} |")
    return "\n".join(lines)


def main() -> int:
    asked = arguments()
    results, folder = asked.results.resolve(), asked.folder.resolve()

    def known() -> dict[str, Any]:
        return json.loads(results.read_text()) if results.exists() else {}

    if asked.command == "table":
        print(table(known(), asked.notes))
        return 0
    for method in asked.method:
        key = f"learn {method} {asked.notes}" if asked.command == "learn" else f"speed {method}"
        key += f" round {asked.round}" if asked.command == "speed" and asked.round else ""
        if key not in known():
            if asked.command == "learn":
                made = alone(learn, method, folder, asked.threads, asked.notes)
            else:
                made = alone(speed, method, folder, asked.threads)
            remember(results, key, made | {"adapter": METHODS[method][0], "learning_rate": METHODS[method][1]})
        print(key, json.dumps(known()[key]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
