"""What the routes give back, for the OpenAPI document (/openapi.json)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: Error


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    function_call: CalledFunction | None = None


class ChatChoice(BaseModel):
    index: int
    message: Message
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    system: str | None  # the prompt that all conversations of its training began with


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


EVENT = {  # one of a stream
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A chunk in JSON, or [DONE]"}},
    "required": ["data"],
}


class Health(BaseModel):
    status: Literal["ok"]


class Done(BaseModel):
    message: str


def of(model: Any, *, stream: bool = False, text: bool = False) -> dict[str, Any]:
    """What a route's decorator says of its responses: `model` at 200 (also as events, where it can stream; or plain
    text), and errors in their shape."""
    content: dict[str, Any] = {"text/event-stream": {"itemSchema": EVENT}} if stream else {}
    if text:
        content["text/plain"] = {"schema": {"type": "string"}}
    good: dict[str, Any] = {"description": "Done"} | ({"content": content} if content else {})
    if model is not None:
        good["model"] = model
    errors = {"model": ErrorBody, "description": "Why not"}
    told: dict[int | str, dict[str, Any]] = {200: good, "4XX": errors, "5XX": errors}
    return {"responses": told, "response_model": None}
