"""The numbers of a recipe follow from the facts: length, memory, rows, size of the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import ModelError, RecipeError
from lorikeet.plan.choose import LEAST_DISTINCT, USED_MEMORY, Machine, Method, Network, choose, fit
from lorikeet.plan.look import Look, Rows
from lorikeet.plan.memory import GIB, Sizes, Trained, peak_memory
from lorikeet.plan.purposes import PURPOSES, check, named, suggest

SMALL = Network("small", "llama", Sizes(49152, 576, 30, 9, 3, 64, 1536, tied=True), 8192)
LARGE = Network("large", "llama", Sizes(128256, 4096, 32, 32, 8, 128, 14336, tied=False), 131072)
MACHINE = Machine("cpu", 20 * GIB, "bfloat16", 2, 1e12, 8, 8)


def a_look(lengths: list[int], *, documents: bool = False, distinct: int | None = None, replies: int = 100) -> Look:
    count = len(lengths)
    rows = Rows(["alpaca"], rows=count, read=count, documents=count if documents else 0)
    rows.hashes = {str(n).encode() for n in range(count if distinct is None else distinct)}
    found = np.array(lengths, np.int64)
    answered = np.array([] if documents else [replies] * count, np.int64)
    return Look(rows, "jinja", True, {}, found, found // 2, answered, 0.0, 0)


def lora(network: Network) -> Method:
    return Method.lora(network.sizes, 16)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(4, 20_000), min_size=1, max_size=200),
    st.floats(1.5, 100),
    st.sampled_from(sorted(PURPOSES)),
    st.booleans(),
)
def test_what_is_chosen_fits_or_is_refused(lengths: list[int], gib: float, purpose: str, documents: bool) -> None:
    machine = replace(MACHINE, memory_bytes=int(gib * GIB))
    try:
        chosen = choose(a_look(lengths, documents=documents), SMALL, machine, PURPOSES[purpose])
    except ModelError:
        least = peak_memory(
            SMALL.sizes, Trained.lora(SMALL.sizes, 32), bytes_per_value=2, row_tokens=256, checkpointing=True
        )
        assert machine.memory_bytes * USED_MEMORY < least.total
        return
    assert chosen.memory.total <= machine.memory_bytes * USED_MEMORY
    assert 8 <= chosen.max_length <= SMALL.max_position
    assert 1 <= chosen.examples_per_step <= 32
    assert chosen.validation is None or 0 < chosen.validation < len(lengths)
    assert 1 <= chosen.cadence <= max(1, chosen.steps)
    assert 8 <= chosen.max_new_tokens <= 512


def test_the_length_is_what_nearly_all_rows_have() -> None:
    chosen = choose(a_look([100] * 995 + [3000] * 5), SMALL, MACHINE, PURPOSES["instruct"])
    assert chosen.max_length == 128
    assert chosen.longer == pytest.approx(0.005)


def test_the_length_stays_within_the_context() -> None:
    chosen = choose(a_look([9000] * 50), replace(SMALL, max_position=500), MACHINE, PURPOSES["instruct"])
    assert chosen.max_length == 500


def test_less_memory_means_smaller_rows_then_recomputed_layers_then_shorter_conversations() -> None:
    seen = []
    for gib in (20, 1.9, 1.6, 1.4):
        found = fit(SMALL, replace(MACHINE, memory_bytes=int(gib * GIB)), lora(SMALL), 1024)
        assert not found.nf4  # of a small model, the weights are not what takes the memory
        seen.append((found.checkpointing, -found.row_tokens))
        assert found.max_length == 1024
    assert seen == sorted(seen)
    assert seen[0] == (False, -2048)
    assert seen[-1][0]
    found = fit(SMALL, replace(MACHINE, memory_bytes=int(1.5 * GIB)), lora(SMALL), 8192)
    assert found.max_length < 8192 and found.checkpointing


def test_a_large_model_is_kept_in_4_bits_before_conversations_get_shorter() -> None:
    machine = replace(MACHINE, memory_bytes=12 * GIB)
    found = fit(LARGE, machine, lora(LARGE), 512)
    assert (found.max_length, found.checkpointing, found.nf4, found.in_backward) == (512, True, True, False)
    chosen = choose(a_look([100] * 100), LARGE, machine, PURPOSES["chat"])
    assert chosen.nf4 and any("4 bits" in line for line in chosen.told)


def test_a_kind_that_trains_the_models_own_weights_is_told_apart() -> None:
    """Masters, gradients and averages; where those do not fit, gradients are let go within the backward pass."""
    weights = SMALL.sizes.parameters
    full = Method("full", Trained(weights, instead=weights), 2e-5, over_nf4=False)
    roomy, tight = (
        choose(a_look([100] * 100), SMALL, replace(MACHINE, memory_bytes=int(gib * GIB)), PURPOSES["chat"], method=full)
        for gib in (20, 2.8)
    )
    assert roomy.memory.weights == 0 and roomy.memory.adapter == 16 * weights and not roomy.in_backward
    assert tight.in_backward and tight.checkpointing and not tight.nf4
    assert 12 * weights < tight.memory.adapter < 15 * weights
    assert any("optimizer_in_backward" in line for line in tight.told)
    lora_rate = choose(a_look([100] * 100), SMALL, MACHINE, PURPOSES["chat"]).learning_rate
    assert roomy.learning_rate == pytest.approx(lora_rate / 10)
    with pytest.raises(ModelError, match="does not fit"):
        fit(SMALL, replace(MACHINE, memory_bytes=int(1.2 * GIB)), full, 512)


def test_a_model_that_cannot_fit_says_how_much_it_needs() -> None:
    with pytest.raises(ModelError, match="does not fit") as raised:
        fit(LARGE, replace(MACHINE, memory_bytes=8 * GIB), lora(LARGE), 512)
    assert "GiB" in str(raised.value.allowed) and "docs/models.md" in str(raised.value.try_)


def test_few_rows_get_more_passes_and_smaller_steps() -> None:
    chosen = [choose(a_look([100] * count), SMALL, MACHINE, PURPOSES["instruct"]) for count in (30, 300, 3000, 100_000)]
    assert [one.epochs for one in chosen] == sorted((one.epochs for one in chosen), reverse=True)
    assert [one.examples_per_step for one in chosen] == sorted(one.examples_per_step for one in chosen)
    assert chosen[-1].epochs == 1


def test_nothing_is_held_out_of_too_few_different_rows() -> None:
    assert choose(a_look([50] * 500, distinct=LEAST_DISTINCT - 1), SMALL, MACHINE, PURPOSES["chat"]).validation is None
    assert choose(a_look([50] * 500), SMALL, MACHINE, PURPOSES["chat"]).validation == 25
    assert choose(a_look([50] * 500), SMALL, MACHINE, PURPOSES["chat"], held_out=True).validation is None


def test_large_models_take_smaller_steps_and_experts_are_left_alone() -> None:
    found, machine = a_look([100] * 100), replace(MACHINE, memory_bytes=200 * GIB)
    small, large = (choose(found, network, machine, PURPOSES["chat"]) for network in (SMALL, LARGE))
    assert small.learning_rate > large.learning_rate
    experts = Network("moe", "mixtral", replace(LARGE.sizes, experts=8, experts_per_token=2), 4096)
    assert choose(found, experts, machine, PURPOSES["chat"]).attention_only
    assert not large.attention_only


def test_documents_are_cut_into_windows() -> None:
    chosen = choose(a_look([10_000] * 10, documents=True), SMALL, MACHINE, PURPOSES["text"])
    assert chosen.max_length == 1024
    assert chosen.longer == 0
    assert chosen.epoch_tokens == 100_000
    assert chosen.steps * chosen.examples_per_step > 10 * chosen.epochs  # windows, not documents


def test_the_purpose_is_what_the_data_look_like() -> None:
    assert suggest(a_look([100] * 10, documents=True)).name == "text"
    assert suggest(a_look([100] * 10)).name == "instruct"
    assert suggest(a_look([100] * 10, replies=3)).name == "extract"
    assert suggest(replace(a_look([100] * 10), json_share=0.9)).name == "extract"
    many_turns = a_look([100] * 10)
    many_turns.rows.turns = 8
    assert suggest(many_turns).name == "chat"


def test_a_purpose_that_the_data_cannot_serve_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs replies"):
        check(PURPOSES["chat"], a_look([100], documents=True))
    check(PURPOSES["text"], a_look([100]))
    with pytest.raises(RecipeError) as raised:
        named("extrakt")
    assert raised.value.try_ == "--purpose extract"
