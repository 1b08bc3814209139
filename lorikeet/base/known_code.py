"""Which .py files of someone's own may run where a folder names them that may come from elsewhere.

What a person names runs: in a recipe that they train by, or in an option of a command. A run's folder may have been
copied, and what its recipe names would run with the rights of whoever opens it: there a file runs only where the same
bytes have run here before, because a person named them, or where a person says so. What ran is known by its sha256, in
the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from lorikeet.base.errors import RecipeError
from lorikeet.base.files import cache_dir, sha256_file

_only_known: ContextVar[bool] = ContextVar("only_known", default=False)


@contextmanager
def only_known() -> Iterator[None]:
    """While the block runs, `check` refuses what has not run here before."""
    before = _only_known.set(True)
    try:
        yield
    finally:
        _only_known.reset(before)


def check(name: str) -> None:
    """Inside `only_known`, raise RecipeError for a .py file that is not known."""
    if _only_known.get() and Path(name).is_file() and not known(Path(name)):
        raise RecipeError(
            "the recipe in this folder names code that never ran here, and would run with your rights",
            given=name,
            allowed="files that a recipe of yours has named on this machine",
            try_="read the file, and say model.allow_code=true",
        )


def known(file: Path) -> bool:
    """Whether these bytes have run here before because a person named them."""
    return file.is_file() and _note(file).is_file()


def remember(file: Path) -> None:
    """A person has named this file, and it ran."""
    with suppress(OSError):  # in a cache that cannot be written to, it is asked for again
        _note(file).parent.mkdir(parents=True, exist_ok=True)
        _note(file).touch()


def _note(file: Path) -> Path:
    return cache_dir() / "known_code" / sha256_file(file)
