"""Handing over to other servers: their command lines, and what they are not told."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.ia3 import Ia3
from lorikeet.adapters.lora import Lora
from lorikeet.api.answering import locate
from lorikeet.api.handing_over import Asked, engine_of, prepared
from lorikeet.base.errors import CheckpointError, LorikeetError, MissingExtra, RecipeError
from lorikeet.cli.main import run_command


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """adapter(kind of options): a folder with one on the tiny model."""

    def make(options: Any, name: str = "notes") -> Path:
        located = locate(tiny_model, {"dtype": "float32"})
        model = located.base.load(located.quant)
        options.attach(model, seed=0)
        folder = tmp_path / name
        folder.mkdir()
        save_adapter(folder, options, model, {"base": str(tiny_model)})
        return folder

    return make


def words(engine: str, path: Path, **asked: Any) -> list[str]:
    start, _ = prepared(engine_of(engine), Asked(path, **asked), only_print=True)
    return list(start.words)


def after(line: list[str], option: str) -> str:
    return line[line.index(option) + 1]


def test_vllm_serves_a_folder_with_its_template(tiny_model: Path) -> None:
    line = words("vllm", tiny_model, port=9, rows=3)
    assert line[:3] == ["vllm", "serve", str(tiny_model)] and after(line, "--served-model-name") == tiny_model.name
    assert (after(line, "--port"), after(line, "--max-num-seqs"), after(line, "--max-model-len")) == ("9", "3", "512")
    assert "<|im_start|>" in Path(after(line, "--chat-template")).read_text()
    assert "--enable-lora" not in line


def test_vllm_is_given_the_adapter_beside_its_base(tiny_model: Path, adapter: Callable[..., Path]) -> None:
    folder, other = adapter(Lora(r=4, rank_pattern={"q_proj": 12})), adapter(Lora(r=2), "other")
    line = words("vllm", folder, adapters={"b": other})
    assert line[2] == str(tiny_model) and after(line, "--served-model-name") == "notes-base"
    assert after(line, "--max-lora-rank") == "16" and after(line, "--max-loras") == "2"
    at = line.index("--lora-modules")
    assert line[at + 1 : at + 3] == [f"notes={folder}", f"b={other}"]


def test_keys_are_not_on_the_command_line(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("long-secret\n")
    for engine, name in (("vllm", "VLLM_API_KEY"), ("llama.cpp", "API_KEY")):
        start, _ = prepared(engine_of(engine), Asked(tiny_model, key_file=file), only_print=True)
        assert start.environment[name] == "long-secret" and "long-secret" not in " ".join(start.words)


def test_llama_cpp_serves_a_file_that_is_exported_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("llama.cpp")
    start, before = prepared(engine, Asked(tiny_model), only_print=True)
    file = Path(after(list(start.words), "--model"))
    assert shlex.split(before[0]) == ["lorikeet", "export", "gguf", str(tiny_model), "-o", str(file)]
    assert not file.exists()
    again, before = prepared(engine, Asked(tiny_model))
    assert again == start and before == [] and file.read_bytes()[:4] == b"GGUF"
    assert list(start.words[:3]) == [sys.executable, "-m", "llama_cpp.server"]
    (tmp_path / "llama-server").write_text("#!/bin/sh\n")
    (tmp_path / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    direct = words("llama.cpp", file, rows=2)
    assert direct[:3] == ["llama-server", "-m", str(file)] and after(direct, "-c") == "1024"


def test_the_command_becomes_the_program(tiny_model: Path, tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.getpid()]))\n")
    fake.chmod(0o755)
    command = [sys.executable, "-m", "lorikeet.cli.main", "serve", str(tiny_model), "--engine", "vllm", "--port", "77"]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate(timeout=500)
    line, pid = json.loads(said)
    assert pid == process.pid and line[:2] == ["serve", str(tiny_model)] and after(line, "--port") == "77"


def test_print_shows_the_line(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["serve", str(tiny_model), "--engine", "vllm", "--print"]) == 0
    assert capsys.readouterr().out.startswith(f"vllm serve {tiny_model}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "tgi"], "--engine: unknown"),
        (["--print"], "--print: has no effect"),
        (["--engine", "vllm", "--kv", "int8"], "--kv: has no effect with --engine vllm"),
        (["--engine", "vllm", "--no-page"], "--page: has no effect"),
        (["--engine", "llama.cpp", "--adapter", "a=b"], "--adapter: has no effect"),
        (["--engine", "vllm", "generate.temperature=1"], "generate: has no effect"),
        (["--engine", "vllm", "--api-key-file", "no-such-file"], "--api-key-file: cannot read"),
    ],
)
def test_what_an_engine_is_not_told_is_refused(
    options: list[str], said: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["serve", str(tiny_model), *options]) == 2
    message = capsys.readouterr().err
    assert said in message and len(message.splitlines()) <= 4


def test_adapters_that_vllm_does_not_load_are_refused(adapter: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="plain LoRA"):
        words("vllm", adapter(Ia3()))


def test_a_gguf_base_is_refused_for_vllm(tiny_model: Path) -> None:
    start, _ = prepared(engine_of("llama.cpp"), Asked(tiny_model))
    with pytest.raises(CheckpointError, match="Hugging Face folders"):
        words("vllm", Path(after(list(start.words), "--model")))


def test_a_program_that_is_missing_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorikeet.api.handing_over import hand_over

    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingExtra, match="not installed") as caught:
        hand_over(engine_of("vllm"), Asked(tiny_model))
    assert isinstance(caught.value, LorikeetError) and "pip install vllm" in str(caught.value)
