"""The verb export: a run or a model as one GGUF file for llama.cpp and Ollama, or its LoRA adapter as one.

The numbers are the checkpoint's own plus the adapter's update, summed in float32 and rounded once to the file's type;
a base that was trained quantised is taken as it was in training. One dense tensor is in memory at a time, and where
there is no adapter no network is loaded at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import base_tensors, merged_tensors
from lorikeet.adapters._new_tokens import tokens_of
from lorikeet.adapters._targets import PREFIX
from lorikeet.adapters.lora import Lora
from lorikeet.api.answering import SYSTEM, Located, locate, trained_system
from lorikeet.base.errors import CheckpointError, OutputError, RecipeError
from lorikeet.base.files import need_space, sha256_file, sync, write_file
from lorikeet.base.log import note, progress
from lorikeet.checkpoints._gguf_file import TYPES, GGUFFile, Kind, Stored, size_bytes
from lorikeet.checkpoints._gguf_quantizer import check_type, quantize_file
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.data.templates._contract import Template
from lorikeet.data.templates._turns import chat_template
from lorikeet.infer.modelfile import modelfile
from lorikeet.models.build import Build
from lorikeet.models.families._contract import Family
from lorikeet.models.gguf_layouts._plan import Plan
from lorikeet.models.load import identify, own_tensors
from lorikeet.models.spec import Spec
from lorikeet.models.stored import stored_quant
from lorikeet.quant.none import NoQuant
from lorikeet.tokens._gguf_name import name_for
from lorikeet.tokens._gguf_pre_of import RARE
from lorikeet.tokens._to_gguf import PREFIX as GGML
from lorikeet.tokens._to_gguf import differences, tokenizer_metadata
from lorikeet.tokens.huggingface import HuggingFaceTokenizer

GIB = 1 << 30
MODELFILE = "Modelfile"


@dataclass(frozen=True)
class _Network:
    """What is written: (name, shape) of every tensor as a checkpoint has them, and the tensors themselves."""

    family: Family
    spec: Spec
    listed: list[tuple[str, tuple[int, ...]]]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]


def export_gguf(
    path: str | Path,
    output: Path,
    *,
    type: str | None = None,
    adapter_only: bool = False,
    with_modelfile: bool = False,
    pre: str | None = None,
    model: Mapping[str, Any] | None = None,
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """Write the GGUF file `output` of a run, an adapter folder or a model; returns what was written.

    type: how matrices are kept, f16 by default (f32 for an adapter). adapter_only: the LoRA alone, for llama.cpp's
    --lora. with_modelfile: a Modelfile for Ollama beside it. pre: the name of the tokenizer's split, where it is not
    found. model, allow_other_base: see `engine`. Raises RecipeError, ModelError, TokenizerError or CheckpointError for
    what such a file cannot hold, MissingExtra for a type that needs llama.cpp's quantizer."""
    kind = (type or ("f32" if adapter_only else "f16")).lower()
    check_type(kind)
    _check_output(output, with_modelfile)
    if adapter_only and (kind not in ("f32", "f16", "bf16") or pre is not None):
        raise RecipeError(
            f"--{'pre' if pre is not None else 'type'}: has no effect on an adapter, which has no tokenizer and floats",
            given=pre or kind,
            allowed="--type f32, f16 or bf16",
            try_="leave it out",
        )
    located = locate(path, model, allow_other_base=allow_other_base)
    template = located.template.bind(located.base.tokenizer)
    with _whole_file(output) as temporary:
        if adapter_only:
            found = _write_adapter(located, temporary, kind, path)
        else:
            found = _write_model(located, template, temporary, kind, pre, path)
    found = {"output": str(output), "bytes": output.stat().st_size, "type": kind} | found
    if with_modelfile:
        found["modelfile"] = str(_write_modelfile(located, template, output, adapter_only, trained_system(path)))
    return found


def _check_output(output: Path, with_modelfile: bool) -> None:
    if output.suffix != ".gguf" or output.is_dir():
        given = f"{output}, a folder" if output.is_dir() else str(output)
        raise OutputError("--output: needs the name of a .gguf file", given=given, try_=f"{output.stem}.gguf")
    for file in (output, *([output.with_name(MODELFILE)] if with_modelfile else [])):
        if file.exists():
            raise OutputError(f"{file} exists already", given=str(file), try_="another name")


@contextmanager
def _whole_file(output: Path) -> Iterator[Path]:
    """A name beside `output` that becomes it when the block ends well."""
    need_space(output.parent, 1 << 20, "the GGUF file")
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(output)
        sync(output.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write_model(
    located: Located, template: Template, output: Path, kind: str, pre: str | None, path: str | Path
) -> dict[str, Any]:
    network = _network(located)
    spec, layout = network.spec, network.family.gguf_layout(network.spec)
    settings = layout.gguf_metadata(spec)  # refuses what llama.cpp computes otherwise, before anything else
    words = _tokenizer(located, template, spec.shape.vocab_size, pre, path)
    matrices, file_type = TYPES[kind if kind in TYPES else "f16"]
    others = layout.gguf_others(spec)
    plan = Plan(layout, spec, network.listed, matrices)
    tensors = plan.tensors | {name: Stored(tuple(one.shape), Kind.F32) for name, one in others.items()}
    metadata = {
        "general.architecture": layout.written_as,
        "general.type": "model",
        "general.file_type": int(file_type),
        "general.quantization_version": 2,
        **settings,
        **words,
        **_origin(located, path),
    }
    for line in layout.gguf_notes(spec):
        note(line)
    size = size_bytes(tensors.values())
    if kind not in TYPES:
        size += size // 2  # the file of f16, and at most q6_k beside it
    need_space(output.parent, size + GIB // 16, "the GGUF file")
    if kind in TYPES:
        _write(output, metadata, tensors, plan, network, others)
    else:
        with _whole_file(output.with_name(f"{output.name}.f16")) as first:
            _write(first, metadata, tensors, plan, network, others)
            quantize_file(first, output, kind)
        output.with_name(f"{output.name}.f16").unlink()
    found = {"architecture": layout.written_as, "tensors": len(tensors), "tokens": len(words[f"{GGML}tokens"])}
    return found | ({"pre": words[f"{GGML}pre"]} if words.get(f"{GGML}model") == "gpt2" else {})


def _write(
    output: Path,
    metadata: dict[str, Any],
    tensors: Mapping[str, Stored],
    plan: Plan,
    network: _Network,
    others: Mapping[str, Tensor],
) -> None:
    file = GGUFFile(output, metadata, tensors)
    try:
        for name, tensor in others.items():
            file.write(name, tensor)
        with progress() as bar:
            task = bar.add_task("writing", total=len(network.listed))
            for name, tensor in network.tensors():
                plan.write(file, name, tensor)
                bar.advance(task)
        file.finish()
    finally:
        file.close()


def _network(located: Located) -> _Network:
    """The tensors of the base, or of the base with its adapter folded in."""
    base, checkpoint = located.base, located.base.checkpoint
    family, spec = identify(checkpoint, base.options.choice)
    dense = isinstance(located.quant, NoQuant) and stored_quant(checkpoint) is None
    read = own_tensors(checkpoint, base.options.choice)
    if located.adapter_folder is None and dense and base.new_tokens is None:
        slots = list(family.network(spec, Build(NoQuant(), torch.float32, torch.device("meta"))).slots())
        shapes = [(slot.name, slot.shape) for slot in slots]
        return _Network(family, spec, shapes, lambda: ((name, read(name)) for name, _ in shapes))
    if located.adapter_folder is not None:
        refusal = storage.read_options(located.adapter_folder).merge_refusal
        if refusal is not None:
            raise RecipeError(
                f"adapter.kind: {refusal}",
                given=storage.read_options(located.adapter_folder).model_dump()["kind"],
                allowed="an adapter that changes weights",
                try_="lorikeet serve",
            )
    model, adapter, _ = located.load()
    source = read if dense else None
    shapes = [(slot.name, slot.shape) for slot in model.slots()]
    if adapter is None:
        source = source if base.new_tokens is None else None  # rows that only the network has
        return _Network(family, spec, shapes, lambda: base_tensors(model, torch.float32, source=source, into=NoQuant()))
    more = {name: tuple(tensor.shape) for name, tensor in adapter.merged_others(model).items()}
    shapes = [(name, more.pop(name, shape)) for name, shape in shapes] + list(more.items())
    config = model.shape.config | adapter.merged_settings(model, model.shape.config)
    summed = lambda: merged_tensors(model, adapter, torch.float32, source=source)  # noqa: E731
    return _Network(family, family.spec(config), shapes, summed)


def _tokenizer(located: Located, template: Template, rows: int, pre: str | None, path: str | Path) -> dict[str, Any]:
    """tokenizer.*, compared with the tokenizer itself, and the model's name: llama.cpp tokenizes by that, too."""
    tokenizer, checkpoint = located.base.tokenizer, located.base.checkpoint
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    source = checkpoint if isinstance(checkpoint, GGUFCheckpoint) else None
    words = tokenizer_metadata(tokenizer, rows, pre=pre, stop_ids=template.stop_ids, source=source)
    types, added = words[f"{GGML}token_type"], tokenizer.description()["added_tokens"]
    words["general.name"] = name_for(_name(path), words[f"{GGML}tokens"], types, added)
    rare = differences(tokenizer, words)
    if rare:
        note(f"llama.cpp reads {len(rare)} of {len(RARE)} rare texts otherwise, {rare[0]!r} for one")
    chat = chat_template(template)
    if chat is None:
        note("no chat template is written: this one has no form in jinja")
    return words | {"tokenizer.chat_template": chat}


def _origin(located: Located, path: str | Path) -> dict[str, Any]:
    """What the file was made of, for people and for `lorikeet models`; and what it has to be asked behind."""
    found = {"lorikeet.base": located.base.options.path, "lorikeet.base_sha256": located.base.checkpoint.fingerprint()}
    if system := trained_system(path):
        found[SYSTEM] = system
    if located.adapter_folder is not None:
        found["lorikeet.adapter_sha256"] = sha256_file(located.adapter_folder / storage.WEIGHTS)
    return found


def _write_adapter(located: Located, output: Path, kind: str, path: str | Path) -> dict[str, Any]:
    """The A and B of a LoRA, rows in the file's order. llama.cpp scales by alpha / rank: other factors go into B."""
    if located.adapter_folder is None:
        raise CheckpointError(f"{path} has no adapter", given=str(path), allowed="a run or an adapter folder")
    _refuse_other_adapters(storage.read_options(located.adapter_folder))
    if not isinstance(located.quant, NoQuant):
        kept = located.quant.model_dump()["kind"]
        note(f"this adapter was trained over a base in {kept}: over the same base in another type, replies may differ")
    family, spec = identify(located.base.checkpoint, located.base.options.choice)
    layout = family.gguf_layout(spec)
    layout.gguf_metadata(spec)  # refuses what llama.cpp computes otherwise
    model, adapter, _ = located.load()
    assert isinstance(adapter, Lora)
    held = {name.removeprefix(PREFIX): tensor for name, tensor in adapter.tensors(model).items()}
    odd = [name for name in held if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if odd:
        raise RecipeError(
            "--adapter-only: llama.cpp's file has A and B of linears only, and this adapter trains more",
            given=odd[0],
            allowed="LoRA without trained biases and modules",
            try_="leave --adapter-only out: the whole model",
        )
    sides: list[dict[str, Tensor]] = []
    for part in ("A", "B"):
        mark = f".lora_{part}.weight"
        sides.append({f"{name.removesuffix(mark)}.weight": held[name] for name in held if name.endswith(mark)})
    a, b = sides
    factors = {name: adapter.factor_of(name.removesuffix(".weight")) * len(a[name]) for name in a}
    alpha = next(iter(factors.values()))
    for name, factor in factors.items():
        if factor != alpha:
            b[name] = b[name] * (factor / alpha)
    plans = []
    for side, suffix in ((a, ".lora_a"), (b, ".lora_b")):
        listed = [(name, tuple(tensor.shape)) for name, tensor in side.items()]
        converted = _as_is if side is a else lambda name, tensor: layout.lora_b_to_gguf(name, tensor, spec)
        plans.append(Plan(layout, spec, listed, TYPES[kind][0], suffix=suffix, converted=converted))
    metadata = {
        "general.architecture": layout.written_as,
        "general.type": "adapter",
        "general.name": _name(path),
        "general.file_type": int(TYPES[kind][1]),
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        **_origin(located, path),
    }
    file = GGUFFile(output, metadata, plans[0].tensors | plans[1].tensors)
    try:
        for side, plan in zip((a, b), plans):
            for name, tensor in side.items():
                plan.write(file, name, tensor)
        file.finish()
    finally:
        file.close()
    return {"architecture": layout.written_as, "linears": len(a), "alpha": float(alpha)}


def _name(path: str | Path) -> str:
    """A folder's own name, or a file's without .gguf. (`stem` would make Qwen2 of Qwen2.5.)"""
    return Path(path).absolute().name.removesuffix(".gguf")


def _as_is(name: str, tensor: Tensor) -> Tensor:
    return tensor


def _refuse_other_adapters(adapter: Adapter) -> None:
    if tokens_of(adapter) is not None or not isinstance(adapter, Lora):
        what = "new tokens" if isinstance(adapter, Lora) else f"the kind {adapter.model_dump()['kind']}"
        raise RecipeError(
            "--adapter-only: llama.cpp's file holds a plain LoRA only",
            given=f"an adapter with {what}" if isinstance(adapter, Lora) else f"an adapter of {what}",
            allowed="adapter.kind lora, without new tokens",
            try_="leave --adapter-only out: the whole model",
        )


def _write_modelfile(
    located: Located, template: Template, output: Path, adapter_only: bool, system: str | None
) -> Path:
    """The Modelfile beside the weights."""
    file, base = output.with_name(MODELFILE), located.base
    options = None if located.recipe is None else located.recipe.generate
    weights, adapter = f"./{output.name}", None
    if adapter_only:
        whole = isinstance(base.checkpoint, GGUFCheckpoint)
        weights, adapter = str(base.checkpoint.path) if whole else "./base.gguf", weights
        if not whole:
            note(f"the Modelfile's FROM is ./base.gguf: lorikeet export gguf {base.options.path} -o base.gguf")
    context = base.shape.max_position
    write_file(file, modelfile(template, weights, adapter=adapter, context=context, options=options, system=system))
    return file
