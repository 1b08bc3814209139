"""The optimizer inside the backward pass: the same numbers, without the gradients' room."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters.full import Full
from lorikeet.base.errors import RecipeError
from lorikeet.base.nouns import Batch
from lorikeet.config import load
from lorikeet.train.census import Census
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step
from parity import test_step, tiny

ROWS = {"one row": 10_000, "several rows": 16}


def run(batches: list[Batch], *, early: bool, optim: str = "adamw_torch", **network: Any) -> tuple[Any, ...]:
    """Four steps: each loss and norm, the tensors, the optimizer's."""
    model = tiny.decoder(**network)
    Full().attach(model, seed=0)
    parameters = Full().parameters(model)
    options = TrainOptions(optim=optim, max_grad_norm=0, weight_decay=0.1, optimizer_in_backward=early)
    stepper = Stepper(parameters, options)
    done = [train_step(model, stepper, batches, learning_rate=0.01) for _ in range(4)]
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    return [one.loss for one in done], [one.grad_norm for one in done], tensors, stepper.state_dict()


@pytest.mark.parametrize("row_tokens", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
@pytest.mark.parametrize("tied", [True, False])
def test_in_backward_equals_behind_it(row_tokens: int, optim: str, tied: bool) -> None:
    batches = test_step.packed(test_step.some_conversations(), share=True, row_tokens=row_tokens)
    assert (len(batches) == 1) == (row_tokens > 100)
    behind, inside = (run(batches, early=early, optim=optim, tied=tied) for early in (False, True))
    assert behind[0] == inside[0] and behind[1] == pytest.approx(inside[1], rel=1e-12)
    for left, right in zip(behind[2:], inside[2:]):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_gradients_are_let_go_and_their_traces_still_count() -> None:
    model = tiny.decoder()
    Full().attach(model, seed=0)
    parameters = Full().parameters(model)
    stepper = Stepper(parameters, TrainOptions(max_grad_norm=0, optimizer_in_backward=True))
    most = 0

    def watch(parameter: torch.nn.Parameter) -> None:
        nonlocal most
        gc.collect()
        # the head's gradient is made first, the embedding's last: of a table there is one all the while
        most = max(most, sum(size for name, size in held().items() if name != "model.embed_tokens.weight"))

    def held() -> dict[str, int]:
        found = {name: one.grad for name, one in parameters.items() if one.grad is not None}
        return {name: gradient.untyped_storage().nbytes() for name, gradient in found.items()}

    for parameter in parameters.values():
        parameter.register_post_accumulate_grad_hook(watch)
    train_step(model, stepper, test_step.packed(test_step.some_conversations(), share=True), learning_rate=0.01)
    assert most <= 8 * len(parameters) < max(one.nbytes for one in parameters.values())
    assert sum(held().values()) <= 8 * len(parameters), "behind the pass the tables' are gone, too"
    assert Census(parameters).count(0.01), "every tensor is known to have had a gradient"


def test_a_gradient_of_an_earlier_row_alone_moves_its_tensor_too() -> None:
    """What the last row does not reach is complete without it."""
    left, right = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    stepper = Stepper(
        {"left": left, "right": right}, TrainOptions(optim="sgd", max_grad_norm=0, optimizer_in_backward=True)
    )
    stepper.backward((left * 2).sum() + right.sum())
    stepper.backward(right.sum(), last_at=0.5)
    assert right[0].item() == 0.0 and left[0].item() == 0.0
    assert stepper.step(0.5) == pytest.approx((3 * 4 + 3 * 4) ** 0.5)
    assert left[0].item() == 0.0 and right[0].item() == 0.0


def test_clipping_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("output_dir: run\nmodel: {path: m}\ndata: {train: [a]}\ntrain: {optimizer_in_backward: true}\n")
    with pytest.raises(RecipeError, match="max_grad_norm") as error:
        load(file)
    assert "before the norm of all gradients is known" in str(error.value)
