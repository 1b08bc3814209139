"""Programs around transformers' TrainingArguments: TRL (`trl sft`, its YAML), Qwen's and FastChat's training scripts,
ChatGLM's p-tuning, and a .json of TrainingArguments. What each adds or leaves silent is one `Dialect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lorikeet.base.errors import RecipeError
from lorikeet.migrate import _training_arguments as arguments
from lorikeet.migrate._contract import Content, System, Translation
from lorikeet.migrate._datasets import Dataset, beside, set_datasets, with_options
from lorikeet.migrate._kinds import set_method, set_quant, set_targets, set_template
from lorikeet.migrate._table import REMOTE_CODE, Row, apply, by_hand, differs, not_needed, to, write_defaults
from lorikeet.migrate._trained_layers import saved_modules

_PREPARED = "examples are prepared once and kept under the cache folder by content; data.cache says whether"
_SPEED = "changes speed or memory there, and no number"
_LORA = {"adapter.r": "lora_r", "adapter.lora_alpha": "lora_alpha", "adapter.lora_dropout": "lora_dropout"}
_QWEN1 = {"c_attn", "c_proj", "w1", "w2"}  # every linear of a Qwen 1, under its own names

TABLE: dict[str, Row] = {
    **arguments.TABLE,
    "model_name_or_path": to("model.path", "text"),
    "data_path": by_hand("data.train"),
    "train_file": by_hand("data.train"),
    "dataset_name": by_hand("data.train"),
    "dataset_config": by_hand("data.train"),
    "dataset_config_name": by_hand("data.train"),
    "dataset_train_split": by_hand("data.train"),
    "dataset_test_split": by_hand("data.validation"),
    "eval_data_path": by_hand("data.validation"),
    "validation_file": by_hand("data.validation"),
    "validation_split_percentage": by_hand("data.validation"),
    "prompt_column": by_hand("data.format"),
    "response_column": by_hand("data.format"),
    "history_column": by_hand("data.format"),
    "dataset_text_field": by_hand("data.format"),
    "test_file": not_needed("lorikeet predict RUN FILE --output replies.jsonl"),
    "model_max_length": by_hand("data.max_length"),
    "max_length": by_hand("data.max_length"),
    "max_seq_length": by_hand("data.max_length"),
    "max_source_length": by_hand("data.max_length"),
    "max_target_length": by_hand("data.max_length"),
    "truncation_mode": by_hand("data.truncation"),
    "max_train_samples": to("data.max_examples", "whole"),
    "packing": by_hand(),
    "use_lora": by_hand("adapter.kind"),
    "use_peft": by_hand("adapter.kind"),
    "q_lora": by_hand("quant"),
    "pre_seq_len": by_hand("adapter.kind"),
    "quantization_bit": by_hand("quant"),
    "load_in_4bit": by_hand("quant"),
    "load_in_8bit": by_hand("quant"),
    "bnb_4bit_quant_type": by_hand("quant"),
    "lora_r": by_hand("adapter.r"),
    "lora_alpha": by_hand("adapter.lora_alpha"),
    "lora_dropout": by_hand("adapter.lora_dropout"),
    "lora_target_modules": by_hand("adapter.target_modules"),
    "lora_bias": by_hand("adapter.bias"),
    "use_rslora": by_hand("adapter.use_rslora"),
    "use_dora": by_hand("adapter.kind"),
    "completion_only_loss": by_hand("data.loss"),
    "assistant_only_loss": by_hand("data.loss"),
    "dtype": by_hand("model.dtype"),
    "torch_dtype": by_hand("model.dtype"),
    "chat_template_path": by_hand("data.template"),
    "lora_modules_to_save": by_hand("adapter.modules_to_save"),
    "lora_weight_path": not_needed("not read there either"),
    "ptuning_checkpoint": differs(
        "adapter.path goes on from a run, or from a folder of PEFT's, and not from this file"
    ),
    "prefix_projection": by_hand("adapter.prefix_projection"),
    "source_prefix": differs("write it into the rows, or as the template's system prompt"),
    "model_revision": differs("the newest revision is fetched; model.path: hf:ORG/NAME@REVISION names one", "main"),
    "loss_type": differs("the loss here is cross-entropy", "nll"),
    "eos_token": differs("control tokens are those of the model's tokenizer"),
    "use_bnb_nested_quant": by_hand("quant.double_quant"),
    "bnb_4bit_use_double_quant": by_hand("quant.double_quant"),
    "lora_task_type": not_needed("models here are causal language models"),
    "lazy_preprocess": not_needed(_PREPARED),
    "overwrite_cache": not_needed(_PREPARED),
    "preprocessing_num_workers": not_needed(_PREPARED),
    "dataset_num_proc": not_needed(_PREPARED),
    "dataset_streaming": not_needed(_PREPARED),
    "cache_dir": not_needed("$XDG_CACHE_HOME/lorikeet"),
    "trust_remote_code": not_needed(REMOTE_CODE),
    "attn_implementation": not_needed(_SPEED),
    "flash_attn": not_needed(_SPEED),
    "packing_strategy": not_needed("rows are always packed, and packing changes no number"),
    "eval_packing": not_needed("rows are always packed, and packing changes no number"),
    "padding_free": not_needed("rows are always packed, and packing changes no number"),
    "pad_token": not_needed("there is no padding"),
    "pad_to_multiple_of": not_needed("there is no padding"),
    "ignore_pad_token_for_loss": not_needed("there is no padding"),
}


@dataclass(frozen=True)
class Dialect:
    """A program: how it is told apart, and what it does where nothing is said."""

    name: str
    keys: tuple[str, ...] = ()  # any of these is its own
    programs: tuple[str, ...] = ()
    template: str = ""
    format: str = "auto"
    lora: tuple[Any, ...] = (8, 8, 0.0, ["q_proj", "v_proj"])  # r, alpha, dropout, targets: PEFT's
    defaults: dict[str, tuple[str, Any]] = field(default_factory=dict)


DIALECTS = (
    Dialect(
        "Qwen",
        ("lazy_preprocess", "q_lora", "use_lora"),
        template="qwen",
        format="sharegpt",
        lora=(64, 16, 0.05, ["c_attn", "c_proj", "w1", "w2"]),
        defaults={
            "data.max_length": ("model_max_length", 8192),
            "data.truncation": ("model_max_length", "cut"),
            "data.loss": ("its labels", "replies+structure"),
        },
    ),
    Dialect(
        "ChatGLM p-tuning",
        ("pre_seq_len", "prompt_column", "ptuning_checkpoint"),
        format="columns",
        defaults={"data.max_length": ("max_source_length + max_target_length", 1152)},
    ),
    Dialect(
        "FastChat",
        ("model_max_length",),
        ("train_lora.py", "train_mem.py"),
        template="vicuna",
        format="sharegpt",
        lora=(8, 16, 0.05, ["q_proj", "v_proj"]),
        defaults={"data.max_length": ("model_max_length", 512), "data.truncation": ("model_max_length", "cut")},
    ),
    Dialect(
        "TRL",
        ("dataset_name", "use_peft", "assistant_only_loss", "completion_only_loss", "packing"),
        ("trl sft", "sft.py"),
        lora=(16, 32, 0.05, ["q_proj", "v_proj"]),
        defaults={
            "data.max_length": ("max_length", 1024),
            "data.truncation": ("truncation_mode", "cut"),
            "train.learning_rate": ("learning_rate", 2e-5),
            "train.gradient_checkpointing": ("gradient_checkpointing", True),
            "train.logging_steps": ("logging_steps", 10),
        },
    ),
    Dialect("TrainingArguments"),
)


class HfArguments(System):
    """See the module."""

    name: ClassVar[str] = "TRL and scripts on TrainingArguments"

    def recognise(self, content: Content) -> int:
        return sum(content.has(key) for key in TABLE) if content.has("model_name_or_path") else 0

    def translate(self, content: Content, datasets: Sequence[str]) -> Translation:
        dialect = _dialect(content)
        made = Translation(content, dialect.name)
        arguments.together(made)
        _adapter(made, dialect)
        _quant(made)
        _length(made)
        _data(made, dialect)
        _loss(made, dialect)
        arguments.when_to_validate(made)
        apply(TABLE, made)
        made.unknown(list(TABLE))
        write_defaults({"data.validation": ("validation", None), **arguments.DEFAULTS, **dialect.defaults}, made)
        if ("output_dir",) not in made.settings:
            made.set("output_dir", "trainer_output", "", "TrainingArguments' default")
        return made


def _dialect(content: Content) -> Dialect:
    for dialect in DIALECTS:
        if any(content.program.endswith(program) for program in dialect.programs):
            return dialect
    return next((one for one in DIALECTS if any(content.has(key) for key in one.keys)), DIALECTS[-1])


def _adapter(made: Translation, dialect: Dialect) -> None:
    content = made.content
    made.seen |= {"use_lora", "use_peft", "use_dora", "pre_seq_len", "prefix_projection", "q_lora"}
    told = [key for key in ("use_lora", "use_peft") if content.has(key)]
    if content.has("pre_seq_len"):
        kind = set_method(made, "prefix", "pre_seq_len")
        made.set("adapter.num_virtual_tokens", int(content.number("pre_seq_len")), "pre_seq_len")
        if content.has("prefix_projection"):
            made.set("adapter.prefix_projection", content.flag("prefix_projection"), "prefix_projection")
    elif content.has("use_dora") and content.flag("use_dora"):
        kind = set_method(made, "dora", "use_dora")
    elif any(content.flag(key) for key in told) or any(content.has(key) for key in _LORA.values()):
        kind = set_method(made, "lora", told[0] if told else "lora_r")
    elif dialect.name in ("Qwen", "TRL"):  # these train every weight unless they are told
        kind = set_method(made, "full", told[0] if told else "")
    else:
        kind = ""
    if kind not in ("lora", "dora") or content.has("pre_seq_len"):
        if content.has("lora_modules_to_save"):
            made.leave("not needed", "lora_modules_to_save", "has no effect there without LoRA")
        return
    for (option, key), value in zip(_LORA.items(), dialect.lora):
        told_here = content.has(key)
        note = "" if told_here else f"{dialect.name}'s default for {key}"
        made.set(option, content.number(key, value), key if told_here else "", note)
    words = content.words("lora_target_modules") or dialect.lora[3]
    key = "lora_target_modules" if content.has("lora_target_modules") else ""
    if set(words) == _QWEN1:
        made.set("adapter.target_modules", "all-linear", key, "c_attn c_proj w1 w2: every linear of a Qwen 1")
    elif key:
        set_targets(made, words, key)
    else:
        made.set("adapter.target_modules", words, "", f"{dialect.name}'s default for lora_target_modules")
    if content.has("lora_bias"):
        made.set("adapter.bias", content.text("lora_bias"), "lora_bias")
    if content.has("use_rslora"):
        made.set("adapter.use_rslora", content.flag("use_rslora"), "use_rslora")
    saved_modules(made, "lora_modules_to_save")
    if (
        dialect.name == "Qwen"
        and not content.flag("q_lora")
        and "chat" not in content.text("model_name_or_path").lower()
    ):
        made.set("adapter.modules_to_save", ["wte", "lm_head"], "", "Qwen trains both tables of a base model")


def _quant(made: Translation) -> None:
    content = made.content
    nested = ("use_bnb_nested_quant", "bnb_4bit_use_double_quant")
    made.seen |= {"load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "quantization_bit", *nested}
    if content.has("q_lora") and content.flag("q_lora"):
        set_quant(made, "gptq", "q_lora")
    elif content.flag("load_in_4bit"):
        double = any(content.flag(key) for key in nested)
        set_quant(made, content.text("bnb_4bit_quant_type", "nf4"), "load_in_4bit", double=double)
    elif content.flag("load_in_8bit"):
        set_quant(made, "int8", "load_in_8bit")
    elif content.has("quantization_bit"):
        bits = content.whole("quantization_bit")
        set_quant(made, f"int{bits}" if bits in (4, 8) else f"{bits} bit", "quantization_bit")
    for key in ("dtype", "torch_dtype"):
        if content.has(key) and content.text(key) != "auto":
            made.set("model.dtype", content.text(key), key)
        made.seen.add(key)


def _length(made: Translation) -> None:
    content = made.content
    for key in ("model_max_length", "max_length", "max_seq_length"):
        if content.has(key):
            made.set("data.max_length", content.whole(key), key)
    sides = [key for key in ("max_source_length", "max_target_length") if content.has(key)]
    if sides:
        total = content.whole("max_source_length", 1024) + content.whole("max_target_length", 128)
        made.set("data.max_length", total, sides[0], "question and answer together")
        made.seen |= set(sides)
    if content.has("truncation_mode"):
        made.set("data.truncation", "cut", "truncation_mode")
        if content.text("truncation_mode") == "keep_end":
            made.leave("differs", "truncation_mode", "data.truncation: cut keeps the start, keep_reply the reply")
    if content.flag("packing"):
        why = "a row of max_length tokens counted as one example of a step there; a step here counts conversations"
        made.leave("differs", "packing", why)
    made.seen.add("packing")


def _data(made: Translation, dialect: Dialect) -> None:
    content = made.content
    columns = {ours: content.text(f"{ours}_column") or None for ours in ("prompt", "response")}
    read: dict[str, Any] = {"kind": dialect.format}
    if any(columns.values()):
        read = with_options(made, "rows", "columns", columns, "prompt_column")
    elif dialect.format == "columns":
        read = {"kind": "auto"}
    elif content.has("dataset_text_field"):
        read = with_options(made, "rows", "text", {"text": content.text("dataset_text_field")}, "dataset_text_field")
    if content.has("history_column"):
        made.leave("differs", "history_column", "rows with a history column read as alpaca; name its columns there")
    made.seen |= {"prompt_column", "response_column", "history_column", "dataset_text_field"}
    key = next((key for key in ("data_path", "train_file", "dataset_name") if content.has(key)), "")
    made.seen |= {"data_path", "train_file", "dataset_name", "dataset_config", "dataset_config_name"}
    made.seen |= {"dataset_train_split"}
    if "data.train" not in content.given:
        if not key:
            raise RecipeError(
                "the file names no data",
                given=str(content.path),
                allowed="data_path, train_file or dataset_name",
                try_="data.train='[FILE]' behind the command",
            )
        one = _source(content, key, read)
        one.subset = content.text("dataset_config") or content.text("dataset_config_name")
        split = content.text("dataset_train_split", "train")
        one.split = "" if split == "train" else split
        set_datasets(made, "data.train", [one], key)
    _validation(made, read)
    if content.has("chat_template_path"):
        path = content.text("chat_template_path")
        made.set("data.template", {"kind": "jinja", "path": path}, "chat_template_path")
    elif dialect.template:
        set_template(made, dialect.template, "")
        chosen = made.get("data.template")
        made.set("data.template", chosen, "", f"{dialect.name}'s only template")


def _validation(made: Translation, read: dict[str, Any]) -> None:
    content = made.content
    for key in ("eval_data_path", "validation_file"):
        if content.has(key):
            set_datasets(made, "data.validation", [_source(content, key, read)], key)
    if content.has("validation_split_percentage") and made.get("data.validation") is None:
        share = content.number("validation_split_percentage") / 100
        made.set("data.validation", share, "validation_split_percentage")
    asked = content.text("eval_strategy", content.text("evaluation_strategy", "no")) != "no"
    if asked and content.has("dataset_name") and made.get("data.validation") is None:
        held = _source(content, "dataset_name", read)
        held.split = content.text("dataset_test_split", "test")
        held.subset = content.text("dataset_config") or content.text("dataset_config_name")
        set_datasets(made, "data.validation", [held], "dataset_name")
    made.seen |= {"validation_split_percentage", "dataset_test_split"}


def _source(content: Content, key: str, read: dict[str, Any]) -> Dataset:
    name = content.text(key)
    is_file = key != "dataset_name" or Path(name).exists() or name.startswith((".", "/"))
    return Dataset(name, beside(name, content) if is_file else f"hf:{name}", read)


def _loss(made: Translation, dialect: Dialect) -> None:
    """TRL learns every token of a conversation unless assistant_only_loss is on; of a completion, only that."""
    content = made.content
    made.seen |= {"completion_only_loss", "assistant_only_loss"}
    if dialect.name != "TRL":
        return
    if content.has("assistant_only_loss") and content.flag("assistant_only_loss"):
        made.set("data.loss", "replies", "assistant_only_loss")
    elif content.has("completion_only_loss"):
        learned = "replies" if content.flag("completion_only_loss") else "all"
        made.set("data.loss", learned, "completion_only_loss")
    else:
        why = "every token of a conversation was trained there (of prompt and completion rows, the completion)"
        made.set("data.loss", "replies", "", "for data.loss: all, see the list")
        made.leave("differs", "assistant_only_loss", f"not said: {why}; here data.loss: replies; all trains the rest")
