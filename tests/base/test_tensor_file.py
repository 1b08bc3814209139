"""Tensors that were written are the tensors that were meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorikeet.base import tensor_file
from lorikeet.base.errors import CheckpointError
from lorikeet.base.tensor_file import holds, save_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    )
)
def test_what_was_written_is_there_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, asked: dict) -> None:
    file = tmp_path_factory.mktemp("file") / "tensors.safetensors"
    tensors = {name: (torch.randn(shape) * 9).to(dtype) for name, (dtype, shape) in asked.items()}
    save_tensors(tensors, file, metadata={"format": "pt"})
    again = load_file(file)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_one_bit_a_name_or_a_shape_that_differs_is_seen(tmp_path: Path) -> None:
    file, tensors = tmp_path / "a", {"x": torch.tensor([float("nan"), -0.0, 1.0]), "y": torch.ones(2, 3)}
    save_tensors(tensors, file)
    assert holds(file, {name: value.clone() for name, value in tensors.items()})
    assert not holds(file, tensors | {"x": torch.tensor([float("nan"), 0.0, 1.0])})
    assert not holds(file, tensors | {"y": torch.ones(3, 2)})
    assert not holds(file, tensors | {"y": torch.ones(2, 3).view(torch.int32)})
    assert not holds(file, {"x": tensors["x"]})
    assert not holds(file, {"x": tensors["x"], "z": tensors["y"]})
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)
    assert not holds(file, tensors)


def test_a_disk_that_keeps_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensor_file.save_file
    monkeypatch.setattr(tensor_file, "save_file", lambda tensors, *a, **k: whole({"x": tensors["x"] + 1}, *a, **k))
    with pytest.raises(CheckpointError, match="reads back differently"):
        save_tensors({"x": torch.ones(3)}, tmp_path / "a")
