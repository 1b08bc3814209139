"""When the large tensors of a row are mapped one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from lorikeet.api import training
from lorikeet.config import Recipe, parse
from lorikeet.data.pipeline import Prepared
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.capacity import LARGE_STATES, tensors_are_large

WIDTH = 576
LONG = LARGE_STATES // WIDTH // 2 + 1  # tokens whose hidden states in 16 bits are large


def test_large_are_those_of_many_tokens_on_a_cpu() -> None:
    shape, dtype = SimpleNamespace(width=WIDTH), torch.bfloat16
    assert tensors_are_large(shape, dtype, torch.device("cpu"), LONG)  # type: ignore[arg-type]
    assert not tensors_are_large(shape, dtype, torch.device("cpu"), LONG - 1)  # type: ignore[arg-type]
    assert not tensors_are_large(shape, dtype, torch.device("cuda"), LONG)  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths, mapped", [([200, LONG], [LARGE_STATES]), ([200, 300], []), ([], [])])
def test_one_conversation_longer_than_a_row_is_enough(
    lengths: list[int], mapped: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(training, "map_large", asked.append)
    recipe: Recipe = parse(
        {"output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"train": ["d"]}, "train": {"row_tokens": 1024}}
    )
    model = SimpleNamespace(shape=SimpleNamespace(width=WIDTH), dtype=torch.bfloat16, device=torch.device("cpu"))
    prepared = SimpleNamespace(train=SimpleNamespace(lengths=np.array(lengths, dtype=np.int64)))
    training._map_large(recipe, cast(CausalLM, model), cast(Prepared, prepared))
    assert asked == mapped
