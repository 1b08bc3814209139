"""The system prompt that conversations share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorikeet.data.pipeline import DataOptions
from lorikeet.data.system_prompt import LOOKED_AT, shared_system


def rows(*systems: str | None) -> str:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    before = [[] if system is None else [{"role": "system", "content": system}] for system in systems]
    return "".join(json.dumps({"messages": [*first, *said]}) + "\n" for first in before)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([rows("Be brief.", "Be brief.")], "Be brief."),
        ([rows("Be brief."), rows("Be brief.")], "Be brief."),
        ([rows("Be brief.", "Be long.")], None),
        ([rows("Be brief.", None)], None),
        ([rows("Be brief."), rows(None)], None),
        ([rows(None, None)], None),
        ([rows("Be brief.") + '{"messages": []}\n'], "Be brief."),  # bad_rows decides about such a row elsewhere
        ([rows(*["Be brief."] * LOOKED_AT, "Be long.")], "Be brief."),
        (['{"text": "a page"}\n'], None),
    ],
)
def test_it_is_known_where_all_begin_alike(files: list[str], found: str | None, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jsonl" for number in range(len(files))]
    for path, text in zip(paths, files):
        path.write_text(text)
    assert shared_system(DataOptions(train=[str(path) for path in paths])) == found
