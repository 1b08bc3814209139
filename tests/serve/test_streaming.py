"""Responses whose reader goes, and pieces of streams put together from events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from lorikeet.infer.logprobs import TokenLogprob
from lorikeet.infer.reply import Event
from lorikeet.serve import replying, simple_api
from lorikeet.serve.asking import Asked
from lorikeet.serve.errors import ApiError
from lorikeet.serve.streaming import Streamed


def test_a_reader_that_goes_before_the_first_piece_closes_the_stream() -> None:
    closed: list[bool] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"x"

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def never(_: Any) -> None:
        await asyncio.Event().wait()  # the connection takes nothing more

    response = Streamed(pieces(), "text/plain", lambda: closed.append(True))
    asyncio.run(response({"type": "http"}, gone, never))
    assert closed == [True]


HALVES = [TokenLogprob(1, "\\xc3", -1.0, (), b"\xc3"), TokenLogprob(2, "\\xa9", -1.0, (), b"\xa9")]
LAST = TokenLogprob(3, "x", -1.0, (), b"x")


def asked() -> Asked:
    return Asked("cmpl-1", "tiny", [], [None], logprobs=True)


def test_offsets_of_tokens_count_a_character_that_is_split_once() -> None:
    events = [Event(0, "", None, 1, (1,), (HALVES[0],)), Event(0, "é", None, 2, (2,), (HALVES[1],)),
              Event(0, "x", "stop", 3, (3,), (LAST,))]  # fmt: skip
    (choice,) = replying.choices(asked())
    pieces = [piece for event in events for piece in replying.completion_pieces(choice.asked, choice, event)]
    offsets = [offset for piece in pieces for offset in piece["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 0, 1]
    (choice,) = replying.choices(asked())
    for event in events:
        choice.take(event)
    assert replying.whole_completion(choice.asked, [choice])["choices"][0]["logprobs"]["text_offset"] == offsets


def test_all_pieces_of_a_stream_were_made_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    one = asked()
    (choice,) = replying.choices(one)
    first = replying.completion_pieces(one, choice, Event(0, "a", None, 1))
    monkeypatch.setattr("time.time", lambda: 5.0)
    last = replying.completion_pieces(one, choice, Event(0, "b", "stop", 2))
    assert first[0]["created"] == last[0]["created"] > 5


def test_a_plain_reply_that_the_server_ends_is_no_reply() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        yield Event(0, "half", None, 1)
        yield Event(0, "", "cancelled", 1)

    async def texts() -> list[str]:
        return [text async for text in simple_api.texts(events())]

    with pytest.raises(ApiError, match="before the reply was whole"):
        asyncio.run(texts())


@pytest.mark.parametrize("reason", ["cancelled", "stop", "length"])
def test_an_echo_alone_ends_for_its_length_whoever_is_first(reason: Any) -> None:
    one = Asked("cmpl-1", "tiny", [], [None], echo=True, first_only=True)
    (choice,) = replying.choices(one)
    choice.take(Event(0, "the prompt"))
    choice.full = True
    choice.take(Event(0, "", reason, 1))
    assert (choice.finish, choice.tokens, "".join(choice.text)) == ("length", 0, "the prompt")
