"""status.json: what became of a run, for whoever looks at its folder from outside.

The process that trains writes it when it begins and when it ends, whichever way. What it cannot write is that it was
killed: then the file says `running` and nobody holds the lock. Nothing that decides numbers stands in it, and a run
goes on without it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorikeet.base.errors import Interrupted, LorikeetError
from lorikeet.base.files import write_file

STATUS = "status.json"


class Record:
    """The status of the run that this process holds the folder of. Nothing is written before `begins`, so that a start
    that is refused leaves what was there."""

    def __init__(self, folder: Path):
        self.file = folder / STATUS
        self.values: dict[str, Any] = {"id": secrets.token_hex(4), "starts": []} | read_status(folder)
        self.begun = False

    @property
    def id(self) -> str:
        """Of the run: the same when it goes on, another one when it starts anew."""
        return str(self.values["id"])

    def begins(self, step: int, steps: int, held: Mapping[str, int]) -> None:
        """Training is about to start behind `step` of `steps`; `held`: bytes of the tensors that stay, by kind."""
        self.begun = True
        starts = self.values["starts"] if isinstance(self.values["starts"], list) else []
        starts = [*starts, {"step": step, "at": _now()}] if step else [{"step": 0, "at": _now()}]
        self._write(
            {
                "state": "running",
                "why": None,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "working_directory": str(Path.cwd()),
                "steps": steps,
                "starts": starts,
                "ended": None,
                "held_bytes": dict(held),
            }
        )

    def ends(self, state: str, why: str | None) -> None:
        """The process is done with the run: finished, stopped (goes on with the same command), failed."""
        if self.begun:
            self._write({"state": state, "why": why, "ended": _now()})

    def _write(self, changes: Mapping[str, Any]) -> None:
        self.values |= changes
        with suppress(OSError):  # a full disk is told of by what has to be written
            write_file(self.file, json.dumps(self.values, indent=2) + "\n")


@contextmanager
def recorded(folder: Path) -> Iterator[Record]:
    """A Record that gets its end when the block ends. The caller holds the lock."""
    record = Record(folder)
    try:
        yield record
    except Interrupted as error:
        record.ends("stopped", str(error.given or error.what))
        raise
    except KeyboardInterrupt:
        record.ends("stopped", "at once, by a second Ctrl-C: steps behind the last checkpoint are done again")
        raise
    except BaseException as error:
        said = error.what if isinstance(error, LorikeetError) else " ".join(str(error).split())[:300]
        record.ends("failed", f"{type(error).__name__}: {said}")
        raise
    record.ends("finished", None)


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json says; empty where there is none, or none that can be read."""
    try:
        found = json.loads((folder / STATUS).read_text("utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def starts_of(status: Mapping[str, Any]) -> Sequence[int]:
    """The step that each start of the run went on from, the first (0) left out."""
    found = status.get("starts")
    rows = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [one["step"] for one in rows if isinstance(one.get("step"), int) and one["step"] > 0]


def holder(folder: Path) -> int | None:
    """The process that holds a run's folder; 0 where it cannot be named, None where nobody holds it."""
    try:
        with (folder / ".lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                said = file.read().strip()
                return int(said) if said.isdigit() else 0
            return None
    except OSError:  # no lock, no run; or one that we may not look at
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
