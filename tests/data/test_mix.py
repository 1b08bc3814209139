"""A weighted mix keeps its weights at every draw, repeats nothing early, and needs no state to go on."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lorikeet.data.dataset import Examples, Writer
from lorikeet.data.mix import MixOptions, Mixture, Turns, whole_numbers
from lorikeet.data.pack import plan_step, run_step, total_steps

SIZES = (7, 3, 11)
weights_lists = st.lists(st.integers(1, 40), min_size=1, max_size=7).map(lambda found: whole_numbers([*found]))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Examples]:
    """Three stores; an example's first token says which source it is of, its second which example."""
    made = []
    for source, size in enumerate(SIZES):
        folder = tmp_path_factory.mktemp("store")
        writer = Writer(folder)
        for number in range(size):
            tokens = np.array([source + 1, number + 10, 5], np.int32)
            weights = np.array([0, 0, 1], np.float32)
            writer.add(tokens.tobytes(), weights.tobytes(), None, source * 100 + number)
        writer.close({})
        made.append(Examples(folder))
    return made


@given(weights_lists, st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_at_every_draw_each_source_is_within_one_of_its_share(weights: list[int], length: int) -> None:
    sources, ranks = Turns(weights).draws(0, length)
    counts = (sources[:, None] == np.arange(len(weights))).cumsum(axis=0)  # [draws, sources]
    shares = np.arange(1, length + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - shares).max() < 1
    assert (ranks == counts[np.arange(length), sources] - 1).all()


@given(weights_lists, st.integers(0, 500), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_a_part_of_the_draws_needs_nothing_of_what_was_before(weights: list[int], start: int, length: int) -> None:
    everything = Turns(weights).draws(0, start + length)
    part = Turns(weights).draws(start, start + length)
    assert all((whole[start:] == some).all() for whole, some in zip(everything, part))


def test_the_turns_of_small_weights_are_spread_and_repeat() -> None:
    sources, ranks = Turns([3, 1]).draws(0, 12)
    assert "".join(map(str, sources)) in {"0010" * 3, "0100" * 3} and ranks[sources == 1].tolist() == [0, 1, 2]
    # rounding each step of 4 by itself would never let a weight of 1 in 20 have a turn
    assert Counter(Turns([19, 1]).draws(0, 40)[0].tolist()) == {0: 38, 1: 2}


@given(
    st.lists(st.sampled_from([0.1, 0.5, 1, 2.5, 7]), min_size=3, max_size=3),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_no_example_comes_again_before_its_source_is_through(
    parts: list[Examples], weights: list[float], size: int, first: int, seed: int
) -> None:
    mixture = Mixture(parts, weights, "first_exhausted")
    drawn = mixture.drawn(0, (first + 30) * size, seed)
    steps = [mixture.drawn(step * size, (step + 1) * size, seed) for step in range(first + 30)]
    assert np.concatenate(steps).tolist() == drawn.tolist()  # steps of any size, and any of them alone
    starts = np.cumsum([0, *SIZES])
    for source, count in enumerate(SIZES):
        mine = [index - starts[source] for index in drawn.tolist() if starts[source] <= index < starts[source + 1]]
        for begin in range(0, len(mine), count):
            one_pass = mine[begin : begin + count]
            assert len(set(one_pass)) == len(one_pass)
        if len(mine) > 3 * count > 12:
            assert mine[:count] != mine[count : 2 * count], "each pass has an order of its own"


def test_an_epoch_ends_where_it_is_said_to(parts: list[Examples]) -> None:
    lengths = {epoch: Mixture(parts, [2, 1, 1], epoch).epoch_examples for epoch in ("first_exhausted", "all_exhausted")}
    assert lengths == {"first_exhausted": 12, "all_exhausted": 44}  # 3 / (1/4), 11 / (1/4)
    for epoch, length in lengths.items():
        drawn = Mixture(parts, [2, 1, 1], epoch).drawn(0, length, 0)
        whole = [set(range(start, start + size)) <= set(drawn.tolist()) for start, size in zip((0, 7, 10), SIZES)]
        assert whole == ([False, True, False] if epoch == "first_exhausted" else [True] * 3)
        if epoch == "first_exhausted":
            assert len(set(drawn.tolist())) == length, "nothing twice in the first epoch"
    assert Mixture(parts, [2, 1, 1], 100).epoch_examples == 100
    assert Mixture(parts).epoch_examples == sum(SIZES) == len(Mixture(parts))
    assert Mixture(parts, [2, 1, 1], "all_exhausted").passes() == pytest.approx([22 / 7, 11 / 3, 1])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_steps_of_a_mix_are_the_draws_however_they_are_packed(parts: list[Examples], world: int) -> None:
    mixture, size = Mixture(parts, [1, 1, 2], "all_exhausted"), 5
    per_epoch = math.ceil(mixture.epoch_examples / size)
    for step in range(2 * per_epoch):
        epoch, within = divmod(step, per_epoch)
        ranks = plan_step(
            mixture, seed=3, epoch=epoch, step=within, examples_per_step=size, row_tokens=9, share=False, world=world
        )
        rows = [batch for rank in ranks for batch in rank if batch.total_weight]
        seen = Counter(tuple(row.tokens[at : at + 2].tolist()) for row in rows for at in range(0, len(row.tokens), 3))
        wanted = Counter(
            tuple(mixture[int(i)].tokens[:2].tolist()) for i in mixture.drawn(step * size, (step + 1) * size, 3)
        )
        assert seen == wanted and len({len(rank) for rank in ranks}) == 1
        if world == 1:
            alone = run_step(mixture, step, seed=3, examples_per_step=size, row_tokens=9, share=False)
            assert [row.tokens.tolist() for row in alone] == [row.tokens.tolist() for row in ranks[0]]
    assert total_steps(mixture.epoch_examples, size, 2, None) == 2 * per_epoch


def test_without_weights_an_epoch_is_everything_once(parts: list[Examples]) -> None:
    both = Mixture(parts)
    assert [one.tokens[:2].tolist() for one in both] == [both[i].tokens[:2].tolist() for i in range(len(both))]
    rows = [row for step in range(6) for row in run_step(both, step, seed=0, examples_per_step=4, row_tokens=3)]
    assert sorted(row.tokens.tolist() for row in rows) == sorted(one.tokens.tolist() for one in both)
    assert both.tokens == 3 * len(both) and both.trained_tokens == len(both) == len(both.conversation_hashes)


def test_the_fingerprint_knows_parts_weights_and_epoch(parts: list[Examples]) -> None:
    made = [
        Mixture(parts),
        Mixture(parts[::-1]),
        Mixture(parts, [1, 1, 1], "first_exhausted"),
        Mixture(parts, [1, 2, 1], "first_exhausted"),
        Mixture(parts, [1, 2, 1], "all_exhausted"),
    ]
    assert len({one.fingerprint for one in made}) == len(made)
    assert Mixture(parts, [0.5, 1, 0.5], "all_exhausted").fingerprint == made[-1].fingerprint


def test_weights_become_whole_numbers_as_they_are_written() -> None:
    assert whole_numbers([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_numbers([30, 10]) == [3, 1] and whole_numbers([1e-3, 1]) == [1, 1000]


def test_many_draws_of_awkward_weights_are_quick(parts: list[Examples]) -> None:
    mixture = Mixture(parts, [0.123457, 3.3, 1], "first_exhausted")
    assert len(mixture.drawn(200_000, 200_016, 0)) == 16


def test_weights_of_any_size_can_be_drawn(parts: list[Examples]) -> None:
    """Weights that a script computed have 17 digits, and together they need far more than 64 bits."""
    mixture = Mixture(parts, [0.0012345678901234567, 1 / 3, 1e-25], "first_exhausted")
    drawn = mixture.drawn(0, 600, 0)
    assert len(drawn) == 600 and 0 < (drawn < len(parts[0])).sum() < 6


@pytest.mark.parametrize("epoch", [0, -3, "longest", 1.5, None])
def test_bad_epochs(epoch: object) -> None:
    with pytest.raises(ValidationError):
        MixOptions.model_validate({"epoch": epoch})
