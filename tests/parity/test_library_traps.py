"""What libraries' quantised layers do silently, as checks: ours pass, and bitsandbytes' own fail.

1. Evaluating repacks the weight for decoding, for good: afterwards no gradient flows through it, and training goes on.
2. What is saved after an evaluation is another weight.

Seen with bitsandbytes 0.50 on processors with AVX512_BF16. What it saves in time is read here as it computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorikeet.base.errors import CheckpointError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.ops.lora_linear import LowRank, lora_linear
from lorikeet.quant._contract import FrozenWeight, Quant

OUT, IN = 96, 128
ODD = 90  # bitsandbytes' kernel for decoding wants a multiple of 32
KINDS = [{"kind": name} for name in kinds("lorikeet.quant") if name != "none"]
KINDS += [{"kind": name, "double_quant": True} for name in ("nf4", "fp4")]
KINDS += [{"kind": "gptq", "bits": bits, "group_size": 48, "sym": False} for bits in (3, 4)]  # a partial last group


def a_weight(rows: int = OUT) -> Tensor:
    return torch.randn(rows, IN, generator=torch.Generator().manual_seed(0)).bfloat16()


def options(kind: dict[str, Any]) -> Quant:
    return kind_class("lorikeet.quant", Quant, kind["kind"]).model_validate(kind)


def frozen(kind: dict[str, Any]) -> FrozenWeight:
    return options(kind).freeze(a_weight(ODD))


def ours(weight: FrozenWeight) -> Callable[[Tensor], Tensor]:
    """The frozen linear with an update on some of its rows."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, IN, generator=generator) / IN**0.5, torch.randn(32, 4, generator=generator)
    return lambda x: lora_linear(x, weight, None, [LowRank(slice(0, 32), 1.0)], [a, b])


def gradient(linear: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Of the sum of squares of its output with respect to its input: what reaches the layers below."""
    x = torch.randn(16, IN, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    y = linear(x)
    if y.requires_grad:
        y.float().square().sum().backward()
    return x.grad


def evaluated(linear: Callable[[Tensor], Tensor]) -> None:
    """As in mid-training: no gradients, some sizes; one token as when answering."""
    with torch.no_grad():
        for tokens in (16, 1, 40):
            linear(torch.ones(tokens, IN, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_after_an_evaluation_are_those_before(kind: dict[str, Any]) -> None:
    weight = frozen(kind)
    before = gradient(ours(weight))
    weight.eval()
    evaluated(ours(weight))
    weight.train()
    after = gradient(ours(weight))
    assert before is not None and after is not None and torch.equal(before, after)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_first_pass_without_gradients_decides_nothing(kind: dict[str, Any]) -> None:
    """gptqmodel's layers take the decoding kernel for good if their first pass is one of evaluation."""
    fresh, used = frozen(kind), frozen(kind)
    evaluated(ours(used))
    first, second = gradient(ours(fresh)), gradient(ours(used))
    assert first is not None and second is not None and torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_saved_after_an_evaluation_is_what_was_before(kind: dict[str, Any]) -> None:
    weight = frozen(kind)
    before = copy.deepcopy(weight.state_dict())
    dense = weight.dense(torch.float32)
    evaluated(ours(weight))
    after = weight.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = options(kind).empty(ODD, IN, torch.bfloat16, torch.device("cpu"))
    again.load_state_dict(after)
    assert torch.equal(again.dense(torch.float32), dense)


@pytest.fixture
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes")


def theirs(bnb: Any, quant_type: str = "nf4", *, double: bool = False) -> nn.Module:
    """bitsandbytes' own layer over `a_weight`."""
    layer = bnb.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=torch.bfloat16, quant_type=quant_type, device="cpu")
    params = bnb.nn.Params4bit(a_weight(), requires_grad=False, quant_type=quant_type, compress_statistics=double)
    layer.weight = params._quantize("cpu")
    made: nn.Module = layer
    return made


def repacking(bnb: Any) -> nn.Module:
    """The layer, where it repacks its weight for decoding: on a processor, and in a version, that does so.

    A version that no longer loses anything is no fault of ours: it skips, and says so."""
    layer = theirs(bnb)
    if not getattr(layer, "support_avx512bf16_for_cpu", False):
        pytest.skip(f"bitsandbytes {bnb.__version__} does not repack for this processor (AVX512_BF16)")
    return layer


def skip_as_mended(bnb: Any) -> None:
    pytest.skip(f"bitsandbytes {bnb.__version__} has mended it: the note in docs/quantisation.md can go")


@pytest.mark.slow
def test_the_library_s_own_layer_loses_its_gradient(bitsandbytes: Any) -> None:
    layer = repacking(bitsandbytes)
    before = gradient(layer.train())
    evaluated(layer.eval())
    after = gradient(layer.train())
    assert before is not None and before.abs().sum() > 0
    if after is not None and torch.allclose(before, after, rtol=0.1):
        skip_as_mended(bitsandbytes)


def as_read(quant_type: str, parts: dict[str, Tensor]) -> Tensor:
    """What a folder with these parts of a linear reads as here [out, in]."""
    kept = options({"kind": quant_type}).empty(OUT, IN, torch.bfloat16, torch.device("cpu"))
    kept.take(0, OUT, parts)
    return kept.dense(torch.float32)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_what_the_library_saves_is_read_as_it_computes(quant_type: str, double: bool, bitsandbytes: Any) -> None:
    layer = theirs(bitsandbytes, quant_type, double=double)
    weight: Any = layer.weight
    weight.quant_state.dtype = torch.float32
    dense = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    found = as_read(quant_type, layer.state_dict())
    assert torch.allclose(found, dense, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_what_the_library_saves_after_an_evaluation_is_refused(bitsandbytes: Any) -> None:
    """It is another weight, for transformers too: its scales lie transposed."""
    layer = repacking(bitsandbytes)
    before = copy.deepcopy(layer.state_dict())
    evaluated(layer.eval())
    after = layer.state_dict()
    if all(before[name].shape == after[name].shape and torch.equal(before[name], after[name]) for name in before):
        skip_as_mended(bitsandbytes)
    with pytest.raises(CheckpointError, match="once the model has evaluated"):
        as_read("nf4", after)
