"""A GPT-2, which has no native family: planned, trained, stopped and resumed, evaluated, merged, asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import Place

transformers = pytest.importorskip("transformers")


def with_network(place: Place, name: str, **settings: Any) -> Path:
    """The tiny model's tokenizer with another network."""
    folder = place.copy_model(name.lower())
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **settings)
    kind = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    getattr(transformers, f"{name}{kind}")(config).save_pretrained(folder)
    return folder


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}


def test_a_run_of_gpt2_from_plan_to_reply(place: Place) -> None:
    model = with_network(place, "GPT2", **GPT2)
    recipe = place.recipe(model={"path": str(model)}, train={"gradient_checkpointing": True})
    planned = place.run("plan", recipe)
    assert planned.code == 0, planned.err
    trained = place.run("train", recipe)
    assert trained.code == 0, trained.err
    adapter = json.loads((place.folder / "run/adapter/adapter_config.json").read_text())
    assert adapter["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    rows = [json.loads(line) for line in (place.folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert place.run("evaluate", "run").code == 0
    merged = place.run("merge", "run", "merged")
    assert merged.code == 0, merged.err
    replies = [
        place.run("predict", folder, "tiny.jsonl", "generate.max_new_tokens=3", "-o", f"{folder}.jsonl")
        for folder in ("run", "merged")
    ]
    assert [reply.code for reply in replies] == [0, 0], [reply.err for reply in replies]
    assert (place.folder / "run.jsonl").read_text() == (place.folder / "merged.jsonl").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(place.folder / "merged")
    assert type(again).__name__ == "GPT2LMHeadModel"


MAMBA = {"num_hidden_layers": 2, "hidden_size": 32}
STATES = {
    "Mamba2": MAMBA | {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "Jamba": MAMBA | {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 2,
                      "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
}  # fmt: skip


@pytest.mark.parametrize("name", ["Mamba2", pytest.param("Jamba", marks=pytest.mark.slow)])
def test_a_run_of_a_network_that_carries_a_state(place: Place, name: str) -> None:
    """In padded batches, which the log says; on weights in 8 bits."""
    model = with_network(place, name, **STATES[name])
    recipe = place.recipe(model={"path": str(model)}, quant={"kind": "int8"}, train={"save_steps": 2})
    assert place.run("plan", recipe).code == 0
    trained = place.run("train", recipe)
    assert trained.code == 0, trained.err
    assert "texts are computed in padded batches" in trained.err
    shutil.copytree(place.folder / "run", place.folder / "again")
    shutil.rmtree(place.folder / "again/checkpoint-4")
    (place.folder / "again/summary.json").unlink()
    assert place.run("train", recipe, "output_dir=again").code == 0
    ours, theirs = (place.folder / run / "adapter/adapter_model.safetensors" for run in ("run", "again"))
    assert ours.read_bytes() == theirs.read_bytes()
    merged = place.run("merge", "run", "merged")
    assert merged.code == 0, merged.err
    replies = [
        place.run("predict", folder, "tiny.jsonl", "generate.max_new_tokens=3", "-o", f"{folder}.jsonl")
        for folder in ("run", "merged")
    ]
    assert [reply.code for reply in replies] == [0, 0], [reply.err for reply in replies]
    again = transformers.AutoModelForCausalLM.from_pretrained(place.folder / "merged")
    assert type(again).__name__ == f"{name}ForCausalLM"


def test_quantised_and_with_virtual_tokens(place: Place) -> None:
    model = with_network(place, "GPT2", **GPT2)
    recipe = place.recipe(model={"path": str(model)}, quant={"kind": "nf4"}, train={"max_steps": 2})
    assert place.run("train", recipe).code == 0
    prefix = {"kind": "prefix", "num_virtual_tokens": 3, "r": "-"}
    recipe = place.recipe(model={"path": str(model)}, adapter=prefix, output_dir="prefixed", train={"max_steps": 2})
    trained = place.run("train", recipe)
    assert trained.code == 0, trained.err
    reply = place.run("predict", "prefixed", "tiny.jsonl", "generate.max_new_tokens=2", "-o", "replies.jsonl")
    assert reply.code == 0, reply.err


def test_a_run_goes_on_only_with_the_network_it_began_with(place: Place) -> None:
    recipe = place.recipe(model={"source": "native"}, train={"save_steps": 2}, evaluate={"samples": 0})
    place.ok("train", recipe)
    shutil.rmtree(place.folder / "run/checkpoint-4")
    (place.folder / "run/summary.json").unlink()
    said = place.refused(["train", str(recipe), "model.source=transformers"], "RecipeError: model.source differs")
    assert f"given    transformers {transformers.__version__}" in said and "allowed  native" in said
    place.ok("train", recipe, "model.source=auto")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "native"}, "unknown kind of network"),
        ({"source": "huggingface"}, "model.source"),
        ({"trust_remote_code": "perhaps"}, "model.trust_remote_code"),
    ],
)
def test_bad_options(changes: dict[str, Any], said: str, place: Place) -> None:
    model = with_network(place, "GPT2", **GPT2)
    found = place.run("train", place.recipe(model={"path": str(model), **changes}))
    assert found.code == 2 and said in found.err


def test_options_without_effect(place: Place) -> None:
    """A native network has no code of its own."""
    found = place.run("train", place.recipe(model={"trust_remote_code": True}))
    assert found.code == 2 and "model.trust_remote_code" in found.err


def test_gptq_of_a_network_of_transformers_is_refused(place: Place) -> None:
    model = with_network(place, "GPT2", **GPT2)
    found = place.run("quantize", place.recipe(model={"path": str(model)}), "-o", "quantised")
    assert found.code == 2 and "native networks" in found.err
