"""The verb merge: base and adapter as one Hugging Face folder, and the comparison that proves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lorikeet.adapters import _storage as storage
from lorikeet.adapters._merge import compare, merged_tensors, probes
from lorikeet.api.answering import open_any
from lorikeet.base.errors import CheckFailed, CheckpointError, OutputError, RecipeError
from lorikeet.base.files import need_space, new_folder, write_file
from lorikeet.base.log import note
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.load import load
from lorikeet.quant.none import NoQuant

GIB = 1 << 30
MERGED_DTYPES = ("float32", "bfloat16", "float16")


def merge(path: Path, output: Path, *, dtype: str | None = None, max_shard_bytes: int = 4 * GIB) -> dict[str, Any]:
    """Fold a run's adapter into its base: a Hugging Face folder. Then load it and compare it with base + adapter.

    Raises CheckFailed if the two say different things."""
    if dtype not in (None, *MERGED_DTYPES):
        raise RecipeError(
            f"--dtype: there is no '{dtype}'", given=dtype, allowed=" ".join(MERGED_DTYPES), try_="--dtype bfloat16"
        )
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise OutputError(f"{output} exists already", given=str(output), try_="another folder")
    engine_, base, adapter, identity = open_any(path)
    if adapter is None:
        raise CheckpointError(f"{path} has no adapter to merge", given=str(path), allowed="a run or an adapter folder")
    model, target = engine_.model, getattr(torch, dtype) if dtype else engine_.model.dtype
    size = sum(tensor.numel() for _, tensor in model.tensors()) * torch.empty(0, dtype=target).element_size()
    need_space(output, size + GIB // 8, "the merged model")
    settings = model.shape.config | {"dtype": str(target).split(".")[-1]}
    with new_folder(output) as folder:
        hf.save(folder, settings, merged_tensors(model, adapter, target), max_shard_bytes=max_shard_bytes)
        engine_.tokenizer.save(folder)
        write_file(folder / "generation_config.json", json.dumps(engine_.generation_config(), indent=2) + "\n")
        write_file(folder / storage.IDENTITY, json.dumps({"template": identity.get("template")}, indent=2) + "\n")
    note("comparing the merged model with base + adapter")
    made = open_checkpoint(output)
    merged = load(made, NoQuant(), dtype=model.dtype, device=model.device, family=base.options.family)
    check = compare(model, merged, probes(engine_.tokenizer), 1e-6 if target == torch.float32 == model.dtype else 0.02)
    found = {
        "output": str(output),
        "bytes": size,
        "same_top_token": check.agreement,
        "mean_kl": check.kl,
        "max_logit_difference": check.max_difference,
    }
    if not check.passed:
        raise CheckFailed(
            f"the merged model in {output} does not equal base + adapter",
            given=f"mean KL {check.kl:.3g}, same most likely token {check.agreement:.0%}",
            allowed=f"mean KL at most {check.tolerance:g}",
        )
    told = f"mean KL {check.kl:.2e}, same most likely token {check.agreement:.0%}"
    note(f"merged = base + adapter within rounding: {told}")
    return found
