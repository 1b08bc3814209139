"""What a run or a model says, exported to llama.cpp: the same ids, logits and replies? And how fast each of them is.

    python benchmarks/exported.py MODEL --llama-python /path/to/python [--threads 2] [--type f16] [--no-speed]

MODEL is a run, an adapter folder or a model. --llama-python: a Python with llama-cpp-python, if it is not this one.
Bars: no id differs; logits within 2e-2 (of ours in float32, F16 file); greedy replies part only where the two best
logits are nearer than 0.1; base + LoRA file = merged file. Speed: one reply, and 16 at once, with the same threads.

Logits are compared for files of F32, F16 and BF16, with keys and values in float32 there and as llama.cpp comes. Beside
that stands how far our own logits in float32 move with the numbers that the file holds, and with the inputs of each
product rounded to the file's type, which is what ggml does (vec_dot_type in its ggml-cpu.c).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lorikeet.api.answering import engine as open_engine
from lorikeet.api.exporting import export_gguf
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.attention import PackedView
from lorikeet.ops.lora_linear import Prologue
from tokens.corpus import TEXTS

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain why the sky is blue.",
    "List three uses for a paper clip.",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 3?",
    "Name a famous painter and one painting.",
    "How do I boil an egg?",
    "Give me a recipe for pancakes.",
    "What is photosynthesis?",
    "Write a Python function that reverses a string.",
    "Who wrote Hamlet?",
    "Summarise the story of Cinderella in two sentences.",
    "What are the primary colours?",
    "How far is the moon?",
    "Write an email that asks for a day off.",
    "What is the largest animal?",
    "Describe a rainy day in Zürich.",
    "Give a synonym for happy.",
    "Why do leaves fall in autumn?",
]


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, file: Path, *, lora: Path | None = None, **said: Any):
        worker = str(Path(__file__).with_name("llama_cpp_worker.py"))
        self.process = subprocess.Popen(
            [python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.ask(open=str(file), lora=str(lora) if lora else None, context=1024, **said)

    def ask(self, **said: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise SystemExit(answer["error"])
        return answer

    def logits(self, ids: list[int], folder: Path) -> np.ndarray:
        self.ask(logits=ids, file=str(folder / "logits.npy"))
        found: np.ndarray = np.load(folder / "logits.npy")
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@torch.no_grad()
def logits(engine: Engine, ids: list[int], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Ours [T, V] in float32; the inputs of all products are rounded to `dtype` first, as ggml rounds them."""
    groups = [group for group in engine.model.groups() if isinstance(group, LinearGroup)]
    if dtype != torch.float32:
        for group in groups:
            group.attached = partial(_rounded, group, dtype)
    seen, positions = torch.full((len(ids),), len(ids), dtype=torch.int32), torch.arange(len(ids))
    hidden = engine.model.hidden(torch.tensor(ids), positions, PackedView(seen, positions))
    found: np.ndarray = engine.model.head.logits(hidden.to(dtype).float()).numpy()
    if dtype != torch.float32:
        for group in groups:
            group.attached = None
    return found


def _rounded(group: LinearGroup, dtype: torch.dtype, source: Tensor, prologue: Prologue | None = None) -> Tensor:
    x = source if prologue is None else prologue.forward(source)[0]
    y, bias = group.weight.linear(x.to(dtype).float()), group.bias()
    return y if bias is None else y + bias


def prompts(engine: Engine) -> list[list[int]]:
    return [engine.prompt(Conversation((Message("user", text),))) for text in PROMPTS]


def compare(engine: Engine, there: LlamaCpp) -> list[list[int]]:
    """Ids and greedy replies; returns each prompt with llama.cpp's reply."""
    ids = there.ask(texts=TEXTS)
    different = [text for text, found in zip(TEXTS, ids) if engine.tokenizer.encode(text)[0] != found]
    print(
        f"ids: {len(TEXTS) - len(different)} of {len(TEXTS)} texts alike" + (f", not {different}" if different else "")
    )
    texts, parted = [], []
    for number, prompt in enumerate(prompts(engine)):
        made, gaps = there.ask(greedy=prompt, count=32, ends=list(engine.stop_ids))
        texts.append(prompt + made)
        best = logits(engine, texts[-1])[len(prompt) - 1 : -1].argmax(-1).tolist()
        first = next((i for i, (a, b) in enumerate(zip(best, made)) if a != b), None)
        if first is not None:
            parted.append((number, first, gaps[first]))
    print(
        f"greedy: {len(parted)} of {len(PROMPTS)} replies part"
        + "".join(f"; {n} at {i}, gap {g:.3f}" for n, i, g in parted),
        flush=True,
    )
    return texts


def compare_types(model: Path, engine: Engine, texts: list[list[int]], python: str, folder: Path, threads: int) -> None:
    """Logits of all texts, for a file of each type of floats."""
    for kind, dtype in TYPES.items():
        file = folder / f"logits-{kind}.gguf"
        export_gguf(model, file, type=kind)
        there, usual = (LlamaCpp(python, file, threads=threads, full=full) for full in (True, False))
        same = open_engine(file, {"dtype": "float32", "threads": threads})
        worst = np.zeros(4)
        for ids in texts:
            ours, held = logits(engine, ids), logits(same, ids)
            found = there.logits(ids, folder), usual.logits(ids, folder), held
            moved = [float(np.abs(one - ours).max()) for one in found]
            worst = np.maximum(worst, [*moved, float(np.abs(logits(same, ids, dtype) - held).max())])
        print(
            f"{kind}: logits at most {worst[0]:.5f} apart, {worst[1]:.5f} with llama.cpp's usual cache of F16; ours"
            f" move by {worst[2]:.5f} with the file's numbers, and by {worst[3]:.5f} where products round their inputs",
            flush=True,
        )
        for one in (there, usual):
            one.close()
        file.unlink()


def compare_adapter(path: Path, python: str, engine: Engine, folder: Path, merged: LlamaCpp, threads: int) -> None:
    from lorikeet.api.answering import locate

    base = locate(path).base.options.path
    export_gguf(base, folder / "base.gguf", type="f32")
    export_gguf(path, folder / "adapter.gguf", adapter_only=True)
    both = LlamaCpp(python, folder / "base.gguf", lora=folder / "adapter.gguf", threads=threads, full=True)
    found = [np.abs(both.logits(ids, folder) - merged.logits(ids, folder)).max() for ids in prompts(engine)[:5]]
    print(f"base + LoRA file against merged: logits at most {max(found):.4f} apart")
    both.close()


def speed(engine: Engine, python: str, file: Path, threads: int, tokens: int = 128) -> None:
    """Tokens a second of decoding, ours (with reading the prompts, as a server has it) and llama.cpp's."""
    for count in (1, 16):
        asked = prompts(engine)[:count]
        options = GenerateOptions(max_new_tokens=tokens, batch_size=count)
        there = LlamaCpp(python, file, threads=threads, sequences=count)
        rates, theirs = [], []
        for _ in range(3):  # in turn
            start, made = time.perf_counter(), dict.fromkeys(range(count), 0)
            for event in engine.generate([Request(i, ids, options) for i, ids in enumerate(asked)]):
                made[event.name] = event.tokens
            rates.append(sum(made.values()) / (time.perf_counter() - start))
            theirs.append(there.ask(speed=asked, count=tokens))
        there.close()
        reading, writing = min(theirs, key=sum)
        print(
            f"{count} at once: ours {max(rates):.1f} tokens/s; llama.cpp {count * tokens / (reading + writing):.1f}"
            f" ({count * tokens / writing:.1f} without reading the prompts)"
        )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("model", type=Path)
    words.add_argument("--llama-python", default=sys.executable)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--type", default="f16")
    words.add_argument("--no-speed", action="store_true")
    said = words.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "model.gguf"
        export_gguf(said.model, file, type=said.type)
        engine = open_engine(said.model, {"dtype": "float32", "threads": said.threads})
        there = LlamaCpp(said.llama_python, file, threads=said.threads, full=True)
        texts = compare(engine, there)
        there.close()
        compare_types(said.model, engine, texts, said.llama_python, folder, said.threads)
        if (said.model / "recipe.yaml").is_file() or (said.model / "adapter_config.json").is_file():
            export_gguf(said.model, folder / "merged.gguf", type="f32")
            merged = LlamaCpp(said.llama_python, folder / "merged.gguf", threads=said.threads, full=True)
            compare_adapter(said.model, said.llama_python, engine, folder, merged, said.threads)
            merged.close()
        if not said.no_speed:
            del engine
            speed(open_engine(said.model, {"threads": said.threads}), said.llama_python, file, said.threads)


if __name__ == "__main__":
    main()
