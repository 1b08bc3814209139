"""Meta's checkpoints: read as transformers' conversion script converts them, written as Meta reads them, exact both
ways, and refused wherever they are damaged or would run code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lorikeet.adapters.lora import Lora
from lorikeet.api.converting import convert
from lorikeet.base.errors import CheckpointError, LorikeetError, ModelError, OutputError, RecipeError
from lorikeet.checkpoints import _meta_layout as layout
from lorikeet.checkpoints._torch_file import entries
from lorikeet.checkpoints.meta import MetaCheckpoint
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import pack_row
from lorikeet.models.load import load
from lorikeet.ops.attention import PackedView
from lorikeet.quant.none import NoQuant
from lorikeet.train.optim import OptimOptions, Stepper
from lorikeet.train.step import train_step
from parity import tiny

SECOND = {"dim": 64, "multiple_of": 32, "n_heads": 8, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1}
THIRD = SECOND | {"n_kv_heads": 4, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0, "use_scaled_rope": True}
# (params.json, files, whether the embedding is cut by rows): LLaMA 1 and 2, Llama 2 70B, Llama 3
SEVENTY = {"dim": 128, "n_heads": 16, "n_kv_heads": 8, "multiple_of": 64, "ffn_dim_multiplier": 1.3}
LAYOUTS = {
    "one file": (SECOND, 1, False),
    "four files": (SECOND, 4, False),
    "grouped heads": (SECOND | {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3}, 2, False),
    "grouped heads, eight files": (SECOND | SEVENTY, 8, False),
    "embedding by rows": (THIRD, 4, True),
}
VOCABULARY = 48


def weights(params: dict[str, Any], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Whole tensors under Meta's names, in Meta's order."""
    dim, heads = params["dim"], params["n_heads"]
    kv = (params.get("n_kv_heads") or heads) * (dim // heads)
    ffn = layout.ffn_width(dim, params["multiple_of"], params.get("ffn_dim_multiplier"))
    sizes: dict[str, tuple[int, ...]] = {"tok_embeddings": (VOCABULARY, dim)}
    for i in range(params["n_layers"]):
        at = f"layers.{i}."
        sizes |= {at + "attention.wq": (dim, dim), at + "attention.wk": (kv, dim), at + "attention.wv": (kv, dim)}
        sizes |= {at + "attention.wo": (dim, dim), at + "feed_forward.w1": (ffn, dim)}
        sizes |= {at + "feed_forward.w2": (dim, ffn), at + "feed_forward.w3": (ffn, dim)}
        sizes |= {at + "attention_norm": (dim,), at + "ffn_norm": (dim,)}
    sizes |= {"norm": (dim,), "output": (VOCABULARY, dim)}
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.weight": (torch.randn(size, generator=generator) * 0.2 + (len(size) == 1)).to(dtype)
        for name, size in sizes.items()
    }


def cut(name: str, tensor: Tensor, number: int, files: int, by_rows: bool) -> Tensor:
    """A device's part, as Meta's column- and row-parallel layers hold it. Written apart from what is tested."""
    if "norm" in name:
        return tensor
    columns = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and not by_rows)
    return tensor.chunk(files, dim=1 if columns else 0)[number].clone()


def folder_of(path: Path, params: dict[str, Any], files: int, by_rows: bool, **made: Any) -> dict[str, Tensor]:
    """A checkpoint of Meta's, by torch.save; returns its whole tensors."""
    path.mkdir(parents=True, exist_ok=True)
    whole = weights(params, **made)
    for number in range(files):
        shard = OrderedDict((name, cut(name, tensor, number, files, by_rows)) for name, tensor in whole.items())
        shard["rope.freqs"] = torch.ones(4, dtype=torch.bfloat16)
        torch.save(shard, path / f"consolidated.{number:02d}.pth")
    (path / "params.json").write_text(json.dumps(params))
    return whole


def permuted(weight: Tensor, heads: int) -> Tensor:
    """transformers' `permute` in convert_llama_weights_to_hf.py."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def as_converted(whole: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """What the conversion script makes of the whole tensors."""
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    found = {}
    for name, tensor in whole.items():
        if name.endswith("wq.weight"):
            tensor = permuted(tensor, heads)
        if name.endswith("wk.weight"):
            tensor = permuted(tensor, kv_heads)
        found[layout.to_hf(name)] = tensor
    return found


@pytest.fixture(params=LAYOUTS)
def meta(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor], int]:
    params, files, by_rows = LAYOUTS[request.param]
    return tmp_path / "meta", params, folder_of(tmp_path / "meta", params, files, by_rows), files


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


def test_tensors_are_those_of_transformers_conversion(meta: Any) -> None:
    path, params, whole, _ = meta
    checkpoint = open_checkpoint(path)
    assert checkpoint.layout == "meta"
    expected = as_converted(whole, params)
    same({name: checkpoint.read(name) for name in checkpoint.names()}, expected)
    assert {name: checkpoint.shape(name) for name in expected} == {n: tuple(t.shape) for n, t in expected.items()}
    assert {checkpoint.stored(name) for name in expected} == {"BF16"}


def test_to_hugging_face_and_back_is_exact(meta: Any, tmp_path: Path) -> None:
    path, params, whole, files = meta
    convert(str(path), tmp_path / "hf", "hf", max_shard_bytes=40_000)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 1
    same({n: t for file in shards for n, t in load_file(file).items()}, as_converted(whole, params))
    convert(str(tmp_path / "hf"), tmp_path / "back", "meta", shards=files)
    assert json.loads((tmp_path / "back" / "params.json").read_text()) == params
    by_rows = False  # 48 tokens: the writer takes it for a LLaMA 1 or 2
    for number in range(files):
        file = tmp_path / "back" / f"consolidated.{number:02d}.pth"
        read = torch.load(file, weights_only=True, mmap=True)
        same(dict(read), {name: cut(name, tensor, number, files, by_rows) for name, tensor in whole.items()})
        assert all(one.start % 64 == 0 for one in entries(file).values())
    assert open_checkpoint(path).fingerprint() == open_checkpoint(tmp_path / "hf").fingerprint()


def test_another_number_of_files_holds_the_same_model(tmp_path: Path) -> None:
    folder_of(tmp_path / "two", SECOND, 2, False)
    convert(str(tmp_path / "two"), tmp_path / "hf", "hf")
    convert(str(tmp_path / "hf"), tmp_path / "eight", "meta", shards=8)
    assert len(list((tmp_path / "eight").glob("*.pth"))) == 8
    left, right = open_checkpoint(tmp_path / "two"), open_checkpoint(tmp_path / "eight")
    same({n: left.read(n) for n in left.names()}, {n: right.read(n) for n in right.names()})
    assert left.fingerprint() == right.fingerprint()


def interleaved(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Meta's rotary embedding: neighbours are a complex number. x [T, H, E]."""
    frequencies = 1.0 / theta ** (torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    turned = torch.polar(torch.ones(1).double(), torch.outer(positions.double(), frequencies))[:, None]
    return torch.view_as_real(torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)) * turned).flatten(2)


def forward(whole: dict[str, Tensor], params: dict[str, Any], tokens: Tensor) -> Tensor:
    """Meta's model.py in a few lines of float64: logits [T, V]."""
    w = {name: tensor.double() for name, tensor in whole.items()}
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]).rsqrt() * w[name]

    x, positions = w["tok_embeddings.weight"][tokens], torch.arange(len(tokens))
    for i in range(params["n_layers"]):
        at, h = f"layers.{i}.", norm(x, f"layers.{i}.attention_norm.weight")
        q, k, v = (h @ w[f"{at}attention.w{one}.weight"].T for one in "qkv")
        q = interleaved(q.view(len(x), heads, -1), positions, 10000.0)
        k = interleaved(k.view(len(x), kv_heads, -1), positions, 10000.0).repeat_interleave(heads // kv_heads, 1)
        v = v.view(len(x), kv_heads, -1).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf")).softmax(-1)
        x = x + torch.einsum("hqk,khe->qhe", scores, v).flatten(1) @ w[at + "attention.wo.weight"].T
        h = norm(x, at + "ffn_norm.weight")
        gated = torch.nn.functional.silu(h @ w[at + "feed_forward.w1.weight"].T)
        x = x + (gated * (h @ w[at + "feed_forward.w3.weight"].T)) @ w[at + "feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ w["output.weight"].T


def test_logits_equal_meta_s_own_arithmetic_and_it_trains(tmp_path: Path) -> None:
    params = SECOND | {"n_kv_heads": 4}
    whole = folder_of(tmp_path, params, 2, False)
    model = load(open_checkpoint(tmp_path), NoQuant(), dtype=torch.float64, device=tiny.CPU)
    tokens = torch.tensor([1, 5, 9, 40, 3, 3, 17])
    view = PackedView(torch.full((7,), 7, dtype=torch.int32), torch.arange(7))
    logits = model.head.logits(model.hidden(tokens, torch.arange(7), view))
    torch.testing.assert_close(
        logits, forward(whole, params, tokens), rtol=1e-5, atol=1e-5
    )  # ours has angles in float32
    adapter = Lora(r=2)
    adapter.attach(model, seed=0)
    stepper = Stepper(adapter.parameters(model), OptimOptions(learning_rate=0.05))
    rows = [pack_row([tiny.example([1, 5, 9, 40, 3, 3, 17])])]
    losses = [train_step(model, stepper, rows, learning_rate=0.05).loss for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_whose_head_is_its_embedding_gets_a_head_there(make_model: Any, tied: bool, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", vocab_size=304, tie_word_embeddings=tied)
    convert(str(model), tmp_path / "meta", "meta", shards=2)
    ours, back = open_checkpoint(model), MetaCheckpoint(tmp_path / "meta")
    for name in ours.names():
        assert torch.equal(ours.read(name), back.read(name)), name
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert torch.equal(back.read("lm_head.weight"), ours.read(head))
    assert back.config["intermediate_size"] == ours.config["intermediate_size"]


@pytest.mark.parametrize(
    ("params", "vocabulary", "context"),
    [
        ({"dim": 4096, "norm_eps": 1e-6}, 32000, 2048),
        ({"dim": 8192, "norm_eps": 1e-5}, 32000, 2048),
        ({"dim": 4096, "norm_eps": 1e-5}, 32000, 4096),
        ({"dim": 8192, "norm_eps": 1e-5, "n_kv_heads": 8}, 32000, 4096),
        ({"dim": 4096, "norm_eps": 1e-5, "rope_theta": 1e6}, 32016, 16384),
        ({"dim": 4096, "norm_eps": 1e-5, "rope_theta": 5e5, "n_kv_heads": 8}, 128256, 8192),
        ({"dim": 4096, "norm_eps": 1e-5, "rope_theta": 5e5, "use_scaled_rope": True}, 128256, 131072),
    ],
)
def test_what_params_json_does_not_say_of_the_context(params: dict[str, Any], vocabulary: int, context: int) -> None:
    assert layout.context(params, vocabulary) == context


# Meta's own sizes: dim, multiple_of, ffn_dim_multiplier, width
PUBLISHED = [
    (4096, 256, None, 11008),
    (5120, 256, None, 13824),
    (8192, 4096, 1.3, 28672),
    (4096, 1024, 1.3, 14336),
    (2048, 256, 1.5, 8192),
    (6656, 256, None, 17920),
]


@pytest.mark.parametrize(("dim", "multiple_of", "multiplier", "width"), PUBLISHED)
def test_the_width_of_the_feed_forward(dim: int, multiple_of: int, multiplier: float | None, width: int) -> None:
    assert layout.ffn_width(dim, multiple_of, multiplier) == width
    found = layout._feed_forward(dim, width)
    assert layout.ffn_width(dim, found["multiple_of"], found.get("ffn_dim_multiplier")) == width


@given(dim=st.integers(2, 1024).map(lambda n: 8 * n), width=st.integers(1, 40000))
def test_any_width_has_a_multiple_and_a_multiplier(dim: int, width: int) -> None:
    found = layout._feed_forward(dim, width)
    assert layout.ffn_width(dim, found["multiple_of"], found.get("ffn_dim_multiplier")) == width


class Harm:
    """A pickle that calls something."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def spoil(path: Path, how: str) -> None:
    first, params = path / "consolidated.00.pth", path / "params.json"
    read = dict(torch.load(first, weights_only=True))
    if how == "code":
        torch.save({**read, "x": Harm(path / "harmed")}, first)
    elif how == "numpy":
        torch.save({**read, "x": np.ones(2)}, first)
    elif how == "nested":
        torch.save({"model": read}, first)
    elif how == "old format":
        torch.save(read, first, _use_new_zipfile_serialization=False)
    elif how == "cut off":
        first.write_bytes(first.read_bytes()[:-2000])
    elif how == "gap":
        first.rename(path / "consolidated.03.pth")
    elif how == "other shapes":
        read["layers.0.attention.wo.weight"] = read["layers.0.attention.wo.weight"][:-1].clone()
        torch.save(read, first)
    elif how == "strange name":
        torch.save({**read, "layers.0.feed_forward.experts": torch.ones(2)}, first)
    elif how == "view":
        torch.save({**read, "output.weight": torch.ones(64, 24).bfloat16().T}, first)
    elif how == "no params":
        params.unlink()
    elif how == "params text":
        params.write_text("{dim: 64}")
    elif how == "heads":
        params.write_text(json.dumps(SECOND | {"n_heads": 7}))
    elif how == "experts":
        params.write_text(json.dumps(SECOND | {"moe_args": {"num_experts": 16}}))
    elif how == "dim":
        params.write_text(json.dumps({key: value for key, value in SECOND.items() if key != "dim"}))


REFUSED = {
    "code": "would call what is no tensor",
    "numpy": "would call what is no tensor",
    "nested": "cannot be read as plain tensors",
    "old format": "not in torch's zip format",
    "cut off": "damaged, cut off",
    "gap": "parts of the model are missing",
    "other shapes": "do not make what params.json says",
    "strange name": "is not in consolidated.01.pth",
    "view": "does not lie there as plain rows",
    "no params": "no params.json",
    "params text": "not JSON",
    "heads": "the heads do not fit each other",
    "experts": "no dense Llama",
    "dim": "no 'dim'",
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_damaged_or_dangerous_checkpoint_is_refused(how: str, tmp_path: Path) -> None:
    folder_of(tmp_path, SECOND, 2, False)
    spoil(tmp_path, how)
    with pytest.raises(CheckpointError, match=REFUSED[how]):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "harmed").exists()


@given(data=st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("changed") / "consolidated.00.pth"
    torch.save({"a": torch.ones(3, 2), "b": torch.ones(1).bfloat16()}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for one in entries(path).values():
            one.read().sum()
    except LorikeetError:
        pass


def test_a_conversion_that_cannot_be_is_refused_and_writes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "meta", SECOND, 2, False)
    with pytest.raises(CheckpointError, match="--to meta reads a Hugging Face folder"):
        convert(str(tmp_path / "meta"), tmp_path / "out", "meta")
    with pytest.raises(RecipeError, match="--shards: has no effect"):
        convert(str(tmp_path / "meta"), tmp_path / "out", "hf", shards=2)
    with pytest.raises(RecipeError, match="cannot be cut into 3 equal parts"):
        convert(str(tiny_model), tmp_path / "out", "meta", shards=3)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    with pytest.raises(ModelError, match="no place for this model's 'model_type'"):
        convert(str(other), tmp_path / "out", "meta")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="exists already"):
        convert(str(tiny_model), other, "meta")


MEASURE = """
import sys, threading, time
from pathlib import Path
from lorikeet.api.converting import convert
def anonymous():
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
before, peak, running = anonymous(), [0], [True]
def watch():
    while running[0]:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
convert(sys.argv[1], Path(sys.argv[2]), sys.argv[3], shards=int(sys.argv[4]))
running[0] = False; thread.join()
print(peak[0] - before)
"""


@pytest.mark.slow
def test_a_conversion_holds_two_tensors_at_most(tmp_path: Path) -> None:
    """About 1 GB in eight files, both ways; the largest tensor has 128 MiB."""
    params = {"dim": 2048, "multiple_of": 256, "n_heads": 16, "n_kv_heads": 8, "n_layers": 9, "norm_eps": 1e-5}
    tensors = weights(params | {"n_layers": 1})
    largest = torch.ones(32768, 2048, dtype=torch.bfloat16)
    tensors |= {"tok_embeddings.weight": largest, "output.weight": largest}
    for i in range(1, 9):
        tensors |= {n.replace("layers.0.", f"layers.{i}."): t for n, t in tensors.items() if n.startswith("layers.0.")}
    (tmp_path / "meta").mkdir()
    for number in range(8):
        shard = {name: cut(name, tensor, number, 8, False) for name, tensor in tensors.items()}
        torch.save(shard, tmp_path / "meta" / f"consolidated.{number:02d}.pth")
    (tmp_path / "meta" / "params.json").write_text(json.dumps(params))
    del tensors, shard
    for source, target, to, files in (("meta", "hf", "hf", "1"), ("hf", "back", "meta", "8")):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / source), str(tmp_path / target), to, files]
        used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{to}: {used / (1 << 20):.0f} MiB")
        assert used <= 2 * largest.nbytes + (1 << 29)
