"""Texts through a command of one's own, above all a translator: it is started once and asked line by line.

A request is a line of JSON on the command's input, its answer a line of JSON on its output with the same id:

    {"id": 0, "role": "user", "text": "Who are you?"}          {"id": 0, "text": "你是谁？"}
    {"id": 1, "turns": [{"role": "user", "text": ...}, ...]}   {"id": 1, "texts": ["...", ...]}     (send: row)

Answers may come in any order, and {"id": 0, "error": "..."} leaves the row out with these words. Whatever else a
command does (it ends, says nothing for too long, writes something that is no answer) rejects the row it was asked
about, and it is started anew; after several such faults with no answer in between the run stops, to go on later.
Answers are kept in the cache, so nothing is asked twice: stopped work goes on where it was.
"""

from __future__ import annotations

import shlex
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from lorikeet.base.errors import RecipeError
from lorikeet.data.steps._asking import Asking, Fault
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import CALL, ROLES, Record, Turn

Place = tuple[Turn, Literal["content", "input"]]


class Command(Step):
    """Turns as a command of yours answers them."""

    kind: Literal["command"] = "command"
    in_order: ClassVar[bool] = True  # one process of the command for all rows
    run: str | list[str] = Field(
        min_length=1, description="The command with its arguments.", examples=["python translate.py --to zh"]
    )
    send: Literal["turn", "row"] = Field("turn", description="A request for each turn's text, or for all of a row.")
    roles: list[Literal["system", "user", "assistant", "tool", "text"]] = Field(
        ["system", "user", "assistant", "text"], description="Whose turns are sent; the others stay as they are."
    )
    ahead: int = Field(
        16, ge=1, le=4096, description="Rows that may be asked about before the first is answered, for batches."
    )
    timeout_seconds: float = Field(60, gt=0, le=86_400, description="Longest time without any answer.")
    give_up_after: int = Field(
        3, ge=1, description="Faults of the command, one behind the other, after which the run stops."
    )
    remember: bool = Field(
        True, description="Keep answers in the cache folder, so that nothing is asked twice; false asks again."
    )
    id_prefix: str = Field("", description="Put in front of the rows' ids, e.g. cn_ for a translation.")

    @field_validator("run")
    @classmethod
    def _has_words(cls, value: str | list[str]) -> str | list[str]:
        try:
            words = shlex.split(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"cannot be split into words: {error}") from None
        if not words or not words[0].strip():
            raise ValueError("names no command")
        return value

    @property
    def words(self) -> list[str]:
        """The command and its arguments."""
        return shlex.split(self.run) if isinstance(self.run, str) else list(self.run)

    def files(self) -> list[Path]:
        return [Path(word) for word in self.words if _is_file(word)]

    def start(self) -> None:
        if shutil.which(self.words[0]) is None:
            raise RecipeError(
                f"command.run: there is no command '{self.words[0]}'",
                given=" ".join(self.words)[:200],
                allowed="a program that is found on the PATH, or the path of one that can be executed",
                try_=f"'python {self.words[0]}'" if self.words[0].endswith(".py") else None,
            )

    def clean(self, records: Iterable[Record], log: Log) -> Iterator[Record]:
        asking = Asking(self)
        waiting: deque[_Waiting] = deque()
        try:
            for record in records:
                log.rows_in += 1
                places = [place for turn in (*record.turns, *record.rejected) for place in self._places(turn)]
                waiting.append(_Waiting(record, places, [asking.ask(one) for one in self._requests(places)]))
                if len(waiting) > self.ahead:
                    yield from self._settled(waiting.popleft(), asking, log)
            while waiting:
                yield from self._settled(waiting.popleft(), asking, log)
            asking.finish()
        finally:
            asking.close()

    def _places(self, turn: Turn) -> Iterator[Place]:
        """Where a turn's texts stand; a call of a tool is no text for people."""
        if turn.role not in self.roles or ROLES.get(turn.speaker.lower()) == CALL:
            return
        if turn.content.strip():
            yield turn, "content"
        if turn.input.strip():
            yield turn, "input"

    def _requests(self, places: list[Place]) -> list[dict[str, Any]]:
        told = [{"role": turn.role, "text": getattr(turn, part)} for turn, part in places]
        return told if self.send == "turn" else [{"turns": told}] if told else []

    def _settled(self, one: _Waiting, asking: Asking, log: Log) -> Iterator[Record]:
        """The row with its answers; nothing where one of them is missing."""
        answers = [asking.answer(number) for number in one.numbers]
        fault = next((answer for answer in answers if isinstance(answer, Fault)), None)
        if fault is not None:
            log.drop(one.record, fault.reason, fault.detail)
            return
        texts = [text for answer in answers if isinstance(answer, list) for text in answer]
        assert len(texts) == len(one.places)
        if any(getattr(turn, part) != text for (turn, part), text in zip(one.places, texts)):
            log.change(one.record, "answered")
        for (turn, part), text in zip(one.places, texts):
            setattr(turn, part, text)
        if self.id_prefix and one.record.rest.get("id") is not None:
            one.record.rest["id"] = f"{self.id_prefix}{one.record.rest['id']}"
            log.change(one.record, "id with a prefix")
        log.rows_out += 1
        yield one.record


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row whose answers are on their way."""

    record: Record
    places: list[Place]
    numbers: list[int]  # of its requests


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # a program on the command line is too long for a file's name
        return False
