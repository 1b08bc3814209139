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
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError

EIGHT_PARTS = ("weight", "SCB", "weight_format")
FOUR_PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
STATE = "weight.quant_state.bitsandbytes__"  # and the kind's name
BLOCK, NESTED_BLOCK = 64, 256
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
    if settings.get("quant_method") != "bitsandbytes" and not settings.get("load_in_4bit"):
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
    """The inverse. Raises CheckpointError for parts that are missing or of another size."""
    codes, absmax = (_part(parts, name) for name in EIGHT_PARTS[:2])
    layout = parts.get("weight_format")
    if codes.dtype != torch.int8 or tuple(codes.shape) != shape or absmax.numel() != shape[0]:
        raise _misfit(f"weight {codes.dtype} {tuple(codes.shape)}, SCB {tuple(absmax.shape)}", f"int8 {shape}")
    if layout is not None and int(layout.max()) != 0:
        raise _misfit(f"weight_format {int(layout.max())}", "0, rows one after the other")
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
    parts: Mapping[str, Tensor], shape: tuple[int, int], *, kind: str, block_size: int
) -> tuple[Tensor, Tensor]:
    """The inverse: (codes [out, in / 2], absmax [out, blocks] float32). Raises CheckpointError."""
    out, width = shape
    codes, absmax, state = (_part(parts, name) for name in ("weight", "weight.absmax", f"{STATE}{kind}"))
    try:
        said = json.loads(bytes(state.to(torch.uint8).tolist()))
        given = f"blocks of {said['blocksize']}, shape {tuple(said['shape'])}"
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the quant_state of a {kind} weight is damaged", given=error) from error
    if (said["blocksize"], tuple(said["shape"])) != (block_size, shape) or codes.numel() * 2 != out * width:
        raise _misfit(f"{given}, {codes.numel()} bytes", f"blocks of {block_size}, shape {shape}")
    if width % block_size:
        raise _misfit(f"{width} inputs in blocks of {block_size}", "a multiple, so that no block runs over a row")
    blocks = out * width // block_size
    if absmax.dtype == torch.uint8:
        second = float(said.get("nested_offset", 0)), int(said.get("nested_blocksize", NESTED_BLOCK))
        absmax = _scales(parts, absmax, *second)
    if absmax.numel() != blocks:
        raise _misfit(f"{absmax.numel()} scales", f"{blocks}")
    return codes.reshape(out, -1), _finite("absmax", absmax).view(out, -1)


def _scales(parts: Mapping[str, Tensor], codes: Tensor, offset: float, block: int) -> Tensor:
    """What doubly quantised scales stand for [blocks]."""
    numbers, scale = (_part(parts, f"weight.nested_{name}") for name in ("quant_map", "absmax"))
    return numbers.float()[codes.int().view(-1)] * scale.float().repeat_interleave(block)[: codes.numel()] + offset


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


def _misfit(given: str, allowed: str) -> CheckpointError:
    return CheckpointError("a quantised weight does not fit the network", given=given, allowed=allowed)
