"""Operations of one pass over a workload, counted by PyTorch's own counter: plain padded training, and Lorikeet.

The padded side is transformers' model with PEFT's LoRA on the meta device (shapes, no numbers): micro-batches of 4 rows
in the order of training, padded to their longest, logits at every position, no checkpointing. Lorikeet's side is its
real training step on the real rows. Attention counts as the multiplications that are asked for: a padded, masked row
all of them, a kernel that skips what no query sees only those it does.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peer_jobs import Jobs, Size
from torch.utils.flop_counter import FlopCounterMode
from train_speed import Workload as Opened
from workloads import Workload

from lorikeet import config

MICRO_BATCH = 4


def padded_shapes(lengths: list[int], per_step: int, micro_batch: int) -> Counter[tuple[int, int]]:
    """How often each (rows, longest) occurs: micro-batches never reach over a step's end."""
    found: Counter[tuple[int, int]] = Counter()
    for start in range(0, len(lengths), per_step):
        step = lengths[start : start + per_step]
        for at in range(0, len(step), micro_batch):
            part = step[at : at + micro_batch]
            found[len(part), max(part)] += 1
    return found


def padded_flops(folder: Path, shapes: Counter[tuple[int, int]]) -> int:
    """Forward and backward over micro-batches of these shapes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
        total = 0
        for number, ((rows, length), times) in enumerate(sorted(shapes.items())):
            print(f"\rpadded shapes: {number + 1}/{len(shapes)}", end="", file=sys.stderr)
            ids = torch.zeros(rows, length, dtype=torch.long)
            with FlopCounterMode(display=False) as counter:
                model(input_ids=ids, labels=ids).loss.backward()
            total += times * counter.get_total_flops()
        print(file=sys.stderr)
    return total


def our_flops(recipe: dict[str, Any], steps: int) -> int:
    """Of Lorikeet's training steps, without checkpointed blocks; in plain PyTorch, where the counter sees all of it."""
    recipe["model"]["kernels"] = "eager"
    work, total = Opened(config.parse(recipe)), 0
    for number in range(steps):
        with FlopCounterMode(display=False) as counter:
            work.step(number)
        total += counter.get_total_flops()
        print(f"\rsteps: {number + 1}/{steps}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return total


def counted(jobs: Jobs, work: Workload, steps: int | None = None) -> dict[str, str]:
    """Both counts over the first `steps` steps (default: an epoch) and their ratio."""
    steps = steps or work.steps
    job = jobs.job("lorikeet", work, Size(0, steps), {"gradient_checkpointing": False})
    lengths = [len(row["tokens"]) for row in job["rows"]]
    padded = padded_flops(Path(job["model"]), padded_shapes(lengths, work.examples_per_step, MICRO_BATCH))
    ours = our_flops(job["recipe"], steps)
    return {
        "work": f"{work.name}, {steps} steps, {sum(lengths):,} tokens",
        f"padded, micro-batch {MICRO_BATCH}, TFLOP": f"{padded / 1e12:.2f}",
        "Lorikeet, TFLOP": f"{ours / 1e12:.2f}",
        "Lorikeet / padded": f"{ours / padded:.3f}",
    }
