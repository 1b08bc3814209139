"""What the importer's tests share: a folder with the fixtures in it, which is the current one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorikeet.migrate import _recipe
from lorikeet.migrate._recipe import Imported

FIXTURES = Path(__file__).parent / "fixtures"
Import = Callable[..., Imported]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixtures, as the current folder."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imported(place: Path) -> Import:
    """imported("x.yaml", text, "key=value", datasets=[...]): write the file, if there is text, and import it."""

    def import_(name: str, text: str | None = None, *overrides: str, datasets: tuple[str, ...] = ()) -> Imported:
        if text is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        return _recipe.translated(Path(name), datasets, overrides)

    return import_


def left(made: Imported, status: str) -> dict[str, Any]:
    """{key: why} of what was listed under `status`."""
    return {one.key: one.why for one in made.left if one.status == status}
