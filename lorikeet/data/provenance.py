"""Which characters of which message each token of a layout spells.

A template's segments say which message they belong to, not which of its characters they show: a template may strip a
text, cut a thought off it, quote it as JSON, or write words of its own around it. So each message's segments are laid
on its content again, in order and the longest first, and every match is exact: where a range of characters is named,
these characters are what the tokens spell. What is not found is the template's own text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode_text, runs
from lorikeet.data.layout import Layout
from lorikeet.data.templates._contract import Part, Segment
from lorikeet.data.templates._environment import to_json
from lorikeet.tokens._contract import Tokenizer

Range = tuple[int, int, int]  # (message, first character, one past the last)
_NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Spelled:
    """One token. `message` and `part` are of the segment it begins in; `ranges` are empty for the template's text."""

    token: int
    message: int | None
    part: Part
    ranges: tuple[Range, ...] = ()


def spelled(
    layout: Layout, tokenizer: Tokenizer, source: Conversation, numbers: Sequence[int] | None = None
) -> list[Spelled]:
    """Each token of the layout's encoding, with the characters of `source`'s messages that it spells.

    `numbers`: which messages of `source` the layout's are, where they are not its first ones; one may have lost its
    beginning."""
    segments = layout.segments
    numbers = range(len(layout.conversation.messages)) if numbers is None else numbers
    places = _places(layout, source, numbers)
    found: list[Spelled] = []
    for run in runs(segments, tokenizer):
        first = segments[run.numbers[0]]
        message = None if first.message is None else numbers[first.message]
        if first.control:
            found.append(Spelled(tokenizer.control[first.text], message, first.part))
            continue
        ids, offsets = encode_text(segments, run, tokenizer)
        found += _of_run([(segments[number], places[number]) for number in run.numbers], numbers, ids, offsets)
    return found


def _of_run(
    parts: list[tuple[Segment, np.ndarray]],
    numbers: Sequence[int],
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> list[Spelled]:
    """The tokens of segments that were encoded as one text; with each segment, where its characters stand."""
    owners = np.repeat(np.arange(len(parts)), [len(segment.text) for segment, _ in parts]).tolist()
    places = np.concatenate([place for _, place in parts]).tolist() if parts else []
    messages = [None if segment.message is None else numbers[segment.message] for segment, _ in parts]
    found = []
    for token, (start, end) in zip(ids, offsets):
        owner = owners[min(start, len(owners) - 1)]
        ranges: list[Range] = []
        for index in range(start, end):
            place, message = places[index], messages[owners[index]]
            if place == _NOWHERE or message is None:
                continue
            if ranges and ranges[-1][0] == message and ranges[-1][2] in (place, place + 1):
                ranges[-1] = (message, ranges[-1][1], place + 1)
            else:
                ranges.append((message, place, place + 1))
        if ranges:  # a token that begins in the template's words and ends in a message's is the message's
            owner = next(owners[index] for index in range(start, end) if places[index] != _NOWHERE)
        found.append(Spelled(token, messages[owner], parts[owner][0].part, tuple(ranges)))
    return found


def _places(layout: Layout, source: Conversation, numbers: Sequence[int]) -> list[np.ndarray]:
    """For each segment [characters] int64: which character of its message in `source` each one is, or -1."""
    places = [np.full(len(segment.text), _NOWHERE, np.int64) for segment in layout.segments]
    of_message: dict[int, list[int]] = {}
    for number, segment in enumerate(layout.segments):
        if segment.message is not None and not segment.control and segment.text:
            of_message.setdefault(segment.message, []).append(number)
    for message, owned in of_message.items():
        content = layout.conversation.messages[message].content
        origin = kept_characters(source.messages[numbers[message]], content)
        texts = [layout.segments[number].text for number in owned]
        for number, place in zip(owned, align(content, texts)):
            known = place != _NOWHERE
            places[number][known] = origin[place[known]]
    return places


def kept_characters(message: Message, kept: str) -> np.ndarray:
    """[len(kept)] int64: which characters of the message's content are `kept`, which data/truncate.py made of it: the
    content without its start, or, of a question with an input, without the input's start, or of the rest the end."""
    whole, context = message.content, message.context or ""
    before = whole.removesuffix(context)
    if context and before and kept.startswith(before):
        rest = len(whole) - (len(kept) - len(before))
        ranges = np.arange(len(before)), np.arange(rest, len(whole))
    else:
        end = len(before.rstrip("\n")) if context and before else len(whole)
        ranges = np.arange(0), np.arange(end - len(kept), end)
    places = np.concatenate(ranges)
    assert "".join(whole[place] for place in places) == kept, "a shortened message is a part of the whole one"
    return places


def align(content: str, texts: Sequence[str]) -> list[np.ndarray]:
    """For each text [characters] int64: where in `content` its characters stand, in order, or -1."""
    places = [np.full(len(text), _NOWHERE, np.int64) for text in texts]
    _align(content, texts, places, range(len(texts)), 0, len(content))
    return places


def _align(content: str, texts: Sequence[str], places: list[np.ndarray], which: range, low: int, high: int) -> None:
    """Lay the texts `which` on content[low:high]; the longest that fits cuts the rest in two."""
    for number in sorted(which, key=lambda number: -len(texts[number])):
        for place in _ways(texts[number], content, low, high):
            known = place[place != _NOWHERE]
            places[number] = place
            _align(content, texts, places, range(which.start, number), low, int(known[0]))
            _align(content, texts, places, range(number + 1, which.stop), int(known[-1]) + 1, high)
            return


def _ways(text: str, content: str, low: int, high: int) -> list[np.ndarray]:
    """Where `text` stands in content[low:high]: as it is, quoted as JSON, or without the spaces around it."""
    if not text.strip():  # spaces are found everywhere: only where nothing else is left are they these
        return [np.arange(low, high)] if text and text == content[low:high] else []
    at = content.find(text, low, high)
    if at >= 0:
        return [np.arange(at, at + len(text))]
    bare = text.strip()
    at = content.find(bare, low, high)
    if at >= 0:
        before = len(text) - len(text.lstrip())
        place = np.full(len(text), _NOWHERE, np.int64)
        place[before : before + len(bare)] = np.arange(at, at + len(bare))
        return [place]
    return _quoted(text, content, low, high)


def _quoted(text: str, content: str, low: int, high: int) -> list[np.ndarray]:
    quoted = [to_json(character)[1:-1] for character in content[low:high]]
    starts = np.cumsum([0, *map(len, quoted)])
    at = "".join(quoted).find(text)
    if at < 0:
        return []
    characters = np.repeat(np.arange(low, high), [len(one) for one in quoted])
    return [characters[at : at + len(text)]] if at in starts else []
