"""OpenAI's routes: chat completions, completions, models."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from lorikeet.infer.reply import Event
from lorikeet.serve import asking, documents, replying
from lorikeet.serve.asking import Asked
from lorikeet.serve.bodies import StrictRoute
from lorikeet.serve.errors import as_api_error
from lorikeet.serve.protocol import ChatRequest, CompletionRequest
from lorikeet.serve.replying import Choice
from lorikeet.serve.service import Service
from lorikeet.serve.streaming import ClientGone, Streamed, until_gone
from lorikeet.serve.worker import Stream

_log = logging.getLogger("lorikeet.serve")
Pieces = Callable[[Asked, Choice, Event, bool], list[dict[str, Any]]]
GONE = Response(status_code=499)  # nobody reads it


def routes(service: Service) -> APIRouter:
    """The routes of `service`."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/chat/completions", **documents.of(documents.ChatCompletion, stream=True))
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        begun = time.perf_counter()
        asked = await service.prepare(lambda: asking.chat(service, body))
        kind = "chat.completion.chunk"
        return await _answer(service, request, asked, begun, replying.whole_chat, _chat_pieces, kind)

    @router.post("/v1/completions", **documents.of(documents.Completion, stream=True))
    async def completions(request: Request, body: CompletionRequest) -> Response:
        begun = time.perf_counter()
        asked = await service.prepare(lambda: asking.completion(service, body))
        kind = "text_completion"
        return await _answer(service, request, asked, begun, replying.whole_completion, _completion_pieces, kind)

    @router.get("/v1/models", **documents.of(documents.ModelList))
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(service, name) for name in service.models()]})

    @router.get("/v1/models/{name:path}", **documents.of(documents.Model))
    async def model(name: str) -> Response:
        return json_response(_model(service, service.adapter(name)[0]))

    return router


def json_response(value: Any) -> Response:
    """`value` as JSON."""
    return Response(orjson.dumps(value), media_type="application/json")


def _model(service: Service, name: str) -> dict[str, Any]:
    base = service.settings.model
    told = {"id": name, "object": "model", "created": service.started, "owned_by": "lorikeet", "root": base}
    told |= {"parent": None if name == base else base, "max_model_len": service.context}
    return told | {"system": service.settings.systems.get(name)}


def _chat_pieces(asked: Asked, choice: Choice, event: Event, first: bool) -> list[dict[str, Any]]:
    return replying.chat_pieces(asked, choice, event, first=first)


def _completion_pieces(asked: Asked, choice: Choice, event: Event, first: bool) -> list[dict[str, Any]]:
    return replying.completion_pieces(asked, choice, event)


async def _answer(
    service: Service,
    request: Request,
    asked: Asked,
    begun: float,
    whole: Callable[[Asked, Sequence[Choice]], dict[str, Any]],
    pieces: Pieces,
    kind: str,
) -> Response:
    if asked.stream:
        stream = await service.worker.submit(asked.requests)  # refused before the response begins
        return Streamed(_stream(service, asked, stream, begun, pieces, kind), "text/event-stream", stream.close)
    try:
        replies = await until_gone(_whole(service, asked, begun), request.receive)
    except ClientGone:
        return GONE
    return json_response(whole(asked, replies))


async def _whole(service: Service, asked: Asked, begun: float) -> list[Choice]:
    stream = await service.worker.submit(asked.requests)
    replies = replying.choices(asked)
    try:
        async for event in stream:
            begun = _noted(service, begun)
            choice = replies[event.name[1]]
            choice.take(event)
            _end_early(service, asked, choice, event)
    finally:
        stream.close()
    return replies


async def _stream(
    service: Service, asked: Asked, stream: Stream, begun: float, pieces: Pieces, kind: str
) -> AsyncGenerator[bytes, None]:
    replies, seen = replying.choices(asked), set[int]()
    try:
        async for event in stream:
            begun = _noted(service, begun)
            choice = replies[event.name[1]]
            made = pieces(asked, choice, event, choice.index not in seen)
            seen.add(choice.index)
            _end_early(service, asked, choice, event)
            if made:
                yield b"".join(_event(one) for one in made)
        if asked.usage:
            yield _event(replying.last_piece(asked, replies, kind))
        yield b"data: [DONE]\n\n"
    except Exception as error:  # the response has begun: all that can be done is to say it
        told = as_api_error(error)
        if told.status == 500:
            _log.exception("a stream failed")
        yield _event(told.body())
    finally:
        stream.close()


def _end_early(service: Service, asked: Asked, choice: Choice, event: Event) -> None:
    """Cancel a reply of which nothing more is wanted."""
    if event.reason is None and (choice.full or asked.first_only):
        choice.full = True
        service.worker.cancel(event.name)


def _noted(service: Service, begun: float) -> float:
    """Count the time to the first event, once."""
    if begun:
        service.metrics.first_token.observe(time.perf_counter() - begun)
    return 0.0


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
