"""The section `train`: what its options say together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lorikeet.train.options import TrainOptions


@pytest.mark.parametrize(
    ("said", "product"),
    [
        ({"per_device_train_batch_size": 4}, 4),
        ({"gradient_accumulation_steps": 3}, 3),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 8),
        ({"per_device_train_batch_size": "4", "gradient_accumulation_steps": 2.0}, 8),  # as fields read numbers
        ({"per_device_train_batch_size": "4", "examples_per_step": "4"}, 4),
    ],
)
def test_the_product_is_the_examples_of_a_step(said: dict[str, Any], product: int) -> None:
    assert TrainOptions(**said).examples_per_step == product


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "two numbers": ({"per_device_train_batch_size": "4", "examples_per_step": 16}, "say different things"),
    "a product beyond all": (
        {"per_device_train_batch_size": 10**6, "gradient_accumulation_steps": 10**6},
        r"per_device_train_batch_size x gradient_accumulation_steps is 10{12}, above 1000000",
    ),
    "none": ({"per_device_train_batch_size": 0}, "greater than or equal to 1"),
    "no number": ({"per_device_train_batch_size": "two"}, "valid integer"),
    "decay of more than there is": ({"weight_decay": 20, "learning_rate": 0.1}, r"weight_decay \(20\) times"),
    "a sign lost": ({"learning_rate": 2e4}, "less than or equal to 100"),
    "a term that float32 has as zero": ({"adam_epsilon": 1e-46}, "greater than or equal to"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_cannot_be(case: str) -> None:
    said, message = CONTRADICTIONS[case]
    with pytest.raises(ValidationError, match=message):
        TrainOptions(**said)
