"""The server as a process: uvicorn with our limits, and an end that lets replies finish.

At SIGTERM or Ctrl-C it stops accepting. Replies that are being made have `drain_seconds` to end; then they are
cancelled, and each stream's last piece says so. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from lorikeet.base.log import note
from lorikeet.serve.connections import protocol
from lorikeet.serve.service import Service
from lorikeet.serve.settings import Settings

# A thread that wants Python's lock waits this long before it asks for it: the default 5 ms would be the time that a
# pass over the weights can hold up a request.
SWITCH_SECONDS = 0.0005


class Server(uvicorn.Server):
    """uvicorn's, which cancels what is left when the time to end is over."""

    def __init__(self, app: FastAPI, settings: Settings):
        config = uvicorn.Config(
            app,
            http=protocol(settings.header_seconds, settings.max_connections),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(5, int(settings.header_seconds)),
            timeout_graceful_shutdown=int(settings.drain_seconds) + 10,
        )
        super().__init__(config)
        self.service: Service = app.state.service
        self.drain_seconds = settings.drain_seconds

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn raises the signals again that it obeyed; a server that was asked to stop and did has not failed."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait, cancel, end."""
        if live := self.service.worker.live:
            replies = "1 reply has" if live == 1 else f"{live} replies have"
            note(f"stopping: {replies} {self.drain_seconds:g} s to end; Ctrl-C ends at once")
        late = asyncio.get_running_loop().call_later(self.drain_seconds, self.service.worker.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()


def serve(app: FastAPI, settings: Settings, listening: socket.socket) -> None:
    """Answer on a socket that listens already, until a signal says to stop."""
    sys.setswitchinterval(SWITCH_SECONDS)
    Server(app, settings).run(sockets=[listening])
