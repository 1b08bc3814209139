"""Work shared by processes, its results in the order of what was asked, and only a few of them waiting.

Processes are forked, so they have the tokenizer and the template without reading them again, and share their memory.
They only compute: files are read and written by the one process that people see.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from lorikeet.base.errors import DataError, LorikeetError
from lorikeet.base.machine import usable_cores

Given = TypeVar("Given")
Made = TypeVar("Made")

_MOST = 8  # by default: the process that reads and writes keeps no more than so many busy
_WAITING = 2  # pieces of work in a process at once, so that it never waits for the next


def default_workers() -> int:
    """Processes for a large file: one a core, none where the system cannot fork."""
    return max(1, min(_MOST, usable_cores())) if "fork" in multiprocessing.get_all_start_methods() else 1


def in_order(given: Iterable[Given], work: Callable[[Given], Made], workers: int) -> Iterator[Made]:
    """`work` of each of `given`, in order; by this process where `workers` is 1. Where taking the next of `given`
    raises an error, the results before come first. Raises DataError where the system ends a process."""
    if workers == 1:
        for only in given:
            yield work(only)
        return
    # a library that counts threads at import would warn in every fork, and each process has one core to itself
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    crew = [_Worker(work) for _ in range(workers)]
    waiting: deque[_Worker] = deque()
    try:
        for number, one in enumerate(_until_error(given)):
            if len(waiting) == _WAITING * workers:
                yield waiting.popleft().result()
            if isinstance(one, _Fault):
                while waiting:
                    yield waiting.popleft().result()
                raise one.error
            crew[number % workers].send(one)
            waiting.append(crew[number % workers])
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in crew:
            worker.stop()


@dataclass(frozen=True, slots=True)
class _Fault:
    error: LorikeetError


def _until_error(given: Iterable[Given]) -> Iterator[Given | _Fault]:
    """What there is, and last the error that ended it."""
    try:
        yield from given
    except LorikeetError as error:
        yield _Fault(error)


class _Worker:
    def __init__(self, work: Callable[[Any], Any]):
        context = multiprocessing.get_context("fork")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._connection, work), daemon=True)
        self._process.start()
        other.close()

    def send(self, given: Any) -> None:
        try:
            self._connection.send(given)
        except OSError as error:
            raise self._ended() from error

    def result(self) -> Any:
        try:
            made, failed = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if failed is not None:
            raise RuntimeError(f"in a process that prepares data:\n{failed}")
        return made

    def _ended(self) -> DataError:
        self._process.join(1)
        return DataError(
            "a process that prepares data was ended from outside",
            given=f"exit code {self._process.exitcode}",
            allowed="processes that run to their end; the system ends some where memory is short",
            try_="data.workers=1",
        )

    def stop(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, others: Connection, work: Callable[[Any], Any]) -> None:
    """What a worker does until its connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that people see
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    others.close()
    gc.freeze()  # what is there already is not looked through again, and its memory stays shared
    gc.set_threshold(1 << 17)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # takes what comes at once: if both sides waited for the other to take something, neither would go on
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    while (given := inbox.get()) is not None:
        try:
            made, failed = work(given[0]), None
        except BaseException:
            made, failed = None, traceback.format_exc()
        try:
            connection.send((made, failed))
        except OSError:
            break  # nobody waits for it any more


def _receive(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put((connection.recv(),))
    except (EOFError, OSError):
        inbox.put(None)
