"""The first run: a real model asked before and after it learned a task that nobody taught it, with everything measured.

The task is made here (demo/notes.py), so the data, the model and the verdict are all on this machine. Each step is a
verb of `api` that a user's own data would go through.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from lorikeet import api, config
from lorikeet.base.files import write_file
from lorikeet.base.log import note
from lorikeet.demo.notes import exact_match, write_task
from lorikeet.train.metrics import peak_rss_bytes
from lorikeet.train.report import write_report

NOTES, HELD_OUT, MERGED_CHECK = 1600, 300, 60
SHOWN = 12  # held-out notes in the report's before/after table


def run(
    output: Path, seed: int = 0, *, notes: int = NOTES, held_out: int = HELD_OUT, model: str | None = None
) -> dict[str, Any]:
    """Make the task, ask, train, ask again, merge, compare. Writes OUTPUT/summary.json and OUTPUT/report.html.

    `model` replaces the recipe's. An interrupted demo goes on where it stopped; a finished one starts anew."""
    started = time.perf_counter()
    beside = {part: output.with_name(f"{output.name}-{part}") for part in ("task", "before", "after", "merged")}
    finished = (output / "summary.json").is_file()
    note(f"1/5  making {notes} expense notes to learn from and {held_out} to be asked about (seed {seed})")
    train_file, held_out_file = write_task(beside["task"], notes, held_out, seed)
    recipe = config.parse(_recipe(output, seed, model, train_file))
    options = recipe.generate.model_dump()
    note(f"2/5  asking the untouched model, {recipe.model.path}")
    before = _ask(recipe.model.path, held_out_file, beside["before"], options)
    _say(before, "before")
    note("3/5  training")
    summary = api.train(recipe, overwrite=finished)
    note("4/5  asking again")
    after = _ask(str(output), held_out_file, beside["after"], options)
    _say(after, "after")
    note("5/5  merging the adapter into the model")
    same = _merged_agreement(output, beside, held_out_file, after, options)
    found = {
        "exact_match_before": _score(before),
        "exact_match_after": _score(after),
        "held_out": len(after),
        "train_seconds": summary["seconds"],
        "peak_rss_bytes": peak_rss_bytes(),
        "merged_same_replies": same,
        "demo_seconds": time.perf_counter() - started,
    }
    write_file(output / "summary.json", json.dumps(summary | found, indent=2) + "\n")
    write_file(output / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in _samples(before, after)))
    report = write_report(output)
    _goodbye(found, output, beside["merged"], report)
    return summary | found


def _recipe(output: Path, seed: int, model: str | None, train_file: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "recipe.yaml").read_text(encoding="utf-8"))
    values["output_dir"] = str(output)
    values["data"]["train"] = [str(train_file)]
    values["train"]["seed"] = seed
    if model is not None:
        values["model"]["path"] = model
    return values


def _ask(model: str, held_out: Path, folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Replies to the held-out notes, each with its reference."""
    file = folder.with_suffix(".jsonl")
    api.predict(model, [held_out], file, **options)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _merged_agreement(
    output: Path, beside: dict[str, Path], held_out: Path, after: list[dict[str, Any]], options: dict[str, Any]
) -> float:
    """Merge, then the share of replies that the merged model gives word for word as base + adapter did."""
    merged = beside["merged"]
    if merged.exists():
        _remove_merged(merged)
    api.merge(output, merged)
    some = held_out.with_name("merged_check.jsonl")
    write_file(some, "".join(line + "\n" for line in held_out.read_text(encoding="utf-8").split("\n")[:MERGED_CHECK]))
    replies = _ask(str(merged), some, merged.with_name(f"{merged.name}-replies"), options)
    same = sum(row["reply"] == earlier["reply"] for row, earlier in zip(replies, after))
    note(f"the merged model gives {same} of {len(replies)} replies word for word as base + adapter")
    return same / len(replies)


def _remove_merged(folder: Path) -> None:
    """Only what an earlier demo wrote: a merged model has nothing but files."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _score(rows: list[dict[str, Any]]) -> float:
    return sum(exact_match(row["reply"], row["reference"]) for row in rows) / len(rows)


def _say(rows: list[dict[str, Any]], when: str) -> None:
    note(f"     exact match {when} training: {_score(rows):.1%} of {len(rows)} held-out notes")
    note(f"     note   {rows[0]['messages'][-1]['content']}")
    note(f"     reply  {rows[0]['reply'].strip()[:160]}")


def _samples(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": first["messages"][-1]["content"],
            "reference": first["reference"],
            "before": first["reply"],
            "after": second["reply"],
            "match_before": exact_match(first["reply"], first["reference"]),
            "match_after": exact_match(second["reply"], second["reference"]),
        }
        for first, second in zip(before[:SHOWN], after[:SHOWN])
    ]


def _goodbye(found: dict[str, Any], output: Path, merged: Path, report: Path) -> None:
    gib = found["peak_rss_bytes"] / (1 << 30)
    note("")
    note(
        f"exact match on {found['held_out']} held-out notes: {found['exact_match_before']:.1%} before, "
        f"{found['exact_match_after']:.1%} after"
    )
    note(f"{found['train_seconds']:.0f} s of training, {found['demo_seconds']:.0f} s in all, peak {gib:.2f} GiB")
    note(f"report: {report}")
    note("")
    for line in next_steps(output, merged, _command()):
        note(line)


def next_steps(output: Path, merged: Path, command: str = "lorikeet") -> list[str]:
    """What may be done now with what was trained, each line a command and what it is for."""
    steps = [
        (f"chat {output}", "talk to what was trained"),
        (f"serve {output}", "the same on a web page, and by OpenAI's API"),
        (f"export gguf {output} -o {output}.gguf", "one file for llama.cpp and Ollama"),
        (f"chat {merged}", "what was merged: an ordinary model folder"),
        (f"train {output}/recipe.yaml output_dir=runs/mine data.train='[mine.jsonl]'", "your own data"),
    ]
    wide = max(len(words) for words, _ in steps[:-1])
    return ["next:", *(f"  {command} {words:<{wide}}    {what}" for words, what in steps)]


def _command() -> str:
    """Lorikeet's command as it was called here: `make demo` puts it into a .venv that the shell does not look into."""
    called = sys.argv[0]
    return called if Path(called).name == "lorikeet" and shutil.which("lorikeet") is None else "lorikeet"
