"""The gradient census, the metrics file, evaluation, and how long a row may be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lorikeet.base.errors import TrainingError
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.train import capacity
from lorikeet.train.census import Census
from lorikeet.train.evaluate import evaluate
from lorikeet.train.metrics import Metrics, peak_rss_bytes
from parity import tiny


def parameter(gradient: list[float] | None) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(2))
    made.grad = None if gradient is None else torch.tensor(gradient)
    return made


def test_the_census_ends_when_each_tensor_has_had_a_gradient() -> None:
    parameters = {"a": parameter([0.0, 0.0]), "b": parameter([1.0, 0.0])}
    census = Census(parameters)
    assert not census.count(0.1)  # a LoRA's A waits for B's first update
    parameters["a"].grad, parameters["b"].grad = torch.ones(2), torch.zeros(2)
    assert census.count(0.1)


@pytest.mark.parametrize("gradient", [None, [0.0, 0.0]])
def test_a_tensor_that_never_gets_a_gradient_is_named(gradient: list[float] | None) -> None:
    census = Census({"alive": parameter([1.0, 0.0]), "dead": parameter(gradient)})
    for _ in range(9):
        assert not census.count(0.0)  # warm-up at a rate of zero moves nothing, so it does not count
    assert not census.count(0.1) and not census.count(0.1)
    with pytest.raises(TrainingError, match="1 of 2 trainable tensors") as error:
        census.count(0.1)
    assert "dead" in str(error.value) and "alive" not in str(error.value)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    with pytest.raises(TrainingError, match="gradient of x is not finite"):
        Census({"x": parameter([math.inf, 0.0])}).count(0.1)


def test_experts_without_a_token_are_counted_and_stop_nothing() -> None:
    a, b = (nn.Parameter(torch.zeros(4, 2, 3)) for _ in range(2))
    a.grad, b.grad = torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)
    names = [f"base_model.model.model.layers.7.mlp.experts.up_proj.lora_{side}.weight" for side in "AB"]
    census = Census(dict(zip(names, (a, b))))
    b.grad[1] = 1
    assert not census.count(0.1)
    a.grad[1, 0], b.grad[2] = 1, 1
    assert census.count(0.1)
    assert census.unreached() == "2 of 4 experts have not had a token so far: 2 in model.layers.7.mlp"
    b.grad += 1
    census.count(0.1)
    assert census.unreached() is None


def test_metrics_keep_what_they_are_told_to(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.rows() == []
    for step in range(5):
        metrics.append({"step": step, "loss": step / 2})
    with metrics.path.open("a") as file:
        file.write('{"step": 5, "lo')  # a crash cut this one short
    assert len(metrics.rows()) == 5
    metrics.keep(metrics.rows()[:3])
    metrics.append({"step": 3, "loss": math.nan, "norm": math.inf})
    lines = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert lines == [*({"step": step, "loss": step / 2} for step in range(3)), {"step": 3, "loss": None, "norm": None}]
    metrics.keep([])
    assert metrics.rows() == []


def test_peak_memory_is_in_bytes() -> None:
    assert 50 << 20 < peak_rss_bytes() < 1 << 40


def test_evaluation_equals_full_logits_whether_prefixes_are_shared_or_not() -> None:
    model = tiny.decoder()
    texts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 9, 9], [7, 7, 1]]
    weights = [[0, 0, 1, 0.5, 1, 1], [0, 0, 1, 0.5, 1, 1, 0.25], [0, 1, 1]]
    examples = [tiny.example(text, weight) for text, weight in zip(texts, weights)]
    loss = weight_sum = hits = 0.0
    for one, hidden in zip(examples, tiny.one_by_one(model, examples)):
        logits = model.head.logits(hidden)[:-1]
        targets, weight = torch.tensor(one.tokens[1:]).long(), torch.tensor(one.weights[1:]).double()
        loss += (nn.functional.cross_entropy(logits, targets, reduction="none") * weight).sum().item()
        hits += ((logits.argmax(-1) == targets) * weight).sum().item()
        weight_sum += weight.sum().item()
    for share in (True, False):
        rows = [pack_row(row, share=share) for row in plan_rows(examples, row_tokens=12, share=share)]
        found = evaluate(model, rows)
        assert found.loss == pytest.approx(loss / weight_sum)
        assert found.perplexity == pytest.approx(math.exp(loss / weight_sum))
        assert found.token_accuracy == pytest.approx(hits / weight_sum)
        assert found.tokens == sum(map(len, texts))


def test_a_row_s_capacity_follows_memory_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, cpu = tiny.decoder(width=64, head_dim=64, layers=8).shape, torch.device("cpu")

    def tokens(memory_bytes: int, checkpointing: bool = False) -> int:
        monkeypatch.setattr(capacity, "total_memory_bytes", lambda _device: memory_bytes)
        monkeypatch.setattr(capacity.allocator, "holds", lambda _device: False)
        return capacity.default_row_tokens(shape, torch.float32, cpu, gradient_checkpointing=checkpointing)

    assert tokens(1 << 20) == 256 and tokens(1 << 40) == 1536
    some = tokens(60 << 20)
    assert 256 < some < 1536 and some % 256 == 0 and tokens(60 << 20, checkpointing=True) > some
