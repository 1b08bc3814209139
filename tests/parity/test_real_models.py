"""Real models, SmolLM2-135M and Gemma 3 270M, in float32: our greedy tokens are transformers', and a network of
transformers' as a source is the native one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.base.nouns import Conversation, Message
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.data.templates.gemma import Gemma
from lorikeet.data.templates.jinja import Jinja
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.load import Choice, load
from lorikeet.quant.none import NoQuant
from lorikeet.tokens.open import open_tokenizer
from parity import tiny

NEW_TOKENS = 24
TIE = 1e-3  # logits nearer than this may round either way: the float32 noise of this model is about 1e-4
QUESTIONS = (
    "What is the capital of France?", "Write a haiku about rain.", "Name three prime numbers.", "Hi!",
    "Explain photosynthesis in one sentence.", "Translate 'good morning' to Spanish.", "What is 12 times 12?",
    "Who wrote Hamlet?", "Give me a recipe for pancakes.", "Why is the sky blue? Answer for a five-year-old, please.",
    "Wie heißt die Hauptstadt von Österreich?", "日本の首都はどこですか?", "Fix this: def f(x) return x+1", "🙂🙃",
)  # fmt: skip
TEXTS = (
    "Once upon a time", "import numpy as np\n\ndef mean(", "The three laws of thermodynamics are", "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\n", "SELECT name, COUNT(*) FROM",
)  # fmt: skip
MODELS = {  # which template asks the questions: Gemma 3 270M is a base model
    "smollm2-135m": Jinja(),
    "gemma3-270m": Gemma(),
}


def our_tokens(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """The ids that the engine picks, all prompts in one batch; the first stop id stands for whichever ended a reply."""
    picked: list[list[int]] = [[] for _ in prompts]
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, batch_size=len(prompts))
    for event in engine.generate([Request(i, prompt, options) for i, prompt in enumerate(prompts)]):
        picked[event.name] += [*event.ids, *engine.stop_ids[: event.reason == "stop"]]
    return picked


def their_tokens(model: Any, prompts: list[list[int]], stop_ids: list[int]) -> list[list[int]]:
    """transformers' greedy generate, one batch padded on the left, up to the token that ends a reply. The
    first stop id stands for whichever that is."""
    longest, pad = max(map(len, prompts)), stop_ids[0]
    rows = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": stop_ids, "pad_token_id": pad}
    found = model.generate(rows, attention_mask=mask, **settings)[:, longest:].tolist()
    ends = [next((i for i, token in enumerate(row) if token in stop_ids), len(row)) for row in found]
    return [row[:end] + stop_ids[: end < len(row)] for row, end in zip(found, ends)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_greedy_tokens_equal_transformers_on_twenty_prompts(name: str, tmp_path: Path) -> None:
    """Where the two part, transformers' own logits of the two tokens must tie within rounding; what follows a tie is
    another text and is not compared. At most one prompt may do so."""
    transformers = pytest.importorskip("transformers")
    path = resolve(name)
    checkpoint = open_checkpoint(path)
    model = load(checkpoint, NoQuant(), dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = open_tokenizer(path, checkpoint)
    template = MODELS[name].bind(tokenizer)
    engine = Engine(model, tokenizer, template)
    prompts = [engine.prompt(Conversation((Message("user", question),))) for question in QUESTIONS]
    begin = [tokenizer.control[tokenizer.bos_token]] if tokenizer.bos_token else []
    prompts += [begin + tokenizer.encode(text)[0] for text in TEXTS]
    assert len(prompts) == 20
    ours = our_tokens(engine, prompts)
    hf.save(tmp_path, model.shape.config | {"dtype": "float32"}, model.tensors())
    theirs_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    del model, engine
    theirs = their_tokens(theirs_model, prompts, list(template.stop_ids))
    ties = 0
    for prompt, left, right in zip(prompts, ours, theirs):
        if left == right:
            continue
        at = next(i for i, (a, b) in enumerate(zip(left, right)) if a != b)
        logits = theirs_model(torch.tensor([prompt + right[:at]])).logits[0, -1]
        gap = (logits[right[at]] - logits[left[at]]).abs().item()
        assert gap <= TIE, f"{tokenizer.decode(prompt)!r}: token {at} is {left[at]}, transformers says {right[at]}"
        ties += 1
    assert ties <= 1
    assert sum(map(len, ours)) > 200  # most of them really answered


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_both_sources_are_equal(name: str, tmp_path: Path) -> None:
    """Loss and LoRA gradients of a packed row whose texts share a beginning, and greedy tokens."""
    pytest.importorskip("transformers")
    path, cpu = resolve(name), torch.device("cpu")
    checkpoint = open_checkpoint(path)
    tokenizer = open_tokenizer(path, checkpoint)
    template = MODELS[name].bind(tokenizer)
    native = load(checkpoint, NoQuant(), dtype=torch.float32, device=cpu)
    hf.save(tmp_path, native.shape.config | {"dtype": "float32"}, native.tensors())
    theirs = load(
        open_checkpoint(tmp_path), NoQuant(), dtype=torch.float32, device=cpu, family=Choice(source="transformers")
    )
    assert (native.source, theirs.source.split()[0]) == ("native", "transformers")
    prompts = [Engine(native, tokenizer, template).prompt(Conversation((Message("user", one),))) for one in QUESTIONS]
    replies = [our_tokens(Engine(model, tokenizer, template), prompts[:4]) for model in (native, theirs)]
    assert replies[0] == replies[1] and sum(map(len, replies[0])) > 30
    row = pack_row([tiny.example(prompt) for prompt in prompts[:4]])
    computed = []
    for model in (native, theirs):
        parameters = tiny.with_lora(model, r=4)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in parameters.values():
                parameter *= 0.05
        computed.append(tiny.loss_and_gradients(model, parameters, [row]))  # type: ignore[arg-type]
    tiny.assert_same(*computed, rtol=2e-3)
    assert computed[0][0] == pytest.approx(computed[1][0], rel=1e-5)
