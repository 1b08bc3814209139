"""What every kind of adapter takes, as its folder lists them: the step without numbers against the step with them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters.full import Full
from lorikeet.adapters.lora import Lora
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.load import identify, load
from lorikeet.models.mapped_embedding import mapped_embedding
from lorikeet.plan.simulate import Network, Simulated, measure, simulate
from lorikeet.plan.steps import full_row
from lorikeet.plan.tensors import KINDS
from lorikeet.plan.trained import trained_by
from lorikeet.quant.none import NoQuant
from lorikeet.train.options import TrainOptions

CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {"bias": {"norms": True}}  # where defaults are not enough
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, OPTIONS.get(kind, {})) for kind in kinds("lorikeet.adapters")},
    "full, a part": ("full", {"target_modules": ["layers.1", "norm"]}),
    "prefix through an MLP": ("prefix", {"prefix_projection": True}),
    "lora with whole modules": ("lora", {"modules_to_save": ["embed_tokens", "v_proj"]}),
}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """What a pass leaves where nothing needs a gradient waits for Python's collector, which comes when it likes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def both(
    folder: Path, adapter: Adapter, *, rows: int, length: int = 100, dtype: torch.dtype = torch.bfloat16, **train: Any
) -> tuple[Simulated, Simulated, int]:
    """(predicted, measured, the trained tensors' bytes)."""
    checkpoint, options = open_checkpoint(folder), TrainOptions(**train)
    family, spec = identify(checkpoint)
    mapped = mapped_embedding(checkpoint, family, spec, dtype, CPU)
    batches = [full_row(2, length)] * rows
    predicted = simulate(Network(family, spec, NoQuant(), dtype, mapped), adapter, options, batches)
    model = load(checkpoint, NoQuant(), dtype=dtype, device=CPU)
    adapter.attach(model, seed=0)
    parameters = adapter.parameters(model)
    size = sum(one.nbytes for one in parameters.values())
    return predicted, measure(model, parameters, options, batches), size


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES.keys())
def test_trained_gradients_and_optimizer_are_foretold(kind: str, options: dict[str, Any], tiny_model: Path) -> None:
    adapter = kind_class("lorikeet.adapters", Adapter, kind).model_validate(options)
    predicted, measured, size = both(tiny_model, adapter, rows=2)
    for name in ("trained", "gradients", "optimizer"):
        assert predicted.by_kind[name] == measured.by_kind[name], name
    assert predicted.by_kind["trained"] == size == 4 * predicted.trainable
    assert predicted.by_kind["gradients"] <= 2 * size  # twice where they are views of a group's
    assert 2 * size <= predicted.by_kind["optimizer"] <= 2 * size + 4096  # Adam's two averages, a counter each
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.02)
    for name in KINDS:
        assert predicted.by_kind[name] == pytest.approx(measured.by_kind[name], abs=0.02 * measured.peak_bytes), name


def test_an_optimizer_in_the_backward_pass_lets_gradients_go(tiny_model: Path) -> None:
    asked = {"optimizer_in_backward": True, "max_grad_norm": 0.0}
    behind, _, size = both(tiny_model, Full(), rows=1, length=8, max_grad_norm=0.0)
    within, measured, _ = both(tiny_model, Full(), rows=1, length=8, **asked)
    assert within.by_kind["gradients"] == measured.by_kind["gradients"] < size / 2
    assert within.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.02)
    assert within.peak_bytes < behind.peak_bytes
    assert behind.by_kind["gradients"] > 0.9 * size
    several, measured, _ = both(tiny_model, Full(), rows=2, length=8, **asked)
    assert several.by_kind["gradients"] == measured.by_kind["gradients"] > size / 2, "rows add up until the last"


def test_one_byte_averages_are_foretold(tiny_model: Path) -> None:
    predicted, measured, size = both(tiny_model, Full(), rows=1, optim="adamw_8bit")
    assert predicted.by_kind["optimizer"] == measured.by_kind["optimizer"] < 1.2 * size


def test_a_prefix_takes_its_keys_and_values(tiny_model: Path) -> None:
    """More of them: a longer table, and more that attention keeps; the frozen weights stay what they were."""
    prefix = kind_class("lorikeet.adapters", Adapter, "prefix")
    few, many = (both(tiny_model, prefix.model_validate({"num_virtual_tokens": n}), rows=1)[0] for n in (8, 64))
    shape = identify(open_checkpoint(tiny_model))[1].shape
    assert many.by_kind["trained"] == 64 * shape.layers * 2 * shape.kv_heads * shape.head_dim * 4
    assert many.by_kind["trained"] == 8 * few.by_kind["trained"]
    assert many.by_kind["weights"] == few.by_kind["weights"]
    assert many.peak_bytes > few.peak_bytes


def test_weights_that_train_are_not_counted_twice(tiny_model: Path) -> None:
    full, _, _ = both(tiny_model, Full(), rows=1)
    lora, _, _ = both(tiny_model, Lora(), rows=1)
    assert full.by_kind["weights"] == 0 < lora.by_kind["weights"]


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES.keys())
def test_what_init_counts_is_what_trains(kind: str, options: dict[str, Any], tiny_model: Path) -> None:
    """Trained numbers, and the base's that they take the place of (not rows of a group that stays)."""
    checkpoint = open_checkpoint(tiny_model)
    family, spec = identify(checkpoint)
    adapter = kind_class("lorikeet.adapters", Adapter, kind).model_validate(options)
    found = trained_by(adapter, Network(family, spec, NoQuant(), torch.bfloat16))
    model = load(checkpoint, NoQuant(), dtype=torch.bfloat16, device=CPU)
    before = sum(one.numel() for one in model.parameters())
    adapter.attach(model, seed=0)
    trained = adapter.parameters(model)
    assert found.numbers == sum(one.numel() for one in trained.values())
    assert found.instead == before - sum(one.numel() for one in model.parameters() if not one.requires_grad)
    if kind in ("full", "bias"):
        assert found.instead == found.numbers


@pytest.mark.parametrize(("kind", "options"), [("head", {}), ("full", {"target_modules": ["norm"]})])
@pytest.mark.parametrize("twice", [False, True])
def test_nothing_is_kept_below_what_trains(kind: str, options: dict[str, Any], twice: bool, tiny_model: Path) -> None:
    """Layers below all that trains keep nothing for the backward pass, and none of them is computed again."""
    adapter = kind_class("lorikeet.adapters", Adapter, kind).model_validate(options)
    predicted, measured, _ = both(tiny_model, adapter, rows=1, gradient_checkpointing=twice)
    lora, _, _ = both(tiny_model, Lora(), rows=1)
    assert predicted.by_kind == measured.by_kind
    assert predicted.by_kind["saved activations"] < 0.1 * lora.by_kind["saved activations"]
    assert predicted.flops.get("backward", 0) < 0.1 * predicted.flops["forward"]
