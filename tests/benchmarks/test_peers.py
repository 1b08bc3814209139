"""The comparison's own parts, which need no other trainer: jobs, what is remembered, the sweep, the table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import counted_flops
import numpy as np
import peer_figures
import peer_jobs
import peers
import pytest
from peer_jobs import Jobs, Size
from workloads import WORKLOADS, Workload

from lorikeet.base.nouns import Example

SIZES = peer_figures.Sizes(layers=2, width=4, heads=2, head_dim=3, vocab_size=10, frozen=100, trained=7)


def run(tool: str, seconds: float, **more: Any) -> dict[str, Any]:
    setting = {"micro_batch": 2, "grouped": True, "checkpointing": False, "adapters": "float32"}
    return {
        "tool": tool, "setting": setting, "seconds": seconds, "tokens": 100, "shapes": [[2, 60], [1, 30]],
        "peak_rss_gib": 2.0, "losses": [2.5, 1.5], "versions": {}, "warmup_seconds": 1.0,
    } | more  # fmt: skip


class FakeJobs(Jobs):
    """Runs that take as long as `cost` says; counts how often something really ran."""

    def __init__(self, tmp_path: Path, cost: Any):
        super().__init__(tmp_path / "none.json", tmp_path, tmp_path, tmp_path / "runs.json", threads=1, limit=1)
        self.cost, self.measured = cost, 0

    def rows(self, work: Workload, count: int) -> list[Example]:
        return [Example(np.arange(10, dtype=np.int32), np.ones(10, np.float32)) for _ in range(count)]

    def job(self, tool: str, work: Workload, size: Size, setting: dict[str, Any]) -> dict[str, Any]:
        return {"setting": setting}

    def _measure(self, tool: str, job: dict[str, Any]) -> dict[str, Any]:
        self.measured += 1
        seconds = self.cost(job["setting"])
        return {"error": "out of memory"} if seconds is None else run(tool, seconds)


def test_operations_of_rows_alone_and_padded() -> None:
    # tokens 3: linears (400 + 42) * 3, head 4*10*4 for 2 predictions, pairs 6 of 12 * 2 layers * 2 heads * 3
    assert SIZES.alone([(3, 2)]) == 442 * 3 + 160 * 2 + 12 * 2 * 6 * 6
    assert SIZES.padded([[2, 3]]) == 2 * SIZES.alone([(3, 3)])


def test_a_line_has_medians_ratios_and_utilisation() -> None:
    ours = [run("lorikeet", seconds) for seconds in (10, 12, 50)]
    theirs = [run("trl", seconds) for seconds in (30, 36, 100)] + [{"tool": "trl", "error": "killed"}]
    found = peer_figures.line("trl", theirs, ours, SIZES, alone=7200.0, peak=1000.0)
    assert (found["seconds"], found["ratio"], found["tokens_per_second"]) == (36, 3.0, 100 / 36)
    assert found["utilisation_alone"] == pytest.approx(0.2)
    assert found["utilisation_computed"] == pytest.approx(SIZES.padded([[2, 60], [1, 30]]) / 36 / 1000)
    assert found["padding"] == 1.5


def test_the_table_shows_what_failed() -> None:
    good = peer_figures.line("lorikeet", [run("lorikeet", 10)], [run("lorikeet", 10)], SIZES, 1.0, 1.0)
    bad = peer_figures.line("litgpt", [{"tool": "litgpt", "error": "exit code 1: a | b"}], [], SIZES, 1.0, 1.0)
    rows = peer_figures.table([good, bad]).splitlines()
    assert len({row.count("|") for row in rows}) == 1, "every row has every cell"
    assert "micro-batch 2, grouped by length, adapters float32" in rows[2] and "| 1.00 |" in rows[2]
    assert "failed: exit code 1: a / b" in rows[3]


def test_a_sweep_finds_the_fastest_and_goes_on_where_it_was(tmp_path: Path) -> None:
    def cost(setting: dict[str, Any]) -> float | None:
        if setting["micro_batch"] == 8:
            return None
        return 10 / setting["micro_batch"] + (0 if setting["checkpointing"] else 1) + (5 if "packing" in setting else 0)

    jobs = FakeJobs(tmp_path, cost)
    found = peers.sweep(jobs, "trl", WORKLOADS["W1"])
    assert [one["setting"]["micro_batch"] for one in found] == [4, 4]
    assert found[0]["setting"]["checkpointing"] is True
    measured = jobs.measured
    assert measured == 5 + 3 + 2, "candidates, the best one's neighbours, the two best again"
    again = FakeJobs(tmp_path, lambda setting: pytest.fail("remembered"))
    assert peers.sweep(again, "trl", WORKLOADS["W1"])[0]["setting"] == found[0]["setting"]
    again.forget_failures()
    assert len(again.done()) == measured - 1


def test_a_trainer_that_cannot_run_is_an_empty_sweep(tmp_path: Path) -> None:
    jobs = FakeJobs(tmp_path, lambda setting: None)
    assert peers.sweep(jobs, "litgpt", WORKLOADS["W1"]) == []


def test_no_run_is_longer_than_64_rows_or_4_steps() -> None:
    for name, size in [*peer_jobs.FULL.items(), *peer_jobs.SHORT.items()]:
        assert size.rows(WORKLOADS[name]) <= 64 and size.warmup_steps + size.steps <= 4
        assert size.warmup_steps >= 1
    for peer in peer_jobs.PEERS:
        for name, size in peer_jobs.SHORT.items():
            per_step = size.rows_per_step or WORKLOADS[name].examples_per_step
            for setting in peer_jobs.candidates(peer, name):
                assert per_step % setting["micro_batch"] == 0, "a step is whole micro-batches"


def test_keys_differ_with_everything_that_decides_a_run() -> None:
    work, size = WORKLOADS["W1"], Size(1, 2, 8)
    keys = [
        peer_jobs.key_of(*one)
        for one in (
            ("trl", work, size, {"a": 1}, 2, ""),
            ("trl", work, size, {"a": 2}, 2, ""),
            ("trl", work, Size(1, 3, 8), {"a": 1}, 2, ""),
            ("trl", work, size, {"a": 1}, 1, ""),
            ("trl", work, size, {"a": 1}, 2, "round 1"),
            ("litgpt", work, size, {"a": 1}, 2, ""),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_spans_are_the_trained_stretches() -> None:
    assert peer_jobs.spans(np.array([0, 1, 1, 0, 0, 1], np.float32)) == [[1, 3], [5, 6]]
    assert peer_jobs.spans(np.zeros(3, np.float32)) == []


@pytest.mark.parametrize(
    ("script", "limit", "expected"),
    [
        ("print('noise'); print('RESULT {\"seconds\": 2}')", 300, {"seconds": 2}),
        ("print('one'); raise SystemExit(3)", 300, {"error": "exit code 3: one"}),
        ("import time; time.sleep(600)", 1, {"error": "longer than 1 s"}),
    ],
)
def test_a_process_ends_in_a_result_or_an_error(
    tmp_path: Path, script: str, limit: int, expected: dict[str, Any]
) -> None:
    assert peer_jobs.run_limited([sys.executable, "-c", script], tmp_path / "log.txt", limit, 1) == expected


def test_a_missing_environment_is_a_row_that_says_how_to_make_it(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "none.json", tmp_path, tmp_path / "venvs", tmp_path / "runs.json", threads=1, limit=1)
    found = jobs._measure("trl", {"workload": "W1"})
    assert "peers.py install trl" in found["error"]


def test_padded_shapes_stay_within_a_step() -> None:
    assert counted_flops.padded_shapes([3, 9, 4, 2, 8], 3, 2) == Counter({(2, 9): 1, (1, 4): 1, (2, 8): 1})


def test_the_job_holds_the_rows_in_the_order_of_training(tiny_model: Path, rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / "W.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work = Workload("W", str(tiny_model), len(rows), 512, 4)
    jobs = Jobs(tmp_path / "none.json", tmp_path, tmp_path, tmp_path / "runs.json", threads=1, limit=60)
    job = jobs.job(peer_jobs.LORIKEET, work, Size(1, 1), {"row_tokens": 256, "kernels": "eager"})
    assert len(job["rows"]) == 8 and all(row["trained"] for row in job["rows"])
    assert job["recipe"]["train"]["row_tokens"] == 256 and job["recipe"]["model"]["kernels"] == "eager"
    found = jobs._measure(peer_jobs.LORIKEET, job)
    assert len(found["losses"]) == 2 and found["seconds"] > 0, found
    assert sum(length for _, length in found["shapes"]) <= sum(len(row["tokens"]) for row in job["rows"][4:])


def test_a_comparison_takes_turns_and_keeps_who_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = FakeJobs(tmp_path, lambda setting: None if setting.get("adapters") == "bfloat16" else 8 if setting else 2)
    monkeypatch.setattr(FakeJobs, "sizes", lambda self, work: SIZES)
    monkeypatch.setattr(peers, "peak", lambda: 1e3)
    ours = {"lorikeet": {}, "lorikeet, no compiler": {"kernels": "eager"}}
    found = peers.compare(jobs, ["trl", "litgpt"], WORKLOADS["W1"], ours, 2, "")
    assert [one["tool"] for one in found["lines"]] == ["lorikeet", "lorikeet, no compiler", "trl", "litgpt"]
    assert [one.get("ratio") for one in found["lines"]] == [1, 4, 4, None], "litgpt has no setting that runs"
    assert all(len(one) == 2 for one in found["runs"].values())
    order = [run["tool"] for run in jobs.done().values() if "round" in run["round"]]
    assert order == ["lorikeet", "lorikeet", "trl"] * 2, "in turns"
    measured = jobs.measured
    peers.compare(jobs, ["trl", "litgpt"], WORKLOADS["W1"], ours, 2, "")
    assert jobs.measured == measured
