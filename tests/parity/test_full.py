"""Full fine-tuning: the loss and the gradient of every tensor are transformers', and those of any other layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters.full import Full
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.models.decoder import Decoder
from lorikeet.models.load import load
from lorikeet.quant.none import NoQuant
from parity import test_experts, test_families, test_step, test_transformers, tiny

transformers = pytest.importorskip("transformers")

CASES: dict[str, Callable[[], Any]] = {
    "llama, tied": lambda: test_transformers.llama(0),
    "llama, untied, biases": lambda: test_transformers.llama(1, tie_word_embeddings=False, mlp_bias=True),
    "qwen2, tied": lambda: test_families.theirs("qwen2"),
    "qwen3, biases, tied": lambda: test_families.theirs("qwen3, biases, tied"),
    "gemma3": lambda: test_families.theirs("gemma3, layer types, linear rope"),
    "gemma3, untied": lambda: test_families.theirs("gemma3, capped logits, untied"),
    "phi3": lambda: test_families.theirs("phi3"),
}


def trained(model: Decoder, **options: Any) -> dict[str, torch.nn.Parameter]:
    adapter = Full(**options)
    adapter.attach(model, seed=0)
    return adapter.parameters(model)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-6)])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_equal_transformers(
    case: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    """In float64 what is left is transformers' rope, which it computes in float32."""
    theirs = CASES[case]().to(dtype)
    theirs.save_pretrained(tmp_path)
    model = load(open_checkpoint(tmp_path), NoQuant(), dtype=dtype, device=tiny.CPU)
    parameters = trained(model)
    named = dict(theirs.named_parameters())
    assert parameters.keys() == named.keys()
    text = torch.randint(theirs.config.vocab_size, (24,), generator=torch.Generator().manual_seed(1))
    loss = theirs(text[None], labels=text[None]).loss
    loss.backward()
    batches = [pack_row([tiny.example(text.tolist())])]
    found, gradients = tiny.loss_and_gradients(model, parameters, batches)
    assert found == pytest.approx(loss.item(), rel=tolerance)
    for name, value in named.items():
        assert value.grad is not None and value.grad.abs().max() > 0
        assert (gradients[name] - value.grad).abs().max() <= tolerance * value.grad.abs().max(), name


@pytest.mark.parametrize("case", ["mixtral", "qwen3", "qwen2, a shared expert"])
def test_gradients_of_experts_equal_transformers(case: str, tmp_path: Path) -> None:
    """They are stacked there: gate and up in one, [E, 2F, D], and down [E, D, F]."""
    theirs = test_experts.theirs(case)
    theirs.save_pretrained(tmp_path)
    model = load(open_checkpoint(tmp_path), NoQuant(), dtype=torch.float32, device=tiny.CPU)
    parameters = trained(model)
    text = torch.randint(theirs.config.vocab_size, (24,), generator=torch.Generator().manual_seed(1))
    loss = theirs(text[None], labels=text[None]).loss
    loss.backward()
    found, gradients = tiny.loss_and_gradients(model, parameters, [pack_row([tiny.example(text.tolist())])])
    assert found == pytest.approx(loss.item(), rel=1e-4)
    compared = 0
    for name, value in theirs.named_parameters():
        assert value.grad is not None
        if ".experts." in name:
            layer = f".layers.{name.split('.')[2]}."
            ends = ("w1", "w3", "gate_proj", "up_proj") if "gate_up" in name else ("w2", "down_proj")
            parts = [g for key, g in gradients.items() if layer in key and g.dim() == 3 and key.split(".")[-2] in ends]
            mine = torch.cat(parts, 1)
        elif name in gradients:  # but for the router, whose name changes
            mine = gradients[name]
        else:
            continue
        assert (mine - value.grad).abs().max() <= 1e-4 * value.grad.abs().max(), name
        compared += 1
    assert compared >= len(parameters) - 2 * theirs.config.num_hidden_layers


@pytest.fixture(params=test_step.NETWORKS)
def network(request: pytest.FixtureRequest) -> tiny.Decoder:
    return tiny.decoder(**test_step.NETWORKS[request.param])


def test_packed_equals_separate_and_a_shared_prefix_a_repeated_one(network: tiny.Decoder) -> None:
    parameters, examples = trained(network), test_step.some_conversations()
    alone = tiny.loss_and_gradients(network, parameters, test_step.separate(examples))
    for share in (False, True):
        tiny.assert_same(tiny.loss_and_gradients(network, parameters, test_step.packed(examples, share=share)), alone)


def test_checkpointed_equals_not_and_accumulated_equals_one_batch(network: tiny.Decoder) -> None:
    parameters, examples = trained(network), test_step.some_conversations()
    rows = test_step.packed(examples, share=True)
    plain = tiny.loss_and_gradients(network, parameters, rows)
    for checkpointing in (True, 1):
        tiny.assert_same(plain, tiny.loss_and_gradients(network, parameters, rows, checkpointing=checkpointing))
    parts = test_step.packed(examples, share=True, row_tokens=16)
    assert len(parts) > 1
    tiny.assert_same(plain, tiny.loss_and_gradients(network, parameters, parts))


@pytest.mark.parametrize("words", [["q_proj"], ["layers.1"], ["embed_tokens", "norm"], r".*\.(k_proj|down_proj)\..*"])
def test_a_part_has_the_gradients_it_has_in_the_whole(words: str | list[str]) -> None:
    """A member of a group alone, one layer, what is no linear, a regex: the others stay as they are."""
    whole, part = (tiny.decoder(tied=False, bias=True) for _ in range(2))
    rows = test_step.packed(test_step.some_conversations(), share=True)
    everything = tiny.loss_and_gradients(whole, trained(whole), rows)
    found = tiny.loss_and_gradients(part, trained(part, target_modules=words), rows)
    assert 0 < len(found[1]) < len(everything[1])
    tiny.assert_same(found, (everything[0], {name: everything[1][name] for name in found[1]}))


@pytest.mark.parametrize("tied", [True, False])
def test_a_bfloat16_model_keeps_float32_masters_whose_gradients_are_near(tied: bool) -> None:
    """Of a row in which one token repeats often: rows of the embedding are added up in float32."""
    exact, rounded = tiny.decoder(tied=tied, dtype=torch.float32), tiny.decoder(tied=tied, dtype=torch.float32)
    rounded = rounded.bfloat16()
    with torch.no_grad():
        for one, other in zip(exact.parameters(), rounded.parameters()):
            one.copy_(other)
    batches = [pack_row([tiny.example([3] * 40 + list(range(20)))])]
    expected = tiny.loss_and_gradients(exact, trained(exact), batches)
    parameters = trained(rounded)
    found = tiny.loss_and_gradients(rounded, parameters, batches)
    assert rounded.dtype == torch.bfloat16
    assert all(one.dtype == torch.float32 for one in parameters.values())
    for name, gradient in expected[1].items():
        difference = (found[1][name] - gradient).norm() / gradient.norm()
        assert difference < 0.05, name
