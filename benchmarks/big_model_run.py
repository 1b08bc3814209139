"""big_model.py's `run`: the recipe, the commands, and what they took beside what was planned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorikeet.base.errors import CheckFailed, OutputError, RecipeError
from lorikeet.base.files import write_file
from lorikeet.demo.notes import make_notes

STEP_TOKENS, STEPS = 2048, 2
PARTS = ("plan", "train", "resume", "predict")
WATCHED = Path(__file__).with_name("watched.py")
NF4 = {"kind": "nf4", "double_quant": True}
GIB = 1 << 30
STOPPED = 3  # the exit code of a run that can go on


def quant_of(text: str) -> dict[str, Any]:
    """The recipe's section: a kind, or options in JSON. Raises RecipeError."""
    if not text.startswith("{"):
        return NF4 if text == "nf4" else {"kind": text}
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise RecipeError("--quant: not JSON", given=text, allowed="a kind, or options in JSON") from error
    return found


def run(
    model: Path, work: Path, *, row_tokens: int, quant: dict[str, Any], threads: int | None, parts: Sequence[str]
) -> dict[str, Any]:
    """Run the parts in their order; returns the figures, and prints them. Raises CheckFailed where a command fails."""
    if not (model / "config.json").is_file():
        raise RecipeError(f"{model}: no model here", given=str(model), try_=f"big_model.py write {model}")
    if not 0 < row_tokens <= STEP_TOKENS or STEP_TOKENS % row_tokens:
        raise RecipeError("--row-tokens: does not divide a step", given=row_tokens, allowed="2048 1024 512 256 ...")
    if (work / "run").exists() and "train" in parts:
        raise OutputError(f"{work / 'run'} exists already", given=str(work), try_="another --work, or remove it")
    recipe = write_work(model, work, row_tokens=row_tokens, quant=quant, threads=threads)
    commands = {
        "plan": ["plan", str(recipe), "--json"],
        "train": ["--stop", "train", str(recipe)],
        "resume": ["train", str(recipe)],
        "predict": ["predict", str(work / "run"), str(work / "prompt.jsonl"), "--output", str(work / "reply.jsonl"),
                    "generate.temperature=0", "generate.max_new_tokens=12"],
    }  # fmt: skip
    found: dict[str, Any] = {}
    for part in parts:
        found[part] = _command(part, commands[part], work)
        for line in lines(part, found):
            print(line, flush=True)
    return found


def write_work(
    model: Path, work: Path, *, row_tokens: int, quant: dict[str, Any], threads: int | None, steps: int = STEPS
) -> Path:
    """Write the conversations, the prompt and the recipe; returns the recipe's path."""
    per_step = STEP_TOKENS // row_tokens
    count, turns = per_step * steps, max(2, row_tokens // 32)  # a note and its answer have more than 32 tokens
    notes = [row["messages"] for row in make_notes(count * turns + 1, 0, seed=0)[0]]
    talks = [[one for note in notes[i * turns : (i + 1) * turns] for one in note[1:]] for i in range(count)]
    work.mkdir(parents=True, exist_ok=True)
    write_file(work / "rows.jsonl", "".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    write_file(work / "prompt.jsonl", json.dumps({"messages": notes[-1][1:2]}) + "\n")
    made = {
        "output_dir": str(work / "run"),
        "model": {"path": str(model), "dtype": "bfloat16"} | ({} if threads is None else {"threads": threads}),
        "quant": quant,
        "adapter": {"kind": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "data": {"train": [str(work / "rows.jsonl")], "max_length": row_tokens, "truncation": "cut"},
        "train": {"examples_per_step": per_step, "row_tokens": row_tokens, "max_steps": steps, "save_steps": 1,
                  "gradient_checkpointing": True, "learning_rate": 1e-4, "lr_scheduler_type": "constant"},
    }  # fmt: skip
    write_file(work / "recipe.yaml", yaml.safe_dump(made, sort_keys=False))
    return work / "recipe.yaml"


def _command(part: str, words: list[str], work: Path) -> dict[str, Any]:
    if part == "plan":
        command = [sys.executable, "-m", "lorikeet.cli.main", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        _check(part, done.returncode, 0)
        planned: dict[str, Any] = json.loads(done.stdout)
        return planned
    notes = work / f"{part}.json"
    code = subprocess.run([sys.executable, str(WATCHED), str(notes), *words], stdout=sys.stderr).returncode
    _check(part, code, STOPPED if part == "train" else 0)
    found: dict[str, Any] = json.loads(notes.read_text())
    if part == "predict":
        found["reply"] = json.loads((work / "reply.jsonl").read_text().splitlines()[0])
    else:
        found["metrics"] = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return found


def _check(part: str, code: int, expected: int) -> None:
    if code != expected:
        raise CheckFailed(f"the command `{part}` ended with exit code {code}", allowed=f"{expected}")


def lines(part: str, found: dict[str, Any]) -> Iterator[str]:
    """What a part took, for eyes."""
    figures = found[part]
    if part == "plan":
        kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in figures["bytes"].items() if size)
        yield f"plan      process {figures['process_bytes'] / GIB:.2f} GiB; tensors: {kinds}"
        return
    peak = max(one["peak_bytes"] for one in figures["parts"])
    yield f"{part:9} peak {peak / GIB:.2f} GiB" + (f"; {beside(peak, found)}" if part != "predict" else "")
    for one in figures["parts"]:
        if one["seconds"] < 0.5 and one["name"] == "between":
            continue
        split = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one["split"].items() if seconds >= 0.05)
        yield (
            f"  {one['name']:8}{one['seconds']:8.1f} s   peak {one['peak_bytes'] / GIB:.2f}   "
            f"after {one['bytes_after'] / GIB:.2f} GiB   {split}"
        )
    if part == "predict":
        yield f"  reply: {figures['reply']}"
    else:
        yield "  losses: " + ", ".join(f"{row['loss']:.4f}" for row in figures["metrics"] if row["kind"] == "train")


def beside(peak: int, found: dict[str, Any]) -> str:
    """The peak and what was planned."""
    if "plan" not in found:
        return "not planned"
    planned = found["plan"]["process_bytes"]
    return f"planned {planned / GIB:.2f} ({planned / peak - 1:+.1%})"
