"""Replies to the last prompts of held-out examples, with the references beside them, for measuring.

Into a file they are written as they finish: an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorikeet.base.files import write_file
from lorikeet.base.log import progress
from lorikeet.base.nouns import Example
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.predict import done_line, read_done
from lorikeet.infer.samples import prompt_and_reply
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.kv_cache import KvCache

CACHE_BYTES = 128 << 20  # of keys and values while a run trains, which owns the memory


def answers(engine: Engine, examples: Sequence[Example], options: GenerateOptions) -> list[dict[str, Any]]:
    """Rows {prompt, reply, reference, finish_reason}, made in little memory beside a run."""
    asked = [prompt_and_reply(example) for example in examples]
    longest = max((len(prompt) for prompt, _ in asked), default=0) + options.max_new_tokens
    one = KvCache.bytes_of(engine.model.shape, options.num_beams, longest, engine.model.dtype)
    at_once = max(1, min(options.batch_size, CACHE_BYTES // max(1, one)))
    frugal = options.model_copy(update={"batch_size": at_once, "dequantize": False})
    rows: dict[int, dict[str, Any]] = dict(_rows(engine, asked, range(len(asked)), frugal))
    return [rows[i] for i in range(len(asked))]


def answers_to_file(
    engine: Engine, examples: Sequence[Example], output: Path, options: GenerateOptions
) -> list[dict[str, Any]]:
    """The same, kept in `OUTPUT.part` as they finish; the caller writes `output`, then calls `finish`. What is there
    of the same prompts, options and weights is not done again."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = _part(output)
    asked = [prompt_and_reply(example) for example in examples]
    identity = _identity(engine, asked, options)
    done = read_done(part, identity)
    write_file(part, json.dumps({"identity": identity}) + "\n" + "".join(done_line(i, row) for i, row in done.items()))
    waiting = [i for i in range(len(asked)) if i not in done]
    with part.open("a", encoding="utf-8") as file, progress() as bar:
        task = bar.add_task("answering", total=len(asked), completed=len(done))
        for index, row in _rows(engine, asked, waiting, options):
            done[index] = row
            file.write(done_line(index, row))
            file.flush()
            bar.advance(task)
    return [done[i] for i in range(len(asked))]


def finish(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, as they were marked, one a line; nothing is left to go on with."""
    write_file(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _part(output).unlink(missing_ok=True)


def _rows(
    engine: Engine, asked: Sequence[tuple[list[int], list[int]]], which: Sequence[int], options: GenerateOptions
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, row) in the order in which replies finish."""
    texts: dict[int, str] = {}
    for event in engine.generate([Request(i, asked[i][0], options) for i in which]):
        texts[event.name] = texts.get(event.name, "") + event.text
        if event.reason is not None:
            prompt, reply = asked[event.name]
            row = {"prompt": engine.tokenizer.decode(prompt), "reply": texts.pop(event.name)}
            yield event.name, row | {"reference": _reference(engine, reply), "finish_reason": event.reason}


def _reference(engine: Engine, reply: list[int]) -> str:
    """A trained reply as text, without what ends it."""
    text = engine.tokenizer.decode(reply)
    cuts = [text.find(stop) for stop in engine.template.stop_strings if stop]
    return text[: min((cut for cut in cuts if cut >= 0), default=len(text))]


def _identity(engine: Engine, asked: Sequence[tuple[list[int], list[int]]], options: GenerateOptions) -> str:
    digest = hashlib.sha256(options.model_dump_json(exclude={"batch_size", "dequantize"}).encode())
    digest.update(f"{engine.identity} {engine.tokenizer.fingerprint} {engine.template.fingerprint}".encode())
    for prompt, reply in asked:
        digest.update(np.array([len(prompt), *prompt, *reply], np.int64).tobytes())
    return digest.hexdigest()


def _part(output: Path) -> Path:
    return output.with_name(output.name + ".part")
