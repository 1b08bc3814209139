"""The ways to merge, and what cannot be merged: refused before any weight is read or a file is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lorikeet.adapters import _storage as storage
from lorikeet.api.answering import Located
from lorikeet.base.errors import CheckpointError, ModelError, RecipeError
from lorikeet.base.option_fields import as_yaml
from lorikeet.data.sources import validation_of
from lorikeet.models.blockwise import Blockwise
from lorikeet.models.stored import stored_quant
from lorikeet.quant._contract import Quant
from lorikeet.quant._gptq_solver import SolverOptions
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.none import NoQuant

MERGED_DTYPES = ("float32", "bfloat16", "float16")
CALIBRATE = 128  # conversations
CPU = torch.device("cpu")


@dataclass(frozen=True)
class How:
    """The way to merge."""

    into: Quant | None  # None: dense, or with `keep_adapter` as the base was kept in training
    base: str  # which weights take the update: quantised, as in training, or full
    keep_adapter: bool  # beside the base, instead of adding it
    dtype: str | None  # of what is not quantised; None: the one the model runs in here
    max_shard_bytes: int
    verify: bool | None  # None: where something is quantised and the run has held-out conversations
    calibrate: int | None = None  # conversations that GPTQ rounds by; 0: to the nearest; None: CALIBRATE

    def check(self) -> None:
        """Raise RecipeError for a way that does not exist."""
        if self.dtype not in (None, *MERGED_DTYPES):
            allowed = " ".join(("auto", *MERGED_DTYPES))
            raise RecipeError(
                f"--dtype: there is no '{self.dtype}'", given=self.dtype, allowed=allowed, try_="--dtype bfloat16"
            )
        if self.base not in ("quantised", "full"):
            raise RecipeError(f"--base: there is no '{self.base}'", given=self.base, allowed="quantised full")
        if self.keep_adapter and self.base == "full" and self.into is None:
            raise RecipeError(
                "--base full: the adapter stays beside the base, so nothing is added to it",
                given="--keep-adapter --base full",
                allowed="one of them, or both with --into",
                try_="--keep-adapter alone",
            )
        if self.calibrate is not None and not self.calibrates:
            raise RecipeError(
                "--calibrate: has no effect, only a merge into gptq is calibrated",
                given=f"--calibrate {self.calibrate}",
                allowed="with --into gptq, without --keep-adapter",
                try_="leave it out",
            )
        if self.into is not None and not is_dense(self.into) and self.into.stored_settings(torch.float32) is None:
            raise RecipeError(
                f"--into: no folder holds weights of the kind {self.into.model_dump()['kind']}",
                given=self.into.model_dump()["kind"],
                allowed="none, or a kind that a Hugging Face folder knows",
                try_="--into none",
            )
        self._check_calibrated()

    def _check_calibrated(self) -> None:
        """Raise RecipeError for options of --into that only rounding to the nearest has."""
        if not self.conversations or not isinstance(self.into, Gptq):
            return
        written = {"target_modules": "all-linear", "checkpoint_format": "gptq" if self.into.sym else "gptq_v2"}
        for name, value in written.items():
            given = getattr(self.into, name)
            if name in self.into.model_fields_set and given != value:
                raise RecipeError(
                    f"quant.{name}: has no effect where GPTQ rounds by the training data",
                    given=as_yaml(given),
                    allowed=value,
                    try_="--calibrate 0, which rounds to the nearest",
                )

    @property
    def calibrates(self) -> bool:
        """Whether the sum may be rounded with what it is used on in view."""
        return isinstance(self.into, Gptq) and not self.keep_adapter

    def solver(self) -> SolverOptions:
        """How GPTQ rounds, where it is calibrated."""
        assert isinstance(self.into, Gptq)
        return SolverOptions(bits=self.into.bits, group_size=self.into.group_size, sym=self.into.sym)

    @property
    def conversations(self) -> int:
        """How many of the training data GPTQ rounds by."""
        return (CALIBRATE if self.calibrate is None else self.calibrate) if self.calibrates else 0


def is_dense(quant: Quant | None) -> bool:
    """Whether linears that are kept so are plain numbers."""
    return quant is None or isinstance(quant, NoQuant)


def refuse(located: Located, how: How, path: Path) -> Path:
    """Raise for what cannot be merged this way: RecipeError, CheckpointError, and ModelError for a network that GPTQ
    does not walk through. Returns the adapter's folder."""
    folder = located.adapter_folder
    if folder is None:
        raise CheckpointError(f"{path} has no adapter to merge", given=str(path), allowed="a run or an adapter folder")
    _refuse_unmergeable(folder, how)
    _refuse_full_of_quantised(located, how)
    if how.conversations:
        _refuse_uncalibrated(located, how, path)
    return folder


def _refuse_unmergeable(folder: Path, how: How) -> None:
    """Raise RecipeError for a kind of adapter that is no change of the weights, or nothing but one."""
    adapter = storage.read_options(folder)
    if adapter.merge_refusal is not None and not how.keep_adapter:
        raise RecipeError(
            f"adapter.kind: {adapter.merge_refusal}",
            given=adapter.model_dump()["kind"],
            allowed="an adapter that changes weights; or --keep-adapter, which lays it beside the base",
            try_="--keep-adapter",
        )
    if adapter.beside_refusal is not None and how.keep_adapter:
        raise RecipeError(
            f"--keep-adapter: {adapter.beside_refusal}",
            given=f"an adapter of the kind {adapter.model_dump()['kind']}",
            allowed="merging, dense or --into a kind",
            try_="leave it out",
        )


def _refuse_full_of_quantised(located: Located, how: How) -> None:
    if how.base == "full" and stored_quant(located.base.checkpoint) is not None:
        raise CheckpointError(
            f"{located.base.checkpoint.path} has no full-precision weights: it is stored quantised",
            given="--base full",
            allowed="--base quantised",
            try_="--base quantised",
        )


def _refuse_uncalibrated(located: Located, how: How, path: Path) -> None:
    nearest, checkpoint = "--calibrate 0, which rounds to the nearest", located.base.checkpoint
    if located.recipe is None:
        raise RecipeError(
            "--into gptq: an adapter alone has no training data to round by",
            given=str(path),
            allowed="a run, or --calibrate 0",
            try_=nearest,
        )
    if stored_quant(checkpoint) is not None:
        return  # the sum is dense, and only that is walked through
    try:
        Blockwise(checkpoint, how.solver(), [], torch.float32, CPU, family=located.base.options.family)
    except ModelError as error:  # before hours went into a sum that is of no use
        raise ModelError(error.what, given=error.given, allowed=error.allowed, try_=nearest) from error


def certifies(located: Located, how: How, plain: bool, path: Path) -> bool:
    """Whether to measure with held-out conversations. Raises RecipeError where that is asked for without any."""
    held_out = located.recipe is not None and validation_of(located.recipe.data) is not None
    if how.verify and not held_out:
        raise RecipeError(
            "--verify: the run has no held-out conversations",
            given=str(path),
            allowed="a run with data.validation",
            try_="merge without it, then: lorikeet verify merge MERGED --run RUN --data FILE",
        )
    return held_out and not plain if how.verify is None else how.verify
