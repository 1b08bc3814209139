"""HTTP connections that cannot be held for ever by whoever sends slowly, nor be opened without end.

uvicorn limits how long a connection may idle behind a response, but not how long headers may take to come.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_BODY = b'{"error":{"message":"too many connections","type":"rate_limit_error","param":null,"code":null}}'
_TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY


def protocol(header_seconds: float, max_connections: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol with these limits."""

    class Limited(H11Protocol):
        """Closes a connection whose next request's headers are not whole in time."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(_TOO_MANY)
                transport.close()
            else:
                self._wait()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete:
                self.transport.close()  # a body that nobody reads
            elif self.conn.their_state is h11.IDLE:
                if self.timeout_keep_alive_task is None:  # else that one waits
                    self._wait()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(header_seconds, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Limited
