"""Beam search finds transformers' reply, id for id, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infer.conftest import LineTemplate
from lorikeet import api
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions

transformers = pytest.importorskip("transformers")
PROMPTS = ["Name a colour.", "What is the capital of France?", "Sort 3 1 2", "user"]
NEW = 10
SETTINGS: dict[str, dict[str, Any]] = {
    "4 beams": {"num_beams": 4},
    "2 beams": {"num_beams": 2},
    "long replies": {"num_beams": 4, "length_penalty": 2.0},
    "short replies": {"num_beams": 4, "length_penalty": -1.0},
    "the first that end": {"num_beams": 4, "early_stopping": True},
    "never early": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
    "canonical": {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.0},
    "penalties": {"num_beams": 4, "repetition_penalty": 1.4, "logit_bias": {70: 4.0, 80: -9.0}},
}


@pytest.fixture(scope="module")
def ours(tiny_model: Path) -> Engine:
    return api.engine(tiny_model, {"dtype": "float32"})


@pytest.fixture(scope="module")
def theirs(tiny_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def expected(theirs: Any, prompt: list[int], ends: list[int], options: GenerateOptions) -> list[int]:
    """The reply of transformers' generate, without what ends it."""
    bias = {(id,): value for id, value in options.logit_bias.items()}
    ids = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), do_sample=False,
        num_beams=options.num_beams, length_penalty=options.length_penalty, early_stopping=options.early_stopping,
        repetition_penalty=options.repetition_penalty, sequence_bias=bias or None, max_new_tokens=NEW,
        eos_token_id=ends, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return ids[: next((i for i, id in enumerate(ids) if id in ends), len(ids))]


USUAL = ("4 beams", "never early", "penalties")  # the others take as long again


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_the_beam_search_s_reply_equals_transformers(name: str, ours: Engine, theirs: Any) -> None:
    """With one end that never comes, and with many that come early and late."""
    options = GenerateOptions(max_new_tokens=NEW, **SETTINGS[name])
    asked = [ours.tokenizer.encode(text)[0] for text in PROMPTS]
    lengths: set[int] = set()
    for ends in (list(ours.stop_ids), list(range(100, 130))):
        engine = Engine(ours.model, ours.tokenizer, LineTemplate())
        engine.stop_ids = tuple(ends)
        events = list(engine.generate([Request(i, prompt, options) for i, prompt in enumerate(asked)]))
        assert sorted(event.name for event in events) == list(range(len(asked)))  # one event each, with all of it
        for event in events:
            found = expected(theirs, asked[event.name], ends, options)
            assert list(event.ids) == found, (PROMPTS[event.name], ends)
            assert event.text == ours.tokenizer.decode(found) and event.tokens == len(found)
            assert event.reason == ("length" if len(found) == NEW else "stop")
            lengths.add(len(found))
    assert len(lengths) > 1 or name in ("long replies", "penalties")
