"""Bodies of requests: JSON that is UTF-8, of finite numbers and whole characters, and not too deep to be walked."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.responses import Response


class _Strict(Request):
    async def json(self) -> Any:
        """The body's value; 200 levels at most, which is the reader's own bound."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error


class StrictRoute(APIRoute):
    """A route that reads such bodies only."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return strictly
