"""Checkpoints whose linears are stored quantised: which kind reads them, and how they get into a network.

The tensors are taken over as they are, linear by linear: nothing is made dense and rounded again. Linears that such a
checkpoint holds dense stay dense. `quant.dequantize` makes all of them dense while they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.slots import Slot
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant

MAKES_DENSE = "quant='{kind: none, dequantize: true}'"  # what to write for a model that is stored quantised


def stored_quant(checkpoint: Checkpoint) -> Quant | None:
    """The kind in which the checkpoint's linears are stored, with its options; None where they are dense (whatever
    config.json says of how they were stored once), or of a kind that is not known (which loading refuses)."""
    settings = checkpoint.config.get("quantization_config")
    if checkpoint.layout != "hf" or not isinstance(settings, dict):
        return None
    for name in kinds("lorikeet.quant"):
        found = kind_class("lorikeet.quant", Quant, name).stored_as(settings, checkpoint.path)
        if found is not None:
            without_weights = not checkpoint.names()  # a plan before they are downloaded
            return found if without_weights or StoredLinears(checkpoint, found).linears else None
    return None


def fitting(quant: Quant, checkpoint: Checkpoint) -> Quant:
    """How the checkpoint's linears will be kept, where `quant` is asked for: as they are stored, or dense. Raises
    RecipeError for another kind, or other options, than they are stored in."""
    stored = stored_quant(checkpoint)
    dense = isinstance(quant, NoQuant) and quant.dequantize
    if stored is None and dense:
        raise RecipeError(
            "quant.dequantize: has no effect, because the model is not stored quantised",
            given="true",
            try_="leave quant.dequantize out",
        )
    if stored is None or dense:
        return quant
    kind, stored_kind = (one.model_dump()["kind"] for one in (quant, stored))
    if kind == "none":
        return stored
    if kind != stored_kind:
        raise RecipeError(
            f"quant.kind: the model is stored as {stored_kind}, and rounding it again would add a second error",
            given=kind,
            allowed=f"{stored_kind}, or none, which keeps it so, too",
            try_=f"the unquantised model, or quant={stored_kind}",
        )
    for name in sorted(quant.model_fields_set):
        given, allowed = getattr(quant, name), getattr(stored, name)
        if given != allowed:
            raise RecipeError(
                f"quant.{name}: the model is stored otherwise", given=given, allowed=allowed, try_=f"leave {name} out"
            )
    return stored


def kept_as(quant: Quant, checkpoint: Checkpoint) -> Quant:
    """`quant` as the network is built with it: linears that a quantised checkpoint holds dense stay so. What planning
    asks; before the weights are here, nobody knows of such linears."""
    return StoredLinears(checkpoint, stored_quant(checkpoint)).kept(quant)


class _AsStored(Quant):
    """`quant` for some linears."""

    quant: Quant
    linears: frozenset[str]

    def keeps(self, names: Sequence[str]) -> Quant:
        """See `Quant.keeps`: linears that share a storage are dense as soon as one of them is."""
        return self.quant.keeps(names) if self.linears.issuperset(names) else NoQuant()

    def check(self, names: Sequence[str]) -> None:
        """See `Quant.check`."""
        self.quant.check(names)


_PACKED = ("I8", "U8", "I16", "I32")  # what codes are kept in: no other tensor of a network's weights is


class Reader(Protocol):
    """What reads one tensor of a checkpoint."""

    def read(self, name: str) -> Tensor: ...


class StoredLinears:
    """The linears that a checkpoint holds in the form of `quant`."""

    def __init__(self, checkpoint: Checkpoint, quant: Quant | None):
        self.quant, self._names = quant, set(checkpoint.names())
        parts = () if quant is None else quant.stored_parts
        marks = [f".{part}" for part in parts if part != "weight"]  # dense linears have a tensor of that name, too
        self.linears = {name.removesuffix(mark) for mark in marks for name in self._names if name.endswith(mark)}
        self.tensors = {f"{linear}.{part}" for linear in self.linears for part in parts}

    def kept(self, quant: Quant) -> Quant:
        """`quant` for the linears that are stored so; the others of this checkpoint stay dense."""
        return quant if not self.linears else _AsStored(quant=quant, linears=frozenset(self.linears))

    def fill(self, slot: Slot, reader: Reader, dtype: torch.dtype, device: torch.device) -> bool:
        """Fill the slot where its linear is stored quantised: as it is, or dense in `dtype` where the slot wants that.
        Raises CheckpointError, with the linear's name, for tensors that do not fit."""
        linear = slot.name.removesuffix(".weight")
        if self.quant is None or linear not in self.linears:
            return False
        names = {part: f"{linear}.{part}" for part in self.quant.stored_parts}
        parts = {part: reader.read(name).to(device) for part, name in names.items() if name in self._names}
        try:
            if slot.take is not None:
                slot.take(parts)
            elif slot.write is not None:
                rows, width = slot.shape
                whole = self.quant.empty(rows, width, dtype, device)
                whole.take(0, rows, parts)
                slot.write(whole.dense(dtype))
        except CheckpointError as error:
            raise CheckpointError(
                f"{linear}: {error.what}", given=error.given, allowed=error.allowed, try_=error.try_
            ) from error
        return True


def refuse_unknown(checkpoint: Checkpoint, known: Quant | None) -> None:
    """Raise CheckpointError for a folder whose numbers mean nothing without scales that lie beside them.

    Read as plain tensors, they would make a network that runs, and is not the model. A linear in the form of `known`
    has its scales, or `StoredLinears.fill` misses them."""
    if checkpoint.layout != "hf":
        return  # a GGUF file's reader knows its scales
    names = set(checkpoint.names())
    settings = checkpoint.config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    for name in sorted(names - StoredLinears(checkpoint, known).tensors):
        stored, leaf = checkpoint.stored(name), name.rsplit(".", 1)[-1]
        number = stored.startswith(("F", "BF"))
        scaled = stored.startswith("F8") and (method or {f"{name}_scale", f"{name}_scale_inv"} & names)
        packed = stored in _PACKED and ("weight" in leaf or (method is not None and known is None))
        if packed or (name.endswith("weight") and (scaled or not number)):
            raise CheckpointError(
                f"{checkpoint.path}: the weights are quantised in a way that is not read",
                given=f"{method or 'no quantization_config'}; '{name}' is {stored}",
                allowed="F16 BF16 F32 F64, or a folder of GPTQ or bitsandbytes",
                try_="the model unquantised, or a .gguf file of it",
            )
