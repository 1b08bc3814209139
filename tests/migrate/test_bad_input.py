# ruff: noqa: E501  a table of cases is read by its rows
"""What cannot be imported is refused in four lines at most, with exit code 2, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorikeet.cli.main import run_command

LF = "model_name_or_path: m\nfinetuning_type: lora\noutput_dir: o\n"
AX = "base_model: m\nadapter: lora\noutput_dir: o\n"
S0 = "python finetune.py --base_model m --data_path d.json --output_dir o "

# name, content (None: absent), further words, how the message begins, what else it says
CASES: list[tuple[str, str | bytes | None, list[str], str, list[str]]] = [
    ("absent.yaml", None, [], "there is no file 'absent.yaml'", ["dataset_info.json"]),
    ("data", None, [], "'data' is a folder", []),
    ("empty.yaml", "", [], "empty.yaml is empty", []),
    ("comments.yaml", "# nothing\n", [], "this is no mapping of settings", ["comments.yaml"]),
    ("list.yaml", "- a\n- b\n", [], "this is no mapping of settings", ["list.yaml:1"]),
    ("broken.yaml", "a: [1\nb: 2\n", [], "this is not YAML", ["broken.yaml:"]),
    ("latin.yaml", b"a: \xff\n", [], "'latin.yaml' is not UTF-8", []),
    ("twice.yaml", LF + "lora_rank: 1\nlora_rank: 2\n", [], "lora_rank: written twice", ["twice.yaml:5"]),
    ("broken.json", "{", [], "this is not JSON", ["broken.json"]),
    ("list.json", "[1, 2]", [], "this is no mapping of settings", []),
    ("notes.txt", "hello", [], "'notes.txt' is no kind of file that can be imported", [".yaml"]),
    ("other.yaml", "learning_rate: 1\nfoo: 2\n", [], "'other.yaml' is of no system that can be imported", ["LLaMA-Factory", "Axolotl"]),
    ("ours.yaml", "output_dir: o\nmodel: {path: m}\ndata: {train: [a]}\n", [], "'ours.yaml' is a recipe already", ["lorikeet train"]),
    ("x.sh", "echo hello\n", [], "the script has no command with flags", []),
    ("x.yaml", LF + "dataset: greeting\n", [], "there is no dataset 'greeting'", ["greetings", "(x.yaml:4)"]),
    ("x.yaml", LF + "dataset: a\ndataset_dir: nowhere\n", [], "dataset: there is no nowhere/dataset_info.json", ["(x.yaml:4)", "data.train="]),
    ("x.yaml", LF + "dataset: a\ndataset_dir: REMOTE:org/d\n", [], "dataset: there is no REMOTE:org/d/dataset_info.json", ["try      download"]),
    ("x.yaml", LF + "dataset: scripted\n", [], "scripted: is made by a script", []),
    ("x.yaml", LF, [], "dataset: is missing", []),
    ("x.yaml", LF + "dataset: greetings\ncutoff_len: long\n", [], "cutoff_len: has the wrong type", ["long   (x.yaml:5)", "a number"]),
    ("x.yaml", LF + "dataset: greetings\nlora_rank: 2.5\n", [], "lora_rank: has the wrong type", ["a whole number"]),
    ("x.yaml", LF + "dataset: greetings\nlearning_rate: [1]\n", [], "learning_rate: has the wrong type", ["a number"]),
    ("x.yaml", LF + "dataset: greetings\nbf16: maybe\n", [], "bf16: has the wrong type", ["true or false"]),
    ("x.yaml", LF + "dataset: greetings\nlearning_rate: -1\n", [], "train.learning_rate: out of range", ["(x.yaml:5)", "> 0"]),
    ("x.yaml", LF + "dataset: {a: 1}\n", [], "dataset: has the wrong type", ["a list of texts"]),
    ("x.yaml", LF + "dataset: greetings\nmix_strategy: shaken\n", [], "mix_strategy: has the wrong type", ["interleave_under"]),
    ("x.yaml", LF + "dataset: greetings,chats\nmix_strategy: interleave_under\ninterleave_probs: '0.5'\n", [], "interleave_probs: has the wrong type", ["2 datasets"]),
    ("x.yml", AX + "datasets: []\nsequence_len: 9\n", [], "datasets: none of these datasets is listed", []),
    ("x.yml", AX + "datasets: [a.json]\n", [], "datasets: has the wrong type", ["path"]),
    ("x.yml", AX + "datasets:\n  - {type: alpaca}\n", [], "datasets: has the wrong type", ["path"]),
    ("x.yml", AX + "datasets:\n  - {path: a.json}\nmicro_batch_size: 3\nbatch_size: 16\n", [], "batch_size: has the wrong type", ["a multiple of micro_batch_size (3)"]),
    ("x.yml", AX.replace("output_dir: o", "output_dir: {a: 1}") + "datasets:\n  - {path: a.json}\n", [], "output_dir: has the wrong type", ["text"]),
    ("x.sh", S0 + "--prompt_template vicunna\n", [], "prompt_template: there is no template 'vicunna'", ["try      vicuna", "(x.sh:1)"]),
    ("x.sh", S0 + "--cutoff_len many\n", [], "cutoff_len: has the wrong type", ["(x.sh:1)"]),
    ("x.yaml", "model_name_or_path: m\noutput_dir: o\n", [], "the file names no data", ["data.train="]),
    ("data/dataset_info.json", None, ["--dataset", "nobody"], "there is no dataset 'nobody'", ["greetings"]),
    ("odd.json", json.dumps({"a": {"file_name": "a.json", "formatting": "xml"}}), [], "a: there is no formatting 'xml'", ["sharegpt"]),
    ("odd.json", json.dumps({"a": {"file_name": "a.json", "num_samples": "all"}}), [], "a.num_samples: has the wrong type", []),
    ("odd.json", json.dumps({"a": {"file_name": "a.json", "formatting": "sharegpt", "tags": 5}}), [], "a: an entry of dataset_info.json is a mapping", []),
    ("deep.json", "[" * 100000, [], "this is not JSON", ["recursion"]),
    ("llamafactory_lora.yaml", None, ["-o", "llamafactory_lora.yaml", "--overwrite"], "'llamafactory_lora.yaml' is the file that is imported", ["-imported.yaml"]),
    ("llamafactory_lora.yaml", None, ["adaptor.r=4"], "adaptor: there is no such section", ["adapter"]),
    ("odd.json", json.dumps({"a": {"file_name": "a.json", "columns": "b"}}), [], "a: an entry of dataset_info.json is a mapping", []),
    ("llamafactory_lora.yaml", None, ["adapter.rank=3"], "adapter.rank: there is no such option", ["adapter.r"]),
    ("llamafactory_lora.yaml", None, ["adapter.r"], "an override is key=value", []),
    ("llamafactory_lora.yaml", None, ["-o", "data"], "'data' exists already", []),
    ("llamafactory_lora.yaml", None, ["-o", "trl.yaml"], "'trl.yaml' exists already", ["--overwrite"]),
    ("llamafactory_lora.yaml", None, ["-o", "trl.yaml/recipe.yaml"], "cannot write 'trl.yaml/recipe.yaml'", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words", "says", "facts"), CASES, ids=[case[3][:70] for case in CASES])
def test_refused(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes | None,
    words: list[str],
    says: str,
    facts: list[str],
) -> None:
    if content is not None:
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert run_command(["import", name, *words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.partition(": ")[2].startswith(says), said
    assert len(said.splitlines()) <= 4 and "Traceback" not in said
    for fact in facts:
        assert fact in said, f"{fact!r} is not said:\n{said}"
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_overwrite_and_printing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["import", "trl.yaml"]) == 0
    written = (place / "recipe.yaml").read_text()
    assert "wrote recipe.yaml" in capsys.readouterr().out
    assert run_command(["import", "axolotl_alpaca.yml", "--overwrite"]) == 0
    assert (place / "recipe.yaml").read_text() != written
    assert "fancy_new_key" in capsys.readouterr().out
    assert run_command(["import", "trl.yaml", "-o", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.out == written and "push_to_hub" in printed.err
