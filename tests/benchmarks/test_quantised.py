"""The comparison of kinds without a real model: turns, ratios, tables, recipes, bits, sizes of errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer_jobs
import pytest
import quant_errors
import quant_figures
import quant_kinds
import quantised
import torch
from peer_jobs import Size
from workloads import WORKLOADS, Workload

from lorikeet import config
from lorikeet.data.pack import pack_row
from lorikeet.quant.fp4 import FP4
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant
from parity import tiny

ROWS = [{"instruction": f"Say {n}", "input": "", "output": f"{n} it is, and not {n + 1}"} for n in range(40)]


def test_turns_begin_with_another_job_each_round() -> None:
    order: list[str] = []
    jobs = {name: lambda number, name=name: order.append(name) or float(number) for name in "abc"}
    found = quant_figures.in_turns(jobs, 4)
    assert "".join(order) == "abcbcacababc"
    assert found == {name: [0.0, 1.0, 2.0, 3.0] for name in "abc"}


def test_ratios_are_of_the_same_round() -> None:
    found = quant_figures.against({"bf16": [1.0, 10.0, 2.0], "nf4": [1.2, 13.0, 8.0]}, "bf16")
    assert found["nf4"]["ratio"] == pytest.approx(1.3), "1.2, 1.3 and 4: one bad round does not decide"
    assert found["nf4"]["ratio_of_least"] == pytest.approx(1.2) and found["bf16"]["ratio"] == 1


def cells(table: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert len({len(row) for row in rows}) == 1, "every row has every cell"
    return rows


def test_tables_have_every_cell() -> None:
    steps = quant_figures.against({"bf16": [2.0], "nf4": [3.0]}, "bf16")
    assert cells(quant_figures.speed_table(steps, {"nf4": 1.5}))[2:] == [
        ["bf16", "2.00", "2.00", "1.00", "1.00", ""],
        ["nf4", "3.00", "3.00", "1.50", "1.50", "1.50"],
    ]
    table = quant_figures.decode_table({"one": steps, "eight": steps}, {"one": 48, "eight": 384}, "bf16")
    assert cells(table)[3] == ["nf4", "16", "1.50", "128", "1.50"]
    good = {"bits": 4.5, "loss_before": 2.5, "loss_after": 2.25, "tokens_per_second": 99.6}
    runs = {"nf4": good | {"training_peak_rss_gib": 0.987}, "gptq": {"error": "exit code 2: a | b"}}
    assert cells(quant_figures.quality_table(runs))[2:] == [
        ["nf4", "4.50", "2.5000", "2.2500", "100", "0.99"],
        ["gptq", "failed: exit code 2: a / b", "", "", "", ""],
    ]


def test_the_runs_of_each_model_are_remembered_and_drawn(tmp_path: Path) -> None:
    run = {"bits": 4.5, "loss_before": 2.5, "loss_after": 2.25}
    names = ("quality a nf4 12 steps", "quality a gptq, group 128 12 steps", "quality b int8 4 steps", "peer a")
    (tmp_path / "runs.json").write_text(
        json.dumps(dict.fromkeys(names, run) | {"quality a fp4 1 steps": {"error": ""}})
    )
    found = quantised.remembered(tmp_path / "runs.json")
    assert found == {"a": {"nf4": run, "gptq, group 128": run}, "b": {"int8": run}}
    pytest.importorskip("matplotlib")
    quant_figures.quality_plot(found, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 5000


def test_a_pair_of_tools_is_compared_round_by_round() -> None:
    run = {"tool": "lorikeet", "tokens": 300, "seconds": 10.0, "peak_rss_gib": 0.5, "losses": [2.0, 1.9]}
    ours = quant_figures.of_tool([run, run | {"seconds": 20.0, "peak_rss_gib": 1.0}], "small")
    theirs = quant_figures.of_tool([run | {"tool": "trl", "seconds": 60.0, "peak_rss_gib": 4.0}] * 2, "packing 2048")
    assert cells(quant_figures.peer_table([(ours, theirs)]))[2:] == [
        ["lorikeet", "small", "20", "4.50", "1.00", "0.25", "2.0000"],
        ["trl", "packing 2048", "5", "", "4.00", "", "2.0000"],
    ]


@pytest.mark.parametrize("kind", list(quant_kinds.KINDS))
def test_every_kind_is_a_recipe(kind: str, tmp_path: Path) -> None:
    asked = SimpleNamespace(data=tmp_path / "rows.json", model="smollm2-135m", threads=1, steps=3)
    recipe = quant_kinds.with_kind(quantised.quality_recipe(asked, tmp_path / "run"), kind)
    parsed = config.parse(recipe)
    assert parsed.quant.model_dump(include=set(quant_kinds.KINDS[kind])) == quant_kinds.KINDS[kind]
    assert parsed.data.validation == 0.1 and parsed.train.max_steps == 3


def test_a_quantised_folder_is_named_as_the_model(tmp_path: Path) -> None:
    asked = SimpleNamespace(data=tmp_path / "rows.json", model="gemma3-270m", threads=1, steps=3)
    plain = quantised.quality_recipe(asked, tmp_path / "run")
    recipe = quant_kinds.with_kind(plain, "gptq, group 64", "made/here")
    assert recipe["model"]["path"] == "made/here" and "quant" not in recipe
    assert plain["model"]["path"] == "gemma3-270m" and plain["data"]["template"] == "gemma"


def bits(quant: Any, width: int) -> tuple[float, float]:
    model = tiny.decoder(width=width, dtype=torch.bfloat16)
    for group in model.groups():
        group.weight = quant.freeze(group.weight.dense(torch.bfloat16))
    return quant_kinds.bits_per_weight(model)


def test_bits_are_those_of_all_tensors() -> None:
    assert bits(NoQuant(), 64) == (16, 16)
    model = tiny.decoder(width=64, dtype=torch.bfloat16)
    group = next(model.groups())  # 64 inputs: a row is one block, 32 bytes of codes and a scale of 4
    group.weight = NF4().freeze(group.weight.dense(torch.bfloat16))
    of_quantised, of_all = quant_kinds.bits_per_weight(model)
    assert of_quantised == 4.5 and 4.5 < of_all < 16


def test_noise_is_as_large_as_the_kind_s_error_in_each_block() -> None:
    weight, generator = torch.randn(512, 128) * torch.rand(512, 1), torch.Generator().manual_seed(0)
    error = quant_errors.rounded(NF4())(weight, generator) - weight
    noise = quant_errors.noise_of(NF4())(weight, generator) - weight
    assert noise.square().sum() == pytest.approx(error.square().sum().item(), rel=0.02)
    blocks = [part.view(512, 2, 64).square().mean(-1) for part in (error, noise)]
    assert torch.corrcoef(torch.stack([block.flatten() for block in blocks]))[0, 1] > 0.8
    assert abs((noise * error).sum() / error.square().sum()) < 0.05, "but another"


def test_flipping_changes_the_errors_of_nf4_and_not_of_fp4() -> None:
    weight, generator = torch.randn(64, 128), torch.Generator().manual_seed(0)
    for quant, same in ((NF4(), False), (FP4(), True)):
        plain, flipped = quant_errors.rounded(quant)(weight, generator), quant_errors.flipped(quant)(weight, generator)
        assert torch.equal(plain, flipped) is same, "FP4's numbers are symmetric"
        again = quant_errors.randomly_flipped(quant)(weight, generator)
        assert torch.equal(plain, again) is same
        sizes = [(made - weight).norm() for made in (plain, flipped, again)]
        assert max(sizes) < 1.1 * min(sizes)


def test_figures_of_a_tiny_model() -> None:
    model, rows = (
        tiny.decoder(dtype=torch.float32),
        [pack_row([tiny.example(range(1, 22)), tiny.example([3, 1, 4, 1])])],
    )
    found = dict(quant_errors.measured(model, rows))
    assert found["dense"] == {"size": 0, "output": 0, "loss": found["dense"]["loss"], "change": 0}
    assert found["int8"]["size"] < found["nf4"]["size"] < found["fp4"]["size"]
    assert found["int8"]["output"] < found["nf4"]["output"]
    assert found["nf4, all but the largest input's column"]["output"] < found["nf4"]["output"]
    assert found["nf4, q, k, v alone"]["size"] < found["nf4"]["size"]
    assert found["noise of nf4's size, draw 1"]["loss"] != found["noise of nf4's size, draw 2"]["loss"]


@pytest.fixture
def jobs(tiny_model: Path, tmp_path: Path) -> quantised.KindJobs:
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(ROWS))
    return quantised.KindJobs(source, tmp_path, tmp_path, tmp_path / "runs.json", threads=1, limit=300)


def test_a_setting_names_a_kind_for_us_and_a_quantisation_for_trl(
    jobs: quantised.KindJobs, tiny_model: Path, tmp_path: Path
) -> None:
    work = Workload("W1", str(tiny_model), 16, 512, 4)
    (tmp_path / str(tiny_model)).mkdir(parents=True, exist_ok=True)
    ours = jobs.job(peer_jobs.LORIKEET, work, Size(1, 1), {"kind": "nf4 double"})
    assert ours["recipe"]["quant"] == {"kind": "nf4", "double_quant": True}
    assert "kind" not in ours["recipe"]["train"] and ours["setting"] == {"kind": "nf4 double"}
    small = jobs.job(peer_jobs.LORIKEET, work, Size(1, 1), quantised.OURS_SMALL)["recipe"]
    assert small["train"]["row_tokens"] == 1024 and small["train"]["gradient_checkpointing"]
    theirs = jobs.job(quantised.TRL.name, work, Size(1, 1), quantised.TRL_SETTINGS[0])
    assert theirs["setting"]["quant"] == "nf4" and "quant" not in theirs["recipe"]
    assert theirs["rows"] == ours["rows"]


def test_settings_divide_a_step() -> None:
    for setting in quantised.TRL_SETTINGS:
        assert 8 % setting["micro_batch"] == 0 and setting["quant"] == "nf4"
    assert WORKLOADS["W1"].model == "smollm2-135m"


def test_one_kind_is_trained_measured_and_asked(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(ROWS))
    asked = SimpleNamespace(data=source, model=str(tiny_model), threads=1, steps=2, folder=tmp_path)
    recipe = quant_kinds.with_kind(quantised.quality_recipe(asked, tmp_path / "made" / "run"), "nf4")
    recipe["model"] |= {"kernels": "eager", "dtype": "float32"}
    (tmp_path / "made").mkdir()
    job = tmp_path / "made" / "job.json"
    job.write_text(json.dumps({"recipe": recipe, "tokens": 3, "threads": 1}))
    command = [sys.executable, str(peer_jobs.RUNNERS / "kind_run.py"), str(job)]
    found = peer_jobs.run_limited(command, tmp_path / "log.txt", 600, 1)
    assert "error" not in found, found
    assert found["steps"] == 2 and 4 < found["bits"] < 6 and len(found["replies"]) == 4
    assert found["loss_before"] > 0 and found["loss_after"] > 0
    assert 0 < found["training_peak_rss_gib"] <= found["peak_rss_gib"]
