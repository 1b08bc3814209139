# ruff: noqa: E501  a table of cases is read by its rows
"""Options at the ends of what they take: a run does what they say, or ends with one message; never with a traceback,
and never with an adapter that holds numbers which are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorikeet.adapters._storage import read_adapter

from .conftest import Place

MANY, ALMOST = 10**18, 1 - 2**-53
MIX = [{"path": "tiny.jsonl", "weight": 1e6}, {"path": "again.jsonl", "weight": 1e-6}]
LONG: dict[str, Any] = {"train": {"max_steps": "-"}, "limits": {"tokens": 900}}
TRAIN: dict[str, dict[str, Any]] = {
    "a rate beyond sense": {"train": {"learning_rate": 100, "max_steps": 1}, "data": {"validation": None}, "evaluate": "-"},
    "factors beyond sense": {"train": {"lr_multipliers": {"lora_A": 1e6}, "max_steps": 1}, "adapter": {"loraplus_lr_ratio": 1e6}},
    "no rate to speak of": {"train": {"learning_rate": 5e-324, "layerwise_lr_decay": 5e-324}},
    "betas that float32 has as 1": {"train": {"adam_beta1": ALMOST, "adam_beta2": ALMOST, "adam_epsilon": 1e-30}},
    "the same in 8 bits": {
        "train": {"adam_beta1": ALMOST, "adam_beta2": ALMOST, "adam_epsilon": 1e-30, "optim": {"kind": "adamw_8bit", "min_8bit_size": 1}}
    },
    "a decay of all there is": {"train": {"weight_decay": 1e6, "learning_rate": 1e-6}},
    "lion without memory": {"train": {"optim": "lion", "adam_beta1": 0, "adam_beta2": 0}},
    "adafactor, much clipped": {"train": {"optim": {"kind": "adafactor", "clip_threshold": 1e-6, "decay_rate": -10}}},
    "an update beyond sense": {"adapter": {"lora_alpha": 1e6}},
    "an update of nothing": {"adapter": {"scaling": 1e-6}},
    "as much as can be read again": {"adapter": {"scaling": 1e6 / 8, "init_lora_weights": "pissa_niter_4"}},
    "a part of the weight, over nothing": {"adapter": {"scaling": 1e-6, "init_lora_weights": "pissa"}},
    "noise": {"train": {"neftune_noise_alpha": 1e6}},
    "all dropped": {"train": {"embedding_dropout": ALMOST, "attention_dropout": ALMOST}},
    "no target": {"train": {"label_smoothing_factor": ALMOST}},
    "all of the update dropped": {"adapter": {"lora_dropout": ALMOST}},
    "steps without end": {"train": {"max_steps": MANY, "warmup_steps": MANY}, "limits": {"tokens": 900}},
    "epochs without end": {"train": {"max_steps": "-", "num_train_epochs": 1e6}, "limits": {"tokens": 900}},
    "nothing is ever due": {
        "train": dict.fromkeys(("save_steps", "eval_steps", "logging_steps", "save_total_limit", "seed"), MANY)
    },
    "all rows in a step": {"train": {"examples_per_step": 10**6, "row_tokens": 10**7, "gradient_checkpointing": MANY}},
    "all prompts asked": {
        "evaluate": {"samples": MANY, "prompts": MANY, "metrics": ["ended"]},
        "generate": {"batch_size": MANY, "top_k": MANY, "temperature": 1e30, "seed": MANY, "top_p": 5e-324, "min_p": 1},
    },
    "an epoch of a mix": {"data": {"train": MIX, "mix": {"epoch": MANY}}, **LONG},
    "an epoch of all of a mix": {"data": {"train": MIX, "mix": {"epoch": "all_exhausted"}}, **LONG},
}  # fmt: skip


@pytest.mark.parametrize("case", TRAIN)
def test_training(place: Place, case: str) -> None:
    (place.folder / "again.jsonl").write_text((place.folder / "tiny.jsonl").read_text())
    said = TRAIN[case]
    place.recipe(**said | {"train": {"max_steps": 2} | said.get("train", {})})
    done = place.run("train", "recipe.yaml")
    assert "fault of Lorikeet" not in done.err, done.err
    assert done.code in (0, 3) or "TrainingError" in done.err, done.err
    adapter = place.folder / "run" / "adapter" / "adapter_model.safetensors"
    assert done.code not in (0, 3) or adapter.is_file()
    if adapter.is_file():
        _, tensors, _ = read_adapter(adapter.parent)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


REPLIES = [
    "batch_size=1000000000000000000",
    "num_beams=1024 generate.max_new_tokens=2",
    "num_beams=3 generate.length_penalty=10",
    "num_beams=3 generate.length_penalty=-10",
    "logprobs=1000000000000000000",
    "temperature=1e30 generate.guide={kind: regex, regex: '[ab]{1,5}'}",
    "temperature=5e-324 generate.repetition_penalty=100",
    "guide={kind: json_object, max_whitespace: 1000}",
]


@pytest.mark.parametrize("options", REPLIES)
def test_replies(place: Place, options: str) -> None:
    words = [f"generate.{word}" for word in options.split(" generate.")]
    if "max_new_tokens" not in options:
        words.append("generate.max_new_tokens=6")
    rows = (place.folder / "tiny.jsonl").read_text().splitlines(keepends=True)
    (place.folder / "two.jsonl").write_text("".join(rows[:2]))
    done = place.run("predict", place.model, "two.jsonl", "-o", "replies.jsonl", *words)
    assert done.code == 0, done.err
    assert len((place.folder / "replies.jsonl").read_text().splitlines()) == 2
