"""Speed and memory of LoRA training, with what is needed to judge them: the machine's own peak and who else was busy.

    python benchmarks/train_speed.py                                  the demo's notes, which need no file
    python benchmarks/train_speed.py --data alpaca_en_demo.json       any file that a recipe can name

256 rows of at most 512 tokens, 16 conversations a step, r 8 on all linears. The pieces are those that `lorikeet train`
uses: what is timed is `plan_step` and `train_step`. Utilisation counts the multiplications that the packed rows need
(a shared prefix once, nothing for recomputed layers) against the best matmul measured before and after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import BUSY, load_average, matmul_peak_flops, others

from lorikeet import api, config
from lorikeet.base.nouns import Batch
from lorikeet.base.rng import derive
from lorikeet.data.pack import plan_step, steps_per_epoch
from lorikeet.demo.notes import write_task
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.capacity import default_row_tokens, keep_holes_small
from lorikeet.train.metrics import peak_device_bytes, peak_rss_bytes
from lorikeet.train.optim import Stepper, learning_rate
from lorikeet.train.step import StepResult, train_step

ROWS = 256
NOTES = Path(__file__).parents[1] / "runs" / "bench"  # one place: prepared examples are cached under the file's name
GIB = 1 << 30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"training file, its first {ROWS} rows; default: generated notes")
    parser.add_argument("--model", default="smollm2-135m", help="anything a recipe's model.path can be")
    parser.add_argument("--dtype", default="auto", help="model.dtype")
    parser.add_argument("--steps", type=int, help="default: one epoch")
    parser.add_argument("--row-tokens", type=int, help="train.row_tokens; default: from memory, as in training")
    parser.add_argument("--checkpointing", action="store_true", help="train.gradient_checkpointing")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--refuse-busy", action="store_true", help="stop, with exit code 1, where others are running")
    return parser.parse_args()


def recipe(asked: argparse.Namespace, data: Path) -> config.Recipe:
    """The measured workload."""
    train = {"examples_per_step": 16, "learning_rate": 2e-4, "warmup_ratio": 0.03, "row_tokens": asked.row_tokens,
             "gradient_checkpointing": asked.checkpointing, "max_steps": asked.steps}  # fmt: skip
    return config.parse({
        "output_dir": "unused",
        "model": {"path": asked.model, "dtype": asked.dtype, "threads": asked.threads},
        "adapter": {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "data": {"train": [str(data)], "max_length": 512, "max_examples": ROWS},
        "train": train,
    })  # fmt: skip


def model_flops(model: CausalLM, trainable: int, rows: list[Batch]) -> float:
    """Of one step's forward and backward pass.

    A frozen weight costs 2 per token forward and 2 for its input's gradient, a trained one 2 more; the head counts at
    trained positions only; a query that sees a key costs 4 per head dimension forward and twice that backward."""
    shape = model.shape
    frozen = sum(linear.out_features * linear.in_features for _, linear in model.linears())
    total = 0.0
    for row in rows:
        pairs = int((row.visible_until - torch.arange(len(row.tokens))).sum())
        total += (4 * frozen + 6 * trainable) * len(row.tokens)
        total += 4 * shape.vocab_size * shape.width * len(row.targets)
        total += 12 * shape.heads * shape.head_dim * pairs * shape.layers
    return total


class Workload:
    """A recipe opened as `lorikeet train` opens it: model, adapter, optimizer and the data of every step."""

    def __init__(self, run: config.Recipe):
        started, options = time.perf_counter(), run.train
        _, base, _, prepared = api.prepare(run)
        self.options, self.examples, self.model = options, prepared.train, base.load(run.quant)
        run.adapter.attach(self.model, seed=options.seed)
        self.model.gradient_checkpointing = options.gradient_checkpointing
        parameters = run.adapter.parameters(self.model)
        self.trainable = sum(parameter.numel() for parameter in parameters.values())
        self.stepper = Stepper(parameters, options)
        self.row_tokens = options.row_tokens or default_row_tokens(
            self.model.shape, self.model.dtype, self.model.device, gradient_checkpointing=options.gradient_checkpointing
        )
        longest = max(self.row_tokens, int(self.examples.lengths.max()))
        keep_holes_small(self.model.shape, self.model.dtype, self.model.device, longest)
        self.per_epoch = steps_per_epoch(len(self.examples), options.examples_per_step)
        self.steps = options.max_steps or self.per_epoch
        self.ready_seconds = time.perf_counter() - started

    def step(self, number: int) -> tuple[StepResult, list[Batch]]:
        """Pack and train one step."""
        options = self.options
        epoch, within = divmod(number, self.per_epoch)
        rows = plan_step(
            self.examples, seed=options.seed, epoch=epoch, step=within,
            examples_per_step=options.examples_per_step, row_tokens=self.row_tokens,
        )[0]  # fmt: skip
        rate, seed = learning_rate(options, number, self.steps), derive(options.seed, "step", number)
        return train_step(self.model, self.stepper, rows, learning_rate=rate, seed=seed), rows


def measure(run: config.Recipe) -> dict[str, Any]:
    """Prepare, load, train; returns the figures."""
    work = Workload(run)
    model, results, seconds, flops, computed = work.model, [], [], 0.0, 0
    peak = matmul_peak_flops(model.dtype, model.device)
    with others() as busy:
        for number in range(work.steps):
            start = time.perf_counter()
            result, rows = work.step(number)
            seconds.append(time.perf_counter() - start)
            results.append(result)
            flops += model_flops(model, work.trainable, rows)
            computed += sum(len(row.tokens) for row in rows)
            print(f"step {number + 1}/{work.steps}  loss {result.loss:.4f}  {seconds[-1]:.2f} s", file=sys.stderr)
    peak = max(peak, matmul_peak_flops(model.dtype, model.device))
    tokens, total = sum(result.tokens for result in results), sum(seconds)
    return {
        "model": run.model.path, "dtype": str(model.dtype).split(".")[-1], "device": str(model.device),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "row_tokens": work.row_tokens,
        "gradient_checkpointing": work.options.gradient_checkpointing, "conversations": len(work.examples),
        "steps": work.steps, "tokens": tokens, "tokens_computed": computed, "train_seconds": total,
        "tokens_per_second": tokens / total, "step_seconds_median": statistics.median(seconds),
        "step_seconds_first": seconds[0], "prepare_and_load_seconds": work.ready_seconds,
        "peak_rss_gib": peak_rss_bytes() / GIB, "peak_device_gib": (peak_device_bytes(model.device) or 0) / GIB,
        "loss_first": results[0].loss, "loss_last": results[-1].loss, "matmul_peak_tflops": peak / 1e12,
        "model_tflop": flops / 1e12, "model_flop_utilisation": flops / total / peak,
        "others_during": busy.share,
    }  # fmt: skip


def main() -> int:
    asked = arguments()
    load_before = load_average()
    with others() as busy:
        time.sleep(1)
    if (busy.share or 0) > BUSY:
        print(f"others use {busy.share:.0%} of the cores: these figures will be wrong", file=sys.stderr)
        if asked.refuse_busy:
            return 1
    data = asked.data or write_task(NOTES, ROWS, 1, seed=0)[0]
    found = measure(recipe(asked, data))
    found |= {"data": str(asked.data.name if asked.data else "demo notes"), "others_before": busy.share,
              "load_average_before": load_before, "load_average_after": load_average()}  # fmt: skip
    for name, value in found.items():
        print(f"{name:26} {value:,.4g}" if isinstance(value, float) else f"{name:26} {value}")
    if (found["others_during"] or 0) > BUSY:
        print(f"others used {found['others_during']:.0%} of the cores meanwhile: measure again", file=sys.stderr)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
