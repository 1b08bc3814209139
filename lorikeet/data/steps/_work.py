"""Steps over processes: pieces of work in their order, few at a time, and finished ones kept on disk.

A chain is cut into stages: steps that look at rows one by one, and steps that see all rows in order. The first kind
goes over processes in pieces of some hundred rows; each piece's result (rows, counts, rejected rows) is bytes, appended
to the stage's journal. After an interruption the pieces in the journal are not computed again, and the steps in order,
which are cheap, run again over what they hold: the same rows, in the same order.
"""

from __future__ import annotations

import multiprocessing
import signal
import struct
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DataError, LorikeetError, OutputError
from lorikeet.data.formats._contract import Format
from lorikeet.data.steps import _read
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record, unpacked
from lorikeet.data.steps._values import from_line, to_line

PIECE = 128  # rows of one piece of work
_AHEAD = 3  # pieces per process that are under way or wait for their turn: what bounds memory
_FRAME = struct.Struct("<III")  # length, checksum, checksum of which rows it is of

Task = tuple[int, Format | None, list[Any]]  # (stage, format of raw rows or None, rows or packed records)


@dataclass(frozen=True)
class Stage:
    """Steps that run together. `numbers` are their places in the chain, for their logs."""

    steps: tuple[Step, ...]
    numbers: tuple[int, ...]
    in_order: bool
    last: bool = False  # its results are the rows to write


@dataclass
class Result:
    """What a piece of work gave."""

    logs: list[tuple[int, dict[str, Any], list[dict[str, Any]]]]  # (place in the chain, counts, rejected rows)
    origins: list[list[Any]]  # of each line, in the last stage
    lines: list[bytes]  # packed records, or in the last stage the rows themselves

    def records(self) -> Iterator[Record]:
        """The records, in a stage before the last."""
        return (unpacked(from_line(line)) for line in self.lines)


def stages(steps: Sequence[Step]) -> list[Stage]:
    """The chain as stages; the first reads, so it is never in order, and the last writes, so it is not either."""
    groups: list[tuple[bool, list[int]]] = [(False, [])]
    for number, step in enumerate(steps, 1):  # 0 is reading
        if step.in_order != groups[-1][0]:
            groups.append((step.in_order, []))
        groups[-1][1].append(number)
    if groups[-1][0]:
        groups.append((False, []))
    return [
        Stage(tuple(steps[number - 1] for number in numbers), tuple(numbers), in_order, place == len(groups) - 1)
        for place, (in_order, numbers) in enumerate(groups)
    ]


_STAGES: list[Stage] = []  # of this process, so that steps travel once and not with every piece


def begin(chain: list[Stage], worker: bool = True) -> None:
    """Make a process ready for pieces of these stages."""
    _STAGES[:] = chain
    if worker:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer


def work(task: Task) -> bytes:
    """A piece's result as bytes; an error that a person can do something about travels as its lines."""
    number, format, rows = task
    stage = _STAGES[number]
    try:
        return _worked(stage, format, rows)
    except LorikeetError as error:
        return to_line({"error": [error.what, str(error.given), str(error.allowed), error.try_]})


def _worked(stage: Stage, format: Format | None, rows: list[Any]) -> bytes:
    logs: list[tuple[int, Log]] = []
    if format is not None:
        logs.append((0, Log(_read.STEP)))
        records: Iterable[Record] = _read.records(rows, format, logs[0][1])
    else:
        records = map(unpacked, rows)
    for step, number in zip(stage.steps, stage.numbers):
        logs.append((number, Log(str(step.model_dump()["kind"]))))
        records = step.clean(records, logs[-1][1])
    origins, lines = [], []
    for record in records:
        if stage.last:
            origins.append([record.origin.file, record.origin.row, record.part])
        lines.append(to_line(record.as_row() if stage.last else record.packed()))
    for _, log in logs:
        log.check()
    header = {"logs": [[number, log.as_dict(), log.entries] for number, log in logs], "origins": origins}
    return to_line(header) + b"".join(lines)


def result(made: bytes) -> Result:
    """The result in a piece's bytes. Raises DataError for a piece that failed."""
    head, *lines = [line + b"\n" for line in made.split(b"\n")[:-1]]  # JSON escapes line ends in texts
    header = from_line(head)
    if "error" in header:
        what, given, allowed, try_ = header["error"]
        raise DataError(what, given=given, allowed=allowed, try_=try_)
    return Result([tuple(log) for log in header["logs"]], header["origins"], lines)


class Journal:
    """Results on disk, one after another, each with its length and checksum. What a crash tore off is forgotten."""

    def __init__(self, path: Path):
        self.file = path.open("a+b")
        self.file.seek(0)
        self.reading = True

    def _next(self, rows: int) -> bytes | None:
        start = self.file.tell()
        head = self.file.read(_FRAME.size)
        if len(head) == _FRAME.size:
            length, checksum, of_rows = _FRAME.unpack(head)
            made = self.file.read(length)
            if of_rows == rows and len(made) == length and zlib.crc32(made) == checksum:
                return made
        self.file.truncate(start)
        self.file.seek(start)
        return None

    def read(self, rows: int = 0) -> bytes | None:
        """The next result from before, if it is of these rows; or None from the first that is not there on."""
        made = self._next(rows) if self.reading else None
        self.reading = made is not None
        return made

    def write(self, made: bytes, rows: int = 0) -> None:
        """Append a result."""
        self.file.write(_FRAME.pack(len(made), zlib.crc32(made), rows) + made)
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@contextmanager
def pool(chain: list[Stage], workers: int) -> Iterator[Callable[[Task], Callable[[], bytes]]]:
    """A function that starts a piece of work and gives what waits for its result. One worker is this process."""
    if workers == 1:
        begin(chain, worker=False)

        def at_once(task: Task) -> Callable[[], bytes]:
            made = work(task)
            return lambda: made

        yield at_once
        return
    # forked where that is safe and usual: what the steps loaded to check themselves is there already
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    executor: Executor = ProcessPoolExecutor(workers, context, initializer=begin, initargs=(chain,))

    def submit(task: Task) -> Callable[[], bytes]:
        future: Future[bytes] = executor.submit(work, task)
        return future.result

    try:
        yield submit
    except BrokenProcessPool as error:
        raise OutputError(
            "a process that cleaned was stopped from outside",
            given=error,
            allowed="memory for each process's piece of work",
            try_="the same command goes on from there; --workers 1 takes least memory",
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def mapped(
    tasks: Iterable[Task], submit: Callable[[Task], Callable[[], bytes]], journal: Journal, workers: int
) -> Iterator[bytes]:
    """Each task's result in order: from the journal as far as it goes, then computed, a few at a time."""
    under_way: deque[tuple[Callable[[], bytes], int]] = deque()
    for task in tasks:
        rows = _which_rows(task)
        if journal.reading and (made := journal.read(rows)) is not None:
            yield made
            continue
        under_way.append((submit(task), rows))
        if len(under_way) > (_AHEAD * workers if workers > 1 else 0):
            yield _kept(*under_way.popleft(), journal)
    while under_way:
        yield _kept(*under_way.popleft(), journal)


def _which_rows(task: Task) -> int:
    """A checksum of the rows in a piece: behind a stop, a step in order may let through others than before it, and a
    command may answer otherwise."""
    _, format, rows = task
    return 0 if format is not None else zlib.crc32(to_line(rows))  # 0: straight from files, which are the same


def _kept(wait: Callable[[], bytes], rows: int, journal: Journal) -> bytes:
    made = wait()
    journal.write(made, rows)
    return made
