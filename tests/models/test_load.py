"""From checkpoints to networks: what is missing or does not fit is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.base.errors import CheckpointError, ModelError
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models import load as loading
from lorikeet.models.decoder import Decoder
from lorikeet.models.families.llama import Llama
from lorikeet.models.load import identify, load, pick_device, pick_dtype
from lorikeet.quant.none import NoQuant
from parity import tiny

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": tiny.VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 20,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
}  # fmt: skip


def written(folder: Path, config: dict[str, Any] = CONFIG, **changed: torch.Tensor | None) -> Path:
    tensors = dict(tiny.decoder(dtype=torch.float32).tensors())
    for name, tensor in changed.items():
        stored = name.replace("__", ".")
        assert stored in tensors or tensor is not None
        tensors.pop(stored, None)
        if tensor is not None:
            tensors[stored] = tensor
    folder.mkdir()
    hf.save(folder, config, tensors.items())
    return folder


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load(open_checkpoint(folder), NoQuant(), dtype=dtype, device=tiny.CPU)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model, found = tiny.decoder(dtype=torch.float32), read(written(tmp_path / "m"))
    expected = dict(model.tensors())
    assert {name for name, _ in found.tensors()} == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.tensors())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert found.head.weight is found.embedding.weight


def test_weights_are_kept_in_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    found = read(written(tmp_path / "m"), torch.bfloat16)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16} and found.dtype == torch.bfloat16


def test_a_head_of_its_own_beside_a_config_that_ties_it_is_refused(tmp_path: Path) -> None:
    """Which of the two is meant, nobody can know: transformers 4 took the embedding, transformers 5 takes the head."""
    embedding = dict(tiny.decoder(dtype=torch.float32).tensors())["model.embed_tokens.weight"]
    same = read(written(tmp_path / "same", lm_head__weight=embedding.clone()))
    assert same.head.weight is same.embedding.weight
    with pytest.raises(CheckpointError, match="ties the head to the embedding") as error:
        read(written(tmp_path / "other", lm_head__weight=embedding + 1))
    assert "lm_head.weight" in str(error.value) and "tie_word_embeddings" in str(error.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(CheckpointError, match=r"no tensor 'model.layers.1.mlp.up_proj.weight'"):
        read(folder)


@pytest.mark.parametrize("name", ["model__layers__0__self_attn__k_proj__weight", "model__norm__weight"])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another shape") as error:
        read(written(tmp_path / "m", **{name: torch.ones(3, 16)}))
    assert "(3, 16)" in str(error.value) and name.replace("__", ".") in str(error.value)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (CONFIG | {"model_type": "t5"}, "unknown kind of network"),
        ({name: value for name, value in CONFIG.items() if name != "hidden_size"}, "lacks 'hidden_size'"),
        (CONFIG | {"hidden_act": "relu"}, "an activation that is not known"),
        (CONFIG | {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "unknown rope scaling"),
        (CONFIG | {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "lacks a setting"),
    ],
)
def test_a_network_we_do_not_know_is_refused(config: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match):
        read(written(tmp_path / "m", config))


def test_defaults_are_the_config_class_s() -> None:
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    short = {name: CONFIG[name] for name in needed}
    spec = Llama().spec(short)
    assert (spec.shape.kv_heads, spec.shape.head_dim, spec.shape.max_position) == (4, 4, 2048)
    assert (spec.norm_eps, spec.tied, spec.rope.theta, spec.rope.kind) == (1e-6, False, 10000.0, "default")


def test_a_checkpoint_tells_its_family_before_any_weight_is_read(tmp_path: Path) -> None:
    family, spec = identify(open_checkpoint(written(tmp_path / "m")))
    assert family.kind == "llama" and spec.shape.vocab_size == tiny.VOCAB and spec.tied


def test_devices_and_dtypes() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(ModelError, match=f"no device '{wrong}'"):
            pick_device(wrong)
    assert pick_dtype("float16", tiny.CPU) == torch.float16
    assert pick_dtype("auto", tiny.CPU) in (torch.bfloat16, torch.float32)


def test_a_machine_that_is_busy_for_a_while_has_the_dtype_it_always_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dtype decides a folder's size and a run's numbers."""
    took = {torch.bfloat16: 1.0, torch.float32: 2.0}
    for busy in range(6):
        matmuls: list[torch.dtype] = []

        def timed(dtype: torch.dtype, busy: int = busy, matmuls: list[torch.dtype] = matmuls) -> float:
            matmuls.append(dtype)
            return took[dtype] * (3.0 if len(matmuls) <= busy else 1.0)

        monkeypatch.setattr(loading, "_matmul_seconds", timed)
        assert pick_dtype("auto", tiny.CPU) == torch.bfloat16
        assert len(matmuls) == 8


@pytest.mark.parametrize("bias", [False, True])
def test_a_group_is_its_members_side_by_side(bias: bool) -> None:
    model = tiny.decoder(bias=bias)
    x = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for group in model.groups():
        inputs = x if group.weight.in_features == 16 else torch.ones(5, group.weight.in_features, dtype=torch.float64)
        parts = [torch.nn.functional.linear(inputs, one.dense(torch.float64), one.bias) for one in group.linears]
        torch.testing.assert_close(group(inputs), torch.cat(parts, dim=-1))
    assert len({name for name, _ in model.linears()}) == 14
