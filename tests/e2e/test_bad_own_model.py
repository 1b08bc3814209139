# ruff: noqa: E501  a table of cases is read by its rows
"""Families in someone's own file that fail: one message with the file and its line, not a fault of Lorikeet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import Place

GPT = (Path(__file__).parents[2] / "examples/own_model/gpt.py").read_text()
LAST = "return self.norm(x)\n"


@pytest.fixture
def own(place: Place) -> Place:
    """A checkpoint of the example's GPT, with the tiny model's tokenizer, and a recipe for it."""
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text())
    config = {
        "model_type": "my-gpt",
        "vocab_size": config["vocab_size"],
        "width": 16,
        "heads": 2,
        "layers": 2,
        "context": 512,
    }
    names: dict[str, Any] = {"__name__": "gpt"}
    exec(GPT, names)
    torch.manual_seed(0)
    save_file(names["Gpt"](config).state_dict(), model / "model.safetensors")
    (model / "config.json").write_text(json.dumps(config))
    (place.folder / "gpt.py").write_text(GPT)
    place.model = model
    place.recipe(model={"path": "model", "family": "gpt.py"})
    return place


def changed(place: Place, old: str, new: str) -> None:
    assert old in GPT
    (place.folder / "gpt.py").write_text(GPT.replace(old, new))


# the text in the example that is changed, to what, how the message begins, what else it says
FILES: list[tuple[str, str, str, list[str]]] = [
    (GPT, "", "RecipeError: {}gpt.py must define exactly one subclass of Family", ["none"]),
    (GPT, "import sys; sys.exit(3)", "RecipeError: gpt.py cannot be run", ["SystemExit"]),
    ('"my-gpt", "embedding"', '"your-gpt", "embedding"', "ModelError: unknown kind of network", ["my-gpt", "your-gpt"]),
    ('model_type, head = "my-gpt",', "head =", "ModelError: GptFamily does not say: model_type", []),
    ("def shape(self", "def shap(self", "ModelError: GptFamily does not say: shape(self, config)", []),
    ("def module(self", "def modul(self", "ModelError: GptFamily does not say: module(self, config)", []),
    ('e = c["width"]', 'e = c["widht"]', "ModelError: {}gpt.py:54: GptFamily.shape fails", ["KeyError: 'widht'"]),
    ("return Shape(", "return (", "ModelError: GptFamily.shape returns no Shape", ["tuple"]),
    ("return Gpt(config)", "return Gpt(config).absent", "ModelError: {}gpt.py:60: GptFamily.module fails", ["absent"]),
    ("return Gpt(config)", "return Gpt", "ModelError: GptFamily.module returns no nn.Module", []),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "error", "facts"), FILES, ids=[case[2] for case in FILES])
def test_files(own: Place, old: str, new: str, error: str, facts: list[str]) -> None:
    changed(own, old, new)
    own.refused("train recipe.yaml", error.format(f"{own.folder}/"), *facts)


# the same, where the network runs: by then there is a run, which the mended file goes on with
NETWORKS: list[tuple[str, str, str, list[str]]] = [
    (LAST, "return self.norm(x)[:, :5]\n", "Gpt.forward does not return the last hidden states", ["5)", "16)"]),
    (LAST, "return (self.norm(x),)\n", "Gpt.forward does not return the last hidden states", ["tuple"]),
    (LAST, "return self.norm(x)[None]\n", "Gpt.forward does not return the last hidden states", ["(1, "]),
    (LAST, "raise KeyError('x')\n", "gpt.py:47: Gpt.forward fails", ["KeyError: 'x'"]),
    ("view.attend(self.index,", "view.attend(9,", "gpt.py:24: Gpt.forward fails", []),
]


@pytest.mark.parametrize(("old", "new", "error", "facts"), NETWORKS, ids=[case[2] for case in NETWORKS])
def test_networks(own: Place, old: str, new: str, error: str, facts: list[str]) -> None:
    changed(own, old, new)
    said = own.run("train", "recipe.yaml")
    assert said.code == 2 and "Traceback" not in said.err and "fault of Lorikeet" not in said.err
    for fact in ("ModelError: ", error, *facts):
        assert fact in said.err
    changed(own, LAST, LAST)
    own.ok("train", "recipe.yaml", "train.max_steps=1")


def test_dropout_acts_in_training_alone(own: Place) -> None:
    """What is measured before the first step is the same with and without a dropout in the module."""
    own.ok("train", "recipe.yaml", "train.max_steps=1")
    before = measured(own)
    shutil.rmtree(own.folder / "run")
    changed(own, LAST, "return F.dropout(self.norm(x), 0.5, self.training)\n")
    own.ok("train", "recipe.yaml", "train.max_steps=1")
    assert measured(own).eval_loss_before == before.eval_loss_before
    assert measured(own).train_loss != before.train_loss


def test_buffers_come_from_the_checkpoint(own: Place) -> None:
    """A persistent buffer is a part of the state dict: it is read, and merged, like a parameter."""
    file = own.folder / "model/model.safetensors"
    gain = torch.arange(16, dtype=torch.float32)
    save_file(load_file(file) | {"gain": gain, "count": torch.tensor(257)}, file)
    made = "self.norm = nn.LayerNorm(width)\n"
    buffers = '        self.register_buffer("gain", torch.zeros(width))\n        self.register_buffer("count", torch.tensor(0))\n'
    text = GPT.replace(made, made + buffers).replace(LAST, "return self.norm(x) * self.gain\n")
    (own.folder / "gpt.py").write_text(text)
    own.ok("train", "recipe.yaml", "train.max_steps=1", "model.dtype=bfloat16")
    own.ok("merge", "run", "merged")
    merged = load_file(own.folder / "merged/model.safetensors")
    assert merged["gain"].tolist() == gain.tolist() and merged["count"].item() == 257


def measured(place: Place) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((place.folder / "run/summary.json").read_text()))
