"""LLaMA-Factory's YAML (and the flags of `llamafactory-cli train`), with the dataset_info.json it names its data in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lorikeet.base.errors import RecipeError
from lorikeet.migrate import _training_arguments as arguments
from lorikeet.migrate._contract import Content, System, Translation
from lorikeet.migrate._datasets import Dataset, from_info, set_datasets, split_names
from lorikeet.migrate._going_on import goes_on
from lorikeet.migrate._kinds import set_method, set_quant, set_targets, set_template
from lorikeet.migrate._llamafactory_table import DEFAULTS, PREFIXES, STAGE, TABLE
from lorikeet.migrate._table import apply, write_defaults
from lorikeet.migrate._trained_layers import freeze_tuning, new_tokens, saved_modules

NAME = "LLaMA-Factory"
_SAID = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "use_rslora",
    "additional_target",
    "pissa_init",
    "pissa_iter",
)
_BESIDE = ("additional_target", "adapter_name_or_path", "create_new_adapter")
_ONLY_HERE = ("finetuning_type", "stage", "cutoff_len", "lora_rank", "lora_target", "dataset_dir", "template")


class LlamaFactory(System):
    """See the module."""

    name: ClassVar[str] = NAME
    precedence: ClassVar[int] = 1

    def recognise(self, content: Content) -> int:
        mine = content.has("model_name_or_path") and any(content.has(key) for key in _ONLY_HERE)
        return sum(content.has(key) for key in TABLE) if mine else 0

    def translate(self, content: Content, datasets: Sequence[str]) -> Translation:
        made = Translation(content, NAME)
        arguments.together(made)
        _adapter(made)
        for key in ("add_special_tokens", "new_special_tokens", "add_tokens"):
            new_tokens(made, key)
        _quant(made)
        _data(made, datasets)
        _generate(made)
        arguments.when_to_validate(made)
        if content.has("disable_gradient_checkpointing"):
            off = content.flag("disable_gradient_checkpointing")
            made.set("train.gradient_checkpointing", not off, "disable_gradient_checkpointing")
        apply(TABLE, made, PREFIXES)
        made.unknown(list(TABLE))
        write_defaults(DEFAULTS, made)
        return made


def _adapter(made: Translation) -> None:
    content = made.content
    key = "finetuning_type"
    if content.text(key) == "freeze":
        freeze_tuning(made)
        kind = "full"
    else:
        kind = set_method(made, content.text(key, "lora"), key) if content.has(key) else "lora"
    if content.has("use_dora") and content.flag("use_dora"):
        kind = set_method(made, "dora", "use_dora")
    made.seen.add("use_dora")
    if kind not in ("lora", "dora") or content.text(key, "lora") != "lora":
        for name in [name for name in TABLE if "lora" in name or name.startswith("pissa_") or name in _BESIDE]:
            if content.has(name) and name not in made.seen:
                made.leave("not needed", name, f"has no effect there with finetuning_type: {content.text(key)}")
        return
    if content.has("loraplus_lr_ratio"):
        made.set("adapter.loraplus_lr_ratio", content.number("loraplus_lr_ratio"), "loraplus_lr_ratio")
    if content.flag("create_new_adapter"):
        why = "there the old adapter is merged into the base first; here: lorikeet merge, and train on the folder"
        made.leave("differs", "adapter_name_or_path", why)
    made.seen.add("create_new_adapter")
    if "adapter_name_or_path" not in made.seen and goes_on(made, "adapter_name_or_path", _SAID):
        return
    _lora(made)


def _lora(made: Translation) -> None:
    """Of an adapter that begins here."""
    content = made.content
    if content.has("lora_rank"):
        made.set("adapter.r", content.whole("lora_rank"), "lora_rank")
    if content.has("lora_alpha"):
        made.set("adapter.lora_alpha", content.number("lora_alpha"), "lora_alpha")
    if content.has("lora_dropout"):
        made.set("adapter.lora_dropout", content.number("lora_dropout"), "lora_dropout")
    if content.has("lora_target"):
        set_targets(made, content.words("lora_target"), "lora_target")
    if content.has("use_rslora"):
        made.set("adapter.use_rslora", content.flag("use_rslora"), "use_rslora")
    saved_modules(made, "additional_target")
    made.seen |= {"pissa_init", "pissa_iter"}
    if content.flag("pissa_init"):
        rounds = content.whole("pissa_iter", 16)
        start = "pissa" if rounds < 0 else f"pissa_niter_{rounds}"
        made.set("adapter.init_lora_weights", start, "pissa_init")


def _quant(made: Translation) -> None:
    content = made.content
    made.seen |= {"quantization_method", "quantization_type", "double_quantization"}
    if not content.has("quantization_bit"):
        made.seen.add("quantization_bit")
        return
    bits, method = content.whole("quantization_bit"), content.text("quantization_method", "bnb").lower()
    if method in ("bnb", "bitsandbytes") and bits in (4, 8):
        kind = content.text("quantization_type", "nf4") if bits == 4 else "int8"
        set_quant(made, kind, "quantization_bit", double=content.flag("double_quantization", True))
    else:
        set_quant(made, f"{method} {bits} bit", "quantization_bit")


def _data(made: Translation, datasets: Sequence[str]) -> None:
    content = made.content
    _template(made)
    _length(made)
    _loss(made)
    _packing(made)
    if "data.train" in content.given:
        made.seen |= {"dataset", "dataset_dir", "max_samples", "mix_strategy", "interleave_probs", "eval_dataset"}
        return _validation(made, None, Path())
    names = split_names(datasets or content.words("dataset"))
    if not names:
        raise RecipeError(
            "dataset: is missing", given=str(content.path), allowed="the names of datasets in dataset_info.json"
        )
    info, folder = dataset_info(content)
    chosen = [_dataset(made, name, info, folder, "dataset") for name in names]
    _mix(made, chosen)
    _limit(made, chosen)
    set_datasets(made, "data.train", chosen, "dataset")
    _validation(made, info, folder)
    return None


def _validation(made: Translation, info: dict[str, Any] | None, folder: Path) -> None:
    content = made.content
    if content.has("eval_dataset") and "eval_dataset" not in made.seen:
        names = split_names(content.words("eval_dataset"))
        held = [_dataset(made, name, info, folder, "eval_dataset") for name in names]
        set_datasets(made, "data.validation", held, "eval_dataset")
        made.seen.add("val_size")
    elif content.number("val_size"):
        made.set("data.validation", content.number("val_size"), "val_size")
    made.seen |= {"dataset_dir", "val_size"}


def _length(made: Translation) -> None:
    if made.content.has("cutoff_len"):
        made.set("data.max_length", made.content.whole("cutoff_len"), "cutoff_len")
        made.set("data.truncation", "keep_reply", "cutoff_len", "prompt and reply were both shortened there")


def _dataset(made: Translation, name: str, info: dict[str, Any] | None, folder: Path, key: str) -> Dataset:
    if info is None:
        return Dataset(name, f"hf:{name}")  # dataset_dir: ONLINE
    return from_info(made, name, info, folder, key)


def dataset_info(content: Content) -> tuple[dict[str, Any] | None, Path]:
    """What dataset_info.json says, and its folder. LLaMA-Factory runs in its own folder with `data/` in it, so
    dataset_dir is looked for where the command is typed, beside the file, and in the folders above it."""
    told = content.text("dataset_dir", "data")
    if told == "ONLINE":
        return None, Path()
    beside = content.path.resolve().parent
    bases = [Path.cwd(), beside, *beside.parents]
    folders = [base / told for base in bases] + [beside]
    found = next((folder for folder in folders if (folder / "dataset_info.json").is_file()), None)
    if found is None:
        raise RecipeError(
            f"dataset: there is no {told}/dataset_info.json, which says what the names mean",
            given=f"{content.text('dataset')}   ({content.place('dataset')})",
            allowed="the file beside this one, above it, or where you type the command",
            try_="download that data set's dataset_info.json and name its folder"
            if told.startswith("REMOTE:")
            else "data.train='[FILE]' behind the command, or dataset_dir: FOLDER in the file",
        )
    try:
        info = json.loads((found / "dataset_info.json").read_text("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise RecipeError("this is not JSON", given=f"{error}   ({found / 'dataset_info.json'})") from None
    if not isinstance(info, dict):
        raise RecipeError("dataset_info.json is a mapping of names", given=f"{found / 'dataset_info.json'}")
    return info, found


def _mix(made: Translation, chosen: list[Dataset]) -> None:
    content = made.content
    strategy = content.text("mix_strategy", "concat")
    made.seen |= {"mix_strategy", "interleave_probs"}
    if strategy == "concat":
        return
    shares = content.words("interleave_probs")
    if shares and len(shares) != len(chosen):
        content.wrong("interleave_probs", f"one number for each of the {len(chosen)} datasets")
    for dataset, share in zip(chosen, shares or ["1"] * len(chosen)):
        try:
            dataset.weight = float(share)
        except ValueError:
            content.wrong("interleave_probs", "numbers with commas")
    ends = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
    if strategy not in ends:
        content.wrong("mix_strategy", "concat interleave_under interleave_over")
    made.set("data.mix", {"epoch": ends[strategy]}, "mix_strategy")


def _limit(made: Translation, chosen: list[Dataset]) -> None:
    content = made.content
    if not content.has("max_samples"):
        return
    most = content.whole("max_samples")
    if len(chosen) == 1 and chosen[0].samples is None:
        made.set("data.max_examples", most, "max_samples")
        return
    made.seen.add("max_samples")
    for dataset in chosen:
        dataset.samples = min(most, dataset.samples or most)


def _template(made: Translation) -> None:
    content = made.content
    if not content.has("template"):
        if not content.has("default_system"):
            return
        made.set("data.template", {"kind": "jinja"}, "", f"{NAME}'s default for template: the model's own")
    else:
        set_template(made, content.text("template"), "template")
        if made.get("data.template") == {"kind": "alpaca"}:  # it has no heading for a row's input
            made.set("data.template", {"kind": "alpaca", "input_heading": False}, "template")
    if content.has("default_system"):
        chosen = {**made.get("data.template"), "system": content.text("default_system")}
        made.set("data.template", chosen, "template", "default_system")
        made.seen.add("default_system")


def _loss(made: Translation) -> None:
    content = made.content
    stage = content.text("stage", "sft")
    made.seen.add("stage")
    if stage == "pt":
        made.set("data.loss", "all", "stage")
    elif stage != "sft":
        made.leave("differs", "stage", f"{STAGE}; the recipe trains the good answers")
    if content.flag("train_on_prompt"):
        made.set("data.loss", "all", "train_on_prompt")
    if content.flag("mask_history"):
        made.set("data.loss", "last_reply", "mask_history")
    made.seen |= {"train_on_prompt", "mask_history"}


def _packing(made: Translation) -> None:
    content = made.content
    neat, packing = content.flag("neat_packing"), content.flag("packing", content.text("stage") == "pt")
    made.seen |= {"packing", "neat_packing"}
    if not (neat or packing):
        if content.has("packing"):
            made.leave("not needed", "packing", "rows are always packed here, and packing changes no number")
        return
    key = "neat_packing" if neat else "packing"
    why = "a row of cutoff_len tokens counted as one example of a step there; a step here counts conversations: "
    made.leave("differs", key, why + "raise gradient_accumulation_steps to as many as fitted into a row")
    if not neat:
        made.leave("differs", "packing", "packed examples saw each other there; here they never do")


def _generate(made: Translation) -> None:
    """Sampling is off where do_sample is; LLaMA-Factory samples by default, but only where it answers."""
    content = made.content
    asked = [key for key in ("temperature", "top_p", "top_k") if content.has(key)]
    made.seen.add("do_sample")
    if not asked:
        return
    if content.has("do_sample") and not content.flag("do_sample"):
        for key in asked:
            made.leave("not needed", key, "do_sample is off: the most likely token is taken")
        return
    key = "temperature" if content.has("temperature") else ""
    made.set("generate.temperature", content.number("temperature", 0.95), key)
    for key in ("top_p", "top_k"):
        if content.has(key):
            made.set(f"generate.{key}", content.number(key), key)
