"""The way of a user with GPTQ and experts: quantize, what is said of experts that saw few tokens, what is written, and
training on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.api.quantizing import by_layer, fallen_back
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models import blockwise
from lorikeet.models.blockwise import LinearError
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.decoder import Block
from lorikeet.models.experts import Mixture
from lorikeet.models.load import load
from lorikeet.ops.attention import PackedView
from lorikeet.quant.gptq import GptqWeight
from lorikeet.quant.none import NoQuant

from .conftest import Place
from .test_experts import with_experts
from .test_quantize import KILLED, MODEL, files

LEAVES = {"mixtral": ("block_sparse_moe", "w1 w3 w2"), "qwen3_moe": ("mlp", "gate_proj up_proj down_proj")}
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def quantise(place: Place, output: str, *words: str, rows: int = 24) -> Any:
    given = ("--output", output, "--group-size", "32", "--rows", rows, *words, *MODEL)
    return place.ok("quantize", "model", "tiny.jsonl", *given)


def read(folder: Path) -> CausalLM:
    return load(open_checkpoint(folder), NoQuant(), dtype=torch.float32, device=torch.device("cpu"))


def logits(model: CausalLM) -> torch.Tensor:
    tokens = torch.arange(30, 60)
    view = PackedView(torch.full((30,), 30, dtype=torch.int32), torch.arange(30))
    with torch.no_grad():
        return model.head.logits(model.hidden(tokens, torch.arange(30), view))


@pytest.mark.parametrize("model_type", LEAVES)
def test_quantize_then_read_train_and_answer(model_type: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = load_file(with_experts(place, model_type) / "model.safetensors")
    rounded: dict[str, torch.Tensor] = {}
    settle = blockwise.Blockwise._settle

    def settled(self: Any, found: Any, layer: int, group: Any, linears: Any, *given: Any, **told: Any) -> None:
        settle(self, found, layer, group, linears, *given, **told)
        rounded.update({linear.name: linear.dense(torch.float32).clone() for linear in linears})

    monkeypatch.setattr(blockwise.Blockwise, "_settle", settled)
    found = quantise(place, "gptq")
    owner, leaves = LEAVES[model_type]
    stored = load_file(place.folder / "gptq" / "model.safetensors")
    names = [
        f"model.layers.{n}.{owner}.experts.{e}.{leaf}" for n in (0, 1) for e in range(4) for leaf in leaves.split()
    ]
    assert all(f"{name}.{part}" in stored for name in names for part in PARTS)
    assert not any(f"{name}.weight" in stored for name in names)
    for layer in (0, 1):
        router = f"model.layers.{layer}.{owner}.gate.weight"
        assert torch.equal(stored[router], dense[router])
    model = read(place.folder / "gptq")
    groups = [group for module in model.modules() if isinstance(module, Mixture) for group in module.expert_groups]
    assert len(groups) == 4 and all(isinstance(group.weight, GptqWeight) for group in groups)
    assert rounded.keys() == {name for name, linear in model.linears() if not name.endswith(".gate")}
    for name, linear in model.linears():
        if name in rounded:
            assert torch.equal(linear.dense(torch.float32), rounded[name])
    plain = read(place.folder / "model")
    for slot in plain.slots():
        if slot.name.removesuffix(".weight") in rounded and slot.write is not None:
            slot.write(rounded[slot.name.removesuffix(".weight")])
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)

    assert f"experts' {leaves.rsplit(' ', 1)[0]}" in found.out and len(found.out.splitlines()) < 30
    report = json.loads((place.folder / "gptq" / "quantize.json").read_text())
    experts = [line for line in report["linears"] if line["expert"] is not None]
    assert len(experts) == 2 * 4 * 2 and all(line["tokens"] > 0 for line in experts)
    assert sum(line["error"] for line in experts) < sum(line["nearest_error"] for line in experts)

    place.recipe(model={"path": "gptq"}, train={"max_steps": 1}, evaluate={"samples": 0})
    place.ok("train", "recipe.yaml")
    trained = load_file(place.folder / "run" / "adapter" / "adapter_model.safetensors")
    assert any(".experts.3." in name and "lora_B" in name and value.any() for name, value in trained.items())
    place.ok("predict", "run", "tiny.jsonl", "--output", "replies.jsonl", "generate.max_new_tokens=3")


def test_experts_that_saw_few_tokens_are_named(place: Place) -> None:
    with_experts(place, "qwen3_moe")
    found = quantise(place, "gptq", rows=2)
    report = json.loads((place.folder / "gptq" / "quantize.json").read_text())
    few, said = [line for line in report["linears"] if line["fell_back"]], " ".join(found.err.split())
    assert few and all(line["tokens"] < 64 for line in few)
    for line in few:
        assert f"expert {line['expert']} saw {line['tokens']}" in said
    assert "layer 0: expert " in said and "layer 1: expert " in said
    enough = [line for line in report["linears"] if line["expert"] is None]
    assert len({line["tokens"] for line in enough}) == 1 and not any(line["fell_back"] for line in enough)


def test_many_experts_are_a_few_lines() -> None:
    def one(layer: int, expert: int, leaf: str) -> LinearError:
        few = expert != 3
        return LinearError(layer, (f"model.layers.{layer}.mlp.experts.{expert}.{leaf}",), 0.5, 1.0, expert, expert, few)

    errors = [one(layer, expert, leaf) for layer in (0, 1) for expert in range(128) for leaf in ("up", "down")]
    assert by_layer(errors) == [
        (str(layer), f"experts' {leaf}", "50.000%", "100.000%") for layer in (0, 1) for leaf in ("up", "down")
    ]
    first = "layer 0: expert 0 saw 0, expert 1 saw 1, expert 2 saw 2, expert 4 saw 4, "
    assert [line[: len(first)] for line in fallen_back(errors)] == [first, first.replace("0:", "1:")]
    assert all(line.endswith(" expert 8 saw 8 and 119 more") for line in fallen_back(errors))
    assert fallen_back([one(0, 3, "up")]) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--no-static-groups",),
        ("--no-sym", "--no-desc-act", "--no-true-sequential", "--bits", "8", "--group-size", "-1"),
    ],
)
def test_options_reach_the_experts(place: Place, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with_experts(place, "qwen3_moe")
    solve, solved = blockwise.solve, []
    monkeypatch.setattr(blockwise, "solve", lambda *given: solved.append(one := solve(*given)) or one)
    quantise(place, "gptq", *flags, rows=8)
    blocks = [module for module in read(place.folder / "gptq").modules() if isinstance(module, Block)]
    each = iter(solved)
    for block in blocks:
        for group in (block.qkv, block.o):
            assert torch.equal(group.weight.dense(torch.float32), next(each).dense())
        mixture = block.feed_forward
        assert isinstance(mixture, Mixture)
        for expert in range(4):
            for group in mixture.expert_groups:
                mine = torch.cat([linear.dense(torch.float32) for linear in group.of_expert(expert)])
                assert torch.equal(mine, next(each).dense())
    assert next(each, None) is None


def test_a_shared_expert_is_rounded_and_what_weighs_it_is_not(place: Place) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    with_experts(place, "qwen2_moe", **sizes, shared_expert_intermediate_size=64)
    quantise(place, "gptq", rows=8)
    stored = load_file(place.folder / "gptq" / "model.safetensors")
    for layer in (0, 1):
        at = f"model.layers.{layer}.mlp"
        assert all(f"{at}.shared_expert.{leaf}_proj.qweight" in stored for leaf in ("gate", "up", "down"))
        assert f"{at}.shared_expert_gate.weight" in stored and f"{at}.gate.weight" in stored
        assert not any(name.startswith((f"{at}.shared_expert_gate.q", f"{at}.gate.q")) for name in stored)
    read(place.folder / "gptq")


@pytest.mark.parametrize("call", [4, 16])  # in the first block's experts, and in the second's
def test_after_kill_9_the_same_command_goes_on(place: Place, call: int) -> None:
    with_experts(place, "qwen3_moe")
    words = ["quantize", "model", "tiny.jsonl", "--group-size", "32", "--rows", "4", *MODEL]
    place.ok(*words, "--output", "whole")
    killed = KILLED.replace("len(calls) == 6", f"len(calls) == {call}")
    command = [sys.executable, "-c", killed, *words, "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.folder)
    assert done.returncode == -9, done.stderr
    assert not (place.folder / "out").exists()
    assert "going on with what is finished" in place.ok(*words, "--output", "out").err.replace("\n", " ")
    assert files(place.folder / "out") == files(place.folder / "whole")
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []
