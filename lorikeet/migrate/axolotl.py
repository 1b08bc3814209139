"""Axolotl's YAML: its list of datasets with a prompt type each, and its names for the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lorikeet.base.errors import RecipeError
from lorikeet.migrate._axolotl_table import DEFAULTS, PREFIXES, TABLE
from lorikeet.migrate._contract import Content, System, Translation
from lorikeet.migrate._datasets import Dataset, beside, set_datasets, with_options
from lorikeet.migrate._going_on import goes_on
from lorikeet.migrate._kinds import (
    OPTIMIZERS,
    set_choice,
    set_method,
    set_quant,
    set_schedule,
    set_targets,
    set_template,
)
from lorikeet.migrate._table import apply, write_defaults
from lorikeet.migrate._trained_layers import new_tokens, own_rates, saved_modules, unfrozen
from lorikeet.migrate._training_arguments import warm_up

NAME = "Axolotl"
_ONLY_HERE = ("datasets", "sequence_len", "micro_batch_size", "num_epochs", "lora_target_linear", "sample_packing")
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".gz", ".arrow")
# a prompt type: its format here, the format's columns, and the template it lays rows out with
_TYPES: dict[str, tuple[str, dict[str, str], str]] = {
    "alpaca": ("alpaca", {}, "alpaca"),
    "alpaca_w_system": ("alpaca", {}, "alpaca"),
    "alpaca_chat": ("alpaca", {}, "alpaca"),
    "gpteacher": ("alpaca", {"response": "response"}, "alpaca"),
    "sharegpt": ("sharegpt", {}, "vicuna"),
    "completion": ("text", {}, "raw"),
    "pretrain": ("text", {}, "raw"),
    "chat_template": ("messages", {}, ""),
}
_DATASET_KEYS = {
    *("path", "type", "split", "name", "revision", "ds_type", "data_files", "field", "field_messages", "conversation"),
    *("message_property_mappings", "message_field_role", "message_field_content", "roles", "roles_to_train"),
    *("train_on_eos", "chat_template", "chat_template_jinja", "field_system", "field_tools", "trust_remote_code"),
    *("text_column", "train_on_eot", "drop_system_message"),
}


class Axolotl(System):
    """See the module."""

    name: ClassVar[str] = NAME

    def recognise(self, content: Content) -> int:
        mine = isinstance(content.values.get("datasets"), list) or content.has("pretraining_dataset")
        return sum(content.has(key) for key in _ONLY_HERE) + 1 if content.has("base_model") and mine else 0

    def translate(self, content: Content, datasets: Sequence[str]) -> Translation:
        made = Translation(content, NAME)
        _adapter(made)
        new_tokens(made, "tokens")
        own_rates(made)
        _batch(made)
        _schedule(made)
        _template(made)
        _data(made, datasets)
        _steps(made)
        apply(TABLE, made, PREFIXES)
        made.unknown([*TABLE, *PREFIXES])
        write_defaults(DEFAULTS, made)
        return made


def _adapter(made: Translation) -> None:
    content = made.content
    made.seen |= {"adapter", "load_in_4bit", "load_in_8bit", "gptq", "peft_use_dora"}
    name = content.text("adapter")
    kind = set_method(made, {"qlora": "lora", "": "full"}.get(name, name), "adapter")
    if content.flag("peft_use_dora"):
        kind = set_method(made, "dora", "peft_use_dora")
    if content.flag("gptq"):
        set_quant(made, "gptq", "gptq")
    elif content.flag("load_in_4bit") or name == "qlora":
        # nested scales are Axolotl's own setting, which a recipe there cannot change
        set_quant(made, "nf4", "load_in_4bit" if content.has("load_in_4bit") else "adapter", double=True)
    elif content.flag("load_in_8bit"):
        set_quant(made, "int8", "load_in_8bit")
    if kind not in ("lora", "dora") or name not in ("lora", "qlora"):
        for key in [key for key in content.values if key.startswith(("lora_", "peft_", "loraplus_"))]:
            if content.has(key):
                made.leave("not needed", key, "no adapter there: weights were trained in full")
        if content.has("unfrozen_parameters") and kind == "full":
            unfrozen(made, "unfrozen_parameters")
        return
    if content.has("loraplus_lr_ratio"):
        made.set("adapter.loraplus_lr_ratio", content.number("loraplus_lr_ratio"), "loraplus_lr_ratio")
    if content.has("unfrozen_parameters"):
        why = "patterns of tensors beside an adapter; adapter.modules_to_save names whole modules"
        made.leave("differs", "unfrozen_parameters", why)
    said = [key for key in TABLE if key.startswith(("lora_", "peft_")) and TABLE[key].status == "by hand"]
    if goes_on(made, "lora_model_dir", said):
        return
    for option, key in (("r", "lora_r"), ("lora_alpha", "lora_alpha"), ("lora_dropout", "lora_dropout")):
        if content.has(key):
            made.set(f"adapter.{option}", content.number(key), key)
    if content.has("peft_use_rslora"):
        made.set("adapter.use_rslora", content.flag("peft_use_rslora"), "peft_use_rslora")
    saved_modules(made, "lora_modules_to_save")
    _first_values(made)
    _targets(made)


def _first_values(made: Translation) -> None:
    """peft_init_lora_weights: PEFT's words; those that are none here are listed."""
    content, key = made.content, "peft_init_lora_weights"
    made.seen.add(key)
    if not content.has(key) or content.text(key).lower() == "true":
        return
    word = content.text(key)
    if re.fullmatch(r"gaussian|orthogonal|olora|pissa(_niter_\d+)?", word):
        made.set("adapter.init_lora_weights", word, key)
    else:
        made.leave("differs", key, "A starts random and B at zero")


def _targets(made: Translation) -> None:
    content = made.content
    made.seen |= {"lora_target_linear", "lora_target_modules", "peft_layers_to_transform", "peft_layers_pattern"}
    if content.has("peft_layers_to_transform"):
        layers = [int(word) for word in content.words("peft_layers_to_transform") if word.isdigit()]
        made.set("adapter.layers_to_transform", layers, "peft_layers_to_transform")
        if content.has("peft_layers_pattern"):
            made.set("adapter.layers_pattern", content.words("peft_layers_pattern"), "peft_layers_pattern")
    if content.flag("lora_target_linear"):
        set_targets(made, ["all-linear"], "lora_target_linear")
    elif isinstance(content.values.get("lora_target_modules"), str):
        made.set("adapter.target_modules", content.text("lora_target_modules"), "lora_target_modules")
    elif content.has("lora_target_modules"):
        set_targets(made, content.words("lora_target_modules"), "lora_target_modules")
    else:
        made.set("adapter.target_modules", ["q_proj", "v_proj"], "", "PEFT's default for Llama and most others")


def _batch(made: Translation) -> None:
    content = made.content
    size, steps = content.whole("micro_batch_size", 1), content.whole("gradient_accumulation_steps", 1)
    if content.has("batch_size") and not content.has("gradient_accumulation_steps"):
        if size < 1 or content.whole("batch_size") % size:
            content.wrong("batch_size", f"a multiple of micro_batch_size ({size})")
        steps = content.whole("batch_size") // size
        made.set("train.gradient_accumulation_steps", steps, "batch_size", "divided by micro_batch_size")
    else:
        made.seen.add("batch_size")
        key = "gradient_accumulation_steps"
        made.set(
            f"train.{key}", steps, key if content.has(key) else "", "" if content.has(key) else f"{NAME}'s default"
        )
    key = "micro_batch_size"
    note = "" if content.has(key) else f"{NAME}'s default for {key}"
    made.set("train.per_device_train_batch_size", size, key if content.has(key) else "", note)
    if content.flag("sample_packing"):
        why = "a row of sequence_len tokens counted as one example of a step there; a step here counts conversations: "
        made.leave("differs", "sample_packing", why + "raise micro_batch_size's number to as many as fitted into a row")
    made.seen.add("sample_packing")


def _schedule(made: Translation) -> None:
    content = made.content
    if content.has("lr_scheduler"):
        name = content.text("lr_scheduler")
        set_schedule(made, name, "lr_scheduler")
    if content.has("cosine_min_lr_ratio") and made.get("train.lr_scheduler_type", "cosine") == "cosine":
        least = {"kind": "cosine_with_min_lr", "min_lr_rate": content.number("cosine_min_lr_ratio")}
        made.set("train.lr_scheduler_type", least, "cosine_min_lr_ratio")
    if content.has("optimizer"):
        set_choice(made, "train.optim", OPTIMIZERS, content.text("optimizer"), "optimizer")
    warm_up(made)
    silent = not content.has("warmup_steps") and not content.has("warmup_ratio")
    if silent and made.get("train.lr_scheduler_type") != "constant":
        made.set("train.warmup_ratio", 0.03, "", f"{NAME}'s default: 3 % of the steps, at most 100")
    if content.has("max_steps") and content.number("max_steps") > 0:
        made.set("train.max_steps", content.whole("max_steps"), "max_steps")
        if content.has("num_epochs"):
            made.leave("not needed", "num_epochs", "max_steps decides the length")
    elif content.has("num_epochs"):
        made.set("train.num_train_epochs", content.number("num_epochs"), "num_epochs")
    made.seen |= {"max_steps", "num_epochs"}
    if content.has("gradient_checkpointing"):
        word = content.text("gradient_checkpointing").lower()
        made.set("train.gradient_checkpointing", word not in ("false", "no", "0"), "gradient_checkpointing")
    for key in ("bf16", "bfloat16"):
        if content.has(key) and content.text(key).lower() not in ("auto", "full") and content.flag(key):
            made.set("model.dtype", "bfloat16", key)
    if content.flag("float32"):
        made.set("model.dtype", "float32", "float32")
    made.seen |= {"bf16", "bfloat16", "float32"}


def _steps(made: Translation) -> None:
    """eval_steps and save_steps: numbers of steps; a share of the run is left to the end of it."""
    content = made.content
    validates = made.get("data.validation") is not None
    for key, works in (("eval_steps", validates), ("save_steps", True)):
        if not content.has(key):
            continue
        every = content.number(key)
        if not works:
            made.leave("not needed", key, "there is nothing to validate on")
        elif isinstance(every, int) and every >= 1:
            made.set(f"train.{key}", every, key)
        else:
            made.leave("not needed", key, f"a share of the run; train.{key} counts steps")
    if not validates and content.has("evals_per_epoch"):
        made.leave("not needed", "evals_per_epoch", "there is nothing to validate on")


def _template(made: Translation) -> None:
    """The chat template of the whole file; a dataset's prompt type may ask for another."""
    content = made.content
    source = content.text("chat_template_jinja")
    if source:
        key = "chat_template_jinja"
        option = "path" if source.endswith((".jinja", ".jinja2")) else "source"
        made.set("data.template", {"kind": "jinja", option: source}, key)
    elif content.has("chat_template"):
        set_template(made, content.text("chat_template"), "chat_template")
    made.seen |= {"chat_template", "chat_template_jinja", "default_system_message"}
    if content.has("default_system_message"):
        chosen = {**made.get("data.template", {"kind": "jinja"}), "system": content.text("default_system_message")}
        made.set("data.template", chosen, "default_system_message")


def _data(made: Translation, datasets: Sequence[str]) -> None:
    content = made.content
    made.seen |= {"datasets", "pretraining_dataset", "test_datasets", "val_set_size"}
    if "data.train" not in content.given:
        key = "datasets" if content.has("datasets") else "pretraining_dataset"
        chosen = [one for one in _listed(made, key) if not datasets or one.name in datasets]
        if not chosen:
            raise RecipeError(
                f"{key}: none of these datasets is listed",
                given=" ".join(datasets) or f"an empty list   ({content.place(key)})",
                allowed=" ".join(one.name for one in _listed(made, key)) or "at least one entry with a path",
            )
        set_datasets(made, "data.train", chosen, key)
    if content.has("test_datasets"):
        set_datasets(made, "data.validation", _listed(made, "test_datasets"), "test_datasets")
    elif content.number("val_set_size"):
        made.set("data.validation", content.number("val_set_size"), "val_set_size")
    if content.has("sequence_len"):
        made.set("data.max_length", content.whole("sequence_len"), "sequence_len")
    if content.has("excess_length_strategy"):
        cuts = content.text("excess_length_strategy") == "truncate"
        made.set("data.truncation", "cut" if cuts else "drop", "excess_length_strategy")
    if content.flag("train_on_inputs"):
        made.set("data.loss", "all", "train_on_inputs")
    made.seen.add("train_on_inputs")
    tokens = content.values.get("special_tokens")
    made.seen.add("special_tokens")
    if isinstance(tokens, dict) and any(value for name, value in tokens.items() if name != "pad_token"):
        made.leave(
            "differs", "special_tokens", "control tokens are those of the model's tokenizer; check they are these"
        )


def _listed(made: Translation, key: str) -> list[Dataset]:
    listed = made.content.values.get(key)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        made.content.wrong(key, "a list of entries such as {path: rows.jsonl, type: alpaca}")
    found: list[Dataset] = []
    for entry in listed:
        found += _entry(made, {name: value for name, value in entry.items() if value is not None}, key)
    return found


def _entry(made: Translation, entry: dict[str, Any], key: str) -> list[Dataset]:
    """The sources of one entry: one for each of its data_files."""
    path = str(entry.get("path", ""))
    files = entry.get("data_files") or []
    files = [files] if isinstance(files, str) else files
    if not path or not isinstance(files, list):
        made.content.wrong(key, "entries with a path, such as {path: rows.jsonl, type: alpaca}")
    here = Path(path).expanduser()
    if not files:
        sources = [path if _is_local(path) or "://" in path else f"hf:{path}"]
    elif here.is_dir() or path in ("json", "csv", "parquet", "text", "arrow"):
        sources = [str(here / name) if here.is_dir() else str(name) for name in files]
    else:
        revision = entry.get("revision", "main")
        sources = [f"https://huggingface.co/datasets/{path}/resolve/{revision}/{name}" for name in files]
    read = _format(made, entry, path, key)
    made_: list[Dataset] = []
    for source in sources:
        source = beside(source, made.content) if _is_local(source) else source
        one = Dataset(path, source, read)
        if source.startswith("hf:"):  # of a file, a folder or a URL they say nothing
            one.subset, one.revision = str(entry.get("name", "")), str(entry.get("revision", ""))
        one.split = "" if entry.get("split", "train") == "train" or files else str(entry["split"])
        if source.startswith(("s3://", "gs://", "az://", "gcs://", "abfs://")):
            made.leave("differs", key, "storage of a cloud is not read; fetch its files first", path)
        made_.append(one)
    unread = sorted(name for name in entry.keys() - _DATASET_KEYS if not str(name).startswith("field_"))
    if unread:
        made.leave("differs", key, f"not carried over: {' '.join(unread)}", path)
    return made_


def _is_local(path: str) -> bool:
    if "://" in path:
        return False
    return path.startswith((".", "/", "~")) or path.endswith(_FILES) or Path(path).exists()


def _format(made: Translation, entry: dict[str, Any], path: str, key: str) -> dict[str, Any]:
    type_ = entry.get("type", "alpaca")
    if isinstance(type_, dict):
        return _own_type(made, type_, path, key)
    name, _, variant = str(type_).partition(".")
    name = name.partition(":")[0]
    if name not in _TYPES:
        made.leave("differs", key, f"the prompt type {type_} is not known here; data.format is auto", path)
        return {"kind": "auto"}
    if variant or ":" in str(type_):
        made.leave("differs", key, f"the variant {type_} lays rows out in its own way; read as {name}", path)
    kind, columns, template = _TYPES[name]
    if name == "chat_template":
        _loss(made, entry, path, key)
        _use_template(made, str(entry.get("chat_template", "")), path, key)
        return _messages(made, entry, path, key)
    if name == "sharegpt":
        template = str(entry.get("conversation") or made.content.text("chat_template") or template)
    _use_template(made, template, path, key)
    told = {"text": entry.get("field") or entry.get("text_column")} if kind == "text" else {}
    return with_options(made, path, kind, {**columns, **told}, key)


def _use_template(made: Translation, name: str, path: str, key: str) -> None:
    if not name:
        return
    before = made.get("data.template")
    if before is None:
        set_template(made, name, key)
        return
    settings = dict(made.settings)
    set_template(made, name, key)
    same = made.get("data.template")["kind"] == before["kind"]
    made.settings = settings  # the first one stays: a recipe has one template
    if not same:
        why = f"laid out as {name} there; a recipe has one template for all data: {before['kind']}"
        made.leave("differs", key, why, path)


def _messages(made: Translation, entry: dict[str, Any], path: str, key: str) -> dict[str, Any]:
    """The columns and turn keys of a chat_template dataset; default names are OpenAI's."""
    mapping = entry.get("message_property_mappings") or {}
    role = mapping.get("role") or entry.get("message_field_role") or "role"
    content = mapping.get("content") or entry.get("message_field_content") or "content"
    column = entry.get("field_messages") or "messages"
    tools, system = entry.get("field_tools"), entry.get("field_system")
    roles: dict[str, list[str]] = entry.get("roles") or {}
    if (role, content) == ("role", "content") and not roles and not system:
        return with_options(made, path, "messages", {"messages": column, "tools": tools}, key)
    wanted = {"messages": column, "role_tag": role, "content_tag": content, "tools": tools, "system": system}
    for ours in ("user", "assistant", "system"):
        words = roles.get(ours) or []
        usual = {"user": ("human", "user"), "assistant": ("gpt", "assistant"), "system": ("system",)}[ours]
        odd = [word for word in words if word not in usual]
        if odd:
            wanted[f"{ours}_tag"] = odd[0]
        if len(odd) > 1 or (odd and len(words) > 1):
            made.leave("differs", key, f"only one word for the {ours} is read: {odd[0]}", path)
    return with_options(made, path, "sharegpt", wanted, key)


def _loss(made: Translation, entry: dict[str, Any], path: str, key: str) -> None:
    """roles_to_train and train_on_eos; by default the assistant's turns, each with its end."""
    roles = entry.get("roles_to_train") or ["assistant"]
    if set(roles) - {"assistant", "gpt"}:
        weights = {{"human": "user", "gpt": "assistant"}.get(str(role), str(role)): 1.0 for role in roles}
        weights.setdefault("assistant", 0.0)  # replies are learned here unless they are said not to be
        made.set("data.role_weights", weights, key, "roles_to_train")
    if entry.get("train_on_eos", "turn") != "turn":
        why = f"train_on_eos {entry['train_on_eos']}: here every trained reply is trained with its end"
        made.leave("differs", key, why, path)


def _own_type(made: Translation, type_: dict[str, Any], path: str, key: str) -> dict[str, Any]:
    """A prompt type written in the YAML: columns, and a layout in words."""
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    wanted = {ours: type_.get(f"field_{theirs}") for ours, theirs in columns.items()}
    if type_.get("format") or type_.get("no_input_format"):
        why = "a layout of its own; write it as a jinja template: data.template='{kind: jinja, path: FILE}'"
        made.leave("differs", key, why, path)
    return with_options(made, path, "alpaca", wanted, key)
