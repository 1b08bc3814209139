"""Lines from a person at a terminal: edited with readline, remembered for the next time, several as one message.

The history is the reader's own file in the cache. Where the input is no terminal, lines are read as they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lorikeet.base.files import cache_dir

Read = Callable[[str], str]  # shows a prompt, returns a line without its end, raises EOFError where there is none
END = ":end"  # the line behind a message of several lines
MOST_LINES = 1000  # of history


def terminal(commands: Sequence[str]) -> Read:
    """`input`, with history, and with `commands` completed by the tab key where the input is a terminal."""
    if sys.stdin.isatty():
        import readline  # only here: it takes hold of the terminal

        history = cache_dir() / "chat_history"
        with suppress(OSError):  # a history that cannot be read is none
            readline.read_history_file(history)
        readline.set_history_length(MOST_LINES)
        readline.set_completer(lambda text, state: _completed(text, state, commands, readline.get_line_buffer()))
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")

        def read(prompt: str) -> str:
            line = input(prompt)
            _keep(history, readline.write_history_file)
            return line

        return read
    return input


def _keep(history: Path, write: Callable[[str], None]) -> None:
    """Write the history for its owner only: it holds what was said."""
    with suppress(OSError):  # a full disk ends no conversation
        history.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(history, os.O_WRONLY | os.O_CREAT, 0o600))
        write(str(history))


def _completed(text: str, state: int, commands: Sequence[str], line: str) -> str | None:
    """The `state`-th way to go on with `text`: a command at the line's start, behind it a file."""
    if line.lstrip().startswith(":") and " " in line.lstrip():
        folder, _, begun = text.rpartition("/")
        with suppress(OSError):
            names = sorted(path for path in Path(folder or ("/" if text.startswith("/") else ".")).iterdir())
            found = [f"{path}{'/' if path.is_dir() else ''}" for path in names if path.name.startswith(begun)]
            return found[state] if state < len(found) else None
        return None
    found = [f":{name} " for name in commands if f":{name}".startswith(text)] if text else []
    return found[state] if state < len(found) else None


def message(read: Read, prompt: str) -> str:
    """One line, or several where each but the last ends in a backslash."""
    lines = [read(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("… "))
    return "\n".join(lines)


def until_end(read: Read) -> str:
    """The lines up to `:end`, or to the end of the input."""
    lines: list[str] = []
    with suppress(EOFError):
        while (line := read("… ")).strip() != END:
            lines.append(line)
    return "\n".join(lines)
