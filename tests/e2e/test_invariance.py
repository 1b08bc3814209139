"""`lorikeet verify invariance`: what holds passes, and each way to compute that is broken on purpose is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from e2e.conftest import Place
from lorikeet.base.nouns import Batch
from lorikeet.data import pack
from lorikeet.kernels import build
from lorikeet.kernels import norm as compiled_norm
from lorikeet.models import causal_lm
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops import checkpointing
from lorikeet.ops.attention import PackedView
from lorikeet.train import step
from lorikeet.verify import invariance

COMMAND = ("verify", "invariance", "recipe.yaml")
WAYS = ("accumulation", "padding", "packing", "sharing", "checkpointing", "chunked loss", "attention", "kernels",
        "threads", "all of it")  # fmt: skip
compiler = pytest.mark.skipif(build.build() is None, reason="needs a C++ compiler")


def certificate(place: Place) -> dict[str, Any]:
    return json.loads((place.folder / "invariance_certificate.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": {"kind": "full", "r": "-"}, "train": {"gradient_checkpointing": True, "row_tokens": 64}},
        {"adapter": {"kind": "dora"}, "quant": {"kind": "nf4"}, "model": {"dtype": "bfloat16"}},
        {"adapter": {"kind": "prefix", "r": "-"}, "quant": {"kind": "int8"}},
        {"adapter": {"lora_dropout": 0.2}, "train": {"neftune_noise_alpha": 5, "attention_dropout": 0.1}},
    ],
    ids=["lora", "full", "dora nf4 bfloat16", "prefix int8", "drawn"],
)
def test_what_holds_passes(place: Place, changes: dict[str, Any]) -> None:
    place.recipe(**changes)
    result = place.ok(*COMMAND)
    found = certificate(place)
    assert found["passed"] and found["broken"] == []
    assert tuple(row["what"] for row in found["rows"]) == WAYS
    assert {row["verdict"] for row in found["rows"] if row["what"] != "kernels"} == {"kept"}
    assert result.out.count("kept") >= len(WAYS) - 1 and "certificate" in result.out
    floor = {"float32": 1e-4, "bfloat16": 2**-8}[found["computed"]["dtype"]]
    assert found["limits"]["gradient"] >= floor
    assert all(
        row["difference"]["gradient"] <= found["limits"]["gradient"] for row in found["rows"] if "difference" in row
    )


def mean_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step.train_step

    def wrong(model: Any, stepper: Any, rows: list[Batch], **options: Any) -> Any:
        scaled = [replace(row, weights=row.weights / row.total_weight, total_weight=1.0) for row in rows]
        return whole(model, stepper, scaled, **options)

    monkeypatch.setattr(invariance, "train_step", wrong)


def padding_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step.rounded

    def wrong(batch: Batch, model: CausalLM) -> Batch:
        padded = whole(batch, model)
        weights = padded.weights.clone()
        weights[len(batch.weights) :] = 1
        return replace(padded, weights=weights)

    monkeypatch.setattr(step, "rounded", wrong)


def laid_out(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, bool], Any]) -> None:
    whole = pack.lay_out
    monkeypatch.setattr(pack, "lay_out", lambda texts, *, share=True: change(whole(texts, share=share), share))


def positions_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out(monkeypatch, lambda tree, share: replace(tree, positions=tree.positions // 2))


def neighbours_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tree: Any, share: bool) -> Any:
        until = tree.visible_until.copy()
        until[:] = len(until)
        return replace(tree, visible_until=until)

    laid_out(monkeypatch, change)


def branches_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tree: Any, share: bool) -> Any:
        until = tree.visible_until.copy()
        if share:
            until[:] = len(until)
        return replace(tree, visible_until=until)

    laid_out(monkeypatch, change)


def other_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checkpointing.checkpoint

    def wrong(block: Any, *inputs: Any, **options: Any) -> Any:
        return whole(block, *inputs, **{**options, "preserve_rng_state": False})

    monkeypatch.setattr(checkpointing, "checkpoint", wrong)


def chunk_border_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = causal_lm.linear_cross_entropy

    def wrong(hidden: Any, weight: Any, targets: Any, weights: Any, *, chunk: int | None = None, **options: Any) -> Any:
        if chunk is not None:
            weights = weights.clone()
            weights[chunk - 1 :: chunk] = 0
        return whole(hidden, weight, targets, weights, chunk=chunk, **options)

    monkeypatch.setattr(causal_lm, "linear_cross_entropy", wrong)


def attention_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PackedView.attend

    def wrong(self: PackedView, *inputs: Any, scale: float, **options: Any) -> Any:
        return whole(self, *inputs, scale=1.02 * scale, **options)

    monkeypatch.setattr(PackedView, "attend", wrong)


def kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compiled_norm.forward

    def wrong(x: Any, weight: Any, eps: float, *rest: Any) -> Any:
        return whole(x, weight, eps + 0.01, *rest)

    monkeypatch.setattr(compiled_norm, "forward", wrong)


def threads_race(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step.batch_loss

    def wrong(*inputs: Any) -> Any:
        found = whole(*inputs)
        return found._replace(loss=found.loss * (1.001 if torch.get_num_threads() > 1 else 1.0))

    monkeypatch.setattr(step, "batch_loss", wrong)


Break = Callable[[pytest.MonkeyPatch], None]
BREAKS: list[tuple[Break, set[str], dict[str, Any]]] = [
    (mean_of_means, {"accumulation"}, {}),
    (padding_that_counts, {"padding", "accumulation", "all of it"}, {}),
    (positions_of_the_row, {"packing", "all of it"}, {}),
    (neighbours_are_seen, {"accumulation", "packing", "sharing", "all of it"}, {}),
    (branches_see_each_other, {"sharing", "all of it"}, {}),
    (other_dropout, {"checkpointing"}, {"adapter": {"lora_dropout": 0.2}}),
    (chunk_border_lost, {"chunked loss"}, {}),
    (attention_scaled, {"attention", "all of it"}, {}),
    pytest.param(kernel_off, {"kernels", "all of it"}, {}, marks=compiler),  # type: ignore[list-item]
    (threads_race, {"threads"}, {}),
]


@pytest.mark.parametrize(("broken", "named", "changes"), BREAKS)
def test_what_is_broken_is_named(
    place: Place, broken: Break, named: set[str], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.recipe(**changes)
    broken(monkeypatch)
    result = place.run(*COMMAND, "--conversations", "3")
    assert result.code == 1
    assert set(certificate(place)["broken"]) == named
    first = next(line for line in result.err.splitlines() if line.startswith("CheckFailed"))
    assert first == "CheckFailed: how a step is computed changes what it computes"
    assert all(name in result.err.split("CheckFailed")[1] for name in named)


def test_bad_input(place: Place) -> None:
    place.recipe()
    place.refused([*COMMAND, "--output", "no/such/place.json"], "OutputError", "a file in a folder that exists")
    place.refused("verify invariance nothing.yaml", "RecipeError", "nothing.yaml")
    place.refused([*COMMAND, "train.learning_rat=1"], "RecipeError", "learning_rate")


def test_long_conversations_are_cut_to_fit_and_a_run_s_folder_will_do(copied_run: Any, place: Place) -> None:
    place.ok("verify", "invariance", copied_run, "--tokens", "32", "--conversations", "1")
    found = json.loads((copied_run / "invariance_certificate.json").read_text())
    assert found["passed"] and found["data"]["conversations"] == 1 and found["data"]["tokens"] <= 32
