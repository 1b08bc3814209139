"""What a run that goes on has to have in common with the run that was interrupted, and how it gets it.

What the recipe leaves to the machine (dtype, device, threads, row_tokens) is decided once, when a run begins; asked
again, a busier or a smaller machine might answer otherwise. What the recipe says is compared, and refused with both
sides where it would come to other numbers.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorikeet import kernels
from lorikeet.adapters import _storage as storage
from lorikeet.api.base import Base
from lorikeet.api.continuing import Parent
from lorikeet.base.errors import DiskFull
from lorikeet.base.files import disk_is_full, free_bytes, sha256_file
from lorikeet.base.kinds import own_code
from lorikeet.base.machine import cpu_flags
from lorikeet.config import Recipe
from lorikeet.data.pipeline import Prepared
from lorikeet.data.templates._contract import Template
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.best import decides_by_evaluation, decides_by_replies
from lorikeet.train.metrics import Metrics
from lorikeet.train.optim import Stepper
from lorikeet.train.resuming import forced, interrupted_identity
from lorikeet.train.resuming import resume as resume_run
from lorikeet.train.run import Progress, Run
from lorikeet.train.state import checkpoints
from lorikeet.train.stopping import stop_anywhere

# options of `train` that decide when something is written or shown, and no number of the training
CADENCE = {"logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to"}
# and those that say what happens when something goes wrong
CADENCE |= {"rehearsal", "on_nonfinite", "max_skipped_steps", "on_loss_spike", "loss_spike_factor"}
SHOWN = {"before", "samples", "sample_steps"}  # the same of `evaluate`
# instruction sets by which libraries choose their kernels, and variables by which a person does
_ISA = ("sse4", "avx", "amx", "fma", "f16c", "vnni", "asimd", "sve", "bf16", "i8mm")
_VARIABLES = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_CPU_CAPABILITY", "CUBLAS_", "NVIDIA_TF32_OVERRIDE", "OPENBLAS_CORETYPE")


def identity(
    recipe: Recipe, base: Base, template: Template, prepared: Prepared, model: CausalLM, parent: Parent | None
) -> dict[str, Any]:
    """What must be the same for a run to go on: everything that decides its numbers."""
    held_out = prepared.validation
    return {
        "model.source": model.source,
        "family": recipe.model.family and sha256_file(Path(recipe.model.family)),
        "base_fingerprint": base.checkpoint.fingerprint(),
        "tokenizer_fingerprint": base.tokenizer.fingerprint,
        "template_fingerprint": template.fingerprint,
        "data": prepared.train.fingerprint,
        "data.validation": None if held_out is None else held_out.fingerprint,
        "quant": recipe.quant.model_dump(mode="json"),
        "adapter": recipe.adapter.model_dump(mode="json", exclude={"path"}),
        "parent_adapter": None if parent is None else parent.sha256,
        "own_code": [code for one in (recipe.quant, recipe.adapter, recipe.train) for code in own_code(one)] or None,
        "train": recipe.train.model_dump(mode="json", exclude=CADENCE),
        "eval_steps": recipe.train.eval_steps if decides_by_evaluation(recipe.train) else None,
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude=SHOWN),
        "generate": _replying(recipe) if decides_by_replies(recipe.train) else None,
        "optimizer": recipe.train.optim.computes(model.device),
        "dtype": str(model.dtype),
        "device": model.device.type,
        **_computing(model.device),
    }


def _replying(recipe: Recipe) -> dict[str, Any]:
    """How a reply is made, without what only decides how fast."""
    return recipe.generate.model_dump(mode="json", exclude={"batch_size", "dequantize"})


def _computing(device: torch.device) -> dict[str, Any]:
    """What of machine and libraries decides how sums are rounded."""
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "kernels": kernels.identity() if device.type == "cpu" else "torch",
        "torch": torch.__version__,
        "lorikeet": version("lorikeet-llm"),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }
    if device.type == "cuda":
        return found | {"gpu": torch.cuda.get_device_name(device)}
    flags = sorted(flag for flag in cpu_flags() if flag.startswith(_ISA))
    return found | {"cpu": " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *flags])}


def adapter_identity(recipe: Recipe, identity: dict[str, Any], system: str | None) -> dict[str, Any]:
    """What lorikeet.json says beside an adapter; `system`: the prompt that all of its conversations began with."""
    names = ("base_fingerprint", "tokenizer_fingerprint", "template_fingerprint", "data", "quant")
    found = {"base": recipe.model.path} | {name: identity[name] for name in names}
    found |= {"template": recipe.data.template.model_dump(mode="json")}
    found |= {"add_tokens": recipe.model.add_tokens} if recipe.model.add_tokens else {}
    found |= {"system": system} if system else {}
    return found | ({"parent_adapter": identity["parent_adapter"]} if identity["parent_adapter"] else {})


def as_begun(recipe: Recipe, then: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with what it leaves to the machine as the run in its output_dir began with it, or as `then` says."""
    then = interrupted_identity(recipe.output_dir) if then is None else then
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    if not then:
        return recipe
    if recipe.model.device == "auto" and (then["device"] != "cuda" or torch.cuda.is_available()):
        model["device"] = then["device"]
    if recipe.model.dtype == "auto":
        model["dtype"] = then["dtype"].removeprefix("torch.")
    if recipe.model.threads is None:
        model["threads"] = then["threads"]
    if recipe.train.row_tokens is None:
        train["row_tokens"] = then["train"]["row_tokens"]
    parts = {"model": recipe.model.model_copy(update=model), "train": recipe.train.model_copy(update=train)}
    return recipe.model_copy(update=parts)


def resume(run: Run, recipe: Recipe, *, force: bool) -> tuple[Progress, Stepper]:
    """Load the newest whole checkpoint, if there is one."""
    stepper = Stepper(run.parameters, recipe.train, recipe.adapter.learning_rate_factors(run.model))
    return resume_run(run, stepper, partial(_fill, run.model, recipe), force=force), stepper


def what_was_forced(folder: Path) -> dict[str, Any]:
    """For the summary of a run: what --force-resume let pass, where it did."""
    found = forced(Metrics(folder / "metrics.jsonl").rows())
    return {"forced": found} if found else {}


def _fill(model: CausalLM, recipe: Recipe, checkpoint: Path) -> None:
    storage.fill(model, recipe.adapter, storage.read_training(checkpoint), source=checkpoint)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """What ends a run from outside, wherever it is: signals raise Interrupted (the loop has a better way while it
    runs), a full disk DiskFull."""
    with stop_anywhere():
        try:
            yield
        except Exception as error:
            if not disk_is_full(error):
                raise
            steps = checkpoints(folder)
            where = f"goes on behind step {steps[-1]}" if steps else "begins again"
            raise DiskFull(
                "the disk is full; nothing half-written is left",
                given=f"{free_bytes(folder) / (1 << 20):.1f} MiB free at {folder}: {error}",
                try_=f"free some space; the same command {where}",
            ) from error
