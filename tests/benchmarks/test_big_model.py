"""The large model's writer and what is made of its figures, on a model that is not large."""

from __future__ import annotations

import json
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import big_model
import big_model_run
import pytest
import torch
import watched
import workloads

from lorikeet.base.errors import CheckFailed, OutputError, RecipeError
from lorikeet.base.heap import give_back
from lorikeet.checkpoints.open import open_checkpoint

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 512}
GIB = 1 << 30


def tiny(layers: int = 2) -> dict[str, Any]:
    return big_model.settings("7b", layers, **TINY)


def test_the_shapes_are_llama_2s() -> None:
    shapes = {name: workloads.llama_shapes(big_model.settings(name)) for name in big_model.SHAPES}
    count = {name: sum(torch.Size(shape).numel() for shape in of.values()) for name, of in shapes.items()}
    assert count == {"7b": 6_738_415_616, "13b": 13_015_864_320}


def test_what_is_written_is_a_model_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = big_model.write(tmp_path / "a", tiny(), shard_bytes=100_000)
    found = open_checkpoint(tmp_path / "a")
    shapes = workloads.llama_shapes(tiny())
    assert found.names() and {name: found.shape(name) for name in found.names()} == shapes
    assert total == sum(found.read(name).nbytes for name in shapes)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == len(big_model.shards(shapes, 100_000)) > 2
    assert found.read("model.norm.weight").eq(1).all()
    gate, down = (found.read(f"model.layers.1.mlp.{name}_proj.weight").float().std() for name in ("gate", "down"))
    assert gate == pytest.approx(0.02, rel=0.1) and down == pytest.approx(0.01, rel=0.1)


def test_a_seed_decides_the_weights_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed, shard in (("a", 1, 100_000), ("b", 1, 10**9), ("c", 2, 10**9)):
        big_model.write(tmp_path / name, tiny(1), seed=seed, shard_bytes=shard)
    one, same, other = (open_checkpoint(tmp_path / name).fingerprint() for name in "abc")
    assert one == same != other


def test_nothing_is_written_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        big_model.write(tmp_path / "there", tiny())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 13 * 10**9))
    with pytest.raises(OutputError, match=r"not enough disk space for 13\.5 GB of weights"):
        big_model.write(tmp_path / "new", big_model.settings("7b"))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(big_model, "_write_shard", full)
    with pytest.raises(OSError, match="No space"):
        big_model.write(tmp_path / "new", tiny())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("row_tokens", "message"), [(0, "does not divide"), (1000, "does not divide")])
def test_rows_that_do_not_make_a_step_are_refused(
    row_tokens: int, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        big_model_run.run(tiny_model, tmp_path, row_tokens=row_tokens, quant={}, threads=None, parts=["plan"])


def test_other_bad_requests(tiny_model: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"row_tokens": 2048, "quant": {}, "threads": None, "parts": ["train"]}
    with pytest.raises(RecipeError, match="no model here"):
        big_model_run.run(tmp_path / "none", tmp_path, **asked)
    (tmp_path / "run").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        big_model_run.run(tiny_model, tmp_path, **asked)
    with pytest.raises(RecipeError, match="--quant: not JSON"):
        big_model_run.quant_of("{kind")
    assert big_model_run.quant_of('{"kind": "int8"}') == big_model_run.quant_of("int8")
    with pytest.raises(CheckFailed, match="`train` ended with exit code 1"):
        big_model_run._check("train", 1, 3)


def test_time_inside_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Work:
        def outer(self) -> None:
            clock[0] += 1
            self.inner()
            clock[0] += 2

        def inner(self) -> None:
            clock[0] += 10

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    watch = watched.Watch("before")
    watch.time(Work, "outer", "matmul")
    watch.time(Work, "inner", "dequantise")
    Work().outer()
    Work().inner()
    watch.end()
    assert watch.parts[0].split == {"dequantise": 20.0, "matmul": 3.0}
    assert watch.parts[0].seconds == 23.0


def test_the_peak_of_a_part_is_its_own() -> None:
    watch = watched.Watch("large")
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    give_back()
    watch.next("small")
    watch.end()
    large, small = watch.parts
    assert large.peak_bytes >= large.bytes_before + (60 << 20)
    assert small.peak_bytes < large.peak_bytes - (30 << 20)


def test_lines_say_what_was_planned() -> None:
    part = {"name": "step", "seconds": 3.0, "peak_bytes": 5 * GIB, "bytes_after": 4 * GIB, "split": {"matmul": 2.0}}
    found = {
        "plan": {"process_bytes": int(4.5 * GIB), "bytes": {"weights": GIB}},
        "train": {"parts": [part], "metrics": [{"kind": "train", "loss": 11.5}]},
    }
    said = "\n".join(line for name in found for line in big_model_run.lines(name, found))
    assert "peak 5.00 GiB; planned 4.50 (-10.0%)" in said and "matmul 2.0" in said and "losses: 11.5" in said


@pytest.mark.slow
def test_the_whole_run(tmp_path: Path) -> None:
    big_model.write(tmp_path / "tiny", tiny())
    found = big_model_run.run(
        tmp_path / "tiny", tmp_path / "work", row_tokens=512, quant=big_model_run.NF4, threads=1,
        parts=big_model_run.PARTS,
    )  # fmt: skip
    assert found["train"]["code"] == 3 and found["resume"]["code"] == 0
    steps = [[row["step"] for row in found[part]["metrics"] if row["kind"] == "train"] for part in ("train", "resume")]
    assert steps == [[1], [1, 2]]
    step = next(part for part in found["train"]["parts"] if part["name"] == "step")
    assert step["split"]["dequantise"] > 0 and sum(step["split"].values()) < step["seconds"]
    assert json.dumps(found["predict"]["reply"])
