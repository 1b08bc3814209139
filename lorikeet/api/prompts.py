"""The rows of a prediction: read as those that a run was trained on, else by looking at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorikeet.api.run_recipe import load_run
from lorikeet.base.log import each_line_once, note
from lorikeet.base.nouns import Conversation
from lorikeet.config import Recipe
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.auto import Auto, detect
from lorikeet.data.rows import conversations
from lorikeet.data.sources import options_of


def read_prompts(
    inputs: Sequence[Path | str], asked: str | Path | None, model: Mapping[str, Any] | None = None
) -> list[Conversation]:
    """The conversations of the input files, which may lack their last reply. `asked`: the run, if it is one, whose
    recipe names how rows read; `model`: see `load_run`. Raises DataError."""
    run = None if asked is None else Path(asked)
    named = _named(load_run(run, model=model)) if run is not None and (run / "recipe.yaml").is_file() else None
    with each_line_once():  # a format looks at the first row here, too
        return [one for file in inputs for one in conversations([str(file)], _fitting(str(file), named), reply=False)]


def _named(recipe: Recipe) -> Format | None:
    """The format that all training sources are read in, where the recipe names it."""
    formats = [options_of(source).format or recipe.data.format for source in recipe.data.train]
    alike = all(one == formats[0] for one in formats)
    return formats[0] if alike and not isinstance(formats[0], Auto) else None


def _fitting(file: str, named: Format | None) -> Format:
    """`named`, unless it cannot read the file's first row and another format can."""
    if named is None:
        return Auto()
    row, origin = next(named.rows(file), (None, None))
    if row is None or origin is None:
        return named
    try:
        named.settle([row], file).read(row, origin, reply=False)
    except Exception:  # a format of someone's own fails in its own way at a row of another shape
        if not detect([row]):
            return named  # whose error says what the run's rows have
        note(f"{file}: not in the run's data.format ({named.model_dump()['kind']}), so its rows are looked at")
        return Auto()
    return named
