"""docs/adding.md has a whole file for each plug-in folder; here each is put there, and does what it is for."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import lorikeet.data.clean  # noqa: F401  (it lists its folder as it is imported, which is to be before one is put there)
from lorikeet import config
from lorikeet.base.kinds import kinds
from lorikeet.base.yaml_lines import dump
from lorikeet.checkpoints import download
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.cli.main import run_command
from lorikeet.models.load import identify, load
from lorikeet.quant.none import NoQuant
from lorikeet.tokens.open import open_tokenizer

from .source import PACKAGE

PAGE = (Path(__file__).parents[2] / "docs" / "adding.md").read_text(encoding="utf-8")
EXAMPLES = {
    Path(path): text
    for path, text in re.findall(r"^### `lorikeet/(.+?\.py)`\n\n```python\n(.*?)^```", PAGE, re.M | re.S)
}
FOLDERS = {file.parent.relative_to(PACKAGE) for file in PACKAGE.rglob("_contract.py")}


def test_every_plug_in_folder_has_its_example() -> None:
    assert {path.parent for path in EXAMPLES} == FOLDERS
    listed = re.findall(r"^\| \[(.+?)\]\(\.\./lorikeet/(.+?)/_contract\.py\) \|", PAGE, re.M)
    assert {Path(folder) for _, folder in listed} == FOLDERS and all(shown == folder for shown, folder in listed)


def example(folder: str) -> tuple[str, str]:
    """(the file's name, its text) of a folder's example."""
    return next((path.name, text) for path, text in EXAMPLES.items() if path.parent == Path(folder))


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """put(folder): the folder's example is one of its kinds, whose name is returned."""
    made = []

    def add(folder: str) -> str:
        name, text = example(folder)
        here = tmp_path / "kinds" / folder
        here.mkdir(parents=True)
        (here / name).write_text(text, encoding="utf-8")
        package = importlib.import_module("lorikeet." + folder.replace("/", "."))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(here)])
        made.append(f"{package.__name__}.{name.removesuffix('.py')}")
        assert name.removesuffix(".py") in kinds(package.__name__)
        return name.removesuffix(".py")

    yield add
    for name in made:
        sys.modules.pop(name, None)


def quiz(count: int = 24) -> str:
    return "".join(
        json.dumps({"question": f"What follows {n}?", "choices": [str(n + 2), str(n + 1)], "answer": 1}) + "\n"
        for n in range(count)
    )


def test_what_a_recipe_names(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven kinds of someone's own in one run: it trains, goes on, answers and merges."""
    monkeypatch.chdir(tmp_path)
    sections = ("adapters", "quant", "train/optimizers", "train/schedules", "data/formats", "data/templates",
                "train/trackers")  # fmt: skip
    for section in sections:
        name, text = example(section)
        Path(name).write_text(text, encoding="utf-8")
    Path("rows.jsonl").write_text(quiz())
    adapter, quant, optim, schedule, format_, template, tracker = ({"kind": f"./{example(one)[0]}"} for one in sections)
    recipe = {
        "output_dir": "run",
        "model": {"path": str(tiny_model), "dtype": "float32", "device": "cpu", "threads": 1},
        "quant": quant, "adapter": adapter,
        "data": {"train": ["rows.jsonl"], "validation": 4, "format": format_, "template": template, "max_length": 128},
        "train": {"examples_per_step": 4, "max_steps": 6, "learning_rate": 0.02, "save_steps": 3, "row_tokens": 256,
                  "optim": optim, "lr_scheduler_type": {**schedule, "times": 2},
                  "report_to": [{**tracker, "file": "lines.txt"}]},
        "evaluate": {"samples": 1}, "generate": {"max_new_tokens": 4},
    }  # fmt: skip
    Path("recipe.yaml").write_text(dump(recipe))
    assert run_command(["train", "recipe.yaml"]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["learning_rate"] for line in steps] == pytest.approx([0.02, 0.02, 0.01, 0.01, 0.005, 0.005])
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert losses_told() == [f"{line['step']} train/loss {line['loss']}" for line in steps]
    shutil.copytree("run", "again")
    shutil.rmtree("again/checkpoint-6")
    Path("again/summary.json").unlink()
    assert run_command(["train", "recipe.yaml", "output_dir=again"]) == 0
    assert load_file("again/adapter/adapter_model.safetensors").keys() == {
        name for name in open_checkpoint(tiny_model).names() if "norm" in name
    }
    ours, theirs = (Path(run, "adapter/adapter_model.safetensors").read_bytes() for run in ("run", "again"))
    assert ours == theirs
    assert losses_told() == [f"{line['step']} train/loss {line['loss']}" for line in steps], "nothing twice"
    Path("asked.jsonl").write_text('{"messages": [{"role": "user", "content": "What follows 30?"}]}\n')
    assert run_command(["predict", "run", "asked.jsonl", "--output", "replies.jsonl"]) == 0
    assert run_command(["merge", "run", "merged", "--base", "full"]) in (
        0,
        1,
    )  # 8 bits fewer: what it costs is measured
    assert open_checkpoint(Path("merged")).names() == open_checkpoint(tiny_model).names()


def losses_told() -> list[str]:
    return [line for line in Path("lines.txt").read_text().splitlines() if " train/loss " in line]


def test_a_step_and_a_check(put: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = [("What is 1?", "One."), ("TELL ME NOW", "No."), ("And 2?", "Do you mean the number?")]
    rows = [{"instruction": asked, "output": reply} for asked, reply in said]
    Path("rows.json").write_text(json.dumps(rows))
    assert run_command(["data", "clean", "rows.json", "-o", "clean.json", "--steps", put("data/steps")]) == 0
    assert [row["instruction"] for row in json.loads(Path("clean.json").read_text())] == [said[0][0], said[2][0]]
    rejected = [json.loads(line) for line in Path("clean.rejected.jsonl").read_text().splitlines()]
    assert [(one["step"], one["reason"], one["row"]) for one in rejected] == [("calm", "shouted", 1)]
    name, text = example("data/checks")
    Path(name).write_text(text, encoding="utf-8")
    assert run_command(["data", "check", "rows.json", "--only", name]) == 0


def test_a_check_finds(put: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = put("data/checks")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "And 2?", "output": reply} for reply in ("Two.", "Which one?")]))
    assert run_command(["data", "check", str(rows), "--only", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["checks"][name]
    assert len(found["findings"]) == 1 and found["findings"][0]["row"] == 1


def test_a_family(put: Callable[[str], str], tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "acorn")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "acorn", "n_layers": settings.pop("num_hidden_layers")}
    (folder / "config.json").write_text(json.dumps(settings))
    name = put("models/families")
    family, spec = identify(open_checkpoint(folder))
    assert family.kind == name and spec.shape.layers == 2
    assert len(list(cpu(folder).linears())) == 14


def cpu(path: Path) -> Any:
    import torch

    return load(open_checkpoint(path), NoQuant(), dtype=torch.float32, device=torch.device("cpu"))


def test_a_gguf_layout(put: Callable[[str], str], tiny_model: Path, tmp_path: Path) -> None:
    """A file with the tensors that the gguf package knows for the network, and their values."""
    transformers = pytest.importorskip("transformers")
    name, folder = put("models/gguf_layouts"), shutil.copytree(tiny_model, tmp_path / "acorn")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "sliding_window": None}
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    config = transformers.Starcoder2Config(vocab_size=vocabulary, bos_token_id=None, eos_token_id=2, **sizes)
    network = transformers.Starcoder2ForCausalLM(config)
    network.save_pretrained(folder)
    assert run_command(["export", "gguf", str(folder), "-o", str(tmp_path / "acorn.gguf"), "--type", "f32"]) == 0
    written = gguf.GGUFReader(tmp_path / "acorn.gguf")
    assert written.fields["general.architecture"].contents() == name
    assert written.fields[f"{name}.attention.head_count_kv"].contents() == 2
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.STARCODER2, 2)
    expected = {known.get_name(key, (".weight", ".bias")): value for key, value in network.state_dict().items()}
    found = {one.name: one.data for one in written.tensors}
    assert found.keys() == expected.keys() - {"output.weight"}  # tied
    assert all(np.array_equal(values, expected[one].numpy()) for one, values in found.items())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"sliding_window": 64}))
    assert run_command(["export", "gguf", str(folder), "-o", str(tmp_path / "other.gguf")]) == 2


def test_a_guide(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of noise answers with a list."""
    pytest.importorskip("llguidance")
    monkeypatch.chdir(tmp_path)
    name, text = example("infer/guides")
    Path(name).write_text(text, encoding="utf-8")
    Path("asked.jsonl").write_text('{"messages": [{"role": "user", "content": "What is an acorn?"}]}\n')
    guide = json.dumps({"kind": f"./{name}", "count": 2, "letters": 8})
    asked = ["predict", str(tiny_model), "asked.jsonl", "--output", "replies.jsonl", f"generate.guide={guide}"]
    assert run_command(asked) == 0
    (reply,) = [json.loads(line)["reply"] for line in Path("replies.jsonl").read_text().splitlines()]
    points = reply.split("\n")
    assert len(points) == 2 and all(point.startswith("- ") and len(point) in range(3, 11) for point in points)


def test_an_engine(
    put: Callable[[str], str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", str(tiny_model), "--engine", put("serve/engines"), "--port", "9", "--rows", "3", "--print"]
    assert run_command(command) == 0
    line = shlex.split(capsys.readouterr().out)
    said = dict(zip(line[3::2], line[4::2]))
    assert line[:3] == [sys.executable, "-m", "sglang.launch_server"] and said["--model-path"] == str(tiny_model)
    assert (said["--port"], said["--max-running-requests"], said["--context-length"]) == ("9", "3", "512")
    assert "<|im_start|>" in Path(said["--chat-template"]).read_text()
    (tmp_path / "key").write_text("long-secret\n")
    assert run_command([*command, "--api-key-file", str(tmp_path / "key")]) == 2
    assert "takes a key on its command line only" in capsys.readouterr().err


def test_a_checkpoint_a_source_and_a_tokenizer(
    put: Callable[[str], str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model as NumPy wrote it, on a share, with a tokenizer of letters: it is fetched, and trains."""
    for folder in ("checkpoints", "checkpoints/sources", "tokens"):
        put(folder)
    there = tmp_path / "share" / "acorn"
    there.mkdir(parents=True)
    shutil.copy(tiny_model / "config.json", there / "settings.json")
    np.savez(there / "weights.npz", **load_file(tiny_model / "model.safetensors"))
    (there / "letters.txt").write_text("abcdefghijklmnopqrstuvwxyz AQW0123456789:.\n<end>\n")
    here = download.resolve(f"share:{there}")
    assert here != there and download.locate(f"share:{there}") == here
    assert dict(cpu(here).tensors()).keys() == dict(cpu(tiny_model).tensors()).keys()
    tokenizer = open_tokenizer(here, open_checkpoint(here))
    ids, _ = tokenizer.encode("What follows 7?")
    assert len(ids) == 15 and tokenizer.decode(ids) == "What follows 7?" and tokenizer.eos_token == "<end>"
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(quiz())
    Path("quiz.py").write_text(example("data/formats")[1], encoding="utf-8")
    Path("exam.py").write_text(example("data/templates")[1], encoding="utf-8")
    recipe = {
        "output_dir": "run",
        "model": {"path": f"share:{there}", "dtype": "float32", "device": "cpu", "threads": 1},
        "data": {"train": ["rows.jsonl"], "format": {"kind": "./quiz.py"}, "template": {"kind": "./exam.py"}},
        "train": {"examples_per_step": 4, "max_steps": 2},
    }
    Path("recipe.yaml").write_text(dump(recipe))
    assert run_command(["train", "recipe.yaml"]) == 0


def test_a_source_system(put: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put("migrate")
    Path("tuner.yaml").write_text(
        "tuner_model: acorn\nrows: [a.jsonl]\nrate: 1.0e-4\nfolder: out\ndashboard: true\nx: 1\n"
    )
    assert run_command(["import", "tuner.yaml", "-o", "recipe.yaml"]) == 0
    recipe = config.load(Path("recipe.yaml"))
    assert (recipe.model.path, recipe.data.train, recipe.train.learning_rate) == ("acorn", ["a.jsonl"], 1e-4)
    text = Path("recipe.yaml").read_text()
    assert "report.html has the curves" in text and "not a key this importer knows" in text
