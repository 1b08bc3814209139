"""DoRA and IA3 cross over like LoRA: ours load in PEFT, PEFT's load here, equal logits in float32; and DoRA's gradients
are PEFT's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.ia3 import Ia3
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView
from parity import tiny
from parity.test_peft import BIASED, TOKENS, their_logits
from parity.test_transformers import TOLERANCE, llama, logits, ours

peft = pytest.importorskip("peft")

CASES: dict[str, tuple[type[Adapter], dict[str, Any], dict[str, Any]]] = {
    "dora": (Dora, {"r": 4, "lora_alpha": 6.0}, {}),
    "dora, some, rslora": (
        Dora, {"r": 2, "use_rslora": True, "lora_alpha": 3.0, "target_modules": ["q_proj", "up_proj"]}, {},
    ),
    "dora, biases and ranks by name": (
        Dora, {"r": 2, "bias": "lora_only", "lora_alpha": 4.0, "target_modules": ["k_proj", "gate_proj", "o_proj"],
               "rank_pattern": {"o_proj": 3}}, BIASED,
    ),
    "ia3": (Ia3, {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, {}),
    "ia3, biases, inputs of one in a group": (
        Ia3, {"target_modules": ["q_proj", "up_proj", "o_proj"], "feedforward_modules": ["up_proj"]}, BIASED,
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize(("kind", "options", "network"), CASES.values(), ids=CASES.keys())


def moved(parameters: dict[str, torch.nn.Parameter]) -> None:
    """Away from where it starts, by amounts that depend on the order of the names alone."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(parameters.items()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def peft_config(kind: type[Adapter], options: dict[str, Any]) -> Any:
    settings = {"target_modules": "all-linear"} | options
    if kind is Dora:
        return peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True, **settings)
    return peft.IA3Config(task_type="CAUSAL_LM", **settings)


def check_gradients(theirs: Any, model: CausalLM, adapter: Adapter) -> None:
    """Those of PEFT's model and of ours are the same: of the sum of the logits, each weighted at random."""
    probe = torch.randn(len(TOKENS), model.shape.vocab_size, generator=torch.Generator().manual_seed(5))
    (theirs(TOKENS[None]).logits[0] * probe).sum().backward()
    with torch.enable_grad():
        row = PackedView(torch.full((len(TOKENS),), len(TOKENS), dtype=torch.int32), torch.arange(len(TOKENS)))
        (model.head.logits(model.hidden(TOKENS, torch.arange(len(TOKENS)), row)) * probe).sum().backward()
    plain = re.compile(r"modules_to_save\.default\.|\.default(\.weight$(?<=_vector\.default\.weight))?")
    found = {plain.sub("", name): one.grad for name, one in theirs.named_parameters() if one.requires_grad}
    mine = {name: one.grad for name, one in adapter.parameters(model).items()}
    assert found.keys() == mine.keys()
    for name, gradient in mine.items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradient, found[name], rtol=2e-3, atol=2e-4 * found[name].abs().max().item())


@EACH
def test_our_adapter_loads_in_peft_with_equal_logits(
    kind: type[Adapter], options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    llama(0, **network).save_pretrained(tmp_path / "base")
    model, adapter = ours(tmp_path / "base"), kind(**options)
    untouched = logits(model, TOKENS)
    adapter.attach(model, seed=0)
    assert (logits(model, TOKENS) - untouched).abs().max() == 0
    moved(adapter.parameters(model))
    expected = logits(model, TOKENS)
    assert (expected - untouched).abs().max() > 0.05
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter, model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(llama(0, **network), tmp_path / "adapter").eval()
    assert (their_logits(loaded) - expected).abs().max() <= TOLERANCE


@EACH
def test_an_adapter_saved_by_peft_loads_here_with_equal_logits(
    kind: type[Adapter], options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    base = llama(0, **network)
    base.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft_config(kind, options)).eval()
    moved({name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad})
    expected = their_logits(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model = ours(tmp_path / "base")
    adapter, _ = tiny.with_saved(model, tmp_path / "adapter")
    assert type(adapter) is kind
    assert (logits(model, TOKENS) - expected).abs().max() <= TOLERANCE


@EACH
def test_gradients_are_peft_s(
    kind: type[Adapter], options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    base = llama(0, **network)
    base.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft_config(kind, options)).train()
    moved({name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad})
    theirs.save_pretrained(tmp_path / "adapter")
    model = ours(tmp_path / "base")
    adapter, _ = tiny.with_saved(model, tmp_path / "adapter")
    check_gradients(theirs, model, adapter)


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_a_difference_loads_in_peft_and_an_unconverted_start_of_peft_loads_here(how: str, tmp_path: Path) -> None:
    base = llama(0)
    base.save_pretrained(tmp_path / "base")
    options = {"r": 4, "lora_alpha": 6.0, "init_lora_weights": how}
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options))
    moved({name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad})
    theirs.eval().save_pretrained(tmp_path / "theirs")
    model = ours(tmp_path / "base")
    adapter, _ = tiny.with_saved(model, tmp_path / "theirs")
    expected = logits(model, TOKENS)
    assert (expected - their_logits(theirs)).abs().max() <= TOLERANCE
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", adapter, model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(llama(0), tmp_path / "ours").eval()
    assert (their_logits(loaded) - expected).abs().max() <= TOLERANCE
