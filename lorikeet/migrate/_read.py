"""A file of another system as plain values that know their lines: YAML, JSON, or the command in a shell script."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorikeet.base import yaml_lines
from lorikeet.base.errors import RecipeError
from lorikeet.base.yaml_lines import Key
from lorikeet.migrate._contract import Content

ALLOWED = "a .yaml or .yml of LLaMA-Factory, Axolotl or TRL, a dataset_info.json, a .json of arguments, or a .sh script"
_MOST_BYTES = 5 << 20
_LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "python", "python3", "llamafactory-cli", "trl", "axolotl")
_PROCESSES = ("nproc_per_node", "num_gpus", "num_processes")
_MACHINES = ("nnodes", "num_nodes")


def read(path: Path, given: frozenset[str] = frozenset()) -> Content:
    """The content of `path`. Raises RecipeError for a file that is absent, of another kind, or empty.

    `given`: options of ours that are set behind the command, so the source need not say them."""
    text = _text(path)
    if not text.strip():
        raise RecipeError(f"{path} is empty", allowed=ALLOWED)
    if path.suffix in (".sh", ".bash"):
        return _command(text, path, given)
    if path.suffix == ".json":
        return _json(text, path, given)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"'{path}' is no kind of file that can be imported", given=path.suffix, allowed=ALLOWED)
    try:
        tree = yaml_lines.parse(text, str(path))
    except RecipeError as error:
        if error.what.startswith("a recipe is a mapping") or error.what.endswith("is empty"):
            said = error.given or f"nothing but comments   ({path})"
            raise RecipeError("this is no mapping of settings", given=said, allowed=ALLOWED) from None
        raise
    return Content(path, tree.values, tree.places, given=given)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"'{path}' is too large for settings", given=f"{path.stat().st_size} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no file '{path}'", allowed=ALLOWED) from None
    except IsADirectoryError:
        raise RecipeError(f"'{path}' is a folder", allowed=ALLOWED) from None
    except OSError as error:
        raise RecipeError(f"cannot read '{path}'", given=error.strerror) from None
    except UnicodeDecodeError:
        raise RecipeError(f"'{path}' is not UTF-8 text", allowed=ALLOWED) from None


def _json(text: str, path: Path, given: frozenset[str]) -> Content:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError("this is not JSON", given=f"{error}   ({path})") from None
    if not isinstance(values, dict):
        raise RecipeError("this is no mapping of settings", given=f"{text.strip()[:60]}   ({path})", allowed=ALLOWED)
    try:
        places: dict[Key, str] = yaml_lines.parse(text, str(path)).places  # JSON is YAML, and this knows its lines
    except RecipeError:
        places = {}
    return Content(path, values, places, given=given)


def _command(text: str, path: Path, given: frozenset[str]) -> Content:
    """The flags of the one command in a script that trains: the one with the most flags."""
    commands = list(_commands(text))
    best = max(commands, key=lambda command: sum(word.startswith("--") for word, _ in command), default=[])
    if not any(word.startswith("--") for word, _ in best):
        raise RecipeError(
            "the script has no command with flags",
            given=str(path),
            allowed="python finetune.py --base_model NAME --data_path FILE ...",
        )
    start, program = _program(best)
    values: dict[str, Any] = {}
    places: dict[Key, str] = {}
    for name, value, line in _flags(best[start:]):
        values[name] = value
        places[(name,)] = f"{path}:{line}"
    launcher = {name: value for name, value, _ in _flags(best[: start - 1]) if isinstance(value, int)}
    devices = next((launcher[name] for name in _PROCESSES if name in launcher), 1)
    if "num_processes" not in launcher:  # accelerate counts over all machines, the others on each
        devices *= next((launcher[name] for name in _MACHINES if name in launcher), 1)
    return Content(path, values, places, program, max(devices, 1), given)


def _commands(text: str) -> Iterator[list[tuple[str, int]]]:
    """The commands of a script, each a list of (word, line); variables that the script sets are filled in."""
    variables: dict[str, str] = {}
    words: list[tuple[str, int]] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        while True:
            bare = line.rstrip()
            goes_on = bare.endswith("\\")
            try:
                found = shlex.split(bare.removesuffix("\\"), comments=True)
                break
            except ValueError:  # a quote that closes on a later line
                if number >= len(lines) or number - start > 200:
                    found = bare.split()
                    break
                line = f"{bare.removesuffix(chr(92))} {lines[number]}"
                number += 1
        for word in found:
            assigned = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)
            if word == "export" and not words:
                continue
            if assigned and not words:
                if not re.match(r"\$\d", assigned[2]):  # MODEL=$1 is what a person would give
                    variables.setdefault(assigned[1], _filled(assigned[2], variables))
                continue
            filled = _filled(word, variables)
            words += [(part, start + 1) for part in (filled.split() if word.startswith("$") else [filled])]
        if not goes_on and words:
            yield words
            words = []
    if words:
        yield words


def _filled(word: str, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return variables.get(match[1] or match[2], match[0])

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, word)


def _program(words: list[tuple[str, int]]) -> tuple[int, str]:
    """Where the flags of the training program start, and its name: behind `finetune.py`, `-m package` or `trl sft`."""
    for index, (word, _) in enumerate(words):
        if word.endswith(".py"):
            return index + 1, Path(word).name
    first = next((index for index, (word, _) in enumerate(words) if Path(word).name in _LAUNCHERS), 0)
    named = [words[first][0]]
    index = first + 1
    while index < len(words) and not words[index][0].startswith("-"):
        named.append(words[index][0])
        index += 1
    return index, " ".join(named)


def _flags(words: list[tuple[str, int]]) -> Iterator[tuple[str, Any, int]]:
    """(name, value, line) of `--name value`, `--name=value`, `--name a b` (a list) and `--name` (true)."""
    ends = [index for index, (word, _) in enumerate(words) if word in ("&", "|", ">", ">>", "2>&1", "&&", ";")]
    words = words[: ends[0]] if ends else words
    index = 0
    while index < len(words):
        word, line = words[index]
        index += 1
        if not word.startswith("--") or len(word) < 3:
            continue
        name, equals, text = word[2:].partition("=")
        told = [text] if equals else []
        while not equals and index < len(words) and not words[index][0].startswith("--"):
            told.append(words[index][0])
            index += 1
        values = [_value(part) for part in told]
        yield name.replace("-", "_"), True if not values else values[0] if len(values) == 1 else values, line


def _value(text: str) -> Any:
    try:
        value = yaml_lines.scalar(text) if text else ""
    except RecipeError:
        return text
    if isinstance(value, str):  # python's words, as fire and argparse read them
        return {"True": True, "False": False, "None": None}.get(value, value)
    return text if isinstance(value, dict) else value
