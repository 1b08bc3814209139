"""Whatever number a person writes into whatever option: it is taken, or refused in one message; never a traceback.

The options are found in the classes, section by section and kind by kind, so one that is added is asked too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lorikeet import config
from lorikeet.base.errors import LorikeetError
from lorikeet.base.option_errors import leaves
from lorikeet.base.option_fields import as_yaml, kinds_of, option_classes, plain_types
from lorikeet.base.options import Options
from lorikeet.config import Recipe
from lorikeet.data.clean import CleanOptions
from lorikeet.data.steps import _recipe
from lorikeet.quant._gptq_solver import SolverOptions

FLOAT32 = 3.4e38
NAN, INF = math.nan, math.inf
NO_NUMBERS = (NAN, INF, -INF, True, 10**400, -(10**400), "nan", "inf", "1e999")
VALUES = (
    *NO_NUMBERS, 0, -1, 1, 0.5, -0.0, 10**18, -(10**18), 1e308, -1e308, 5e-324, "", " ", "8", "8 apples", "9" * 4000,
    "9" * 400 + "GiB", "9" * 400 + "h", None, [], [1], [NAN], {}, {"x": 1},
)  # fmt: skip
Wrap = Callable[[Any], Any]


@dataclass(frozen=True)
class Step:
    """One name of an option's key: the class that has it, and whether it holds a list."""

    owner: type[Options]
    name: str
    listed: bool = False


@dataclass(frozen=True)
class Option:
    """An option that holds a number, from the top down. `wrap`: a number as the option has it, in a list perhaps."""

    steps: tuple[Step, ...]
    field: FieldInfo
    wrap: Wrap

    def holding(self, value: Any) -> dict[str, Any]:
        """The values of the top class in which the option is `value`, and all that is required besides."""
        for step in reversed(self.steps):
            value = required(step.owner) | {step.name: [value] if step.listed else value}
        assert isinstance(value, dict)
        return value

    def __str__(self) -> str:
        kinds = [str(one.owner.model_fields["kind"].default) for one in self.steps if "kind" in one.owner.model_fields]
        shape = str(self.wrap("")).replace("'", "")
        return " ".join([".".join(step.name for step in self.steps), *kinds, shape]).strip()


def required(owner: type[Options]) -> dict[str, Any]:
    """The least that a class takes."""
    fields = owner.model_fields
    found = {name: sample(field) for name, field in fields.items() if field.is_required()}
    return found | ({"kind": fields["kind"].default} if "kind" in fields else {})


def sample(field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    types = plain_types(field)
    return ["x"] if list in types else {"a": "b"} if dict in types else "x"


def holders(annotation: Any) -> Iterator[Wrap]:
    """The ways in which a type holds a number: as itself, in a list, in a mapping."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from holders(parts[0])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from holders(part)
    elif annotation in (int, float):
        yield lambda value: value
    elif origin is list:
        for wrap in holders(parts[0]):
            yield lambda value, wrap=wrap: [wrap(value)]
    elif parts and origin is not Literal:
        key = get_args(parts[0])[0] if get_origin(parts[0]) is Literal else "5" if parts[0] is int else "q_proj"
        for wrap in holders(parts[-1]):
            yield lambda value, wrap=wrap, key=key: {key: wrap(value)}


def options(top: type[Options], above: tuple[Step, ...] = ()) -> Iterator[Option]:
    """Every option below `top` that holds a number."""
    for name, field in top.model_fields.items():
        inner = option_classes(field.annotation)
        for one in inner:
            listed = list in plain_types(field)
            # the kinds of a format inside a format are those of the outer one
            if one not in [step.owner for step in above]:
                yield from options(one, (*above, Step(top, name, listed)))
        ways = [wrap for part in ([] if kinds_of(field) else [field.annotation]) for wrap in holders(part)]
        for wrap in {str(wrap(0)): wrap for wrap in ways}.values():
            yield Option((*above, Step(top, name)), field, wrap)


OPTIONS = list(options(Recipe))
STEPS = [one for one in options(CleanOptions) if len(one.steps) == 2 and one.steps[0].name == "steps"]


def test_the_walk_finds_options_wherever_they_are() -> None:
    found = {".".join(step.name for step in one.steps) for one in OPTIONS}
    assert found >= {
        "model.threads", "quant.group_size", "adapter.r", "adapter.rank_pattern", "adapter.init_tokens",
        "data.train.weight", "data.mix.epoch", "data.format.stride", "data.role_weights", "train.learning_rate",
        "train.optim.min_8bit_size", "train.lr_scheduler_type.power", "limits.time", "evaluate.samples",
        "generate.logit_bias", "generate.guide.max_whitespace",
    }  # fmt: skip
    assert {one.steps[1].name for one in STEPS} >= {"near", "rows", "digits", "max_tokens", "timeout_seconds"}


def read(made: dict[str, Any]) -> Recipe | None:
    """The recipe; None where it is refused in one message."""
    try:
        return config.parse(made)
    except LorikeetError as error:
        assert error.exit_code == 2 and len(str(error).split("\n")) <= 4
        assert len(str(error)) < 2000
        return None


def is_taken(option: Option, value: Any) -> bool:
    return read(option.holding(option.wrap(value))) is not None


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_value_is_taken_or_refused_in_one_message(option: Option) -> None:
    for value in VALUES:
        recipe = read(option.holding(option.wrap(value)))
        for key, found in leaves(None if recipe is None else recipe.model_dump()):
            if isinstance(found, int | float):
                assert abs(found) < (1 << 63 if isinstance(found, int) else FLOAT32), (value, key, found)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_what_is_no_number_is_refused(option: Option) -> None:
    texts, booleans = str in plain_types(option.field), bool in plain_types(option.field)
    for value in NO_NUMBERS:
        if not ((isinstance(value, bool) and booleans) or (isinstance(value, str) and texts)):
            assert not is_taken(option, value), value


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_refusal_names_the_option_and_says_what_is_allowed(option: Option) -> None:
    with pytest.raises(LorikeetError) as caught:
        config.parse(option.holding(option.wrap(NAN)))
    assert option.steps[-1].name in caught.value.what
    assert caught.value.allowed


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_no_option_takes_what_float32_cannot_hold(option: Option) -> None:
    """Below the sections too, where an option is checked by itself and not beside others."""
    owner, name = option.steps[-1].owner, option.steps[-1].name
    for value in (1e308, -1e308, 1e39):
        try:
            made = owner.model_validate(required(owner) | {name: option.wrap(value)})
        except ValidationError:
            continue
        numbers = [found for _, found in leaves(getattr(made, name)) if isinstance(found, float)]
        assert not numbers, f"{name} takes {value}: give it a bound"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(OPTIONS),
    st.floats()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=12)
    | st.lists(st.floats(), max_size=2),
)
def test_any_value_at_all(option: Option, value: Any) -> None:
    read(option.holding(option.wrap(value)))


@pytest.mark.parametrize("option", STEPS, ids=str)
def test_steps_of_cleaning(option: Option, tmp_path: Path) -> None:
    owner, name = option.steps[-1].owner, option.steps[-1].name
    texts, booleans = str in plain_types(option.field), bool in plain_types(option.field)
    others = required(owner)
    kind = others.pop("kind")
    for value in VALUES:
        words = [f"{kind}.{key}={as_yaml(one)}" for key, one in (others | {name: option.wrap(value)}).items()]
        try:
            _recipe.options(None, {"input": ["a.json"], "output": tmp_path / "out.jsonl"}, kind, words)
        except LorikeetError as error:
            assert error.exit_code == 2 and len(str(error).split("\n")) <= 4
        else:
            no_number = any(value is one for one in NO_NUMBERS)
            assert not no_number or (isinstance(value, bool) and booleans) or (isinstance(value, str) and texts), value


@pytest.mark.parametrize("name", ["bits", "group_size", "damp_percent"])
def test_options_of_the_solver(name: str) -> None:
    for value in VALUES:
        try:
            made = SolverOptions.model_validate({name: value})
        except ValidationError:
            continue
        number = getattr(made, name)
        assert isinstance(number, int) or math.isfinite(number)
