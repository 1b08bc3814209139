"""From events of the engine to OpenAI's objects: choices, pieces of a stream, counts of tokens."""

from __future__ import annotations

import codecs
import math
import secrets
from collections.abc import Sequence
from typing import Any

from lorikeet.data.templates._calls import Called, CallReader, Said
from lorikeet.infer.logprobs import TokenLogprob
from lorikeet.infer.reply import Event
from lorikeet.serve.asking import Asked
from lorikeet.serve.errors import ApiError


class Choice:
    """One reply to a request, as it comes."""

    def __init__(self, asked: Asked, index: int, reader: CallReader | None):
        self.asked, self.index, self.reader = asked, index, reader
        self.text: list[str] = []
        self.calls: list[dict[str, str]] = []  # id, name, arguments
        self.logprobs: list[TokenLogprob] = []
        self.tokens = self.reused = 0
        self.characters = 0  # before the tokens whose places are not told yet
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self.finish: str | None = None
        self.full = False  # nothing more is wanted of it

    def take(self, event: Event) -> list[dict[str, Any]]:
        """What the event adds, as deltas of a chat's message. Raises ApiError where the server ended the reply."""
        if not self.full:
            self.tokens, self.reused = max(self.tokens, event.tokens), max(self.reused, event.reused)
            self.logprobs += self.told(event)
        elif event.reason is None:
            return []
        pieces: list[Said | Called] = []
        if not self.full:
            pieces = [Said(event.text)] if self.reader is None else self.reader.feed(event.text)
        if event.reason is not None:
            pieces += self.reader.end() if self.reader is not None and not self.full else []
        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            deltas += self._said(piece.text) if isinstance(piece, Said) else self._called(piece)
            if self.full:
                break
        if event.reason == "cancelled" and not self.full:
            raise ApiError("the server stopped before the reply was whole", status=503, code="stopped")
        if event.reason is not None:
            self.finish = self._reason(event.reason)
        return deltas

    def told(self, event: Event) -> list[TokenLogprob]:
        """The event's tokens, where they are wanted; the first of a prompt that comes back has no probability (not a
        number)."""
        if self.full or not self.asked.logprobs:
            return []
        if not self.asked.echo or event.tokens or len(event.ids) != len(event.logprobs) + 1:
            return list(event.logprobs)
        text = event.text.encode()
        raw = text[: max(0, len(text) - sum(len(token.raw) for token in event.logprobs))]
        first = TokenLogprob(event.ids[0], raw.decode(errors="backslashreplace"), math.nan, (), raw)
        return [first, *event.logprobs]

    def offsets(self, tokens: Sequence[TokenLogprob]) -> list[int]:
        """Where in the text each token begins, in characters: those that follow the ones asked about before."""
        found = []
        for token in tokens:
            found.append(self.characters)
            self.characters += len(self._decoder.decode(token.raw))
        return found

    def _reason(self, reason: str) -> str:
        if self.calls and (self.full or reason != "length"):
            return "function_call" if self.asked.old_calls else "tool_calls"
        if self.asked.first_only:
            return "length"
        return "stop" if reason == "cancelled" else reason

    def _said(self, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        self.text.append(text)
        return [{"content": text}]

    def _called(self, piece: Called) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if piece.name is not None:
            self.calls.append({"id": f"call_{secrets.token_hex(12)}", "name": piece.name, "arguments": ""})
            deltas.append(self._delta(piece.index, {"name": piece.name, "arguments": ""}, self.calls[-1]["id"]))
        if piece.arguments:
            self.calls[piece.index]["arguments"] += piece.arguments
            deltas.append(self._delta(piece.index, {"arguments": piece.arguments}))
        self.full |= piece.done and self.asked.one_call
        return deltas

    def _delta(self, index: int, function: dict[str, str], identity: str | None = None) -> dict[str, Any]:
        if self.asked.old_calls:
            return {"function_call": function}
        named = {"id": identity, "type": "function"} if identity else {}
        return {"tool_calls": [{"index": index, **named, "function": function}]}

    def message(self) -> dict[str, Any]:
        """The whole message of a chat."""
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not self.calls else None}
        message["refusal"] = None
        told = [{"name": call["name"], "arguments": call["arguments"]} for call in self.calls]
        if told and self.asked.old_calls:
            message["function_call"] = told[0]
        elif told:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": one} for call, one in zip(self.calls, told)
            ]
        return message


def choices(asked: Asked) -> list[Choice]:
    """One for each request of the engine."""
    return [Choice(asked, index, reader) for index, reader in enumerate(asked.readers)]


def usage(asked: Asked, replies: Sequence[Choice]) -> dict[str, Any]:
    """Counts of tokens; a prompt counts once, however many replies it has."""
    said = sum(choice.tokens for choice in replies)
    cached = sum(choice.reused for choice in replies[:: asked.per_prompt])
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": asked.prompt_tokens + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chat_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """As chat completions write them."""

    def one(token: TokenLogprob) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}

    content = [{**one(token), "top_logprobs": [one(other) for other in token.top]} for token in found]
    return {"content": content, "refusal": None}


def old_logprobs(found: Sequence[TokenLogprob], choice: Choice) -> dict[str, Any]:
    """As completions write them."""
    return {
        "tokens": [token.text for token in found],
        "token_logprobs": [None if math.isnan(token.logprob) else token.logprob for token in found],
        "top_logprobs": [{other.text: other.logprob for other in token.top} or None for token in found],
        "text_offset": choice.offsets(found),
    }


def frame(asked: Asked, kind: str, listed: list[dict[str, Any]]) -> dict[str, Any]:
    """An object of the API around choices."""
    return {"id": asked.id, "object": kind, "created": asked.created, "model": asked.model, "choices": listed}


def whole_chat(asked: Asked, replies: Sequence[Choice]) -> dict[str, Any]:
    """The response to a chat request that does not stream."""
    listed = [
        {
            "index": choice.index,
            "message": choice.message(),
            "logprobs": chat_logprobs(choice.logprobs) if asked.logprobs else None,
            "finish_reason": choice.finish,
        }
        for choice in replies
    ]
    return frame(asked, "chat.completion", listed) | {"usage": usage(asked, replies)}


def whole_completion(asked: Asked, replies: Sequence[Choice]) -> dict[str, Any]:
    """The response to a completion that does not stream."""
    listed = [
        {
            "index": choice.index,
            "text": "".join(choice.text),
            "logprobs": old_logprobs(choice.logprobs, choice) if asked.logprobs else None,
            "finish_reason": choice.finish,
        }
        for choice in replies
    ]
    return frame(asked, "text_completion", listed) | {"usage": usage(asked, replies)}


def chat_pieces(asked: Asked, choice: Choice, event: Event, *, first: bool) -> list[dict[str, Any]]:
    """The pieces of a streamed chat that an event makes."""
    tokens = choice.told(event)
    deltas = choice.take(event)
    begin: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
    told = chat_logprobs(tokens) if tokens else None
    listed = [_piece(choice, {"delta": delta}) for delta in [*begin, *deltas]]
    if told is not None:
        if not deltas:
            listed.append(_piece(choice, {"delta": {}}))
        listed[-1]["logprobs"] = told
    if choice.finish is not None:
        listed.append(_piece(choice, {"delta": {}}) | {"finish_reason": choice.finish})
    return [_streamed(asked, "chat.completion.chunk", [one]) for one in listed]


def completion_pieces(asked: Asked, choice: Choice, event: Event) -> list[dict[str, Any]]:
    """The pieces of a streamed completion that an event makes."""
    tokens = choice.told(event)
    text = "".join(delta["content"] for delta in choice.take(event))
    told = old_logprobs(tokens, choice) if tokens else None
    if not text and told is None and choice.finish is None:
        return []
    one = _piece(choice, {"text": text}) | {"logprobs": told, "finish_reason": choice.finish}
    return [_streamed(asked, "text_completion", [one])]


def _piece(choice: Choice, said: dict[str, Any]) -> dict[str, Any]:
    return {"index": choice.index, **said, "logprobs": None, "finish_reason": None}


def _streamed(asked: Asked, kind: str, listed: list[dict[str, Any]]) -> dict[str, Any]:
    return frame(asked, kind, listed) | ({"usage": None} if asked.usage else {})


def last_piece(asked: Asked, replies: Sequence[Choice], kind: str) -> dict[str, Any]:
    """What ends a stream whose reader asked for counts."""
    return frame(asked, kind, []) | {"usage": usage(asked, replies)}
