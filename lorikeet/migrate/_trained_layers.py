"""What other systems train in full, as the tensors that `adapter.kind: full` names: LLaMA-Factory's freeze tuning,
Axolotl's unfrozen_parameters.
"""

from __future__ import annotations

import re

from lorikeet.base.errors import LorikeetError
from lorikeet.checkpoints import download, hf
from lorikeet.migrate._contract import Translation
from lorikeet.plan.recommended import recommended

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
