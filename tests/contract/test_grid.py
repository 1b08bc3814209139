"""Each kind of quantisation with each kind of adapter, as the folders list them, on networks of both sources: a run
from end to end.

It trains, is evaluated and answers on the way, resumes, merges, and is asked again; and what happens on the way changes
no number of training (where libraries' layers lose their gradients: tests/parity/test_library_traps.py). What a kind
does not do, its contract says, and then the command has to say it. What each step should come to is in
test_grid_steps.py.

The whole product is slow; without it every kind of either folder comes up once for each source.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters.full import Full
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.nouns import Example
from lorikeet.base.yaml_lines import dump
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.cli.main import run_command
from lorikeet.data.pack import pack_row
from lorikeet.models.load import NetworkSource, load
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant
from lorikeet.train.loop import TrainOptions
from lorikeet.train.optim import Stepper
from lorikeet.train.step import train_step

SOURCES: tuple[NetworkSource, ...] = ("native", "transformers")
QUANTS, ADAPTERS = kinds("lorikeet.quant"), kinds("lorikeet.adapters")
GRID = [(quant, adapter) for quant in QUANTS for adapter in ADAPTERS]
OPTIONS: dict[str, dict[str, Any]] = {"bias": {"norms": True}}  # where defaults are not enough
RATES: dict[str, float] = {"full": 0.002, "head": 0.01, "ia3": 0.3}  # other than 0.02
OFTEN = {"before": True, "samples": 1}
LESSONS = 60
QUESTIONS = ["What is {n} and {m}?", "Name the number after {n}.", "Sort {m} {n}.", "Repeat: blue {n}"]
ROWS = {"train": range(18), "held_out": range(18, 48), "asked": range(18, 20)}
Make = Callable[..., Path]


def conversation(n: int, times: int = 3) -> list[dict[str, str]]:
    """Every other one begins with the same system prompt."""
    system = [{"role": "system", "content": "You are a helpful assistant."}] if n % 2 else []
    asked = {"role": "user", "content": QUESTIONS[n % len(QUESTIONS)].format(n=n, m=n // 3)}
    return [*system, asked, {"role": "assistant", "content": f"The answer is {n * times}."}]


@pytest.fixture(scope="module")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after lessons in what such rows are like: one that has made up its mind, as real ones have. Of a
    random one the likeliest token is luck, and rounding changes it."""
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    model = load(open_checkpoint(tiny_model), NoQuant(), dtype=torch.float32, device=torch.device("cpu"))
    adapter = Full()
    adapter.attach(model, seed=0)
    stepper = Stepper(adapter.parameters(model), TrainOptions())
    examples = []
    for n in range(100, 140):
        turns = (f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in conversation(n, times=2))
        ids = tokenizer.encode("".join(turns)).ids
        examples.append(Example(np.array(ids, np.int32), np.array([0.0, *[1.0] * (len(ids) - 1)], np.float32)))
    for step in range(LESSONS):
        train_step(model, stepper, [pack_row(examples[step % 4 :: 4])], learning_rate=3e-3)
    folder = tmp_path_factory.mktemp("learned")
    hf.save(folder, model.shape.config, merged_tensors(model, adapter, torch.float32))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    return folder


@pytest.fixture
def make(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(name, source, quant, adapter): train in the folder `name`, which is returned."""
    monkeypatch.chdir(tmp_path)
    for name, numbers in ROWS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"messages": conversation(n)}) + "\n" for n in numbers))

    def train(name: str, source: str, quant: str, adapter: str) -> Path:
        recipe = {
            "output_dir": name,
            "model": {"path": str(learned), "source": source, "dtype": "bfloat16", "device": "cpu", "threads": 1},
            "quant": {"kind": quant},
            "adapter": {"kind": adapter, **OPTIONS.get(adapter, {})},
            "data": {"train": ["train.jsonl"], "validation": ["held_out.jsonl"], "max_length": 128},
            "train": {
                "examples_per_step": 6, "max_steps": 4, "row_tokens": 256,
                "learning_rate": RATES.get(adapter, 0.02), "save_steps": 2, "eval_steps": 3,
            },
            "evaluate": OFTEN,
            "generate": {"max_new_tokens": 4, "temperature": 0.0},
        }  # fmt: skip
        Path(f"{name}.yaml").write_text(dump(recipe))
        assert run_command(["train", f"{name}.yaml"]) == (2 if refused(quant, adapter) else 0)
        return Path(name)

    return train


def kind_of(adapter: str) -> type[Adapter]:
    return kind_class("lorikeet.adapters", Adapter, adapter)


def refused(quant: str, adapter: str) -> str | None:
    """Why this kind of adapter does not train over this kind of weights, if it does not."""
    chosen = kind_of(adapter).model_validate(OPTIONS.get(adapter, {}))
    return chosen.quant_refusal(kind_class("lorikeet.quant", Quant, quant).model_validate({}))


def curve(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of each training step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"]


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr, as one line."""
    return " ".join(capsys.readouterr().err.split())


def few() -> set[tuple[str, str, str]]:
    """(source, quant, adapter): every kind once for each source, in pairs that change from one source to the other."""
    found = set()
    for turn, source in enumerate(SOURCES):
        used: Counter[str] = Counter()
        for adapter in ADAPTERS:
            quants = [quant for quant in QUANTS[turn:] + QUANTS[:turn] if not refused(quant, adapter)]
            quant = min(quants, key=used.__getitem__)
            used[quant] += 1
            found.add((source, quant, adapter))
        found |= {(source, quant, "lora") for quant in set(QUANTS) - used.keys()}
    return found


FEW = few()
CELLS = [
    pytest.param(source, quant, adapter, marks=() if (source, quant, adapter) in FEW else pytest.mark.slow)
    for source in SOURCES
    for quant, adapter in GRID
]


@pytest.mark.parametrize("source", SOURCES)
def test_without_the_slow_ones_every_kind_comes_up(source: str) -> None:
    mine = [cell for cell in FEW if cell[0] == source]
    assert {quant for _, quant, _ in mine} == set(QUANTS)
    assert {adapter for *_, adapter in mine} == set(ADAPTERS)
    assert len(mine) <= max(len(QUANTS), len(ADAPTERS)) + 1


@pytest.mark.parametrize("source, quant, adapter", CELLS)
def test_a_run_from_end_to_end(
    make: Make, quant: str, adapter: str, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "transformers":
        pytest.importorskip("transformers")
    if why := refused(quant, adapter):
        assert not make("refused", source, quant, adapter).exists()
        assert why in said(capsys)
        assert run_command(["plan", "refused.yaml"]) == 2
        return
    watched = make("watched", source, quant, adapter)
    summary = json.loads((watched / "summary.json").read_text())
    assert summary["eval_loss"] < summary["eval_loss_before"]
    if adapter == "lora" or quant == "none":  # the rest of the product is no news to it, and it takes its time
        assert run_command(["plan", "watched.yaml"]) == 0
    goes_on_to_the_same(watched, quant, capsys)

    assert run_command(["predict", "watched", "asked.jsonl", "--output", "replies.jsonl"]) == 0
    assert len(Path("replies.jsonl").read_text().splitlines()) == len(ROWS["asked"])
    if why := kind_of(adapter).merge_refusal:
        capsys.readouterr()
        assert run_command(["merge", "watched", "merged"]) == 2
        assert why in said(capsys) and not Path("merged").exists()
        return
    assert run_command(["merge", "watched", "merged"]) == 0, Path("merged/certificate.json").read_text()
    merged = open_checkpoint(Path("merged"))
    assert all(merged.stored(name).startswith("BF") for name in merged.names())
    assert run_command(["predict", "merged", "asked.jsonl", "--output", "merged.jsonl"]) == 0
    assert len(Path("merged.jsonl").read_text().splitlines()) == len(ROWS["asked"])


def goes_on_to_the_same(watched: Path, quant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From its second step, without an evaluation or an answer on the way; and not with weights kept another way."""
    shutil.copytree(watched, "again")
    for done in ("checkpoint-4", "adapter"):
        shutil.rmtree(Path("again") / done)
    (Path("again") / "summary.json").unlink()
    assert (Path("again") / "checkpoint-2").is_dir()
    quietly = ["train", "watched.yaml", "output_dir=again", "train.eval_steps=null", "evaluate.samples=0"]
    if quant != "none":
        capsys.readouterr()
        assert run_command([*quietly, "quant.kind=none"]) == 2
        assert "so the run cannot go on" in said(capsys)  # because of this word: without it, it does
    assert run_command(quietly) == 0
    assert curve(Path("again")) == curve(watched) and weights(Path("again")) == weights(watched)
