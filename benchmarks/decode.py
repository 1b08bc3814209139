"""Answering against transformers' `generate`: the same weights, prompts and counts of greedy tokens, in turns.

    python benchmarks/decode.py                    needs lorikeet's extra `test` (transformers, accelerate)

In bfloat16 on all cores: decoding of one reply (its time less that of its first token), 16 prompts at once against
transformers' continuous batching, its padded batch, and one after the other; reading one prompt of each length, and 16
prompts of 1 to 16 notes. Nobody stops early, so both make equally many tokens. A share of the read bandwidth stands
beside the first: a token of one reply needs every weight once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import workloads
from machine import BUSY, others

from lorikeet import api
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.formats.auto import Auto
from lorikeet.data.rows import conversations
from lorikeet.demo.notes import write_task
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.train.metrics import peak_rss_bytes

WORK, AT_ONCE = workloads.WORKLOADS["W1"], 16
WHAT = ("one", "many", "prefill", "prompts")
LENGTHS = (128, 512, 1024, 2048)
Generate = Callable[[Sequence[Sequence[int]], int], int]  # prompts, tokens of each reply -> tokens of all
Job = Callable[[], float]  # does its work; tokens per second


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=WHAT, default=WHAT)
    parser.add_argument("--tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--prompt", type=int, nargs="+", default=LENGTHS, help="tokens of the prompts read alone")
    parser.add_argument("--sequential", type=int, default=3, help="how many of the 16 prompts are asked one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--folder", type=Path, default=workloads.FOLDER, help="where the model's folder is made")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


class Ours:
    """Lorikeet's engine, whose replies end at their count of tokens only."""

    def __init__(self) -> None:
        self.engine: Engine = api.engine(WORK.model)
        self.engine.stop_ids = ()

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> int:
        options = GenerateOptions(max_new_tokens=tokens, batch_size=max(1, len(prompts)))
        made = {event.name: event.tokens for event in self.engine.generate(
            [Request(i, prompt, options) for i, prompt in enumerate(prompts)]
        )}  # fmt: skip
        assert set(made.values()) == {tokens}
        return sum(made.values())


class Theirs:
    """transformers on the same weights."""

    def __init__(self, folder: Path):
        import transformers

        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        settings = self.model.generation_config
        settings.eos_token_id, settings.pad_token_id, settings.do_sample = None, 0, False
        self.version = transformers.__version__

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> int:
        """One batch, padded on the left."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = self.model.generate(ids, attention_mask=mask, max_new_tokens=tokens)
        assert found.shape == (len(prompts), width + tokens)
        return len(prompts) * tokens

    def continuous(self, prompts: Sequence[Sequence[int]], tokens: int) -> int:
        """transformers' continuous batching, with room for all at once."""
        from transformers import ContinuousBatchingConfig

        settings = self.model.generation_config
        settings.eos_token_id = -1  # it wants a number; no token has this one
        try:
            room = ContinuousBatchingConfig(num_blocks=4 * len(prompts), max_batch_tokens=2048, use_cuda_graph=False)
            found = self.model.generate_batch(
                [list(prompt) for prompt in prompts],
                continuous_batching_config=room,
                max_new_tokens=tokens,
                warmup=False,
            )
        finally:
            settings.eos_token_id = None
        made = sum(len(reply.generated_tokens) for reply in found.values())
        if made != len(prompts) * tokens:
            raise RuntimeError(f"{made} tokens were made of {len(prompts) * tokens}")
        return made


def in_turns(jobs: dict[str, Job], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each job in every round, after one that warms up. A job that fails says why and is out."""
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name in list(jobs):
            try:
                rate = jobs[name]()
            except Exception as error:  # whatever a version of transformers on some machine cannot do
                print(f"{name}: did not run ({type(error).__name__}: {str(error)[:200]})")
                jobs.pop(name)
                continue
            if number:
                found.setdefault(name, []).append(rate)
    return found


def read_bandwidth() -> float:
    """Bytes per second of reading memory that no cache holds: the best of a few sums."""
    data, best = torch.ones(1 << 27), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return data.numel() * data.element_size() / best


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decoding(generate: Generate, prompt: list[int], tokens: int) -> Job:
    """One reply, without the pass that reads the prompt and gives the first token."""

    def job() -> float:
        first = seconds(lambda: generate([prompt], 1))
        return tokens / (seconds(lambda: generate([prompt], tokens + 1)) - first)

    return job


def answering(generate: Generate, prompts: Sequence[list[int]], tokens: int) -> Job:
    """Whole replies to prompts that are there at once."""
    return lambda: len(prompts) * tokens / seconds(lambda: generate(prompts, tokens))


def reading(generate: Generate, prompts: Sequence[list[int]]) -> Job:
    """The passes over prompts that are there at once, with one token of each."""
    return lambda: sum(map(len, prompts)) / seconds(lambda: generate(prompts, 1))


def uneven(engine: Engine, asks: Sequence[Conversation]) -> list[list[int]]:
    """A prompt of one note, one of two others, and so on: AT_ONCE of them."""
    texts, found = iter(ask.messages[-1].content for ask in asks), []
    for notes in range(1, AT_ONCE + 1):
        text = "\n".join(str(next(texts)) for _ in range(notes))
        found.append(engine.prompt(Conversation((Message("user", text),))))
    return found


def main() -> None:
    asked = arguments()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    _, notes = write_task(asked.folder, 1, AT_ONCE * (AT_ONCE + 1) // 2, 0)
    ours, theirs = Ours(), Theirs(workloads.model_folder(WORK, asked.folder, Path()))
    asks = [row.prompt() for row in conversations([str(notes)], Auto.model_validate({}), reply=False)]
    prompts = [ours.engine.prompt(ask) for ask in asks[:AT_ONCE]]
    text = Conversation((Message("user", " ".join(str(n) for n in range(max(asked.prompt)))),))
    long = ours.engine.prompt(text)

    def one_by_one(some: Sequence[Sequence[int]], tokens: int) -> int:
        return sum(theirs.generate([prompt], tokens) for prompt in some)

    found: dict[str, Any] = {}
    with others() as busy:
        if "one" in asked.only:
            found["one"] = in_turns(
                {"lorikeet": decoding(ours.generate, prompts[0], asked.tokens),
                 "transformers generate": decoding(theirs.generate, prompts[0], asked.tokens)},
                asked.rounds,
            )  # fmt: skip
            found["read bandwidth"] = read_bandwidth()
        if "many" in asked.only:
            found["many"] = in_turns(
                {"lorikeet": answering(ours.generate, prompts, asked.tokens),
                 "continuous batching": answering(theirs.continuous, prompts, asked.tokens),
                 "padded batch": answering(theirs.generate, prompts, asked.tokens),
                 "one after the other": answering(one_by_one, prompts[: asked.sequential], asked.tokens)},
                asked.rounds,
            )  # fmt: skip
        for length in asked.prompt if "prefill" in asked.only else ():
            some = [long[:length]]
            found[f"prefill {length}"] = in_turns(
                {"lorikeet": reading(ours.generate, some), "transformers generate": reading(theirs.generate, some)},
                asked.rounds,
            )
        if "prompts" in asked.only:
            some = uneven(ours.engine, asks)
            found["prompts"] = in_turns(
                {"lorikeet": reading(ours.generate, some),
                 "continuous batching": reading(theirs.continuous, some),
                 "padded batch": reading(theirs.generate, some),
                 "one after the other": reading(one_by_one, some)},
                asked.rounds,
            )  # fmt: skip
    weights = sum(p.numel() * p.element_size() for p in theirs.model.parameters())
    report(found, weights)
    print(f"transformers {theirs.version}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"peak {peak_rss_bytes() / 2**30:.2f} GiB with both models, others took {busy.share or 0:.1%}"
          + (" (too much: measure again)" if (busy.share or 0) > BUSY else ""))  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps(found | {"others_during": busy.share}, indent=1) + "\n")


def report(found: dict[str, Any], weights: int) -> None:
    """Medians, all rounds, and the ratio of ours to each of theirs."""
    for what, rates in found.items():
        if not isinstance(rates, dict):
            continue
        ours = statistics.median(rates["lorikeet"]) if "lorikeet" in rates else 0.0
        for name, each in rates.items():
            middle = statistics.median(each)
            ratio = "" if name == "lorikeet" else f"   lorikeet is {ours / middle:.2f} times as fast"
            print(f"{what:13}{name:24}{middle:8.1f} tokens/s  ({', '.join(f'{rate:.1f}' for rate in each)}){ratio}")
        if what == "one" and ours:
            bandwidth = found["read bandwidth"]
            read, most = ours * weights / 1e9, bandwidth / 1e9
            print(f"one          weights read at {read:.1f} GB/s, {read / most:.0%} of {most:.1f} GB/s")


if __name__ == "__main__":
    main()
