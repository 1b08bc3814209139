"""LLaMA-Factory: defaults, data, stages, and what several keys say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.base.errors import RecipeError

from .conftest import Import, left

LEAST = "model_name_or_path: m\nfinetuning_type: lora\ndataset: greetings\ntemplate: llama3\noutput_dir: o\n"


def test_its_defaults_are_written_where_ours_are_others(imported: Import) -> None:
    made = imported("x.yaml", LEAST)
    train = made.recipe.train
    assert (train.learning_rate, train.num_train_epochs, train.lr_scheduler_type.kind) == (5e-5, 3.0, "linear")
    assert (train.examples_per_step, train.seed, train.gradient_checkpointing) == (8, 42, True)
    assert "LLaMA-Factory's default for learning_rate" in made.text
    assert made.recipe.adapter.alpha == 2 * made.recipe.adapter.r == 16
    assert made.recipe.data.template.kind == "llama3"


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("train_on_prompt: true", "loss", "all"),
        ("mask_history: true", "loss", "last_reply"),
        ("stage: pt", "loss", "all"),
        ("cutoff_len: 99", "max_length", 99),
        ("max_samples: 7", "max_examples", 7),
        ("val_size: 0.25", "validation", 0.25),
        ("val_size: 12", "validation", 12),
        ("eval_dataset: chats", "validation", ["data/chats.jsonl"]),
        ("val_size: 0.0", "validation", None),
    ],
)
def test_data_options(imported: Import, line: str, option: str, value: object) -> None:
    found = getattr(imported("x.yaml", LEAST + line + "\n").recipe.data, option)
    assert found == value or [one.path for one in found] == value


@pytest.mark.parametrize(
    ("line", "status", "key", "says"),
    [
        ("stage: dpo", "differs", "stage", "supervised"),
        ("finetuning_type: freeze", "differs", "finetuning_type", "how many layers m has is not known"),
        ("neat_packing: true", "differs", "neat_packing", "a step here counts conversations"),
        ("packing: false", "not needed", "packing", "always packed"),
        ("adapter_name_or_path: saves/old", "missing", "adapter_name_or_path", "there is no saves/old here"),
        ("lr_scheduler_type: greedy", "differs", "lr_scheduler_type", "linear is set"),
        ("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {gamma: 1}", "differs", "lr_scheduler_kwargs", "no gamma"),
        ("optim: galore_adamw", "differs", "optim", "adamw_torch is set"),
        ("deepspeed: ds.json", "differs", "deepspeed", "devices"),
        ("template: intern2", "differs", "template", "comes with the model"),
        ("warmup_ratio: 0.1\nwarmup_steps: 5", "not needed", "warmup_ratio", "overrules"),
        ("lora_alphas: 3", "unknown", "lora_alphas", "lora_alpha?"),
        ("eval_steps: 5", "not needed", "eval_steps", "nothing to validate on"),
        ("report_to: wandb", "not needed", "report_to", "metrics.jsonl"),
        ("flash_attn: fa2", "not needed", "flash_attn", "no number"),
    ],
)
def test_what_has_no_equivalent_is_listed(imported: Import, line: str, status: str, key: str, says: str) -> None:
    text = "".join(one + "\n" for one in LEAST.splitlines() if not line.startswith(one.split(":")[0] + ":"))
    made = imported("x.yaml", text + line + "\n")
    assert says in left(made, status)[key]
    assert f"#   {key}" in made.text


def test_noise_and_smoothing_are_carried_over(imported: Import) -> None:
    train = imported("x.yaml", LEAST + "neftune_noise_alpha: 5\nlabel_smoothing_factor: 0.1\n").recipe.train
    assert (train.neftune_noise_alpha, train.label_smoothing_factor) == (5.0, 0.1)


@pytest.mark.parametrize(
    ("model", "lines", "targets"),
    [
        ("smollm2-135m", "", ["layers.28", "layers.29"]),
        ("smollm2-135m", "freeze_trainable_layers: 1\nfreeze_extra_modules: norm\n", r".*(layers\.(29)\.|norm).*"),
        ("anything", "freeze_trainable_layers: -2\n", ["layers.0", "layers.1"]),
        ("here", "freeze_trainable_layers: 9\n", ["layers.0", "layers.1", "layers.2"]),
        ("smollm2-135m", "freeze_trainable_modules: mlp\n", r".*(layers\.(28|29)\.(mlp)\.).*"),
    ],
)
def test_freeze_tuning_names_layers(imported: Import, place: Path, model: str, lines: str, targets: object) -> None:
    (place / "here").mkdir()
    (place / "here" / "config.json").write_text('{"num_hidden_layers": 3}')
    text = LEAST.replace("path: m", f"path: {model}").replace("type: lora", "type: freeze") + lines
    made = imported("x.yaml", text)
    assert (made.recipe.adapter.kind, made.recipe.adapter.target_modules) == ("full", targets)
    assert left(made, "differs") == {}


@pytest.mark.parametrize(
    ("lines", "option", "value"),
    [
        ("loraplus_lr_ratio: 16.0", "loraplus_lr_ratio", 16.0),
        ("pissa_init: true", "init_lora_weights", "pissa_niter_16"),
        ("pissa_init: true\npissa_iter: -1\npissa_convert: true", "init_lora_weights", "pissa"),
        ("pissa_init: false\npissa_iter: 4", "init_lora_weights", True),
    ],
)
def test_what_lora_starts_with_and_lora_plus(imported: Import, lines: str, option: str, value: object) -> None:
    made = imported("x.yaml", LEAST + lines + "\n")
    assert getattr(made.recipe.adapter, option) == value
    assert left(made, "differs") == {}


def test_full_fine_tuning_is_ours(imported: Import) -> None:
    adapter = imported("x.yaml", LEAST.replace("type: lora", "type: full")).recipe.adapter
    assert (adapter.kind, adapter.target_modules) == ("full", "all")


def test_off_is_no_difference(imported: Import) -> None:
    off = "use_dora: false\nuse_galore: false\nneftune_noise_alpha:\nmix_strategy: concat\nquantization_bit:\n"
    assert left(imported("x.yaml", LEAST + off), "differs") == {}


def test_interleaved_data_has_weights(imported: Import) -> None:
    text = LEAST.replace("greetings", "greetings, chats") + "mix_strategy: interleave_over\ninterleave_probs: 0.7,0.3\n"
    data = imported("x.yaml", text).recipe.data
    assert [source.weight for source in data.train] == [0.7, 0.3]
    assert data.mix.epoch == "all_exhausted"


def test_data_is_found_above_the_file(imported: Import) -> None:
    made = imported("examples/train_lora/x.yaml", LEAST)
    assert made.recipe.data.train == ["data/greetings.json"]


def test_a_data_set_that_is_given_needs_no_dataset_info(imported: Import) -> None:
    made = imported("x.yaml", LEAST.replace("greetings", "nobody"), "data.train=[mine.json]")
    assert made.recipe.data.train == ["mine.json"]
    assert "set behind the command" in made.text


def test_max_steps_and_epochs_do_not_meet(imported: Import) -> None:
    made = imported("x.yaml", LEAST + "max_steps: 9\nnum_train_epochs: 3\n")
    assert made.recipe.train.max_steps == 9
    assert "num_train_epochs" in left(made, "not needed")
    assert imported("x.yaml", LEAST + "max_steps: -1\n").recipe.train.max_steps is None


def test_eval_steps_need_their_strategy(imported: Import) -> None:
    assert imported("x.yaml", LEAST + "val_size: 4\neval_steps: 5\n").recipe.train.eval_steps is None
    text = LEAST + "val_size: 4\neval_strategy: steps\neval_steps: 5\n"
    assert imported("x.yaml", text).recipe.train.eval_steps == 5


def test_a_value_out_of_range_names_their_line(imported: Import) -> None:
    with pytest.raises(RecipeError, match=r"adapter.r: out of range\n  given    0   \(x.yaml:6\)"):
        imported("x.yaml", LEAST + "lora_rank: 0\n")


def test_an_option_behind_the_command_replaces_its_rivals(imported: Import) -> None:
    made = imported("x.yaml", LEAST, "train.examples_per_step=5", "data.template.system=Be brief.", "adapter.r=3")
    assert made.recipe.train.examples_per_step == 5
    assert (made.recipe.data.template.kind, made.recipe.data.template.system) == ("llama3", "Be brief.")
    assert made.recipe.adapter.r == 3
