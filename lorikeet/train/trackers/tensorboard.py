"""TensorBoard: event files in the run's folder, read by `tensorboard --logdir runs`.

An event file can only grow. A run that goes on therefore writes a new one that holds the rows from before too, and
removes the old one; its first event tells a TensorBoard that is open to forget what it showed of this run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lorikeet.base.extras import require
from lorikeet.train.trackers._contract import About, Row, Session, Tracker, scalars, step_of

_FILES = "events.out.tfevents.*"
_FLUSH_SECONDS = 10.0


class TensorBoard(Tracker):
    """Event files for TensorBoard, with the recipe as text. Needs the package tensorboardX, and no network."""

    kind: Literal["tensorboard"] = "tensorboard"
    logging_dir: Path | None = Field(
        None, description="The folder for this run's event files; by default `tensorboard` in the run's folder."
    )

    def check(self) -> None:
        _package()

    def start(self, about: About, past: Sequence[Row]) -> Session:
        return _Session(self.logging_dir or about.folder / "tensorboard", about, past)


def _package() -> Any:
    return require("tensorboardX", extra="tensorboard", needed_by="train.report_to: tensorboard")


class _Session:
    """Writes with the package's own writer of files. Its SummaryWriter has a thread that dies of a full disk, and then
    waits for itself for ever."""

    def __init__(self, folder: Path, about: About, past: Sequence[Row]):
        _package()
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self.event, self.summary = event_pb2.Event, summary
        self.due = time.monotonic() + _FLUSH_SECONDS
        folder.mkdir(parents=True, exist_ok=True)
        before = list(folder.glob(_FILES))
        # names hold the second of the start: the suffix keeps two starts within one second apart
        self.writer = event_file_writer.EventsWriter(str(folder / "events"), f".{len(past)}-{about.id}")
        for old in before:
            old.unlink(missing_ok=True)
        self._write(0, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        self._write(0, summary=summary.text("recipe", _as_markdown(about.recipe)))
        for row in past:
            self.row(row)
        self._flush()

    def row(self, row: Row) -> None:
        step = step_of(row)
        if step is None:
            return
        for name, value in scalars(row).items():
            self._write(step, summary=self.summary.scalar(name, value))
        if time.monotonic() >= self.due:
            self._flush()

    def close(self, *, finished: bool) -> None:
        self.writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self.writer.write_event(self.event(wall_time=time.time(), step=step, **what))

    def _flush(self) -> None:
        self.writer.flush()
        self.due = time.monotonic() + _FLUSH_SECONDS


def _as_markdown(recipe: Any) -> str:
    """A text plugin's code block: indented by four."""
    from lorikeet.base.yaml_lines import dump

    return "".join(f"    {line}\n" for line in dump(recipe).splitlines())
