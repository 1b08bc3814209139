"""Options of adapters that cannot be: one message, what was given and what is allowed, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from e2e.conftest import Place
from lorikeet.base.kinds import kind_class
from lorikeet.base.yaml_lines import dump

CASES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "lora", "rank_pattern": {"q_prj": 4}}, "rank_pattern: 'q_prj' names no linear that trains"),
    ({"kind": "lora", "rank_pattern": {"q_proj": 0}}, "q_proj: 0 is not above 0"),
    ({"kind": "lora", "rank_pattern": {"(": 4}}, "not a valid regular expression"),
    ({"kind": "lora", "alpha_pattern": {"q_proj": -1}}, "q_proj: -1.0 is not above 0"),
    ({"kind": "lora", "alpha_pattern": ["q_proj"]}, "adapter.alpha_pattern"),
    ({"kind": "dora", "rank_pattern": {"lm_head": 4}}, "'lm_head' names no linear that trains"),
    ({"kind": "dora", "alpha_pattern": {"experts": 4}}, "alpha_pattern: 'experts' names no linear that trains"),
    ({"kind": "dora", "init_lora_weights": "pissa"}, "dora starts from the whole weight"),
    ({"kind": "dora", "init_lora_weights": "loftq"}, "there is no start 'loftq'"),
    ({"kind": "lora", "layers_to_transform": [9]}, "there is no layer 9"),
    ({"kind": "lora", "layers_to_transform": [0], "target_modules": ".*q_proj"}, "no effect beside a regex"),
    ({"kind": "lora", "layers_pattern": "layers"}, "layers_pattern has no effect"),
    ({"kind": "lora", "exclude_modules": ["q_prj"]}, "adapter.exclude_modules"),
    ({"kind": "lora", "modules_to_save": "lm_head"}, "adapter.modules_to_save"),
    ({"kind": "lora", "modules_to_save": ["lm_heads"]}, "no module named 'lm_heads'"),
    ({"kind": "ia3", "modules_to_save": ["q_prj"]}, "no module named 'q_prj'"),
    ({"kind": "ia3", "feedforward_modules": ["q_proj"]}, "none of them is among the targeted linears"),
    ({"kind": "ia3", "r": 8}, "adapter.r"),
    ({"kind": "prefix", "num_virtual_tokens": 0}, "adapter.num_virtual_tokens"),
    ({"kind": "prefix", "encoder_hidden_size": 8}, "no effect without prefix_projection"),
    ({"kind": "prefix", "target_modules": ["q_proj"]}, "adapter.target_modules"),
    ({"kind": "prompt", "init": "text"}, "init=text needs init_text"),
    ({"kind": "full", "target_modules": ["layer.1"]}, "no tensor with 'layer.1' in its name"),
    ({"kind": "full", "exclude_modules": "all"}, "adapter.exclude_modules"),
    ({"kind": "head", "embeddings": "both"}, "adapter.embeddings"),
    ({"kind": "bias", "norms": 2}, "adapter.norms"),
    ({"kind": "lora", "lora_alpha": 1e308}, "adapter.lora_alpha: out of range"),
    ({"kind": "lora", "scaling": 1e39}, "adapter.scaling: out of range"),
    ({"kind": "lora", "scaling": 1e6, "r": 4}, "adapter: such an update would be saved with lora_alpha 4e+06"),
    ({"kind": "lora", "lora_alpha": 1e6, "init_lora_weights": "olora"}, "saved with lora_alpha 2e+06, which is above"),
    ({"kind": "dora", "r": 10**9}, "adapter.r: out of range"),
    ({"kind": "lora", "rank_pattern": {"q_proj": 10**9}}, "q_proj: 1000000000 is above 65536"),
    ({"kind": "lora", "alpha_pattern": {"q_proj": 1e308}}, "q_proj: 1e+308 is above 1e+06"),
    ({"kind": "prefix", "prefix_projection": True, "encoder_hidden_size": 10**12}, "encoder_hidden_size: out of range"),
    ({"kind": "lora", "path": "nowhere"}, "no adapter_config.json in"),
    ({"kind": "lora", "path": ["runs/first"]}, "adapter.path"),
]


@pytest.mark.parametrize(("adapter", "said"), CASES, ids=[said for _, said in CASES])
def test_one_message_and_nothing_written(place: Place, adapter: dict[str, Any], said: str) -> None:
    place.recipe(adapter={"r": "-", **adapter})
    found = place.run("train", place.folder / "recipe.yaml")
    assert found.code == 2 and "Traceback" not in found.err
    assert said in " ".join(found.err.split()), found.err
    assert not Path("run/recipe.yaml").exists()


@pytest.mark.parametrize("name", ["neftune_noise_alpha", "embedding_dropout", "attention_dropout"])
def test_noise_that_a_prompt_s_rows_have_no_place_for(place: Place, name: str) -> None:
    """Before the data are read; a prefix is no token of the row, and has none of it."""
    place.recipe(adapter={"kind": "prompt", "r": "-", "num_virtual_tokens": 4}, train={name: 0.1})
    for words in ("train recipe.yaml", "plan recipe.yaml"):
        place.refused(
            [*words.split(), "data.train=[nowhere.jsonl]"],
            f"RecipeError: train.{name}: a prompt's vectors stand once before all conversations of a row",
            f"given    0.1   ({place.line(name)})",
            f"try      leave train.{name} out, or another adapter.kind",
        )
    place.recipe(adapter={"kind": "prefix", "r": "-", "num_virtual_tokens": 4}, train={name: 0.1, "max_steps": 1})
    place.ok("train", "recipe.yaml")


def test_layers_that_keep_nothing_cannot_be_computed_twice(place: Place) -> None:
    """Where the head trains alone, no gradient goes through the layers."""
    place.recipe(adapter={"kind": "head", "r": "-"}, train={"gradient_checkpointing": True, "max_steps": 1})
    place.refused(
        "train recipe.yaml",
        "RecipeError: train.gradient_checkpointing: has no effect in this run, because no gradient goes through",
        f"({place.line('gradient_checkpointing')})",
        "try      another adapter.kind, or leave train.gradient_checkpointing out",
    )
    found = place.run("plan", "recipe.yaml", "train.gradient_checkpointing=false", "--memory", "1MiB")
    assert "nothing that was tried fits" in found.err and "gradient_checkpointing" not in found.out + found.err
    place.ok("train", "recipe.yaml", "adapter.embeddings=true")
    place.ok("train", "recipe.yaml", "output_dir=grown", "model.add_tokens=[<new>]")


@pytest.mark.parametrize("section", ["template", "quant"])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("short", [True, False])
def test_code_that_an_adapter_names_is_not_run(
    place: Place, copied_run: Path, section: str, inside: bool, short: bool
) -> None:
    """Wherever the file lies: a second download may have brought it."""
    folder = copied_run / "adapter"
    code = (folder if inside else place.folder) / "mine.py"
    code.write_text(RAN)
    identity = json.loads((folder / "lorikeet.json").read_text())
    said: object = str(code) if short else {"kind": str(code)}
    (folder / "lorikeet.json").write_text(json.dumps(identity | {section: said}))
    found = place.run("predict", folder, "tiny.jsonl", "-o", "replies.jsonl")
    assert found.code == 2 and f"names code as its {section}" in found.err and "model.allow_code=true" in found.err
    assert not Path("ran").exists()
    place.run("predict", folder, "tiny.jsonl", "-o", "replies.jsonl", "model.allow_code=true")
    assert Path("ran").exists()


RAN = "from pathlib import Path\nPath('ran').touch()\n"
OPENED = ["predict RUN tiny.jsonl -o replies.jsonl", "evaluate RUN", "merge RUN merged", "export gguf RUN -o a.gguf"]


@pytest.mark.parametrize("words", OPENED, ids=[words.split()[0] for words in OPENED])
@pytest.mark.parametrize("option", ["adapter.kind", "data.format", "model.family"])
def test_code_that_a_copied_run_names_is_not_run(place: Place, copied_run: Path, option: str, words: str) -> None:
    """Neither where it says itself that it may."""
    (place.folder / "mine.py").write_text(RAN)
    recipe = copied_run / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text())
    section, key = option.split(".")
    values[section][key] = "./mine.py"
    values["model"]["allow_code"] = True
    recipe.write_text(dump(values))
    asked = words.replace("RUN", str(copied_run)).split()
    error = "RecipeError: the recipe in this folder names code that never ran here"
    assert f"./mine.py   ({recipe}:" in place.refused(asked, error, "model.allow_code=true")
    assert not Path("ran").exists()
    place.run(*asked, "model.allow_code=true")
    assert Path("ran").exists()


def test_a_run_of_one_s_own_opens_as_ever_and_changed_code_does_not(place: Place) -> None:
    own = place.folder / "mine.py"
    code = "from lorikeet.data.formats.messages import Messages\nclass Mine(Messages):\n    kind: str = 'mine'\n"
    own.write_text(code)
    place.ok("train", place.recipe(data={"format": "./mine.py"}))
    words = ["predict", "run", "tiny.jsonl", "-o", "replies.jsonl"]
    place.ok(*words)
    own.write_text(code + "# another\n")
    kind_class.cache_clear()  # as in a new process
    place.refused(words, "RecipeError: the recipe in this folder names code that never ran here", "mine.py")
    place.ok("train", "recipe.yaml", "--overwrite")
    place.ok(*words)


def test_an_adapter_with_numbers_that_are_none(place: Place, copied_run: Path) -> None:
    file = copied_run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    place.refused(
        ["predict", str(copied_run), "tiny.jsonl", "-o", "replies.jsonl"], "CheckpointError: the adapter in", "1 of"
    )


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("lorikeet.json", "add_tokens", 5, "lorikeet.json: add_tokens is 5, no list of texts"),
        ("lorikeet.json", "base_fingerprint", 5, "lorikeet.json: base_fingerprint is 5, no text"),
        ("lorikeet.json", "system", 5, "lorikeet.json: system is 5, no text"),
        ("lorikeet.json", "template", 7, "lorikeet.json: template is 7"),
        ("adapter_config.json", "r", "x", "adapter_config.json: r: Input should be a valid integer"),
        ("adapter_config.json", "lora_alpha", 1e308, "adapter_config.json: lora_alpha: Input should be less than"),
    ],
)
def test_settings_that_no_adapter_has(
    place: Place, copied_run: Path, file: str, key: str, value: object, said: str
) -> None:
    path = copied_run / "adapter" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    words = ["predict", str(copied_run / "adapter"), "tiny.jsonl", "-o", "replies.jsonl"]
    place.refused(words, "CheckpointError: the adapter in", said)
