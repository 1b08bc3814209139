"""The verb verify invariance: a recipe's step computed in every way, on a few of its own rows, and the certificate."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorikeet import kernels
from lorikeet.api.base import prepare, refuse_quant
from lorikeet.api.continuing import attach_new, with_parent
from lorikeet.api.rows import may_share, shares, with_row_tokens
from lorikeet.base.errors import CheckFailed
from lorikeet.base.files import check_writable, write_file
from lorikeet.base.log import note
from lorikeet.config import Recipe
from lorikeet.verify import invariance as check
from lorikeet.verify.invariance import Invariance, Row, Settings

CERTIFICATE = "invariance_certificate.json"
WIDE = 0.1  # a limit on the gradients from which on only large faults can be seen


def verify_invariance(recipe: Recipe, *, output: Path, conversations: int = 6, tokens: int = 384) -> dict[str, Any]:
    """Compute one step of `recipe` in every way, over at most so many of its conversations with at most so many tokens
    together. Writes the certificate to `output` and returns it, with the lines of its table under "table"."""
    check_writable(output, CERTIFICATE)
    started = time.time()
    recipe, parent = with_parent(recipe)
    recipe, base, _, prepared = prepare(recipe)
    refuse_quant(recipe, base.checkpoint)
    if parent is not None:
        parent.check_base(recipe, base)
    model = base.load(recipe.quant)
    recipe = with_row_tokens(recipe, model)
    attach_new(recipe, model, parent)
    settings = Settings(
        recipe.train, shares(recipe, model), may_share(recipe, model), recipe.model.kernels, torch.get_num_threads()
    )
    examples = check.choose(prepared.train, conversations=conversations, tokens=tokens)
    used = sum(len(example.tokens) for example in examples)
    note(f"{len(examples)} conversations of {used} tokens, {str(model.dtype).removeprefix('torch.')} on {model.device}")
    invariance = Invariance(model, recipe.adapter.parameters(model), examples, settings)
    rows = []
    for row in invariance.rows():
        rows.append(row)
        note(f"{row.what}: {row.verdict}")
    if invariance.limits.gradient > WIDE:
        note("rounding alone changes the gradients that much, so small faults cannot be seen; model.dtype=float32 can")
    made = {
        **_found(rows, invariance),
        "model": recipe.model.path,
        "base_fingerprint": base.checkpoint.fingerprint(),
        "quant": recipe.quant.model_dump(mode="json"),
        "adapter": recipe.adapter.model_dump(mode="json", exclude={"path"}),
        "data": {"sha256": prepared.train.fingerprint, "conversations": len(examples), "tokens": used},
        "seconds": time.time() - started,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_file(output, json.dumps(made, indent=2) + "\n")
    return made | {"table": check.table(rows, invariance.limits), "certificate": str(output)}


def _found(rows: list[Row], invariance: Invariance) -> dict[str, Any]:
    """The certificate's part on what was computed, and by what."""
    model, broken = invariance.model, [row.what for row in rows if row.verdict == "BROKEN"]
    return {
        "certificate_version": 1,
        "passed": not broken,
        "broken": broken,
        "rows": [row.as_dict() for row in rows],
        "limits": asdict(invariance.limits),
        "rounding": None if model.dtype in check.FLOORS else asdict(invariance.noise),
        "computed": {
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "threads": invariance.settings.threads,
            "kernels": kernels.identity() if model.device.type == "cpu" else "torch",
        },
        "versions": {
            "lorikeet": version("lorikeet-llm"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def refuse_broken(certificate: dict[str, Any]) -> None:
    """Raise CheckFailed, which names the rows, for a certificate that did not pass."""
    if certificate["passed"]:
        return
    limits = certificate["limits"]
    raise CheckFailed(
        "how a step is computed changes what it computes",
        given=", ".join(certificate["broken"]),
        allowed=f"loss {limits['loss']:.1e}, gradients {limits['gradient']:.1e}, one tensor's {limits['tensor']:.1e}",
        try_=f"model.kernels=eager, to see whether the kernels are at fault; {certificate['certificate']} has the rest",
    )
