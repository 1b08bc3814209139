"""A chain of steps as a YAML file, or as words on the command line, or both: options of the second overrule the first.

lorikeet data clean one.json two.json -o clean.jsonl --steps roles,dedupe dedupe.near=0.8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lorikeet.base import yaml_lines
from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.kinds import kinds
from lorikeet.base.option_errors import check_numbers, explain
from lorikeet.base.yaml_lines import Tree
from lorikeet.data.steps._contract import Step

if TYPE_CHECKING:
    from lorikeet.data.clean import CleanOptions

COMMAND_LINE = "the command line"
PACKAGE = "lorikeet.data.steps"


def options(recipe: Path | None, said: dict[str, Any], steps: str | None, overrides: Sequence[str]) -> CleanOptions:
    """The options of a recipe file with what was said on the command line. Raises RecipeError, with the line."""
    from lorikeet.data.clean import CleanOptions

    tree = yaml_lines.read(recipe) if recipe is not None else Tree(COMMAND_LINE, places={(): COMMAND_LINE})
    if recipe is not None:
        _beside(tree.values, recipe.parent)
    for name, value in said.items():
        tree.put((name,), value, COMMAND_LINE)
    if steps is not None:
        tree.put(("steps",), [{"kind": name} for name in steps.replace(",", " ").split()], COMMAND_LINE)
    _spell_out(tree)
    for override in overrides:
        _override(tree, override)
    for name in ("input", "output", "steps"):
        if not tree.values.get(name):
            raise RecipeError(
                f"{name}: is not said",
                given=tree.name,
                allowed=_ALLOWED[name],
                try_=f"lorikeet data clean {_TRY[name]}",
            )
    check_numbers(CleanOptions, tree)
    try:
        return CleanOptions.model_validate(tree.values)
    except ValidationError as error:
        raise explain(error, CleanOptions, tree) from None


_ALLOWED = {
    "input": "files, folders, URLs or hub data sets",
    "output": "a .jsonl or .json file",
    "steps": " ".join(kinds(PACKAGE)),
}
_TRY = {
    "input": "mine.json -o clean.jsonl --steps roles,dedupe",
    "output": "... -o clean.jsonl",
    "steps": "... --steps roles,dedupe",
}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a chain's YAML file, its short forms included, for editors that complete and check it."""
    from lorikeet.data.clean import CleanOptions

    schema = CleanOptions.model_json_schema()
    definitions, sections = schema["$defs"], schema["properties"]
    allowed, short = sections["steps"]["items"]["anyOf"], {}
    for reference in allowed:
        step = definitions[reference["$ref"].rpartition("/")[2]]
        if "const" not in step["properties"].get("kind", {}):
            continue
        options = {name: option for name, option in step["properties"].items() if name != "kind"}
        short[step["properties"]["kind"]["const"]] = {
            "anyOf": [{**step, "properties": options}, {"type": "null"}],
            "description": step.get("description", ""),
        }
        step["required"] = ["kind", *step.get("required", [])]
    definitions[Step.__name__] = {
        "type": "object",
        "title": "Your own step",
        "properties": {"kind": {"type": "string", "pattern": r"\.py$"}},
        "required": ["kind"],
    }
    one = {"type": "object", "properties": short, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    allowed += [{"enum": list(short)}, {"type": "string", "pattern": r"\.py$"}, one]
    sections["steps"] = {
        "anyOf": [sections["steps"], {"type": "string"}],
        "description": sections["steps"]["description"],
    }
    sections["input"] = {"anyOf": [sections["input"], sections["input"]["items"]]}
    sections["format"]["anyOf"].append({"type": "string"})
    schema["required"] = ["steps"]  # the files may be named on the command line
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Lorikeet cleaning chain"}


def _spell_out(tree: Tree) -> None:
    """Steps in the short forms, `- roles` and `- dedupe: {near: 0.8}`, become mappings with a kind."""
    steps = tree.values.get("steps")
    if isinstance(steps, str):
        steps = steps.replace(",", " ").split()
    if not isinstance(steps, list):
        return
    known = kinds(PACKAGE)
    for number, step in enumerate(steps):
        if isinstance(step, str):
            steps[number] = {"kind": step}
        elif isinstance(step, dict) and len(step) == 1 and "kind" not in step:
            ((name, inside),) = step.items()
            if name in known and (inside is None or isinstance(inside, dict)):
                steps[number] = {"kind": name, **(inside or {})}
                moved = {key: at for key, at in tree.places.items() if key[:3] == ("steps", number, name)}
                tree.places |= {(*key[:2], *key[3:]): at for key, at in moved.items()}
    tree.values["steps"] = steps


def _override(tree: Tree, override: str) -> None:
    """`dedupe.near=0.8` sets an option of the chain's last dedupe."""
    dotted, equals, text = override.partition("=")
    kind, dot, option = dotted.strip().partition(".")
    steps = tree.values.get("steps")
    listed = steps if isinstance(steps, list) else []
    there = [step.get("kind") if isinstance(step, dict) else None for step in listed]
    if not (equals and dot and option) or kind not in there:
        near = nearest(kind, [str(name) for name in there])
        raise RecipeError(
            f"{override}: sets no option of a step in the chain",
            given=f"{override}   ({COMMAND_LINE})",
            allowed=f"STEP.OPTION=VALUE with one of: {' '.join(map(str, there)) or '(no steps)'}",
            try_=f"{near}.{option}={text}" if near and option else None,
        )
    number = len(there) - 1 - there[::-1].index(kind)
    assert isinstance(steps, list)
    steps[number][option] = yaml_lines.scalar(text)
    tree.places[("steps", number, option)] = COMMAND_LINE


def _beside(values: dict[str, Any], folder: Path) -> None:
    """Inputs written in a recipe mean the files beside it, where there are such."""
    given = values.get("input")
    listed = [given] if isinstance(given, (str, dict)) else given
    if not isinstance(listed, list):
        return
    for number, one in enumerate(listed):
        name = one.get("path") if isinstance(one, dict) else one
        if isinstance(name, str) and name and not Path(name).is_absolute() and (folder / name).exists():
            found = str(folder / name)
            listed[number] = {**one, "path": found} if isinstance(one, dict) else found
    values["input"] = listed
