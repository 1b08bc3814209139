"""The way of a user with GPTQ: quantize, train on the result, resume, evaluate, answer; and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.api.answering import trained_system
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models import blockwise
from lorikeet.models.load import load
from lorikeet.quant.gptq import GptqWeight
from lorikeet.quant.none import NoQuant

from .conftest import Place

MODEL = ("model.dtype=float32", "model.threads=1", "data.max_length=128")


def quantise(place: Place, output: str, *words: str, data: str = "tiny.jsonl") -> int:
    return place.run(
        "quantize", place.model, data, "--output", output, "--group-size", "32", "--rows", "12", *words, *MODEL
    ).code


def test_quantize_then_train_resume_and_answer(place: Place) -> None:
    found = place.run(
        "quantize", place.model, "tiny.jsonl", "--output", "gptq", "--group-size", "32", "--rows", "12", *MODEL
    )
    assert found.code == 0, found.err
    assert "q_proj k_proj v_proj" in found.out and "down_proj" in found.out
    values = dict(line.split(maxsplit=1) for line in found.out.splitlines() if line.count("  ") and "proj" not in line)
    assert float(values["error"]) < float(values["nearest_error"])
    config = json.loads((place.folder / "gptq" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == ("gptq", 4, 32)
    report = json.loads((place.folder / "gptq" / "quantize.json").read_text())
    assert len(report["linears"]) == 2 * 4 and not report["kept_dense"]

    recipe = place.recipe(model={"path": "gptq"}, train={"max_steps": 2, "save_steps": 1})
    kept = "2 layers, float32 on cpu, linears in gptq; "
    assert kept in " ".join(place.ok("train", recipe).err.split())
    saved = (place.folder / "run" / "recipe.yaml").read_text()
    assert "kind: gptq" in saved and "group_size: 32" in saved  # said nowhere, and known from the folder
    whole = load_file(place.folder / "run" / "adapter" / "adapter_model.safetensors")
    halfway = place.folder / "run"
    (halfway / "summary.json").unlink()
    for name in ("checkpoint-2", "adapter"):
        shutil.rmtree(halfway / name)
    assert "going on from" in place.run("train", recipe).err
    again = load_file(place.folder / "run" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert place.run("evaluate", "run").code == 0
    (place.folder / "asked.jsonl").write_text('{"messages": [{"role": "user", "content": "Sort 3 1."}]}\n')
    assert place.run("predict", "run", "asked.jsonl", "--output", "replies.jsonl").code == 0
    assert place.run("predict", "gptq", "asked.jsonl", "--output", "plain.jsonl").code == 0
    assert kept in " ".join(place.ok("plan", recipe).out.split())


def test_few_calibration_tokens_are_told(place: Place) -> None:
    words = ("quantize", place.model, "tiny.jsonl", "--group-size", "32", *MODEL)
    said = " ".join(place.run(*words, "--output", "one", "--rows", "1").err.split())
    assert "that is few: a linear has up to 128 inputs" in said and "worse than one that is rounded to the" in said
    assert "that is few" not in place.run(*words, "--output", "more", "--rows", "12").err


@pytest.mark.parametrize("flag", ["--no-static-groups", "--static-groups"])
def test_a_base_beside_its_adapter_says_whether_its_groups_are_in_order(place: Place, flag: str) -> None:
    """vLLM and others leave g_idx unread where desc_act is false."""
    assert quantise(place, "gptq", flag) == 0
    assert place.run("train", place.recipe(model={"path": "gptq"}, train={"max_steps": 1})).code == 0
    found = place.run("merge", "run", "both", "--keep-adapter", "--no-verify")
    assert found.code == 0, found.err
    made, given = (
        json.loads((place.folder / name / "config.json").read_text())["quantization_config"]["desc_act"]
        for name in ("both/base", "gptq")
    )
    assert made == given == (flag == "--no-static-groups")


@pytest.mark.parametrize(
    "flags",
    [
        ("--no-static-groups",),  # groups in the order of rounding: a g_idx that is not sorted
        ("--no-sym", "--no-desc-act", "--bits", "3"),
        ("--bits", "8", "--group-size", "-1", "--no-true-sequential", "--mse", "--max-shard-gib", "0.001"),
        ("--bits", "2", "--group-size", "48"),  # a partial last group
    ],
)
def test_the_folder_is_what_the_network_computed_with(
    place: Place, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = []
    monkeypatch.setattr(blockwise, "solve", lambda *given: solved.append(one := blockwise_solve(*given)) or one)
    assert quantise(place, "out", *flags) == 0
    model = load(open_checkpoint(place.folder / "out"), NoQuant(), dtype=torch.float32, device=torch.device("cpu"))
    groups = list(model.groups())
    assert len(solved) == len(groups) and all(isinstance(group.weight, GptqWeight) for group in groups)
    for group, one in zip(groups, solved):
        assert torch.equal(group.weight.dense(torch.float32), one.dense())
    plain = load(open_checkpoint(place.model), NoQuant(), dtype=torch.float32, device=torch.device("cpu"))
    for (name, ours), (_, theirs) in zip(model.tensors(), plain.tensors()):
        assert name.endswith("_proj.weight") or torch.equal(ours, theirs)
    settings = json.loads((place.folder / "out" / "config.json").read_text())["quantization_config"]
    assert settings["desc_act"] == ("--no-static-groups" in flags)


blockwise_solve = blockwise.solve


BAD: list[tuple[str, list[str], str, list[str]]] = [
    ("no data", [], "quantize: no data to calibrate on", ["mine.json"]),
    ("a file that is not there", ["missing.jsonl"], "missing.jsonl", []),
    ("no output", ["tiny.jsonl", "--output", "-"], "--output", []),
    ("bits the format lacks", ["tiny.jsonl", "--bits", "5"], "--bits", ["5", "2 3 4 8"]),
    ("no group", ["tiny.jsonl", "--group-size", "0"], "--group-size", ["-1"]),
    ("damping beyond all", ["tiny.jsonl", "--damp-percent", "1.5"], "--damp-percent", ["below 1"]),
    ("an option of no section", ["tiny.jsonl", "data.bits=4"], "data.bits", []),
    ("bits as merge has them", ["tiny.jsonl", "quant.bits=8"], "quant.bits: has no effect here", ["--bits 8"]),
    (
        "how it trains",
        ["tiny.jsonl", "train.learning_rate=1"],
        "train.learning_rate: has no effect here",
        ["data.option"],
    ),
    ("a file for a folder", ["tiny.jsonl", "--output", "tiny.jsonl/out"], "tiny.jsonl/out cannot be written to", []),
    ("a folder in the way", ["tiny.jsonl", "--output", "taken"], "taken exists already", []),
    ("a model that is quantised", ["tiny.jsonl"], "is quantised already", ["gptq"]),
]


@pytest.mark.parametrize(("words", "begins", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_refused(
    place: Place, request: pytest.FixtureRequest, words: list[str], begins: str, says: list[str]
) -> None:
    (place.folder / "taken").mkdir()
    (place.folder / "taken" / "file").write_text("mine")
    model = place.model
    if begins == "is quantised already":
        assert quantise(place, "once") == 0
        model = place.folder / "once"
    there = sorted(path.name for path in place.folder.iterdir())
    output = [] if "--output" in words else ["--output", "out"]
    if words[-1:] == ["-"]:
        words, output = words[:-2], []
    found = place.run("quantize", model, *words, *output, "model.dtype=float32", "model.threads=1")
    assert found.code == 2, found.err
    assert begins in found.err and all(word in found.err for word in says), found.err
    assert "calibration" not in found.err and "blocks" not in found.err, "work was announced that is refused"
    assert sorted(path.name for path in place.folder.iterdir()) == there


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FLAGS = [(), ("--no-static-groups", "--bits", "3"), ("--no-sym", "--group-size", "48", "--max-shard-gib", "0.001")]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_an_interrupted_one_goes_on_to_the_same_bytes(
    place: Place, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    assert quantise(place, "whole", *flags) == 0
    calls = []

    def interrupted(*given: object) -> object:
        calls.append(1)
        if len(calls) == 6:  # in the second block
            raise KeyboardInterrupt
        return blockwise_solve(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(blockwise, "solve", interrupted)
    assert quantise(place, "out", *flags) == 3
    left = [path.name for path in place.folder.iterdir() if path.name.startswith(".out")]
    assert len(left) == 1 and not (place.folder / "out").exists()
    assert sorted(path.name for path in Path(left[0]).iterdir()) == ["block-0.safetensors", "first.safetensors"]
    (Path(left[0]) / "block-1.half").write_bytes(b"as a killed process leaves it")
    assert quantise(place, "out", *flags) == 0
    assert len(calls) == 6 + 4, "the first block is not rounded again"
    assert files(place.folder / "out") == files(place.folder / "whole")
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []


def test_what_was_finished_for_other_options_is_not_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "solve", _stopping_at(5))
    assert quantise(place, "out") == 3
    monkeypatch.setattr(blockwise, "solve", blockwise_solve)
    assert quantise(place, "out", "--bits", "8") == 0
    assert quantise(place, "whole", "--bits", "8") == 0
    assert files(place.folder / "out") == files(place.folder / "whole")
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []


def _stopping_at(call: int) -> Callable[..., object]:
    calls = []

    def solve(*given: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return blockwise_solve(*given)  # type: ignore[arg-type]

    return solve


KILLED = """
import os, signal, sys
from lorikeet.cli.main import run_command
from lorikeet.models import blockwise
solve, calls = blockwise.solve, []
def killed(*given):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return solve(*given)
blockwise.solve = killed
sys.exit(run_command(sys.argv[1:]))
"""


def test_after_kill_9_the_same_command_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quantize", str(place.model), "tiny.jsonl", "--group-size", "32", "--rows", "12", *MODEL]
    assert place.run(*words, "--output", "whole").code == 0
    command = [sys.executable, "-c", KILLED, *words, "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.folder)
    assert done.returncode == -9, done.stderr
    assert not (place.folder / "out").exists()
    again = place.run(*words, "--output", "out")
    assert again.code == 0 and "going on with what is finished: 2 parts" in again.err.replace("\n", " ")
    assert files(place.folder / "out") == files(place.folder / "whole")
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".")] == []


def test_an_adapter_goes_with_the_quantisation_it_was_trained_on(place: Place) -> None:
    """Its base is named by the hash of its weights, and a quantised folder has other weights than the dense one."""
    assert quantise(place, "gptq") == 0
    assert place.run("train", place.recipe(model={"path": "gptq"}, train={"max_steps": 1})).code == 0
    dense = place.recipe(output_dir="other")
    found = place.run("evaluate", dense, "--adapter", "run/adapter")
    assert found.code == 2 and "another base model" in found.err and "--allow-other-base" in found.err
    assert place.run("evaluate", dense, "--adapter", "run/adapter", "--allow-other-base").code == 0


def test_an_adapter_of_rounded_weights_is_refused_on_others(place: Place) -> None:
    """The same folder, whose weights were rounded in memory."""
    recipe = place.recipe(quant={"kind": "gptq", "group_size": 32}, train={"max_steps": 1})
    assert place.run("train", recipe).code == 0
    for other in ({"kind": "none"}, {"kind": "gptq", "group_size": 64}):
        found = place.run("evaluate", place.recipe(output_dir="other", quant=other), "--adapter", "run/adapter")
        assert found.code == 2 and "kept in another way" in found.err and "group_size: 32" in found.err
    assert place.run("evaluate", "run").code == 0
    dense = place.recipe(output_dir="other")
    assert place.run("evaluate", dense, "--adapter", "run/adapter", "--allow-other-base").code == 0


def test_a_merged_model_keeps_what_it_is_asked_by(place: Place) -> None:
    """Its template is calibrated with, too, unless another is said."""
    merged = place.copy_model("merged")
    known = {"template": {"kind": "chatml"}, "system": "Be brief."}
    (merged / "lorikeet.json").write_text(json.dumps(known))
    (merged / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.3}')
    words = ("tiny.jsonl", "--group-size", "32", "--rows", "4", *MODEL)
    place.ok("quantize", "merged", "--output", "gptq", *words)
    said = json.loads((place.folder / "gptq" / "lorikeet.json").read_text())
    assert said["template"]["kind"] == "chatml" and said["system"] == "Be brief."
    assert trained_system(place.folder / "gptq") == "Be brief."
    answers = json.loads((place.folder / "gptq" / "generation_config.json").read_text())
    assert answers["temperature"] == 0.3 and answers["eos_token_id"], "its sampling, and its ends"
    place.ok("quantize", "merged", "--output", "other", *words, "data.template.kind=alpaca")
    said = json.loads((place.folder / "other" / "lorikeet.json").read_text())
    assert said["template"]["kind"] == "alpaca" and said["system"] == "Be brief."


def test_a_network_of_one_s_own_that_is_a_decoder(place: Place) -> None:
    """Its family says how to build it, to GPTQ as to training; a merge into gptq is rounded by it, too."""
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    (place.folder / "own.py").write_text(
        "from lorikeet.models.families.llama import Llama\n\n\n"
        "class Own(Llama):\n    kind = 'own'\n    model_type = 'own'\n"
    )
    about = {"path": "model", "family": "own.py", "kernels": "eager"}
    place.recipe(model=about, evaluate={"samples": 0}, train={"max_steps": 1})
    place.ok("quantize", "recipe.yaml", "-o", "small", "--group-size", "32", "--rows", "2")
    assert (place.folder / "small/quantize.json").is_file()
    place.ok("train", "recipe.yaml")
    place.ok("merge", "run", "merged", "--into", "gptq", "quant.group_size=32", "--calibrate", "2", "--no-verify")
