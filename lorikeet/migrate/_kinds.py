"""Other systems' words for what is a kind or a choice here: the tables to edit when a new kind arrives.

Each word has a list of ours, best first; the first that exists is taken, so a kind that is added later under a name
listed here is used without an edit. Where none exists the nearest is set and the difference is listed.
"""

from __future__ import annotations

import json
from typing import Any

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.migrate._contract import Translation
from lorikeet.migrate._table import first_kind, option_choices
from lorikeet.train.optimizers._contract import Optimizer, Shared
from lorikeet.train.schedules._contract import Schedule

# their template -> ours; all of a family's later layouts are the model's own (jinja)
TEMPLATES: dict[str, list[str]] = {
    "alpaca": ["alpaca"],
    "alpaca_legacy": ["alpaca_legacy"],
    "alpaca_short": ["alpaca_short"],
    "vicuna": ["vicuna"],
    "sharegpt": ["sharegpt"],
    "text": ["raw"],
    "raw": ["raw"],
    "empty": ["raw"],
    "chatml": ["chatml"],
    "chatml_de": ["chatml"],
    "llama2": ["llama2"],
    "llama3": ["llama3"],
    "mistral": ["mistral"],
    "mistral_v1": ["mistral"],
    "inst": ["mistral"],
    "gemma": ["gemma"],
    "gemma2": ["gemma"],
    "gemma3": ["gemma"],
    "qwen": ["qwen"],
    "qwen_25": ["qwen"],
    "zephyr": ["zephyr"],
    "phi": ["phi3"],
    "phi_3": ["phi3"],
    "deepseek": ["deepseek"],
    "deepseek3": ["deepseek"],
    "deepseekr1": ["deepseek"],
}
# llm_finetuning heads an input with "### Input:" under vicuna, too
INPUT_HEADING = (
    "rows with an input had a heading ### Input: there; here the input follows the instruction on a new line"
)
OWN = ("tokenizer_default", "own", "jinja", "")  # words for the template that comes with the model
OPTIMIZERS: dict[str, list[str]] = {
    "adamw_torch": ["adamw_torch"],
    "adamw_torch_fused": ["adamw_torch"],
    "adamw_hf": ["adamw_torch"],
    "adamw": ["adamw_torch"],
    "paged_adamw_32bit": ["paged_adamw_32bit", "adamw_torch"],
    "paged_adamw": ["paged_adamw_32bit", "adamw_torch"],
    "sgd": ["sgd"],
    "adamw_8bit": ["adamw_8bit"],
    "adamw_bnb_8bit": ["adamw_8bit"],
    "paged_adamw_8bit": ["paged_adamw_8bit", "adamw_8bit"],
    "adafactor": ["adafactor"],
    "lion_32bit": ["lion"],
    "paged_lion_32bit": ["lion"],
    "lion_8bit": ["lion_8bit", "lion"],
    "paged_lion_8bit": ["lion_8bit", "lion"],
    "muon": ["muon"],
}
SCHEDULES: dict[str, list[str]] = {
    "linear": ["linear"],
    "cosine": ["cosine"],
    "constant": ["constant"],
    "constant_with_warmup": ["constant_with_warmup"],
    "cosine_with_min_lr": ["cosine_with_min_lr", "cosine"],
    "cosine_warmup_with_min_lr": ["cosine_warmup_with_min_lr", "cosine"],
    "cosine_with_restarts": ["cosine_with_restarts", "cosine"],
    "polynomial": ["polynomial", "linear"],
    "inverse_sqrt": ["inverse_sqrt", "linear"],
    "warmup_stable_decay": ["warmup_stable_decay", "constant_with_warmup"],
}
QUANTS: dict[str, list[str]] = {
    "nf4": ["nf4"],
    "fp4": ["fp4"],
    "int8": ["int8"],
    "int4": ["int4", "nf4"],  # ChatGLM's: integers, with a scale for each row
    "gptq": ["gptq"],
    "awq": ["awq"],
}
METHODS: dict[str, list[str]] = {
    "lora": ["lora"],
    "full": ["full"],
    "freeze": ["freeze"],
    "dora": ["dora"],
    "oft": ["oft"],
    "prefix": ["prefix"],
}


def set_template(translation: Translation, name: str, key: str, *, strict: bool = False) -> None:
    """`data.template` for a template's name there. `strict`: an unknown name is an error, not a listed difference."""
    word = name.lower().replace("-", "_").removeprefix("tokenizer_default_fallback_")
    if name.startswith("tokenizer_default") or word in OWN:
        translation.set("data.template", {"kind": "jinja"}, key, "the model's own")
        return
    if strict and word not in TEMPLATES:
        raise RecipeError(
            f"{key}: there is no template '{name}' here",
            given=f"{name}   ({translation.content.place(key)})",
            allowed=" ".join(TEMPLATES),
            try_=nearest(word, TEMPLATES),
        )
    found = first_kind("data.templates", TEMPLATES.get(word, []))
    if found:
        translation.set("data.template", {"kind": found}, key)
        return
    translation.set("data.template", {"kind": "jinja"}, key, "the model's own")
    why = "no template of that name here; the one that comes with the model is used: compare with lorikeet data show"
    translation.leave("differs", key, why)


def set_choice(translation: Translation, option: str, table: dict[str, list[str]], name: str, key: str) -> None:
    """`train.optim` or `train.lr_scheduler_type` for a word there; the nearest of ours where there is no such thing."""
    wanted = table.get(name.lower(), [])
    there = option_choices(option)
    found = next((word for word in wanted if word in there), None)
    if found is None:
        found = "adamw_torch" if table is OPTIMIZERS else "linear"
        translation.set(option, found, key, "the nearest")
        translation.leave("differs", key, f"{option} has no such choice; {found} is set", name)
        return
    paged = name.startswith("paged_adamw") and found == "adamw_torch"  # paging moves memory, and changes no number
    translation.set(option, found, key, "" if found == wanted[0] else "the same numbers" if paged else "the nearest")
    if found != wanted[0] and not paged:
        translation.leave("differs", key, f"{option} has no such choice; {found} is set", name)


def set_schedule(translation: Translation, name: str, key: str, settings_key: str = "lr_scheduler_kwargs") -> None:
    """`train.lr_scheduler_type` for a schedule there, with the settings that stand in a mapping of their own."""
    set_choice(translation, "train.lr_scheduler_type", SCHEDULES, name, key)
    content, kind = translation.content, translation.get("train.lr_scheduler_type")
    if not content.has(settings_key):
        return
    given = content.values[settings_key]
    if isinstance(given, str):  # on a command line
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            content.wrong(settings_key, "a mapping")
    if not isinstance(given, dict):
        content.wrong(settings_key, "a mapping")
    translation.seen.add(settings_key)
    there = set(kind_class("lorikeet.train.schedules", Schedule, kind).model_fields) - {"kind"}
    if strange := sorted(str(name) for name in given if name not in there):
        translation.leave("differs", settings_key, f"the schedule {kind} has no {' '.join(strange)}")
    if known := {name: value for name, value in given.items() if name in there}:
        note = f"with {settings_key}"
        translation.set("train.lr_scheduler_type", {"kind": kind, **known}, key, note)


def unread_by(optim: str | None) -> list[str]:
    """The options of the `train` section that an optimizer of ours does not read."""
    if optim is None:
        return []
    reads = kind_class("lorikeet.train.optimizers", Optimizer, optim).reads
    return [name for name in Shared._fields[1:] if name not in reads]


def set_quant(translation: Translation, kind: str, key: str, *, double: bool = False) -> None:
    """`quant` for a format of frozen weights there, and whether a 4-bit one keeps its scales in 8 bits; where there is
    no such format, nor one of as many bits, they stay dense, which needs more memory."""
    wanted = QUANTS.get(kind, [])
    found = first_kind("quant", wanted)
    if found:
        options = {"double_quant": True} if double and found in ("nf4", "fp4") else {}
        translation.set("quant", {"kind": found, **options}, key, "" if found == wanted[0] else "the nearest")
        if found != wanted[0]:
            translation.leave("differs", key, f"no quantised base weights of kind {kind}; {found} has as many bits")
        return
    there = " ".join(kinds("lorikeet.quant"))
    why = f"no quantised base weights of kind {kind} yet (quant: {there}); they stay dense and need more memory"
    translation.leave("differs", key, why)


def set_method(translation: Translation, name: str, key: str) -> str:
    """`adapter.kind` for a method there; returns the kind, lora where there is no such method."""
    found = first_kind("adapters", METHODS.get(name, []))
    if found:
        translation.set("adapter.kind", found, key)
        return found
    translation.set("adapter.kind", "lora", key, "the nearest")
    why = f"there is no adapter kind {name} yet (adapter: {' '.join(kinds('lorikeet.adapters'))}); lora is set"
    if name in ("full", "prefix"):  # weights wear steps of about 1e-5, a prefix of 1e-2, LoRA of 1e-4
        why += ", which wants another learning rate: 1e-4 to 3e-4"
    translation.leave("differs", key, why)
    return "lora"


def set_targets(translation: Translation, words: list[str], key: str) -> None:
    """`adapter.target_modules` for a list of names, or one word that means all linears."""
    value: Any = (
        "all-linear" if [word.lower() for word in words] in (["all"], ["all-linear"], ["all_linear"]) else words
    )
    translation.set("adapter.target_modules", value, key)
