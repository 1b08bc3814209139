"""How a Hugging Face folder holds what bitsandbytes quantised: 8 bits by rows, and 4 bits by blocks.

Behind a linear's name, for a weight [out, in] (bitsandbytes' `Int8Params` and `QuantState`):

    8 bits   weight  int8  [out, in]         SCB  fp32  [out], the rows' largest values      weight_format  uint8, 0
    4 bits   weight  uint8 [out * in / 2, 1], two codes a byte      weight.absmax  fp32  [blocks]
             weight.quant_map  fp32 [16]     weight.quant_state.bitsandbytes__nf4  uint8, JSON: blocksize, dtype, shape
    doubly   weight.absmax  uint8   weight.nested_absmax  fp32 [blocks / 256]   weight.nested_quant_map  fp32 [256]

A block runs on from one row into the next; where it does not (the width is a multiple of the block), these are the
bytes kept in memory. Doubly quantised scales are read as the numbers they stand for, and written in float32: their
second statistics span rows in the file, and here they must not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError

EIGHT_PARTS = ("weight", "SCB", "weight_format")
FOUR_PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
STATE = "weight.quant_state.bitsandbytes__"  # and the kind's name
BLOCK = 64
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def four_parts(kind: str) -> tuple[str, ...]:
    """The names of the tensors of a kind with 4 bits."""
    return (*FOUR_PARTS, f"{STATE}{kind}")


def settings(kind: str, dtype: torch.dtype, block_size: int = BLOCK) -> dict[str, Any]:
    """config.json's quantization_config; transformers is told to compute in `dtype`."""
    four = kind != "int8"
    made: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": four, "load_in_8bit": not four}
    if four:
        made |= {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": False}
        made |= {"bnb_4bit_compute_dtype": _name(dtype), "bnb_4bit_quant_storage": "uint8"}
    if block_size != BLOCK:  # each weight says it too, and only that is read elsewhere
        made["bnb_4bit_blocksize"] = block_size
    return made | {"llm_int8_threshold": 6.0, "llm_int8_skip_modules": ["lm_head"], "llm_int8_has_fp16_weight": False}


def block_size(settings: Mapping[str, Any], source: object) -> int:
    """Weights of a block. Raises CheckpointError for a number that is none."""
    size = settings.get("bnb_4bit_blocksize", BLOCK)
    if not isinstance(size, int) or isinstance(size, bool) or size not in SIZES:
        allowed = " ".join(map(str, SIZES))
        raise CheckpointError(f"{source}: bnb_4bit_blocksize is no size of a block", given=size, allowed=allowed)
    return size


def kind_of(settings: Mapping[str, Any], source: object) -> str | None:
    """int8, nf4 or fp4 for a quantization_config of bitsandbytes, None for another's. Raises CheckpointError."""
    said = settings.get("quant_method")
    older = said is None and bool(settings.get("load_in_4bit") or settings.get("load_in_8bit"))
    if said != "bitsandbytes" and not older:  # the first folders of transformers do not name the method
        return None
    kind = "int8" if settings.get("load_in_8bit") else settings.get("bnb_4bit_quant_type", "fp4")
    storage = settings.get("bnb_4bit_quant_storage", "uint8")
    if kind not in ("int8", "nf4", "fp4") or (kind != "int8" and storage != "uint8"):
        raise CheckpointError(
            f"{source}: bitsandbytes' format as read here has nothing like this",
            given=f"bnb_4bit_quant_type {kind}, bnb_4bit_quant_storage {storage}",
            allowed="load_in_8bit, or nf4 or fp4 stored in uint8",
        )
    return kind


def give_eight(codes: Tensor, absmax: Tensor) -> dict[str, Tensor]:
    """codes [out, in] int8, absmax [out, 1] float32 -> the parts."""
    parts = (codes, absmax.reshape(-1), torch.zeros((), dtype=torch.uint8))
    return {name: part.clone() for name, part in zip(EIGHT_PARTS, parts)}


def take_eight(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The inverse. Raises CheckpointError for parts that are missing, or of another size or type."""
    codes, absmax = (_part(parts, name) for name in EIGHT_PARTS[:2])
    layout = parts.get("weight_format", torch.zeros(1))  # older files leave it out
    if codes.dtype != torch.int8 or tuple(codes.shape) != shape or absmax.numel() != shape[0]:
        given = f"weight {_name(codes.dtype)} {tuple(codes.shape)}, SCB {tuple(absmax.shape)}"
        raise _misfit(given, f"int8 {shape}, ({shape[0]},)")
    if not absmax.is_floating_point():
        raise _misfit(f"SCB in {_name(absmax.dtype)}", "float32")
    if layout.numel() != 1 or int(layout) != 0:
        raise _misfit(f"weight_format {' '.join(map(str, layout.flatten().tolist()))}", "0, rows one after the other")
    return codes, _finite("SCB", absmax).view(-1, 1)


def give_four(
    codes: Tensor, absmax: Tensor, width: int, table: Tensor, kind: str, block_size: int, dtype: torch.dtype
) -> dict[str, Tensor] | None:
    """codes [out, in / 2] uint8, absmax [out, blocks] float32 -> the parts; None where blocks would run over rows."""
    if width % block_size:
        return None
    state = {"quant_type": kind, "blocksize": block_size, "dtype": _name(dtype), "shape": [len(codes), width]}
    text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    parts = {"weight": codes.reshape(-1, 1), "weight.absmax": absmax.reshape(-1), "weight.quant_map": table}
    return {name: part.clone() for name, part in (parts | {f"{STATE}{kind}": text}).items()}


def take_four(
    parts: Mapping[str, Tensor], shape: tuple[int, int], *, kind: str, block_size: int, table: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse: (codes [out, in / 2], absmax [out, blocks] float32). Raises CheckpointError for parts that are
    missing, of another size or type, or that stand for other numbers than `table` [16]."""
    out, width = shape
    codes, absmax, numbers, state = (_part(parts, name) for name in (*FOUR_PARTS[:3], f"{STATE}{kind}"))
    said = _State.read(state, kind)
    if said.kind != kind:
        raise _misfit(f"a weight of the kind {said.kind}", kind)
    if (said.block_size, said.shape) != (block_size, shape) or codes.numel() * 2 != out * width:
        given = f"blocks of {said.block_size}, shape {said.shape}, {codes.numel()} bytes"
        other = said.block_size in SIZES and said.block_size != block_size
        try_ = f'"bnb_4bit_blocksize": {said.block_size} in config.json\'s quantization_config' if other else None
        raise _misfit(given, f"blocks of {block_size}, shape {shape}", try_)
    if codes.dtype != torch.uint8:
        raise _misfit(f"codes in {_name(codes.dtype)}", "uint8")
    numbers = numbers.float().flatten().cpu()
    if len(numbers) != len(table) or not torch.allclose(numbers, table, atol=1e-4):
        raise _misfit("a quant_map of other numbers", f"the {len(table)} of {kind}")
    if width % block_size:
        raise _misfit(f"{width} inputs in blocks of {block_size}", "a multiple, so that no block runs over a row")
    blocks = out * width // block_size
    if absmax.dtype == torch.uint8:
        absmax = _scales(parts, absmax, state, kind)
    elif absmax.dim() == 2 and absmax.dtype == torch.bfloat16:
        raise CheckpointError(  # read as they lie, they would be scales of other blocks: see test_library_traps.py
            "the scales lie transposed, as bitsandbytes writes them on a CPU once the model has evaluated",
            given=f"bfloat16 {tuple(absmax.shape)}",
            allowed=f"float32 ({blocks},)",
            try_="the model quantised again, and saved before it has evaluated",
        )
    if absmax.numel() != blocks or absmax.dtype != torch.float32:
        raise _misfit(f"{absmax.numel()} scales in {_name(absmax.dtype)}", f"{blocks} in float32")
    return codes.reshape(out, -1), _finite("absmax", absmax).view(out, -1)


@dataclass(frozen=True)
class _State:
    """What bitsandbytes says of a weight in 4 bits, beside its tensors."""

    kind: str
    block_size: int
    shape: tuple[int, ...]

    @classmethod
    def read(cls, state: Tensor, kind: str) -> _State:
        """From the bytes of its JSON. Raises CheckpointError where they are damaged."""
        with _damaged(kind):
            said = _json(state)
            return cls(str(said["quant_type"]), int(said["blocksize"]), tuple(said["shape"]))

    @staticmethod
    def second(state: Tensor, kind: str) -> tuple[float, int]:
        """The offset of doubly quantised scales, and how many share a second scale."""
        with _damaged(kind):
            said = _json(state)
            return float(said["nested_offset"]), int(said["nested_blocksize"])


def _json(state: Tensor) -> Any:
    return json.loads(bytes(state.to(torch.uint8).tolist()))


@contextmanager
def _damaged(kind: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        given = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"the quant_state of a {kind} weight is damaged", given=given) from error


def _scales(parts: Mapping[str, Tensor], codes: Tensor, state: Tensor, kind: str) -> Tensor:
    """What doubly quantised scales stand for [blocks]."""
    numbers, scale = (_part(parts, f"weight.nested_{name}") for name in ("quant_map", "absmax"))
    offset, block = _State.second(state, kind)
    if block < 1:
        raise _misfit(f"nested_blocksize {block}", "at least 1")
    if numbers.numel() != 256:
        raise _misfit(f"a nested_quant_map of {numbers.numel()} numbers", "256")
    second = -(-codes.numel() // block)
    if scale.numel() != second:
        raise _misfit(f"{scale.numel()} nested scales", f"{second}: one for {block} of {codes.numel()}")
    made = numbers.float().view(-1)[codes.int().view(-1)]
    return made * scale.float().view(-1).repeat_interleave(block)[: codes.numel()] + offset


def _finite(name: str, scales: Tensor) -> Tensor:
    scales = scales.float()
    if not torch.isfinite(scales).all():
        raise CheckpointError(f"the scales '{name}' are not all finite", given="NaN or infinity", allowed="numbers")
    return scales


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _part(parts: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in parts:
        raise CheckpointError(
            "a weight that bitsandbytes quantised lacks one of its tensors",
            given=" ".join(sorted(parts)),
            allowed=f"with {name}",
        )
    return parts[name]


def _misfit(given: str, allowed: str, try_: str | None = None) -> CheckpointError:
    return CheckpointError("a quantised weight does not fit the network", given=given, allowed=allowed, try_=try_)
