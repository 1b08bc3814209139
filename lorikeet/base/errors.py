"""The tree of errors a user, a file or a device can cause.

Every message has at most four lines: what is wrong, what was given, what is allowed, what to try.
`raise` these for what the outside can cause; use `assert` for what only our own bug can cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class LorikeetError(Exception):
    """Base of all errors with a message for people. `exit_code` is what the command line returns."""

    exit_code = 2

    def __init__(self, what: str, *, given: object = None, allowed: object = None, try_: str | None = None):
        self.what, self.given, self.allowed, self.try_ = what, given, allowed, try_
        super().__init__(self.message())

    def __reduce__(self) -> Any:
        """From one process to another: its four parts, as text."""
        parts = (self.given, self.allowed, self.try_)
        return _again, (type(self), self.what, *(None if part is None else str(part) for part in parts))

    def message(self) -> str:
        """The four lines: `What: ...`, then given, allowed and try where they are known."""
        lines = [f"{type(self).__name__}: {self.what}"]
        for label, value in (("given", self.given), ("allowed", self.allowed), ("try", self.try_)):
            if value is not None:
                text = " ".join(str(value).split("\n"))
                lines.append(f"  {label:<8} {text[:400]}")
        return "\n".join(lines)


def _again(kind: type[LorikeetError], what: str, given: str | None, allowed: str | None, try_: str | None) -> Any:
    return kind(what, given=given, allowed=allowed, try_=try_)


class RecipeError(LorikeetError):
    """An option that is unknown, of the wrong type, out of range, or without effect."""


class DataError(LorikeetError):
    """A data file, row or conversation that cannot be used."""


class TemplateError(LorikeetError):
    """A chat template that is missing or that cannot be followed exactly."""


class CheckpointError(LorikeetError):
    """A model file that is missing, truncated, unsafe or of an unknown kind."""


class TokenizerError(LorikeetError):
    """A tokenizer that is missing or does not fit the model."""


class ModelError(LorikeetError):
    """A network we do not know, or a part of it that does not exist."""


class DownloadError(LorikeetError):
    """A source that cannot be reached or whose checksum differs."""


class OutputError(LorikeetError):
    """An output folder that is in use, or a disk that is full."""


class MissingExtra(LorikeetError):
    """An optional package that is not installed."""


class TrainingError(LorikeetError):
    """Training cannot go on: numbers that are not finite, or a tensor that receives no gradient."""

    exit_code = 1


class OutOfMemory(LorikeetError):
    """Memory was not given, outside a training step (`train/out_of_memory.py` has the one inside)."""

    exit_code = 1


class CheckFailed(LorikeetError):
    """A check ran and found the thing wrong."""

    exit_code = 1


class ServerError(LorikeetError):
    """A server that is asked does not answer, or does not take the question."""

    exit_code = 1


class Interrupted(LorikeetError):
    """Stopped on request; everything is saved and the same command goes on."""

    exit_code = 3


class DiskFull(Interrupted):
    """The disk took no more while a run was written; what was whole before still is, and the same command goes on."""


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word most like `word`, or None."""
    found = get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return found[0] if found else None
