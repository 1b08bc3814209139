"""One question to a server over HTTP: OpenAI's chat or completions, or TGI's /generate; tried again where that helps.

What may pass (no connection, a stall, 408, 429, 5xx, half an answer) is tried again, each time after a longer pause, or
the pause that the server asks for. What will not (a key, an address, a model that is not there) stops everything. A
question that the server refuses (400, 413, 422) is that question's own matter.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lorikeet.base.errors import RecipeError, ServerError
from lorikeet.infer.sampling import GenerateOptions

CHAT, COMPLETIONS, TGI = "/chat/completions", "/completions", "/generate"
LARGEST = 64 << 20  # bytes of an answer
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
_THIS_ONE = (400, 413, 422)
_REASONS = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop", "length": "length"}
# options that a server knows under these names; those behind it are no part of OpenAI's API, and sent only if given
_NAMES = {"top_p": "top_p", "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty"}
_MORE = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty", "logit_bias": "logit_bias"}
_NOT_SENT = ("num_beams", "length_penalty", "early_stopping", "deterministic", "dequantize", "logprobs", "batch_size")


class Passing(Exception):
    """What may be better the next time. `wait`: seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class Refused(Exception):
    """A question that the server does not take."""


@dataclass(frozen=True)
class Answer:
    """A reply. `tokens`: how many it has, where the server says so."""

    text: str
    reason: str
    tokens: int | None = None


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently. `model` is what the server calls it."""

    url: str
    model: str
    rendered: bool = False  # questions are text, not messages
    key: str | None = None
    timeout_seconds: float = 600.0
    retries: int = 6
    pause_seconds: float = 0.5  # before the second try; twice as long each time after
    endpoint: str = field(init=False)

    def __post_init__(self) -> None:
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise RecipeError("OPENAI_API_KEY: no header can hold this key", allowed="one line of ASCII")
        object.__setattr__(self, "endpoint", _endpoint(self.url, self.rendered))

    @property
    def speaks(self) -> str:
        """Which of the three kinds of question it takes."""
        path = urlsplit(self.endpoint).path
        return CHAT if path.endswith(CHAT) else COMPLETIONS if path.endswith(COMPLETIONS) else TGI

    def body(self, prompt: str | Sequence[Mapping[str, Any]], options: GenerateOptions, name: int) -> dict[str, Any]:
        """The request for one prompt; `name` tells replies of one seed apart. Raises RecipeError for what such a
        server cannot be told."""
        given = options.model_fields_set
        for option in _NOT_SENT:
            if option in given:
                raise RecipeError(
                    f"generate.{option}: has no effect with --api, a server is not told so",
                    given=getattr(options, option),
                    try_="--concurrency" if option == "batch_size" else f"leave generate.{option} out",
                )
        sampled = {new: getattr(options, old) for old, new in (_NAMES | _MORE).items() if old in given}
        if options.temperature > 0 or "seed" in given:
            sampled["seed"] = options.seed + name
        if options.stop:
            sampled["stop"] = options.stop
        if self.speaks == TGI:
            return _for_tgi(prompt, options, sampled)
        what = {"messages": prompt} if self.speaks == CHAT else {"prompt": prompt}
        said = {"model": self.model, **what, "max_tokens": options.max_new_tokens, "temperature": options.temperature}
        return {**said, **sampled, **_guided(options)}

    def ask(self, body: Mapping[str, Any], *, sleep: Callable[[float], None] = time.sleep) -> Answer:
        """Ask until there is an answer. Raises Refused, or ServerError where there is no more hope."""
        pauses = random.Random(len(json.dumps(body)))
        for attempt in range(self.retries + 1):
            try:
                return self._once(body)
            except Passing as error:
                if attempt == self.retries:
                    raise ServerError(
                        f"{self.endpoint} does not answer",
                        given=f"{error}, {self.retries + 1} times",
                        try_="the same command again, later: what was answered is kept",
                    ) from error
                pause = min(60.0, self.pause_seconds * 2**attempt) * (0.5 + pauses.random())
                sleep(min(300.0, error.wait) if error.wait is not None else pause)
        raise AssertionError("the last attempt returned or raised")

    def _once(self, body: Mapping[str, Any]) -> Answer:
        status, headers, content = self._post(json.dumps(body).encode())
        said = _line(content)
        if status in _PASSING:
            wait = headers.get("retry-after", "")
            raise Passing(f"status {status}: {said}", float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else None)
        if status in _THIS_ONE:
            raise Refused(f"status {status}: {said}")
        if status != 200:
            raise ServerError(
                f"{self.endpoint} does not take questions",
                given=f"status {status}: {said}",
                allowed="an OpenAI-compatible server, or TGI's /generate",
                try_={401: "OPENAI_API_KEY", 403: "OPENAI_API_KEY"}.get(
                    status, "its address, and its name for the model"
                ),
            )
        try:
            return self._read(json.loads(content))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise Passing(f"an answer that is none: {said}") from error

    def _read(self, found: Any) -> Answer:
        if self.speaks == TGI:
            found = found[0] if isinstance(found, list) else found
            details = found.get("details") or {}
            reason, tokens = details.get("finish_reason") or "stop", details.get("generated_tokens")
            return Answer(_text(found["generated_text"]), _REASONS.get(reason, str(reason)), tokens)
        choice, usage = found["choices"][0], found.get("usage") or {}
        text = choice["message"].get("content") if self.speaks == CHAT else choice["text"]
        reason = choice.get("finish_reason") or "stop"
        return Answer(_text(text or ""), _REASONS.get(reason, str(reason)), usage.get("completion_tokens"))

    def _post(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) within the time limit, however slowly the bytes come."""
        at, until = urlsplit(self.endpoint), time.monotonic() + self.timeout_seconds
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        connection = kind(at.hostname or "", at.port, timeout=self.timeout_seconds)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.connect()
            socket = connection.sock
            connection.request("POST", at.path + (f"?{at.query}" if at.query else ""), content, headers)
            response, parts, size = connection.getresponse(), [], 0
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                left = until - time.monotonic()
                if left <= 0 or size > LARGEST:
                    raise Passing("too slow" if left <= 0 else f"more than {LARGEST >> 20} MiB")
                socket.settimeout(left)
            named = {name.lower(): value for name, value in response.getheaders()}
            if int(named.get("content-length", size)) != size:
                raise Passing("a connection that broke off")
            return response.status, named, b"".join(parts)
        except ssl.SSLCertVerificationError as error:
            raise ServerError(f"{self.endpoint}: its certificate is not trusted", given=error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Passing(_line(f"{type(error).__name__} {error}".encode())) from error
        finally:
            connection.close()


def _endpoint(url: str, rendered: bool) -> str:
    """The address that questions are sent to: `url` with what it lacks."""
    try:
        at = urlsplit(url)
        odd = at.scheme not in ("http", "https") or not at.hostname or at.port == 0 or "\n" in url
    except ValueError:
        odd = True
    if odd:
        raise RecipeError(
            "--api: not the address of a server",
            given=url,
            allowed="http://HOST:PORT, or https",
            try_="http://127.0.0.1:8000",
        )
    path = at.path.rstrip("/")
    if not path.endswith((CHAT, COMPLETIONS, TGI)):
        base = path if re.search(r"/v\d+$", path) else f"{path}/v1"
        path = base + (COMPLETIONS if rendered else CHAT)
    if rendered and path.endswith(CHAT):
        raise RecipeError(
            "--render: a chat address takes messages, which the server renders itself",
            given=url,
            try_="leave --render out",
        )
    if not rendered and not path.endswith(CHAT):
        raise RecipeError(
            "--api: this address takes text, so prompts must be rendered here",
            given=url,
            allowed="--render RUN with it, or an address that ends in /chat/completions",
            try_="--render RUN",
        )
    return at._replace(path=path, fragment="").geturl()


def _for_tgi(prompt: object, options: GenerateOptions, sampled: dict[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "details": True, **sampled}
    for name in ("presence_penalty", "logit_bias", "min_p"):
        if name in options.model_fields_set:
            raise RecipeError(f"generate.{name}: TGI's /generate has no such parameter", try_=f"leave {name} out")
    if options.temperature > 0:
        parameters |= {"do_sample": True, "temperature": options.temperature}
    guide = options.guide.model_dump()
    if guide["kind"] == "json_schema":
        parameters["grammar"] = {"type": "json", "value": guide["json_schema"]}
    elif guide["kind"] in ("regex", "choice"):
        value = guide.get("regex") or "|".join(map(re.escape, guide.get("choice", [])))
        parameters["grammar"] = {"type": "regex", "value": value}
    elif guide["kind"] != "none":
        raise RecipeError(
            "generate.guide: TGI's /generate knows no such guide",
            given=guide["kind"],
            allowed="json_schema regex choice",
        )
    return {"inputs": prompt, "parameters": parameters}


def _guided(options: GenerateOptions) -> dict[str, Any]:
    """The guide as OpenAI says it, where it can; else as vLLM and Lorikeet's own server do."""
    guide = options.guide.model_dump()
    kind = guide["kind"]
    if kind == "none":
        return {}
    if kind == "json_schema":
        named = {"name": "reply", "schema": guide["json_schema"], "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    value = guide["lark" if kind == "grammar" else kind]
    return {f"guided_{kind}": value, "structured_outputs": {kind: value}}  # vLLM changed its word for it


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a reply that is no text")
    return value


def _line(content: bytes) -> str:
    return " ".join(content.decode("utf-8", "replace").split())[:200]
