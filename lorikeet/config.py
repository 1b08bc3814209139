"""The recipe: the list of sections, and how it is loaded, overridden, saved and described.

An option is declared in the file that reads it, so this file knows the names of the sections and nothing in them.
A recipe is read in one direction: YAML and `key=value` overrides make a tree of plain values that remembers lines, and
pydantic turns the tree into a frozen `Recipe` or into one error of four lines.

Relative paths. `data.train`, `data.validation` and `model.path` written in a recipe file mean the file beside the
recipe if there is one, else the file in the working directory; written on the command line they mean the working
directory. `output_dir` always means the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, field_validator

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters.lora import Lora
from lorikeet.base import yaml_lines
from lorikeet.base.errors import LorikeetError, RecipeError, nearest
from lorikeet.base.files import write_file
from lorikeet.base.kinds import kind_field
from lorikeet.base.option_errors import check_numbers, explain, leaves
from lorikeet.base.option_fields import (
    assignment,
    default_of,
    find,
    holds_options,
    keys_below,
    kinds_of,
    option_classes,
)
from lorikeet.base.options import Options
from lorikeet.base.yaml_lines import Key, Tree
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.sources import check_sources, options_of, validation_of
from lorikeet.infer.guides._contract import Guide
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.load import ModelOptions
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant
from lorikeet.train.best import check_metric
from lorikeet.train.evaluate import EvaluateOptions
from lorikeet.train.limits import LimitOptions
from lorikeet.train.noise import check_noise
from lorikeet.train.optimizers._contract import Optimizer, Shared
from lorikeet.train.options import TrainOptions, idle
from lorikeet.train.schedules._contract import Schedule
from lorikeet.train.trackers._contract import Tracker

ErrorType = TypeVar("ErrorType", bound=LorikeetError)
COMMAND_LINE = "the command line"
_PATHS = (("model", "path"), ("adapter", "path"), ("data", "train"), ("data", "validation"))
# two ways to say one thing in the section train
_EITHER = (
    ({"max_steps"}, {"num_train_epochs"}),
    ({"warmup_steps"}, {"warmup_ratio"}),
    ({"examples_per_step"}, {"per_device_train_batch_size", "gradient_accumulation_steps"}),
)


class Recipe(Options):
    """Everything that decides a run, section by section."""

    output_dir: Path = Field(description="The run's folder.", examples=["runs/first"])
    model: ModelOptions = Field(description="The model to start from.", examples=[{"path": "smollm2-135m"}])
    quant: kind_field("lorikeet.quant", Quant) = Field(  # type: ignore[valid-type]
        NoQuant(), description="How the frozen weights are kept in memory."
    )
    adapter: kind_field("lorikeet.adapters", Adapter) = Field(  # type: ignore[valid-type]
        Lora(), description="What trains."
    )
    data: DataOptions = Field(description="What it learns from.", examples=[{"train": ["mine.json"]}])
    train: TrainOptions = Field(default_factory=TrainOptions, description="How it learns.")
    limits: LimitOptions = Field(default_factory=LimitOptions, description="What it may take.")
    evaluate: EvaluateOptions = Field(
        default_factory=EvaluateOptions, description="How it is measured while it learns."
    )
    generate: GenerateOptions = Field(default_factory=GenerateOptions, description="How replies are sampled.")

    @field_validator("output_dir")
    @classmethod
    def _named(cls, value: Path) -> Path:
        if value == Path() or "\0" in str(value):
            raise ValueError("needs the name of a folder")
        return value


def load(path: Path | str, overrides: Sequence[str] = (), *, makes_run: bool = True) -> Recipe:
    """The recipe in a YAML file with `key=value` overrides applied. Raises RecipeError that names the line.

    Where no run is made of it (`makes_run`), it need not say output_dir."""
    source = tree(path, overrides)
    if not makes_run:
        source.values.setdefault("output_dir", "unused")
    return _build(source)


def parse(
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    name: str = "the recipe",
    places: Mapping[Key, str] | None = None,
) -> Recipe:
    """The recipe in a mapping of plain values, as `load` would read it from YAML.

    `places`: where each value was written, for messages; `name` stands for the places that are not there."""
    made = yaml_lines.parse(yaml_lines.dump(values), name)
    made.places = {(): name, **(places or {})}
    return _build(_overridden(made, overrides))


def tree(path: Path | str, overrides: Sequence[str] = ()) -> Tree:
    """The plain values of a recipe file and its overrides, each with the place it was written."""
    path = Path(path)
    made = yaml_lines.read(path)
    for key in _PATHS:
        _beside(made.values, key, path.parent)
    return _overridden(made, overrides)


def options(section: str, overrides: Sequence[str], **fixed: Any) -> dict[str, Any]:
    """The options of one section that are set by overrides, validated: {"temperature": 0.7} for `generate`.

    For commands that take a model and no recipe. `fixed` are options that the command itself says, e.g. the kind."""
    made = _overridden(Tree(COMMAND_LINE, places={(): COMMAND_LINE}), overrides)
    field = Recipe.model_fields[section]
    chosen = kinds_of(field).get(str(fixed.get("kind")), option_classes(field.annotation)[0])
    for key in made.values:
        if key != section:
            raise RecipeError(
                f"{key}: has no effect here",
                given=f"{key}   ({COMMAND_LINE})",
                allowed="generate.option=value, and model.option=value about the model"
                if section in ("generate", "model")
                else f"{section}.option=value",
            )
    for name in fixed.keys() & made.values.get(section, {}).keys():
        raise RecipeError(f"{section}.{name}: the command says it already", given=fixed[name], allowed="one of the two")
    made.values[section] = made.values.get(section, {}) | fixed  # a kind that is fixed decides which options there are
    check_numbers(Recipe, made)
    try:
        read = chosen.model_validate(made.values[section])
    except ValidationError as error:
        raise explain(error, Recipe, made, below=(section,)) from None
    return {name: getattr(read, name) for name in read.model_fields_set - fixed.keys()}


def save(recipe: Recipe, path: Path) -> None:
    """Write the complete recipe, every default included, as YAML that `load` reads back equal."""
    write_file(path, yaml_lines.dump(recipe.model_dump(mode="json")))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check YAML."""
    schema = Recipe.model_json_schema()
    sections, train = schema["properties"], schema["$defs"][TrainOptions.__name__]["properties"]
    fields = [sections["quant"], sections["adapter"], train["optim"], train["lr_scheduler_type"]]
    fields += [train["report_to"]["items"], schema["$defs"][GenerateOptions.__name__]["properties"]["guide"]]
    for field, contract in zip(fields, (Quant, Adapter, Optimizer, Schedule, Tracker, Guide)):
        _own_kinds(schema, field, contract.__name__)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Lorikeet recipe", **schema}


def written(recipe: Options) -> set[str]:
    """The dotted keys that were given and differ from their defaults: what a person asked for.

    A saved recipe holds every default, so a value equal to its default counts as not asked for."""
    found: set[str] = set()
    for name in recipe.model_fields_set:
        value = getattr(recipe, name)
        if isinstance(value, Options):
            found |= {f"{name}.{below}" for below in written(value)}
        elif value != default_of(type(recipe).model_fields[name]):
            found.add(name)
    return found


def check_effects(recipe: Recipe) -> None:
    """An option that a person wrote and that would do nothing in this run is an error with the reason."""
    asked, validation, optimizer = written(recipe), validation_of(recipe.data), recipe.train.optim
    kept, reaches = {"train.gradient_checkpointing"}, recipe.adapter.reaches_layers or bool(recipe.model.add_tokens)
    # to switch off what would not happen anyway is no contradiction
    asked -= {f"evaluate.{name}" for name in ("before", "samples") if not getattr(recipe.evaluate, name)}
    useless: Sequence[tuple[set[str], bool, str, str]] = (
        (
            {
                *("train.eval_steps", "train.metric_for_best_model", "train.greater_is_better"),
                *(f"evaluate.{name}" for name in EvaluateOptions.model_fields),
            },
            validation is None,
            "there is no data.validation",
            "data.validation=0.1",
        ),
        (
            {f"train.{name}" for name in Shared._fields if name not in optimizer.reads},
            True,
            f"train.optim is {optimizer.kind}",
            "train.optim=adamw_torch",
        ),
        (
            {"train.load_best_model_at_end", "train.early_stopping_patience"},
            validation is None or recipe.train.eval_steps is None,
            "nothing is evaluated before its end",
            "data.validation=0.1 and train.eval_steps=100",
        ),
        ({"model.allow_code"}, True, "a recipe names its own files itself", "data.template.kind=./mine.py"),
        ({"evaluate.prompts"}, not recipe.evaluate.metrics, "evaluate.metrics is empty", "evaluate.metrics='[ended]'"),
        ({"evaluate.sample_steps"}, recipe.evaluate.samples == 0, "evaluate.samples is 0", "evaluate.samples=3"),
        (
            {"train.num_train_epochs"},
            recipe.train.max_steps is not None,
            "train.max_steps decides the length",
            "train.max_steps=null",
        ),
        (kept, not reaches, "no gradient goes through the layers", "another adapter.kind"),
        *idle(recipe.train),
        *_idle_in_replies(recipe),
        (
            {"data.mix.epoch"},
            all(options_of(source).weight is None for source in recipe.data.train),
            "no source has a weight",
            "data.train='[{path: a.json, weight: 3}, {path: b.json, weight: 1}]'",
        ),
    )
    check_metric(recipe.train, recipe.evaluate)
    check_noise(recipe.train, recipe.adapter.noise_refusal)
    for names, so, reason, remedy in useless:
        found = sorted(names & asked)
        if found and so:
            raise RecipeError(
                f"{found[0]}: has no effect in this run, because {reason}",
                given=found[0],
                try_=f"{remedy}, or leave {found[0]} out",
            )


def _idle_in_replies(recipe: Recipe) -> Sequence[tuple[set[str], bool, str, str]]:
    """What of `generate` would do nothing: (options, whether so, why, what to write)."""
    sampling = {f"generate.{name}" for name in ("top_k", "top_p", "min_p", "seed")}
    beams = {"generate.length_penalty", "generate.early_stopping"}
    return (
        (sampling, recipe.generate.temperature == 0, "generate.temperature is 0", "generate.temperature=0.7"),
        (beams, recipe.generate.num_beams == 1, "generate.num_beams is 1", "generate.num_beams=4"),
    )


def located(error: ErrorType, source: Tree) -> ErrorType:
    """The same error with the place of the option it starts with, where a recipe wrote that option.

    An error that names no option is one about the value it was given, where that stands in the recipe once."""
    dotted = re.match(r"([a-z_]+(?:\.[a-z0-9_]+)*): ", error.what)
    key: Key = tuple(int(part) if part.isdigit() else part for part in dotted[1].split(".")) if dotted else ()
    if (not key or key not in source.places) and isinstance(error.given, str | Path):
        same = [at for at, value in leaves(source.values) if value == str(error.given)]
        key = same[0] if len(same) == 1 else ()
    if key not in source.places or not key or source.places[key] in str(error.given):
        return error
    given = f"{'' if error.given is None else error.given}   ({source.places[key]})".strip()
    return type(error)(error.what, given=given, allowed=error.allowed, try_=error.try_)


def _build(source: Tree) -> Recipe:
    _fill(Recipe, source.values)
    check_numbers(Recipe, source)
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        raise explain(error, Recipe, source) from None
    try:
        check_sources(recipe.data)
    except RecipeError as error:
        raise located(error, source) from None
    return recipe


def _fill(section: type[Options], values: dict[str, Any]) -> None:
    """An empty section (`train:` and nothing behind it) is its defaults; `adapter: {r: 16}` is of the default kind."""
    for name, field in section.model_fields.items():
        if name not in values:
            continue
        default = default_of(field)
        kinds, classes = kinds_of(field), option_classes(field.annotation) if holds_options(field) else []
        if values[name] is None and len(classes) == 1 and not kinds:
            values[name] = {}
        if kinds and isinstance(values[name], dict) and "kind" not in values[name] and hasattr(default, "kind"):
            values[name] = {"kind": default.kind, **values[name]}
        if isinstance(values[name], dict):
            chosen = kinds.get(values[name].get("kind")) if kinds else classes[0] if classes else None
            if chosen is not None:
                _fill(chosen, values[name])


def _overridden(source: Tree, overrides: Sequence[str]) -> Tree:
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key: tuple[str | int, ...] = tuple(dotted.strip().split("."))
        if not equals or "" in key:
            near = nearest(dotted, keys_below(Recipe))
            raise RecipeError(
                "an override is key=value",
                given=f"{override}   ({COMMAND_LINE})",
                allowed="section.option=value, without spaces around the =",
                try_=f"{near}=..." if near else "train.learning_rate=1e-4",
            )
        for end in range(1, len(key)):
            _open(source, key[:end], override)
        source.put(key, yaml_lines.scalar(text), COMMAND_LINE)
    _give_way(source)
    return source


def _give_way(source: Tree) -> None:
    """Where a recipe says a thing one way and the command line another, the recipe's way is left out."""
    section = source.values.get("train")
    if not isinstance(section, dict):
        return
    for one, other in [*_EITHER, *((other, one) for one, other in _EITHER)]:
        said = {name for name in one | other if source.places.get(("train", name)) == COMMAND_LINE}
        if not said or said & other or all(section[name] is None for name in said):
            continue
        for name in other:
            section.pop(name, None)
            source.places.pop(("train", name), None)


def _open(source: Tree, key: tuple[str | int, ...], override: str) -> None:
    """Make what stands at `key` a mapping that an override can write into."""
    node: Any = source.values
    for part in key:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, list):
        dotted = ".".join(map(str, key))
        raise RecipeError(
            f"{dotted}: is a list, which is given as a whole",
            given=f"{override}   ({COMMAND_LINE})",
            allowed=f"{dotted}=[...]",
            try_=assignment(key, node),
        )
    field, classes = find(Recipe, key, source.values)
    if field is None or isinstance(node, dict):
        return  # an unknown section is reported with all the others
    dotted = ".".join(map(str, key))
    if isinstance(node, str) and kinds_of(field):
        place = source.place(key)
        source.put(key, {"kind": node}, place)
    elif not classes and not (node is None and isinstance(default_of(field), dict)):
        raise RecipeError(
            f"{dotted}: has no options of its own",
            given=f"{override}   ({COMMAND_LINE})",
            allowed=f"{dotted}=value",
            try_=f"{dotted}={override.partition('=')[2]}",
        )


def _beside(values: dict[str, Any], key: tuple[str, str], folder: Path) -> None:
    """Rewrite the relative paths at `key` that exist beside the recipe to absolute ones."""
    section = values.get(key[0])
    if not isinstance(section, dict) or key[1] not in section:
        return
    value = section[key[1]]

    def found(path: Any) -> Any:
        if isinstance(path, dict) and "path" in path:
            return {**path, "path": found(path["path"])}
        if not isinstance(path, str) or not path or Path(path).is_absolute() or not (folder / path).exists():
            return path
        return str((folder / path).resolve())

    section[key[1]] = [found(path) for path in value] if isinstance(value, list) else found(value)


def _own_kinds(schema: dict[str, Any], field: dict[str, Any], contract: str) -> None:
    """In a JSON schema: the bare kind's name is allowed too, and the contract stands for a person's own .py file."""
    schema["$defs"][contract] = {
        "type": "object",
        "title": f"Your own {contract.lower()}",
        "properties": {"kind": {"type": "string", "pattern": r"\.py$"}},
        "required": ["kind"],
    }
    field["anyOf"].append({"type": "string"})
