"""`lorikeet chat` at a terminal: keys, Ctrl-C, lines remembered for the next time."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.conftest import LORIKEET, Place

CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"
PATIENCE = 300  # seconds that a busy machine may take


class Terminal:
    """A command with a terminal of its own, which a test types into and reads from."""

    def __init__(self, *words: object, folder: Path):
        self.screen, theirs = pty.openpty()
        command = [*LORIKEET, *map(str, words)]
        surroundings = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=surroundings, start_new_session=True,
            preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.said = ""

    def until(self, text: str) -> str:
        """What comes up to `text`, which must come."""
        end = time.monotonic() + PATIENCE
        while text not in self.said:
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.said}"
            try:
                self._read()
            except OSError:  # the other end is closed
                assert text in self.said, f"{text!r} did not come:\n{self.said}"
        before, _, self.said = self.said.partition(text)
        return before

    def more(self) -> None:
        """Wait until something comes."""
        end = time.monotonic() + PATIENCE
        while not self.said:
            assert time.monotonic() < end, "nothing came"
            self._read()

    def comes(self, text: str, seconds: float) -> bool:
        """Whether `text` comes within the time; it is left where it is."""
        end = time.monotonic() + seconds
        while text not in self.said and time.monotonic() < end:
            self._read()
        return text in self.said

    def _read(self) -> None:
        if select.select([self.screen], [], [], 1)[0]:
            self.said += os.read(self.screen, 4096).decode(errors="replace").replace("\r", "")

    def type(self, keys: bytes | str) -> None:
        os.write(self.screen, keys.encode() if isinstance(keys, str) else keys)


def take_terminal() -> None:
    """In the child: standard input is its controlling terminal, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def chatty(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A model with room for long replies."""
    return make_model(tmp_path / "model", max_position_embeddings=32768)


def test_a_conversation_at_a_terminal(chatty: Path, tmp_path: Path, cache: Path) -> None:
    added = json.loads((chatty / "tokenizer.json").read_text())["added_tokens"]
    endless = "{" + ", ".join(f"{token['id']}: -100" for token in added) + "}"  # no token that ends a reply
    chat = Terminal("chat", chatty, "generate.max_new_tokens=30000", f"generate.logit_bias={endless}", folder=tmp_path)
    try:
        chat.until("or :help")
        chat.until("\n> ")
        chat.type("first words\n")
        chat.until("\n")  # what was typed; then the reply comes
        chat.more()
        chat.type(CTRL_C)
        chat.until(" [stopped]")
        chat.until("\n> ")
        time.sleep(2)  # between the prompt and the wait for keys, Python's input() hears no signal
        for _ in range(5):  # nor does it where two seconds were too few
            chat.type(CTRL_C)
            if chat.comes("(:exit leaves)", seconds=30):
                break
        chat.until("(:exit leaves)")
        chat.until("\n> ")
        chat.type(":set max_new_tokens 2\n")
        chat.until("max_new_tokens 2\n")
        chat.until("\n> ")
        chat.type(UP + UP + b" again\n")
        chat.until("\n> ")
        chat.type(":his\t\n")
        shown = chat.until("\n> ")
        assert "user: first words\nassistant: " in shown and "user: first words again\nassistant: " in shown
        chat.type(":save chat.json\n")
        chat.until("(4 messages in chat.json)")
        chat.until("\n> ")
        chat.type(CTRL_D)
        assert chat.process.wait(PATIENCE) == 0
    finally:
        chat.process.kill()
        chat.process.wait()
        os.close(chat.screen)
    history = cache / "lorikeet" / "chat_history"
    assert "first words again" in history.read_text().splitlines() and history.stat().st_mode & 0o077 == 0


def test_a_conversation_goes_on_with_another_adapter(
    place: Place, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run answers, its base does, and its adapter's folder under a name, which says what the run says."""
    shutil.copytree(finished / "adapter", place.folder / "copied")
    typed = ["hello", ":clear", ":adapter base", "hello", ":clear", ":adapter copied", "hello", ":adapter -", ":retry"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*typed, ":adapter none/such", ":adapter", ":exit", ""])))
    said = place.ok("chat", finished, "generate.max_new_tokens=12").out
    parts = [part.strip() for part in said.split("\n> ")[1:]]  # what each line was answered with
    own, base, copied, again = parts[0], parts[3], parts[6], parts[8]
    assert own == copied == again.split("\n")[0] and own != base
    assert "* base" in parts[2] and "* copied" in parts[5] and "* -" in parts[7]
    assert "none/such" in parts[9] and "* -" in parts[10]


def test_the_system_prompt_of_training_stands_before_what_is_typed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, its adapter and what it is merged into are asked as they were trained, and a person sees by what."""
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = json.dumps({"messages": [{"role": "system", "content": "Answer in JSON."}, *said]})
    Path("tiny.jsonl").write_text(f"{row}\n" * 4)
    place.ok("train", place.recipe(train={"max_steps": 1}, data={"validation": None}, evaluate="-"))
    place.ok("merge", "run", "merged")
    for opened in ("run", "run/adapter", "merged"):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n:history\n:system -\n:system\n:exit\n"))
        shown = place.ok("chat", opened, "generate.max_new_tokens=2").out
        assert "(:system - leaves it out): Answer in JSON.\n" in shown
        assert "system: Answer in JSON.\nuser: hello\n" in shown and shown.count("(no system prompt)") == 2
