"""A conversation at the terminal. Replies stream; Ctrl-C stops a reply, not the program.

A line that begins with a colon is a command. What stands behind it is text, a number or a path: it is never evaluated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from lorikeet.base.errors import LorikeetError, OutputError, nearest
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer import lines
from lorikeet.infer.answering_linears import BASE
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.one_by_one import OneByOne
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.infer.saved_chat import SavedChat, read_chat, write_chat

HELP = """\
:help               this list
:multi              a message of several lines, up to a line that says :end (so does a \\ at a line's end)
:retry              answer the last message again
:clear              forget the conversation
:history            show it
:system [TEXT]      show the system prompt, or set it (- for none; forgets the conversation)
:save FILE          .json, which :load, the web page and training read, or .md
:load FILE          go on with a saved conversation
:adapter [NAME]     show the adapters, or answer with one: base for none, - for what was opened, or a folder
:seed [N]           show or set the seed
:params             show the sampling options
:set NAME VALUE     change one, e.g. :set temperature 0.7
:reset              all of them as they were at the start
:exit               leave (also Ctrl-D)"""
OTHER_NAMES = {
    **{"h": "help", "his": "history", "cl": "clear", "clh": "clear", "clear-his": "clear", "set": "params"},
    **{"conf": "params", "reset-conf": "reset", "quit": "exit", "q": "exit", "r": "retry"},
}
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "stop",
)  # fmt: skip
SAVED = {**{name: name for name in SAMPLING}, "max_new_tokens": "max_tokens"}  # ours: as the page calls them


class Chat:
    """One conversation and its sampling options. `name` is what the model is called in saved chats."""

    def __init__(
        self,
        engine: Engine,
        options: GenerateOptions,
        *,
        system: str | None = None,
        out: TextIO | None = None,
        name: str | None = None,
    ):
        self.engine, self.options, self.system, self.out = engine, options, system, out or sys.stdout
        self.name, self.first_options = name, options
        self.messages: list[Message] = []
        self.draws = 0  # replies since the conversation began: each is another draw of the seed
        self.replies = OneByOne(engine)
        self.adapter: str | None = None  # the model as it was opened
        self.read: lines.Read = input
        self._own: set[Path] = set()  # files that this chat has written or read, and may write again
        self._commands: dict[str, Callable[[str], object]] = {
            "help": lambda _: self._say(HELP + "\n"),
            "multi": self._multi,
            "retry": self._retry,
            "clear": self._clear,
            "history": self._history,
            "system": self._system,
            "save": self._save,
            "load": self._load,
            "adapter": self._adapter,
            "seed": self._seed,
            "params": self._params,
            "reset": self._reset,
        }

    def run(self, read: lines.Read | None = None) -> None:
        """Read lines until :exit or the end of input."""
        self.read = read or lines.terminal([*self._commands, "set", "exit"])
        self._say("Type a message, or :help. Ctrl-C stops a reply, Ctrl-D leaves.\n")
        if self.system:  # a person may not know that there is one
            self._say(f"System prompt, as in training (:system - leaves it out): {self.system}\n")
        while True:
            try:
                line = lines.message(self.read, "\n> ").strip()
            except EOFError:
                self._say("\n")
                return
            except KeyboardInterrupt:
                self._say("\n(:exit leaves)\n")
                continue
            if OTHER_NAMES.get(line[1:], line[1:]) == "exit" and line.startswith(":"):
                return
            if not line:
                continue
            try:
                self.command(line) if line.startswith(":") else self.answer(line)
            except LorikeetError as error:
                self._say(f"{error}\n")
            except KeyboardInterrupt:
                self._say("\n(stopped)\n")

    def answer(self, text: str) -> str:
        """Stream the reply to `text` and remember both; a stopped reply is remembered as far as it came."""
        asked = [*self.messages, Message("user", text)]
        prompt = self.engine.prompt(Conversation((*self._before(), *asked)))
        pieces: list[str] = []
        try:
            for event in self.replies.stream(Request(self.draws, prompt, self.options, self.adapter)):
                pieces.append(event.text)
                self._say(event.text)
        except KeyboardInterrupt:
            self._say(" [stopped]")
        self._say("\n")
        self.draws += 1
        self.messages = [*asked, Message("assistant", "".join(pieces))]
        return "".join(pieces)

    def command(self, line: str) -> None:
        """Carry out a line that begins with a colon."""
        name, _, rest = line[1:].partition(" ")
        known = self._commands.get(OTHER_NAMES.get(name, name))
        if known is not None:
            known(rest.strip())
            return
        near = nearest(name, (*self._commands, "set", "exit"))
        self._say(f"unknown command :{name}" + (f", did you mean :{near}?" if near else ", see :help") + "\n")

    def _before(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def _multi(self, begun: str) -> None:
        text = "\n".join(filter(None, (begun, lines.until_end(self.read)))).strip()
        if text:
            self.answer(text)

    def _retry(self, _: str) -> None:
        if not self.messages:
            self._say("(nothing was asked yet)\n")
            return
        *before, asked, said = self.messages
        self.messages = before
        try:
            again = self.answer(asked.content)
        except BaseException:
            self.messages = [*before, asked, said]
            raise
        if again == said.content and self.options.temperature == 0:
            self._say("(temperature 0 says the same again; :set temperature 0.7 does not)\n")

    def _clear(self, _: str) -> None:
        self.messages, self.draws = [], 0
        self._say("(forgotten)\n")

    def _history(self, _: str) -> None:
        for message in (*self._before(), *self.messages):
            self._say(f"{message.role}: {message.content}\n")

    def _system(self, text: str) -> None:
        if not text:
            self._say(f"system: {self.system}\n" if self.system else "(no system prompt)\n")
            return
        self.system, self.messages, self.draws = None if text == "-" else text, [], 0
        self._say("(system prompt set)\n" if self.system else "(no system prompt)\n")

    def _save(self, name: str) -> None:
        if not name:
            self._say(":save FILE.json or :save FILE.md\n")
            return
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self._own:
            raise OutputError("there is a file of this name already", given=path, try_="another name")
        model = self.adapter or self.name
        write_chat(path, SavedChat([*self._before(), *self.messages], model, self._set_options()))
        self._own.add(path.resolve())
        self._say(f"({len(self.messages)} messages in {path})\n")

    def _set_options(self) -> dict[str, Any]:
        """Those that other clients know too, by OpenAI's names, where they are not the defaults."""
        set_here = self.options.model_dump(exclude_defaults=True)
        return {SAVED[name]: value for name, value in set_here.items() if name in SAVED}

    def _load(self, name: str) -> None:
        if not name:
            self._say(":load FILE.json\n")
            return
        path = Path(name).expanduser()
        saved = read_chat(path)
        first = saved.messages[0]
        system, rest = (first.content, saved.messages[1:]) if first.role == "system" else (None, saved.messages)
        roles = [message.role for message in rest]
        if roles != ["user", "assistant"] * (len(rest) // 2):
            raise LorikeetError(
                f"{path}: its messages do not take turns", given=" ".join(roles), allowed="user assistant user ..."
            )
        known = {ours: saved.options[theirs] for ours, theirs in SAVED.items() if theirs in saved.options}
        if isinstance(known.get("stop"), str):  # OpenAI's API takes one text alone
            known["stop"] = [known["stop"]]
        if known and not self._change(known):
            return
        self.system, self.messages, self.draws = system, list(rest), len(rest) // 2
        self._own.add(path.resolve())
        self._say(f"({len(rest)} messages of {path})\n")

    def _adapter(self, name: str) -> None:
        """The conversation stays: another adapter goes on with it."""
        if name and name != "-" and name not in self.replies.names:
            name = self._load_adapter(Path(name).expanduser())
        if name:
            self.adapter = None if name == "-" else name
        for one in ("-", *self.replies.names):
            told = {"-": self.name or "as it was opened", BASE: "no adapter"}.get(
                one, str(self.replies.folders.get(one))
            )
            self._say(f"{'*' if one == (self.adapter or '-') else ' '} {one:<16} {told}\n")

    def _load_adapter(self, folder: Path) -> str:
        """Read a run's adapter or an adapter's folder; returns its name."""
        inside = folder / "adapter"
        name = folder.resolve().name
        while name in self.replies.names:
            name += "+"
        self.replies.load(name, inside if inside.is_dir() else folder)
        return name

    def _seed(self, value: str) -> None:
        self._set("seed", value) if value else self._say(f"seed {self.options.seed}\n")

    def _params(self, rest: str) -> None:
        if not rest:
            for name, value in self.options.model_dump().items():
                self._say(f"{name} {value}\n")
            return
        name, _, value = rest.replace("=", " ", 1).partition(" ") if "=" in rest.split()[0] else rest.partition(" ")
        self._set(name, value)

    def _reset(self, _: str) -> None:
        self.options = self.first_options
        self._say("(the options of the start)\n")

    def _set(self, name: str, value: str) -> None:
        fields = GenerateOptions.model_fields
        if name not in fields:
            near = nearest(name, fields)
            self._say(f"unknown option {name}" + (f", did you mean {near}?" if near else "") + "\n")
            return
        if self._change({name: _value(name, value.strip())}):
            self._say(f"{name} {getattr(self.options, name)}\n")

    def _change(self, given: dict[str, Any]) -> bool:
        """Change options; says what is wrong with them, and changes none, where they cannot be."""
        try:
            self.options = GenerateOptions.model_validate(self.options.model_dump() | given)
        except ValidationError as error:
            first = error.errors()[0]
            self._say(f"{'.'.join(map(str, first['loc'])) or next(iter(given))}: {first['msg']}\n")
            return False
        return True

    def _say(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _value(name: str, text: str) -> Any:
    """What a person wrote: JSON where it is some, else text. Several texts to stop at have | between them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text
    if name == "stop" and not isinstance(found, list):
        return text.split("|")
    return found
