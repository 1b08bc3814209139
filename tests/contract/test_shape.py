"""Files and functions stay short, names say something, a kind is a file, an error has at most four lines."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import source
from lorikeet.base import errors
from lorikeet.base.kinds import kinds
from lorikeet.base.options import Options

MOST_LINES, MOST_FUNCTION_LINES = 400, 60
FORBIDDEN = {"utils", "util", "misc", "common", "helpers", "helper", "manager"}
PLUGINS = sorted(path.parent for path in source.files() if path.name == "_contract.py")


@pytest.mark.parametrize("path", source.files(), ids=source.name)
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert not set(path.stem.strip("_").split("_")) & FORBIDDEN
    if path.name != "__init__.py":
        assert ast.get_docstring(source.tree(path)), "a module opens with what it is"


@pytest.mark.parametrize("path", source.files(), ids=source.name)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(source.tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{source.name(path)}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("folder", PLUGINS, ids=source.name)
def test_a_kind_is_a_file(folder: Path) -> None:
    """Where the contract is an options class, every file without an underscore defines exactly one kind of it."""
    package = source.module(folder / "__init__.py")
    contract_module = importlib.import_module(f"{package}._contract")
    contracts = [
        one
        for one in vars(contract_module).values()
        if inspect.isclass(one) and issubclass(one, Options) and one.__module__ == contract_module.__name__
    ]
    if not contracts:  # checkpoints, tokens, families: recognised by what is on disk, not named in the recipe
        return
    (contract,) = contracts
    assert kinds(package), f"{package} has a contract and no kind"
    for name in kinds(package):
        module = importlib.import_module(f"{package}.{name}")
        found = [
            one
            for one in vars(module).values()
            if inspect.isclass(one) and issubclass(one, contract) and one.__module__ == module.__name__
        ]
        assert len(found) == 1, f"{package}.{name}: {found}"
        field = found[0].model_fields["kind"]
        assert typing.get_args(field.annotation) == (name,)
        assert field.default == name
        assert found[0].__doc__, f"{package}.{name}: options.md quotes the class's docstring"


ERRORS = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.LorikeetError)]


@given(st.sampled_from(ERRORS), st.text(), st.text(), st.text(), st.text())
def test_errors_have_at_most_four_lines(
    kind: type[errors.LorikeetError], what: str, told: str, allowed: str, proposal: str
) -> None:
    what = " ".join(what.split()) or "what"  # ours to write; the rest may come from a file
    message = str(kind(what, given=told, allowed=allowed, try_=proposal))
    assert message.startswith(f"{kind.__name__}: ")
    assert len(message.split("\n")) <= 4


def test_exit_codes() -> None:
    codes = {one.__name__: one.exit_code for one in ERRORS}
    assert codes.pop("Interrupted") == codes.pop("DiskFull") == 3  # stopped, and gone on with
    failed = {name for name, code in codes.items() if code == 1}
    assert failed == {"TrainingError", "OutOfMemory", "CheckFailed", "ServerError"}
    assert set(codes.values()) == {1, 2}
