"""GPTQ's codes: how they are packed, what they stand for, and how a file of the standard layout holds them.

A file keeps, per linear [out, in] with `groups` groups of inputs (the format that AutoGPTQ set, and all others read):

    qweight  int32  [in * bits / 32, out]       codes packed along the inputs
    qzeros   int32  [groups, out * bits / 32]   zero points packed along the outputs; v1 stores zero - 1
    scales   fp16   [groups, out]
    g_idx    int32  [in]                        the group of each input
    weight[o, i] = (code[o, i] - zero[g_idx[i], o]) * scale[g_idx[i], o]

Packing is one stream of bits, the lowest first, in 2, 3, 4 and 8 bits alike. So a column of qweight is, byte for byte,
a row of what is kept in memory: [out, bytes], with zeros and scales [out, groups]. Rows are members that can be
sliced, and nothing is rounded on the way in or out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError

BITS = (2, 3, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")
_FLOATS, _WHOLE = (torch.float16, torch.bfloat16, torch.float32), (torch.int32, torch.int64)
_TYPES = {"qweight": (torch.int32,), "qzeros": (torch.int32,), "scales": _FLOATS, "g_idx": _WHOLE}
_PIECE = 1 << 22  # numbers dequantised at a time: what float32 holds of them is 16 MiB


def packed_width(width: int, bits: int) -> int:
    """Bytes of a row of `width` codes."""
    codes, size = _word(bits)
    return math.ceil(width / codes) * size


def _word(bits: int) -> tuple[int, int]:
    """The smallest run of whole codes in whole bytes: (codes, bytes)."""
    together = math.lcm(bits, 8)
    return together // bits, together // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes [n, width] uint8 below 2^bits -> [n, packed_width] uint8."""
    count, size = _word(bits)
    if count == 1:
        return codes
    short = -codes.shape[1] % count
    words = torch.nn.functional.pad(codes, (0, short)).view(len(codes), -1, count).int()
    word = (words << _shifts(count, bits, codes.device)).sum(-1, keepdim=True, dtype=torch.int32)
    return (word >> _shifts(size, 8, codes.device) & 255).to(torch.uint8).view(len(codes), -1)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The inverse: [n, packed_width] uint8 -> [n, width] uint8."""
    count, size = _word(bits)
    if count == 1:
        return packed
    word = packed.view(len(packed), -1, size)
    if size > 1:
        word = (word.int() << _shifts(size, 8, packed.device)).sum(-1, keepdim=True, dtype=torch.int32)
    codes = word >> _shifts(count, bits, packed.device).to(word.dtype) & (1 << bits) - 1
    return codes.to(torch.uint8).view(len(packed), -1)[:, :width]


def _shifts(count: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(0, count * step, step, dtype=torch.int32, device=device)


def in_order(width: int, group_size: int) -> Tensor:
    """The g_idx [in] of groups that follow one another."""
    return torch.arange(width, dtype=torch.int32) // group_size


def dequantise(
    packed: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor | None, out: Tensor, *, bits: int, group_size: int
) -> None:
    """The definition: fill `out` [n, in] from packed [n, bytes], zeros and scales [n, groups]; g_idx [in], or None for
    groups in order. In float32 the product is exact, so a narrower `out` rounds once."""
    rows, width = out.shape
    group = (in_order(width, group_size) if g_idx is None else g_idx).to(out.device).long()
    step = max(1, _PIECE // width)
    for start in range(0, rows, step):
        piece = slice(start, min(start + step, rows))
        codes = unpack(packed[piece], bits, width).float()
        out[piece] = codes.sub_(zeros[piece].float()[:, group]).mul_(scales[piece].float()[:, group])


def from_parts(
    parts: dict[str, Tensor], rows: int, width: int, *, bits: int, group_size: int, v1: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(packed [rows, bytes], zeros [rows, groups], scales [rows, groups] fp16, g_idx [in] or None for in order) from a
    file's tensors. Raises CheckpointError where shapes do not fit `bits` and `group_size`, or a number does not fit."""
    if not storable(rows, width, bits):
        raise CheckpointError(
            f"the format has no place for a weight [{rows}, {width}] in {bits} bits",
            given=" ".join(parts),
            allowed="sizes whose codes fill whole words of 32 bits",
        )
    groups = math.ceil(width / group_size)
    shapes = {
        "qweight": (width * bits // 32, rows),
        "qzeros": (groups, rows * bits // 32),
        "scales": (groups, rows),
        "g_idx": (width,),
    }
    for name, shape in shapes.items():
        if name == "g_idx" and name not in parts:
            continue  # older files leave it out where groups are in order
        if name not in parts:
            raise _missing(name, parts)
        if tuple(parts[name].shape) != shape:
            raise CheckpointError(
                f"'{name}' has another shape than {bits} bits and group_size {group_size} give [{rows}, {width}]",
                given=tuple(parts[name].shape),
                allowed=shape,
                try_="the quantization_config that belongs to the weights",
            )
        if parts[name].dtype not in _TYPES[name]:
            raise CheckpointError(
                f"'{name}' is of another type than the format's",
                given=_type(parts[name].dtype),
                allowed=" ".join(map(_type, _TYPES[name])),
            )
    packed = _laid_out(parts["qweight"].T).view(torch.uint8)
    stored = parts["qzeros"]
    if v1:
        stored = _added_by_words(stored) if bits == 3 and _from_words(stored) else _shifted(stored, bits, 1)
    zeros, scales = unpack(_laid_out(stored).view(torch.uint8), bits, rows), _scales(parts["scales"])
    return packed, zeros.T.contiguous(), scales.T.contiguous(), _order(parts.get("g_idx"), width, group_size, groups)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _missing(name: str, parts: dict[str, Tensor]) -> CheckpointError:
    return CheckpointError(
        f"no '{name}'",
        given=" ".join(parts),
        allowed=" ".join(PARTS),
        try_="the file as it was written: download it again",
    )


def check_named(parts: dict[str, Tensor]) -> None:
    """Raise CheckpointError where inputs are not grouped in their order, and nothing says which group each is in."""
    if "g_idx" not in parts:
        raise CheckpointError(
            "no 'g_idx', and desc_act says that groups do not follow the inputs' order",
            given=" ".join(parts),
            allowed=" ".join(PARTS),
            try_='"desc_act": false in config.json\'s quantization_config, if they do',
        )


def _scales(stored: Tensor) -> Tensor:
    """As float16, exactly. Raises CheckpointError where that cannot be."""
    if not torch.isfinite(stored).all():
        raise CheckpointError(
            "'scales' has numbers that are not finite",
            given="NaN or infinity",
            allowed="finite numbers",
            try_="the file as it was written: download it again",
        )
    scales = stored.to(torch.float16)
    if not torch.equal(scales.to(stored.dtype), stored):
        raise CheckpointError(
            "'scales' do not fit into float16, in which GPTQ keeps them",
            given=f"{stored.dtype}, up to {stored.abs().max():.4g}",
            allowed="numbers that float16 holds exactly",
        )
    return scales


def _order(g_idx: Tensor | None, width: int, group_size: int, groups: int) -> Tensor | None:
    """g_idx checked, or None where it says what the order says."""
    if g_idx is None:
        return None
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise CheckpointError(
            "'g_idx' names a group that is not there",
            given=f"{int(g_idx.min())} to {int(g_idx.max())}",
            allowed=f"0 to {groups - 1}",
        )
    return None if torch.equal(g_idx.int(), in_order(width, group_size)) else g_idx.int()


def to_parts(packed: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor, *, bits: int, v1: bool) -> dict[str, Tensor]:
    """The inverse of `from_parts`. The sizes must fill 32-bit words; see `storable`."""
    qzeros = pack(_laid_out(zeros.T), bits).view(torch.int32)
    return {
        "qweight": _laid_out(_laid_out(packed).view(torch.int32).T),
        "qzeros": _shifted(qzeros, bits, -1) if v1 else qzeros,
        "scales": _laid_out(scales.T),
        "g_idx": g_idx.int(),
    }


def _shifted(qzeros: Tensor, bits: int, by: int) -> Tensor:
    """qzeros with `by` (1 or -1) added to each zero point.

    Whole words are added, as gptqmodel does it: from a zero point of 0, it borrows of its neighbour, and reading must
    give that back. (What AutoGPTQ wrote for one is lost.) Three bits cross the words' borders and are added singly."""
    if bits == 3:
        zeros = unpack(_laid_out(qzeros).view(torch.uint8), bits, qzeros.shape[1] * 32 // bits)
        return pack(zeros + by & 7, bits).view(torch.int32)
    return qzeros + by * sum(1 << at for at in range(0, 32, bits))


# What gptqmodel until 2026 took from three words of 3-bit zero points, and added when it read them again. Two of the
# three have their bits in other places than the codes: a 4 in the middle of a word becomes a 0 in the file.
_OLDER = (0b00100100100100100100100100100100, 0b10010010010010010010010010010010, 0b01001001001001001001001001001001)


def _added_by_words(qzeros: Tensor) -> Tensor:
    """3-bit zero points that gptqmodel wrote before it mended that (its pull request 2763)."""
    words = torch.tensor([word - (word >> 31 << 32) for word in _OLDER], dtype=torch.int32, device=qzeros.device)
    return (qzeros.view(len(qzeros), -1, 3) + words).view(qzeros.shape)


def _from_words(qzeros: Tensor) -> bool:
    """Whether these are such. Seen where all of them are then the middle, as in a symmetric model; others cannot be
    told apart."""
    middle = pack(torch.full((1, 32), 4, dtype=torch.uint8, device=qzeros.device), 3).view(torch.int32)
    return bool((_added_by_words(qzeros).view(-1, 3) == middle).all())


def _laid_out(matrix: Tensor) -> Tensor:
    """A copy row by row. `contiguous` leaves the strides of a matrix with one row or column as they are, and then its
    bytes cannot be viewed as other numbers."""
    return matrix.clone(memory_format=torch.contiguous_format)


def storable(rows: int, width: int, bits: int) -> bool:
    """Whether the layout has a place for a weight [rows, width]: codes fill whole 32-bit words along both sides."""
    return rows * bits % 32 == 0 and width * bits % 32 == 0
