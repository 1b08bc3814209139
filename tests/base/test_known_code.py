from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.base import known_code
from lorikeet.base.errors import RecipeError


def test_only_the_same_bytes_are_known(tmp_path: Path) -> None:
    file, copy = tmp_path / "mine.py", tmp_path / "copy.py"
    for one in (file, copy):
        one.write_text("a = 1\n")
    assert not known_code.known(file)
    known_code.remember(file)
    assert known_code.known(file) and known_code.known(copy)
    copy.write_text("a = 2\n")
    assert not known_code.known(copy) and not known_code.known(tmp_path / "none.py")


def test_what_is_not_known_is_refused_in_a_folder_from_elsewhere_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("a = 1\n")
    known_code.check(str(file))
    with known_code.only_known():
        with pytest.raises(RecipeError, match=r"model\.allow_code=true"):
            known_code.check(str(file))
        known_code.check(str(tmp_path / "none.py"))  # what is not there is told by whoever wants it
        known_code.remember(file)
        known_code.check(str(file))
    file.write_text("a = 2\n")
    known_code.check(str(file))


def test_a_cache_that_cannot_be_written_to_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("a = 1\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    known_code.remember(file)
    assert not known_code.known(file)
