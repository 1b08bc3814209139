"""Golden: ten float64 losses of a tiny random model, committed, and the same however a step is computed.

Rows of any capacity, prefixes shared or repeated, layers computed once or twice: the losses agree to 1e-9. A change
that moves them changes what training means; if that is wanted, the figures a failing test prints are the new ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorikeet.adapters.lora import Lora
from lorikeet.base.nouns import Batch, Example
from lorikeet.base.rng import derive, numpy_rng
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import plan_step
from lorikeet.models.load import load
from lorikeet.quant.none import NoQuant
from lorikeet.train.optim import OptimOptions, Stepper, learning_rate
from lorikeet.train.step import train_step

LOSSES = (
    5.0803609297582, 5.1696083629261, 5.1933979621283, 4.7343669713497, 4.6813864939322,
    4.4094830402523, 4.2349296705283, 4.095793250008, 4.0261606049556, 4.0111477429624,
)  # fmt: skip
STEPS, EXAMPLES, PER_STEP, VOCABULARY = len(LOSSES), 24, 8, 61
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 24,
    "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}  # fmt: skip
OPTIONS = OptimOptions(learning_rate=0.02, warmup_steps=2, weight_decay=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model on disk, drawn from numpy's Philox: the same numbers everywhere."""
    made = tmp_path_factory.mktemp("golden")
    sizes = {"q_proj": (24, 24), "k_proj": (12, 24), "v_proj": (12, 24), "o_proj": (24, 24),
             "gate_proj": (40, 24), "up_proj": (40, 24), "down_proj": (24, 40)}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, 24), "model.norm.weight": (24,)}
    for layer in range(3):
        for name, size in sizes.items():
            block = "self_attn" if name[0] in "qkvo" else "mlp"
            shapes[f"model.layers.{layer}.{block}.{name}.weight"] = size
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (24,)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        centre, width = (1.0, 0.2) if len(shape) == 1 else (0.0, 2.5 / shape[1] ** 0.5)
        return torch.from_numpy(numpy_rng(0, name).uniform(centre - width, centre + width, shape))

    hf.save(made, CONFIG, [(name, draw(name, shape)) for name, shape in shapes.items()])
    return made


def examples() -> list[Example]:
    """Of 5 to 60 tokens; half of them begin with one of two prefixes, which is partly trained; weights differ."""
    prefixes = [numpy_rng(0, "prefix", i).integers(0, VOCABULARY, 18) for i in range(2)]
    made = []
    for i in range(EXAMPLES):
        rng = numpy_rng(0, "example", i)
        own = rng.integers(0, VOCABULARY, int(rng.integers(5, 43)))
        tokens = np.concatenate([prefixes[i % 4], own]) if i % 4 < 2 else own
        weights = rng.choice([0.0, 0.25, 1.0, 2.0], len(tokens))
        weights[0], weights[-1] = 0, 1
        made.append(Example(tokens.astype(np.int32), weights.astype(np.float32)))
    return made


def losses(folder: Path, *, row_tokens: int, checkpointing: bool, share: bool) -> list[float]:
    """Of each step, in float64 and with the adapter's usual start (B zero)."""
    network = load(open_checkpoint(folder), NoQuant(), dtype=torch.float64, device=torch.device("cpu"))
    adapter = Lora(r=3, lora_alpha=6)
    adapter.attach(network, seed=0)
    network.gradient_checkpointing = checkpointing
    stepper, data, found = Stepper(adapter.parameters(network), OPTIONS), examples(), []
    for step in range(STEPS):
        epoch, within = divmod(step, EXAMPLES // PER_STEP)
        rows: list[Batch] = plan_step(
            data, seed=0, epoch=epoch, step=within, examples_per_step=PER_STEP, row_tokens=row_tokens, share=share
        )[0]
        rate = learning_rate(OPTIONS, step, STEPS)
        found.append(train_step(network, stepper, rows, learning_rate=rate, seed=derive(0, step)).loss)
    return found


@pytest.mark.parametrize(
    ("row_tokens", "checkpointing", "share"),
    [*((row_tokens, again, True) for row_tokens in (16, 90, 4096) for again in (False, True)), (4096, False, False)],
)
def test_the_curve_is_what_it_was(folder: Path, row_tokens: int, checkpointing: bool, share: bool) -> None:
    found = losses(folder, row_tokens=row_tokens, checkpointing=checkpointing, share=share)
    assert found == pytest.approx(LOSSES, rel=0, abs=1e-9), found
