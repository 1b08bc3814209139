"""Memory that really ends, in processes of their own: the step is computed in smaller rows, or says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base.memory_errors import memory_ended

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process told whose memory ended four times."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "train.memory_child", str(tmp_path_factory.mktemp("child"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=TESTS, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"said": done.stderr}


@LINUX
@pytest.mark.parametrize(
    ("way", "by"), [("address space", ""), ("limit", "limits.memory"), ("container", "the container's memory limit")]
)
def test_a_step_whose_memory_ends_is_computed_in_smaller_rows(way: str, by: str, ended: dict[str, Any]) -> None:
    found, whole = ended[way], ended["whole"]
    assert found["splits"][0] == "0" and not whole["splits"]
    assert whole["grown"] > 1.4 * ended["room"], "the whole row needs more than there was room for"
    assert 0 < found["difference"] <= 1e-5
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert found["by"] == by
    if way != "address space":  # which counts other things than pages in memory
        assert found["grown"] <= ended["room"] + (4 << 20)
    assert found["refused_now"] == -1, "outside of a step nothing is refused"
    assert "step 1: memory ended in a row of 3,0" in ended["said"]
    split = [name for case in ("limit", "container", "address space") for name in ended[case]["splits"]]
    assert [row["row"] for row in ended["rows"]] == split and ended["rows"][0]["tokens"] > 3000


@LINUX
def test_one_conversation_that_does_not_fit_is_told_what_to_do_and_everything_is_saved(ended: dict[str, Any]) -> None:
    assert ended["saved"] == ["saved"]
    for fact in ("row of 12,000 tokens", "gradient_checkpointing", "max_length", "can't allocate memory"):
        assert fact in ended["error"]


@LINUX
def test_evaluation_whose_memory_ends_measures_the_same_in_smaller_rows(ended: dict[str, Any]) -> None:
    split, whole = ended["evaluations"]
    assert "tokens: it is measured in two" in ended["said"]
    assert split == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_so_are_told_from_others(error: Exception, is_one: bool) -> None:
    assert (memory_ended(error) is not None) == is_one
