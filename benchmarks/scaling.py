"""Time and memory of a training step against tokens per row, rows of data, and the size of the model.

    python benchmarks/scaling.py --json docs/scaling.json --plot docs/scaling.svg     a few minutes
    python benchmarks/scaling.py --only tokens                                        one of tokens, rows, size

Every point is a process of its own: LoRA r 8 on all linears, bfloat16, ids drawn at random, loss on the second half of
each text. `tokens`: one text of so many tokens a step, on SmolLM2-135M. `rows`: a data set of so many texts of 128
tokens, 16 a step, of which 4 steps are timed. `size`: 2,048 tokens a step in texts of 256, on random weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import matmul_peak_flops, others

from lorikeet.adapters.lora import Lora
from lorikeet.base.nouns import Batch, Example
from lorikeet.base.rng import derive, numpy_rng
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row, plan_rows, run_step
from lorikeet.kernels import allocator
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import load
from lorikeet.quant.none import NoQuant
from lorikeet.train.capacity import default_row_tokens
from lorikeet.train.metrics import peak_rss_bytes
from lorikeet.train.optim import OptimOptions, Stepper
from lorikeet.train.step import train_step

GIB = 1 << 30
POINTS = ["tokens", "rows", "size"]
TOKENS, ROWS = (512, 1024, 2048, 4096, 8192, 16384), (256, 512, 1024, 2048)
LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
         "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu"}  # fmt: skip
SIZES = {  # layers, D, H, K, F: of SmolLM2-135M, Qwen2.5-0.5B, TinyLlama-1.1B
    "135M": (30, 576, 9, 3, 1536),
    "0.5B": (24, 896, 14, 2, 4864),
    "1.1B": (22, 2048, 32, 4, 5632),
}


def texts(count: int, length: int, vocabulary: int = 30000) -> list[Example]:
    """Random ids, of which the second half trains."""
    weights = np.zeros(length, np.float32)
    weights[length // 2 :] = 1
    return [Example(numpy_rng(0, "scaling", i).integers(3, vocabulary, length).astype(np.int32), weights)
            for i in range(count)]  # fmt: skip


def write_random(folder: Path, layers: int, width: int, heads: int, kv_heads: int, inner: int) -> None:
    """A Llama of these sizes with random weights."""
    config = LLAMA | {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
                      "num_attention_heads": heads, "num_key_value_heads": kv_heads}  # fmt: skip
    keys = width // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        of = {"q": (width, width), "k": (keys, width), "v": (keys, width), "o": (width, width)}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": shape for name, shape in of.items()}
        of = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": shape for name, shape in of.items()}
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)

    def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive(0, name))
        return (torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)).bfloat16()

    hf.save(folder, config, ((name, drawn(name, shape)) for name, shape in shapes.items()))


def timed(model: CausalLM, steps: Sequence[list[Batch]]) -> dict[str, Any]:
    """Seconds per step after one that warms up, and the process's peak."""
    adapter = Lora(r=8, lora_alpha=16)
    adapter.attach(model, seed=0)
    stepper = Stepper(adapter.parameters(model), OptimOptions())
    seconds, tokens = [], 0
    peak = matmul_peak_flops(model.dtype, model.device)
    with others() as busy:
        for rows in steps:
            start = time.perf_counter()
            tokens = train_step(model, stepper, rows, learning_rate=2e-4).tokens
            seconds.append(time.perf_counter() - start)
    fastest = min(seconds[1:])
    return {"seconds_per_step": fastest, "tokens_per_second": tokens / fastest, "peak_rss_gib": peak_rss_bytes() / GIB,
            "others_during": busy.share, "matmul_peak_tflops": peak / 1e12}  # fmt: skip


def point(kind: str, value: str, folder: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    if kind == "size":
        write_random(folder, *SIZES[value])
        path = folder
    else:
        path = resolve("smollm2-135m")
    allocator.holds(torch.device("cpu"))  # as the commands do before they load
    model = load(open_checkpoint(path), NoQuant(), dtype=torch.bfloat16, device=torch.device("cpu"))
    capacity = default_row_tokens(model.shape, model.dtype, model.device, gradient_checkpointing=False)
    if kind == "tokens":
        steps = [[pack_row(texts(1, int(value)))]] * (4 if int(value) < 4096 else 3 if int(value) < 16384 else 2)
    elif kind == "rows":
        examples = texts(int(value), 128)
        steps = [run_step(examples, i, seed=0, examples_per_step=16, row_tokens=capacity) for i in range(5)]
    else:
        steps = [[pack_row(row) for row in plan_rows(texts(8, 256), row_tokens=capacity)]] * 3
    return timed(model, steps)


def measure(kinds: Sequence[str], kept: Path | None) -> list[dict[str, Any]]:
    """All points of these kinds, in their order; what `kept` has is not measured again."""
    found = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else []
    points = {kind: list(map(str, {"tokens": TOKENS, "rows": ROWS, "size": SIZES}[kind])) for kind in POINTS}
    for kind in kinds:
        for value in points[kind]:
            if any((one["kind"], str(one["value"])) == (kind, value) for one in found):
                continue
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--point", kind, str(value), folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append({"kind": kind, "value": value, **json.loads(done.stdout)})
            one = found[-1]
            print(f"| {kind} {value} | {one['seconds_per_step']:.2f} | {one['tokens_per_second']:.0f} "
                  f"| {one['peak_rss_gib']:.2f} | {one['matmul_peak_tflops']:.2f} |", flush=True)  # fmt: skip
            found.sort(key=lambda one: (POINTS.index(one["kind"]), points[one["kind"]].index(str(one["value"]))))
            if kept:
                kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def plot(found: Sequence[dict[str, Any]], file: Path) -> None:
    """Tokens per second and memory, a panel for each kind."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(one["kind"] for one in found))
    figure = Figure(figsize=(4 * len(kinds), 5), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False)
    titles = {"tokens": "tokens in one row", "rows": "rows of data", "size": "size of the model"}
    for column, kind in enumerate(kinds):
        points = [one for one in found if one["kind"] == kind]
        for axes, key, name in zip(panels[:, column], ("tokens_per_second", "peak_rss_gib"), ("tokens/s", "peak, GiB")):
            axes.plot([str(one["value"]) for one in points], [one[key] for one in points], "o-", color="#2a7f62")
            axes.set_ylim(0, 1.1 * max(one[key] for one in points))
            axes.set_title(f"{name} by {titles[kind]}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=POINTS, default=POINTS)
    parser.add_argument("--json", type=Path, help="keep the figures here; those it has are not measured again")
    parser.add_argument("--plot", type=Path, help="draw them here (needs matplotlib)")
    parser.add_argument("--point", nargs=3, metavar=("KIND", "VALUE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        kind, value, folder = asked.point
        print(json.dumps(point(kind, value, Path(folder))))
        return 0
    print("| | seconds a step | tokens/s | peak RSS, GiB | matmul peak, TFLOP/s |\n|---|---|---|---|---|")
    found = measure(asked.only, asked.json)
    if asked.plot:
        plot(found, asked.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
