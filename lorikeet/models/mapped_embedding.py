"""Whether a network's embedding may stay in its checkpoint's file: rows of it are then read as they are asked for.

It may where it is frozen and no head too, lies in the file as plain numbers of the model's dtype, and the model is on
the CPU. Planning asks the same question, so what is planned is what is loaded.
"""

from __future__ import annotations

import torch

from lorikeet.base.tensor_file import FLOATS
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families._contract import Family
from lorikeet.models.mapped_rows import MappedRows
from lorikeet.models.spec import DecoderSpec, Spec


def mapped_embedding(
    checkpoint: Checkpoint, family: Family, spec: Spec, dtype: torch.dtype, device: torch.device
) -> MappedRows | None:
    """The network's embedding as rows of the checkpoint's file; None where it has to be in memory."""
    if not isinstance(spec, DecoderSpec) or spec.tied or device.type != "cpu" or dtype not in FLOATS:
        return None
    name, shape = f"{spec.names.embedding}.weight", (spec.shape.vocab_size, spec.shape.width)
    if not checkpoint.names():  # config.json alone, which says what the weights will be
        stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
        return MappedRows(name, shape, dtype) if stated == str(dtype).removeprefix("torch.") else None
    inside = family.gguf_name(name) if checkpoint.layout == "gguf" else name
    if inside not in checkpoint.names() or checkpoint.stored(inside) != FLOATS[dtype]:
        return None
    place = checkpoint.place(inside)
    if place is None or checkpoint.shape(inside) != shape:
        return None  # loading reads it, and says what is wrong with its shape
    return MappedRows(name, shape, dtype, *place)
