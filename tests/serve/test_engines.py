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
from lorikeet.api.handing_over import Asked, engine_of, hand_over, prepared
from lorikeet.base.errors import CheckpointError, LorikeetError, MissingExtra, RecipeError
from lorikeet.cli.main import run_command
from lorikeet.serve.engines.vllm import VLLM


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


def test_an_export_is_of_the_adapter_and_the_model_as_they_are_asked_for(
    tiny_model: Path, adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engine = adapter(Lora(r=4)), engine_of("llama.cpp")
    plain = words("llama.cpp", folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 99}))
    changed = words("llama.cpp", folder)
    told = Asked(folder, model={"dtype": "float32"}, allow_other_base=True)
    start, before = prepared(engine, told, only_print=True)
    files = [after(list(line), "--model") for line in (plain, changed, start.words)]
    assert len(set(files)) == 3
    assert shlex.split(before[0]) == [
        "lorikeet", "export", "gguf", str(folder), "model.dtype=float32", "-o", files[2], "--allow-other-base",
    ]  # fmt: skip
    given: dict[str, Any] = {}
    monkeypatch.setattr("lorikeet.api.handing_over.export_gguf", lambda *_, **more: given.update(more))
    prepared(engine, told)
    assert given == {"model": told.model, "allow_other_base": True}


def test_keys_are_read_as_the_own_server_reads_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("# of the office\nlong-secret\n")
    start, _ = prepared(engine_of("vllm"), Asked(tiny_model, key_file=tmp_path / "key"))
    assert start.environment["VLLM_API_KEY"] == "long-secret"
    monkeypatch.setenv("LORIKEET_API_KEYS", "another-secret")
    assert prepared(engine_of("vllm"), Asked(tiny_model))[0].environment["VLLM_API_KEY"] == "another-secret"
    with pytest.raises(RecipeError, match="takes one key"):
        prepared(engine_of("vllm"), Asked(tiny_model, key_file=tmp_path / "key"))
    monkeypatch.setenv("LORIKEET_BASIC_AUTH", "anna:a long password")
    with pytest.raises(RecipeError, match="LORIKEET_BASIC_AUTH"):
        prepared(engine_of("vllm"), Asked(tiny_model))


def test_names_that_two_would_have_are_refused(tiny_model: Path, adapter: Callable[..., Path]) -> None:
    folder, other = adapter(Lora(r=4)), adapter(Lora(r=2), "other")
    for name in ("notes", "notes-base"):
        with pytest.raises(RecipeError, match="--adapter: the name is taken"):
            words("vllm", folder, adapters={name: other})


def test_a_folder_named_by_a_dot_has_its_own_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model)
    assert after(words("vllm", Path()), "--served-model-name") == tiny_model.name


def test_nothing_is_exported_for_a_program_that_is_missing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="not installed"):
        hand_over(engine_of("llama.cpp"), Asked(tiny_model))
    assert not list(tmp_path.rglob("*.gguf"))


def test_errors_name_the_engine_that_was_asked_for(tiny_model: Path, adapter: Callable[..., Path]) -> None:
    class Other(VLLM):
        kind = "other"

    class Whole(Other):
        several_adapters = False

    with pytest.raises(RecipeError, match="--engine other: it loads plain LoRA"):
        prepared(Other(), Asked(adapter(Ia3())))
    with pytest.raises(RecipeError, match="--engine other, which serves one model"):
        prepared(Whole(), Asked(tiny_model, adapters={"a": tiny_model}))


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
        (["--engine", "vllm", "--api-key-file", "no-such-file"], "cannot read no-such-file"),
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
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingExtra, match="not installed") as caught:
        hand_over(engine_of("vllm"), Asked(tiny_model))
    assert isinstance(caught.value, LorikeetError) and "pip install vllm" in str(caught.value)
