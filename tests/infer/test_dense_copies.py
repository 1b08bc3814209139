"""Dense copies of quantised weights: the same replies, each weight made dense once, and gone afterwards."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infer.conftest import VOCAB, ByteTokenizer, LineTemplate, ids
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.nouns import Example
from lorikeet.infer import dense_copies as module
from lorikeet.infer.dense_copies import copied_weights, dense_copies
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.samples import write_samples
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.quant.int8 import Int8, Int8Weight
from lorikeet.quant.nf4 import NF4
from parity import tiny


def engine(quant: Quant) -> Engine:
    model = tiny.decoder(3, vocab=VOCAB, dtype=torch.float32, max_position=96)
    for group in model.groups():
        group.weight = quant.freeze(group.weight.dense(torch.float32))
        for linear in group.linears:
            linear._weight[0] = group.weight
    return Engine(model, ByteTokenizer(), LineTemplate())


def replies(engine: Engine, **options: object) -> list[str]:
    made = GenerateOptions(max_new_tokens=8, **options)
    requests = [Request(i, ids(text), made) for i, text in enumerate(("one", "another", "x"))]
    texts = [""] * len(requests)
    for event in engine.generate(requests):
        texts[event.name] += event.text
    return texts


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each weight was made dense."""
    counted: Counter[int] = Counter()
    plain = Int8Weight.rows

    def rows(self: Int8Weight, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        counted[id(self)] += 1
        return plain(self, start, stop, dtype)

    monkeypatch.setattr(Int8Weight, "rows", rows)
    return counted


def test_every_weight_is_made_dense_once_and_the_replies_are_the_same(made: Counter[int]) -> None:
    answering = engine(Int8())
    slow = replies(answering, dense_copies=False)
    assert min(made.values()) >= 8, "without copies: in every pass"
    made.clear()
    assert replies(answering) == slow
    assert set(made.values()) == {1} and len(made) == len(list(answering.model.groups()))


def test_no_copy_outlives_the_replies() -> None:
    answering = engine(NF4())
    weights = [group.weight for group in answering.model.groups()]
    with dense_copies(answering.model) as kept:
        assert kept
        copies = [weakref.ref(weight.dense(torch.float32)) for weight in weights]
        assert all(copy() is not None for copy in copies)
        with dense_copies(answering.model) as again:
            assert not again, "they are there already"
        assert weights[0].dense(torch.float32) is copies[0](), "the inner block left them alone"
    gc.collect()
    assert all(copy() is None for copy in copies)
    assert not any("dense" in vars(weight) or "rows" in vars(weight) for weight in weights)


def test_replies_that_nobody_waits_for_leave_no_copies() -> None:
    answering = engine(Int8())
    weights = [group.weight for group in answering.model.groups()]
    made = answering.generate([Request(0, ids("ab"), GenerateOptions(max_new_tokens=8))])
    next(made)
    assert "dense" in vars(weights[0])
    made.close()
    assert not any("dense" in vars(weight) for weight in weights)


def test_the_samples_of_a_training_run_keep_no_copies(made: Counter[int], tmp_path: Path) -> None:
    example = Example(np.array(ids("a question")), np.array([0.0] * 8 + [1.0] * 2, np.float32))
    write_samples(tmp_path, engine(Int8()), [example], GenerateOptions(max_new_tokens=4), "before")
    assert min(made.values()) >= 4, "made dense in every pass"


def test_another_dtype_and_rows_are_answered_as_ever() -> None:
    weight = Int8().freeze(torch.randn(6, 8))
    answering = engine(Int8())
    (group, *_) = answering.model.groups()
    group.weight = weight
    expected = {dtype: weight.dense(dtype) for dtype in (torch.float32, torch.float64)}
    with dense_copies(answering.model):
        for _ in range(2):
            assert torch.equal(weight.rows(1, 4, torch.float32), expected[torch.float32][1:4])
            for dtype, dense in expected.items():
                assert torch.equal(weight.dense(dtype), dense)
            assert torch.equal(weight.rows(1, 4, torch.float64), expected[torch.float64][1:4])


def test_little_memory_means_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = engine(Int8())
    needed = sum(4 * weight.out_features * weight.in_features for weight in copied_weights(answering.model))
    for free, kept in ((needed / module.SHARE + 1, True), (needed / module.SHARE - 1, False)):
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free: free)
        with dense_copies(answering.model) as found:
            assert found is kept


def test_dense_weights_and_weights_with_a_product_of_their_own_are_left_alone() -> None:
    model = tiny.decoder(3, vocab=VOCAB, dtype=torch.float32, max_position=96)
    assert copied_weights(model) == []

    class Fused(Int8Weight):
        def linear(self, x: Tensor) -> Tensor:
            return FrozenWeight.linear(self, x)

    group = next(model.groups())
    group.weight = Fused(group.weight.out_features, group.weight.in_features, torch.device("cpu"))
    assert copied_weights(model) == []


def test_the_kinds_of_the_folder_give_the_same_replies_with_copies() -> None:
    for kind in kinds("lorikeet.quant"):
        answering = engine(kind_class("lorikeet.quant", Quant, kind).model_validate({}))
        assert replies(answering) == replies(answering, dense_copies=False), kind
