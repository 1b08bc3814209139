"""From a request of the API to requests of the engine: a conversation, its ids, and how the reply is sampled."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode
from lorikeet.data.layout import prompt_segments
from lorikeet.data.templates._bound import split_control
from lorikeet.data.templates._calls import CallReader, Forced
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._either import either
from lorikeet.data.templates._tools import read_arguments
from lorikeet.infer.engine import Engine
from lorikeet.infer.guides._contract import Guide
from lorikeet.infer.reply import Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.serve.errors import ApiError
from lorikeet.serve.protocol import ChatMessage, ChatRequest, CompletionRequest, NamedFunction, NamedTool, Sampled
from lorikeet.serve.service import Service
from lorikeet.serve.settings import Settings

_ROLES = {"developer": "system", "function": "tool"}
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_GUIDED = {"guided_json": "json_schema", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "lark"}


@dataclass
class Asked:
    """One request of the API: its choices are requests of the engine, named (id, index)."""

    id: str
    model: str
    requests: list[Request]
    readers: list[CallReader | None]
    per_prompt: int = 1  # choices of each prompt
    one_call: bool = False  # a reply ends behind its first call of a tool
    old_calls: bool = False  # `functions` were given, so `function_call` answers
    logprobs: bool = False
    echo: bool = False
    first_only: bool = False  # nothing but the echo is wanted
    usage: bool = False  # at the end of a stream
    stream: bool = False
    prompt_tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Tools:
    """What a chat request says about tools."""

    shown: tuple[dict[str, Any], ...] = ()
    forced: tuple[dict[str, Any], ...] | None = None  # one of them has to be called
    old: bool = False  # as `functions`


def chat(service: Service, body: ChatRequest) -> Asked:
    """The engine's requests for a chat request. Raises ApiError and LorikeetError for what cannot be answered."""
    shown_model, adapter = service.adapter(body.model)
    tools, guide = _tools(body), _guide(body)
    forced: Forced | None = None
    if tools.shown and service.calls is None:
        raise ApiError("this model's template has no calls of tools that can be read back", param="tools")
    if tools.forced is not None and service.calls is not None:
        forced = service.calls.forced(tools.forced)  # whatever form an answer would have had
        guide = {"kind": "grammar", "lark": forced.grammar}
    elif tools.shown and service.calls is not None and guide is not None:
        lark = either(service.calls, tools.shown, _answer(guide), service.engine.tokenizer)
        guide = {"kind": "grammar", "lark": lark}
    prompt = chat_prompt(service.engine, body.messages, tools.shown, forced.begins if forced else "")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    most = body.max_completion_tokens or body.max_tokens
    sampled = _sampled(service, body, prompt, most, None, logprobs, guide)
    asked = _asked(service, body, "chatcmpl", shown_model, adapter, [prompt], sampled, bool(tools.shown))
    if tools.shown and service.calls is not None:
        names = [str(one["function"]["name"]) for one in tools.shown]
        asked.readers = [service.calls.reader(names) for _ in asked.requests]
        for reader in asked.readers if forced else []:
            assert reader is not None and forced is not None
            reader.feed(forced.begins)
    asked.one_call = body.parallel_tool_calls is False or tools.old or forced is not None
    asked.old_calls, asked.logprobs = tools.old, bool(body.logprobs)
    return asked


def completion(service: Service, body: CompletionRequest) -> Asked:
    """The engine's requests for a completion."""
    model, adapter = service.adapter(body.model)
    if body.suffix:
        raise ApiError("a suffix is not supported: the model writes from left to right", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            "best_of is not supported; n gives several replies, and logprobs tell them apart", param="best_of"
        )
    prompts = _prompts(service.engine, body)
    most = body.max_tokens
    if most == 0 and not body.echo:
        raise ApiError("max_tokens is 0, so nothing is asked for; with echo the prompt comes back", param="max_tokens")
    wanted = None if most is None else max(1, most)
    sampled = _sampled(service, body, max(prompts, key=len), wanted, 16, body.logprobs, _guide(body))
    asked = _asked(service, body, "cmpl", model, adapter, prompts, sampled, False, echo=bool(body.echo))
    asked.logprobs, asked.echo, asked.first_only = body.logprobs is not None, bool(body.echo), most == 0
    return asked


def chat_prompt(
    engine: Engine, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = (), begins: str = ""
) -> list[int]:
    """The ids after which the model answers. A last message of the assistant is gone on with; `begins` is the
    template's own beginning of a reply."""
    turns = [_message(one) for one in messages]
    started: list[Segment] = []
    if turns[-1].role == "assistant" and not turns[-1].tool_calls:
        last = turns.pop()
        started = [Segment(last.content, message=len(turns), part="content", reply=True)] if last.content else []
        if not turns:
            raise ApiError("the assistant's message has to follow another one", param="messages")
    conversation = Conversation(tuple(turns), tuple(dict(tool) for tool in tools))
    own = split_control(begins, engine.tokenizer)
    segments = [*prompt_segments(conversation, engine.template), *started, *own]
    return [int(token) for token in encode(segments, [0.0] * len(segments), engine.tokenizer)[0]]


def text_prompt(engine: Engine, segments: Sequence[Segment]) -> list[int]:
    """The ids of a text that the client laid out itself, with the token that every text begins with."""
    control, bos = engine.tokenizer.control, engine.tokenizer.bos_token
    ids = [int(token) for token in encode(segments, [0.0] * len(segments), engine.tokenizer)[0]]
    return [control[bos], *ids] if bos in control and ids[:1] != [control[bos]] else ids


def _message(one: ChatMessage) -> Message:
    text = one.content if isinstance(one.content, str) else "".join(part.text for part in one.content or [])
    functions = [(call.id, call.function) for call in one.tool_calls or []]
    functions += [(None, one.function_call)] if one.function_call is not None else []
    if functions and one.role != "assistant":
        raise ApiError(f"a message of the role '{one.role}' calls a tool; only the assistant can", param="messages")
    if one.content is None and not functions:
        raise ApiError(f"a message of the role '{one.role}' has no content", param="messages")
    calls = []
    for identity, function in functions:
        told = {"name": function.name, "arguments": read_arguments(function.arguments or "{}")}
        calls.append({**({"id": identity} if identity else {}), "type": "function", "function": told})
    role = _ROLES.get(one.role, one.role)
    return Message(role, text, tool_calls=tuple(calls), name=one.name, tool_call_id=one.tool_call_id)


def _tools(body: ChatRequest) -> Tools:
    """Tools, in the one shape that templates take, whichever of OpenAI's two ways they came in."""
    if body.tools and body.functions:
        raise ApiError("tools and functions exclude each other", param="functions")
    functions = [tool.function for tool in body.tools or []] or body.functions or []
    shown: list[dict[str, Any]] = []
    for function in functions:
        told = function.model_dump(exclude_none=True)
        told = {"name": told.get("name") or told.get("name_for_model")} | told
        if not told["name"]:
            raise ApiError("a tool has no name", param="tools")
        told.pop("strict", None)  # says how OpenAI samples; no model was trained to read it
        shown.append({"type": "function", "function": told})
    choice: Any = body.tool_choice if body.tool_choice is not None else body.function_call
    if choice not in (None, "auto", "none") and not shown:
        raise ApiError("tool_choice needs tools", param="tool_choice")
    if choice == "none" or not shown:
        return Tools()
    forced = None
    if choice == "required":
        forced = tuple(shown)
    elif isinstance(choice, (NamedTool, NamedFunction)):
        name = choice.function.name if isinstance(choice, NamedTool) else choice.name
        forced = tuple(one for one in shown if one["function"]["name"] == name)
        if not forced:
            raise ApiError(f"tool_choice names '{name[:64]}', which is not among the tools", param="tool_choice")
    return Tools(tuple(shown), forced, not body.tools)


def _guide(body: ChatRequest | CompletionRequest) -> dict[str, Any] | None:
    """What the reply has to be, as an option of `generate.guide`."""
    found: list[dict[str, Any]] = []
    newly = {} if body.structured_outputs is None else body.structured_outputs.model_dump(by_alias=True)
    for name, option in _GUIDED.items():
        for value in (getattr(body, name), newly.get(name.removeprefix("guided_"))):
            one = {"kind": "grammar" if option == "lark" else option, option: value}
            if value is not None and one not in found:  # a client that knows neither server says it both ways
                found.append(one)
    form = body.response_format if isinstance(body, ChatRequest) else None
    if form is not None and form.type == "json_object":
        found.append({"kind": "json_object"})
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise ApiError("response_format needs json_schema.schema", param="response_format")
        found.append({"kind": "json_schema", "json_schema": form.json_schema.schema_})
    if len(found) > 1:
        raise ApiError("response_format and guided_... each say what the reply is; use one", param="response_format")
    return found[0] if found else None


def _answer(guide: Mapping[str, Any]) -> str:
    """The rule of an answer beside which tools may be called."""
    start = "start: "
    grammar = _read(guide).grammar() if guide["kind"].startswith("json") else None
    if grammar is None:
        raise ApiError("tools go with response_format; guided_... say what the whole reply is", param="tools")
    assert grammar.startswith(start)
    return grammar.removeprefix(start)


def _read(guide: Mapping[str, Any]) -> Guide:
    try:
        return GenerateOptions.model_validate({"guide": dict(guide)}).guide
    except ValidationError as error:
        raise _wrong(error) from error


def _prompts(engine: Engine, body: CompletionRequest) -> list[list[int]]:
    given = body.prompt
    several: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    size, found = engine.tokenizer.vocab_size, []
    for one in several:
        ids = text_prompt(engine, split_control(one, engine.tokenizer)) if isinstance(one, str) else list(one)
        if not ids:
            raise ApiError("an empty prompt cannot be completed", param="prompt")
        if any(not 0 <= token < size for token in ids):
            raise ApiError(f"a prompt's token is none of the model's {size}", param="prompt")
        found.append(ids)
    return found


def usual(settings: Settings) -> dict[str, float]:
    """What a reply is sampled with where a request does not say, by the request's names; without those that nobody
    has decided: a seed, and how many tokens."""
    told, options = settings.generate, GenerateOptions.model_validate(_first(settings))
    found = {name: getattr(options, name) for name in _SAMPLING}
    most = [one for one in (told.get("max_new_tokens"), settings.max_new_tokens) if one is not None]
    return found | ({"seed": options.seed} if "seed" in told else {}) | ({"max_tokens": min(most)} if most else {})


def _first(settings: Settings) -> dict[str, Any]:
    """The server's options, and OpenAI's temperature where it has none of its own; beams draw nothing."""
    told = dict(settings.generate)
    return {"temperature": 1.0 if told.get("num_beams", 1) == 1 else 0.0} | told


def _sampled(
    service: Service,
    body: Sampled,
    prompt: Sequence[int],
    most: int | None,
    usual: int | None,
    logprobs: int | None,
    guide: Mapping[str, Any] | None,
) -> GenerateOptions:
    """How replies are sampled: what the request says, else what the server was told, else OpenAI's defaults. `usual`:
    tokens of a reply where nobody says how many; None for what the context leaves."""
    room, said = service.context - len(prompt), "messages" if isinstance(body, ChatRequest) else "prompt"
    if room < 1:
        raise ApiError(
            f"This model's maximum context length is {service.context} tokens. However, your {said} resulted in "
            f"{len(prompt)} tokens.",
            param=said,
            code="context_length_exceeded",
        )
    cap = service.settings.max_new_tokens
    if most is not None and cap is not None and most > cap:
        raise ApiError(f"max_tokens is too large: {most}. This server writes at most {cap}.", param="max_tokens")
    told, values = service.settings.generate, _first(service.settings)
    values |= {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    usual = told.get("max_new_tokens", usual or room)
    values["max_new_tokens"] = min(usual, cap or usual) if most is None else most
    if values.get("top_k") == -1:
        values["top_k"] = 0
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    values["stop"] = [*values.get("stop", []), *(text for text in stop if text)]
    values["logprobs"] = logprobs
    values["seed"] = told.get("seed", secrets.randbits(48)) if body.seed is None else body.seed % (1 << 62)
    if body.logit_bias:
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in body.logit_bias):
            raise ApiError("the keys of logit_bias are ids of tokens", param="logit_bias")
        values["logit_bias"] = {int(key): value for key, value in body.logit_bias.items()}
    if guide is not None:
        values["guide"] = dict(guide)
    return ready(service, values)


def ready(service: Service, values: Mapping[str, Any]) -> GenerateOptions:
    """The options of `generate` that `values` are, their guide compiled. Raises ApiError for such as do not go
    together."""
    try:
        options = GenerateOptions.model_validate(values)
        # kept from here on: the thread that computes has no time for it
        options.guide.compile(service.engine.tokenizer, service.engine.stop_ids)
        return options
    except ValidationError as error:
        raise _wrong(error) from error


def _wrong(error: ValidationError) -> ApiError:
    problem = error.errors()[0]
    place = str(problem["loc"][0]) if problem["loc"] else None
    return ApiError(f"{place or 'the request'}: {problem['msg']}", param=place, code="invalid_value")


def _asked(
    service: Service,
    body: Sampled,
    kind: str,
    model: str,
    adapter: str | None,
    prompts: Sequence[Sequence[int]],
    options: GenerateOptions,
    with_control: bool,
    echo: bool = False,
) -> Asked:
    count = body.n or 1
    most = min(service.settings.max_choices, service.worker.most)
    if count * len(prompts) > most:
        raise ApiError(f"{count * len(prompts)} replies in one request; this server makes at most {most}", param="n")
    identity = f"{kind}-{secrets.token_hex(12)}"
    requests = []
    for index in range(count * len(prompts)):
        own = options.model_copy(update={"seed": options.seed + index % count})
        prompt = prompts[index // count]
        requests.append(Request((identity, index), prompt, own, adapter, echo, skip_control=not with_control))
    asked = Asked(identity, model, requests, [None] * len(requests), per_prompt=count)
    asked.prompt_tokens = sum(map(len, prompts))
    asked.stream = bool(body.stream)
    asked.usage = asked.stream and bool(body.stream_options and body.stream_options.include_usage)
    if body.stream_options is not None and not asked.stream:
        raise ApiError("stream_options needs stream: true", param="stream_options")
    return asked
