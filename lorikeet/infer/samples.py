"""The same few held-out prompts answered before and after training, for the run's report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorikeet.base.files import write_file
from lorikeet.base.nouns import Example
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions

LONGEST = 128  # tokens of an answer; a report is not a place for more


def read_samples(run: Path) -> list[dict[str, Any]]:
    """What samples.jsonl of a run says so far."""
    file = run / "samples.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")  # splitlines also cuts inside a text
    return [json.loads(line) for line in lines if line]


def write_samples(
    run: Path, engine: Engine, examples: Sequence[Example], options: GenerateOptions, when: str | int
) -> None:
    """Answer the last prompt of each example; rows {prompt, reference, before, after, at} go to samples.jsonl. `when`:
    before, after, or the step just finished, whose reply goes into `at` under its number."""
    asked = [prompt_and_reply(example) for example in examples]
    # a training run takes no more memory than its steps do
    changed = {"max_new_tokens": min(options.max_new_tokens, LONGEST), "dequantize": False}
    short = options.model_copy(update=changed)
    texts = [""] * len(asked)
    for event in engine.generate([Request(i, prompt, short) for i, (prompt, _) in enumerate(asked)]):
        texts[event.name] += event.text
    rows = [] if when == "before" else read_samples(run)
    rows += [{} for _ in range(len(asked) - len(rows))]
    decode = engine.tokenizer.decode
    for row, (prompt, reply), text in zip(rows, asked, texts):
        row |= {"prompt": decode(prompt), "reference": decode(reply)}
        if isinstance(when, int):
            # those of later steps are of a run that was interrupted
            earlier = {step: said for step, said in row.get("at", {}).items() if int(step) < when}
            row["at"] = earlier | {str(when): text}
        else:
            row[when] = text
    write_file(run / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prompt_and_reply(example: Example) -> tuple[list[int], list[int]]:
    """Token ids before the last trained run of an example, and of that run."""
    trained = np.flatnonzero(example.weights > 0)
    breaks = np.flatnonzero(np.diff(trained) > 1)
    first = int(trained[breaks[-1] + 1] if len(breaks) else trained[0])
    return example.tokens[:first].tolist(), example.tokens[first : int(trained[-1]) + 1].tolist()
