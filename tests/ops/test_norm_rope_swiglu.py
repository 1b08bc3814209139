"""The small ops against their definitions, values and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.ops.norm import reference_rms_norm, rms_norm
from lorikeet.ops.rope import Rope, reference_rotate, rotate
from lorikeet.ops.swiglu import reference_swiglu, swiglu


def random(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def same_gradients(fast: Callable[..., Tensor], slow: Callable[..., Tensor], *inputs: Tensor) -> None:
    outputs = [function(*inputs) for function in (fast, slow)]
    torch.testing.assert_close(outputs[0], outputs[1])
    probe = random(*outputs[0].shape, seed=99).detach()
    gradients = [torch.autograd.grad((output * probe).sum(), inputs) for output in outputs]
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right)
    assert torch.autograd.gradcheck(fast, inputs)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_equals_its_reference(eps: float) -> None:
    def fast(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, eps)

    same_gradients(fast, lambda x, weight: reference_rms_norm(x, weight, eps), random(5, 7), random(7, seed=1))


def test_rms_norm_rounds_once_in_bfloat16() -> None:
    x, weight = random(6, 32, dtype=torch.bfloat16), random(32, seed=1, dtype=torch.bfloat16)
    found = rms_norm(x, weight, 1e-6)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, reference_rms_norm(x, weight, 1e-6), rtol=0, atol=0)


def test_rms_norm_without_a_trained_weight_computes_no_gradient_for_it() -> None:
    x, weight = random(3, 4), random(4, seed=1).detach()
    rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize("width", [2, 6, 20])
def test_rotate_equals_its_reference(width: int) -> None:
    cos, sin = Rope(width, 100.0, 64).table(torch.tensor([0, 3, 1, 40]), torch.float64)
    same_gradients(lambda x: rotate(x, cos, sin), lambda x: reference_rotate(x, cos, sin), random(4, 3, width))


def test_rotate_takes_a_slice_of_a_wider_tensor() -> None:
    """q and k are the first heads of one qkv tensor."""
    cos, sin = Rope(4, 100.0, 64).table(torch.arange(5), torch.float64)
    wide = random(5, 6, 4)
    torch.testing.assert_close(rotate(wide[:, :4], cos, sin), reference_rotate(wide[:, :4], cos, sin))


def test_rotated_scores_depend_on_distances_only() -> None:
    rope, (q, k) = Rope(8, 100.0, 64), random(2, 1, 8).detach()

    def score(at: int) -> Tensor:
        cos, sin = rope.table(torch.tensor([at + 3, at]), torch.float64)
        turned = rotate(torch.stack([q, k]), cos, sin)
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(0), score(21), rtol=1e-5, atol=1e-5)  # angles are float32


def test_an_unknown_scaling_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="spiral") as error:
        Rope(8, 100.0, 64, {"rope_type": "spiral"})
    assert "llama3" in str(error.value)


def test_swiglu_equals_its_reference() -> None:
    same_gradients(swiglu, reference_swiglu, random(5, 14))
