"""The step without numbers against the step with numbers, and what moves its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet import kernels
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import ModelError, RecipeError
from lorikeet.base.nouns import Batch
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.load import identify, load
from lorikeet.models.mapped_embedding import mapped_embedding
from lorikeet.plan.simulate import Network, Simulated, measure, simulate
from lorikeet.plan.steps import full_row
from lorikeet.plan.tensors import KINDS, Tensors
from lorikeet.quant._contract import Quant
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant
from lorikeet.train.options import TrainOptions

CPU = torch.device("cpu")
NONE = NoQuant()
MODELS: dict[str, dict[str, Any]] = {
    "tied no": {},
    "windows": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64},
}


def both(
    folder: Path,
    batches: list[Batch],
    *,
    dtype: torch.dtype = torch.float32,
    r: int = 4,
    quant: Quant = NONE,
    **train: Any,
) -> tuple[Simulated, Simulated]:
    """(predicted, measured)."""
    checkpoint, adapter, options = open_checkpoint(folder), Lora(r=r), TrainOptions(**train)
    family, spec = identify(checkpoint)
    mapped = mapped_embedding(checkpoint, family, spec, dtype, CPU)
    predicted = simulate(Network(family, spec, quant, dtype, mapped), adapter, options, batches)
    model = load(checkpoint, quant, dtype=dtype, device=CPU)
    adapter.attach(model, seed=0)
    return predicted, measure(model, adapter.parameters(model), options, batches)


@pytest.mark.parametrize(
    ("name", "dtype", "checkpointing"),
    [
        ("tied no", torch.float32, False),
        ("tied no", torch.bfloat16, True),
        ("windows", torch.bfloat16, False),
        ("windows", torch.float32, True),
    ],
)
def test_predicted_equals_measured(
    name: str, dtype: torch.dtype, checkpointing: bool, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", **MODELS[name])
    batches = [full_row(3, 100), full_row(1, 150)]
    predicted, measured = both(folder, batches, dtype=dtype, gradient_checkpointing=checkpointing)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)
    for kind in KINDS:
        slack = 0.01 * measured.peak_bytes
        assert predicted.by_kind[kind] == pytest.approx(measured.by_kind[kind], abs=slack), kind
    assert (predicted.phase, predicted.place, predicted.op) == (measured.phase, measured.place, measured.op)
    assert predicted.flops == measured.flops


@pytest.mark.parametrize("quant", [NF4(double_quant=True), NF4(), Int8()], ids=str)
def test_dense_forms_of_quantised_weights_are_foretold(quant: Quant, tiny_model: Path) -> None:
    """Predicted without a number: kernels that make weights dense are not called."""
    predicted, measured = both(
        tiny_model, [full_row(2, 200)], dtype=torch.bfloat16, quant=quant, gradient_checkpointing=True
    )
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)
    for kind in KINDS:
        assert predicted.by_kind[kind] == pytest.approx(measured.by_kind[kind], abs=0.01 * measured.peak_bytes), kind
    assert predicted.by_kind["quantisation state"] > 0


def test_plain_pytorch_is_foretold_as_well(tiny_model: Path) -> None:
    kernels.choose("eager")
    try:
        predicted, measured = both(tiny_model, [full_row(2, 200)])
    finally:
        kernels.choose("auto")
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)


def test_noise_and_smoothing_are_foretold_as_well(tiny_model: Path) -> None:
    train = {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0}
    predicted, measured = both(tiny_model, [full_row(2, 64)], **train)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)


def test_the_kinds_add_up_and_are_what_they_are(tiny_model: Path) -> None:
    found, _ = both(tiny_model, [full_row(2, 200)] * 2, r=8)
    checkpoint = open_checkpoint(tiny_model)
    kept = [name for name in checkpoint.names() if "embed_tokens" not in name]  # which stays in its file
    weights = sum(torch.Size(checkpoint.shape(name)).numel() for name in kept) * 4
    assert sum(found.by_kind.values()) == found.peak_bytes
    assert found.by_kind["weights"] == weights
    assert found.by_kind["trained"] == found.trainable * 4
    # two averages each, and a number that counts steps
    assert 2 * found.trainable * 4 <= found.by_kind["optimizer"] <= 2 * found.trainable * 4 + 4096
    assert found.by_kind["quantisation state"] == 0
    assert found.by_kind["gradients"] == found.trainable * 4, "the second row meets those of the first"


def test_sgd_keeps_no_state(tiny_model: Path) -> None:
    found, measured = both(tiny_model, [full_row(1, 64)], optim="sgd")
    assert found.by_kind["optimizer"] == 0
    assert found.peak_bytes == measured.peak_bytes


def test_checkpointing_keeps_less_and_computes_more(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "deep", num_hidden_layers=12)  # beside them, what attention works in is small
    family, spec = identify(open_checkpoint(folder))
    network = Network(family, spec, NoQuant(), torch.float32)
    kept, twice = (
        simulate(network, Lora(), TrainOptions(gradient_checkpointing=asked), [full_row(1, 256)])
        for asked in (False, True)
    )
    assert twice.by_kind["saved activations"] < kept.by_kind["saved activations"] / 2
    assert twice.by_kind["weights"] == kept.by_kind["weights"]
    assert twice.flops["forward"] == kept.flops["forward"]
    assert twice.flops["backward"] > kept.flops["backward"]


def test_bytes_grow_with_tokens_and_rank(tiny_model: Path) -> None:
    family, spec = identify(open_checkpoint(tiny_model))
    network = Network(family, spec, NoQuant(), torch.float32)
    small, long = (simulate(network, Lora(), TrainOptions(), [full_row(1, n)]) for n in (128, 256))
    assert long.by_kind["saved activations"] > 1.5 * small.by_kind["saved activations"]
    wide = simulate(network, Lora(r=16), TrainOptions(), [full_row(1, 128)])
    assert wide.trainable == 2 * small.trainable


def test_the_peak_has_a_place(tiny_model: Path) -> None:
    family, spec = identify(open_checkpoint(tiny_model))
    found = simulate(Network(family, spec, NoQuant(), torch.float32), Lora(), TrainOptions(), [full_row(1, 128)])
    assert found.phase in ("forward", "backward", "optimizer")
    assert found.place == "head" or found.place.startswith("blocks.")
    assert found.op


def test_experts_are_routed_in_balance(make_experts: tuple[Path, Batch]) -> None:
    folder, batch = make_experts
    family, spec = identify(open_checkpoint(folder))
    found = simulate(Network(family, spec, NoQuant(), torch.float32), Lora(), TrainOptions(), [batch])
    assert found.peak_bytes > sum(found.by_kind[kind] for kind in ("weights", "trained", "optimizer"))


@pytest.fixture
def make_experts(tmp_path: Path) -> tuple[Path, Batch]:
    """The config of a small mixture of experts, with an empty file of weights: no number of it is read."""
    import json

    from safetensors.torch import save_file

    config = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 128, "hidden_size": 64,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({}, tmp_path / "model.safetensors")
    return tmp_path, full_row(1, 96)


def test_what_the_adapter_finds_wrong_is_told(tiny_model: Path) -> None:
    family, spec = identify(open_checkpoint(tiny_model))
    network = Network(family, spec, NoQuant(), torch.float32)
    with pytest.raises(RecipeError, match="no linear layer named 'q_prj'"):
        simulate(network, Lora(target_modules=["q_prj"]), TrainOptions(), [full_row(1, 64)])


def test_a_step_that_reads_its_numbers_is_refused(tiny_model: Path) -> None:
    class Curious(Lora):
        def parameters(self, model: Any) -> Any:
            model.register_forward_pre_hook(lambda *_: None)
            model.blocks[0].register_forward_hook(lambda _module, _given, out: out * out.sum().numpy().item())
            return super().parameters(model)

    family, spec = identify(open_checkpoint(tiny_model))
    with pytest.raises(ModelError, match="without numbers"):
        simulate(
            Network(family, spec, NoQuant(), torch.float32),
            Curious.model_construct(**dict(Lora())),
            TrainOptions(),
            [full_row(1, 64)],
        )


def test_simulating_leaves_the_generator_and_the_threads_alone(tiny_model: Path) -> None:
    torch.manual_seed(5)
    family, spec = identify(open_checkpoint(tiny_model))
    network = Network(family, spec, NoQuant(), torch.float32)
    simulate(network, Lora(lora_dropout=0.1), TrainOptions(), [full_row(1, 64)])
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_tensors_follow_a_storage_from_birth_to_death() -> None:
    with Tensors(fake=False) as watched:
        kept = torch.ones(1000)
        view = kept[:10]
        gone = kept + 1
        assert watched.live == 8000
        del gone
        assert watched.live == 4000
        del kept
        assert watched.live == 4000, "a view holds the storage"
        del view
    assert watched.live == 0
    assert watched.peak.bytes == 8000


def test_integers_stay_real_and_floats_do_not() -> None:
    with Tensors(fake=True):
        ids, hidden = torch.arange(8), torch.rand(8, 4)
        assert ids.tolist() == list(range(8))
        assert int((ids > 3).sum()) == 4
        picked = hidden.index_select(0, ids[ids > 3])
        assert picked.shape == (4, 4)
        assert hidden.sum().item() == 1.0, "a number stands for any"
        with pytest.raises(RuntimeError):
            hidden.numpy()


def test_a_row_that_nobody_has_seen() -> None:
    row = full_row(2, 4)
    assert row.positions.tolist() == [0, 1, 2, 3] * 2
    assert row.visible_until.tolist() == [4] * 4 + [8] * 4
    assert row.predict_at.tolist() == [0, 1, 2, 4, 5, 6]
    assert replace(row).total_weight == 6
