"""The verb: a file of another system becomes a recipe with its sources as comments, and a list of what was left out.

The recipe is validated as every recipe is before anything is written, with the source's lines in the messages, and an
option that would have no effect in such a run is moved to the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorikeet import config
from lorikeet.base import yaml_lines
from lorikeet.base.errors import OutputError, RecipeError
from lorikeet.base.files import write_file
from lorikeet.base.kinds import family_files
from lorikeet.base.option_fields import find
from lorikeet.base.yaml_lines import Key
from lorikeet.migrate._contract import Content, Left, Setting, Status, System, Translation
from lorikeet.migrate._read import read
from lorikeet.migrate._table import plain

_TITLES: dict[Status, str] = {
    "missing": "missing: training needs it",
    "differs": "differs: the run comes out otherwise",
    "unknown": "unknown: keys this importer does not know",
    "not needed": "not needed: nothing to carry over",
}
# two ways to say one thing: what is said behind the command replaces what the file said in the other way
_RIVALS = {
    "train.examples_per_step": ("train.per_device_train_batch_size", "train.gradient_accumulation_steps"),
    "train.per_device_train_batch_size": ("train.examples_per_step",),
    "train.gradient_accumulation_steps": ("train.examples_per_step",),
    "train.warmup_steps": ("train.warmup_ratio",),
    "train.warmup_ratio": ("train.warmup_steps",),
    "train.num_train_epochs": ("train.max_steps",),
    "adapter.scaling": ("adapter.lora_alpha", "adapter.use_rslora"),
    "adapter.lora_alpha": ("adapter.scaling",),
}
_FITS = 56  # comments start in this column where the line leaves room


@dataclass(frozen=True)
class Imported:
    """What came of a file."""

    system: str
    recipe: config.Recipe
    text: str
    left: list[Left]


def systems() -> list[System]:
    """Every source system, one file each."""
    return [kind() for kind in family_files("lorikeet.migrate", System)]


def translated(path: Path, datasets: Sequence[str] = (), overrides: Sequence[str] = ()) -> Imported:
    """The recipe that says what `path` says; `overrides` are `section.option=value` that win over it.

    Raises RecipeError for a file no system knows, for values that it would refuse, and for datasets that are not
    there."""
    content = read(path, frozenset(override.partition("=")[0].strip() for override in overrides))
    system = _system_of(content)
    made = system.translate(content, datasets)
    _override(made, overrides)
    if made.get("train.max_steps") is not None:  # a default of the source must not meet what makes it useless
        made.settings.pop(("train", "num_train_epochs"), None)
    recipe = _validated(made)
    text = _text(made)
    assert yaml_lines.parse(text, "recipe").values == plain(made), "the recipe must read back as it was meant"
    return Imported(made.system, recipe, text, made.left)


def write(imported: Imported, output: Path, *, source: Path | None = None, overwrite: bool = False) -> None:
    """Write the recipe that `source` amounts to. Raises OutputError where there is a file already, or no place for
    one."""
    if source is not None and output.exists() and output.samefile(source):
        raise OutputError(
            f"'{output}' is the file that is imported",
            given=str(output),
            allowed="a new file",
            try_=f"-o {output.with_stem(output.stem + '-imported')}",
        )
    if output.is_dir() or (output.exists() and not overwrite):
        raise OutputError(
            f"'{output}' exists already",
            given=str(output),
            allowed="a new file",
            try_=f"-o {output.with_stem(output.stem + '-imported')}" + ("" if output.is_dir() else ", or --overwrite"),
        )
    try:
        write_file(output, imported.text)
    except OSError as error:
        raise OutputError(f"cannot write '{output}'", given=error.strerror) from None


def listed(left: Sequence[Left]) -> list[str]:
    """The list of what was left out, in lines, the weightiest first."""
    lines: list[str] = []
    for status, title in _TITLES.items():
        found = [one for one in left if one.status == status]
        if found:
            told = _together(found) if status == "not needed" else map(str, found)
            lines += ["", title, *(f"  {' '.join(line.split())}" for line in told)]
    return lines[1:]


def _together(found: Sequence[Left]) -> list[str]:
    """One line for all the keys with the same reason."""
    reasons: dict[str, list[Left]] = {}
    for one in found:
        reasons.setdefault(one.why, []).append(one)
    several = {why: ", ".join(one.key for one in same) for why, same in reasons.items() if len(same) > 1}
    return [f"{several[why]} - {why}" if why in several else str(same[0]) for why, same in reasons.items()]


def _system_of(content: Content) -> System:
    ranked = sorted((system.recognise(content), system.precedence, system.name) for system in systems())
    score, _, name = ranked[-1]
    if score > 0:
        return next(system for system in systems() if system.name == name)
    if isinstance(content.values.get("model"), dict) and isinstance(content.values.get("data"), dict):
        raise RecipeError(f"'{content.path}' is a recipe already", try_=f"lorikeet train {content.path}")
    raise RecipeError(
        f"'{content.path}' is of no system that can be imported",
        given=f"keys {' '.join(map(str, content.values))[:200]}",
        allowed="; ".join(system.name for system in systems()),
        try_="docs/migrating.md, which lists the options of each system beside ours",
    )


def _override(made: Translation, overrides: Sequence[str]) -> None:
    for override in overrides:
        dotted, equals, text = override.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or "" in path:
            raise RecipeError(
                "an override is key=value",
                given=f"{override}   ({config.COMMAND_LINE})",
                allowed="section.option=value",
            )
        value: Any = yaml_lines.scalar(text)
        for end in range(1, len(path)):  # data.template.kind=chatml, where data.template is one setting
            if path[:end] in made.settings:
                old = made.settings[path[:end]].value
                path, value = path[:end], _within(old, path[end:], value)
                break
        rivals = [tuple(name.split(".")) for name in _RIVALS.get(".".join(path), ()) if value is not None]
        for below in [key for key in made.settings if key[: len(path)] == path or key in rivals]:
            del made.settings[below]
        made.settings[path] = Setting(value, "set behind the command", config.COMMAND_LINE)


def _within(old: Any, path: tuple[str, ...], value: Any) -> Any:
    node = dict(old) if isinstance(old, dict) else {}
    node[path[0]] = _within(node.get(path[0]), path[1:], value) if len(path) > 1 else value
    if path == ("kind",):
        node = {"kind": value}
    return node


def _validated(made: Translation) -> config.Recipe:
    while True:
        places: dict[Key, str] = {path: setting.place for path, setting in made.settings.items()}
        recipe = config.parse(plain(made), name=str(made.content.path), places=places)
        try:
            config.check_effects(recipe)
            return recipe
        except RecipeError as error:
            path = tuple(str(error.given).split("."))
            if path not in made.settings or made.settings[path].place == config.COMMAND_LINE:
                raise
            idle = made.settings.pop(path)
            why = f"no effect in this run: {error.what.rpartition('because ')[2]}"
            made.left.append(Left("not needed", ".".join(path), idle.value, why, idle.place))


def _text(made: Translation) -> str:
    lines = [
        f"# Made from {made.content.path.name} ({made.system}) by lorikeet import. Behind each line: its source.",
        "# What could not be carried over is listed at the end.",
    ]
    values = plain(made)
    for section, value in values.items():
        if isinstance(value, dict) and (section,) not in made.settings:
            lines.append(f"{section}:")
            for name in _in_order(section, values):
                lines += _option(name, made.settings[(section, name)], "  ")
        else:
            lines += _option(section, made.settings[(section,)], "")
    if made.left:
        lines += ["", f"# Not carried over from {made.content.path.name}:", "#"]
        lines += [f"# {line}".rstrip() for line in listed(made.left)]
    return "\n".join(lines) + "\n"


def _in_order(section: str, values: dict[str, Any]) -> list[str]:
    """A section's options as docs/options.md lists them."""
    _, classes = find(config.Recipe, (section,), values)
    order = [name for one in classes for name in one.model_fields]
    return sorted(values[section], key=lambda name: order.index(name) if name in order else len(order))


def _option(name: str, setting: Setting, indent: str) -> list[str]:
    value, comment = setting.value, " ".join(setting.source.split())
    if isinstance(value, list) and (len(value) > 2 or any(isinstance(item, dict) for item in value)):
        items = [f"{indent}  - {yaml_lines.dump(item, one_line=True)}" for item in value]
        return [_commented(f"{indent}{name}:", comment), *items]
    return [_commented(f"{indent}{name}: {yaml_lines.dump(value, one_line=True)}", comment)]


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_FITS}}  # {comment}" if comment else line
