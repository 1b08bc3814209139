"""What stands before the application: who may ask, by which name, how large a body may be and how long it may take.

Plain ASGI, so that whatever is mounted beside the API is behind it too, and nothing is read that is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorikeet.serve.errors import ApiError
from lorikeet.serve.page import OPEN
from lorikeet.serve.settings import Settings

HEALTH = "/health"  # for whoever watches the process; says nothing


class Guard:
    """Asks for a key or a password where the server has some, and for a name that it goes by.

    Secrets are compared as digests, each with all, so that the time tells nothing."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._users = [_digest(user) for user in settings.users]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):  # there are no websockets here
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = [(name, value) for name, value in scope["headers"] if name in (b"host", b"authorization")]
        if self.settings.hosts:
            host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
            if _without_port(host) not in self.settings.hosts:
                return ApiError(f"this server does not go by the name '{host[:100]}'", status=403, code="invalid_host")
        if not self.settings.locked or _is_open(scope["path"], self.settings):
            return None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) == 1 and self._knows(given[0]):
            return None
        challenge = "Basic realm=lorikeet" if self.settings.users else "Bearer"
        return ApiError(
            "a key is needed: 'Authorization: Bearer KEY'" if not given else "this key is not known here",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": challenge},
        )

    def _knows(self, header: bytes) -> bool:
        scheme, _, secret = header.partition(b" ")
        if scheme.lower() == b"bearer":
            return _one_of(secret.strip(), self._keys)
        if scheme.lower() == b"basic":
            try:
                return _one_of(base64.b64decode(secret.strip(), validate=True), self._users)
            except binascii.Error:
                return False
        return False


def _is_open(path: str, settings: Settings) -> bool:
    """Whether a path may be read without a key. The page asks for a key itself; a password the browser asks for."""
    at, below = OPEN
    return path == HEALTH or (not settings.users and (path == at or path.startswith(below)))


def _digest(secret: str | bytes) -> bytes:
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).digest()


def _one_of(secret: bytes, known: Iterable[bytes]) -> bool:
    given = _digest(secret)
    found = False
    for one in known:  # all of them, always
        found |= hmac.compare_digest(given, one)
    return found


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


class BodyLimit:
    """Reads a request's body before the application sees it: at most so many bytes, in at most so many seconds."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.settings.body_seconds)
        except asyncio.TimeoutError:
            body = ApiError("the body took too long to come", status=408, headers={"Connection": "close"})
        if isinstance(body, ApiError):
            await body.response()(scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:
                return await receive()  # what comes now is that the client goes
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | ApiError | None:
        most = self.settings.max_body_bytes
        large = ApiError(
            f"the body is larger than {most} bytes", status=413, code="too_large", headers={"Connection": "close"}
        )
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > most:
            return large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                return large
            if not message.get("more_body", False):
                return bytes(body)
