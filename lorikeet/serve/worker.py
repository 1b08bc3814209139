"""One thread owns the batch; everybody else asks it, and listens.

Requests, cancellations and changes of adapters reach the thread between two passes over the weights. Events go back to
the event loop that asked, all of a pass in one call.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from lorikeet.base.errors import LorikeetError
from lorikeet.base.heap import Growth
from lorikeet.base.log import note
from lorikeet.infer.batch import Batch
from lorikeet.infer.reply import Event, Request

T = TypeVar("T")
MOST_RETRY_SECONDS = 60
HOLES = 24 << 20  # bytes that a server may grow by before freed memory is given back


class QueueFull(Exception):
    """As many requests wait as may. `retry_seconds`: when to ask again, by estimate."""

    def __init__(self, retry_seconds: int):
        super().__init__(f"the queue is full; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class Stopped(Exception):
    """The thread has ended, so nothing answers."""


class Stream(AsyncIterator[Event]):
    """Events of the requests that were submitted together, until each has ended."""

    def __init__(self, worker: Worker, names: Iterable[Hashable]):
        self.loop = asyncio.get_running_loop()
        self._worker, self.open = worker, set(names)
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def put(self, event: Event | Exception) -> None:
        """Called on the event loop."""
        self._events.put_nowait(event)

    async def __anext__(self) -> Event:
        if not self.open:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, Exception):
            self.open.clear()
            raise event
        if event.reason is not None:
            self.open.discard(event.name)
        return event

    def close(self) -> None:
        """Cancel what has not ended: its rows become free."""
        for name in self.open:
            self._worker.cancel(name)
        self.open = set()


class Worker:
    """The thread of one batch. At most `queue` requests wait for a row."""

    def __init__(self, batch: Batch, *, queue: int):
        self.batch, self.most = batch, batch.rows + queue
        self.live = 0  # requests that have not ended
        self.broken: Exception | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._open: dict[Hashable, tuple[Stream, float]] = {}  # the thread's own: who listens, and since when
        self._seconds = 1.0  # that a request takes, lately
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. What has not ended is told that it is stopped."""
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return max(0, self.live - (self.batch.rows - self.batch.free))

    async def submit(self, requests: Sequence[Request]) -> Stream:
        """Take requests with names of their own. Raises QueueFull, or the LorikeetError of one that cannot be
        answered; then none is taken."""
        with self._lock:
            if self.live + len(requests) > self.most:
                wait = self._seconds * max(1, self.waiting) / self.batch.rows
                raise QueueFull(min(MOST_RETRY_SECONDS, max(1, math.ceil(wait))))
            self.live += len(requests)
        stream = Stream(self, [request.name for request in requests])
        try:
            await self.call(lambda: self._add(requests, stream))
        except asyncio.CancelledError:  # whoever asked has gone; the thread may have taken them, or may yet
            stream.close()
            raise
        except Stopped:
            self._ended(len(requests))
            raise
        return stream

    def cancel(self, name: Hashable) -> None:
        """End a request; one that has ended already is left alone."""
        self._commands.put(lambda: self._cancel([name]))

    def cancel_all(self) -> None:
        """End every request: each gets a last event with the reason `cancelled`."""
        self._commands.put(lambda: self._cancel(list(self._open)))

    async def call(self, function: Callable[[], T]) -> T:
        """The value of `function`, which runs in the thread, between two passes."""
        if self.broken is not None or not self._thread.is_alive():
            raise Stopped("the engine has stopped") from self.broken
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                if self._stopped:
                    raise Stopped("the server has stopped")
                value = function()
            except Exception as error:
                _tell(loop, _settle, future, None, error)
            else:
                _tell(loop, _settle, future, value, None)

        self._commands.put(run)
        return await future

    # ---------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the count for each thread that calls it
        growth = Growth(HOLES)  # requests of all sizes leave holes, for as long as the server runs
        while self._obey():
            if not self.batch.busy:
                continue
            try:
                events = self.batch.step()
            except Exception as error:  # of whatever kind: the others have to be told, and the thread goes on
                self._fail(error)
            else:
                self._send(events)
            growth.look()
        self._stopped = True
        self._give_up(Stopped("the server has stopped"))
        with suppress(Empty):  # whoever still waits for an answer has to get one
            while True:
                command = self._commands.get_nowait()
                if command is not None:
                    command()
        self.batch.close()

    def _obey(self) -> bool:
        """Do what was asked since the last pass; wait for something where there is nothing to do. False: stop."""
        block = not self.batch.busy
        while True:
            try:
                command = self._commands.get(block=block)
            except Empty:
                return True
            if command is None:
                return False
            command()
            block = False

    def _add(self, requests: Sequence[Request], stream: Stream) -> None:
        now = time.monotonic()
        for count, request in enumerate(requests):
            try:
                self.batch.add(request)
            except Exception:
                self._ended(len(requests) - count)  # the ones before end with an event, like any other
                for taken in requests[:count]:
                    self.batch.cancel(taken.name)
                raise
            self._open[request.name] = stream, now

    def _cancel(self, names: Sequence[Hashable]) -> None:
        for name in names:
            if name in self._open:  # else it has ended already
                self.batch.cancel(name)

    def _ended(self, count: int) -> None:
        with self._lock:
            self.live -= count

    def _send(self, events: Sequence[Event]) -> None:
        told: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Event]]] = {}
        for event in events:
            found = self._open.get(event.name)
            if event.reason is not None and self._open.pop(event.name, None) is not None:
                self._ended(1)
                if event.reason != "cancelled" and found is not None:
                    self._seconds += 0.1 * (time.monotonic() - found[1] - self._seconds)
            if found is not None:
                told.setdefault(found[0].loop, []).append((found[0], event))
        for loop, pairs in told.items():
            _tell(loop, _put_all, pairs)

    def _fail(self, error: Exception) -> None:
        """A pass failed. Its replies are lost; an engine that fails again with nothing to do is given up."""
        note(f"a pass of the engine failed: {type(error).__name__}: {error}")
        names = list(self._open)
        self._give_up(error)
        try:
            for name in names:
                self.batch.cancel(name)
            while self.batch.busy:
                self.batch.step()
        except Exception as again:
            self.broken = again
            self._commands.put(None)

    def _give_up(self, error: Exception) -> None:
        streams = {id(stream): stream for stream, _ in self._open.values()}
        self._ended(len(self._open))
        self._open.clear()
        for stream in streams.values():
            _tell(stream.loop, stream.put, error)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *told: object) -> None:
    """Call `what` on the event loop; one that has ended listens no more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(what, *told)


def _settle(future: asyncio.Future[object], value: object, error: Exception | None) -> None:
    if future.done():  # whoever waited has gone
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def _put_all(pairs: Sequence[tuple[Stream, Event]]) -> None:
    for stream, event in pairs:
        stream.put(event)


def is_refusal(error: BaseException) -> bool:
    """Whether the request was wrong, rather than the engine."""
    return isinstance(error, LorikeetError) and error.exit_code == 2
