"""Watching a run from outside: new rows of its metrics as they come, until its process is gone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorikeet.train.charts import number
from lorikeet.train.run_files import METRICS
from lorikeet.train.status import holder

GIB = 1 << 30
LAST = 10  # rows from before the watching began that are shown


class Tail:
    """The rows of metrics.jsonl that were not read yet. A run that goes on replaces the file by one that ends at its
    checkpoint; rows of steps that were told already are left out then."""

    def __init__(self, folder: Path):
        self.path = folder / METRICS
        self.file: tuple[int, int] | None = None  # device and inode
        self.at = 0  # bytes that were read
        self.told = -1  # the last step that was told
        self.again = False  # the file is another one than before

    def rows(self) -> list[dict[str, Any]]:
        """What has come since the last call; a line that is not finished waits."""
        try:
            with self.path.open("rb") as file:
                self._same(file.fileno())
                file.seek(self.at)
                data = file.read()
        except OSError:  # not there yet, or being replaced
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.at += len(whole)
        found = [row for line in whole.split(b"\n") if (row := _row(line)) is not None]
        steps = [row["step"] for row in found]
        if self.again:
            self.again, found = False, [row for row in found if row["step"] > self.told]
            self.told = max(steps, default=self.told)  # steps behind the checkpoint are done again
        self.told = max([self.told, *(row["step"] for row in found)])
        return found

    def _same(self, handle: int) -> None:
        found = os.fstat(handle)
        identity = found.st_dev, found.st_ino
        if self.file is not None and (identity != self.file or found.st_size < self.at):
            self.at, self.again = 0, True
        self.file = identity


def follow(folder: Path, *, wait: Callable[[float], None] = time.sleep) -> Iterator[list[dict[str, Any]]]:
    """Rows as they come, empty lists in between, until nobody holds the run's folder."""
    tail = Tail(folder)
    while True:
        running = holder(folder) is not None  # asked before the rows, so that the last ones are not missed
        yield tail.rows()
        if not running:
            return
        wait(0.5)


def line(row: dict[str, Any], steps: int | None) -> str | None:
    """A row for people, as the training's own progress says it; None for a row that says nothing to them."""
    step = f"step {row['step']}" + (f"/{steps}" if steps else "")
    loss = number(row.get("loss"))
    if row.get("kind") == "eval" and loss is not None:
        accuracy = number(row.get("token_accuracy"))
        return f"{step}  validation loss {loss:.4f}" + (f"  token accuracy {accuracy:.1%}" if accuracy else "")
    if row.get("kind") != "train":
        return None
    parts = [step, "loss nan" if loss is None else f"loss {loss:.3f}"]
    for name, key, form in (("lr", "learning_rate", ".1e"), ("norm", "grad_norm", ".3g")):
        if (value := number(row.get(key))) is not None:
            parts.append(f"{name} {value:{form}}")
    if (speed := number(row.get("tokens_per_second"))) is not None:
        parts.append(f"{speed:.0f} tok/s")
    if (memory := number(row.get("rss_bytes", row.get("peak_rss_bytes")))) is not None:
        parts.append(f"{memory / GIB:.2f} GiB")
    return "  ".join(parts)


def _row(text: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) else None
