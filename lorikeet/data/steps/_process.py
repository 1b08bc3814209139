"""A command that is kept open and asked line by line. No call here waits longer than it is told to.

Two threads carry the lines, so that a command that does not read, or writes more than anybody takes, blocks a thread
and never the caller. What the command says on its error output is kept aside, for the reason when it ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

_LONGEST_LINE = 64 << 20  # bytes; a command that writes on without a line end is at fault
_LAST_WORDS = 2_000  # bytes of the error output that are looked at
_PATIENCE = 5.0  # seconds in which a command may end by itself when there is nothing more to ask


class LineProcess:
    """One running command."""

    def __init__(self, words: Sequence[str]):
        """Start it. Raises OSError where the system cannot."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process does
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is answered here; and what it starts itself ends with it
            )
        except OSError:
            self._said.close()
            raise
        assert self._process.stdin is not None and self._process.stdout is not None
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=_write, args=(self._process.stdin, self._outbox), daemon=True).start()
        threading.Thread(target=_read, args=(self._process.stdout, self._inbox), daemon=True).start()

    def send(self, line: bytes) -> None:
        """Give it a line; a command that has ended does not get it."""
        self._outbox.put(line)

    def line(self, seconds: float) -> bytes | None:
        """Its next line, None when there is none any more. Raises TimeoutError after so many seconds."""
        try:
            return self._inbox.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    def how_it_ended(self) -> str:
        """Its exit code and the last line of its error output, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.returncode
        ended = "it closed its output" if code is None else f"it ended with code {code}"
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _LAST_WORDS))
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{ended}: {lines[-1].strip()[:200]}" if lines else ended

    def stop(self, *, kill: bool) -> None:
        """End it: at once, or by closing its input first, so that it can put its things away."""
        self._outbox.put(None)
        if not kill:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
        if self._process.poll() is None:  # once it is gone, its number may be someone else's
            with contextlib.suppress(OSError):
                if os.name == "posix":
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
        self._said.close()


def _write(file: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended; the reader knows
        while (line := lines.get()) is not None:
            file.write(line)
            file.flush()
    with contextlib.suppress(OSError):
        file.close()


def _read(file: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while line := file.readline(_LONGEST_LINE):
            lines.put(line)
    lines.put(None)
    with contextlib.suppress(OSError):
        file.close()
