"""A network of one's own (examples/own_model/gpt.py) behind the contract: packed, adapted, merged, trained whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import CheckpointError, ModelError, RecipeError
from lorikeet.base.kinds import file_class
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.models.cache_views import Decode, Prefill
from lorikeet.models.families._contract import Family
from lorikeet.models.load import identify, load
from lorikeet.models.module import ModuleModel
from lorikeet.ops.attention import PackedView
from lorikeet.quant.none import NoQuant
from parity import tiny

GPT = Path(__file__).parents[2] / "examples" / "own_model" / "gpt.py"
CONFIG = {"model_type": "my-gpt", "vocab_size": tiny.VOCAB, "width": 16, "heads": 4, "layers": 2, "context": 64}
PREFIX = list(range(1, 19))
TEXTS = ([*PREFIX, 4, 5, 6], [*PREFIX, 9, 8], [7, 7, 2])


def family() -> Any:
    return file_class(GPT, Family)()


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    found: nn.Module = family().module(CONFIG).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def read(folder: Path, changed: nn.Module | None = None, dtype: torch.dtype = torch.float64) -> Any:
    folder.mkdir(exist_ok=True)
    hf.save(folder, CONFIG, (changed or module()).state_dict().items())
    return load(open_checkpoint(folder), NoQuant(), dtype=dtype, device=tiny.CPU, family=str(GPT))


def plain_logits(model: nn.Module, tokens: list[int]) -> Tensor:
    """The same GPT, computed on one text with torch's own attention."""
    weights: dict[str, Tensor] = dict(model.named_parameters())

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (16,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["embedding.weight"][torch.tensor(tokens)] + weights["position.weight"][: len(tokens)]
    for layer in range(2):
        own = f"blocks.{layer}"
        qkv = linear(norm(x, f"{own}.norm1"), f"{own}.qkv").view(len(tokens), 3, 4, 4).permute(1, 2, 0, 3)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=True)  # type: ignore[misc]
        x = x + linear(mixed.transpose(0, 1).reshape(len(tokens), 16), f"{own}.out")
        x = x + linear(F.gelu(linear(norm(x, f"{own}.norm2"), f"{own}.up")), f"{own}.down")
    return norm(x, "norm") @ weights["embedding.weight"].T


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_each_text_alone_in_plain_pytorch(checkpointing: bool, tmp_path: Path) -> None:
    """With two texts that share a prefix; loss and LoRA gradients, against autograd through merged weights."""
    model = read(tmp_path)
    parameters = tiny.with_lora(model, r=2, lora_alpha=2)
    row = pack_row([tiny.example(text) for text in sorted(TEXTS)])
    assert len(row.tokens) == sum(map(len, TEXTS)) - len(PREFIX)
    ours = tiny.loss_and_gradients(model, parameters, [row], checkpointing=checkpointing)
    merged, copies = module(), {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    for name, linear in list(merged.named_modules()):
        if isinstance(linear, nn.Linear):
            a, b = (copies[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            changed = linear.weight.detach() + b @ a
            del linear.weight
            linear.weight = changed
    named = dict(merged.named_modules())
    merged.named_parameters = lambda: [  # type: ignore[method-assign]
        (f"{name}.{key}", getattr(owner, key))
        for name, owner in named.items() for key in ("weight", "bias") if getattr(owner, key, None) is not None
    ]  # fmt: skip
    losses = [
        F.cross_entropy(plain_logits(merged, text)[:-1], torch.tensor(text[1:]), reduction="sum") for text in TEXTS
    ]
    loss = sum(losses) / sum(len(text) - 1 for text in TEXTS)
    loss.backward()  # type: ignore[union-attr]
    tiny.assert_same(ours, (float(loss), {name: value.grad for name, value in copies.items()}))  # type: ignore[misc]


@torch.no_grad()
def test_cached_decoding_equals_reading_anew(tmp_path: Path) -> None:
    model, text = read(tmp_path), [1, 2, 3, 4, 5, 6, 7, 8]
    expected = plain_logits(module(), text)
    cache, places = tiny.cache(model, 1, 32)
    prefill = Prefill(cache, places, [text[:5]])
    hidden = model.hidden(prefill.tokens, prefill.positions, prefill)[prefill.last]
    prefill.advance()
    decode = Decode(cache, places)
    for place in range(4, 7):
        torch.testing.assert_close(model.head.logits(hidden)[0], expected[place])
        hidden = model.hidden(torch.tensor([text[place + 1]]), decode.positions, decode)
        decode.advance()


@torch.no_grad()
def test_merged_equals_base_and_adapter(tmp_path: Path) -> None:
    model = read(tmp_path / "base")
    tiny.with_lora(model, r=2)
    (tmp_path / "merged").mkdir()
    hf.save(tmp_path / "merged", CONFIG, merged_tensors(model, Lora(r=2), torch.float64))
    merged = load(
        open_checkpoint(tmp_path / "merged"), NoQuant(), dtype=torch.float64, device=tiny.CPU, family=str(GPT)
    )
    row = pack_row([tiny.example(TEXTS[0])])
    left, right = (
        one.hidden(row.tokens, row.positions, PackedView(row.visible_until, row.positions)) for one in (model, merged)
    )
    torch.testing.assert_close(left, right)
    assert set(dict(merged.tensors())) == set(module().state_dict())


def test_every_parameter_can_train_from_nothing() -> None:
    """No adapter and no checkpoint: the module itself, its own parameters, our step."""
    shape = family().shape(CONFIG)
    model = ModuleModel(module().float(), shape, head="embedding")
    parameters = dict(model.module.named_parameters())
    rows = [pack_row([tiny.example(text) for text in sorted(TEXTS)])]
    loss, gradients = tiny.loss_and_gradients(model, parameters, rows)  # type: ignore[arg-type]
    plain = module().float()
    losses = [
        F.cross_entropy(plain_logits(plain, text)[:-1], torch.tensor(text[1:]), reduction="sum") for text in TEXTS
    ]
    expected = sum(losses) / sum(len(text) - 1 for text in TEXTS)
    expected.backward()  # type: ignore[union-attr]
    assert abs(loss - float(expected)) < 1e-5
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_bias_of_a_head_counts() -> None:
    """Left out, the network would run and answer with other words."""
    plain = module()
    plain.head = nn.Linear(16, tiny.VOCAB).double()  # type: ignore[assignment]
    model = ModuleModel(plain, family().shape(CONFIG), head="head")
    hidden = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(model.head.logits(hidden), plain.head(hidden).to(model.head.logits(hidden).dtype))


def test_a_file_of_one_s_own_may_have_dataclasses(tmp_path: Path) -> None:
    """With annotations kept as text, they look their own module up."""
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from lorikeet.models.module import ModuleFamily\n\n"
        "@dataclass\nclass Sizes:\n    width: int = 4\n\nclass Mine(ModuleFamily):\n    model_type = 'mine'\n"
    )
    assert file_class(tmp_path / "mine.py", Family).__name__ == "Mine"


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    hf.save(tmp_path, CONFIG, list(module().state_dict().items())[1:])
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"embedding\.weight"):
        load(checkpoint, NoQuant(), dtype=torch.float32, device=tiny.CPU, family=str(GPT))
    with pytest.raises(ModelError, match="unknown kind of network") as error:
        identify(checkpoint)
    assert "model.family" in str(error.value)
    with pytest.raises(RecipeError, match="no such file"):
        identify(checkpoint, str(tmp_path / "none.py"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "another"}))
    with pytest.raises(ModelError, match="unknown kind of network"):
        identify(open_checkpoint(tmp_path), str(GPT))
    with pytest.raises(ModelError, match="is no head"):
        ModuleModel(module(), family().shape(CONFIG), head="norm")
    (tmp_path / "broken.py").write_text("import nothing_like_this")
    with pytest.raises(RecipeError, match=r"broken\.py"):
        identify(checkpoint, str(tmp_path / "broken.py"))
