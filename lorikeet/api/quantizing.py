"""The verb quantize: a model as a Hugging Face folder in GPTQ's format, calibrated on one's own training data."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorikeet.adapters import _storage as storage
from lorikeet.api.answering import sampling_of, trained_system
from lorikeet.api.base import Base, prepare
from lorikeet.base.errors import Interrupted, LorikeetError
from lorikeet.base.files import check_new, need_space, new_folder, sha256_file, write_file
from lorikeet.base.log import note, progress
from lorikeet.base.nouns import Batch
from lorikeet.checkpoints import hf
from lorikeet.checkpoints._blocks import Blocks
from lorikeet.config import Recipe
from lorikeet.data.pack import run_step
from lorikeet.data.templates._contract import Template
from lorikeet.infer import generation_config
from lorikeet.infer.engine import Engine
from lorikeet.models.blockwise import Blockwise, LinearError
from lorikeet.models.load import pick_device, pick_dtype
from lorikeet.quant._gptq_solver import SolverOptions
from lorikeet.train.metrics import peak_rss_bytes

GIB = 1 << 30
ROW_TOKENS = 2048  # of a packed calibration row
REPORT = "quantize.json"  # in the folder: the error of each linear
NAMED = 8  # experts of a layer in a line of output; the report has all


def quantize(
    recipe: Recipe,
    output: Path,
    options: SolverOptions,
    *,
    rows: int = 128,
    true_sequential: bool = True,
    max_shard_bytes: int = GIB,
    part_of: Path | None = None,
) -> dict[str, Any]:
    """Quantise the recipe's model with GPTQ on the first `rows` conversations of its training data, as training would
    render them and in the order of its first epoch. Writes a Hugging Face folder that gptqmodel, transformers and
    vLLM read, and this program trains on. What is finished of it lies beside `output` meanwhile, and the same call goes
    on with that after it was stopped, however it was. `part_of`: a folder that `output` will be part of; it lies beside
    that one, and stays there until its maker calls `_blocks.clear`.

    Raises OutputError where `output` exists, ModelError for a network that GPTQ does not walk through, Interrupted
    after Ctrl-C."""
    started = time.time()
    check_new(output)
    recipe, base, template, prepared = prepare(recipe)
    device = pick_device(recipe.model.device)
    dtype = pick_dtype(recipe.model.dtype, device)
    seed = recipe.train.seed
    batches = run_step(prepared.train, 0, seed=seed, examples_per_step=rows, row_tokens=ROW_TOKENS, share=False)
    tokens = sum(len(batch.tokens) for batch in batches)
    family = base.options.family  # a model that is refused is, before anything is said of calibrating
    walk = Blockwise(base.checkpoint, options, batches, dtype, device, true_sequential, family=family)
    size = dtype.itemsize * sum(math.prod(base.checkpoint.shape(name)) for name in base.checkpoint.names())
    need_space(output, size + min(size, max_shard_bytes), "the quantised model")
    _say_calibration(min(rows, prepared.epoch_examples), tokens, max(base.shape.width, base.shape.ffn_width))
    blocks = Blocks(part_of or output, _identity(base, options, batches, dtype, device, true_sequential))
    try:
        _walk(walk, blocks, base.shape.layers)
        written = _write(output, recipe, base, walk, blocks, template, max_shard_bytes)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the blocks that are finished are kept", try_="the same command goes on") from None
    if part_of is None:
        blocks.remove()
    if walk.dense:
        note(f"{len(walk.dense)} linears stay dense: their sizes do not fill 32-bit words, e.g. {walk.dense[0]}")
    if lines := fallen_back(walk.errors):
        note("experts that saw fewer calibration tokens than they have inputs, and are rounded mostly for others':")
        for line in lines:
            note(f"  {line}")
    return {
        "output": str(output),
        "bytes": written,
        "tokens": tokens,
        "error": _mean([error.error for error in walk.errors]),
        "nearest_error": _mean([error.nearest_error for error in walk.errors]),
        "seconds": time.time() - started,
        "peak_rss_bytes": peak_rss_bytes(),
        "linears": walk.errors,
    }


def _walk(walk: Blockwise, blocks: Blocks, layers: int) -> None:
    """Round what `blocks` does not hold yet, with a bar."""
    if len(blocks):
        note(f"going on with what is finished: {len(blocks)} parts in {blocks.folder}")
    with progress() as bar:
        work = bar.add_task("blocks", total=layers)
        walk.after_block = lambda: bar.advance(work)
        try:
            walk.walk(blocks)
        except LorikeetError:  # it would come again
            blocks.remove()
            raise


def _say_calibration(conversations: int, tokens: int, widest: int) -> None:
    note(f"calibration: {conversations} conversations, {tokens:,} tokens")
    if tokens < widest:
        note(
            f"that is few: a linear has up to {widest:,} inputs. It is fitted to these rows, and may say others worse "
            "than one that is rounded to the nearest: take more conversations"
        )


def _write(
    output: Path,
    recipe: Recipe,
    base: Base,
    walk: Blockwise,
    blocks: Blocks,
    template: Template,
    max_shard_bytes: int,
) -> int:
    """The blocks as a Hugging Face folder, whole or not there. Returns the bytes of its weights."""
    settings = base.shape.config | {"dtype": str(walk.dtype).split(".")[-1]}
    settings["quantization_config"] = _settings(walk.options, walk)
    with new_folder(blocks.folder / "whole") as folder:
        hf.save(folder, settings, walk.tensors(blocks), max_shard_bytes=max_shard_bytes)
        base.tokenizer.save(folder)
        ends = Engine(walk.network, base.tokenizer, template).generation_config()
        answers = generation_config.written(sampling_of(None, base.checkpoint)) | ends
        write_file(folder / generation_config.FILE, json.dumps(answers, indent=2) + "\n")
        named: dict[str, Any] = {"template": recipe.data.template.model_dump(mode="json")}
        if system := trained_system(base.checkpoint.path):  # rounding teaches it no other
            named["system"] = system
        write_file(folder / storage.IDENTITY, json.dumps(named, indent=2) + "\n")
        told = {"linears": [asdict(error) for error in walk.errors], "kept_dense": walk.dense}
        write_file(folder / REPORT, json.dumps(told, indent=2) + "\n")
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    (blocks.folder / "whole").replace(output)
    return written


def by_layer(errors: list[LinearError]) -> list[tuple[str, str, str, str]]:
    """(layer, linears, GPTQ's error, rounding to nearest's) for a table, in per cent; of a layer's experts, means."""
    gathered: dict[tuple[int, str], list[LinearError]] = {}
    for error in errors:
        leaves = " ".join(name.rsplit(".", 1)[-1] for name in error.names)
        named = leaves if error.expert is None else f"experts' {leaves}"
        gathered.setdefault((error.layer, named), []).append(error)
    lines = []
    for (layer, named), those in gathered.items():
        ours, nearest = _mean([one.error for one in those]), _mean([one.nearest_error for one in those])
        lines.append((str(layer), named, f"{ours:.3%}", f"{nearest:.3%}"))
    return lines


def fallen_back(errors: list[LinearError]) -> list[str]:
    """A line for each layer with experts that saw too few tokens: which, and how many tokens each saw."""
    seen: dict[int, dict[int, int]] = {}
    for error in errors:
        if error.expert is not None and error.fell_back:
            seen.setdefault(error.layer, {})[error.expert] = error.tokens or 0
    lines = []
    for layer, experts in seen.items():
        fewest = sorted(experts, key=lambda expert: (experts[expert], expert))
        named = ", ".join(f"expert {expert} saw {experts[expert]}" for expert in fewest[:NAMED])
        more = f" and {len(fewest) - NAMED} more" if len(fewest) > NAMED else ""
        lines.append(f"layer {layer}: {named}{more}")
    return lines


def _identity(
    base: Base,
    options: SolverOptions,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    device: torch.device,
    true_sequential: bool,
) -> dict[str, Any]:
    """What decides the numbers of a quantised model."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.tokens, batch.positions, batch.visible_until):
            digest.update(tensor.numpy().tobytes())
    return {
        "base": base.checkpoint.fingerprint(),
        "family": base.options.family and sha256_file(Path(base.options.family)),
        "rows": digest.hexdigest(),
        "options": options.model_dump(mode="json"),
        "true_sequential": true_sequential,
        "computed": [str(dtype), str(device), torch.__version__],
    }


def _settings(options: SolverOptions, walk: Blockwise) -> dict[str, Any]:
    """config.json's quantization_config. v1 cannot tell a zero point of 0 from others, so only symmetric models, which
    have none, are written so; every reader knows it."""
    return {
        "quant_method": "gptq",
        "bits": options.bits,
        "group_size": options.group_size,
        "desc_act": walk.reordered,
        "static_groups": options.static_groups,
        "sym": options.sym,
        "true_sequential": walk.true_sequential,
        "damp_percent": options.damp_percent,
        "lm_head": False,
        "pack_dtype": "int32",
        "checkpoint_format": "gptq" if options.sym else "gptq_v2",
        "meta": {"quantizer": [f"lorikeet:{version('lorikeet-llm')}"]},
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
