"""Merging a run with a quantised base, each way there is, and the certificate that says how near it came."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2e.conftest import Place, Result, settings
from lorikeet.api import merging
from lorikeet.api.answering import locate
from lorikeet.api.verifying import Asked, examples_of
from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command
from lorikeet.infer.samples import prompt_and_reply

EAGER = {"kernels": "eager"}  # the compiled kernels take longer to compile than all of this
ALONE = ["model.dtype=float32", "model.kernels=eager"]  # what the folder of an adapter does not say
QUICK = ["--prompts", "4", "--max-new-tokens", "4"]
Runs = Callable[..., Path]


@pytest.fixture(scope="session")
def runs(tiny_model: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """runs(kind, **options of quant): a finished run on a base of that kind, made once. Read it only."""
    made: dict[str, Path] = {}

    def run(kind: str, **quant: Any) -> Path:
        name = "-".join([kind, *map(str, quant.values())])
        if name not in made:
            folder = tmp_path_factory.mktemp(f"run-{name}")
            data = folder / "tiny.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            changes = {"quant": {"kind": kind, **quant}, "evaluate": {"samples": 0}, "model": EAGER}
            recipe = folder / "recipe.yaml"
            recipe.write_text(dump(settings(tiny_model, data, folder / "run", changes)))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
                assert run_command(["train", str(recipe)]) == 0
            made[name] = folder / "run"
        return made[name]

    return run


@pytest.fixture
def nf4(runs: Runs) -> Path:
    return runs("nf4")


def certificate(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return found


def merged(place: Place, run: Path, *words: object, name: str = "merged", code: int = 0) -> Result:
    result = place.run("merge", run, name, *words)
    assert result.code == code, result.err
    return result


def verified(place: Place, folder: str, run: Path, *words: object) -> Result:
    return place.run("verify", "merge", folder, "--run", run, *QUICK, *words)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4", "gptq"])
def test_a_dense_folder_of_the_quantised_base_says_the_same(kind: str, runs: Runs, place: Place) -> None:
    merged(place, runs(kind))
    found = certificate(place.folder / "merged")["measured"]
    assert found["mean_kl"] < 1e-9 and found["top1_agreement"] == 1 and found["same_replies"] == 1
    assert abs(found["loss_increase"]) < 1e-6 and found["prompts"] == 4


def test_the_full_base_is_another_model(nf4: Path, place: Place) -> None:
    merged(place, nf4, "--no-verify")
    merged(place, nf4, "--no-verify", "--base", "full", name="full")
    one, other = (load_file(place.folder / name / "model.safetensors") for name in ("merged", "full"))
    linear, embedding = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"
    assert torch.equal(one[embedding], other[embedding]) and not torch.equal(one[linear], other[linear])
    base = load_file(place.model / "model.safetensors")[linear]
    adapter = load_file(nf4 / "adapter/adapter_model.safetensors")
    stem = f"base_model.model.{linear.removesuffix('.weight')}.lora_"
    update = adapter[f"{stem}B.weight"] @ adapter[f"{stem}A.weight"] * 2  # lora_alpha is 2 r
    scale = (other[linear] - base).norm() / (adapter[f"{stem}B.weight"] @ adapter[f"{stem}A.weight"]).norm()
    assert torch.allclose(other[linear] - base, update / 2 * scale, atol=1e-6)
    assert verified(place, "merged", nf4).code == 0
    assert verified(place, "full", nf4, "--max-mean-kl", "1e-6").code == 1
    assert certificate(place.folder / "full")["measured"]["mean_kl"] > 1e-4


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4", "gptq"])
def test_into_each_kind(kind: str, nf4: Path, place: Place) -> None:
    """The folder reads back as it was written, and answers."""
    group = ["quant.group_size=32", "--calibrate", "0"] if kind == "gptq" else []
    merged(place, nf4, "--into", kind, *group, "--no-verify")
    config = json.loads((place.folder / "merged/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == ("gptq" if kind == "gptq" else "bitsandbytes")
    told = verified(place, "merged", nf4, "--max-loss-increase", "3")
    assert told.code == 0, told.err
    found = certificate(place.folder / "merged")
    assert found["merged"]["how"]["into"]["kind"] == kind
    assert 0 < found["measured"]["mean_kl"] < 0.5
    place.ok("predict", "merged", "tiny.jsonl", "generate.max_new_tokens=2", "model.kernels=eager", "-o", "a.jsonl")


def test_gptq_is_calibrated_on_the_training_data(nf4: Path, place: Place) -> None:
    losses = {}
    for count in (0, 16):
        name, words = f"merged-{count}", ["quant.bits=3", "quant.group_size=32", "--calibrate", count, "--no-verify"]
        merged(place, nf4, "--into", "gptq", *words, name=name)
        assert sorted(path.name for path in (place.folder / name).iterdir() if path.is_dir()) == []
        assert verified(place, name, nf4, "--max-loss-increase", "3").code == 0
        found = certificate(place.folder / name)
        losses[count] = found["measured"]["mean_kl"]
        assert found["merged"]["how"]["calibrated_on"] == count
    assert losses[16] < losses[0]


def test_a_calibrated_merge_computes_and_is_kept_as_was_asked(
    nf4: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = merging.quantize

    def quantize(recipe: Any, *given: Any, **options: Any) -> Any:
        seen.append(recipe.model)
        return real(recipe, *given, **options)

    monkeypatch.setattr(merging, "quantize", quantize)
    words = ["--into", "gptq", "quant.group_size=32", "--calibrate", "2", "--no-verify"]
    merged(place, nf4, *words, "--dtype", "bfloat16", "model.threads=1")
    assert json.loads((place.folder / "merged/config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for name, tensor in load_file(place.folder / "merged/model.safetensors").items()
            if name.endswith("norm.weight")} == {torch.bfloat16}  # fmt: skip
    assert [options.threads for options in seen] == [1]


def test_rounding_to_the_nearest_again_loses_the_update(nf4: Path, place: Place) -> None:
    """The sum lies nearest to the number that the base had there: the certificate says so, and merge fails."""
    result = merged(place, nf4, "--into", "nf4", code=1)
    assert "CheckFailed" in result.err and "loss_increase" in result.err
    merged(place, nf4, "--keep-adapter", "--no-verify", name="both")
    summed, base = (load_file(place.folder / name / "model.safetensors") for name in ("merged", "both/base"))
    names = [name for name in base if name.endswith("proj.weight")]
    same = [(summed[name] == base[name]).float().mean().item() for name in names]
    assert len(same) == 14 and sum(same) / len(same) > 0.5


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4", "gptq"])
def test_the_adapter_beside_its_base_is_what_was_trained(kind: str, runs: Runs, place: Place) -> None:
    merged(place, runs(kind), "--keep-adapter")
    found = certificate(place.folder / "merged")
    assert found["measured"]["mean_kl"] < 1e-12 and found["measured"]["max_kl"] < 1e-9
    assert found["passed"] and found["merged"]["how"]["kept"]
    shutil.move("merged", "elsewhere")  # it needs nothing from outside
    again = ["elsewhere", "tiny.jsonl", "generate.max_new_tokens=4", "model.kernels=eager", "model.dtype=float32"]
    place.ok("predict", *again, "-o", "a.jsonl")
    place.ok("predict", runs(kind), "tiny.jsonl", "generate.max_new_tokens=4", "-o", "b.jsonl")
    one, other = ((place.folder / name).read_text() for name in ("a.jsonl", "b.jsonl"))
    assert one == other


def test_scales_in_8_bits_are_written_as_what_they_stand_for(runs: Runs, place: Place) -> None:
    run = runs("nf4", double_quant=True)
    merged(place, run, "--keep-adapter")
    assert certificate(place.folder / "merged")["measured"]["max_kl"] < 1e-9


def test_the_certificate_says_what_was_compared(nf4: Path, place: Place) -> None:
    merged(place, nf4, "--no-verify")
    assert verified(place, "merged", nf4, "--max-mean-kl", "0.5", "-o", "mine.json").code == 0
    assert not (place.folder / "merged/certificate.json").exists()
    found = json.loads((place.folder / "mine.json").read_text())
    assert found["passed"] and found["broken"] == []
    assert found["trained"]["quant"]["kind"] == "nf4" and len(found["trained"]["adapter_sha256"]) == 64
    assert len(found["merged"]["weights"]) == len(found["trained"]["base_fingerprint"]) == 64
    assert found["data"]["conversations"] == 4 and found["asked"]["max_new_tokens"] == 4
    assert found["limits"]["mean_kl"] == 0.5 and found["computed"]["dtype"] == "float32"
    assert set(found["versions"]) == {"lorikeet", "torch", "python"}


def perturb(folder: Path, by: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file({**tensors, name: tensors[name] + by * noise}, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_changed_folder_is_told_by_its_hash(nf4: Path, place: Place) -> None:
    merged(place, nf4)
    (place.folder / "merged/certificate.json").unlink()
    perturb(place.folder / "merged", 1e-3)
    result = verified(place, "merged", nf4)
    assert result.code == 1 and "are not those that were written when it was merged" in result.err
    assert not (place.folder / "merged/certificate.json").exists()


@pytest.mark.parametrize("by, passed", [(0.0, True), (0.3, False)])
def test_a_perturbed_merge_fails(by: float, passed: bool, nf4: Path, place: Place) -> None:
    """As another program might have merged it: without a lorikeet.json, so without a hash."""
    merged(place, nf4, "--no-verify")
    (place.folder / "merged/lorikeet.json").unlink()
    perturb(place.folder / "merged", by)
    result = verified(place, "merged", nf4)
    assert result.code == (0 if passed else 1), result.err
    found = certificate(place.folder / "merged")
    assert found["passed"] is passed and found["merged"]["how"] is None
    if not passed:
        assert "mean_kl" in found["broken"] and "CheckFailed" in result.err and "mean_kl" in result.err
        assert "BROKEN" in result.err


def test_each_limit_can_fail(nf4: Path, place: Place) -> None:
    merged(place, nf4, "--no-verify", "--base", "full")
    strict = {
        "--max-mean-kl": "mean_kl", "--max-kl": "max_kl", "--max-loss-increase": "loss_increase",
    }  # fmt: skip
    for option, name in strict.items():
        result = verified(place, "merged", nf4, option, "-100" if name == "loss_increase" else "0")
        assert result.code == 1 and name in result.err
    for option in ("--min-top1", "--min-same-replies"):  # at most 1: kept by what is equal
        assert verified(place, "merged", nf4, option, "0", "--max-loss-increase", "100").code == 0


def test_other_conversations_can_be_asked(nf4: Path, place: Place) -> None:
    merged(place, nf4, "--no-verify")
    assert verified(place, "merged", nf4 / "adapter", "--data", "tiny.jsonl", *ALONE).code == 0
    assert certificate(place.folder / "merged")["data"]["conversations"] == 24


def test_an_unquantised_run(finished: Path, place: Place) -> None:
    merged(place, finished)
    assert not (place.folder / "merged/certificate.json").exists()  # the cheap comparison is enough
    merged(place, finished, "--verify", name="again")
    assert certificate(place.folder / "again")["measured"]["mean_kl"] < 1e-9
    merged(place, finished, "--into", "int8", name="small")
    assert certificate(place.folder / "small")["measured"]["mean_kl"] > 1e-7


def test_replies_are_asked_for_behind_whole_prompts_whatever_is_learned(place: Place) -> None:
    place.recipe(data={"loss": "all"}, train={"max_steps": 1}, evaluate={"samples": 0}, model=EAGER)
    place.ok("train", "recipe.yaml")
    trained = locate(place.folder / "run")
    template = trained.template.bind(trained.base.tokenizer)
    examples, questions, _ = examples_of(trained, template, (), Asked(conversations=4, prompts=2))
    assert len(examples) == 4 and len(questions) == 2
    prompts = [trained.base.tokenizer.decode(prompt_and_reply(one)[0]) for one in questions]
    assert all(prompt.endswith("assistant\n") for prompt in prompts), prompts
    assert all((one.weights > 0).sum() == len(one.tokens) - 1 for one in examples), "the loss is of everything"


def test_a_wrong_run_is_refused(nf4: Path, runs: Runs, place: Place) -> None:
    merged(place, nf4, "--no-verify")
    words = ["verify", "merge", "merged", "--run", str(runs("fp4"))]
    place.refused(words, "CheckpointError: merged was not merged from the adapter of", "the run it was merged from")


BAD: list[tuple[list[str], str, list[str]]] = [
    (["--into", "nf5"], "RecipeError: quant: there is no kind 'nf5'", ["nf4", "int8"]),
    (["--into", "nf4", "quant.block_size=60"], "RecipeError: quant.block_size", ["60"]),
    (["--into", "int8", "quant.block_size=32"], "RecipeError: quant.block_size", []),
    (["--into", "gptq", "quant.bits=5"], "RecipeError: quant.bits: is not one of", ["given    5", "allowed  2 3 4 8"]),
    (["quant.block_size=32"], "RecipeError: quant.block_size: has no effect without --into", ["--into"]),
    (["--into", "nf4", "train.seed=1"], "RecipeError: train: has no effect here", ["quant.option=value"]),
    (["--into", "nf4", "quant.kind=fp4"], "RecipeError: quant.kind: the command says it already", []),
    (["--calibrate", "8"], "RecipeError: --calibrate: has no effect, only a merge into gptq", []),
    (["--into", "gptq", "quant.target_modules=[down_proj]"], "RecipeError: quant.target_modules: has no effect",
     ["given    [down_proj]", "--calibrate 0"]),
    (["--into", "gptq", "quant.checkpoint_format=gptq_v2"], "RecipeError: quant.checkpoint_format: has no effect",
     ["allowed  gptq", "--calibrate 0"]),
    (["--base", "dense"], "RecipeError: --base: there is no 'dense'", ["quantised full"]),
    (["--keep-adapter", "--base", "full"], "RecipeError: --base full: the adapter stays beside the base", []),
    (["--into", "nf4", "quant.block_size=4096"], "CheckpointError: model.layers.0",
     ["given    64 rows of 64 inputs, block_size=4096, double_quant=False", "--into none"]),
]  # fmt: skip


@pytest.mark.parametrize("words, error, facts", BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_what_cannot_be_merged(words: list[str], error: str, facts: list[str], nf4: Path, place: Place) -> None:
    place.refused(["merge", str(nf4), "merged", *words], error, *facts)


def test_what_cannot_be_verified(nf4: Path, place: Place) -> None:
    merged(place, nf4, "--no-verify")
    adapter = str(shutil.copytree(nf4 / "adapter", "adapter"))
    verify = ["verify", "merge", "merged", "--run"]
    place.refused([*verify, "merged"], "CheckpointError: merged cannot be compared with itself")
    place.refused([*verify, str(place.model)], "CheckpointError:", "has no adapter")
    place.refused([*verify, adapter], "RecipeError: there are no held-out conversations", "--data FILE")
    place.refused([*verify, str(nf4), "--data", "nothing.json"], "DataError:", "nothing.json")
    place.refused([*verify, str(nf4), "-o", "tiny.jsonl/c.json"], "OutputError:")
    said = place.refused([*verify, str(nf4), "-o", "merged"], "OutputError: merged: is a folder", "certificate.json")
    assert "held-out" not in said
    place.refused(["verify", "merge", "nowhere", "--run", str(nf4)], "CheckpointError: no model 'nowhere'")
    place.refused(
        ["merge", adapter, "other", "--into", "gptq"], "RecipeError: --into gptq: an adapter alone", "--calibrate 0"
    )
    place.refused(["merge", adapter, "other", "--verify"], "RecipeError: --verify: the run has no held-out", "--data")


def test_a_base_that_is_stored_quantised_has_no_full_one(nf4: Path, place: Place) -> None:
    merged(place, nf4, "--into", "nf4", "--no-verify")
    place.recipe(model={"path": "merged", "kernels": "eager"}, quant="-", evaluate={"samples": 0})
    place.ok("train", "recipe.yaml")  # and it trains as any base does
    said = place.refused(["merge", "run", "full", "--base", "full"], "CheckpointError:", "no full-precision weights")
    assert "--base quantised" in said
    merged(place, place.folder / "run", "--keep-adapter", name="both")
    assert certificate(place.folder / "both")["measured"]["max_kl"] < 1e-9
