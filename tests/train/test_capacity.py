"""How long rows are, and when the large tensors of a row are mapped one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from lorikeet.api.rows import longest_row
from lorikeet.config import Recipe, parse
from lorikeet.data.pipeline import Prepared
from lorikeet.models.causal_lm import Shape
from lorikeet.train import capacity
from lorikeet.train.capacity import LARGE_STATES, MOST, MOST_IN_HEAP

WIDTH = 576
LONG = LARGE_STATES // WIDTH // 2 + 1  # tokens whose hidden states in 16 bits are large
SHAPE = Shape(
    vocab_size=300,
    width=WIDTH,
    layers=2,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn_width=1536,
    max_position=2048,
    config={},
)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("tokens, device", [(LONG, "cpu"), (LONG - 1, "cpu"), (LONG, "cuda")])
def test_large_tensors_are_mapped_only_in_the_heap(
    held: bool, tokens: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(capacity, "map_large", asked.append)
    monkeypatch.setattr(capacity.allocator, "holds", lambda _: held)
    where = torch.device(device)
    capacity.keep_holes_small(SHAPE, torch.bfloat16, where, tokens)
    mapped = tokens == LONG and device == "cpu" and not held
    assert asked == [LARGE_STATES] * mapped
    lost = capacity.holes_are_lost(SHAPE, torch.bfloat16, where, tokens)
    assert lost == (device == "cpu" and not held and not mapped)


@pytest.mark.parametrize("held, most", [(True, MOST), (False, MOST_IN_HEAP)])
def test_rows_are_longer_where_no_holes_are_lost(held: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "total_memory_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(capacity.allocator, "holds", lambda _: held)
    found = capacity.default_row_tokens(SHAPE, torch.bfloat16, torch.device("cpu"), gradient_checkpointing=False)
    assert found == most


@pytest.mark.parametrize("lengths, longest", [([200, LONG], LONG), ([200, 300], 1024), ([], 1024)])
def test_one_conversation_may_be_longer_than_a_row(lengths: list[int], longest: int, tmp_path: Path) -> None:
    recipe: Recipe = parse(
        {"output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"train": ["d"]}, "train": {"row_tokens": 1024}}
    )
    prepared = SimpleNamespace(train=SimpleNamespace(lengths=np.array(lengths, dtype=np.int64)))
    assert longest_row(recipe, cast(Prepared, prepared)) == longest
