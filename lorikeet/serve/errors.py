"""Errors as OpenAI's API shapes them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lorikeet.base.errors import LorikeetError
from lorikeet.serve.worker import QueueFull, Stopped, is_refusal

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """The object that says it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The same as a response."""
        return Response(orjson.dumps(self.body()), self.status, self.headers, media_type="application/json")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error; nothing of what is inside, where the fault is ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        wait = {"Retry-After": str(error.retry_seconds)}
        return ApiError(str(error), status=429, code="rate_limit_exceeded", headers=wait)
    if isinstance(error, Stopped):
        return ApiError(str(error), status=503, code="stopped")
    if isinstance(error, LorikeetError) and is_refusal(error):
        return ApiError(_sentence(error))
    return ApiError("the server failed to answer this request; its log says why", status=500, code="internal_error")


def _sentence(error: LorikeetError) -> str:
    parts = [("given", error.given), ("allowed", error.allowed), ("try", error.try_)]
    return "; ".join([error.what, *(f"{label}: {str(value)[:400]}" for label, value in parts if value is not None)])


def invalid(problem: dict[str, Any]) -> ApiError:
    """One of pydantic's complaints about a body."""
    place = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    if problem["type"] == "extra_forbidden":
        return ApiError(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if problem["type"] == "missing" and param is not None:
        return ApiError(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    where = f"'{param}': " if param else "the body: "
    return ApiError(where + str(problem["msg"]), param=param, code="invalid_value")


def install(app: FastAPI) -> None:
    """Give every error its shape."""

    async def wrong_body(_: Request, error: RequestValidationError) -> Response:
        return invalid(error.errors()[0]).response()

    async def http_error(_: Request, error: HTTPException) -> Response:
        told = ApiError(str(error.detail), status=error.status_code, headers=dict(error.headers or {}))
        return told.response()

    async def any_error(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, wrong_body)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    for kind in (ApiError, LorikeetError, QueueFull, Stopped, Exception):
        app.add_exception_handler(kind, any_error)
