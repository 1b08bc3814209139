"""Replies stop where they should, come out in whole characters, and do not depend on who else is in the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.conftest import END, ByteTokenizer, Echo, LineTemplate, ids
from lorikeet.base.errors import LorikeetError, ModelError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer.engine import Engine, Event, Request
from lorikeet.infer.reply import Reply
from lorikeet.infer.sampling import GenerateOptions

# long enough that only the window is decoded again; emoji of several code points; half of the bytes are not ASCII
EMOJI = "Grüße aus 東京 🗼, 👩‍👩‍👧‍👦 und 🇩🇪! " * 4


def say(engine: Engine, text: str, **options: object) -> list[Event]:
    return list(engine.generate([Request(0, ids(text), GenerateOptions(**options))]))


def joined(events: list[Event]) -> str:
    assert [event.reason is None for event in events] == [True] * (len(events) - 1) + [False]
    return "".join(event.text for event in events)


def test_a_reply_streams_in_whole_characters_and_joins_to_the_full_text(echo: Engine) -> None:
    events = say(echo, EMOJI + "<end>", max_new_tokens=1000)
    assert joined(events) == EMOJI and events[-1].reason == "stop"
    assert all("\ufffd" not in event.text for event in events)
    assert len(events) > 60  # it really came out piece by piece
    assert events[-1].tokens == len(EMOJI.encode())


@given(st.text(min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_joins(text: str) -> None:
    echo = Engine(Echo(), ByteTokenizer(), LineTemplate())
    text = text.encode(errors="replace").decode()
    assert joined(say(echo, text + "<end>", max_new_tokens=400)) == text


def test_bytes_that_never_become_a_character_come_out_at_the_end(echo: Engine) -> None:
    prompt = [*b"ab", 0xF0, 0x9F, END]
    events = list(echo.generate([Request(0, prompt, GenerateOptions())]))
    assert joined(events) == bytes(prompt[:4]).decode(errors="replace")


@pytest.mark.parametrize("stop", [["\n\n"], ["STOP", "\n\n"], ["\n\nQ"], ["never", "\n\nQ: "]])
def test_a_reply_ends_before_a_stop_string_that_spans_tokens(echo: Engine, stop: list[str]) -> None:
    events = say(echo, "one\ntwo SO\n\nQ: more STOP<end>", stop=stop)
    assert joined(events) == "one\ntwo SO" and events[-1].reason == "stop"
    # what could have become the stop string was held back, what could not was said at once
    assert joined(say(echo, "S ST STO end\n<end>", stop=["STOP", "\n\n"])) == "S ST STO end\n"


@given(st.text("ab\n", min_size=1, max_size=40), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@settings(max_examples=80, deadline=None)
def test_any_stop_strings_cut_at_the_first_that_completes(text: str, stops: list[str]) -> None:
    echo = Engine(Echo(), ByteTokenizer(), LineTemplate())
    expected = text
    for end in range(1, len(text) + 1):  # as it is made, token by token
        cuts = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if cuts:
            expected = text[: min(cuts)]
            break
    assert joined(say(echo, text + "<end>", stop=stops)) == expected


def test_a_template_s_own_stop_string_ends_a_reply(echo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineTemplate, "stop_strings", ("</s>",))
    assert joined(say(echo, "hello</s>more<end>")) == "hello"


def test_max_new_tokens_cuts_and_says_so(echo: Engine) -> None:
    events = say(echo, "abcdefgh<end>", max_new_tokens=3)
    assert joined(events) == "abc" and events[-1].reason == "length" and events[-1].tokens == 3
    assert joined(say(echo, "abc<end>", max_new_tokens=3)) == "abc"


def test_a_reply_ends_with_the_model_s_context() -> None:
    echo = Engine(Echo(max_position=12), ByteTokenizer(), LineTemplate())
    events = say(echo, "abcdefgh", max_new_tokens=100)
    assert joined(events) == "abcd" and events[-1].reason == "length"


def test_a_prompt_without_room_for_an_answer_is_refused(engine: Engine) -> None:
    with pytest.raises(ModelError, match="context of 96 tokens") as error:
        say(engine, "x" * 96)
    assert "96 tokens" in str(error.value)
    assert len(joined(say(engine, "x" * 95))) == 1
    with pytest.raises(LorikeetError, match="empty prompt"):
        say(engine, "")


def test_replies_of_unlike_length_leave_the_batch_as_they_end(echo: Engine) -> None:
    texts = ["a", "long one here", "", "middle", "four"]
    requests = [Request(i, ids(f"{text}<end>"), GenerateOptions(batch_size=3)) for i, text in enumerate(texts)]
    events = list(echo.generate(requests))
    said = ["".join(event.text for event in events if event.name == i) for i in range(len(texts))]
    assert said == texts
    assert sorted(event.name for event in events if event.reason) == list(range(len(texts)))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.3, "seed": 4}])
def test_a_reply_does_not_depend_on_its_batch_mates(engine: Engine, sampling: dict) -> None:
    """In float32 another batch rounds otherwise; the seeds of the draws do not know of it."""
    engine.model = engine.model.double()
    prompts = ["a", "bcd", "the quick brown fox", "x" * 40, "é"]

    def replies(batch_size: int, chosen: list[int]) -> dict[int, str]:
        options = GenerateOptions(max_new_tokens=12, batch_size=batch_size, **sampling)
        found: dict[int, str] = {}
        for event in engine.generate([Request(i, ids(prompts[i]), options) for i in chosen]):
            found[event.name] = found.get(event.name, "") + event.text
        return found

    together = replies(5, [0, 1, 2, 3, 4])
    assert replies(1, [0, 1, 2, 3, 4]) == together == replies(2, [3, 1, 4, 0, 2])
    assert replies(5, [2])[2] == together[2]


def test_greedy_equals_taking_the_most_likely_token_of_the_full_forward(engine: Engine) -> None:
    from lorikeet.ops.attention import PackedView

    engine.model, text = engine.model.double(), ids("hello")
    (request,) = [Request(0, text, GenerateOptions(max_new_tokens=20))]
    expected = list(text)
    with torch.no_grad():
        while len(expected) < len(text) + 20:
            row, positions = torch.tensor(expected), torch.arange(len(expected))
            view = PackedView(torch.full((len(row),), len(row), dtype=torch.int32), positions)
            token = int(engine.model.head.logits(engine.model.hidden(row, positions, view)[-1:]).argmax())
            if token == END:
                break
            expected.append(token)
    events = list(engine.generate([request]))
    assert joined(events) == ByteTokenizer().decode(expected[len(text) :])


def test_replies_come_with_their_index_text_and_reason(echo: Engine) -> None:
    asked = [Conversation((Message("user", word),)) for word in ("hi", "there you")]
    assert echo.prompt(asked[0]) == ids("user: hi\nassistant:")
    found = {index: (text, reason) for index, text, reason in echo.replies(asked, GenerateOptions(max_new_tokens=8))}
    assert found == {0: ("user: hi", "length"), 1: ("user: th", "length")}


def test_generation_leaves_no_gradient_and_no_mode_behind(engine: Engine) -> None:
    events = engine.generate([Request(0, ids("a"), GenerateOptions(max_new_tokens=4))])
    next(events)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    events.close()  # a reply that is stopped on the way
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_reply_ends_at_any_token_that_the_model_ends_replies_with(echo: Engine) -> None:
    """An instruct model's own end, which a template of plain text does not name."""
    tokenizer = ByteTokenizer()
    tokenizer.eos_ids = (END, 65)  # type: ignore[misc]
    also = Engine(echo.model, tokenizer, echo.template)
    assert also.stop_ids == (*echo.template.stop_ids, 65)
    assert also.generation_config()["eos_token_id"] == list(also.stop_ids)
    reply = Reply(Request(0, [1], GenerateOptions()), 8, tokenizer, echo.template, also.stop_ids)
    reply.add(66)
    assert reply.reason is None
    reply.add(65)
    assert reply.reason == "stop" and reply.ids == [66]
