"""Prefix and prompt: however a step is laid out its numbers are those of plain concatenation, the engine answers as the
whole text would, and adapters cross over to PEFT and back with equal logits."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.prefix import PrefixTuning
from lorikeet.adapters.prompt import PromptTuning
from lorikeet.base.errors import ModelError
from lorikeet.models.cache_views import Decode, Prefill
from lorikeet.models.experts import ExpertSizes
from lorikeet.ops import prefix as prefix_op
from lorikeet.ops.attention import PackedView
from parity import hf_models, tiny
from parity.test_families import theirs
from parity.test_peft import TOKENS, their_logits
from parity.test_step import packed, separate, some_conversations
from parity.test_transformers import TOLERANCE, logits, ours

peft = pytest.importorskip("peft")

KINDS: dict[str, Adapter] = {
    "prefix": PrefixTuning(num_virtual_tokens=5),
    "projected": PrefixTuning(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=7),
    "projected, random": PrefixTuning(num_virtual_tokens=3, prefix_projection=True, init="random"),
    "prompt": PromptTuning(num_virtual_tokens=5),
    "prompt, random": PromptTuning(num_virtual_tokens=1, init="random"),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied with biases": {"tied": False, "bias": True},
    "one key head": {"heads": 3, "kv_heads": 1},
    "windowed": {"window": 7},
    "experts": {"experts": ExpertSizes(count=5, chosen=2, width=12, normalised=True)},
}


def attached(adapter: Adapter, **network: Any) -> tuple[tiny.Decoder, dict[str, torch.nn.Parameter]]:
    """A network with the adapter on it, away from where it begins."""
    model = tiny.decoder(**network)
    adapter.attach(model, seed=0)
    parameters = adapter.parameters(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model, parameters


CASES = [(name, "tied") for name in KINDS] + [(name, network) for name in ("prefix", "prompt") for network in NETWORKS]


@pytest.mark.parametrize("name, network", dict.fromkeys(CASES))
def test_however_a_step_is_computed_it_is_the_same(name: str, network: str) -> None:
    model, parameters = attached(KINDS[name], **NETWORKS[network])
    examples = some_conversations()
    alone = tiny.loss_and_gradients(model, parameters, separate(examples))
    for share, row_tokens in ((False, 1000), (True, 1000), (True, 30)):
        rows = packed(examples, share=share, row_tokens=row_tokens)
        tiny.assert_same(tiny.loss_and_gradients(model, parameters, rows), alone)
    rows = packed(examples, share=True)
    tiny.assert_same(tiny.loss_and_gradients(model, parameters, rows, checkpointing=True), alone)
    tiny.assert_same(tiny.loss_and_gradients(model, parameters, rows, checkpointing=1), alone)


@pytest.mark.parametrize("name, network", [("prefix", network) for network in NETWORKS] + [("projected", "tied")])
def test_a_step_with_a_prefix_is_that_of_plain_concatenation(
    name: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients through the reference op, which knows no views."""
    model, parameters = attached(KINDS[name], **NETWORKS[network])
    rows = packed(some_conversations(), share=True)
    found = tiny.loss_and_gradients(model, parameters, rows)

    def plain(self: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        self._asked.add(layer)
        until, positions = self.view.visible_until, self.view.positions
        return prefix_op.reference_prefix_attention(q, k, v, self.prefix[layer], until, positions, **options)

    monkeypatch.setattr(prefix_op.PrefixedView, "attend", plain)
    tiny.assert_same(found, tiny.loss_and_gradients(model, parameters, rows))


@torch.no_grad()
def test_vectors_of_tokens_are_those_tokens() -> None:
    """A prompt that begins as tokens of the vocabulary, and a prefix that begins as their keys and values."""
    rng = np.random.default_rng(0)
    head, tail = tiny.random_tokens(rng, 6), tiny.random_tokens(rng, 9)
    for window in (None, 4):
        (whole,) = tiny.one_by_one(tiny.decoder(window=window), [tiny.example(head + tail)])
        for kind in (PrefixTuning, PromptTuning):
            model = tiny.decoder(window=window)
            kind(num_virtual_tokens=6, init_tokens=head).attach(model, seed=0)
            (found,) = tiny.one_by_one(model, [tiny.example(tail)])
            torch.testing.assert_close(found, whole[6:], rtol=1e-10, atol=1e-10)
            assert model.shape.max_position == 64 - 6


@pytest.mark.parametrize("name, network", [(name, "windowed") for name in KINDS] + [("prompt", "one key head")])
@torch.no_grad()
def test_decoding_with_the_cache_equals_the_full_forward(name: str, network: str) -> None:
    model, _ = attached(KINDS[name], **NETWORKS[network])
    rng, lengths = np.random.default_rng(0), [3, 11, 7]
    texts = [tiny.random_tokens(rng, length + 5) for length in lengths]
    texts[2][:6] = texts[1][:6]
    expected = [tiny.one_by_one(model, [tiny.example(text)])[0] for text in texts]
    cache, places = tiny.cache(model, len(texts), 16)
    prefill = Prefill(cache, places, [text[:length] for text, length in zip(texts, lengths)])
    hidden = model.hidden(prefill.tokens, prefill.positions, prefill)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(hidden[prefill.last[i]], expected[i][length - 1], rtol=1e-10, atol=1e-10)
    prefill.advance()
    decode = Decode(cache, places)
    for new in range(5):
        tokens = decode.padded([text[length + new] for text, length in zip(texts, lengths)])
        found = model.hidden(tokens, decode.positions, decode)
        for i, length in enumerate(lengths):
            torch.testing.assert_close(found[i], expected[i][length + new], rtol=1e-10, atol=1e-10)
        decode.advance()


@torch.no_grad()
def test_a_prompt_that_was_trained_on_is_read_anew() -> None:
    model, parameters = attached(KINDS["prompt"])
    prefill = Prefill(*tiny.cache(model, 1, 8), [[1, 2, 3]])
    before = model.hidden(prefill.tokens, prefill.positions, prefill)
    (vectors,) = parameters.values()
    vectors.data.numpy()[:] += 1.0  # as a compiled optimizer does: torch does not hear of it
    after = model.hidden(prefill.tokens, prefill.positions, prefill)
    (expected,) = tiny.one_by_one(model, [tiny.example([1, 2, 3])])
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)


# --- PEFT

FAMILIES = ["mistral", "qwen3", "gemma2, tight caps", "gemma3", "phi3"]  # windows of 7 to 9: the prefix leaves them


@pytest.mark.parametrize("name, family", [*product(("prefix", "prompt"), FAMILIES), ("projected", "mistral")])
def test_our_adapter_loads_in_peft_with_equal_logits(name: str, family: str, tmp_path: Path) -> None:
    theirs(family).save_pretrained(tmp_path / "base")
    model, adapter = ours(tmp_path / "base"), KINDS[name]
    untouched = logits(model, TOKENS)
    adapter.attach(model, seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    expected = logits(model, TOKENS)
    assert (expected - untouched).abs().max() > 0.05
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter, model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(theirs(family), tmp_path / "adapter").eval()
    assert (their_logits(loaded)[-len(TOKENS) :] - expected).abs().max() <= TOLERANCE


PEFTS: dict[str, tuple[str, dict[str, Any]]] = {
    "prefix": ("PrefixTuningConfig", {}),
    "projected": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 11}),
    "prompt": ("PromptTuningConfig", {}),
}


@pytest.mark.parametrize("name, family", [*product(("prefix", "prompt"), FAMILIES), ("projected", "qwen3")])
def test_an_adapter_saved_by_peft_loads_here_with_equal_logits(name: str, family: str, tmp_path: Path) -> None:
    base = theirs(family)
    base.save_pretrained(tmp_path / "base")
    config, settings = PEFTS[name]
    chosen = getattr(peft, config)(task_type="CAUSAL_LM", num_virtual_tokens=6, **settings)
    torch.manual_seed(1)
    peft_model = peft.get_peft_model(base, chosen).eval()
    expected = their_logits(peft_model)[-len(TOKENS) :]
    peft_model.save_pretrained(tmp_path / "adapter")
    model = ours(tmp_path / "base")
    _, identity = tiny.with_saved(model, tmp_path / "adapter")
    assert identity == {} and (logits(model, TOKENS) - expected).abs().max() <= TOLERANCE


# --- networks of transformers' as the source


@pytest.mark.parametrize("name, case", product(("prefix", "prompt"), ("gpt2", "glm4")))
def test_in_networks_of_transformers_they_equal_peft(name: str, case: str, tmp_path: Path) -> None:
    """GPT-2 looks its positions up in a table."""
    hf_models.theirs(case).save_pretrained(tmp_path / "base")
    model, adapter = hf_models.ours(tmp_path / "base"), KINDS[name]
    adapter.attach(model, seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    expected = logits(model, TOKENS)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter, model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(hf_models.theirs(case), tmp_path / "adapter").eval()
    assert (their_logits(loaded)[-len(TOKENS) :] - expected).abs().max() <= TOLERANCE
    with torch.no_grad():  # and through the cache
        prefill = Prefill(*tiny.cache(model, 1, 32), [TOKENS.tolist()])
        states = model.hidden(prefill.tokens, prefill.positions, prefill)
    assert (model.head.logits(states) - expected).abs().max() <= TOLERANCE


def test_keys_of_other_sizes_have_no_prefix() -> None:
    """A bias by position makes keys wider."""
    view = PackedView(torch.full((3,), 3, dtype=torch.int32), torch.arange(3))
    prefixed = prefix_op.PrefixedView(view, [(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))])
    with pytest.raises(ModelError, match="leave its attention to the view"):
        prefixed.check()
    with pytest.raises(ModelError, match="other sizes than a prefix"):
        prefixed.attend(0, torch.zeros(3, 1, 6), torch.zeros(3, 1, 6), torch.zeros(3, 1, 4), scale=1.0)


@pytest.mark.parametrize("case", ["gpt2", "bloom"])
def test_a_network_that_reads_whole_texts_has_no_place_for_them(case: str, tmp_path: Path) -> None:
    hf_models.theirs(case).save_pretrained(tmp_path)
    for name in ("prefix", "prompt"):
        model = hf_models.ours(tmp_path)
        model.way = "padded" if case == "gpt2" else model.way
        with pytest.raises(ModelError, match="reads whole texts"):
            KINDS[name].attach(model, seed=0)
