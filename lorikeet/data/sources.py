"""Where the rows come from: a file, a folder, a data set of a hub, a URL; and what may be said about each.

An entry of `data.train` is a name, or a mapping with more to say. Opening an entry gives local files, which is all
that the rest of the pipeline knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from lorikeet.base.errors import DataError, RecipeError, nearest
from lorikeet.base.kinds import kind_field
from lorikeet.base.log import note
from lorikeet.base.option_types import Factor
from lorikeet.base.options import Options
from lorikeet.data.files import file_kind
from lorikeet.data.folders import HELD_OUT, canonical, files_of, held_out_split
from lorikeet.data.formats._contract import Format
from lorikeet.data.hub import hub_files, hub_name
from lorikeet.data.web import fetch_data, is_url

if TYPE_CHECKING:
    from lorikeet.data.pipeline import DataOptions

FormatKind = kind_field("lorikeet.data.formats", Format)


class SourceOptions(Options):
    """One source of rows, where its name alone does not say enough."""

    path: str = Field(
        min_length=1,
        description="A file, a folder, a file's URL, or `hf:org/name[@revision]`: a data set of the Hugging Face hub.",
        examples=["mine.json"],
    )
    weight: Factor | None = Field(
        None, description="How often its examples come, relative to the other sources' weights."
    )
    format: FormatKind | None = Field(  # type: ignore[valid-type]
        None, description="How its rows read, where that is not `data.format`."
    )
    split: str | None = Field(
        None, min_length=1, description="Of a folder or a hub's data set: train, validation, test, or its own name."
    )
    name: str | None = Field(None, min_length=1, description="Of a hub's data set: its configuration.")
    revision: str | None = Field(None, min_length=1, description="Of a hub's data set: a branch, a tag or a commit.")
    max_examples: int | None = Field(None, ge=1, description="Use only the first so many of its rows.")

    @model_serializer(mode="wrap")
    def _said(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A saved recipe has what was said about the source, not six times null."""
        return {name: value for name, value in plain(self).items() if value is not None}


Source = str | SourceOptions
Sources = Annotated[
    list[Source], BeforeValidator(lambda value: [value] if isinstance(value, str | dict | SourceOptions) else value)
]


@dataclass(frozen=True, slots=True)
class Opened:
    """A source as local files."""

    options: SourceOptions
    files: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its name as the recipe has it."""
        parts = [self.options.path, self.options.name, self.options.split]
        return " ".join(part for part in parts if part)


def options_of(source: Source) -> SourceOptions:
    """An entry in full. Raises DataError for a name that is none."""
    if isinstance(source, str) and not source.strip():
        raise DataError(
            "a source of data without a name",
            given=f"'{source}'",
            allowed="a file, a folder, https://..., hf:ORG/NAME[@REVISION]",
        )
    return SourceOptions(path=source) if isinstance(source, str) else source


def open_source(source: Source) -> Opened:
    """The entry's local files; what is not here is downloaded.

    Raises DataError for what is missing or cannot be read, DownloadError for what cannot be fetched, RecipeError for
    options that mean nothing for such a source."""
    options = options_of(source)
    local = Path(options.path).expanduser()
    if is_url(options.path):
        _no_effect(options, ("split", "name", "revision"), "a URL names one file")
        return Opened(options, (str(fetch_data(options.path)),))
    hub = hub_name(options.path) if not local.exists() else None
    if hub is not None:
        name, revision = hub
        if revision is not None and options.revision is not None:
            raise RecipeError(
                "the revision of a data set is given twice",
                given=options.path,
                allowed=f"that, or revision: {options.revision}",
            )
        if ":" not in options.path:
            note(f"{name}: no file or folder here has this name, so it is a data set of the Hugging Face hub")
        revision = revision or options.revision
        return Opened(options, tuple(hub_files(name, revision=revision, config=options.name, split=options.split)))
    _no_effect(options, ("name", "revision"), "it is not a data set of a hub")
    if local.is_dir():
        return Opened(options, tuple(files_of(local, options.split)))
    if not local.exists() and ":" in options.path:
        raise DataError(
            "a source that cannot be read",
            given=options.path,
            allowed="a file, a folder, https://..., hf:ORG/NAME[@REVISION]",
            try_=None if options.path.startswith(("hf:", "hub:")) else "hf:" + options.path.split(":", 1)[1].strip("/"),
        )
    if not local.exists() and not local.suffix:
        folder = local.parent
        near = nearest(local.name, [path.name for path in folder.iterdir()] if folder.is_dir() else [])
        raise DataError(
            f"{options.path}: no such file or folder",
            given=options.path,
            allowed="a file, a folder, https://..., hf:ORG/NAME[@REVISION]",
            try_=str(folder / near) if near else None,
        )
    _no_effect(options, ("split",), "it is one file")
    file_kind(local)  # told now, before the sources in front of it are read
    return Opened(options, (str(local),))


def open_all(sources: Sequence[Source]) -> list[Opened]:
    """Every entry, opened. Raises RecipeError where two of them read the same file."""
    opened = [open_source(source) for source in sources]
    owner: dict[Path, Opened] = {}
    for one in opened:
        for file in one.files:
            first = owner.setdefault(Path(file).resolve(), one)
            if first is not one:
                raise RecipeError(
                    "a file is read twice",
                    given=f"{file} by '{first.title}' and by '{one.title}'",
                    allowed="each file in one source",
                    try_="a larger `weight` makes a source come more often",
                )
    return opened


def check_sources(data: DataOptions) -> None:
    """Raise RecipeError for sources that contradict each other, before anything is opened."""
    sources = [options_of(source) for source in data.train]
    weighted = [one.path for one in sources if one.weight is not None]
    if weighted and len(weighted) < len(sources):
        bare = next(one.path for one in sources if one.weight is None)
        raise RecipeError(
            "data.train: some sources have a weight and some have none",
            given=f"weights for {' '.join(weighted)}, none for {bare}",
            allowed="a weight for every source, or for none",
            try_=f"{{path: {bare}, weight: 1}}",
        )
    if len(weighted) == 1:
        raise RecipeError(
            "data.train.0.weight: has no effect, because there is only one source",
            given=f"weight: {sources[0].weight:g}",
            try_="leave the weight out, or add a second source",
        )
    if weighted and data.max_examples is not None:
        raise RecipeError(
            "data.max_examples: says nothing about which source of a mix it shortens",
            given=data.max_examples,
            allowed="max_examples of a source",
            try_=f"{{path: {weighted[0]}, weight: 1, max_examples: {data.max_examples}}}",
        )
    for section, entries in (("train", data.train), ("validation", data.validation)):
        seen: set[tuple[str, str | None, str | None]] = set()
        for number, one in enumerate(map(options_of, entries if isinstance(entries, list) else [])):
            what = (one.path, one.name, one.split)
            if what in seen:
                raise RecipeError(
                    f"data.{section}.{number}: the source is there twice",
                    given=one.path,
                    allowed="each source once",
                    try_="a larger `weight` makes a source come more often",
                )
            seen.add(what)
            if section == "validation" and one.weight is not None:
                raise RecipeError(
                    f"data.validation.{number}.weight: has no effect, because all of it is measured",
                    given=f"weight: {one.weight:g}",
                    try_="leave the weight out",
                )


def validation_of(data: DataOptions) -> float | int | list[Source] | None:
    """What validates: `data.validation` as it is, and for `auto` the validation split (else the test split) of the
    folders in `data.train`, where they have one."""
    if data.validation != "auto":
        return data.validation
    found: list[Source] = []
    for one in map(options_of, data.train):
        folder = Path(one.path).expanduser()
        if not folder.is_dir() or canonical(one.split or "train") in HELD_OUT:
            continue
        split = held_out_split(folder)
        if split is not None:
            found.append(SourceOptions(path=one.path, split=split, format=one.format))
    return found or None


def say_validation(data: DataOptions) -> None:
    """Say what `auto` found."""
    found = validation_of(data)
    if data.validation == "auto" and isinstance(found, list):
        named = ", ".join(f"{one.path} ({one.split})" for one in map(options_of, found))
        note(f"held out: {named}; data.validation=null leaves it unused")


def _no_effect(options: SourceOptions, names: Sequence[str], reason: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise RecipeError(
                f"`{name}` has no effect on {options.path}, because {reason}",
                given=getattr(options, name),
                try_=f"leave `{name}` out",
            )
