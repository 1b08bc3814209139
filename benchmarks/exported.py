"""What a run or a model says, exported to llama.cpp: the same ids, logits and replies? And how fast each of them is.

    python benchmarks/exported.py MODEL --llama-python /path/to/python [--threads 2] [--type f16] [--no-speed]

MODEL is a run, an adapter folder or a model. --llama-python: a Python with llama-cpp-python, if it is not this one.
Bars: no id differs; logits within 2e-2 (of ours in float32, F16 file); greedy replies part only where the two best
logits are nearer than 0.1; base + LoRA file = merged file. Speed: one reply, and 16 at once, with the same threads.

Logits are compared for files of F32, F16 and BF16 and each of llama.cpp's ways of attention: with ours in float32, and
with ours where they round as ggml rounds (ggml_arithmetic.py). A number that once rounds the other way moves all behind
it, so each product and each attention is compared too, given llama.cpp's own inputs, of networks as plain as Llama. And
what the order of sums leaves open llama.cpp shows itself: a text read token by token, beside the same read at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ggml_arithmetic
import numpy as np
import torch
from ggml_arithmetic import Arithmetic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lorikeet.api.answering import engine as open_engine
from lorikeet.api.exporting import export_gguf
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions
from tokens.corpus import TEXTS

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FULL: dict[str, Any] = {"cache": "f32", "flash": False}
# what the worker is told, the type of keys and values, flash attention
WAYS: dict[str, tuple[dict[str, Any], torch.dtype, bool]] = {
    "cache of F32": (FULL, torch.float32, False),
    "cache of F16": ({"cache": "f16", "flash": False}, torch.float16, False),
    "cache of F16, flash attention": ({}, torch.float16, True),  # as llama.cpp comes
}
WATCHED = 5  # texts of which each product and attention is compared

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

    def logits(self, ids: list[int], folder: Path, *, by_token: bool = False) -> np.ndarray:
        self.ask(logits=ids, file=str(folder / "logits.npy"), by_token=by_token)
        found: np.ndarray = np.load(folder / "logits.npy")
        return found

    def nodes(self, ids: list[int], folder: Path) -> dict[str, np.ndarray]:
        self.ask(nodes=ids, names=sorted(ggml_arithmetic.NODES), file=str(folder / "nodes.npz"))
        with np.load(folder / "nodes.npz") as found:
            return dict(found)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def logits(engine: Engine, ids: list[int], arithmetic: Arithmetic | None = None) -> np.ndarray:
    """Ours [T, V] in float32."""
    found: np.ndarray = ggml_arithmetic.logits(engine.model, ids, arithmetic).numpy()
    return found


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
    """Logits of all texts, for a file of each type of floats and each of llama.cpp's ways of attention."""
    ours = [logits(engine, ids) for ids in texts]
    for kind, dtype in TYPES.items():
        file = folder / f"logits-{kind}.gguf"
        export_gguf(model, file, type=kind)
        same = open_engine(file, {"dtype": "float32", "threads": threads})
        sides = [(one, logits(same, ids)) for one, ids in zip(ours, texts)]
        moved = max(float(np.abs(one - held).max()) for one, held in sides)
        print(f"{kind}: ours move by {moved:.5f} with the file's numbers")
        for name, (said, cache, flash) in WAYS.items():
            there = LlamaCpp(python, file, threads=threads, watch=True, **said)
            print(f"  {name}:")
            compare_way(there, Arithmetic(dtype, cache, flash), same, texts, sides, folder)
            there.close()
        file.unlink()


def compare_way(
    there: LlamaCpp,
    way: Arithmetic,
    same: Engine,
    texts: list[list[int]],
    sides: list[tuple[np.ndarray, np.ndarray]],
    folder: Path,
) -> None:
    """llama.cpp's logits against ours of the model and of the file (`sides`), ours that round its way, and its own."""
    apart, products, attentions = np.zeros(4), np.zeros(2), np.zeros(2)
    for ids, (ours, held) in zip(texts, sides):
        found, again = there.logits(ids, folder), there.logits(ids, folder, by_token=True)
        others = (ours, held, logits(same, ids, way), again)
        apart = np.maximum(apart, [float(np.abs(found - other).max()) for other in others])
    for ids in texts[:WATCHED] if ggml_arithmetic.plain(same.model) else []:
        nodes = there.nodes(ids, folder)
        plain, alike = (ggml_arithmetic.one_by_one(same.model, nodes, one) for one in (None, way))
        products = np.maximum(products, [plain[0], alike[0]])
        attentions = np.maximum(attentions, [plain[1], alike[1]])
    print(
        f"    logits at most {apart[0]:.5f} apart, {apart[1]:.5f} from ours of the file's numbers, {apart[2]:.5f} from"
        f" ours that round as ggml does, {apart[3]:.5f} from its own read token by token",
        flush=True,
    )
    if not products.any():
        return
    print(
        f"    given its inputs: a product at most {products[0]:.1e} apart, {products[1]:.1e} where ours rounds as ggml"
        f" does; attention {attentions[0]:.1e}, {attentions[1]:.1e}",
        flush=True,
    )


def compare_adapter(path: Path, python: str, engine: Engine, folder: Path, merged: LlamaCpp, threads: int) -> None:
    from lorikeet.api.answering import locate

    base = locate(path).base.options.path
    export_gguf(base, folder / "base.gguf", type="f32")
    export_gguf(path, folder / "adapter.gguf", adapter_only=True)
    both = LlamaCpp(python, folder / "base.gguf", lora=folder / "adapter.gguf", threads=threads, **FULL)
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
        there = LlamaCpp(said.llama_python, file, threads=said.threads, **FULL)
        texts = compare(engine, there)
        there.close()
        compare_types(said.model, engine, texts, said.llama_python, folder, said.threads)
        if (said.model / "recipe.yaml").is_file() or (said.model / "adapter_config.json").is_file():
            export_gguf(said.model, folder / "merged.gguf", type="f32")
            merged = LlamaCpp(said.llama_python, folder / "merged.gguf", threads=said.threads, **FULL)
            compare_adapter(said.model, said.llama_python, engine, folder, merged, said.threads)
            merged.close()
        if not said.no_speed:
            del engine
            speed(open_engine(said.model, {"threads": said.threads}), said.llama_python, file, said.threads)


if __name__ == "__main__":
    main()
