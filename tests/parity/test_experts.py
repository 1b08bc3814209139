"""Families with experts: random tiny models written by transformers, read by us, in float32: the same logits.

Also in cached decoding, from packed rows that share a prefix, from every layout experts are stored in, and with LoRA
on every expert, in PEFT's arithmetic and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.checkpoints import hf
from lorikeet.data.pack import pack_row
from lorikeet.models.experts import Mixture
from parity import gguf_files, tiny
from parity import test_families as families
from parity.test_transformers import TOLERANCE, difference, logits, ours

transformers = pytest.importorskip("transformers")

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 28, "norm_topk_prob": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral, three of six, a window": (
        "Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 7, "head_dim": 12}
    ),
    "qwen3": ("Qwen3Moe", EXPERTS | {"head_dim": 20, "norm_topk_prob": True}),
    "qwen3, shares as they are, one expert": (
        "Qwen3Moe", EXPERTS | {"num_experts_per_tok": 1, "use_sliding_window": True, "sliding_window": 9}
    ),
    "qwen3, dense layers between": (
        "Qwen3Moe", EXPERTS | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    ),
    "qwen2, a shared expert": ("Qwen2Moe", SHARED),
    "qwen2, windows, no biases": (
        "Qwen2Moe",
        SHARED | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "qkv_bias": False,
                  "norm_topk_prob": True},
    ),
}  # fmt: skip


def theirs(case: str, seed: int = 0, **options: Any) -> Any:
    name, settings = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**families.COMMON | settings | options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in parameter_name else 0, 0.15)
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(case: str, seed: int, tmp_path: Path) -> None:
    model = theirs(case, seed)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").read_text().count("experts.0.") >= 2  # a tensor per expert
    found = ours(tmp_path)
    assert difference(model, found, seed=seed, length=48) <= TOLERANCE
    assert any(isinstance(module, Mixture) for module in found.modules())


@pytest.mark.parametrize("case", CASES)
def test_stacked_experts_are_read_too(case: str, tmp_path: Path) -> None:
    """As transformers 5 keeps them in memory, and writes them on request."""
    model = theirs(case)
    model.save_pretrained(tmp_path, save_original_format=False)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert any(name.endswith("experts.gate_up_proj") for name in file.keys())  # noqa: SIM118
    assert difference(model, ours(tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_cached_decoding_and_shared_prefixes(case: str, tmp_path: Path) -> None:
    theirs(case).save_pretrained(tmp_path)
    model = ours(tmp_path)
    families.assert_cached_decoding_equals_reading_anew(model)
    families.assert_a_shared_prefix_equals_each_conversation_alone(model)


@pytest.mark.parametrize(
    ("case", "one_by_one"),
    [("mixtral", False), ("mixtral", True), ("qwen3", False), ("qwen2, a shared expert", False)],
)
def test_a_gguf_file_gives_the_same_logits(case: str, one_by_one: bool, tmp_path: Path) -> None:
    model = theirs(case)
    gguf_files.write(tmp_path / "tiny.gguf", model, one_by_one=one_by_one)
    assert difference(model, ours(tmp_path / "tiny.gguf")) <= TOLERANCE


TOKENS = torch.randint(97, (30,), generator=torch.Generator().manual_seed(0))
LORA_CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {  # what we target, what PEFT is told
    "mixtral": ("mixtral", {"r": 4}, ["q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"]),
    "mixtral, downs": ("mixtral", {"r": 3, "target_modules": ["w2"]}, ["w2"]),
    "mixtral, gates and ups": ("mixtral", {"r": 3, "target_modules": ["w1", "w3", "v_proj"]}, ["w1", "w3", "v_proj"]),
    "mixtral, the router too": (
        "mixtral", {"r": 2, "target_modules": ["gate", "w1", "w2", "w3"]}, ["gate", "w1", "w2", "w3"]
    ),
    "qwen3": (
        "qwen3", {"r": 4, "lora_alpha": 6.0},
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "qwen3, rslora": (
        "qwen3", {"r": 4, "use_rslora": True, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
        ["gate_proj", "up_proj", "down_proj"],
    ),
    "qwen3, dense layers between": (
        "qwen3, dense layers between", {"r": 2, "target_modules": r".*\.experts\..*"},
        ["gate_proj", "up_proj", "down_proj"],
    ),
    "qwen2, not the shared expert": (
        "qwen2, a shared expert", {"r": 2, "target_modules": r".*\.experts\..*"},
        ["gate_proj", "up_proj", "down_proj"],
    ),
}  # fmt: skip
# what PEFT 0.21 does not load: gates and ups, which it looks for where they lie beside downs, and Qwen2-MoE's experts,
# which it knows only as target_parameters
NOT_IN_PEFT = {"mixtral, gates and ups", "qwen2, not the shared expert"}
XFAIL = pytest.mark.xfail(strict=True, reason="PEFT 0.21 gives other logits")


@torch.no_grad()
def their_logits(model: Any) -> torch.Tensor:
    return model(TOKENS[None]).logits[0]


@pytest.mark.parametrize(
    ("case", "options", "_names"),
    [pytest.param(*case, marks=[XFAIL] if name in NOT_IN_PEFT else []) for name, case in LORA_CASES.items()],
    ids=LORA_CASES.keys(),
)
def test_our_adapter_loads_in_peft_with_equal_logits(
    case: str, options: dict[str, Any], _names: list[str], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    theirs(case).save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    untouched = logits(model, TOKENS)
    tiny.with_lora(model, lora_dropout=0.1, **options)
    expected = logits(model, TOKENS)
    assert (expected - untouched).abs().max() > 0.1
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", Lora(lora_dropout=0.1, **options), model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(theirs(case), tmp_path / "adapter").eval()
    assert (their_logits(loaded) - expected).abs().max() <= TOLERANCE
    again = ours(tmp_path / "base")
    tiny.with_saved(again, tmp_path / "adapter")
    assert torch.equal(logits(again, TOKENS), expected)


@pytest.mark.parametrize("targeted", ["modules", "parameters"])
@pytest.mark.parametrize(("case", "options", "names"), LORA_CASES.values(), ids=LORA_CASES.keys())
def test_an_adapter_saved_by_peft_loads_here_with_equal_logits(
    case: str, options: dict[str, Any], names: list[str], targeted: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    if case.startswith("qwen2") and targeted == "modules":
        pytest.skip("PEFT 0.21 knows these experts only as target_parameters")
    theirs(case).save_pretrained(tmp_path / "base")
    settings = {"lora_alpha": 8, **options, "target_modules": names}
    if targeted == "parameters":
        stacked = {"w1": "gate_up_proj", "w2": "down_proj", "gate_proj": "gate_up_proj", "down_proj": "down_proj"}
        settings["target_parameters"] = [f"experts.{stacked[name]}" for name in names if name in stacked][::-1]
        settings["target_modules"] = [name for name in names if name[1:] == "_proj"]
    elif options.get("use_rslora"):
        settings["use_rslora"] = False  # by which it would scale gates and ups otherwise than downs
    theirs_adapted = peft.get_peft_model(theirs(case), peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs_adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    expected = their_logits(theirs_adapted)
    theirs_adapted.save_pretrained(tmp_path / "adapter")
    model = ours(tmp_path / "base")
    tiny.with_saved(model, tmp_path / "adapter")
    assert (logits(model, TOKENS) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("case", "options", "_names"), LORA_CASES.values(), ids=LORA_CASES.keys())
def test_the_merged_model_is_base_and_adapter_in_transformers(
    case: str, options: dict[str, Any], _names: list[str], tmp_path: Path
) -> None:
    theirs(case).save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    tiny.with_lora(model, **options)
    (tmp_path / "merged").mkdir()
    tensors = merged_tensors(model, Lora(**options), torch.float32)
    hf.save(tmp_path / "merged", model.shape.config, tensors, max_shard_bytes=50_000)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    found = their_logits(merged)
    assert (found - logits(model, TOKENS)).abs().max() <= TOLERANCE
    assert (found - logits(ours(tmp_path / "merged"), TOKENS)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("case", ["mixtral", "qwen3"])
def test_lora_gradients_equal_peft(case: str, tmp_path: Path) -> None:
    """PEFT makes gate and up one, with twice the rank and B in two blocks: the gradients of the blocks are ours."""
    peft = pytest.importorskip("peft")
    model = theirs(case)
    model.save_pretrained(tmp_path / "base")
    found = ours(tmp_path / "base")
    parameters = tiny.with_lora(found)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", Lora(r=3), found, {})
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True)
    loss = wrapped(TOKENS[None], labels=TOKENS[None]).loss
    loss.backward()
    our_loss, gradients = tiny.loss_and_gradients(found, parameters, [pack_row([tiny.example(TOKENS.tolist())])])
    assert abs(our_loss - loss.item()) < 1e-4
    count, compared = model.config.num_experts, 0
    for name, value in wrapped.named_parameters():
        if value.grad is None or ".experts." not in name or ".base_layer." not in name:
            continue
        layer = name.split(".")[4]
        mine = [g for key, g in gradients.items() if f".layers.{layer}." in key and key.split(".")[-3] in GATE_UP]
        a, b = torch.cat([mine[0], mine[2]], 1), torch.stack([mine[1], mine[3]])
        if "lora_A" in name:
            expected = value.grad.view(count, 6, -1)
            difference_ = (a - expected).abs().max()
        else:
            expected = value.grad.view(len(value), 6, count).permute(2, 0, 1)
            blocks = [half[:, :, 3 * i : 3 * i + 3] for i, half in enumerate(expected.chunk(2, 1))]
            difference_ = (b - torch.stack(blocks)).abs().max()
        assert difference_ <= 1e-3 * expected.abs().max(), name
        compared += 1
    assert compared == 2 * model.config.num_hidden_layers


GATE_UP = ("w1", "w3", "gate_proj", "up_proj")
