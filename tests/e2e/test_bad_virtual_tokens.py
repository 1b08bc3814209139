# ruff: noqa: E501  a table of cases is read by its rows
"""What cannot be asked of prefix and prompt: each is refused before anything is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from .conftest import Place

OPTIONS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"kind": "prefix", "num_virtual_tokens": 0}, "adapter.num_virtual_tokens: out of range", ["given    0", ">= 1"]),
    ({"kind": "prompt", "num_virtual_tokens": "many"}, "adapter.num_virtual_tokens: has the wrong type", ["many"]),
    ({"kind": "prefix", "init": "zero"}, "adapter.init: is not one of the choices", ["vocabulary", "text", "random"]),
    ({"kind": "prefix", "init": "text"}, "adapter: init=text needs init_text", []),
    ({"kind": "prompt", "init": "random", "init_text": "Answer."}, "adapter: init_text and init_tokens have no effect", ["init=random"]),
    ({"kind": "prompt", "init_text": ""}, "adapter.init_text: out of range", []),
    ({"kind": "prefix", "init_tokens": [5, 90_000]}, "adapter.init_tokens: the model has no such token", ["90000", "0 to "]),
    ({"kind": "prefix", "encoder_hidden_size": 8}, "adapter: encoder_hidden_size has no effect without prefix_projection", []),
    ({"kind": "prompt", "prefix_projection": True}, "adapter.prefix_projection: there is no such option in kind prompt", ["prefix"]),
    ({"kind": "prefix", "num_virtual_tokens": 600}, "adapter.num_virtual_tokens: they leave no room", ["given    600", "at most 504"]),
    ({"kind": "prompt", "num_virtual_tokens": 10**12}, "adapter.num_virtual_tokens: they leave no room", ["at most 504"]),
    ({"kind": "prefix", "num_virtual_tokens": 400}, "data.max_length: beyond the model's context", ["at most 112"]),
    ({"kind": "prefix", "r": 8}, "adapter.r: there is no such option in kind prefix", []),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says", "facts"), OPTIONS, ids=[case[1][:60] for case in OPTIONS])
def test_options(place: Place, options: dict[str, Any], says: str, facts: list[str]) -> None:
    place.recipe(adapter={"r": "-", **options})
    place.refused("train recipe.yaml", "", says, *facts)


def test_a_folder_that_does_not_fit(place: Place) -> None:
    """An adapter of other sizes, one for an encoder and a decoder, and one without its table; merging is refused."""
    place.recipe(adapter={"r": "-", "kind": "prefix", "num_virtual_tokens": 3}, train={"max_steps": 1})
    said = place.ok("train", "recipe.yaml").err
    assert "lorikeet merge run run-merged --keep-adapter" in said, "what comes next has to be possible"
    place.refused("merge run merged", "", "adapter.kind: keys and values of its own are no weights", "--keep-adapter")
    folder = place.folder / "run" / "adapter"
    settings, table = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    inputs = ["predict", str(folder), "tiny.jsonl", "-o", "out.jsonl"]
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"num_transformer_submodules": 2}))
    place.refused(inputs, "", "an encoder and a decoder", "num_transformer_submodules=2")
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"num_virtual_tokens": 4}))
    place.refused(inputs, "", "does not fit this model: prompt_embeddings", "(3, 128)", "(4, 128)")
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"num_virtual_tokens": 10**15}))
    place.refused(inputs, "", "adapter.num_virtual_tokens: they fill the model's context", "less than 512")
    (folder / "adapter_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k != "num_virtual_tokens"})
    )
    place.refused(inputs, "", "is damaged", "num_virtual_tokens")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"prompt": table["prompt_embeddings"]}, folder / "adapter_model.safetensors")
    place.refused(inputs, "", "does not fit this model", "1 tensors missing, 1 unknown")
