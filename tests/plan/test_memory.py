"""Estimates against facts: published parameter counts, and peaks of runs that were measured."""

from __future__ import annotations

from typing import Any

import pytest

from lorikeet.models.families.qwen2_moe import Qwen2Moe
from lorikeet.plan.memory import GIB, Sizes, Trained, peak_memory, training_flops, training_seconds

SMOLLM2 = Sizes(49152, 576, 30, 9, 3, 64, 1536, tied=True)
LORA = Trained.lora(SMOLLM2, 8)
MARGIN = 0.2  # what the module's docstring states


@pytest.mark.parametrize(
    ("r", "row_tokens", "measured_gib"),
    [
        (8, 960, 1.24),  # alpaca rows, three steps: the longest row of each is about as long
        (8, 1152, 1.35),
        (8, 2048, 1.60),
    ],
)
def test_the_peak_of_measured_runs(r: int, row_tokens: int, measured_gib: float) -> None:
    trained = Trained.lora(SMOLLM2, r)
    found = peak_memory(SMOLLM2, trained, bytes_per_value=2, row_tokens=row_tokens, checkpointing=False)
    assert found.total / GIB == pytest.approx(measured_gib, rel=MARGIN)


@pytest.mark.parametrize(("rows", "measured_gib"), [((960, 2048), 0.36)])
def test_what_more_tokens_cost(rows: tuple[int, int], measured_gib: float) -> None:
    """The slope alone."""
    less, more = (peak_memory(SMOLLM2, LORA, bytes_per_value=2, row_tokens=n, checkpointing=False) for n in rows)
    assert (more.total - less.total) / GIB == pytest.approx(measured_gib, rel=MARGIN)


def test_checkpointing_keeps_less_and_costs_more() -> None:
    asked = {"bytes_per_value": 2, "row_tokens": 2048}
    kept = peak_memory(SMOLLM2, LORA, checkpointing=False, **asked)
    recomputed = peak_memory(SMOLLM2, LORA, checkpointing=True, **asked)
    assert recomputed.activations < kept.activations / 5
    assert recomputed.weights == kept.weights
    # four steps with rows of 2,048 tokens peaked at 1.05 GiB
    assert recomputed.total / GIB == pytest.approx(1.05, rel=MARGIN)
    work = {"tokens": 1000, "trained_tokens": 500}
    once, twice = (training_flops(SMOLLM2, LORA, checkpointing=asked, **work) for asked in (False, True))
    assert twice > once


def test_the_expert_of_all_tokens_counts() -> None:
    """Qwen1.5-MoE-A2.7B: 14.3 billion weights, 2.7 of them met by a token."""
    config: dict[str, Any] = {
        "model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 5632, "num_experts": 60,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "decoder_sparse_step": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    sizes = Sizes.of(Qwen2Moe().spec(config).shape, tied=False)
    assert sizes.parameters / 1e9 == pytest.approx(14.32, rel=0.005)
    assert (sizes.active + sizes.embeddings) / 1e9 == pytest.approx(2.69, rel=0.01)


def test_nf4_keeps_a_quarter_of_the_linears() -> None:
    asked = {"bytes_per_value": 2, "row_tokens": 256, "checkpointing": True}
    plain, quantised = (peak_memory(SMOLLM2, LORA, nf4=nf4, **asked) for nf4 in (False, True))
    saved = plain.weights - quantised.weights
    assert saved == pytest.approx(SMOLLM2.linears * (2 - 0.516), rel=0.01)


def test_lora_s_size_is_that_of_the_demo() -> None:
    assert SMOLLM2.lora(16) == 4_884_480  # as `lorikeet demo` prints it


def test_seconds_hold_the_measured_run() -> None:
    """37,603 alpaca tokens took 146 s where the best matmul was 1.25 TFLOP/s (docs/benchmarks.md)."""
    flops = training_flops(SMOLLM2, LORA, tokens=37_603, trained_tokens=25_000, checkpointing=False)
    shortest, longest = training_seconds(flops, 1.25e12)
    assert shortest < 146 < longest * 1.1
