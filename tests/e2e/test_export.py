"""lorikeet export gguf: what is written is what is read again, and what cannot be written is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml

from e2e.conftest import Place
from lorikeet.adapters.lora import Lora
from lorikeet.api.answering import locate, trained_system
from lorikeet.api.exporting import export_gguf
from lorikeet.checkpoints._gguf_file import TYPES, encode
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.templates._turns import chat_template, turns_of
from lorikeet.models.load import identify
from lorikeet.tokens.open import open_tokenizer
from tokens.corpus import TEXTS


def arrays(file: Path) -> dict[str, tuple[str, bytes]]:
    return {one.name: (one.tensor_type.name, one.data.tobytes()) for one in gguf.GGUFReader(file).tensors}


def test_to_gguf_and_back_and_to_gguf_is_exact(tiny_model: Path, tmp_path: Path) -> None:
    export_gguf(tiny_model, tmp_path / "first.gguf")
    export_gguf(tmp_path / "first.gguf", tmp_path / "second.gguf")
    first, second = arrays(tmp_path / "first.gguf"), arrays(tmp_path / "second.gguf")
    assert first == second and len(first) == 21
    assert {kind for kind, _ in first.values()} == {"F16", "F32"}
    folder, file = open_checkpoint(tiny_model), open_checkpoint(tmp_path / "first.gguf")
    (ours, spec), (theirs, other) = identify(folder), identify(file)
    assert other.shape.max_position == spec.shape.max_position and other.rope.theta == spec.rope.theta
    for name in folder.names():  # the reader's own way back, rows of q and k and all
        want = ours.read(folder, name, spec)
        found = theirs.read(file, name, other)
        assert torch.equal(found.float(), want.half().float() if want.dim() == 2 else want), name
    a, b = open_tokenizer(tiny_model, folder), open_tokenizer(tmp_path / "first.gguf", file)
    assert all(a.encode(text)[0] == b.encode(text)[0] for text in TEXTS)
    assert a.control == b.control and a.eos_ids == b.eos_ids and a.chat_template == b.chat_template
    assert a.add_bos == b.add_bos and a.pad_id == b.pad_id  # type: ignore[attr-defined]


def test_a_run_is_its_base_with_the_update_and_the_adapter_alone_is_a_and_b(finished: Path, tmp_path: Path) -> None:
    found = export_gguf(finished, tmp_path / "run.gguf", type="f32", with_modelfile=True)
    export_gguf(finished, tmp_path / "adapter.gguf", adapter_only=True)
    assert found["architecture"] == "llama" and found["pre"] == "gpt-2"
    located = locate(finished)
    _, adapter, _ = located.load()
    assert isinstance(adapter, Lora)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    sides = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    assert reader.fields["general.type"].contents() == "adapter"
    whole = {one.name: torch.from_numpy(np.array(one.data)) for one in gguf.GGUFReader(tmp_path / "run.gguf").tensors}
    export_gguf(located.base.checkpoint.path, tmp_path / "base.gguf", type="f32")
    base = {one.name: torch.from_numpy(np.array(one.data)) for one in gguf.GGUFReader(tmp_path / "base.gguf").tensors}
    adapted = [name for name in base if f"{name}.lora_a" in sides]
    assert len(adapted) == 14
    for name in adapted:
        a, b = sides[f"{name}.lora_a"], sides[f"{name}.lora_b"]
        torch.testing.assert_close(whole[name], base[name] + alpha / len(a) * (b @ a), rtol=1e-5, atol=1e-5)
        assert not torch.equal(whole[name], base[name])
    modelfile = (tmp_path / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./run.gguf\nTEMPLATE") and 'PARAMETER stop "<|im_end|>"' in modelfile


def test_a_modelfile_samples_as_the_run_does(copied_run: Path, tmp_path: Path) -> None:
    """Ollama's own defaults are others: what the recipe says, and what it leaves out, is written."""
    recipe = yaml.safe_load((copied_run / "recipe.yaml").read_text())
    recipe["generate"] = {"temperature": 0.5, "top_p": 0.75, "presence_penalty": 0.25, "stop": ["Q:"]}
    (copied_run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    export_gguf(copied_run, tmp_path / "run.gguf", with_modelfile=True)
    words = [line.split(None, 2) for line in (tmp_path / "Modelfile").read_text().splitlines()]
    told = {name: value for word, name, value in (line for line in words if len(line) == 3) if word == "PARAMETER"}
    assert told.pop("num_ctx") and told.pop("stop") == '"Q:"'
    assert told == {"temperature": "0.5", "top_p": "0.75", "top_k": "0", "min_p": "0", "repeat_penalty": "1",
                    "presence_penalty": "0.25"}  # fmt: skip


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ("Answer in JSON.", 'SYSTEM """Answer in JSON."""\n'),
        (' Say "hm"\nor "no"', 'SYSTEM """ Say "hm"\nor "no""""\n'),  # Ollama takes the last three quotes off
        ('End with """\nalways.', None),  # would end the value there
    ],
)
def test_the_system_prompt_of_training_is_in_the_file_and_in_the_modelfile(
    system: str, line: str | None, copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    known = copied_run / "adapter" / "lorikeet.json"
    known.write_text(json.dumps(json.loads(known.read_text()) | {"system": system}))
    export_gguf(copied_run, tmp_path / "run.gguf", with_modelfile=True)
    modelfile = (tmp_path / "Modelfile").read_text()
    assert line in modelfile if line is not None else "SYSTEM" not in modelfile
    assert ("no SYSTEM in the Modelfile" in capsys.readouterr().err) == (line is None)
    export_gguf(tmp_path / "run.gguf", tmp_path / "again.gguf", type="f32")
    export_gguf(copied_run, tmp_path / "adapter.gguf", adapter_only=True)
    for name in ("run", "again", "adapter"):
        assert trained_system(tmp_path / f"{name}.gguf") == system


def test_a_model_without_a_system_prompt_is_written_without_one(tiny_model: Path, tmp_path: Path) -> None:
    export_gguf(tiny_model, tmp_path / "model.gguf", with_modelfile=True)
    assert trained_system(tmp_path / "model.gguf") is None
    assert "SYSTEM" not in (tmp_path / "Modelfile").read_text()


def test_a_model_keeps_its_name_points_and_all(tiny_model: Path, finished: Path, tmp_path: Path) -> None:
    for kind, source in (("model", tiny_model), ("adapter", finished)):
        named = tmp_path / f"Qwen2.5-0.5B-{kind}"
        named.symlink_to(source)
        export_gguf(named, tmp_path / f"{kind}.gguf", adapter_only=kind == "adapter")
        reader = gguf.GGUFReader(tmp_path / f"{kind}.gguf")
        assert reader.fields["general.name"].contents() == named.name
    export_gguf(tmp_path / "model.gguf", tmp_path / "again.gguf")
    assert gguf.GGUFReader(tmp_path / "again.gguf").fields["general.name"].contents() == "model"


def test_a_name_is_not_taken_for_phi_3(tiny_model: Path, tmp_path: Path) -> None:
    """llama.cpp drops the space behind control tokens of any model whose name has phi3 or phi-3 in it."""
    for name, written in (("not-phi3-at-all", "not-phi_3-at-all"), ("Phi-3ish", "Phi_3ish")):
        (tmp_path / name).symlink_to(tiny_model)
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
        assert gguf.GGUFReader(tmp_path / f"{name}.gguf").fields["general.name"].contents() == written


def test_types_are_known_in_capitals_too(tiny_model: Path, tmp_path: Path) -> None:
    assert export_gguf(tiny_model, tmp_path / "a.gguf", type="Q8_0")["type"] == "q8_0"


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_the_package_s_own(name: str) -> None:
    kind, _ = TYPES[name]
    values = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    want = gguf.quants.quantize(values.numpy(), kind)
    assert encode("x", values, kind) == want.tobytes()


def test_embeddings_keep_eight_bits_and_odd_rows_stay_halves(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", intermediate_size=80)  # no whole blocks of 32
    export_gguf(folder, tmp_path / "m.gguf", type="q4_0")
    kinds = {name: kind for name, (kind, _) in arrays(tmp_path / "m.gguf").items()}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["output_norm.weight"] == "F32"


TEMPLATES = ["alpaca", "alpaca_short", "chatml", "llama2", "qwen", "sharegpt", "vicuna", "zephyr"]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_are_said_in_jinja_and_in_go(kind: str, tiny_model: Path) -> None:
    from lorikeet.base.kinds import kind_class
    from lorikeet.data.templates._contract import TemplateOptions

    tokenizer = open_tokenizer(tiny_model, open_checkpoint(tiny_model))
    template = kind_class("lorikeet.data.templates", TemplateOptions, kind).model_validate({}).bind(tokenizer)
    turns = turns_of(template)  # compared with the renderer there
    assert turns is not None and chat_template(template) == turns.jinja()
    go = turns.ollama(tokenizer.bos_token)
    said = go.replace("{{ .System }}", "S").split("{{ end }}{{ range .Messages }}")
    one = said[1].split("{{ .Content }}")
    assert one[1].startswith(turns.ask) and turns.again in one[2]


BAD: dict[str, tuple[list[str], str]] = {
    "type": (["-o", "a.gguf", "--type", "q9_9"], "RecipeError: --type: there is no 'q9_9'"),
    "type that needs activations": (["-o", "a.gguf", "--type", "iq3_xs"], "RecipeError: --type: there is no 'iq3_xs'"),
    "k-quant": (["-o", "a.gguf", "--type", "q4_k_m"], "MissingExtra: --type q4_k_m needs"),
    "name": (["-o", "a.bin"], "OutputError: --output: needs the name of a .gguf file"),
    "there": (["-o", "there.gguf"], "OutputError: there.gguf exists already"),
    "split": (["-o", "a.gguf", "--pre", "gtp2"], "TokenizerError: --pre: no such split"),
    "adapter": (["-o", "a.gguf", "--adapter-only"], "CheckpointError: "),
    "adapter's type": (["-o", "a.gguf", "--adapter-only", "--type", "q8_0"], "RecipeError: --type: has no effect"),
    "adapter's split": (["-o", "a.gguf", "--adapter-only", "--pre", "gpt-2"], "RecipeError: --pre: has no effect"),
    "context": (["-o", "nowhere/a.gguf", "model.device=moon"], "ModelError: model.device"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case: str, place: Place) -> None:
    words, said = BAD[case]
    (place.folder / "there.gguf").write_bytes(b"x")
    place.refused(["export", "gguf", str(place.model), *words], said)


LONG = {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu"}, LONG], ids=["activation", "rope"])
def test_networks_that_llama_cpp_computes_otherwise_are_refused(changes: dict[str, Any], place: Place) -> None:
    folder = place.copy_model()
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    place.refused(["export", "gguf", "model", "-o", "a.gguf"], "ModelError: llama.cpp computes this network otherwise")


def test_numbers_that_do_not_fit_leave_nothing_behind(place: Place) -> None:
    from safetensors.torch import load_file, save_file

    folder = place.copy_model()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    place.refused(["export", "gguf", "model", "-o", "a.gguf"], "CheckpointError: ", "--type bf16")
    shutil.rmtree(folder)
