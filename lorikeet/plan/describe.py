"""What a model on disk is, told from headers and settings alone: no weight is read, so it takes no time and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from lorikeet.base.errors import CheckpointError, LorikeetError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.nouns import Conversation, Message
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.data.templates._suits import suiting
from lorikeet.models.load import identify
from lorikeet.models.stored import refuse_unknown, stored_quant
from lorikeet.tokens.outline import Outline, outline

# a size's name in config.json (the newest spelling first), and behind `llama.` in a GGUF file
SIZES: dict[str, tuple[tuple[str, ...], str]] = {
    "layers": (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), "block_count"),
    "width": (("hidden_size", "n_embd", "d_model", "n_embed"), "embedding_length"),
    "heads": (("num_attention_heads", "n_head", "n_heads"), "attention.head_count"),
    "kv_heads": (("num_key_value_heads", "multi_query_group_num"), "attention.head_count_kv"),
    "head_width": (("head_dim", "kv_channels"), "attention.key_length"),
    "ffn_width": (("intermediate_size", "n_inner", "ffn_hidden_size"), "feed_forward_length"),
    "vocabulary": (("vocab_size", "padded_vocab_size"), "vocab_size"),
    "context": (("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"), "context_length"),
}
_TEMPLATES = "lorikeet.data.templates"
_ASKED = (Message("system", "Be brief."), Message("user", "What is 1 + 1?"), Message("assistant", "2"))
_PROBES = [Conversation((*said, Message("user", "And 2 + 2?"))) for said in (_ASKED, _ASKED[1:])]


def describe(path: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Everything that can be told about the model at `path`, ready for JSON. `trainable` says whether Lorikeet can
    train it, `why_not` why it cannot.

    Raises CheckpointError for what is no model, or a damaged one."""
    if (path / "adapter_config.json").is_file() or (path / "adapter" / "adapter_config.json").is_file():
        return _adapter(path)
    checkpoint = open_checkpoint(path, allow_pickle=allow_pickle)
    facts: dict[str, Any] = {"path": str(path), "layout": checkpoint.layout, "size_bytes": _size(checkpoint.path)}
    names = checkpoint.names()
    facts |= {"parameters": sum(math.prod(checkpoint.shape(name)) for name in names), "tensors": len(names)}
    facts["stored"] = _stored(checkpoint)
    facts |= _quantisation(checkpoint)
    why_not = _network(checkpoint, facts)
    try:
        tokenizer = outline(path if path.is_dir() else path.parent, checkpoint)
    except LorikeetError as error:
        facts["tokenizer"] = facts["chat_template"] = None
        why_not = why_not or _said(error)
    else:
        facts["tokenizer"] = {
            "kind": tokenizer.kind,
            "vocabulary": tokenizer.vocab_size,
            "special": tokenizer.names,
            "ends_a_reply": list(tokenizer.eos_ids),
            "adds_bos": tokenizer.add_bos,
            "control_tokens": len(tokenizer.control),
        }
        facts["chat_template"] = _template(tokenizer)
        size = facts.get("vocabulary")
        if facts["family"] and isinstance(size, int) and tokenizer.vocab_size > size:
            why_not = why_not or f"its tokenizer has {tokenizer.vocab_size} tokens, the network only {size}"
    return {**facts, "trainable": why_not is None, "why_not": why_not}


def _adapter(path: Path) -> dict[str, Any]:
    folder = path if (path / "adapter_config.json").is_file() else path / "adapter"
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = str(config["peft_type"]).lower()
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: not an adapter's settings",
            given=f"{error!r}",
            allowed="an object with peft_type",
        ) from error
    return {
        "path": str(path),
        "layout": "adapter",
        "size_bytes": _size(folder),
        "adapter": kind,
        "base": config.get("base_model_name_or_path"),
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "target_modules": config.get("target_modules"),
        "trainable": False,
        "why_not": f"an adapter is trained on its base model; answer with it (lorikeet chat {path}) or merge it",
    }


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _stored(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """How many tensors and numbers are kept in which type; what most numbers are in comes first."""
    found: dict[str, dict[str, int]] = {}
    for name in checkpoint.names():
        one = found.setdefault(checkpoint.stored(name), {"tensors": 0, "parameters": 0})
        one["tensors"] += 1
        one["parameters"] += math.prod(checkpoint.shape(name))
    return dict(sorted(found.items(), key=lambda item: -item[1]["parameters"]))


def _quantisation(checkpoint: Checkpoint) -> dict[str, Any]:
    """The name of the mix, where the file says it, or the method of a quantised folder."""
    config = checkpoint.config
    if checkpoint.layout == "gguf":
        try:
            mix = (
                LlamaFileType(int(config.get("general.file_type", -1)))
                .name.removeprefix("MOSTLY_")
                .removeprefix("ALL_")
            )
        except (ValueError, TypeError):
            return {"quantisation": None}
        return {"quantisation": mix}
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return {"quantisation": None}
    bits = settings.get("bits") or (4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    return {"quantisation": str(settings.get("quant_method", "unknown")) + (f", {bits} bits" if bits else "")}


def _network(checkpoint: Checkpoint, facts: dict[str, Any]) -> str | None:
    """Fill in family and sizes; why Lorikeet cannot build this network, or None."""
    config = checkpoint.config
    architectures = config.get("architectures")
    stated = architectures[0] if isinstance(architectures, list) and architectures else None
    facts["model_type"] = config.get("model_type") or config.get("general.architecture")
    facts |= {"name": config.get("general.name"), "family": None, "architecture": stated}
    facts |= _stated_sizes(checkpoint)
    try:
        family, spec = identify(checkpoint)
    except LorikeetError as error:
        return _said(error)
    shape = spec.shape
    facts |= {
        "family": family.kind,
        "architecture": stated or family.architecture,
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_width": shape.head_dim,
        "ffn_width": shape.ffn_width,
        "vocabulary": shape.vocab_size,
        "context": shape.max_position,
        "tied": getattr(spec, "tied", None),  # a network of one's own need not say it
    }
    try:
        refuse_unknown(checkpoint, stored_quant(checkpoint))
    except CheckpointError as error:
        return _said(error)
    return None


def _stated_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes as the settings of any network state them; None where they do not."""
    config = checkpoint.config
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**text, **config}
    if checkpoint.layout == "gguf":
        kind = config.get("general.architecture")
        return {size: config.get(f"{kind}.{key}") for size, (_, key) in SIZES.items()}
    return {size: next((config[key] for key in keys if key in config), None) for size, (keys, _) in SIZES.items()}


def _template(tokenizer: Outline) -> dict[str, Any]:
    """Whether the model brings a chat template, which of ours says the same, and which are written in its tokens."""
    suits = [kind for kind in suiting(tokenizer)[0] if kind != "jinja"]
    own = tokenizer.chat_template
    facts: dict[str, Any] = {"own": own is not None, "characters": len(own or ""), "same_as": [], "suits": suits}
    if own is None:
        return facts
    for probe in _PROBES:
        said = _rendered("jinja", tokenizer, probe)
        if said is not None:
            others = [kind for kind in kinds(_TEMPLATES) if kind != "jinja"]
            facts["same_as"] = [kind for kind in others if _rendered(kind, tokenizer, probe) == said]
            return facts
    return facts | {"fault": _fault(tokenizer)}


def _bound(kind: str, tokenizer: Outline) -> Callable[[Conversation], str]:
    options = kind_class(_TEMPLATES, TemplateOptions, kind).model_validate({"kind": kind})
    template = options.bind(tokenizer)
    return lambda probe: "".join(segment.text for segment in template.render(probe, reply=True))


def _rendered(kind: str, tokenizer: Outline, probe: Conversation) -> str | None:
    """The probe's text; None where this template cannot say it."""
    try:
        return _bound(kind, tokenizer)(probe)
    except LorikeetError:
        return None


def _fault(tokenizer: Outline) -> str | None:
    try:
        _bound("jinja", tokenizer)(_PROBES[-1])
    except LorikeetError as error:
        return _said(error)
    return None


def _said(error: LorikeetError) -> str:
    """An error as one line."""
    return error.what + (f" ({error.given})" if error.given is not None else "")
