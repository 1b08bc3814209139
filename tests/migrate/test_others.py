"""Axolotl, scripts, TRL, dataset_info.json: what is particular to each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet.base.errors import LorikeetError
from lorikeet.base.yaml_lines import dump
from lorikeet.migrate import _recipe
from lorikeet.migrate._axolotl_table import TABLE as AXOLOTL
from lorikeet.migrate._read import read
from lorikeet.migrate.llamafactory import TABLE as LLAMAFACTORY

from .conftest import Import, left

AXOLOTL_LEAST = (
    "base_model: m\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlearning_rate: 1e-4\ndatasets:\n  - {path: a.jsonl, "
)


@pytest.mark.parametrize(
    ("entry", "kind", "template"),
    [
        ("type: alpaca", "alpaca", "alpaca"),
        ("type: sharegpt, conversation: chatml", "sharegpt", "chatml"),
        ("type: completion, field: body", "text", "raw"),
        ("type: chat_template", "messages", "jinja"),
        ("type: chat_template, chat_template: llama3", "messages", "llama3"),
        ("type: chat_template, message_property_mappings: {role: from, content: value}", "sharegpt", "jinja"),
        ("type: oasst", "auto", "jinja"),
    ],
)
def test_axolotl_prompt_types(imported: Import, entry: str, kind: str, template: str) -> None:
    data = imported("x.yml", AXOLOTL_LEAST + entry + "}\n").recipe.data
    assert (data.format.kind, data.template.kind) == (kind, template)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("lr_scheduler: cosine\ncosine_min_lr_ratio: 0.2\n", {"kind": "cosine_with_min_lr", "min_lr_rate": 0.2}),
        (
            "lr_scheduler: polynomial\nlr_scheduler_kwargs: {power: 2, lr_end: 1e-6}\n",
            {"kind": "polynomial", "power": 2.0, "lr_end": 1e-6},
        ),
        (
            "lr_scheduler: cosine_with_restarts\nlr_scheduler_kwargs: '{\"num_cycles\": 4}'\n",
            {"kind": "cosine_with_restarts", "num_cycles": 4},
        ),
    ],
)
def test_schedules_bring_their_settings(imported: Import, lines: str, expected: dict[str, Any]) -> None:
    schedule = imported("x.yml", AXOLOTL_LEAST + "type: alpaca}\n" + lines).recipe.train.lr_scheduler_type
    assert schedule.model_dump(include=set(expected)) == expected


def test_axolotl_defaults(imported: Import) -> None:
    recipe = imported("x.yml", AXOLOTL_LEAST + "type: alpaca}\n").recipe
    assert (recipe.data.max_length, recipe.data.truncation) == (512, "drop")
    assert recipe.adapter.target_modules == ["q_proj", "v_proj"]
    assert (recipe.train.warmup_ratio, recipe.train.examples_per_step, recipe.train.seed) == (0.03, 1, 42)


@pytest.mark.parametrize(
    ("path", "files", "expected"),
    [
        ("org/name", "", "hf:org/name"),
        ("org/name", "data_files: [a.jsonl], ", "https://huggingface.co/datasets/org/name/resolve/main/a.jsonl"),
        (
            "org/name",
            "data_files: a.jsonl, name: en, revision: v1, ",
            "https://huggingface.co/datasets/org/name/resolve/v1/a.jsonl",
        ),
        ("json", "data_files: rows/a.jsonl, name: en, ", "rows/a.jsonl"),
        ("./rows.jsonl", "", "rows.jsonl"),
        ("https://example.org/a.jsonl", "", "https://example.org/a.jsonl"),
    ],
)
def test_axolotl_paths(imported: Import, path: str, files: str, expected: str) -> None:
    text = AXOLOTL_LEAST.replace("path: a.jsonl, ", f"path: '{path}', {files}") + "type: alpaca}\n"
    assert imported("x.yml", text).recipe.data.train == [expected]


def test_axolotl_one_template_for_all(imported: Import) -> None:
    made = imported(
        "x.yml", AXOLOTL_LEAST + "type: alpaca}\n  - {path: b.jsonl, type: chat_template, chat_template: chatml}\n"
    )
    assert made.recipe.data.template.kind == "alpaca"
    assert "one template for all data" in left(made, "differs")["datasets"]
    assert [source.format.kind for source in made.recipe.data.train] == ["alpaca", "messages"]


def test_a_full_fine_tuning_is_a_difference(imported: Import) -> None:
    made = imported("x.yml", AXOLOTL_LEAST.replace("adapter: lora", "adapter:") + "type: alpaca}\n")
    assert "adapter" in left(made, "differs") or made.recipe.adapter.kind == "full"


def test_roles_to_train(imported: Import) -> None:
    made = imported("x.yml", AXOLOTL_LEAST + "type: chat_template, roles_to_train: [user, assistant]}\n")
    assert made.recipe.data.role_weights == {"user": 1.0, "assistant": 1.0}
    made = imported("y.yml", AXOLOTL_LEAST + "type: chat_template, roles_to_train: [human]}\n")
    assert made.recipe.data.role_weights == {"user": 1.0, "assistant": 0.0}


@pytest.mark.parametrize("key", ["dataset_config", "dataset_config_name"])
def test_trl_validates_with_the_same_configuration(imported: Import, key: str) -> None:
    text = f"model_name_or_path: m\ndataset_name: org/set\n{key}: en\neval_strategy: epoch\nuse_peft: true\n"
    data = imported("x.yaml", text).recipe.data
    assert [(one.path, one.name) for one in [*data.train, *data.validation]] == [("hf:org/set", "en")] * 2


def test_a_script_s_words(place: Path) -> None:
    (place / "x.sh").write_text(
        "#!/bin/sh\nA=1  # one\nB=\"two words\"\nexport C=${A}x\n"
        "accelerate launch --num_processes 3 \\\n  train.py --a $A \\ \n --b=\"$B\" --c ${C} --flag --list x y\\\n"
        "  --off False > log 2>&1 &\necho done --not mine\n"
    )  # fmt: skip
    content = read(Path("x.sh"))
    assert content.values == {"a": 1, "b": "two words", "c": "1x", "flag": True, "list": ["x", "y"], "off": False}
    assert (content.program, content.devices) == ("train.py", 3)
    assert content.place("b").startswith("x.sh:")


def test_devices_make_the_step_larger(imported: Import) -> None:
    script = (
        "torchrun --nproc_per_node=4 finetune.py --model_name_or_path m --data_path d.json --use_lora "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 8 --output_dir o --lazy_preprocess True\n"
    )
    made = imported("x.sh", script)
    assert made.system == "Qwen"
    assert made.recipe.train.examples_per_step == 64
    assert made.recipe.data.loss == "replies+structure"
    assert made.recipe.adapter.target_modules == "all-linear"


def test_llm_finetuning_s_folder_of_train_and_test(imported: Import, place: Path) -> None:
    flags = "--base_model m --data_path rows --val_set_size 0 --prompt_template sharegpt --output_dir o"
    (place / "rows").mkdir()
    data = imported("x.sh", f"python finetune.py {flags}\n").recipe.data
    assert (data.train, data.validation[0].split) == (["rows"], "test")
    assert (data.format.kind, data.template.kind, data.loss) == ("sharegpt", "sharegpt", "all")


def test_trl_learns_everything_unless_told(imported: Import) -> None:
    text = "model_name_or_path: m\ndataset_name: org/d\nuse_peft: true\noutput_dir: o\n"
    assert "assistant_only_loss" in left(imported("x.yaml", text), "differs")
    assert imported("x.yaml", text + "completion_only_loss: false\n").recipe.data.loss == "all"


def test_arguments_in_json(imported: Import) -> None:
    made = imported("x.json", '{\n "model_name_or_path": "m",\n "train_file": "a.json", "learning_rate": 1e-3}\n')
    assert made.recipe.train.learning_rate == 1e-3
    assert "learning_rate (line 3)" in made.text


def test_one_of_the_data_sets(imported: Import) -> None:
    made = imported("data/dataset_info.json", None, datasets=("questions",))
    (source,) = made.recipe.data.train
    assert (source.path, source.split, source.max_examples) == ("hf:some-org/questions", "full", 300)
    assert made.recipe.data.format.model_dump()["prompt"] == "question"
    assert str(made.recipe.output_dir) == "runs/questions"


VALUES: Any = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(allow_nan=False),
    st.text("ab, [:#'x-1.", max_size=8),
    st.lists(st.text("ab", max_size=3), max_size=3),
    st.dictionaries(st.text("ab", max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@given(st.data())
def test_any_values_give_a_recipe_or_an_error_for_people(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    table, base = data.draw(
        st.sampled_from(
            [
                (LLAMAFACTORY, {"model_name_or_path": "m", "finetuning_type": "lora"}),
                (AXOLOTL, {"base_model": "m", "datasets": [{"path": "a.json", "type": "alpaca"}], "adapter": "lora"}),
            ]
        )
    )
    keys = st.sampled_from(sorted(table))
    values = {**base, "output_dir": "o", **data.draw(st.dictionaries(keys, VALUES, max_size=5))}
    path = folder / "any.yaml"
    path.write_text(dump(values))
    try:
        made = _recipe.translated(path, (), ["data.train=[a.json]", "output_dir=o"])
    except LorikeetError as error:
        assert len(str(error).split("\n")) <= 4
    else:
        assert made.recipe.model.path


CHATGLM = "model_name_or_path: m\ntrain_file: a.json\nprompt_column: input\npre_seq_len: 128\n"


@pytest.mark.parametrize(("bits", "kind"), [(4, "nf4"), (8, "int8")])
def test_chatglm_s_bits_are_kinds_here(imported: Import, bits: int, kind: str) -> None:
    """Its 4 bits are integers by rows, which are no kind here: nf4 is as small, and the difference is listed."""
    made = imported("x.yaml", CHATGLM + f"quantization_bit: {bits}\n")
    assert made.recipe.quant.kind == kind
    assert ("quantization_bit" in left(made, "differs")) == (bits == 4)


def test_bits_that_chatglm_lacks_are_listed(imported: Import) -> None:
    made = imported("x.yaml", CHATGLM + "quantization_bit: 3\n")
    assert made.recipe.quant.kind == "none"
    assert "3 bit" in left(made, "differs")["quantization_bit"]
