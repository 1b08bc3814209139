"""While it answers a model computes the same, without autograd; afterwards it is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infer.conftest import VOCAB, ByteTokenizer, LineTemplate, ids
from lorikeet.adapters.lora import LoraGroup
from lorikeet.infer import dense_copies
from lorikeet.infer.answering_linears import answering_linears, side_by_side
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.kernels import linear as tiles
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.lora_linear import LowRank
from parity import tiny

CASES = [
    pytest.param(torch.float64, 1e-12, id="float64"),
    pytest.param(torch.float32, 1e-5, id="float32"),
    pytest.param(torch.bfloat16, 3e-2, id="bfloat16"),
]


def group_with_lora(
    dtype: torch.dtype, *, lora: bool = True, bias: bool = True, width: int = 16
) -> tuple[tiny.Decoder, LinearGroup]:
    network = tiny.decoder(dtype=dtype, heads=4, kv_heads=2, head_dim=16, bias=bias, width=width)
    if lora:
        tiny.with_lora(network)
    return network, next(network.groups())


@pytest.mark.parametrize("rows", [1, 7, 80])
@pytest.mark.parametrize("width", [16, 64])  # of 64, kernels compute what is of bfloat16
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), CASES)
@torch.no_grad()
def test_a_group_answers_what_it_computes_in_training(
    dtype: torch.dtype, tolerance: float, lora: bool, width: int, rows: int
) -> None:
    network, group = group_with_lora(dtype, lora=lora, width=width)
    assert isinstance(group.attached, LoraGroup) is lora
    x = torch.randn(rows, group.weight.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = group(x)
    with answering_linears(network):
        assert group.answering is not None
        found = group(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@torch.no_grad()
def test_a_prompt_with_an_adapter_asks_no_matmul_of_pytorch() -> None:
    """oneDNN keeps half a MiB for every number of rows that it meets, five times: a server that read 300 prompts of
    unlike lengths for adapters had grown by 70 MiB."""
    network, group = group_with_lora(torch.bfloat16, width=64)
    x = torch.randn(80, group.weight.in_features).bfloat16()
    if not tiles.serves(x, group.weight.out_features, group.weight.in_features):
        pytest.skip("PyTorch computes all products here")
    asked = set[str]()

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.add(str(func.overloadpacket))
            return func(*args, **(kwargs or {}))

    with answering_linears(network), Listen():
        group(x)
    assert asked and not asked & {"aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm", "aten.linear"}


def test_factors_lie_side_by_side_with_zeros_between() -> None:
    a = [torch.full((2, 3), 1.0), torch.full((1, 3), 2.0)]
    b = [torch.full((4, 2), 3.0), torch.full((2, 1), 4.0)]
    members = [LowRank(slice(0, 4), 2.0), LowRank(slice(5, 7), 0.5)]
    below, beside = side_by_side(members, [a[0], b[0], a[1], b[1]], 7, torch.float64)
    assert below.shape == (32, 3) and beside.shape == (7, 32) and below.dtype == torch.float64
    assert below[:4, 0].tolist() == [1, 1, 2, 0] and not below[3:].any()
    assert beside[:4, :2].unique().tolist() == [6.0] and beside[5:, 2].tolist() == [2.0, 2.0]
    assert int((beside != 0).sum()) == 4 * 2 + 2


def test_what_trained_since_is_answered_with() -> None:
    network = tiny.decoder(3, vocab=VOCAB, dtype=torch.float32, max_position=96)
    tiny.with_lora(network)
    answering = Engine(network, ByteTokenizer(), LineTemplate())

    def reply() -> str:
        return "".join(e.text for e in answering.generate([Request(0, ids("ab"), GenerateOptions(max_new_tokens=12))]))

    before = reply()
    assert reply() == before
    with torch.no_grad():
        for group in network.groups():
            for linear in group.linears:
                if linear.adapter is not None:
                    linear.adapter.b.add_(1.0)  # type: ignore[union-attr, operator]
    assert reply() != before


def test_afterwards_gradients_flow_as_ever() -> None:
    network, group = group_with_lora(torch.float32)
    with pytest.raises(KeyError), answering_linears(network):
        with answering_linears(network):
            assert all(group.answering is not None for group in network.groups())
        assert all(group.answering is not None for group in network.groups()), "the inner block left them alone"
        raise KeyError
    assert all(group.answering is None for group in network.groups())
    group(torch.randn(3, group.weight.in_features)).sum().backward()
    assert all(linear.adapter.b.grad is not None for linear in group.linears)  # type: ignore[union-attr]


def test_other_adapters_and_experts_compute_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    network, group = group_with_lora(torch.float32, lora=False)
    group.attached = lambda x, prologue: x + 1
    with answering_linears(network):
        assert group.answering is None
        assert torch.equal(group(torch.zeros(1, 2)), torch.ones(1, 2))
    monkeypatch.setattr(dense_copies, "LinearGroup", type("Other", (), {}))
    with answering_linears(network):
        assert all(group.answering is None for group in network.groups())
