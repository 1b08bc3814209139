"""Every native family: random tiny models written by transformers, read by us, in float32: the same logits.

Also in cached decoding, from packed rows that share a prefix, and through one LoRA step's gradients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer.conftest import ByteTokenizer, LineTemplate
from lorikeet.base.kinds import kinds
from lorikeet.data.pack import pack_row
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.reading import Reading
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.decoder import Decoder
from lorikeet.ops.attention import PackedView
from parity import gguf_files, tiny
from parity.test_transformers import TOLERANCE, difference, logits, ours

transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "attn_implementation": "eager", "pad_token_id": 0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5, 2.0, 2.2, 2.5, 3.0],
    "long_factor": [2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}  # fmt: skip
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral, no window, wide heads": ("Mistral", {"sliding_window": None, "head_dim": 20}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows above": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 20}),
    "qwen3, biases, tied": ("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3, yarn": (
        "Qwen3",
        {"head_dim": 16, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0
        }},
    ),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2, no caps": (
        "Gemma2", {**GEMMA, "final_logit_softcapping": None, "attn_logit_softcapping": None, "num_hidden_layers": 2}
    ),
    "gemma2, tight caps": ("Gemma2", {**GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 7}),
    "gemma3, layer types, linear rope": (
        "Gemma3",
        {**GEMMA, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        }},
    ),
    "gemma3, capped logits, untied": (
        "Gemma3", {**GEMMA, "final_logit_softcapping": 4.0, "tie_word_embeddings": False}
    ),
    "phi3": ("Phi3", {"sliding_window": 9}),
    "phi3, longrope": (
        "Phi3",
        {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE | {"rope_theta": 10000.0}},
    ),
    "phi4-mini: a part of each head rotated, tied": (
        "Phi3",
        {"original_max_position_embeddings": 32, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": LONGROPE["short_factor"][:6], "long_factor": LONGROPE["long_factor"][:6],
        }},
    ),
}  # fmt: skip
TESTED_ELSEWHERE = {
    "llama": "test_transformers.py", "qwen": "test_qwen1.py", "mixtral": "test_experts.py",
    "qwen2_moe": "test_experts.py", "qwen3_moe": "test_experts.py",
}  # fmt: skip


def theirs(case: str, seed: int = 0) -> Any:
    """A random model with weights, norms and biases far from their initial values."""
    name, options = CASES[case]
    torch.manual_seed(seed)
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    config = config_class(**COMMON | options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    offset = 0 if name.startswith("Gemma") else 1
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(offset if "norm" in parameter_name else 0, 0.15)
    model.tie_weights()
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(case: str, seed: int, tmp_path: Path) -> None:
    model = theirs(case, seed)
    model.save_pretrained(tmp_path)
    found = ours(tmp_path)
    assert difference(model, found, seed=seed, length=48) <= TOLERANCE
    assert difference(model, found, seed=seed, length=20) <= TOLERANCE  # longrope's other factors


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_cached_decoding_equals_reading_anew(case: str, tmp_path: Path) -> None:
    """Two prompts of different length, six tokens each: windows, caps and ropes hold in the cache, too."""
    theirs(case).save_pretrained(tmp_path)
    assert_cached_decoding_equals_reading_anew(ours(tmp_path))


def assert_cached_decoding_equals_reading_anew(model: CausalLM) -> None:
    generator = torch.Generator().manual_seed(3)
    whole = [torch.randint(97, (size,), generator=generator).tolist() for size in (20, 13)]
    reading = Reading(model, 128)
    texts = [reading.begin(text[:-6], 64) for text in whole]
    assert texts[0] is not None and texts[1] is not None
    read = reading.read(texts, [14, 7])
    hidden = read.states[read.last]
    for step in range(-6, 0):
        for row, text in enumerate(whole):
            expected = logits(model, torch.tensor(text[: len(text) + step]))[-1]
            torch.testing.assert_close(model.head.logits(hidden)[row], expected, rtol=0, atol=TOLERANCE)
            texts[row].ids.append(text[step])
        hidden = reading.go_on(texts)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_shared_prefix_equals_each_conversation_alone(case: str, tmp_path: Path) -> None:
    theirs(case).save_pretrained(tmp_path)
    assert_a_shared_prefix_equals_each_conversation_alone(ours(tmp_path))


def assert_a_shared_prefix_equals_each_conversation_alone(model: Decoder) -> None:
    prefix, ends = list(range(3, 18)), ([40, 41, 42], [50, 51], [60, 61, 62, 63, 64])
    examples = [tiny.example(prefix + end) for end in ends]
    row = pack_row(examples)
    assert len(row.tokens) == len(prefix) + sum(map(len, ends))
    packed = model.hidden(row.tokens, row.positions, PackedView(row.visible_until, row.positions))
    place = len(prefix)
    for alone, end in zip(tiny.one_by_one(model, examples), ends):
        torch.testing.assert_close(packed[place : place + len(end)], alone[len(prefix) :], rtol=0, atol=TOLERANCE)
        place += len(end)


@torch.no_grad()
def test_a_long_text_beside_a_short_one_changes_neither(tmp_path: Path) -> None:
    """longrope has other frequencies for texts beyond 32 tokens; each text of a row has its own."""
    theirs("phi3, longrope").save_pretrained(tmp_path)
    model = ours(tmp_path)
    assert model.shares_within == 32
    rng = np.random.default_rng(0)
    examples = [tiny.example([5, *tiny.random_tokens(rng, 19)]), tiny.example([6, *tiny.random_tokens(rng, 44)])]
    row = pack_row(examples, share=False)
    packed = model.hidden(row.tokens, row.positions, PackedView(row.visible_until, row.positions))
    alone = tiny.one_by_one(model, examples)
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [[28], [34, 20], [20, 34], [27, 30, 45]])
@torch.no_grad()
def test_replies_across_the_length_where_rope_changes_equal_reading_anew(lengths: list[int], tmp_path: Path) -> None:
    """Keys in the cache were turned by the angles of short texts: beyond 32 tokens the text is read again. Prompts
    on both sides of it do not share what they begin with."""
    theirs("phi3, longrope").save_pretrained(tmp_path)
    model = ours(tmp_path)
    rng = np.random.default_rng(0)
    start = tiny.random_tokens(rng, 12)
    prompts = [[*start, *tiny.random_tokens(rng, length - 12)] for length in lengths]
    engine, greedy = Engine(model, ByteTokenizer(), LineTemplate()), GenerateOptions(temperature=0, max_new_tokens=14)
    said = dict.fromkeys(range(len(prompts)), "")
    for event in engine.generate([Request(i, prompt, greedy) for i, prompt in enumerate(prompts)]):
        said[event.name] += event.text
    for i, prompt in enumerate(prompts):
        text = list(prompt)
        for _ in range(14):
            text.append(int(logits(model, torch.tensor(text))[-1].argmax()))
        assert said[i] == bytes(text[len(prompt) :]).decode(), lengths[i]


@pytest.mark.parametrize("case", CASES)
def test_lora_gradients_equal_peft(case: str, tmp_path: Path) -> None:
    """One text, every linear: the same loss and the same gradient of each A and B."""
    peft = pytest.importorskip("peft")
    model = theirs(case)
    model.save_pretrained(tmp_path)
    found = ours(tmp_path)
    parameters = tiny.with_lora(found, target_modules="all-linear")
    options = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, options)
    named = {name.replace(".default", ""): value for name, value in wrapped.named_parameters() if value.requires_grad}
    assert named.keys() == parameters.keys()
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(parameters[name])
    text = torch.randint(97, (24,), generator=torch.Generator().manual_seed(1))
    loss = wrapped(text[None], labels=text[None]).loss
    loss.backward()
    ours_loss, gradients = tiny.loss_and_gradients(found, parameters, [pack_row([tiny.example(text.tolist())])])
    assert abs(ours_loss - loss.item()) < 1e-4
    for name, value in named.items():
        assert value.grad is not None
        difference_ = (gradients[name] - value.grad).abs().max()
        assert difference_ <= 1e-3 * value.grad.abs().max(), name


IN_GGUF = [
    "mistral, no window, wide heads", "qwen2", "qwen3", "qwen3, yarn", "gemma", "gemma2", "gemma3", "phi3",
    "phi3, longrope", "phi4-mini: a part of each head rotated, tied",
]  # fmt: skip


@pytest.mark.parametrize("case", IN_GGUF)
def test_a_gguf_file_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    # what such files cannot say: Gemma's divisor of scores, and a wide window of Gemma 3's layer pattern
    model = theirs(case) if "query_pre_attn_scalar" not in options else _with(case, query_pre_attn_scalar=12)
    gguf_files.write(tmp_path / "tiny.gguf", model)
    found = ours(tmp_path / "tiny.gguf")
    assert difference(model, found, length=48) <= TOLERANCE
    assert found.shape.config["model_type"] == ("llama" if name == "Mistral" else model.config.model_type)


def _with(case: str, **options: Any) -> Any:
    name, given = CASES[case]
    CASES["changed"] = (name, {**given, **options})
    try:
        return theirs("changed")
    finally:
        del CASES["changed"]


def test_every_family_has_its_parity_test() -> None:
    from lorikeet.models.load import families

    covered = {name.removesuffix("ForCausalLM").lower() for name, _ in CASES.values()} | set(TESTED_ELSEWHERE)
    assert {family.kind for family in families()} == set(kinds("lorikeet.models.families"))
    assert set(kinds("lorikeet.models.families")) <= covered
