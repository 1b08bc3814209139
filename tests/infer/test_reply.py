"""A reply ends where it should, however its text is cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.conftest import LineTemplate
from lorikeet.infer.reply import Reply, Request
from lorikeet.infer.sampling import GenerateOptions


class Pieces:
    """A tokenizer whose token i is the i-th piece of a text, cut anywhere."""

    vocab_size, control, fingerprint, eos_ids = 1000, {"<end>": 999}, "pieces", (999,)

    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = pieces

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


def made(pieces: Sequence[bytes], **options: Any) -> tuple[list[str], Reply]:
    """What is said with each token, and the reply."""
    tokenizer: Any = Pieces(pieces)
    reply = Reply(Request(0, [1], GenerateOptions(**options)), 500, tokenizer, LineTemplate(), (999,))  # type: ignore[arg-type]
    said = []
    for token in [*range(len(pieces)), 999]:
        reply.add(token)
        said.append("".join(event.text for event in reply.events()))
        if reply.reason is not None:
            break
    return said, reply


def cut(text: bytes, places: Sequence[int]) -> list[bytes]:
    """The text in pieces that end at the places; some may be empty."""
    ends = [*sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in zip([0, *ends], ends)]


ALPHABET = "ab\nö東"
TEXT, STOPS = st.text(ALPHABET, max_size=50), st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=3)


@given(TEXT, STOPS, st.lists(st.integers(0, 1 << 20), max_size=30))
@settings(max_examples=300, deadline=None)
def test_stop_strings_are_found_across_any_token_borders(text: str, stops: list[str], places: list[int]) -> None:
    pieces = cut(text.encode(), places)
    said, reply = made(pieces, stop=stops)
    expected, reads = text, b""
    for piece in pieces:  # the first token that completes a stop string, and the first place where one stands then
        reads += piece
        seen = reads.decode(errors="replace")
        starts = [seen.find(stop) for stop in stops if stop in seen]
        if starts:
            expected = seen[: min(starts)]
            break
    assert "".join(said) == expected
    assert reply.reason == "stop"
    assert not any("\ufffd" in one for one in said)


@given(TEXT, STOPS, st.lists(st.integers(0, 1 << 20), max_size=30))
@settings(max_examples=200, deadline=None)
def test_what_was_said_is_never_taken_back(text: str, stops: list[str], places: list[int]) -> None:
    """And what can no longer become a stop string is said at once."""
    said, reply = made(cut(text.encode(), places), stop=stops)
    whole = "".join(said)
    assert not any(stop in whole for stop in stops)
    if reply.reason == "stop" and not stops:
        assert whole == text
    pieces, seen = cut(text.encode(), places), b""
    for i in range(len(said) - 1):
        seen += pieces[i]
        settled = seen.decode(errors="ignore")
        held = max((size for stop in stops for size in range(1, len(stop)) if settled.endswith(stop[:size])), default=0)
        assert "".join(said[: i + 1]) == settled[: len(settled) - held]


def test_a_fork_says_other_things() -> None:
    tokenizer: Any = Pieces([b"a", b"b", b"c"])
    first = Reply(Request(0, [1], GenerateOptions()), 500, tokenizer, LineTemplate(), (999,))  # type: ignore[arg-type]
    first.add(0)
    second = first.fork()
    second.add(1)
    first.add(2)
    assert first.ids == [0, 2] and second.ids == [0, 1]
    assert ["".join(event.text for event in reply.events()) for reply in (first, second)] == ["ac", "ab"]


@pytest.mark.parametrize(("token", "reason"), [(0, None), (999, "stop")])
def test_an_end_token_is_no_part_of_the_reply(token: int, reason: str | None) -> None:
    tokenizer: Any = Pieces([b"a"])
    reply = Reply(Request(0, [1], GenerateOptions()), 5, tokenizer, LineTemplate(), (999,))  # type: ignore[arg-type]
    reply.add(token)
    assert (reply.reason, reply.ids) == (reason, [] if token == 999 else [0])
