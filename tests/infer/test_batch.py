"""Requests come, are cancelled and go between passes, and each reply is the one it would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from infer.conftest import END, VOCAB, ByteTokenizer, LineTemplate, ids
from lorikeet.base.errors import LorikeetError
from lorikeet.infer.batch import Batch
from lorikeet.infer.engine import Engine, Event, Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import PAGE
from parity import tiny


def network(dtype: torch.dtype = torch.float64, **options: Any) -> Engine:
    model = tiny.decoder(3, vocab=VOCAB, dtype=dtype, max_position=400, **options)
    return Engine(model, ByteTokenizer(), LineTemplate())


def options(**more: Any) -> GenerateOptions:
    return GenerateOptions(**{"max_new_tokens": 8} | more)


def drain(batch: Batch, before: Sequence[Event] = ()) -> dict[Any, list[Event]]:
    events = list(before)
    while batch.busy:
        events += batch.step()
    found: dict[Any, list[Event]] = {}
    for event in events:
        found.setdefault(event.name, []).append(event)
    return found


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def alone(engine: Engine, prompt: list[int], **more: Any) -> str:
    return text_of(list(engine.generate([Request(0, prompt, options(**more))])))


def random_prompt(rng: np.random.Generator, size: int) -> list[int]:
    return rng.integers(32, 127, size).tolist()


class Counted:
    """How many tokens each pass computed."""

    def __init__(self, model: CausalLM):
        self.passes: list[int] = []
        model.surround(self)

    def __call__(self, hidden: Any, tokens: torch.Tensor, positions: torch.Tensor, view: Any) -> torch.Tensor:
        self.passes.append(len(tokens))
        return hidden(tokens, positions, view)


def test_replies_equal_those_alone_whoever_comes_and_goes() -> None:
    engine, rng = network(), np.random.default_rng(0)
    prompts = {i: random_prompt(rng, int(rng.integers(1, 90))) for i in range(9)}
    expected = {i: alone(engine, prompt) for i, prompt in prompts.items()}
    batch, found = Batch(engine, rows=3, prefill_tokens=64), dict[int, str]()
    waiting = list(prompts)
    while batch.busy or waiting:
        if waiting and rng.random() < 0.4:
            batch.add(Request(waiting[0], prompts[waiting.pop(0)], options()))
        for event in batch.step():
            found[event.name] = found.get(event.name, "") + event.text
    assert found == expected
    assert batch.prompt_tokens == sum(map(len, prompts.values())) and batch.free == 3
    assert batch.step() == []
    batch.close()


def test_events_say_ids_counts_and_why_a_reply_ended(echo: Engine) -> None:
    batch = Batch(echo, rows=2)
    batch.add(Request("a", ids("hey<end>"), options()))
    batch.add(Request("b", ids("long enough"), options(max_new_tokens=4)))
    found = drain(batch)
    assert [event.reason for event in found["a"]][-1] == "stop" and text_of(found["a"]) == "hey"
    assert [i for event in found["a"] for i in event.ids] == list(b"hey") and found["a"][-1].tokens == 3
    assert found["b"][-1].reason == "length" and [i for event in found["b"] for i in event.ids] == list(b"long")
    batch.close()


def test_a_cancelled_request_frees_its_row_and_the_others_go_on(echo: Engine) -> None:
    batch = Batch(echo, rows=2)
    for name in "abc":
        batch.add(Request(name, ids(f"{name} says more<end>"), options(max_new_tokens=50)))
    events = [event for _ in range(3) for event in batch.step()]
    assert {event.name for event in events} == {"a", "b"} and batch.free == 0
    batch.cancel("a")
    batch.cancel("nobody")
    assert batch.free == 1
    found = drain(batch)
    assert [(event.text, event.reason) for event in found["a"]] == [("", "cancelled")]
    assert text_of([*(e for e in events if e.name == "b"), *found["b"]]) == "b says more"
    assert text_of(found["c"]) == "c says more"
    batch.add(Request("d", ids("d"), options()))
    batch.cancel("d")  # before it had a row
    assert [event.reason for event in batch.step()] == ["cancelled"] and not batch.busy
    batch.close()


def test_a_long_prompt_does_not_stall_the_replies_that_run() -> None:
    engine, rng = network(), np.random.default_rng(1)
    counted = Counted(engine.model)
    batch = Batch(engine, rows=3, prefill_tokens=8 * PAGE)
    batch.add(Request(0, random_prompt(rng, 5), options(max_new_tokens=60)))
    batch.step()
    batch.add(Request(1, random_prompt(rng, 300), options()))
    seen, begun, counted.passes = 0, False, []
    while not begun:
        events = batch.step()
        seen += sum(event.name == 0 for event in events)
        begun = any(event.name == 1 for event in events)
    assert max(counted.passes) <= 2 * PAGE and sum(size > 1 for size in counted.passes) >= 8
    assert seen >= 6, "a token between each two pieces of the prompt, but where half a character waits"
    batch.close()


def test_what_requests_have_in_common_is_computed_once() -> None:
    engine, rng = network(), np.random.default_rng(2)
    counted, start = Counted(engine.model), random_prompt(rng, 3 * PAGE + 4)
    batch = Batch(engine, rows=2)
    batch.add(Request(0, start, options()))
    first = drain(batch)[0]
    counted.passes.clear()
    batch.add(Request(1, [*start, 65, 66], options()))
    batch.add(Request(2, start, options()))
    found = drain(batch)
    assert counted.passes[0] <= 2 * (4 + 2)
    assert text_of(found[2]) == text_of(first) and text_of(found[1]) == alone(engine, [*start, 65, 66])
    assert (found[1][0].reused, first[0].reused) == (3 * PAGE, 0) and batch.reused_tokens == 6 * PAGE
    # a conversation goes on: of the reply too nothing is computed again
    reply = [i for event in found[2] for i in event.ids]
    batch.add(Request(3, [*start, *reply, *random_prompt(rng, 40)], options()))
    assert drain(batch)[3][0].reused >= 3 * PAGE
    batch.close()


def test_a_cache_that_is_full_makes_requests_wait_and_forgets_what_is_oldest() -> None:
    engine, rng = network(), np.random.default_rng(3)
    prompts = [random_prompt(rng, 50) for _ in range(6)]
    batch = Batch(engine, rows=4, cache_tokens=4 * PAGE)
    for i, prompt in enumerate([*prompts, prompts[0]]):
        batch.add(Request(i, prompt, options()))
    first = batch.step()
    assert batch.free == 2, "two texts of two pages each"
    found = drain(batch, first)
    assert {i: text_of(events) for i, events in found.items()} == {
        i: alone(engine, prompt) for i, prompt in enumerate([*prompts, prompts[0]])
    }
    assert found[6][0].reused == 0, "its pages were needed by others"
    with pytest.raises(LorikeetError, match="no room for a reply in the cache"):
        batch.add(Request(9, random_prompt(rng, 4 * PAGE), options()))
    batch.close()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_a_prompt_comes_back_with_its_logprobs(sampling: dict[str, Any]) -> None:
    engine, rng = network(torch.float32), np.random.default_rng(4)
    prompt = random_prompt(rng, 2 * PAGE + 9)
    batch = Batch(engine, rows=1, prefill_tokens=PAGE)
    for name in ("first", "again"):
        batch.add(Request(name, prompt, options(logprobs=2, **sampling), echo=True))
    found = drain(batch)
    first = found["first"][0]
    assert first.text == bytes(prompt).decode() and first.ids == tuple(prompt) and first.reason is None
    with torch.no_grad():
        expected = tiny.one_by_one(engine.model, [tiny.example(prompt)])[0]
        wanted = engine.model.head.logits(expected).log_softmax(-1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])
    torch.testing.assert_close(
        torch.tensor([one.logprob for one in first.logprobs]), wanted[:, 0], rtol=1e-4, atol=1e-4
    )
    assert all(len(one.top) == 2 for one in first.logprobs)
    assert [one.id for one in found["again"][0].logprobs] == prompt[1:]
    assert len([one for event in found["first"][1:] for one in event.logprobs]) == found["first"][-1].tokens
    batch.close()


def test_int8_takes_half_the_memory_and_says_nearly_the_same() -> None:
    engine, rng = network(torch.bfloat16, head_dim=64), np.random.default_rng(5)
    plain, small = Batch(engine, cache_tokens=512), Batch(engine, cache_tokens=512, kv="int8")
    caches = [batch._reading.cache for batch in (plain, small)]
    assert caches[0] is not None and caches[1] is not None
    assert caches[1].nbytes / caches[0].nbytes == (64 + 4) / 128
    plain.close()
    small.close()
    engine = network(torch.float32, head_dim=64)
    prompt = random_prompt(rng, 100)
    logits = {}
    for kv in ("auto", "int8"):
        batch = Batch(engine, kv=kv)  # type: ignore[arg-type]
        text = batch._reading.begin(prompt, 120)
        assert text is not None
        with torch.inference_mode():
            batch._reading.read([text], [100])
            text.ids.append(65)
            logits[kv] = engine.model.head.logits(batch._reading.go_on([text])).log_softmax(-1)
        batch.close()
    difference = (logits["auto"] - logits["int8"]).abs().max()
    assert 0 < difference < 0.1 * logits["auto"].std()


def trials(count: int) -> None:
    """A deterministic request in random companies: the same bits, not only the same text."""
    engine, rng = network(torch.float32, head_dim=32, heads=2, kv_heads=1, width=32), np.random.default_rng(6)
    prompt = random_prompt(rng, 70)
    asked = options(deterministic=True, temperature=1.2, seed=5, logprobs=1, max_new_tokens=12)
    said = set()
    for trial in range(count):
        batch = Batch(engine, rows=4, prefill_tokens=8 * PAGE)
        begin = int(rng.integers(0, 4))
        for i in range(int(rng.integers(0, 6)) if trial else 0):
            other = random_prompt(rng, int(rng.integers(1, 90)))
            other = [*prompt[: int(rng.integers(0, 70))], *other] if rng.random() < 0.5 else other
            batch.add(Request(f"{trial} {i}", other, options(temperature=1.0, seed=i)))
        for _ in range(begin):
            batch.step()
        batch.add(Request(("mine", trial), prompt, asked))
        events = drain(batch)["mine", trial]
        batch.close()
        said.add((text_of(events), tuple(one.logprob for event in events for one in event.logprobs)))
    assert len(said) == 1


def test_a_deterministic_reply_is_the_same_in_any_company() -> None:
    trials(10)


@pytest.mark.slow
def test_a_deterministic_reply_is_the_same_in_fifty_companies() -> None:
    trials(50)


@pytest.mark.parametrize("num_beams", [2, 3])
def test_beams_are_the_same_in_company_and_leave_their_rows(num_beams: int) -> None:
    engine, rng = network(), np.random.default_rng(7)
    prompts = [random_prompt(rng, size) for size in (40, 3, 33)]
    expected = [alone(engine, prompt, num_beams=num_beams, batch_size=num_beams) for prompt in prompts]
    batch = Batch(engine, rows=4, cache_tokens=40 * PAGE)
    for i, prompt in enumerate(prompts):
        batch.add(Request(i, prompt, options(num_beams=num_beams)))
    batch.add(Request("greedy", prompts[0], options()))
    found = drain(batch)
    assert [text_of(found[i]) for i in range(3)] == expected
    assert text_of(found["greedy"]) == alone(engine, prompts[0])
    assert batch.free == 4 and batch._reading._promised == 0
    with pytest.raises(LorikeetError, match="more beams than rows"):
        batch.add(Request(9, prompts[0], options(num_beams=5)))
    batch.close()


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request(1, [], options()), "empty prompt"),
        (Request(1, [1] * 400, options()), "context of 400 tokens"),
        (Request(1, [1], options(), adapter="nobody"), "no adapter of this name"),
        (Request(0, [1], options()), "two requests have one name"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(request_: Request, match: str) -> None:
    batch = Batch(network())
    batch.add(Request(0, [1, 2], options()))
    with pytest.raises(LorikeetError, match=match):
        batch.add(request_)
    assert list(drain(batch)) == [0]
    batch.close()


def test_a_batch_that_nobody_closes_leaves_the_model_as_it_was() -> None:
    engine = network()
    batch = Batch(engine)
    assert all(group.answering is not None for group in engine.model.groups())
    del batch
    assert all(group.answering is None for group in engine.model.groups())


def test_the_usual_cache_holds_a_text_of_any_length() -> None:
    engine = network()
    assert Batch(engine, rows=1).cache_tokens == 400 and Batch(engine, rows=3).cache_tokens == 1200


def test_a_reply_may_be_empty(echo: Engine) -> None:
    batch = Batch(echo)
    batch.add(Request(0, [END], options()))
    assert [(event.text, event.reason) for event in drain(batch)[0]] == [("", "stop")]
