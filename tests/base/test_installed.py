"""Extras and what they bring come from the metadata and the code, so they cannot go stale."""

from __future__ import annotations

from pathlib import Path

from lorikeet.base import installed


def test_what_the_code_needs_is_read_from_its_require_calls(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def f(name):\n"
        "    require('p', extra='one', needed_by=f'reading {name} now')\n"
        "    extras.require('q', extra='one', needed_by='plain')\n"
        "    require('q', extra='two', needed_by=WHAT)\n"
        "    required(extra='three', needed_by='no')\n"
    )
    assert installed.needs(tmp_path) == {"one": ["reading <name> now", "plain"], "two": ["<WHAT>"]}


def test_every_extra_that_the_code_asks_for_exists() -> None:
    extras = {extra.name: extra for extra in installed.extras()}
    used = installed.needs(Path(installed.__file__).parents[1])
    assert set(used) <= set(extras)
    assert extras["parquet"].packages[0].startswith("pyarrow")
    assert extras["hf"].brings
    assert not extras["lint"].brings
    for need in (need for needs in used.values() for need in needs):  # it stands in a list that people read
        assert need[0] != "<" or " " in need, f"only a variable's name: {need}"
        assert need[-1] not in ",.;", need
    assert extras["hf"].install == "pip install 'lorikeet-llm[hf]'"


def test_an_extra_made_of_others_lists_their_packages() -> None:
    required = [
        "torch", "pyarrow>=1; extra == 'parquet'", "lorikeet-llm[parquet,test]; extra == \"test\"",
        "pytest; extra == 'test'",
    ]  # fmt: skip
    assert installed._packages(required, "test") == ["pyarrow>=1", "pytest"]
    assert installed.version("no-such-thing") is None
