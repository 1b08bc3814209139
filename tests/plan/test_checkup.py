"""Each piece of the doctor's advice comes when, and only when, its reason is there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lorikeet.plan import checkup

GIB = checkup.GIB
WELL: dict[str, Any] = {
    "machine": {"cores": 8, "usable_cores": 8, "busy_elsewhere": 0.01},
    "memory": {"available_bytes": 12 * GIB, "swap_used_bytes": 0},
    "matmul": {"device": "cpu", "flops": {"float32": 1e11, "bfloat16": 1e12, "float16": 1e10}},
    "disk": {
        "cache": {"folder": "/cache", "free_bytes": 50 * GIB, "writable": True},
        "output": {"folder": "runs", "free_bytes": 50 * GIB, "writable": True},
    },
    "threads": dict.fromkeys(checkup.OMP),
}


def test_a_machine_that_is_well_gets_no_advice() -> None:
    assert checkup.advice(WELL) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("disk", "cache", "free_bytes"), GIB, "XDG_CACHE_HOME"),
        (("disk", "output", "free_bytes"), GIB, "output_dir"),
        (("disk", "output", "writable"), False, "cannot be written to"),
        (("memory", "available_bytes"), GIB, "gradient_checkpointing"),
        (("memory", "swap_used_bytes"), GIB, "swapped out"),
        (("machine", "busy_elsewhere"), 0.5, "other processes take 50%"),
        (("machine", "usable_cores"), 2, "model.threads=2"),
        (("threads", "OMP_WAIT_POLICY"), "active", "spin"),
        (("threads", "GOMP_SPINCOUNT"), "100000", "spin"),
        (("matmul", "flops", "bfloat16"), 1e10, "model.dtype"),
    ],
)
def test_advice(key: tuple[str, ...], value: Any, said: str) -> None:
    found = copy.deepcopy(WELL)
    node = found
    for part in key[:-1]:
        node = node[part]
    node[key[-1]] = value
    (told,) = checkup.advice(found)
    assert said in told


@pytest.mark.parametrize(
    ("key", "value"),
    [(("machine", "busy_elsewhere"), None), (("threads", "KMP_BLOCKTIME"), "0"), (("matmul", "device"), "cuda")],
)
def test_no_advice_where_nothing_is_wrong(key: tuple[str, str], value: Any) -> None:
    found = copy.deepcopy(WELL)
    found[key[0]][key[1]] = value
    assert checkup.advice(found) == []


def test_examine_finds_everything_that_advice_reads(tmp_path: Path) -> None:
    found = checkup.examine(tmp_path / "runs", seconds=0.03)
    assert isinstance(checkup.advice(found), list)
    assert found["matmul"]["flops"]["float32"] > 1e6
    assert found["disk"]["output"]["on"] == str(tmp_path)
    assert {extra["name"] for extra in found["extras"]} >= {"parquet", "hf"}
