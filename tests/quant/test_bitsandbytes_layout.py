"""What bitsandbytes stores of a weight: given as it is kept, taken back without rounding, refused where it misfits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError
from lorikeet.quant import _bitsandbytes as stored
from lorikeet.quant._contract import Quant
from lorikeet.quant._four_bit import DYNAMIC_MAP
from lorikeet.quant.fp4 import FP4
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4

CPU = torch.device("cpu")
KINDS = [Int8(), NF4(), FP4(), NF4(block_size=32), NF4(double_quant=True)]


def weight(rows: int = 6, width: int = 128) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width))


def again(quant: Quant, parts: dict[str, Tensor], rows: int, width: int) -> Tensor:
    """What a folder of these parts reads as."""
    settings = quant.stored_settings(torch.bfloat16)
    assert settings is not None
    json.dumps(settings)
    found = type(quant).stored_as(settings, "a folder")
    assert found is not None and set(parts) <= set(type(found).stored_parts)
    kept = found.empty(rows, width, torch.float32, CPU)
    kept.take(0, rows, parts)
    return kept.dense(torch.float32)


@pytest.mark.parametrize("quant", KINDS, ids=repr)
def test_what_is_given_is_taken_back_exactly(quant: Quant) -> None:
    kept = quant.empty(9, 128, torch.bfloat16, CPU)
    kept.write(0, weight(3)), kept.write(3, weight(6))
    parts = kept.give(3, 9)
    assert parts is not None
    assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in parts.values())
    assert torch.equal(again(quant, parts, 6, 128), kept.rows(3, 9, torch.float32))


@pytest.mark.parametrize("quant", KINDS, ids=repr)
def test_a_folder_is_of_one_kind(quant: Quant) -> None:
    settings = quant.stored_settings(torch.float32)
    assert settings is not None
    found = [one for one in (Int8, NF4, FP4) if one.stored_as(settings, "a folder") is not None]
    assert found == [type(quant)]
    assert not any(one.stored_as({"quant_method": "gptq", "bits": 4}, "a folder") for one in (Int8, NF4, FP4))


def doubled(parts: dict[str, Tensor], codes: Tensor, scale: Tensor, offset: float) -> dict[str, Tensor]:
    """The parts of a weight whose scales are quantised again, as bitsandbytes lays them out."""
    state = json.loads(bytes(parts[f"{stored.STATE}nf4"].tolist()))
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    nested = {"weight.absmax": codes, "weight.nested_absmax": scale, "weight.nested_quant_map": DYNAMIC_MAP}
    return parts | nested | {f"{stored.STATE}nf4": text}


def test_doubly_quantised_scales_are_what_they_stand_for() -> None:
    parts = NF4().freeze(weight(150)).give(0, 150)  # 300 scales: two second blocks
    assert parts is not None
    codes = torch.randint(256, (300,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scale = torch.tensor([0.5, 2.0])
    expected = DYNAMIC_MAP[codes.int()] * scale.repeat_interleave(256)[:300] + 0.25
    plain = again(NF4(), parts | {"weight.absmax": expected}, 150, 128)
    assert torch.equal(again(NF4(), doubled(parts, codes, scale, 0.25), 150, 128), plain)


@pytest.mark.parametrize("settings", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_the_first_folders_do_not_name_the_method(settings: dict[str, Any]) -> None:
    wanted = Int8 if "load_in_8bit" in settings else NF4
    assert [one for one in (Int8, NF4, FP4) if one.stored_as(settings, "a folder") is not None] == [wanted]
    other = settings | {"quant_method": "awq"}
    assert not any(one.stored_as(other, "a folder") for one in (Int8, NF4, FP4))


def test_a_block_that_runs_over_rows_has_no_place() -> None:
    assert NF4().freeze(weight(4, 96)).give(0, 4) is None
    assert NF4(block_size=32).freeze(weight(4, 96)).give(0, 4) is not None


def bad(parts: dict[str, Any], **changes: Any) -> dict[str, Tensor]:
    return {name: part for name, part in {**parts, **changes}.items() if part is not None}


STATE = f"{stored.STATE}nf4"


@pytest.mark.parametrize(
    "changes, fact",
    [
        ({"weight.absmax": None}, "weight.absmax"),
        ({STATE: None}, STATE),
        ({STATE: torch.tensor([123, 1], dtype=torch.uint8)}, "damaged"),
        ({"weight": torch.zeros(10, 1, dtype=torch.uint8)}, "10 bytes"),
        ({"weight.absmax": torch.zeros(3)}, "3 scales"),
        ({"weight.absmax": torch.zeros(12, dtype=torch.uint8)}, "weight.nested_quant_map"),
        ({"weight.quant_map": FP4.table}, "quant_map of other numbers"),
        ({"weight.absmax": torch.zeros(2, 6, dtype=torch.bfloat16)}, "once the model has evaluated"),
    ],
)
def test_four_bits_that_do_not_fit_are_refused(changes: dict[str, Any], fact: str) -> None:
    parts = NF4().freeze(weight()).give(0, 6)
    assert parts is not None
    with pytest.raises(CheckpointError, match=fact):
        again(NF4(), bad(parts, **changes), 6, 128)


@pytest.mark.parametrize(
    "changes, fact",
    [
        ({"SCB": None}, "SCB"),
        ({"SCB": torch.zeros(5)}, "SCB"),
        ({"weight": torch.zeros(6, 127, dtype=torch.int8)}, "127"),
        ({"weight_format": torch.tensor(2, dtype=torch.uint8)}, "weight_format 2"),
    ],
)
def test_eight_bits_that_do_not_fit_are_refused(changes: dict[str, Any], fact: str) -> None:
    with pytest.raises(CheckpointError, match=fact):
        again(Int8(), bad(Int8().freeze(weight()).give(0, 6) or {}, **changes), 6, 128)


def test_blocks_of_another_size_than_config_json_says_are_named() -> None:
    """transformers has no word for the size: a folder with other blocks looks like one of 64."""
    parts = NF4(block_size=128).freeze(weight()).give(0, 6)
    assert parts is not None
    with pytest.raises(CheckpointError) as caught:
        NF4().empty(6, 128, torch.float32, CPU).take(0, 6, parts)
    assert caught.value.try_ == '"bnb_4bit_blocksize": 128 in config.json\'s quantization_config'


@pytest.mark.parametrize(
    "settings", [{"bnb_4bit_quant_type": "int4"}, {"bnb_4bit_quant_storage": "bfloat16"}, {"bnb_4bit_blocksize": 60}]
)
def test_settings_that_cannot_be_read_are_refused(settings: dict[str, Any]) -> None:
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    with pytest.raises(CheckpointError, match="a folder"):
        NF4.stored_as(four | settings, "a folder")
