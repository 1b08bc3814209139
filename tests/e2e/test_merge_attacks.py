"""Merged folders that are not what they say, and what the certificate makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2e.conftest import Place, Result, settings
from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command

from .test_merge import EAGER, QUICK, certificate, merged, verified

TRAINED = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def run(tiny_model: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on nf4. Read it only."""
    folder = tmp_path_factory.mktemp("attacked")
    data = folder / "tiny.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"quant": {"kind": "nf4"}, "evaluate": {"samples": 0}, "model": EAGER}
    (folder / "recipe.yaml").write_text(dump(settings(tiny_model, data, folder / "run", changes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert run_command(["train", str(folder / "recipe.yaml")]) == 0
    yield folder / "run"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def failed(place: Place, run: Path, *facts: str) -> Result:
    """Verify a folder that no certificate may be written of."""
    result = verified(place, "merged", run, "--max-loss-increase", "100")
    assert result.code == 1 and "CheckFailed" in result.err, result.err
    for fact in facts:
        assert fact in result.err, result.err
    assert not (place.folder / "merged/certificate.json").exists()
    return result


def test_another_template_in_the_folder_is_told(run: Path, place: Place) -> None:
    """Weights alone are the same, and a chat with the folder is another one."""
    merged(place, run, "--no-verify")
    file = place.folder / "merged/tokenizer_config.json"
    template = json.loads(file.read_text())["chat_template"]
    assert "'\n' + m" in template
    edit(file, chat_template=template.replace("'\n' + m", "' ' + m"))
    failed(place, run, "the template of merged", "one question")


def test_another_tokenizer_in_the_folder_is_told(run: Path, place: Place) -> None:
    merged(place, run, "--no-verify")
    file = place.folder / "merged/tokenizer.json"
    read = json.loads(file.read_text())
    read["model"]["merges"] = read["model"]["merges"][:-20]
    file.write_text(json.dumps(read))
    failed(place, run, "the tokenizer of merged")


def test_another_program_s_folder_may_lack_the_run_s_template(run: Path, place: Place) -> None:
    """It never knew of it; the weights are what is measured."""
    merged(place, run, "--no-verify")
    (place.folder / "merged/lorikeet.json").unlink()
    file = place.folder / "merged/tokenizer_config.json"
    edit(file, chat_template=None)
    result = verified(place, "merged", run)
    assert result.code == 0 and "no template" in result.err, result.err
    file = place.folder / "merged/tokenizer.json"
    read = json.loads(file.read_text())
    read["model"]["merges"] = read["model"]["merges"][:-20]
    file.write_text(json.dumps(read))
    failed(place, run, "the tokenizer of merged")


def test_a_changed_adapter_beside_its_base_is_told_by_its_hash(run: Path, place: Place) -> None:
    merged(place, run, "--keep-adapter", "--no-verify")
    tensors = load_file(place.folder / "merged" / TRAINED)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, place.folder / "merged" / TRAINED, metadata={"format": "pt"})
    failed(place, run, "the adapter in merged", "not the one that was laid there")


def test_another_scale_in_the_folder_is_told(run: Path, place: Place) -> None:
    merged(place, run, "--keep-adapter", "--no-verify")
    file = place.folder / "merged/adapter_config.json"
    edit(file, lora_alpha=2 * json.loads(file.read_text())["lora_alpha"])
    failed(place, run, "the adapter in merged", "not the one that was laid there")


def test_a_run_whose_scale_was_changed_since_is_not_what_was_merged(run: Path, place: Place) -> None:
    copied = Path(shutil.copytree(run, "run"))
    merged(place, copied, "--no-verify")
    file = copied / "adapter/adapter_config.json"
    edit(file, lora_alpha=2 * json.loads(file.read_text())["lora_alpha"])
    place.refused(
        ["verify", "merge", "merged", "--run", str(copied), *QUICK],
        "CheckpointError: merged was not merged from the adapter of", "settings",
    )  # fmt: skip


def test_the_certificate_of_weights_that_are_gone_goes_too(run: Path, place: Place) -> None:
    """It says that something passed which is no longer there."""
    merged(place, run)
    assert certificate(place.folder / "merged")["passed"]
    file = place.folder / "merged/model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors["model.layers.1.self_attn.q_proj.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    failed(place, run, "are not those that were written when it was merged")


@pytest.mark.parametrize("bad", ["swapped layers", "another scale", "only the base", "NaN"])
def test_another_program_s_mistakes(bad: str, run: Path, place: Place) -> None:
    """Folders without a hash: what they say is measured."""
    merged(place, run, "--no-verify")
    folder = place.folder / "merged"
    (folder / "lorikeet.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    if bad == "swapped layers":
        swap = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
        tensors = {next((n.replace(a, b) for a, b in swap.items() if a in n), n): t for n, t in tensors.items()}
    elif bad == "NaN":
        tensors["model.norm.weight"][0] = torch.nan
    else:
        merged(place, run, "--keep-adapter", "--into", "none", "--no-verify", name="both")
        base = load_file(place.folder / "both/base/model.safetensors")
        keep = 2.0 if bad == "another scale" else 0.0
        tensors = {name: base[name] + keep * (tensor - base[name]) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = verified(place, "merged", run)
    if bad == "NaN":
        assert result.code == 2 and "NaN" in result.err
    else:
        assert result.code == 1 and "mean_kl" in result.err, result.err


def test_a_limit_on_replies_needs_replies(run: Path, place: Place) -> None:
    merged(place, run, "--no-verify")
    words = ["verify", "merge", "merged", "--run", str(run), "--prompts", "0", "--min-same-replies", "0.9"]
    place.refused(words, "RecipeError: --min-same-replies: has no effect without replies", "--prompts")


def test_a_sum_beyond_the_dtype_is_refused(run: Path, place: Place) -> None:
    copied = Path(shutil.copytree(run, "run"))
    file = copied / "adapter" / TRAINED
    tensors = load_file(file)
    save_file({name: tensor * 1e4 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    said = place.refused(
        ["merge", str(copied), "merged", "--dtype", "float16", "--no-verify"], "CheckpointError:", "float16", "65504"
    )
    assert "--dtype" in said


def test_an_untied_head_that_did_not_train_is_the_full_base_s_embedding(make_model: Any, place: Place) -> None:
    tied = make_model(place.folder / "tied", tie_word_embeddings=True)
    adapter = {"modules_to_save": ["embed_tokens"]}
    model = EAGER | {"path": str(tied)}
    place.recipe(model=model, adapter=adapter, quant={"kind": "nf4"}, evaluate={"samples": 0}, train={"max_steps": 2})
    place.ok("train", "recipe.yaml")
    merged(place, place.folder / "run", "--base", "full", "--no-verify")
    found = load_file(place.folder / "merged/model.safetensors")
    base = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found["lm_head.weight"], base)
    assert not torch.equal(found["model.embed_tokens.weight"], base)
    place.recipe(model=model, adapter=adapter, evaluate={"samples": 0}, train={"max_steps": 2}, output_dir="dense")
    place.ok("train", "recipe.yaml")
    place.ok("export", "gguf", "dense", "-o", "dense.gguf")


def test_room_for_what_is_written_is_asked_for(run: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for into in ("none", "nf4"):
        merged(place, run, "--into", into, "--no-verify", name=into)
    from lorikeet.api import merging

    monkeypatch.setattr(merging, "need_space", lambda folder, size, what: asked.append(size))
    monkeypatch.setattr(merging, "_write", lambda *given: (place.folder / "made").mkdir(exist_ok=True))
    for words in ([], ["--into", "nf4"], ["--keep-adapter"]):
        place.run("merge", run, "made", *words, "--no-verify")
    dense, small = ((place.folder / name / "model.safetensors").stat().st_size for name in ("none", "nf4"))
    slack = merging.GIB // 8
    needed = [size - slack for size in asked if size > slack]
    assert needed[0] == pytest.approx(dense, rel=0.05) and needed[1] == pytest.approx(small, rel=0.15)
    assert needed[2] == pytest.approx(small, rel=0.25)


def test_an_adapter_that_says_nothing_of_its_base_keeps_what_the_base_is_stored_as(run: Path, place: Place) -> None:
    """PEFT's, say: the folder would hold 4-bit codes, and a config.json that calls them numbers."""
    merged(place, run, "--into", "nf4", "--no-verify", name="small")
    shutil.copytree(run / "adapter", "adapter")
    Path("adapter/lorikeet.json").unlink()
    edit(Path("adapter/adapter_config.json"), base_model_name_or_path=str(place.folder / "small"))
    merged(place, Path("adapter"), "--keep-adapter", "model.kernels=eager")
    assert json.loads(Path("merged/base/config.json").read_text())["quantization_config"]["load_in_4bit"]
    result = verified(place, "merged", Path("adapter"), "--data", "tiny.jsonl", "model.kernels=eager")
    assert result.code == 0, result.err


def test_another_program_s_rounding_has_the_limits_of_its_kind(run: Path, place: Place) -> None:
    merged(place, run, "--into", "int8", "--no-verify")
    (place.folder / "merged/lorikeet.json").unlink()
    assert verified(place, "merged", run).code in (0, 1)
    assert certificate(place.folder / "merged")["limits"]["mean_kl"] == 0.05


def test_what_gptq_cannot_walk_through_is_refused_before_anything_is_written(run: Path, place: Place) -> None:
    """A network of someone else's, after hours of writing its dense sum."""
    from lorikeet.api import merge_way, merging
    from lorikeet.base.errors import ModelError

    def refuse(*given: Any, **more: Any) -> None:
        raise ModelError("GPTQ walks through native networks only", given="gpt2", try_="quant.kind=nf4")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_way, "Blockwise", refuse)
        patch.setattr(merging, "_load", lambda *given: pytest.fail("weights were read"))
        place.refused(["merge", str(run), "merged", "--into", "gptq"], "ModelError: GPTQ walks", "--calibrate 0")
