"""The verb merge: base and adapter as one Hugging Face folder, and the comparison that says how near it is to them.

The base that takes the update is the one in memory, as quantised as it was in training, or the checkpoint's own; the
sum is dense or quantised again; or nothing is summed, and the adapter lies beside the quantised base.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import (
    Source,
    base_tensors,
    compare,
    dense_linears,
    merged_tensors,
    probes,
    written_bytes,
)
from lorikeet.api.answering import Located, locate, sampling_of
from lorikeet.api.merge_way import How, certifies, is_dense, refuse
from lorikeet.api.quantizing import quantize
from lorikeet.api.verifying import CERTIFICATE, MERGED, refuse_failed, verify_merge
from lorikeet.base.errors import CheckFailed, CheckpointError
from lorikeet.base.files import check_new, need_space, new_folder, write_file
from lorikeet.base.heap import give_back
from lorikeet.base.log import note
from lorikeet.checkpoints import _blocks, hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.infer import generation_config
from lorikeet.infer.engine import Engine
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import load, own_tensors
from lorikeet.models.stored import stored_quant
from lorikeet.quant._contract import Quant
from lorikeet.quant.gptq import GptqWeight
from lorikeet.quant.none import NoQuant

GIB = 1 << 30
SLACK = GIB // 8
BASE = "base"  # the folder of the base inside one with the adapter beside it


@dataclass
class _Work:
    """A model with its adapter, and where it goes."""

    located: Located
    model: CausalLM
    adapter: Adapter
    identity: dict[str, Any]
    how: How
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = getattr(torch, self.how.dtype) if self.how.dtype else self.model.dtype

    @property
    def source(self) -> Source | None:
        """The checkpoint's own tensors, where they take the update."""
        if self.how.base == "quantised":
            return None
        return own_tensors(self.located.base.checkpoint, self.located.base.options.choice)

    @property
    def stored(self) -> Quant:
        """How the written linears are kept."""
        return self.how.into or (self.located.quant if self.how.keep_adapter else NoQuant())

    def needed_bytes(self) -> int:
        """Room on the disk for the weights, about; with what lies there only while they are made."""
        if not self.how.conversations:
            into = None if self.how.keep_adapter and self.how.into is None else self.stored
            return written_bytes(self.model, self.dtype, into)
        dense = written_bytes(self.model, self.dtype, NoQuant())
        return 2 * dense + min(dense, self.how.max_shard_bytes)  # the sum, and what `quantize` asks for itself

    def tensors(self, into: Quant | None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the folder, one at a time."""
        if self.how.keep_adapter:
            return base_tensors(self.model, self.dtype, source=self.source, into=into)
        return merged_tensors(self.model, self.adapter, self.dtype, source=self.source, into=into)


def merge(
    path: Path,
    output: Path,
    *,
    into: Quant | None = None,
    base: str = "quantised",
    keep_adapter: bool = False,
    dtype: str | None = None,
    max_shard_bytes: int = 4 * GIB,
    verify: bool | None = None,
    calibrate: int | None = None,
    model: Mapping[str, Any] | None = None,
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """Fold a run's adapter into its base: a Hugging Face folder. Then compare it with base + adapter.

    Where nothing is quantised, the folder has to say the same as base + adapter within rounding; else the certificate
    of `lorikeet verify merge` is written into it. Raises CheckFailed if the two are too far apart. The arguments are
    those of `How`; `model`: options of the recipe's section, for what the folder does not say (or says otherwise).

    An adapter of another base or quantisation is refused unless `allow_other_base`; lorikeet.json then names both."""
    how = How(into, base, keep_adapter, dtype, max_shard_bytes, verify, calibrate)
    how.check()
    check_new(output)
    located = locate(path, model, allow_other_base=allow_other_base)
    refuse(located, how, path)
    plain = is_dense(located.quant) and is_dense(how.into) and not how.keep_adapter and how.base == "quantised"
    certify = certifies(located, how, plain, path)
    need_space(output, SLACK, "the merged model")  # how much more is known when it is loaded, which takes a while
    work = _load(located, how)
    need_space(output, work.needed_bytes() + SLACK, "the merged model")
    _write(work, path, output)
    size = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
    found: dict[str, Any] = {"output": str(output), "bytes": size}
    if plain and not certify:
        return found | _compared(work, output)
    if not certify:
        note(f"not measured yet: lorikeet verify merge {output} --run {path}")
        return found
    del work
    give_back()
    certificate = verify_merge(output, path, model=model, allow_other_base=allow_other_base)
    refuse_failed(certificate)
    return found | certificate["measured"] | {"certificate": str(output / CERTIFICATE)}


def _load(located: Located, how: How) -> _Work:
    model, adapter, identity = located.load()
    assert adapter is not None
    return _Work(located, model, adapter, identity, how)


def _write(work: _Work, path: Path, output: Path) -> None:
    """The folder: whole, or not there. What is finished of one that is calibrated stays beside it until it is there."""
    said = _said(work, path)
    with new_folder(output) as folder:
        weights = folder / BASE if work.how.keep_adapter else folder
        weights.mkdir(exist_ok=True)
        if work.how.conversations:
            _calibrated(work, folder, output)
        else:
            _fill(work, weights, work.stored, work.how.into)
        made = open_checkpoint(weights)
        identity = {"template": None} | {
            key: work.identity[key] for key in ("template", "system") if key in work.identity
        }
        if work.how.keep_adapter:
            identity = _beside(work, folder, made.fingerprint(), stored_quant(made) or NoQuant())
        identity[MERGED] = said | {"weights": made.fingerprint()}
        write_file(folder / storage.IDENTITY, json.dumps(identity, indent=2) + "\n")
    _blocks.clear(output)


def _fill(work: _Work, folder: Path, stored: Quant, into: Quant | None) -> None:
    """Weights, config.json, tokenizer and generation_config.json of the sum (or of the base alone) in `folder`."""
    tokenizer = work.located.base.tokenizer
    engine = Engine(work.model, tokenizer, work.located.template.bind(tokenizer))
    _check_template(work.identity, engine)
    hf.save(folder, _settings(work, stored), work.tensors(into), max_shard_bytes=work.how.max_shard_bytes)
    tokenizer.save(folder)
    base = work.located.base
    for code in base.checkpoint.path.glob("*.py") if base.options.trust_remote_code else ():
        shutil.copyfile(code, folder / code.name)
    answers = generation_config.written(sampling_of(work.located.recipe, base.checkpoint)) | engine.generation_config()
    write_file(folder / generation_config.FILE, json.dumps(answers, indent=2) + "\n")


def _calibrated(work: _Work, folder: Path, output: Path) -> None:
    """The sum, dense for a while, and rounded by GPTQ with the training data in view: block by block, from the disk.
    `folder` will be `output`."""
    recipe = work.located.recipe
    assert recipe is not None
    dense, made = folder / "dense", folder / "made"
    dense.mkdir()
    _fill(work, dense, NoQuant(), None)
    write_file(dense / storage.IDENTITY, json.dumps({"template": work.identity.get("template")}) + "\n")
    work.model = work.model.to("meta")  # its room is needed now
    give_back()
    made_of = {"path": str(dense), "add_tokens": [], "dtype": str(work.dtype).removeprefix("torch.")}
    options = work.located.base.options.model_copy(update=made_of)  # the run's, and what the command says beside them
    dense_recipe = recipe.model_copy(update={"model": options, "quant": NoQuant()})
    rows, shard = work.how.conversations, work.how.max_shard_bytes
    quantize(dense_recipe, made, work.how.solver(), rows=rows, max_shard_bytes=shard, part_of=output)
    (dense / generation_config.FILE).replace(made / generation_config.FILE)  # the same ends, and the sampling
    shutil.rmtree(dense)
    for file in made.iterdir():
        file.rename(folder / file.name)
    made.rmdir()


def _check_template(identity: dict[str, Any], engine: Engine) -> None:
    known = identity.get("template_fingerprint")
    if known not in (None, engine.template.fingerprint):
        raise CheckpointError(
            "the template differs from the one the adapter was trained with",
            given=engine.template.fingerprint[:12],
            allowed=known[:12],
        )


def _settings(work: _Work, stored: Quant) -> dict[str, Any]:
    """config.json."""
    made = work.model.shape.config | {"dtype": str(work.dtype).removeprefix("torch.")}
    made.pop("quantization_config", None)
    if not work.how.keep_adapter:
        made |= work.adapter.merged_settings(work.model, made)
    if is_dense(stored):
        return made
    settings = stored.stored_settings(work.dtype)
    assert settings is not None, "`How.check` has asked"
    if "desc_act" in settings:  # engines look at g_idx only where this says so
        weights = (group.weight for group in work.model.groups())
        settings["desc_act"] = any(isinstance(weight, GptqWeight) and weight.reordered for weight in weights)
    if "llm_int8_skip_modules" in settings:  # bitsandbytes' word for what stays dense
        settings["llm_int8_skip_modules"] += dense_linears(work.model, stored)
    return made | {"quantization_config": settings}


def _said(work: _Work, path: Path) -> dict[str, Any]:
    """What lorikeet.json says of how the folder was made, which `lorikeet verify merge` reads."""
    folder, base = work.located.adapter_folder, work.located.base
    assert folder is not None
    return {
        "run": str(path),
        "model": base.options.path,
        "base_fingerprint": base.checkpoint.fingerprint(),
        **storage.hashes(folder),
        "trained": work.located.quant.model_dump(mode="json"),
        "into": work.stored.model_dump(mode="json"),
        "base": work.how.base,
        "kept": work.how.keep_adapter,
        "calibrated_on": work.how.conversations,
        "adapter_trained_on": work.located.other_base() or None,
    }


def _beside(work: _Work, folder: Path, fingerprint: str, stored: Quant) -> dict[str, Any]:
    """Copy the adapter into `folder`, over the base that lies in it. Returns its lorikeet.json."""
    adapter = work.located.adapter_folder
    assert adapter is not None
    shutil.copyfile(adapter / storage.WEIGHTS, folder / storage.WEIGHTS)
    config = storage.read_json(adapter / storage.CONFIG) | {"base_model_name_or_path": BASE}
    write_file(folder / storage.CONFIG, json.dumps(config, indent=2) + "\n")
    named = {"base": BASE, "base_fingerprint": fingerprint, "quant": stored.model_dump(mode="json")}
    return storage.read_json(adapter / storage.IDENTITY) | named


def _compared(work: _Work, output: Path) -> dict[str, Any]:
    """The dense folder, loaded, against base + adapter on the beginnings of some texts. Raises CheckFailed."""
    model, base = work.model, work.located.base
    note("comparing the merged model with base + adapter")
    merged = load(
        open_checkpoint(output), NoQuant(), dtype=model.dtype, device=model.device, family=base.options.choice
    )
    tolerance = 1e-6 if work.dtype == torch.float32 == model.dtype else 0.02
    check = compare(model, merged, probes(base.tokenizer), tolerance)
    if not check.passed:
        raise CheckFailed(
            f"the merged model in {output} does not equal base + adapter",
            given=f"mean KL {check.kl:.3g}, same most likely token {check.agreement:.0%}",
            allowed=f"mean KL at most {check.tolerance:g}",
        )
    told = f"mean KL {check.kl:.2e}, same most likely token {check.agreement:.0%}"
    note(f"merged = base + adapter within rounding: {told}")
    return {"same_top_token": check.agreement, "mean_kl": check.kl, "max_logit_difference": check.max_difference}
