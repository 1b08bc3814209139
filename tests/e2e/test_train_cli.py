"""The way of a user: train, evaluate, predict, merge, chat, report, by the commands they type."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet import config

from .conftest import LORIKEET, Place

Write = Callable[[str, "str | bytes"], Path]
SUMMARY = ("train_loss", "eval_loss", "tokens", "seconds", "tokens_per_second", "compile_seconds", "peak_rss_bytes")
PAIRS = [(f"Name the number after {n}.", f"It is {n + 1}.") for n in range(8)]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_folder_holds_what_it_should(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        ".lock",
        "recipe.yaml",
        "metrics.jsonl",
        "summary.json",
        "status.json",
        "samples.jsonl",
        "report.html",
        "adapter",
        "checkpoint-2",
        "checkpoint-4",
    }
    summary = json.loads((finished / "summary.json").read_text())
    assert all(isinstance(summary[name], (int, float)) for name in SUMMARY)
    assert summary["steps"] == 4 and summary["eval_loss"] < summary["eval_loss_before"]
    metrics = json_lines(finished / "metrics.jsonl")
    assert [row["step"] for row in metrics if row["kind"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in metrics if row["kind"] == "eval"] == [0, 4]
    assert summary["tokens"] == sum(row["tokens"] for row in metrics if row["kind"] == "train")
    assert summary["train_loss"] == pytest.approx(sum(r["loss"] for r in metrics if r["kind"] == "train") / 4)
    assert {path.name for path in (finished / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "lorikeet.json",
    }
    (sample,) = json_lines(finished / "samples.jsonl")
    assert sample.keys() == {"prompt", "reference", "before", "after"}


def test_the_saved_recipe_is_complete_and_loads(finished: Path) -> None:
    recipe = config.load(finished / "recipe.yaml")
    written = config.tree(finished / "recipe.yaml").values
    assert written["train"]["weight_decay"] == 0.0 and written["generate"]["temperature"] == 0.0
    assert recipe.train.row_tokens == 256 and recipe.train.max_steps == 4
    assert config.load(finished / "recipe.yaml") == recipe


def test_the_report_stands_alone(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "<svg" in html and "max_steps" in html
    assert (
        "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html and "<script src" not in html
    )


def test_report_again(place: Place, copied_run: Path) -> None:
    (copied_run / "report.html").unlink()
    assert place.ok("report", "run").out.strip() == "run/report.html"
    assert (copied_run / "report.html").stat().st_size > 1000


def test_overrides(place: Place) -> None:
    place.recipe()
    place.ok(
        "train",
        "recipe.yaml",
        "train.max_steps=2",
        "adapter.r=2",
        "adapter.target_modules=[q_proj, v_proj]",
        "output_dir=other",
        "data.validation=null",
        "evaluate.samples=0",
    )
    saved = config.load(place.folder / "other/recipe.yaml")
    assert (saved.train.max_steps, saved.adapter.r, saved.adapter.target_modules) == (2, 2, ["q_proj", "v_proj"])  # type: ignore[attr-defined]
    tensors = load_file(place.folder / "other/adapter/adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2 and all(min(tensor.shape) == 2 for tensor in tensors.values())
    assert not (place.folder / "run").exists()
    assert "eval_loss" not in json.loads((place.folder / "other/summary.json").read_text())


def inputs(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str | bytes]]:
    """Each kind of input: the file's name and its content."""
    alpaca = [{"instruction": q, "input": "", "output": a} for q, a in PAIRS]
    sharegpt = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = "question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in PAIRS)
    return {
        "alpaca": ("alpaca.json", json.dumps(alpaca, indent=1)),
        "sharegpt": ("sharegpt.json", json.dumps(sharegpt)),
        "columns": ("table.csv", table),
        "text": ("text.txt", "".join(f"{q} {a}\n" for q, a in PAIRS)),
        "messages": ("rows.jsonl.gz", gzip.compress(lines.encode())),
        "alpaca in gzip": ("alpaca.json.gz", gzip.compress(json.dumps(alpaca).encode())),
    }


@pytest.mark.parametrize("kind", ["alpaca", "sharegpt", "columns", "text", "messages", "alpaca in gzip"])
def test_inputs(place: Place, write: Write, rows: list[dict[str, Any]], kind: str) -> None:
    name, content = inputs(rows)[kind]
    write(name, content)
    place.recipe(data={"train": [name], "validation": "-"}, train={"max_steps": 2}, evaluate="-")
    said = place.ok("train", "recipe.yaml").err
    assert f"{name}: format {kind.split()[0]}" in said
    assert json.loads((place.folder / "run/summary.json").read_text())["steps"] == 2


def test_parquet(place: Place) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"prompt": [q for q, _ in PAIRS], "response": [a for _, a in PAIRS]})
    parquet.write_table(table, place.folder / "table.parquet")
    place.recipe(data={"train": ["table.parquet", "tiny.jsonl"]}, train={"max_steps": 1})
    assert "format columns" in place.ok("train", "recipe.yaml").err


@pytest.mark.parametrize("template", ["chatml", "alpaca", "vicuna", "{kind: jinja}"])
def test_templates(place: Place, template: str) -> None:
    place.recipe(train={"max_steps": 1})
    place.ok("train", "recipe.yaml", f"data.template={template}")
    place.ok("predict", "run", "tiny.jsonl", "generate.max_new_tokens=1", "-o", "out.jsonl")


def test_what_would_go_unnoticed_is_said(place: Place) -> None:
    """Layers that a config.json leaves out, and a warm-up longer than the run."""
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    place.recipe(model={"path": "model"}, train={"warmup_steps": 9})
    said = " ".join(place.ok("train", "recipe.yaml").err.split())
    assert "9 of 21 tensors have no place in this network: model.layers.1." in said
    assert "the warm-up takes all 4 steps: the learning rate never reaches 0.01" in said


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [-1, 10**12])
def test_ids_of_tokens_that_are_none(place: Place, key: str, value: int) -> None:
    """The first Llamas say -1."""
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text()) | {key: value}
    (model / "config.json").write_text(json.dumps(config))
    place.recipe(model={"path": "model"})
    place.ok("data", "show", "recipe.yaml", "-n", "1")


def test_data_show(place: Place) -> None:
    place.recipe()
    shown = place.ok("data", "show", "recipe.yaml", "-n", "2").out
    assert shown.count("tiny.jsonl:") == 2 and "<|im_start|>" in shown
    assert "⟦The answer is 0.<|im_end|>⟧" in shown and shown.count("⟦") == 3  # no colours here, and one line of legend
    assert not (place.folder / "run").exists()


def test_evaluate(place: Place, finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    found = dict(line.split(None, 1) for line in place.ok("evaluate", finished).out.splitlines())
    assert found["adapter"] == str(finished / "adapter") and int(found["conversations"]) == 4
    assert float(found["eval_loss"]) == pytest.approx(summary["eval_loss"], rel=1e-5)
    place.recipe(output_dir="fresh")  # the base alone, then with the adapter
    base = dict(line.split(None, 1) for line in place.ok("evaluate", "recipe.yaml").out.splitlines())
    assert base["adapter"] == "none" and float(base["eval_loss"]) == pytest.approx(
        summary["eval_loss_before"], rel=1e-5
    )
    given = dict(
        line.split(None, 1)
        for line in place.ok("evaluate", "recipe.yaml", "--adapter", finished / "adapter").out.splitlines()
    )
    assert given["eval_loss"] == found["eval_loss"]


def test_evaluate_measures_the_run_that_it_is_given(place: Place, copied_run: Path) -> None:
    """And not the one that its recipe names, whose folder it was copied from or is not seen from here."""
    for words in ([], ["model.kernels=eager"]):
        told = dict(line.split(None, 1) for line in place.ok("evaluate", copied_run, *words).out.splitlines())
        assert told["adapter"] == str(copied_run / "adapter")
    shutil.rmtree(copied_run / "adapter")
    result = place.ok("evaluate", copied_run, "model.kernels=eager")
    assert "the run is not finished" in result.err and str(copied_run / "checkpoint-") in result.out
    for checkpoint in copied_run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    place.refused(["evaluate", str(copied_run), "model.kernels=eager"], "CheckpointError:", "has no adapter yet")


def test_predict_puts_references_beside_replies(place: Place, finished: Path, rows: list[dict[str, Any]]) -> None:
    place.ok("predict", finished, "tiny.jsonl", "generate.max_new_tokens=4", "--output", "replies.jsonl")
    replies = json_lines(place.folder / "replies.jsonl")
    assert [row["reference"] for row in replies] == [row["messages"][-1]["content"] for row in rows]
    assert [row["messages"] for row in replies] == [row["messages"][:-1] for row in rows]
    assert all(isinstance(row["reply"], str) and row["finish_reason"] in ("length", "stop") for row in replies)
    assert not (place.folder / "replies.jsonl.part").exists()


def test_predict_questions_alone_from_several_files(place: Place, finished: Path, write: Write) -> None:
    write("a.csv", "question\n" + "".join(f"{q}\n" for q, _ in PAIRS[:3]))
    write("b.jsonl", json.dumps({"instruction": "Name a colour."}) + "\n")
    place.ok(
        "predict",
        finished,
        "a.csv",
        "b.jsonl",
        "generate.temperature=1.0",
        "generate.seed=3",
        "generate.max_new_tokens=3",
        "-o",
        "out.jsonl",
    )
    first = json_lines(place.folder / "out.jsonl")
    assert [row["reference"] for row in first] == [None] * 4
    place.ok(
        "predict",
        finished,
        "a.csv",
        "b.jsonl",
        "generate.temperature=1.0",
        "generate.seed=3",
        "generate.max_new_tokens=3",
        "generate.batch_size=1",
        "-o",
        "again.jsonl",
    )
    assert json_lines(place.folder / "again.jsonl") == first


def test_merge_gives_a_folder_that_transformers_reads(place: Place, finished: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    said = place.ok("merge", finished, "merged", "--dtype", "float32", "--max-shard-gib", "0.001").err
    assert "merged = base + adapter within rounding" in said
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    } <= names
    from lorikeet import api
    from lorikeet.infer import generation_config
    from lorikeet.ops.attention import PackedView

    ours = api.engine(finished)
    ids = torch.tensor(ours.tokenizer.encode("What is the capital of France?")[0])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        positions = torch.arange(len(ids))
        view = PackedView(torch.full((len(ids),), len(ids), dtype=torch.int32), positions)
        got = ours.model.head.logits(ours.model.hidden(ids, positions, view))
    assert (got - expected).abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    chat = [{"role": "user", "content": "hi"}]
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert theirs.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    # as the run's recipe samples, so a server of either answers alike
    assert theirs.generation_config.do_sample is False
    assert generation_config.read(tmp_path / "merged")["temperature"] == 0


def test_the_merged_model_answers_the_same(place: Place, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet.api.base.pick_dtype", lambda *_: torch.float32)  # of folders, which name no dtype
    place.ok("merge", finished / "adapter", "merged")
    for model, name in ((finished, "a.jsonl"), (finished / "adapter", "b.jsonl"), ("merged", "c.jsonl")):
        place.ok("predict", model, "tiny.jsonl", "generate.max_new_tokens=6", "-o", name)
    a, b, c = (json_lines(place.folder / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b == c and any(row["reply"] for row in a)


def test_a_merged_model_trains_on(place: Place, finished: Path) -> None:
    place.ok("merge", finished, "merged")
    place.recipe(model={"path": "merged"}, train={"max_steps": 1})
    place.ok("train", "recipe.yaml")


def test_chat(place: Place, finished: Path) -> None:
    typed = [
        ":help",
        "Name a colour.",
        ":seed 3",
        ":set temperature 0.5",
        ":set max_new_tokens 3",
        ":set nope 1",
        "And now?",
        ":history",
        ":clear",
        ":history",
        ":set",
        ":exit",
        "never read",
    ]
    command = [*LORIKEET, "chat", str(finished), "generate.max_new_tokens=4"]
    done = subprocess.run(command, input="\n".join(typed) + "\n", capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert ":set NAME VALUE" in out and "seed 3" in out and "temperature 0.5" in out and "unknown option nope" in out
    assert out.count("user: Name a colour.") == 1 and out.count("user: And now?") == 1 and "(forgotten)" in out
    assert "max_new_tokens 3" in out and "never read" not in out and "Traceback" not in done.stderr


def test_schema_is_a_json_schema_that_accepts_a_recipe(place: Place, finished: Path) -> None:
    schema = json.loads(place.ok("schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(config.tree(finished / "recipe.yaml").values) <= set(schema["properties"])
    validator = pytest.importorskip("jsonschema")
    validator.validate(config.tree(finished / "recipe.yaml").values, schema)


def test_a_length_that_nobody_wrote_is_within_the_model_s_context(place: Place) -> None:
    """The tiny model reads 512 tokens, the default max_length is 2,048."""
    place.recipe(data={"max_length": "-"}, train={"max_steps": 1})
    said = place.ok("train", "recipe.yaml").err
    assert "data.max_length is 512, the model's context" in said
    assert config.load(place.folder / "run/recipe.yaml").data.max_length == 512
    place.ok("evaluate", "run")


def test_a_run_goes_on_only_with_the_same_code_of_one_s_own_adapter(place: Place) -> None:
    code = "from lorikeet.adapters.lora import Lora\n\n\nclass Mine(Lora):\n    kind: str = 'mine'\n"
    own = place.folder / "mine.py"
    own.write_text(code)
    place.recipe(adapter={"kind": "mine.py"}, train={"max_steps": 2, "save_steps": 1})
    place.ok("train", "recipe.yaml")
    shutil.rmtree(place.folder / "run/checkpoint-2")
    shutil.rmtree(place.folder / "run/adapter")
    (place.folder / "run/summary.json").unlink()
    own.write_text(code + "    # another\n")
    place.refused(["train", "recipe.yaml"], "RecipeError: own_code differs")
    own.write_text(code)
    place.ok("train", "recipe.yaml")
