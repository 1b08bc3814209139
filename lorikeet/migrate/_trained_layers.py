"""What other systems train in full: LLaMA-Factory's freeze tuning and Axolotl's unfrozen_parameters, as the tensors
that `adapter.kind: full` names; modules beside an adapter, new tokens, and the learning rates of some of it.
"""

from __future__ import annotations

import re

from lorikeet.base.errors import LorikeetError
from lorikeet.checkpoints import download, hf
from lorikeet.migrate._contract import Translation
from lorikeet.plan.recommended import recommended

_TABLES = ("embed_tokens", "lm_head")
FREEZE_KEYS = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")


def layers_of(model: str) -> int | None:
    """How many layers the model has, if that can be told without fetching anything."""
    for one in recommended():
        if model in (one.name, one.alias):
            return one.sizes.layers
    try:
        path = download.locate(model)
        found = None if path is None else hf.read_json(path / "config.json", path).get("num_hidden_layers")
    except (LorikeetError, OSError):
        return None
    return found if isinstance(found, int) else None


def freeze_tuning(made: Translation) -> None:
    """LLaMA-Factory's `finetuning_type: freeze`: the last layers (the first, where the number is negative) train, all
    of each or some modules, and perhaps others beside the layers."""
    content = made.content
    key = next((key for key in FREEZE_KEYS if content.has(key)), "finetuning_type")
    made.set("adapter.kind", "full", "finetuning_type")
    made.seen |= set(FREEZE_KEYS)
    count = content.whole("freeze_trainable_layers", 2)
    model = str(content.text("model_name_or_path"))
    layers = layers_of(model)
    if layers is None and count > 0:
        made.set("adapter.target_modules", ["model.layers"], key, "all layers")
        why = f"how many layers {model} has is not known before it is here, so all of them train: name the last {count}"
        made.leave("differs", key, why + " in adapter.target_modules, as in [layers.30, layers.31]", count)
        return
    numbers = range(max(0, (layers or 0) - count), layers or 0) if count > 0 else range(-count)
    modules = [word for word in content.words("freeze_trainable_modules") if word != "all"]
    extra = content.words("freeze_extra_modules")
    if not modules and not extra:
        made.set("adapter.target_modules", [f"layers.{number}" for number in numbers], key)
        return
    inside = f"({'|'.join(map(re.escape, modules))})" + r"\." if modules else ""
    parts = [rf"layers\.({'|'.join(map(str, numbers))})\.{inside}", *map(re.escape, extra)]  # parts of names there
    made.set("adapter.target_modules", f".*({'|'.join(parts)}).*", key)


def unfrozen(made: Translation, key: str) -> None:
    """Axolotl's list of patterns, each for the beginning of a tensor's name; a dot in it is a dot."""
    patterns = made.content.words(key)
    cut = [pattern for pattern in patterns if re.search(r"\[[\d:]+\]$", pattern)]
    if cut:
        made.leave("differs", key, "some rows of a tensor cannot train alone; the whole tensor does", " ".join(cut))
    whole = [re.sub(r"\[[\d:]+\]$", "", pattern).removeprefix("^") for pattern in patterns]
    meant = [re.sub(r"\.(?!\+)", r"\\.", pattern) for pattern in whole]
    made.set("adapter.target_modules", "|".join(f"(?:{pattern}).*" for pattern in meant), key)


def saved_modules(made: Translation, key: str) -> None:
    """Modules that train whole beside an adapter: the same words here."""
    if made.content.has(key):
        made.set("adapter.modules_to_save", made.content.words(key), key)


def trains_tables(made: Translation) -> bool:
    """Whether the embedding, or the head, trains whole."""
    saved = made.get("adapter.modules_to_save", [])
    return made.get("adapter.kind") == "full" or any(word.endswith(_TABLES) for word in saved)


def new_tokens(made: Translation, key: str) -> None:
    """Tokens that are added to the vocabulary, in a list or with commas. Call when `trains_tables` is settled."""
    if not made.content.has(key):
        return
    value = made.content.values[key]  # not `words`, which takes brackets off: [PAD]
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else made.content.words(key)
    made.set("model.add_tokens", [*made.get("model.add_tokens", []), *filter(None, words)], key)
    why = "control tokens here: a template may use them, and a row's text never contains them"
    rows = "" if trains_tables(made) else "; only their rows of embedding and head train"
    made.leave("differs", key, why + rows)


def own_rates(made: Translation) -> None:
    """Axolotl's learning rates of embeddings and of groups of modules, as factors on train.learning_rate."""
    content, rate = made.content, made.content.number("learning_rate")
    factors: dict[str, float] = {}
    for key, base in (("embedding_lr", rate), ("embedding_lr_scale", 1.0)):
        if not content.has(key):
            continue
        if not trains_tables(made) or not base:
            made.leave("not needed", key, "no embedding trains, there either")
            continue
        factors["|".join(_TABLES)] = content.number(key) / base
        made.set("train.lr_multipliers", factors, key)
    if not content.has("lr_groups"):
        return
    factors |= _groups(made, rate)
    made.set("train.lr_multipliers", factors, "lr_groups")


def _groups(made: Translation, rate: float) -> dict[str, float]:
    """lr_groups as {a regex: its factor on `rate`}. Raises RecipeError for what is none."""
    content, groups, found = made.content, made.content.values["lr_groups"], {}
    try:
        for group in groups:
            modules, own = list(group["modules"]), float(group["lr"])
            found["|".join(re.escape(str(one)) for one in modules)] = own / (rate or own)
    except (TypeError, KeyError, ValueError, ZeroDivisionError):
        content.wrong("lr_groups", "a list of entries such as {name: attention, modules: [q_proj], lr: 1.0e-5}")
    return found
