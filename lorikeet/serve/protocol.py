"""OpenAI's requests: what may be asked, with types and bounds. A field that is not here is refused, as OpenAI does.

Fields that OpenAI knows and that change nothing here are taken and ignored (`user`, `store`, `metadata` ...), so that
clients that send them work. Fields beside OpenAI's have the names that vLLM and llama.cpp give them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[list[int], Field(min_length=1)]


class Body(BaseModel):
    """Base of what is asked: no unknown fields, and a number is a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Loose(BaseModel):
    """Base of what may carry more than is read, such as messages that another server wrote."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


class TextPart(Loose):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Loose):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Loose):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Loose):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None


class Function(Loose):
    """A tool; the `name_for_...` fields are Qwen's, whose models were trained with them."""

    name: Annotated[str, Field(pattern=r"^[^\s{}]{1,64}$")] | None = None
    description: str | None = None
    parameters: dict[str, Any] | list[Any] | None = None
    strict: bool | None = None
    name_for_model: str | None = None
    name_for_human: str | None = None
    description_for_model: str | None = None


class Tool(Loose):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Loose):
    name: str


class NamedTool(Loose):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Loose):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Loose):
    include_usage: bool | None = None


class StructuredOutputs(Body):
    """What a reply is, as vLLM says it now."""

    json_: dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None


class Sampled(Body):
    """What chat and completions have in common."""

    model: str | None = Field(None, description="A name of /v1/models; the server's default where it is left out.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    # beside OpenAI's
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    # changes nothing here
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)] = (
        Field(description="Text, or token ids; or several of either.")
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class GenerateRequest(Loose):
    """POST /generate: a message, and the prompt that it stands in at {user_input}; without one, in the model's own
    template."""

    message: str
    prompt: str | None = None
    max_new_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    token_repetition_penalty_max: Annotated[float, Field(ge=0.01, le=10)] | None = None
    stream: bool | None = True


class LoadAdapter(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    lora_path: Annotated[str, Field(min_length=1, max_length=1024)]


class UnloadAdapter(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=64)]
