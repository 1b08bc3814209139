"""What many tests need: a tiny real model on disk, a little data, and a cache of their own.

The model is a random Llama of 0.1 million weights with its own tokenizer, made here: nothing is downloaded and nothing
binary is kept in the repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lorikeet import kernels
from lorikeet.base.files import cache_dir
from lorikeet.kernels import build
from lorikeet.models import load

# the same examples each time, so that a failure is the change's; `--hypothesis-profile=default` looks for new ones
# and no limit of its own on what an example may take: 200 ms, and a second to make ten of them, is what a machine with
# other work takes now and then
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(1)
build.build()  # once, in the user's own cache
# model.dtype=auto is timed once: a machine that is busy in between would give two commands of one test two dtypes
MATMULS = {dtype: min(load._matmul_seconds(dtype) for _ in range(8)) for dtype in (torch.bfloat16, torch.float32)}
load._matmul_seconds = MATMULS.__getitem__
KERNELS = cache_dir() / "kernels"

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system You are a helpful assistant. Name a colour. The colour is blue.",
    "Sort the numbers 3 1 2. They are 1 2 3 in order.\nThank you, and hello to you.",
] * 4
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "dtype": "float32",
}  # fmt: skip
QUESTIONS = ["What is {n} and {m}?", "Name the number after {n}.", "Sort {m} {n}.", "Repeat: blue {n}"]


def _tokenizer() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONTROL])
    return bpe


def _weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(config.get("seed", 0))
    width, ffn, head_dim = config["hidden_size"], config["intermediate_size"], 64 // 4
    rows = {"q_proj": config["num_attention_heads"] * head_dim, "k_proj": config["num_key_value_heads"] * head_dim}
    rows["v_proj"] = rows["k_proj"]

    def normal(out: int, inside: int) -> torch.Tensor:
        return torch.randn(out, inside, generator=generator) / inside**0.5

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], width), "model.norm.weight": torch.ones(width)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, out in rows.items():
            tensors[f"{at}.self_attn.{name}.weight"] = normal(out, width)
        tensors[f"{at}.self_attn.o_proj.weight"] = normal(width, rows["q_proj"])
        for name, out, inside in (("gate_proj", ffn, width), ("up_proj", ffn, width), ("down_proj", width, ffn)):
            tensors[f"{at}.mlp.{name}.weight"] = normal(out, inside)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = 1 + torch.randn(width, generator=generator) / 10
    return tensors


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """make_model(folder, chat_template=..., **changes of config.json): a Hugging Face folder of a random tiny Llama."""

    def make(folder: Path, *, chat_template: str | None = CHATML, **changes: Any) -> Path:
        folder.mkdir(parents=True)
        bpe = _tokenizer()
        ids = {name: bpe.token_to_id(name) for name in CONTROL}
        named = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
        config = {**LLAMA, "vocab_size": bpe.get_vocab_size(), **named, **changes}
        save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "seed"}))
        bpe.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "eos_token": "<|im_end|>"}
        settings |= {"pad_token": "<|endoftext|>"} | ({} if chat_template is None else {"chat_template": chat_template})
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder that all tests share: 2 layers, 64 wide, 4 heads on 2, about 300 tokens, 512 positions.
    Read it only."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """24 conversations as `messages`; some share their first lines."""
    made = []
    for n in range(24):
        question = QUESTIONS[n % len(QUESTIONS)].format(n=n, m=n // 3)
        system = [{"role": "system", "content": "You are a helpful assistant."}] if n % 2 else []
        turn = [{"role": "user", "content": question}, {"role": "assistant", "content": f"The answer is {n * 3}."}]
        made.append({"messages": [*system, *turn]})
    return made


@pytest.fixture
def tiny_data(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    """`rows` as a .jsonl file of this test's own."""
    file = tmp_path / "tiny.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(autouse=True)
def cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    """A cache folder of this test's own. Slow tests keep the real one: what they download is large."""
    if request.node.get_closest_marker("slow"):
        return None
    folder = own_cache(tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def own_cache(folder: Path) -> Path:
    """An empty cache but for the compiled kernels, which every process would compile again."""
    (folder / "lorikeet").mkdir(parents=True)
    if KERNELS.is_dir():
        (folder / "lorikeet" / "kernels").symlink_to(KERNELS, target_is_directory=True)
    return folder


@pytest.fixture(params=["auto", "eager"])
def computed_by(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to compute: the compiled kernels, where there is a compiler, and plain PyTorch."""
    if request.param == "auto" and build.build() is None:
        pytest.skip("needs a C++ compiler")
    kernels.choose(request.param)
    yield request.param
    kernels.choose("auto")
