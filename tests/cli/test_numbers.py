"""Numbers that no command can use: each option of each command refuses them by its name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args

import pytest
import typer
from typer.models import ArgumentInfo

from lorikeet.base.errors import RecipeError
from lorikeet.cli import _numbers
from lorikeet.cli.main import app, run_command


def numeric(group: typer.Typer, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Every option of every command that takes a number: words that call the command, its name, whether it is whole."""
    for below in group.registered_groups:
        assert below.typer_instance is not None and isinstance(below.name, str)
        yield from numeric(below.typer_instance, (*above, below.name))
    for command in group.registered_commands:
        assert command.callback is not None and command.name is not None
        parameters = inspect.signature(command.callback).parameters.values()
        words = [word for one in parameters if one.default is one.empty for word in needed(one)]
        for one in parameters:
            types = leaves(get_args(one.annotation)[0])
            if int in types or float in types:
                yield (*above, command.name, *words), name_of(one), int in types


def leaves(annotation: Any) -> list[Any]:
    return [leaf for part in get_args(annotation) for leaf in leaves(part)] or [annotation]


def name_of(parameter: inspect.Parameter) -> str:
    said = get_args(parameter.annotation)[1].param_decls
    return str(said[0]) if said else "--" + parameter.name.replace("_", "-")


def needed(parameter: inspect.Parameter) -> list[str]:
    kind, info = get_args(parameter.annotation)[:2]
    word = str(next(iter(kind)).value) if inspect.isclass(kind) and issubclass(kind, Enum) else "x"
    return [word] if isinstance(info, ArgumentInfo) else [name_of(parameter), word]


OPTIONS = list(numeric(app))
IDS = [f"{words[0]} {option}" for words, option, _ in OPTIONS]


def test_the_walk_finds_options() -> None:
    assert len(OPTIONS) > 25 and {"predict --timeout", "serve --port", "quantize --rows"} <= set(IDS)


@pytest.mark.parametrize(("words", "option", "whole"), OPTIONS, ids=IDS)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e308", "9" * 30, "-" + "9" * 30, ""])
def test_no_command_begins_with_such_a_number(
    words: tuple[str, ...], option: str, whole: bool, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*words, f"{option}={number}" if option.startswith("--") else option + number]) == 2
    said = capsys.readouterr().err
    assert "fault of Lorikeet" not in said
    # a limit that nothing exceeds may be as high as a number can be
    assert option in said or (not whole and number and math.isfinite(float(number)))


def test_what_is_refused_and_what_is_not() -> None:
    _numbers.check({"seed": None, "rows": 2**63 - 1, "flag": True, "name": "nan", "row": [0, 4], "timeout": 1e9})
    for given, said in (
        ({"max_kl": float("nan")}, "--max-kl: out of range"),
        ({"timeout": float("-inf")}, "--timeout"),
        ({"n": 2**63}, "-n: out of range"),
        ({"row": [0, -(2**70)]}, "--row: out of range"),
    ):
        with pytest.raises(RecipeError, match=said):
            _numbers.check(given)
