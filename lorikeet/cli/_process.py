"""A run in a process of its own: started so that it outlives the terminal, and asked to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lorikeet.base.errors import OutputError
from lorikeet.base.log import note
from lorikeet.train.status import holder, read_status

LOG = "train.log"
_WAIT_SECONDS = 20.0  # for the run to begin, or to say why it does not


def detach(arguments: Sequence[str], run: Path) -> tuple[int, int | None]:
    """Start `lorikeet ARGUMENTS` in a session of its own, with its output in RUN/train.log. Returns (the process, its
    exit code if it ended while we waited for it to take the run's folder)."""
    if (held := holder(run)) is not None:
        raise OutputError(
            f"the run in {run} is running already",
            given=f"process {held or 'unknown'}",
            allowed="one process for a run",
            try_=f"lorikeet runs watch {run}",
        )
    made = [parent for parent in (run, *run.parents) if not parent.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / LOG).open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  lorikeet {' '.join(arguments)}\n")
            log.flush()
            child = subprocess.Popen(
                [sys.executable, "-m", "lorikeet.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # no terminal, so none whose end could end it
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
    except OSError as error:
        raise OutputError(f"{run} cannot be written to", given=error.strerror, try_="another output_dir") from error
    code = _until_begun(child, run)
    if code and made and [path.name for path in run.iterdir()] == [LOG]:  # it was refused: leave nothing behind
        print(_last_lines(run), file=sys.stderr)
        (run / LOG).unlink()
        for parent in made:
            parent.rmdir()
    elif code:
        print(_last_lines(run), file=sys.stderr)
    return child.pid, code


def stop(run: Path, *, wait: bool = True, sleep: Callable[[float], None] = time.sleep) -> int:
    """Ask the process of a run to save and end, with SIGTERM, and wait until it has. Returns the process. Raises
    OutputError where no process of this machine that we can reach holds the folder."""
    process = holder(run)
    if process is None:
        raise OutputError(
            f"the run in {run} is not running", given="nobody holds its folder", try_=f"lorikeet runs {run}"
        )
    host = read_status(run).get("host")
    here = socket.gethostname()
    if not process or not _is_holder(process, run):
        there = f" on {host}" if isinstance(host, str) and host != here else ""
        raise OutputError(
            f"the process of the run in {run} cannot be found from here",
            given=f"process {process or 'unknown'}{there}",
            allowed="a run on this machine, in this container",
            try_=f"kill {process or 'PROCESS'}   where it runs",
        )
    try:
        os.kill(process, signal.SIGTERM)
    except OSError as error:
        raise OutputError(f"process {process} cannot be asked to stop", given=error.strerror) from error
    note(f"asked process {process} to stop: it ends its step and saves")
    while wait and holder(run) == process:
        sleep(0.2)
    return process


def _until_begun(child: subprocess.Popen[bytes], run: Path) -> int | None:
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        if (code := child.poll()) is not None:
            return code
        if holder(run) == child.pid:
            return None
        time.sleep(0.1)
    return None


def _is_holder(process: int, run: Path) -> bool:
    """Whether this process has the run's lock open: its number may mean another one here."""
    folder = Path(f"/proc/{process}/fd")
    lock = (run / ".lock").resolve()
    try:
        handles = list(folder.iterdir())
    except OSError:
        return not Path("/proc/self").exists()  # where there is no /proc the number has to do
    for handle in handles:
        try:
            if handle.readlink() == lock:
                return True
        except OSError:
            continue
    return False


def _last_lines(run: Path, most: int = 12) -> str:
    said = (run / LOG).read_text("utf-8", errors="replace")
    return "\n".join(said.rpartition("--- ")[2].splitlines()[1:][-most:])
