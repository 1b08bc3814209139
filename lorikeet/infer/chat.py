"""A conversation at the terminal. Replies stream; Ctrl-C stops a reply, not the program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from pydantic import ValidationError

from lorikeet.base.errors import LorikeetError, nearest
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions

HELP = """\
:help             this list
:clear            forget the conversation
:history          show it
:system TEXT      set the system prompt (forgets the conversation)
:seed [N]         show or set the seed
:set              show the sampling options
:set NAME VALUE   change one, e.g. :set temperature 0.7
:exit             leave (also Ctrl-D)"""


class Chat:
    """One conversation and its sampling options."""

    def __init__(
        self, engine: Engine, options: GenerateOptions, *, system: str | None = None, out: TextIO | None = None
    ):
        self.engine, self.options, self.system, self.out = engine, options, system, out or sys.stdout
        self.messages: list[Message] = []
        self.turn = 0

    def run(self, read: Callable[[str], str] = input) -> None:
        """Read lines until :exit or the end of input."""
        self._say("Type a message, or :help. Ctrl-C stops a reply, Ctrl-D leaves.\n")
        while True:
            try:
                line = read("\n> ").strip()
            except EOFError:
                self._say("\n")
                return
            except KeyboardInterrupt:
                self._say("\n(:exit leaves)\n")
                continue
            if line in (":exit", ":quit", ":q"):
                return
            if not line:
                continue
            try:
                self.command(line) if line.startswith(":") else self.answer(line)
            except LorikeetError as error:
                self._say(f"{error}\n")

    def answer(self, text: str) -> str:
        """Stream the reply to `text` and remember both; a stopped reply is remembered as far as it came."""
        asked = [*self.messages, Message("user", text)]
        system = [Message("system", self.system)] if self.system else []
        prompt = self.engine.prompt(Conversation((*system, *asked)))
        pieces: list[str] = []
        try:
            for event in self.engine.generate([Request(self.turn, prompt, self.options)]):
                pieces.append(event.text)
                self._say(event.text)
        except KeyboardInterrupt:
            self._say(" [stopped]")
        self._say("\n")
        self.turn += 1
        self.messages = [*asked, Message("assistant", "".join(pieces))]
        return "".join(pieces)

    def command(self, line: str) -> None:
        """Carry out a line that begins with a colon."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("help", "h"):
            self._say(HELP + "\n")
        elif name in ("clear", "cl"):
            self.messages, self.turn = [], 0
            self._say("(forgotten)\n")
        elif name in ("history", "his"):
            for message in self.messages:
                self._say(f"{message.role}: {message.content}\n")
        elif name == "system":
            self.system, self.messages, self.turn = rest or None, [], 0
            self._say("(system prompt set)\n")
        elif name == "seed":
            self._set("seed", rest) if rest else self._say(f"seed {self.options.seed}\n")
        elif name in ("set", "conf"):
            option, _, value = rest.partition(" ")
            self._set(option, value) if option else self._show()
        else:
            near = nearest(name, ("help", "clear", "history", "system", "seed", "set", "exit"))
            self._say(f"unknown command :{name}" + (f", did you mean :{near}?" if near else ", see :help") + "\n")

    def _show(self) -> None:
        for name, value in self.options.model_dump().items():
            self._say(f"{name} {value}\n")

    def _set(self, name: str, value: str) -> None:
        fields = GenerateOptions.model_fields
        if name not in fields:
            near = nearest(name, fields)
            self._say(f"unknown option {name}" + (f", did you mean {near}?" if near else "") + "\n")
            return
        given: object = value.split("|") if name == "stop" else value.strip()
        try:
            self.options = GenerateOptions.model_validate(self.options.model_dump() | {name: given})
        except ValidationError as error:
            self._say(f"{name}: {error.errors()[0]['msg']}\n")
            return
        self._say(f"{name} {getattr(self.options, name)}\n")

    def _say(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
