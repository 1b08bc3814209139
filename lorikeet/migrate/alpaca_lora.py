"""The command line of alpaca-lora's `finetune.py` and of taprosoft's llm_finetuning, which grew out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lorikeet.migrate._contract import Content, System, Translation
from lorikeet.migrate._datasets import Dataset, beside, set_datasets
from lorikeet.migrate._kinds import INPUT_HEADING, OPTIMIZERS, set_choice, set_quant, set_targets, set_template
from lorikeet.migrate._table import Row, apply, by_hand, devices_note, not_needed, to, write_defaults

NAME = "llm_finetuning"
_LOG = "figures go to metrics.jsonl and report.html in the run's folder; no account, no upload"
_GPTQ = "a property of the kernel there"

TABLE: dict[str, Row] = {
    "base_model": to("model.path", "text"),
    "data_path": by_hand("data.train", "data.validation"),
    "output_dir": to("output_dir", "text"),
    "batch_size": by_hand("train.examples_per_step"),
    "micro_batch_size": not_needed("rows are packed up to train.row_tokens, by default from the machine's memory"),
    "num_epochs": to("train.num_train_epochs", "number"),
    "learning_rate": to("train.learning_rate", "number"),
    "cutoff_len": to("data.max_length", "whole"),
    "val_set_size": by_hand("data.validation"),
    "eval_steps": by_hand("train.eval_steps"),
    "save_steps": to("train.save_steps", "whole"),
    "logging_steps": to("train.logging_steps", "whole"),
    "lora_r": to("adapter.r", "whole"),
    "lora_alpha": to("adapter.lora_alpha", "number"),
    "lora_dropout": to("adapter.lora_dropout", "number"),
    "lora_target_modules": by_hand("adapter.target_modules"),
    "train_on_inputs": by_hand("data.loss"),
    "add_eos_token": not_needed("every reply ends with its end token, and learns it"),
    "group_by_length": not_needed("rows are packed without padding; the order stays random"),
    "wandb_project": not_needed(_LOG),
    "wandb_run_name": not_needed(_LOG),
    "wandb_watch": not_needed(_LOG),
    "wandb_log_model": not_needed(_LOG),
    "resume_from_checkpoint": not_needed("the same command goes on from the newest checkpoint by itself"),
    "prompt_template": by_hand("data.template", "data.format"),
    "prompt_template_name": by_hand("data.template", "data.format"),
    "mode": by_hand("quant", "model.dtype", "train.optim"),
    "gradient_checkpointing": to("train.gradient_checkpointing", "flag"),
    "gptq_backend": not_needed(_GPTQ),
    "gptq_groupsize": not_needed("read from the checkpoint"),
    "eval": not_needed("lorikeet evaluate RUN"),
}
DEFAULTS: dict[str, tuple[str, Any]] = {
    "data.validation": ("val_set_size", None),
    "output_dir": ("output_dir", "./lora-alpaca"),
    "data.max_length": ("cutoff_len", 256),
    "data.truncation": ("cutoff_len", "cut"),
    "data.loss": ("train_on_inputs", "all"),
    "adapter.r": ("lora_r", 8),
    "adapter.lora_alpha": ("lora_alpha", 16),
    "adapter.lora_dropout": ("lora_dropout", 0.05),
    "adapter.target_modules": ("lora_target_modules", ["q_proj", "v_proj"]),
    "train.learning_rate": ("learning_rate", 3e-4),
    "train.num_train_epochs": ("num_epochs", 3.0),
    "train.examples_per_step": ("batch_size", 128),
    "train.lr_scheduler_type": ("the schedule, which is fixed", "linear"),
    "train.warmup_steps": ("the warm-up, which is fixed", 100),
    "train.logging_steps": ("logging_steps", 10),
    "train.save_steps": ("save_steps", 10),
    "train.save_total_limit": ("the checkpoints kept, which is fixed", 3),
    "train.seed": ("the seed, which is fixed", 42),
}
_MODES = {"4": "nf4", "8": "int8", "gptq": "gptq"}
_ONLY_HERE = ("data_path", "cutoff_len", "micro_batch_size", "prompt_template", "prompt_template_name", "mode")


class AlpacaLora(System):
    """See the module."""

    name: ClassVar[str] = NAME

    def recognise(self, content: Content) -> int:
        foreign = content.has("datasets") or content.has("model_name_or_path")
        return 0 if foreign or not content.has("base_model") else sum(content.has(key) for key in _ONLY_HERE)

    def translate(self, content: Content, datasets: Sequence[str]) -> Translation:
        made = Translation(content, NAME)
        _mode(made)
        _template(made)
        _data(made)
        if content.has("lora_target_modules"):
            set_targets(made, content.words("lora_target_modules"), "lora_target_modules")
        if content.has("batch_size"):
            made.set("train.examples_per_step", content.whole("batch_size"), "batch_size", devices_note(content))
        if content.has("train_on_inputs"):
            made.set("data.loss", "all" if content.flag("train_on_inputs") else "replies", "train_on_inputs")
        _evaluate(made)
        apply(TABLE, made)
        made.unknown(list(TABLE))
        write_defaults(DEFAULTS, made)
        return made


def _mode(made: Translation) -> None:
    """8 by default: int8 weights; 4, gptq, and 16, which is half precision."""
    content = made.content
    mode, key = content.text("mode", "8").lower(), "mode"
    made.seen.add(key)
    if mode in _MODES:
        set_quant(made, _MODES[mode], key)
    if mode in ("4", "8"):
        set_choice(made, "train.optim", OPTIMIZERS, "paged_adamw_8bit", key)


def _template(made: Translation) -> None:
    content = made.content
    key = "prompt_template_name" if content.has("prompt_template_name") else "prompt_template"
    made.seen |= {"prompt_template", "prompt_template_name"}
    if content.has(key):
        set_template(made, content.text(key), key, strict=True)
    else:
        set_template(made, "vicuna", "")
        option = ("data", "template")
        note = "llm_finetuning's default for prompt_template (alpaca-lora's is alpaca)"
        made.set("data.template", made.settings[option].value, "", note)
    name = content.text(key, "vicuna")
    if name.startswith("vicuna"):
        made.leave("differs", key, INPUT_HEADING)
        made.leave("differs", key, "its vicuna opens with a sentence of its own: data.template.system sets ours")
    kind = "sharegpt" if "sharegpt" in name else "text" if name == "text" else "alpaca"
    made.set("data.format", {"kind": kind}, key if content.has(key) else "", "what this template reads")
    if kind == "sharegpt":
        why = "whole conversations were trained there, roles and all; here data.loss says what is"
        made.leave("differs", key, why)


def _data(made: Translation) -> None:
    content = made.content
    path = content.text("data_path", "yahma/alpaca-cleaned")
    key = "data_path"
    is_file = Path(path).suffix in (".json", ".jsonl") or Path(path).exists() or path.startswith((".", "/"))
    source = beside(path, content) if is_file else f"hf:{path}"
    held = content.number("val_set_size", 2000)
    made.seen |= {"data_path", "val_set_size"}
    if "data.train" not in content.given:
        set_datasets(made, "data.train", [Dataset(path, source, made.get("data.format"))], key)
    if held:
        told = content.has("val_set_size")
        note = "" if told else f"{NAME}'s default for val_set_size"
        made.set("data.validation", held, "val_set_size" if told else "", note)
    elif Path(path).is_dir():  # train.json and test.json
        tests = [Dataset(path, source, made.get("data.format"), split="test")]
        set_datasets(made, "data.validation", tests, key)


def _evaluate(made: Translation) -> None:
    content = made.content
    every = content.whole("eval_steps", 100)
    made.seen.add("eval_steps")
    if made.get("data.validation") is None:
        if content.has("eval_steps"):
            made.leave("not needed", "eval_steps", "there is nothing to validate on")
    elif every:
        told = content.has("eval_steps")
        made.set("train.eval_steps", every, "eval_steps" if told else "", "" if told else f"{NAME}'s default")
