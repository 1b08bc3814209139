"""Experts in a network: routing, what is read and refused, odd configs, stacks and files that lack something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorikeet.base.errors import CheckpointError, ModelError
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup, Mixture
from lorikeet.models.load import families, identify, load
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.quant.none import NoQuant
from parity import tiny

CPU = torch.device("cpu")
SHARED = {
    "vocab_size": 23, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 4,
}  # fmt: skip
QWEN = {
    **SHARED, "model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "norm_topk_prob": True,
}  # fmt: skip
MIXTRAL = {**SHARED, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


def written(folder: Path, config: dict[str, Any], **changes: Any) -> Path:
    """A folder with random weights for `config`, whose config.json then says `changes`, too."""
    (family,) = (one for one in families() if one.model_type == config["model_type"])
    model = family.network(family.spec(config), Build(NoQuant(), torch.float32, CPU))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    folder.mkdir()
    hf.save(folder, config | changes, model.tensors())
    return folder


def read(folder: Path) -> CausalLM:
    return load(open_checkpoint(folder), NoQuant(), dtype=torch.float32, device=CPU)


def change(folder: Path, edit: Any) -> Path:
    tensors = load_file(folder / hf.SAFE)
    edit(tensors)
    save_file(tensors, folder / hf.SAFE, metadata={"format": "pt"})
    return folder


def stack(tensors: dict[str, Tensor]) -> None:
    """As transformers 5 writes them on request."""
    for layer in range(2):
        owner = f"model.layers.{layer}.mlp.experts"
        each = [[tensors.pop(f"{owner}.{e}.{leaf}_proj.weight") for e in range(3)] for leaf in ("gate", "up", "down")]
        tensors[f"{owner}.gate_up_proj"] = torch.cat([torch.stack(each[0]), torch.stack(each[1])], 1)
        tensors[f"{owner}.down_proj"] = torch.stack(each[2])


@pytest.mark.parametrize("config", [QWEN, MIXTRAL], ids=["qwen3_moe", "mixtral"])
def test_what_is_read_is_what_lies_there(config: dict[str, Any], tmp_path: Path) -> None:
    folder = written(tmp_path / "model", config)
    model, stored = read(folder), load_file(folder / hf.SAFE)
    assert {name: tensor.tolist() for name, tensor in model.tensors()} == {k: v.tolist() for k, v in stored.items()}
    assert sum(isinstance(group, ExpertGroup) for group in model.groups()) == 4
    assert sum(".experts." in name for name, _ in model.linears()) == 2 * 3 * 3


def test_a_stack_reads_as_its_experts(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", QWEN)
    expected = {name: tensor.clone() for name, tensor in read(folder).tensors()}
    found = dict(read(change(folder, stack)).tensors())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_token_goes_to_its_most_likely_experts(normalised: bool, tmp_path: Path) -> None:
    model = read(written(tmp_path / "model", QWEN | {"norm_topk_prob": normalised}))
    mixture = next(module for module in model.modules() if isinstance(module, Mixture))
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    chosen, share = mixture.route(x)
    probabilities = (x @ mixture.router.weight.dense(torch.float32).T).softmax(-1)
    assert torch.equal(chosen.sort().values, probabilities.topk(2).indices.sort().values)
    left_out = probabilities.min(-1).values  # of three experts two are chosen
    expected = torch.ones(50) if normalised else 1 - left_out
    torch.testing.assert_close(share.sum(-1), expected)


class Rounded(FrozenWeight):
    """A quantisation of a test's own: multiples of 1/64 in int8. Of the contract it brings no more than it must."""

    def __init__(self, out_features: int, in_features: int):
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.steps = torch.nn.Parameter(torch.zeros(out_features, in_features, dtype=torch.int8), requires_grad=False)

    def write(self, start: int, weight: Tensor) -> None:
        self.steps.data[start : start + len(weight)] = (weight * 64).round().clamp(-128, 127).to(torch.int8)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.steps.to(dtype) / 64


class Rounding(Quant):
    def empty(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        return Rounded(out_features, in_features)


def test_a_kind_of_quantisation_needs_no_line_for_experts(tmp_path: Path) -> None:
    """The quantised network computes what the plain one does with the rounded weights, LoRA's gradients too."""
    folder = written(tmp_path / "model", QWEN)
    quantised = load(open_checkpoint(folder), Rounding(), dtype=torch.float64, device=CPU)
    plain = load(open_checkpoint(folder), NoQuant(), dtype=torch.float64, device=CPU)
    rounded = dict(quantised.tensors())
    for slot in plain.slots():
        slot.write(rounded[slot.name])
    batches = [pack_row([tiny.example(range(1, 20))])]
    found = [tiny.loss_and_gradients(model, tiny.with_lora(model), batches) for model in (quantised, plain)]
    tiny.assert_same(*found)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more chosen than there are": ({"num_experts_per_tok": 4}, "more experts than there are"),
    "none chosen": ({"num_experts_per_tok": 0}, "'num_experts_per_tok' is no size"),
    "no experts": ({"num_experts": 0}, "'num_experts' is no size"),
    "a number as text": ({"num_experts": "3"}, "'num_experts' is no size"),
    "a width below zero": ({"moe_intermediate_size": -8}, "'moe_intermediate_size' is no size"),
    "layers that are no list": ({"mlp_only_layers": "0"}, "'mlp_only_layers' is no list of layers"),
    "layers by name": ({"mlp_only_layers": ["first"]}, "'mlp_only_layers' is no list of layers"),
    "every zeroth layer": ({"decoder_sparse_step": 0}, "'decoder_sparse_step' is no size"),
    "a window that is no number": ({"use_sliding_window": True, "sliding_window": "wide"}, "'sliding_window' is no"),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_odd_configs_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        read(written(tmp_path / "model", QWEN, **changes))


def test_more_experts_than_tensors(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", QWEN, num_experts=4)
    with pytest.raises(CheckpointError):  # the router is the first to differ
        read(folder)
    folder = change(written(tmp_path / "other", QWEN), lambda tensors: tensors.pop("model.layers.1.mlp.gate.weight"))
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.1\.mlp\.gate\.weight'"):
        read(folder)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    lost = "model.layers.1.mlp.experts.2.up_proj.weight"
    folder = change(written(tmp_path / "model", QWEN), lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError, match=f"no tensor '{lost}'"):
        read(folder)


def test_an_expert_of_another_width_is_named(tmp_path: Path) -> None:
    odd = "model.layers.0.mlp.experts.1.down_proj.weight"
    folder = change(written(tmp_path / "model", QWEN), lambda tensors: tensors.update({odd: torch.zeros(16, 9)}))
    with pytest.raises(CheckpointError, match=f"tensor '{odd}' has another shape"):
        read(folder)


def test_a_stack_with_too_few_experts(tmp_path: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        stack(tensors)
        tensors["model.layers.1.mlp.experts.down_proj"] = tensors["model.layers.1.mlp.experts.down_proj"][:2].clone()

    with pytest.raises(ModelError, match="fewer experts than the config says"):
        read(change(written(tmp_path / "model", QWEN), cut))


@pytest.mark.parametrize("said", [True, False])
def test_a_gguf_file_may_leave_out_the_width_of_a_dense_layer(said: bool, tmp_path: Path) -> None:
    """None of its layers is one."""
    _gguf_of_experts(tmp_path / "a.gguf", used=2, feed_forward=said)
    _, spec = identify(open_checkpoint(tmp_path / "a.gguf"))
    assert spec.shape.ffn_width == (12 if said else 8)


def test_a_gguf_file_whose_tokens_use_more_experts_than_it_has(tmp_path: Path) -> None:
    _gguf_of_experts(tmp_path / "odd.gguf", used=5, feed_forward=True)
    with pytest.raises(ModelError, match="more experts than there are") as error:
        read(tmp_path / "odd.gguf")
    assert "5 of 3" in str(error.value)


def _gguf_of_experts(file: Path, *, used: int, feed_forward: bool) -> None:
    writer = gguf.GGUFWriter(str(file), "qwen3moe")
    writer.add_embedding_length(16)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(4)
    writer.add_block_count(1)
    writer.add_context_length(64)
    if feed_forward:
        writer.add_feed_forward_length(12)
    writer.add_expert_count(3)
    writer.add_expert_used_count(used)
    for name, size in (("token_embd.weight", (23, 16)), ("blk.0.ffn_gate_exps.weight", (3, 8, 16))):
        writer.add_tensor(name, torch.zeros(size).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_json_without_a_word_on_experts_takes_the_published_sizes(tmp_path: Path) -> None:
    """Mixtral's first configs leave defaults out; a wrong guess would be seen at the first tensor."""
    folder = written(tmp_path / "model", MIXTRAL)
    file = folder / "config.json"
    config = {key: value for key, value in json.loads(file.read_text()).items() if key != "num_local_experts"}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another shape") as error:
        read(folder)
    assert "(8, 16)" in str(error.value)
