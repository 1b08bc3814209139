"""The table of checks on docs/data.md is the folder's.

`PYTHONPATH=tests python -m data.test_data_page` writes it into the page again."""

from __future__ import annotations

from pathlib import Path

from lorikeet.data.checking import described

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
HEAD = "| check | finds | level | needs a model |\n|---|---|---|---|\n"


def table() -> str:
    return "".join(f"| `{name}` | {what} | {level} | {model} |\n" for name, level, what, model in described())


def written() -> str:
    before, head, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    lines = rest.split("\n")
    while lines[0].startswith("|"):
        lines.pop(0)
    return before + head + table() + "\n".join(lines)


def test_the_table_of_checks_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == written()


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
