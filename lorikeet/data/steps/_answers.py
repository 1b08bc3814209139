"""What a command has answered before, on disk: a translation is paid for once, also where work was stopped."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorikeet.base.errors import OutputError


class Answers:
    """Answers by key. Several processes may share the file."""

    def __init__(self, path: Path):
        """Open the file, or make it. Raises OutputError where it cannot be used."""
        self.path = path
        with self._said():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._table.execute("PRAGMA journal_mode=WAL")  # a crash loses the last answers, and damages nothing
            self._table.execute("PRAGMA synchronous=NORMAL")
            self._table.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID")

    def get(self, key: bytes) -> Any:
        """The answer, None where there is none."""
        with self._said():
            found = self._table.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return None if found is None else json.loads(found[0])

    def put(self, key: bytes, answer: Any) -> None:
        """Keep an answer."""
        with self._said():
            self._table.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise OutputError(
                "the answers that a command gave cannot be kept",
                given=f"{self.path}: {error}",
                allowed="a file that can be written, with room for it",
                try_=f"remove {self.path}, or command.remember=false",
            ) from error
