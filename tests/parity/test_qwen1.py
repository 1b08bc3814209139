"""Qwen 1, which transformers does not have: our network against a plain reference of the published description.

Bai et al. 2023 and the model card's `modeling_qwen.py`: one biased matrix for q, k and v, no other bias; rotary halves;
RMSNorm; feed-forward c_proj(w1(x) * silu(w2(x))), whose config counts both halves as `intermediate_size`; untied head.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints import hf
from lorikeet.data.pack import pack_row
from lorikeet.models.families.qwen import Qwen
from parity import tiny
from parity.test_transformers import TOLERANCE, logits, ours

CONFIG = {
    "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "vocab_size": 97, "hidden_size": 48, "kv_channels": 12,
    "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 72, "seq_length": 64, "no_bias": True,
    "max_position_embeddings": 8192, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0,
    "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False,
}  # fmt: skip


def weights(seed: int, layers: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int, mean: float = 0.0) -> Tensor:
        return mean + 0.15 * torch.randn(sizes, generator=generator)

    found = {"transformer.wte.weight": draw(97, 48), "lm_head.weight": draw(97, 48)}
    found["transformer.ln_f.weight"] = draw(48, mean=1)
    for layer in range(layers):
        own = f"transformer.h.{layer}."
        found |= {
            f"{own}ln_1.weight": draw(48, mean=1),
            f"{own}ln_2.weight": draw(48, mean=1),
            f"{own}attn.c_attn.weight": draw(3 * 48, 48),
            f"{own}attn.c_attn.bias": draw(3 * 48),
            f"{own}attn.c_proj.weight": draw(48, 48),
            f"{own}mlp.w1.weight": draw(36, 48),
            f"{own}mlp.w2.weight": draw(36, 48),
            f"{own}mlp.c_proj.weight": draw(48, 36),
        }
    return found


def reference(tokens: Tensor, found: dict[str, Tensor], layers: int = 2) -> Tensor:
    """[T] -> logits [T, V], written out."""
    size, heads, width = len(tokens), 4, 12

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)
    angles = torch.arange(size).float()[:, None] * frequencies
    cos, sin = (torch.cat([part, part], -1)[:, None] for part in (angles.cos(), angles.sin()))

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return x * cos + torch.cat([-second, first], -1) * sin

    x = found["transformer.wte.weight"][tokens]
    hidden = torch.ones(size, size).triu(1).bool()
    for layer in range(layers):
        own = {
            name.split(".", 3)[3]: value for name, value in found.items() if name.startswith(f"transformer.h.{layer}.")
        }
        mixed = norm(x, own["ln_1.weight"]) @ own["attn.c_attn.weight"].T + own["attn.c_attn.bias"]
        q, k, v = (part.view(size, heads, width) for part in mixed.split(48, dim=-1))
        scores = torch.einsum("qhe,khe->hqk", turned(q), turned(k)) / width**0.5
        probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        x = x + torch.einsum("hqk,khe->qhe", probabilities, v).reshape(size, 48) @ own["attn.c_proj.weight"].T
        y = norm(x, own["ln_2.weight"])
        x = x + ((y @ own["mlp.w1.weight"].T) * F.silu(y @ own["mlp.w2.weight"].T)) @ own["mlp.c_proj.weight"].T
    return norm(x, found["transformer.ln_f.weight"]) @ found["lm_head.weight"].T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_equal_the_reference(seed: int, tmp_path: Path) -> None:
    found = weights(seed)
    hf.save(tmp_path, CONFIG, found.items())
    tokens = torch.randint(97, (40,), generator=torch.Generator().manual_seed(seed))
    expected = reference(tokens, found)
    assert expected.std() > 0.1
    assert (logits(ours(tmp_path), tokens) - expected).abs().max() <= TOLERANCE


def test_a_gguf_file_gives_the_same_logits(tmp_path: Path) -> None:
    found = weights(4)
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "qwen")
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(48)
    writer.add_feed_forward_length(72)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN, 2)
    for name, tensor in found.items():
        stem, suffix = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = torch.randint(97, (40,), generator=torch.Generator().manual_seed(4))
    assert (logits(ours(tmp_path / "tiny.gguf"), tokens) - reference(tokens, found)).abs().max() <= TOLERANCE


def test_lora_gradients_equal_the_reference_s(tmp_path: Path) -> None:
    """On the modules that Qwen 1's own fine-tuning targets: c_attn, c_proj, w1, w2."""
    found = weights(5)
    hf.save(tmp_path, CONFIG, found.items())
    model = ours(tmp_path)
    parameters = tiny.with_lora(model, target_modules=["c_attn", "c_proj", "w1", "w2"], r=2, lora_alpha=4)
    pairs = {name.removeprefix("base_model.model."): value for name, value in parameters.items()}
    stems = {name.rsplit(".lora_", 1)[0] for name in pairs}
    assert len(stems) == 2 * 5
    text = torch.randint(97, (24,), generator=torch.Generator().manual_seed(6))
    copies = {name: value.detach().clone().requires_grad_() for name, value in pairs.items()}
    changed = found | {
        f"{stem}.weight": found[f"{stem}.weight"]
        + 2 * copies[f"{stem}.lora_B.weight"] @ copies[f"{stem}.lora_A.weight"]
        for stem in stems
    }
    loss = F.cross_entropy(reference(text, changed)[:-1], text[1:])
    loss.backward()
    own_loss, gradients = tiny.loss_and_gradients(model, parameters, [pack_row([tiny.example(text.tolist())])])
    assert abs(own_loss - loss.item()) < 1e-4
    for name, copy in copies.items():
        difference = (gradients[f"base_model.model.{name}"] - copy.grad).abs().max()
        assert difference <= 1e-3 * copy.grad.abs().max(), name


def test_a_config_with_other_biases_is_refused() -> None:
    with pytest.raises(ModelError, match="biases"):
        Qwen().spec(CONFIG | {"no_bias": False})
