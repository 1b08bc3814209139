"""The verbs show, check and ledger: what a recipe's data are, before anything is trained.

A model is opened for its tokenizer and its chat template; no weight is read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from lorikeet.api.base import Base, open_base, prepare, within_context
from lorikeet.base.errors import OutputError, RecipeError
from lorikeet.base.files import need_space, write_file
from lorikeet.base.log import each_line_once, note
from lorikeet.base.nouns import Example, Origin
from lorikeet.config import Recipe
from lorikeet.data import checking, histogram
from lorikeet.data import show as shows
from lorikeet.data.checks._contract import Setting
from lorikeet.data.ledger import COLUMNS, Totals, lines
from lorikeet.data.mix import Mixture
from lorikeet.data.picture import Shown, write_picture
from lorikeet.data.pipeline import DataOptions, Prepared
from lorikeet.data.sources import check_sources
from lorikeet.data.templates._contract import Template
from lorikeet.data.truncate import Encoder
from lorikeet.data.walk import Walked, sides_of, walk

SUMMARY = ".summary.json"  # of a ledger, beside it


def _encoder(recipe: Recipe, base: Base, template: Template) -> Encoder:
    data = recipe.data
    return Encoder(template, base.tokenizer, data, data.max_length, data.truncation)


@each_line_once()
def show(recipe: Recipe, n: int = 5, *, rows: Sequence[int] = (), output: Path | None = None) -> None:
    """Print conversations as the model sees them, trained tokens coloured; in brackets where there is no colour.

    The first `n` that train, or those of the `rows` (in every training file that has them, usable or not); `output`:
    into an .html or .svg file instead, in HTML with the origin of each token."""
    if rows:
        recipe, base, template = _opened(recipe)
        encoder = _encoder(recipe, base, template)
        told, wanted = None, _of_numbers(recipe.data, encoder, set(rows))
    else:
        recipe, base, template, prepared = prepare(recipe)
        encoder = _encoder(recipe, base, template)
        told, wanted = str(prepared), _first(recipe.data, encoder, prepared, n)
    tokens = output is not None and output.suffix == ".html"
    shown = (one for row in wanted for one in shows.shown(row, encoder, tokens=tokens))
    if output is not None:
        write_picture(output, shown)
        note(f"wrote {output}")
    else:
        _print(shown)
    if told is not None:
        note(told)


def _print(shown: Iterator[Shown]) -> None:
    from rich.console import Console

    console = Console()
    brackets = console.color_system is None
    if console.is_jupyter:
        console.width = min(console.width, 96)  # rich's 115 are wider than a page
        brackets = True  # most pages that show a saved notebook take the colours out
    for one in shown:
        console.print(shows.panel(one, brackets=brackets))
    console.print(shows.legend(brackets=brackets))


def _check_output(output: Path, data: DataOptions, usual: str, *endings: str) -> None:
    """Raise OutputError, before anything is read for long, for a file that must not or cannot be written: a folder, one
    of the data's own files, one with another ending than `endings`, where there are any."""
    if output.is_dir() or (endings and output.suffix not in endings):
        given = f"{output}, a folder" if output.is_dir() else str(output)
        raise OutputError(
            f"{output} is no name of such a file",
            given=given,
            allowed=f"a name ending in {' or '.join(endings)}" if endings else "a file",
            try_=usual,
        )
    files = {Path(file).resolve() for _, sources in sides_of(data) for one in sources for file in one.files}
    for path in (output, output.with_suffix(SUMMARY)):
        if path.resolve() in files:
            raise OutputError(
                f"{path} is one of the data's own files", given=str(output), allowed="another file", try_=usual
            )
    need_space(output.parent, 1 << 20, "what was found")


def _opened(recipe: Recipe) -> tuple[Recipe, Base, Template]:
    """The recipe with a max_length that the model allows, its model and template; nothing is prepared."""
    check_sources(recipe.data)
    base = open_base(recipe.model)
    template = recipe.data.template.bind(base.tokenizer)
    return within_context(recipe, base.shape.max_position - recipe.adapter.context_taken), base, template


def _first(data: DataOptions, encoder: Encoder, prepared: Prepared, n: int) -> Iterator[Walked]:
    """The rows of the first `n` examples that train; of several sources in turn."""
    origins: dict[Origin, None] = {}
    for count, example in enumerate(prepared.preview(), 1):
        assert example.origin is not None
        origins[example.origin] = None
        if count == n:
            break
    waiting = list(reversed(origins))
    found: dict[Origin, Walked] = {}
    for row in walk(data, encoder):
        if row.origin in origins:
            found[row.origin] = row
        while waiting and waiting[-1] in found:
            yield found.pop(waiting.pop())
        if not waiting:
            return


def _of_numbers(data: DataOptions, encoder: Encoder, numbers: set[int]) -> Iterator[Walked]:
    """The rows of these numbers of every file. Raises RecipeError where there is none."""
    last, found = -1, False
    for row in walk(data, encoder):
        last = max(last, row.origin.row)
        if row.origin.row in numbers:
            found = True
            yield row
    if not found:
        raise RecipeError(
            "--row: there is no such row", given=" ".join(map(str, sorted(numbers))), allowed=f"0 to {last}"
        )


def check(
    recipe: Recipe | DataOptions, *, only: Sequence[str] = (), without: Sequence[str] = (), picture: Path | None = None
) -> checking.Report:
    """Ask the checks about every row. Of data without a recipe, those that need no model. `picture`: an .svg file for
    the histogram of lengths."""
    checks = checking.chosen(only, without)
    encoder, seed = None, 0
    if picture is not None:
        data = recipe.data if isinstance(recipe, Recipe) else recipe
        _check_output(picture, data, "lengths.svg", ".svg")
    if isinstance(recipe, Recipe):
        recipe, base, template = _opened(recipe)
        encoder, seed = _encoder(recipe, base, template), recipe.train.seed
        recipe = recipe.data
    check_sources(recipe)
    report = checking.run(walk(recipe, encoder, go_on=True), checks, Setting(recipe, encoder, seed))
    facts = report.facts("lengths")
    if picture is not None and facts is None:
        raise RecipeError("--picture: has no effect without the check 'lengths'", given=picture)
    if picture is not None and facts is not None:
        write_file(picture, histogram.as_svg(facts, f"{facts['rows']:,} rows by their length"))
        note(f"wrote {picture}")
    return report


@each_line_once()
def ledger(recipe: Recipe, output: Path) -> dict[str, Any]:
    """Write the ledger of a recipe's data (a line for each row) and, beside it, its summary, which comes back.

    The data are prepared first, and every example of the ledger is compared with the one that was prepared."""
    _check_output(output, recipe.data, "ledger.jsonl", ".jsonl")
    recipe, base, template, prepared = prepare(recipe)
    encoder = _encoder(recipe, base, template)
    totals = Totals()
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for line in lines(walk(recipe.data, encoder), encoder, _stored(prepared)):
                totals.add(line)
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        assert totals.balance == 0, "every character is accounted for"
        Path(temporary).chmod(0o644)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    summary = {"ledger": str(output), "columns": list(COLUMNS), **totals.as_dict()}
    path = output.with_suffix(SUMMARY)
    write_file(path, orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    return {**summary, "summary": str(path)}


def _stored(prepared: Prepared) -> dict[str, Iterator[Example]]:
    """The prepared examples of each side, in their sources' order."""
    sides = {"train": prepared.train, "validation": prepared.validation}
    return {
        side: (example for part in (made.parts if isinstance(made, Mixture) else [made]) for example in part)
        for side, made in sides.items()
        if made is not None
    }
