"""Rows of the workloads: which pairs stand together, how long they become, and that a recipe trains on them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import workloads
from hypothesis import given
from hypothesis import strategies as st
from workloads import TINYLLAMA, WORKLOADS, Row

from lorikeet import api, config


def words(row: Row) -> int:
    return sum(len(message["content"].split()) for message in row["messages"])


def pair(length: int, name: int) -> tuple[str, str]:
    return f"q{name}", " ".join([f"a{name}"] * (length - 1))


@given(st.lists(st.integers(2, 30), min_size=1, max_size=60), st.integers(5, 40))
def test_joined_conversations_fit_and_are_as_full_as_they_can_be(lengths: list[int], limit: int) -> None:
    pairs = [pair(length, name) for name, length in enumerate(lengths)]
    usable = [one for one, length in zip(pairs, lengths) if length <= limit]
    count = 0
    while True:  # as many as there are
        try:
            rows = workloads.join(pairs, count + 1, limit, words)
        except ValueError:
            break
        count = len(rows)
    rows = workloads.join(pairs, count, limit, words)
    found = [message["content"] for row in rows for message in row["messages"]]
    assert found == [side for one in usable for side in one][: len(found)], "consecutive, none twice"
    assert all(words(row) <= limit for row in rows)
    for row, after in pairwise(rows):
        first = {"messages": row["messages"] + after["messages"][:2]}
        gap = usable.index(tuple(message["content"] for message in after["messages"][:2]))
        skipped = pairs.index(usable[gap]) - pairs.index(usable[gap - 1]) > 1
        assert words(first) > limit or skipped, "one more pair would have fitted"


def test_conversations_that_are_cut_all_reach_the_limit() -> None:
    rows = workloads.join([pair(7, name) for name in range(20)], 3, 20, words, past=True)
    assert [words(row) for row in rows] == [21, 21, 21]


def test_too_few_pairs_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 pairs make 0 conversations of 20 tokens, 1 are needed"):
        workloads.join([pair(7, 0), pair(7, 1)], 1, 20, words)


def test_an_input_follows_its_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Sing", "input": "", "output": "la"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert workloads.pairs_of(tmp_path / "rows.json") == [("Add\n1 2", "3"), ("Sing", "la")]


def test_a_random_llama_with_its_tokenizer_is_a_model_that_a_recipe_opens(tmp_path: Path) -> None:
    sizes = TINYLLAMA | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 8192}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    rows = [{"instruction": f"Count to {n}", "input": "", "output": " ".join(map(str, range(n)))} for n in range(2, 90)]
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(rows))
    workloads.write_tinyllama(tmp_path / "tinyllama", source, sizes)
    work = WORKLOADS["W4"]
    data = workloads.write_rows(
        workloads.Workload("W4", "tinyllama", 3, 128, 1, joined=True, cut=True), source, tmp_path
    )
    recipe = workloads.recipe(work, data, workloads.model_path(work, tmp_path, source), max_steps=1)
    recipe["data"]["max_length"] = 128
    _, base, _, prepared = api.prepare(config.parse(recipe))
    assert [len(example.tokens) for example in prepared.train] == [128] * 3
    assert base.shape.width == 64 and base.shape.vocab_size == 8192
    assert torch.isfinite(next(iter(dict(workloads._random_weights(sizes)).values())).float()).all()
