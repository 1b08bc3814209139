"""The system prompt that conversations share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet.data import sources
from lorikeet.data.many import Coder
from lorikeet.data.pipeline import DataOptions, Prepared, prepare
from lorikeet.data.system_prompt import LOOKED_AT

pytestmark = pytest.mark.usefixtures("cache")


def rows(*systems: str | None) -> str:
    said = [[("user", f"q{number}"), ("assistant", "a")] for number in range(len(systems))]
    turns = [talk if system is None else [("system", system), *talk] for system, talk in zip(systems, said)]
    messages = [[{"role": role, "content": content} for role, content in talk] for talk in turns]
    return "".join(json.dumps({"messages": talk}) + "\n" for talk in messages)


def prepared(tokenizer: Any, paths: list[Path], **more: Any) -> Prepared:
    options = DataOptions.model_validate({"train": [str(path) for path in paths], "validation": None, **more})
    return prepare(options, tokenizer, options.template.bind(tokenizer), seed=0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([rows("Be brief.", "Be brief.")], "Be brief."),
        ([rows("Be brief."), rows("Be brief.")], "Be brief."),
        ([rows("Be brief.", "Be long.")], None),
        ([rows("Be brief.", None)], None),
        ([rows("Be brief."), rows(None)], None),
        ([rows("Be brief.", None), rows("Be brief.")], None),
        ([rows(None, None)], None),
        ([rows("Be brief.") + '{"messages": []}\n'], "Be brief."),  # nothing is learned from that row
        ([rows(*["Be brief."] * LOOKED_AT, "Be long.")], "Be brief."),
        (['{"text": "a page"}\n'], None),
    ],
)
def test_it_is_known_where_all_begin_alike(
    tokenizer: Any, files: list[str], found: str | None, workers: int, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.jsonl" for number in range(len(files))]
    for path, text in zip(paths, files):
        path.write_text(text)
    assert prepared(tokenizer, paths, bad_rows="skip", workers=workers).system == found


def test_sources_are_opened_once_and_what_was_prepared_before_knows_it(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "a.jsonl", []
    path.write_text(rows("Be brief.", "Be brief."))
    first = sources.open_source
    monkeypatch.setattr(sources, "open_source", lambda source: (opened.append(source), first(source))[1])
    assert prepared(tokenizer, [path]).system == "Be brief." and len(opened) == 1
    monkeypatch.setattr(Coder, "rows", None)  # no row is read again
    assert prepared(tokenizer, [path]).system == "Be brief." and len(opened) == 2
    assert prepared(tokenizer, [path], validation=1).system == "Be brief."  # of what is left, too
