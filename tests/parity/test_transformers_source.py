"""Networks of transformers' as a source: packed rows here, one text at a time with transformers and PEFT there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lorikeet.adapters import _expert_lora
from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.checkpoints import hf
from lorikeet.data.pack import pack_row
from parity import hf_models, tiny
from parity.hf_models import CASES, RECURRENT, ours, theirs
from parity.test_families import (
    assert_a_shared_prefix_equals_each_conversation_alone,
    assert_cached_decoding_equals_reading_anew,
)
from parity.test_transformers import TOLERANCE, difference

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

EXPERTS = ("mixtral", "deepseek_v3", "qwen3_moe")
ALWAYS = ("mamba2", "jamba")  # of the recurrent ones
ALL = [*CASES, *(pytest.param(case, marks=() if case in ALWAYS else pytest.mark.slow) for case in RECURRENT)]
# rounding grows with a text where a state is carried along it
LOOSE = {"zamba2": 10 * TOLERANCE, "qwen3_next": 10 * TOLERANCE, "minimax": 3 * TOLERANCE}


@pytest.mark.parametrize("case", ALL)
@torch.no_grad()
def test_logits_packed_rows_and_cached_decoding(case: str, tmp_path: Path) -> None:
    reference = theirs(case)
    reference.save_pretrained(tmp_path)
    model = ours(tmp_path)
    assert (model.way == "padded") == (case in RECURRENT), "what no view can share is read text by text"
    assert model.shares_within is None
    assert difference(reference, model, length=48) <= TOLERANCE
    assert_a_shared_prefix_equals_each_conversation_alone(model)
    assert_cached_decoding_equals_reading_anew(model)


def examples(seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    start = tiny.random_tokens(rng, 9, hf_models.VOCAB)
    texts = [start + tiny.random_tokens(rng, size, hf_models.VOCAB) for size in (7, 12)]
    return [tiny.example(text) for text in [*texts, tiny.random_tokens(rng, 21, hf_models.VOCAB)]]


def their_loss(model: Any, texts: list[Any]) -> torch.Tensor:
    """The mean over all trained tokens, each text alone."""
    total = torch.zeros(())
    for text in texts:
        tokens = torch.from_numpy(text.tokens).long()
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
        losses = F.cross_entropy(logits, tokens[1:], reduction="none")
        total = total + (losses * torch.from_numpy(text.weights[1:])).sum()
    return total / sum(text.weights.sum() for text in texts)


def targets(case: str, model: Any) -> list[str]:
    """Linears that PEFT puts LoRA on: of modules stacked experts are none, and of a Mamba's it refuses out_proj."""
    attention = case in (*EXPERTS, "qwen3_next")  # experts: below; PEFT takes a shared expert for one of them
    names = [name for name in model.outline.linears if not attention or "attn" in name]
    if case in RECURRENT:
        return sorted(name for name in names if not name.endswith("out_proj"))
    return sorted({name.rsplit(".", 1)[-1] for name in names})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", ALL)
def test_loss_and_lora_gradients_equal_transformers_and_peft(case: str, checkpointing: bool, tmp_path: Path) -> None:
    reference = theirs(case)
    reference.save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    options: dict[str, Any] = {"r": 3, "target_modules": targets(case, model)}
    parameters = tiny.with_lora(model, **options)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", Lora(**options), model, {"base": "tiny"})
    loss, gradients = tiny.loss_and_gradients(model, parameters, [pack_row(examples())], checkpointing=checkpointing)
    with_peft = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter", is_trainable=True).eval()
    expected = their_loss(with_peft, examples())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    found = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in with_peft.named_parameters()
        if parameter.requires_grad
    }
    assert found.keys() == gradients.keys()
    # padding makes a state's scan sum in other pieces: on a Zen 4 that alone is 1.4e-4 of Zamba 2's largest gradient
    tiny.assert_same((loss, gradients), (expected.item(), found), rtol=3e-4 if case in RECURRENT else 1e-4)


@pytest.mark.parametrize("case", ALL)
def test_it_trains_and_the_merged_folder_is_base_and_adapter_in_transformers(case: str, tmp_path: Path) -> None:
    reference = theirs(case)
    reference.save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    parameters = tiny.with_lora(model, r=2)
    batch = [pack_row(examples())]
    first, gradients = tiny.loss_and_gradients(model, parameters, batch)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter -= 0.02 * gradients[name] / gradients[name].norm()
    assert tiny.loss_and_gradients(model, parameters, batch)[0] < first
    (tmp_path / "merged").mkdir()
    hf.save(tmp_path / "merged", model.shape.config, merged_tensors(model, Lora(r=2), torch.float32))
    again = type(reference).from_pretrained(tmp_path / "merged").eval()
    assert difference(again, model, length=40) <= LOOSE.get(case, TOLERANCE)
    assert difference(again, ours(tmp_path / "merged"), length=40) <= TOLERANCE
    names = {path.name for path in (tmp_path / "base").iterdir() if path.suffix == ".safetensors"}
    assert names and stored(tmp_path / "merged") == stored(tmp_path / "base")


def stored(folder: Path) -> dict[str, tuple[int, ...]]:
    from lorikeet.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.shape(name) for name in checkpoint.names()}


@pytest.mark.parametrize("case", EXPERTS)
def test_gradients_of_experts_equal_those_of_changed_weights(case: str, tmp_path: Path) -> None:
    """LoRA on all linears and experts, against transformers' own network with W + s B A in the place of W."""
    reference = theirs(case)
    reference.save_pretrained(tmp_path)
    model = ours(tmp_path)
    parameters = tiny.with_lora(model, r=2)
    loss, gradients = tiny.loss_and_gradients(model, parameters, [pack_row(examples())])
    factors = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
    linears = {linear.name for group in model.groups() for linear in group.linears}
    changed = dict(reference.state_dict())
    changes: dict[str, list[Any]] = {}
    for piece in model.outline.pieces:
        update = _update(piece.stem, factors) if piece.stem in linears and piece.name.endswith("weight") else None
        if update is not None:
            changes.setdefault(piece.key, []).append((piece.rows, update))
    assert any(len(found) > 1 for found in changes.values()), "experts are among them"
    for key, found in changes.items():
        whole = changed[key].flatten(0, -2)
        for rows, update in found:
            where = torch.arange(len(whole))[rows or slice(None)]
            whole = whole.index_add(0, where, update)
        changed[key] = whole.view(changed[key].shape)
    expected = their_loss(lambda **given: torch.func.functional_call(reference, changed, (), given), examples())
    slopes = torch.autograd.grad(expected, list(factors.values()))
    tiny.assert_same((loss, gradients), (expected.item(), dict(zip(factors, slopes))), rtol=1e-4)


@pytest.mark.parametrize("case", EXPERTS)
def test_loss_and_gradients_of_stacked_experts_equal_peft(case: str, tmp_path: Path) -> None:
    """PEFT trains the stacked parameters of transformers 5 (target_parameters), where gate and up share an A: its
    gradient is the sum of ours."""
    reference = theirs(case)
    reference.save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    attention = {name.rsplit(".", 1)[-1] for name in model.outline.linears if "self_attn" in name}
    stacked = ["experts.gate_up_proj", "experts.down_proj"]
    settings = {"r": 2, "lora_alpha": 5, "target_modules": sorted(attention), "target_parameters": stacked}
    with_peft = peft.get_peft_model(reference, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    trained = {name: parameter for name, parameter in with_peft.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(0, 0.3)
    with_peft.save_pretrained(tmp_path / "adapter")
    adapter, _ = tiny.with_saved(model, tmp_path / "adapter")
    loss, found = tiny.loss_and_gradients(model, adapter.parameters(model), [pack_row(examples())])
    expected = their_loss(with_peft, examples())
    expected.backward()
    slopes = {name: parameter.grad for name, parameter in trained.items()}
    wanted = _expert_lora.unstacked(model, peft.get_peft_model_state_dict(with_peft, state_dict=slopes), rank=2)
    ours_by_name: dict[str, torch.Tensor] = {}
    for name, slope in found.items():
        ours_by_name |= {name: slope} if slope.dim() < 3 else _expert_lora.one_by_one(name, slope)
    gates, ups = _leaves(model)
    for name in [name for name in ours_by_name if f".{gates}.lora_A." in name and ".experts." in name]:
        other = name.replace(f".{gates}.", f".{ups}.")
        ours_by_name[name] = ours_by_name[other] = ours_by_name[name] + ours_by_name[other]
    largest = max(slope.abs().max() for slope in wanted.values())
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert ours_by_name.keys() == wanted.keys() and sum(".experts." in name for name in wanted) >= 24
    for name, slope in wanted.items():
        torch.testing.assert_close(ours_by_name[name], slope, rtol=1e-4, atol=1e-4 * largest.item(), msg=name)


def _leaves(model: Any) -> tuple[str, str]:
    """What a checkpoint calls the gates and ups of its experts."""
    gate, up = model.outline.stacks[0].gate_up[1]
    return gate, up


@pytest.mark.parametrize("case", EXPERTS)
@torch.no_grad()
def test_an_adapter_on_experts_loads_in_peft_with_equal_logits(case: str, tmp_path: Path) -> None:
    reference = theirs(case)
    reference.save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    options: dict[str, Any] = {"r": 3, "target_modules": r".*\.(self_attn\.[a-z_]+|experts\.\d+\.\w+)"}
    tiny.with_lora(model, **options)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", Lora(**options), model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    assert difference(loaded, model, length=40) <= TOLERANCE


def _update(stem: str, factors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """s B A of a linear; A and B of experts lie in one tensor for all."""
    owner, expert, leaf = (["", *stem.rsplit(".", 2)])[-3:]
    if expert.isdigit():
        found = [factors.get(f"base_model.model.{owner}.{leaf}.lora_{part}.weight") for part in "AB"]
        pair = [None if factor is None else factor[int(expert)] for factor in found]
    else:
        pair = [factors.get(f"base_model.model.{stem}.lora_{part}.weight") for part in "AB"]
    return None if pair[0] is None or pair[1] is None else 2.0 * pair[1] @ pair[0]
