"""Exported GGUF files as llama.cpp reads them: the same logits in every family, and base + LoRA file = merged.

Needs a Python with llama-cpp-python, which may be another than this one: its path in LORIKEET_LLAMA_CPP_PYTHON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.api.exporting import export_gguf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.load import load
from lorikeet.quant.none import NoQuant
from parity import test_families, tiny
from parity.gguf_tokenizer import tokenizer_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from ggml_arithmetic import NODES, Arithmetic, logits, one_by_one  # noqa: E402

pytest.importorskip("transformers")
PYTHON = os.environ.get("LORIKEET_LLAMA_CPP_PYTHON") or (
    sys.executable if importlib.util.find_spec("llama_cpp") else ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs llama-cpp-python, here or in LORIKEET_LLAMA_CPP_PYTHON"),
]
WORKER = BENCHMARKS / "llama_cpp_worker.py"


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, file: Path, lora: Path | None = None, context: int = 128, **way: Any):
        self.process = subprocess.Popen(
            [PYTHON, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.folder = file.parent
        said: dict[str, Any] = {"cache": "f32", "flash": False, **way}
        self.ask(open=str(file), lora=str(lora) if lora else None, context=context, threads=1, **said)

    def ask(self, **said: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def logits(self, ids: list[int]) -> np.ndarray:
        file = self.folder / "logits.npy"
        self.ask(logits=ids, file=str(file))
        return np.load(file)


@pytest.fixture
def llama_cpp() -> Iterator[Callable[..., LlamaCpp]]:
    opened: list[LlamaCpp] = []

    def open_(file: Path, lora: Path | None = None, context: int = 128, **way: Any) -> LlamaCpp:
        opened.append(LlamaCpp(file, lora, context, **way))
        return opened[-1]

    yield open_
    for one in opened:
        one.process.kill()
        one.process.wait()


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.5, 2.0, 2.2, 2.5, 3.0],
    "long_factor": [2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}  # fmt: skip
LONG = {"original_max_position_embeddings": 256, "max_position_embeddings": 1024}  # llama.cpp's contexts are 256 long
# what transformers calls it, its settings
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, biases, tied": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3, yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen2_moe": ("Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 48, "norm_topk_prob": False}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3, longrope": ("Phi3", LONG | {"rope_parameters": LONGROPE}),
    "bloom": ("Bloom", {"seq_length": 64}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
}
COMMON = test_families.COMMON | {"intermediate_size": 96}


def network(case: str, folder: Path, **changes: Any) -> Path:
    """A folder with a random network, its numbers rounded to bfloat16, and a tokenizer of 97 tokens."""
    import transformers

    name, options = CASES[case]
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    common = {"vocab_size": 97} if name == "GPT2" else COMMON
    config = config_class(**common | options | changes)
    suffix = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{name}{suffix}")(config).float().eval()
    offset = 0 if name.startswith("Gemma") else 1
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            norm = any(word in key for word in ("norm", "ln_")) and key.endswith("weight")
            tensor.normal_(offset if norm else 0, 0.15)
            tensor.copy_(tensor.bfloat16())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer_of(folder)
    return folder


def ours(folder: Path, ids: list[int]) -> np.ndarray:
    return logits(load(open_checkpoint(folder), NoQuant(), dtype=torch.float32, device=tiny.CPU), ids).numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_llama_cpp_s(case: str, tmp_path: Path, llama_cpp: Callable[..., LlamaCpp]) -> None:
    folder = network(case, tmp_path / "model")
    export_gguf(folder, tmp_path / "model.gguf", type="f32")
    ids = tiny.random_tokens(np.random.default_rng(0), 30)
    # longrope's factors go by the context there, by the text here
    found = llama_cpp(tmp_path / "model.gguf", context=32).logits(ids)
    expected = ours(folder, ids)
    assert np.abs(found - expected).max() < 2e-3 * max(1, np.abs(expected).max())


F16 = torch.float16
# what llama.cpp is told, where it rounds then
WAYS = {
    "cache of F32": ({"cache": "f32", "flash": False}, Arithmetic(F16)),
    "cache of F16": ({"cache": "f16", "flash": False}, Arithmetic(F16, F16)),
    "flash attention": ({"cache": "f16", "flash": True}, Arithmetic(F16, F16, flash=True)),
}


@pytest.mark.parametrize("tokens", [30, 70])  # of flash attention's two ways, too
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["llama", "mistral"])
def test_what_an_f16_file_changes_is_what_ggml_rounds(
    case: str, way: str, tokens: int, tmp_path: Path, llama_cpp: Callable[..., LlamaCpp]
) -> None:
    """Each product and each attention, given llama.cpp's own inputs: ours is its where it rounds alike, else not."""
    file = tmp_path / "model.gguf"
    export_gguf(network(case, tmp_path / "model"), file, type="f16")
    model = load(open_checkpoint(file), NoQuant(), dtype=torch.float32, device=tiny.CPU)
    said, arithmetic = WAYS[way]
    ids = tiny.random_tokens(np.random.default_rng(0), tokens)
    there = llama_cpp(file, watch=True, **said)
    there.ask(nodes=ids, names=sorted(NODES), file=str(tmp_path / "nodes.npz"))
    nodes = dict(np.load(tmp_path / "nodes.npz"))
    (product, attention), (same_product, same_attention) = (one_by_one(model, nodes, one) for one in (None, arithmetic))
    assert same_product < 3e-6 and product > 1e-4
    # a probability may lie between two numbers of F16, where the last bit of a sum decides
    assert same_attention < (3e-6 if arithmetic.cache == torch.float32 else attention / 5)


# one of each layout: rows of q and k reordered, fused, stacked experts, [in, out]
ADAPTED = ["llama, biases, tied", "mixtral", "phi3", "qwen2_moe", "bloom", "gpt2"]


@pytest.mark.parametrize("case", ADAPTED)
def test_base_and_lora_file_are_the_merged_model(case: str, tmp_path: Path, llama_cpp: Callable[..., LlamaCpp]) -> None:
    folder = network(case, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    model = load(checkpoint, NoQuant(), dtype=torch.float32, device=tiny.CPU)
    adapter = Lora(
        r=4, rank_pattern={} if "mo" in case or "mix" in case else {r"0\..*": 2}, use_rslora=True
    )  # ranks and factors that differ
    adapter.attach(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.parameters(model).items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter, model, {"base": str(folder)})
    export_gguf(folder, tmp_path / "base.gguf", type="f32")
    export_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", adapter_only=True)
    export_gguf(tmp_path / "adapter", tmp_path / "merged.gguf", type="f32")
    ids = tiny.random_tokens(np.random.default_rng(0), 30)
    base = llama_cpp(tmp_path / "base.gguf").logits(ids)
    merged = llama_cpp(tmp_path / "merged.gguf").logits(ids)
    both = llama_cpp(tmp_path / "base.gguf", tmp_path / "adapter.gguf").logits(ids)
    bound = 2e-3 * max(1, np.abs(merged).max())
    assert np.abs(both - merged).max() < bound
    assert np.abs(base - merged).max() > 20 * bound  # the adapter does something
