"""Adapters on disk, and merged tensors that are base + adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import CheckpointError
from lorikeet.base.kinds import kind_field
from lorikeet.models.decoder import Decoder
from parity import tiny

OPTIONS = {"r": 3, "target_modules": ["q_proj", "down_proj"]}
PROBES = [[1, 2, 3], [5, 4, 3, 2, 1, 0]]


def saved(folder: Path, model: Decoder) -> Path:
    folder.mkdir()
    save_adapter(folder, Lora(**OPTIONS), model, {"base": "tiny", "data": "abc"})
    return folder


def trained(seed: int = 0, **network: object) -> Decoder:
    model = tiny.decoder(**network)
    tiny.with_lora(model, seed, **OPTIONS)
    return model


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model = trained()
    adapter, tensors, identity = read_adapter(saved(tmp_path / "adapter", model))
    other = tiny.decoder()
    adapter.attach(other, seed=8)
    assert compare(model, other, PROBES, 1e-12).max_difference > 0.1
    fill(other, adapter, tensors, source="test")
    assert compare(model, other, PROBES, 1e-12).max_difference == 0
    assert identity == {"base": "tiny", "data": "abc", "kind": "lora"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and config["target_modules"] == ["down_proj", "q_proj"]


def test_someone_s_own_kind_reads_what_it_wrote_and_nothing_else_of_what_it_inherits(tmp_path: Path) -> None:
    """It stays known in a process, e.g. in a server, which then reads other folders."""
    (tmp_path / "mine.py").write_text(
        "from lorikeet.adapters.lora import Lora\n\n\nclass Mine(Lora):\n    kind: str = 'mine'\n"
    )
    named = TypeAdapter(kind_field("lorikeet.adapters", Adapter))
    for folder, said in (
        ("own", {"kind": str(tmp_path / "mine.py")}),
        ("dora", {"kind": "dora"}),
        ("lora", {"kind": "lora"}),
    ):
        model, adapter = tiny.decoder(), named.validate_python(said | {"r": 2})
        adapter.attach(model, seed=0)
        (tmp_path / folder).mkdir()
        save_adapter(tmp_path / folder, adapter, model, {})
        read, _, identity = read_adapter(tmp_path / folder)
        assert read.model_dump()["kind"] == identity["kind"] == said["kind"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", trained())
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "lorikeet.json"])
def test_a_damaged_file_is_an_error_in_words(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", trained())
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(CheckpointError):
        read_adapter(folder)


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", trained())
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "VERA"}))
    with pytest.raises(CheckpointError, match="not supported") as error:
        read_adapter(folder)
    assert "VERA" in str(error.value) and "LORA" in str(error.value)


@pytest.mark.parametrize("network", [{"layers": 1}, {"layers": 3}, {"width": 20}])
def test_an_adapter_of_another_network_is_refused_and_nothing_is_half_filled(network: dict, tmp_path: Path) -> None:
    adapter, tensors, _ = read_adapter(saved(tmp_path / "adapter", trained()))
    other = tiny.decoder(**network)
    adapter.attach(other, seed=0)
    before = {name: value.detach().clone() for name, value in adapter.parameters(other).items()}
    with pytest.raises(CheckpointError, match="does not fit"):
        fill(other, adapter, tensors, source="test")
    assert all(torch.equal(value, before[name]) for name, value in adapter.parameters(other).items())


@pytest.mark.parametrize("options", [OPTIONS, {"r": 2, "bias": "all", "target_modules": ["k_proj"]}])
def test_merged_equals_base_and_adapter(options: dict) -> None:
    """In float64, where no rounding hides a difference; untouched linears are exactly the base's."""
    model, merged, base = (tiny.decoder(bias=True, tied=False) for _ in range(3))
    tiny.with_lora(model, **options)
    found = dict(merged_tensors(model, Lora(**options), torch.float64))
    assert list(found) == [name for name, _ in model.tensors()]
    for slot in merged.slots():
        slot.write(found[slot.name])
    assert compare(model, merged, PROBES, 0).max_difference < 1e-12
    assert compare(model, base, PROBES, 0).max_difference > 0.1
    touched = tuple(options["target_modules"])
    for name, tensor in base.tensors():
        if name.endswith(".weight") and not any(target in name for target in touched):
            assert torch.equal(found[name], tensor), name


def test_a_merged_sum_is_rounded_once() -> None:
    model = trained(dtype=torch.bfloat16)
    lora = Lora(**OPTIONS)
    linear = dict(model.linears())["model.layers.0.self_attn.q_proj"]
    parameters = lora.parameters(model)
    a, b = (parameters[f"base_model.model.{linear.name}.lora_{side}.weight"].detach() for side in "AB")
    expected = (linear.dense(torch.float32) + lora.factor * (b @ a)).bfloat16()
    found = dict(merged_tensors(model, lora, torch.bfloat16))
    assert torch.equal(found[f"{linear.name}.weight"], expected)


def test_the_check_sees_a_difference() -> None:
    model, other = tiny.decoder(), tiny.decoder()
    assert compare(model, other, PROBES, 1e-9).passed
    with torch.no_grad():
        other.norm.weight[0] += 0.1
    check = compare(model, other, PROBES, 1e-9)
    assert not check.passed and check.kl > 0 and check.max_difference > 0
