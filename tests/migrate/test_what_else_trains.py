"""What other systems train beside low-rank updates, and what they go on from: modules, tokens, rates, old adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.base.errors import RecipeError

from .conftest import Import, left

FACTORY = "model_name_or_path: m\nfinetuning_type: lora\ndataset: greetings\ntemplate: llama3\noutput_dir: o\n"
AXOLOTL = "base_model: m\nadapter: lora\nlora_r: 4\nlearning_rate: 1e-4\ndatasets: [{path: a.jsonl, type: alpaca}]\n"
TRL = "model_name_or_path: m\ndataset_name: org/set\nuse_peft: true\n"
TABLES = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    "text",
    [
        FACTORY + "additional_target: embed_tokens,lm_head\n",
        AXOLOTL + "lora_modules_to_save: [embed_tokens, lm_head]\n",
        TRL + "lora_modules_to_save: [embed_tokens, lm_head]\n",
    ],
    ids=["llamafactory", "axolotl", "trl"],
)
def test_modules_that_train_whole(imported: Import, text: str) -> None:
    made = imported("x.yaml", text)
    assert made.recipe.adapter.modules_to_save == TABLES
    assert not {"additional_target", "lora_modules_to_save"} & (left(made, "differs") | left(made, "unknown")).keys()


@pytest.mark.parametrize(
    "text",
    [
        FACTORY.replace("type: lora", "type: full") + "additional_target: lm_head\n",
        AXOLOTL.replace("adapter: lora", "adapter:") + "lora_modules_to_save: [lm_head]\n",
        TRL.replace("use_peft: true", "use_peft: false") + "lora_modules_to_save: [lm_head]\n",
    ],
    ids=["llamafactory", "axolotl", "trl"],
)
def test_they_have_no_effect_without_lora(imported: Import, text: str) -> None:
    made = imported("x.yaml", text)
    assert made.recipe.adapter.kind == "full"
    assert {"additional_target", "lora_modules_to_save"} & left(made, "not needed").keys()


@pytest.mark.parametrize(
    ("script", "modules"),
    [
        ("finetune.py --model_name_or_path Qwen/Qwen-7B --use_lora", ["wte", "lm_head"]),
        ("finetune.py --model_name_or_path Qwen/Qwen-7B-Chat --use_lora", []),
        ("finetune.py --model_name_or_path Qwen/Qwen-7B --use_lora --q_lora", []),
    ],
)
def test_qwen_s_script_trains_both_tables_of_a_base_model(imported: Import, script: str, modules: list[str]) -> None:
    made = imported("x.sh", f"python {script} --data_path a.json --lazy_preprocess True\n")
    assert made.recipe.adapter.modules_to_save == modules


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (FACTORY + "adapter_name_or_path: old\nlora_rank: 16\nlora_target: q_proj\n", "lora_rank"),
        (AXOLOTL + "lora_model_dir: old\nlora_target_linear: true\n", "lora_r"),
    ],
    ids=["llamafactory", "axolotl"],
)
def test_an_old_adapter_says_what_it_is(imported: Import, place: Path, text: str, key: str) -> None:
    """The folder's rank and linears hold: the recipe says nothing of them, so that they cannot differ."""
    made = imported("x.yaml", text)
    assert left(made, "missing")[next(iter(left(made, "missing")))] and "old" in made.text
    (place / "old").mkdir()
    made = imported("x.yaml", text)
    assert made.recipe.adapter.path == Path("old")
    assert made.recipe.adapter.model_fields_set <= {"kind", "path"}
    assert "folder says it" in left(made, "not needed")[key]
    assert not {"adapter_name_or_path", "lora_model_dir"} & left(made, "missing").keys()


def test_several_old_adapters(imported: Import) -> None:
    made = imported("x.yaml", FACTORY + "adapter_name_or_path: one,two\n")
    assert made.recipe.adapter.path == Path("two") and "merge" in left(made, "differs")["adapter_name_or_path"]
    made = imported("x.yaml", FACTORY + "adapter_name_or_path: one\ncreate_new_adapter: true\nlora_rank: 3\n")
    assert made.recipe.adapter.path is None and made.recipe.adapter.r == 3
    assert "merge" in left(made, "differs")["adapter_name_or_path"]


@pytest.mark.parametrize(
    ("text", "tokens", "alone"),
    [
        (FACTORY + 'add_special_tokens: "<|a|>,[B]"\n', ["<|a|>", "[B]"], True),
        (FACTORY + "new_special_tokens: <|a|>\nadd_tokens: <|b|>\n", ["<|a|>", "<|b|>"], True),
        (FACTORY + "add_special_tokens: <|a|>\nadditional_target: embed_tokens,lm_head\n", ["<|a|>"], False),
        (AXOLOTL + 'tokens: ["<|a|>", "<|b|>"]\n', ["<|a|>", "<|b|>"], True),
        (AXOLOTL + 'tokens: ["<|a|>"]\nlora_modules_to_save: [embed_tokens, lm_head]\n', ["<|a|>"], False),
    ],
)
def test_new_tokens(imported: Import, text: str, tokens: list[str], alone: bool) -> None:
    made = imported("x.yaml", text)
    assert made.recipe.model.add_tokens == tokens
    assert any("only their rows" in why for why in left(made, "differs").values()) == alone


def test_learning_rates_of_their_own(imported: Import) -> None:
    saved = AXOLOTL + "lora_modules_to_save: [embed_tokens]\n"
    made = imported("x.yaml", saved + "embedding_lr: 5e-5\n")
    assert made.recipe.train.lr_multipliers == {"embed_tokens|lm_head": 0.5}
    made = imported("x.yaml", saved + "embedding_lr_scale: 0.1\n")
    assert made.recipe.train.lr_multipliers == {"embed_tokens|lm_head": 0.1}
    made = imported("x.yaml", AXOLOTL + "embedding_lr: 5e-5\n")
    assert made.recipe.train.lr_multipliers == {} and "embedding_lr" in left(made, "not needed")
    made = imported("x.yaml", AXOLOTL + "lr_groups: [{name: a, modules: [q_proj, o.proj], lr: 2e-4}]\n")
    assert made.recipe.train.lr_multipliers == {r"q_proj|o\.proj": 2.0}


@pytest.mark.parametrize("groups", ["[q_proj]", "{q_proj: 1e-4}", "[{name: a, lr: 1e-4}]", "[{modules: 3, lr: 1e-4}]"])
def test_groups_that_are_none(imported: Import, groups: str) -> None:
    with pytest.raises(RecipeError, match="lr_groups: has the wrong type"):
        imported("x.yaml", AXOLOTL + f"lr_groups: {groups}\n")
