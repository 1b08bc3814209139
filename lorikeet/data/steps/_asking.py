"""Requests to a command and their answers: numbered, remembered, and asked again of a new process after a fault."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorikeet.base.errors import OutputError
from lorikeet.base.files import cache_dir, sha256_file
from lorikeet.data.steps._answers import Answers
from lorikeet.data.steps._process import LineProcess

if TYPE_CHECKING:
    from lorikeet.data.steps.command import Command


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request has no answer: a reason that rows are counted by, and what happened."""

    reason: str
    detail: str


class Asking:
    """One command, from its first request to the last answer."""

    def __init__(self, step: Command):
        self.step = step
        identity = [step.words, step.send, [sha256_file(path) for path in step.files()]]
        self._identity = json.dumps(identity).encode()
        self._kept = Answers(cache_dir() / "answers.sqlite") if step.remember else None
        self._process: LineProcess | None = None
        self._count = 0
        self._open: dict[int, dict[str, Any]] = {}  # requests without an answer, the oldest first
        self._got: dict[int, list[str] | Fault] = {}
        self._faults = 0  # since the last answer

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request; its number."""
        number = self._count
        self._count += 1
        known = self._kept.get(self._key(request)) if self._kept is not None else None
        if known is not None:
            self._got[number] = known
            return number
        self._open[number] = request
        if self._process is not None:
            self._process.send(_line(number, request))
        else:
            self._start()
        return number

    def answer(self, number: int) -> list[str] | Fault:
        """The texts that request `number` was answered with. Raises OutputError after too many faults."""
        while number not in self._got:
            if self._process is None:
                self._start()
            assert self._process is not None
            try:
                line = self._process.line(self.step.timeout_seconds)
            except TimeoutError:
                self._fault(Fault("no answer in time", f"{self.step.timeout_seconds:g} seconds"))
                continue
            if line is None:
                self._fault(Fault("the command ended", self._process.how_it_ended()))
            elif (wrong := self._taken(line)) is not None:
                self._fault(Fault("no answer but something else", wrong))
        return self._got.pop(number)

    def finish(self) -> None:
        """There is nothing more to ask: let the command end by itself."""
        if self._process is not None:
            self._process.stop(kill=False)
            self._process = None

    def close(self) -> None:
        """End the command, whatever it does."""
        if self._process is not None:
            self._process.stop(kill=True)
            self._process = None
        if self._kept is not None:
            self._kept.close()

    def _key(self, request: dict[str, Any]) -> bytes:
        digest = hashlib.sha256(self._identity)
        digest.update(json.dumps(request, sort_keys=True).encode())
        return digest.digest()

    def _start(self) -> None:
        try:
            self._process = LineProcess(self.step.words)
        except OSError as error:
            raise OutputError("command.run: cannot be started", given=error, allowed="a program") from error
        for number, request in self._open.items():
            self._process.send(_line(number, request))

    def _taken(self, line: bytes) -> str | None:
        """Take the answer in a line; what is wrong with the line, where it is none."""
        shown = line[:120].decode(errors="replace").strip()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return f"no JSON: {shown}   (what is not an answer belongs on the error output)"
        number = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number not in self._open:
            return f"an answer to nothing that was asked: {shown}"
        request = self._open.pop(number)
        self._faults = 0
        made = _texts_of(answer, request)
        self._got[number] = made
        if isinstance(made, list) and self._kept is not None:
            self._kept.put(self._key(request), made)
        return None

    def _fault(self, fault: Fault) -> None:
        """The oldest request is the one that the command failed at; the others are asked of the next process."""
        assert self._process is not None
        self._process.stop(kill=True)
        self._process = None
        self._faults += 1
        if self._faults >= self.step.give_up_after:
            raise OutputError(
                f"command.run: {self._faults} faults one behind the other",
                given=f"{fault.reason}: {fault.detail}",
                allowed='a line of JSON with "id" and "text" (or "texts") for each request',
                try_="the same command goes on from there; command.give_up_after and .timeout_seconds allow more",
            )
        oldest = next(iter(self._open))
        del self._open[oldest]
        self._got[oldest] = fault


def _line(number: int, request: dict[str, Any]) -> bytes:
    return json.dumps({"id": number, **request}, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"


def _texts_of(answer: dict[str, Any], request: dict[str, Any]) -> list[str] | Fault:
    """The texts of an answer, as many as the request has."""
    if answer.get("error"):
        return Fault("the command refused", str(answer["error"])[:200])
    wanted = len(request["turns"]) if "turns" in request else 1
    texts = answer.get("texts") if "turns" in request else [answer.get("text")]
    if not isinstance(texts, list) or len(texts) != wanted or not all(isinstance(text, str) for text in texts):
        key = f'"texts" with {wanted}' if "turns" in request else '"text"'
        return Fault("an answer without its texts", f"{key} was expected: {json.dumps(answer)[:120]}")
    if not all(text.strip() for text in texts):
        return Fault("an empty answer", json.dumps(answer)[:120])
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return Fault("half a character in an answer", json.dumps(answer)[:120])
    return texts
