"""Routes that are not OpenAI's: /generate and /check as alpaca-era servers had them, /health, /metrics."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lorikeet.data.templates._bound import split_control
from lorikeet.data.templates._contract import Segment
from lorikeet.infer import reply
from lorikeet.serve import documents
from lorikeet.serve.asking import chat_prompt, ready, text_prompt
from lorikeet.serve.bodies import StrictRoute
from lorikeet.serve.errors import ApiError
from lorikeet.serve.openai_api import GONE, json_response
from lorikeet.serve.protocol import ChatMessage, GenerateRequest
from lorikeet.serve.service import Service
from lorikeet.serve.streaming import ClientGone, Streamed, until_gone
from lorikeet.serve.worker import Stream

# what /generate's protocol says of a request that leaves things out
_USUAL: dict[str, Any] = {
    "max_new_tokens": 200,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.65,
    "min_p": 0.06,
    "repetition_penalty": 1.15,
}


def routes(service: Service) -> APIRouter:
    """The routes of `service`."""
    router = APIRouter(route_class=StrictRoute)

    @router.get("/health", **documents.of(documents.Health))
    async def health() -> Response:
        if service.worker.broken is not None:
            raise ApiError("the engine has stopped", status=503, code="stopped")
        return json_response({"status": "ok"})

    @router.get("/metrics", **documents.of(None, text=True))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/check", **documents.of(str))
    async def check() -> Response:
        return json_response(service.adapter(None)[0])

    @router.post("/generate", **documents.of(str, text=True))
    async def generate(request: Request, body: GenerateRequest) -> Response:
        asked = await service.prepare(lambda: old_request(service, body))
        if body.stream or body.stream is None:
            stream = await service.worker.submit([asked])
            return Streamed(_text(stream), "text/plain; charset=utf-8", stream.close)
        try:
            return json_response(await until_gone(_whole(service, asked), request.receive))
        except ClientGone:
            return GONE

    return router


def old_request(service: Service, body: GenerateRequest) -> reply.Request:
    """The engine's request. Raises ApiError for what cannot be answered."""
    engine = service.engine
    if body.prompt is not None:  # the client lays the conversation out itself
        said = Segment(body.message)  # which names no control token, whatever it says
        own = [split_control(part, engine.tokenizer) for part in body.prompt.split("{user_input}")]
        prompt = text_prompt(engine, [*own[0], *(one for part in own[1:] for one in (said, *part))])
    else:
        prompt = chat_prompt(engine, [ChatMessage(role="user", content=body.message)])
    if not prompt:
        raise ApiError("there is nothing to answer", param="message")
    if len(prompt) >= service.context:
        raise ApiError(
            f"the prompt has {len(prompt)} tokens, and the model's context {service.context}",
            code="context_length_exceeded",
        )
    options = ready(service, _values(service, body))
    return reply.Request((f"gen-{secrets.token_hex(12)}", 0), prompt, options, service.adapter(None)[1])


def _values(service: Service, body: GenerateRequest) -> dict[str, Any]:
    """Options of `generate`: what the request says, else what the server was told, else the protocol's."""
    settings, values = service.settings, _USUAL | {"seed": secrets.randbits(48)} | dict(service.settings.generate)
    if values.get("num_beams", 1) > 1 and "temperature" not in settings.generate:
        values["temperature"] = 0.0  # beams draw nothing
    named = {name: getattr(body, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")}
    named["repetition_penalty"] = body.token_repetition_penalty_max
    values |= {name: value for name, value in named.items() if value is not None}
    values["max_new_tokens"] = min(values["max_new_tokens"], settings.max_new_tokens or service.context)
    return values


async def texts(events: AsyncIterator[reply.Event]) -> AsyncGenerator[str, None]:
    """What a reply says, piece by piece. Raises ApiError where the server ends it."""
    async for event in events:
        if event.text:
            yield event.text
        if event.reason == "cancelled":
            raise ApiError("the server stopped before the reply was whole", status=503, code="stopped")


async def _text(stream: Stream) -> AsyncGenerator[bytes, None]:
    try:
        async for text in texts(stream):
            yield text.encode()
    finally:
        stream.close()


async def _whole(service: Service, asked: reply.Request) -> str:
    stream = await service.worker.submit([asked])
    try:
        return "".join([text async for text in texts(stream)])
    finally:
        stream.close()
