"""New tokens: their rows train as they would in a whole embedding, are saved alone, and merging grows the tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import compare
from lorikeet.adapters._new_tokens import NewTokens, around
from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.full import Full
from lorikeet.adapters.lora import Lora
from lorikeet.api.answering import engine
from lorikeet.base.errors import TokenizerError
from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command
from lorikeet.models.new_rows import grow
from lorikeet.tokens.open import open_tokenizer
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step
from parity import test_step, tiny

TOKENS = NewTokens(tiny.VOCAB, 3)
ROWS = test_step.packed([tiny.example([1, 23, 24, 5, 7, 24, 23, 2]), tiny.example([1, 23, 9, 9, 25])], share=True)
PROBES = [[1, 23, 24], [25, 3, 23, 1]]


def beside(adapter: Adapter, **network: Any) -> tuple[tiny.Decoder, Adapter]:
    model, whole = tiny.decoder(**network), around(adapter, TOKENS)
    whole.attach(model, seed=0)
    return model, whole


@pytest.mark.parametrize("tied", [True, False])
def test_rows_have_the_gradients_of_a_whole_table(tied: bool) -> None:
    """The others of which are frozen: full tuning of the tables says the same about these rows."""
    model, adapter = beside(Lora(r=2, target_modules=["q_proj"]), tied=tied)
    found = tiny.loss_and_gradients(model, adapter.parameters(model), ROWS)
    whole = tiny.decoder(tied=tied)
    grow(whole, *TOKENS)
    names = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    full = Full(target_modules=names)
    full.attach(whole, seed=0)
    expected = tiny.loss_and_gradients(whole, full.parameters(whole), ROWS)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    rows = {name: gradient for name, gradient in found[1].items() if name.endswith("trainable_tokens_delta")}
    assert len(rows) == len(names)
    for name, gradient in rows.items():
        table = name.removeprefix("base_model.model.").removesuffix(".token_adapter.trainable_tokens_delta")
        torch.testing.assert_close(gradient, expected[1][f"{table}.weight"][23:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_are_those_of_a_whole_table_that_trains(tied: bool) -> None:
    """Step after step, by plain SGD, with the other rows put back each time."""
    words = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    model, adapter = beside(Lora(r=1, target_modules=["q_proj"]), tied=tied)
    rows = {name: one for name, one in adapter.parameters(model).items() if name.endswith("tokens_delta")}
    whole, full = tiny.decoder(tied=tied), Full(target_modules=words)
    grow(whole, *TOKENS)
    full.attach(whole, seed=0)
    tables = full.parameters(whole)
    options = TrainOptions(optim="sgd", max_grad_norm=0)
    steppers = Stepper(rows, options), Stepper(tables, options)
    old = {name: one[:23].detach().clone() for name, one in tables.items()}
    for _ in range(4):
        for network, stepper in zip((model, whole), steppers):
            train_step(network, stepper, ROWS, learning_rate=0.1)
        with torch.no_grad():
            for name, one in tables.items():
                one[:23] = old[name]
    for left, right in zip(rows.values(), tables.values()):
        torch.testing.assert_close(left, right[23:], rtol=1e-9, atol=1e-12)
    assert compare(model, whole, PROBES, 1e-12).max_difference < 1e-9


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_begin_as_the_mean_and_nothing_else_moves(tied: bool) -> None:
    model, base = tiny.decoder(tied=tied), tiny.decoder(tied=tied)
    around(Lora(), TOKENS).attach(model, seed=0)
    for table, old in ((model.embedding.weight, base.embedding.weight), (model.head.weight, base.head.weight)):
        assert table.shape == (26, 16) and torch.equal(table[:23], old)
        torch.testing.assert_close(table[23:], old.mean(0).expand(3, 16))
    assert model.shape.vocab_size == 26 and (model.embedding.weight is model.head.weight) == tied


def test_a_table_that_has_room_does_not_grow() -> None:
    model = tiny.decoder()
    around(Lora(), NewTokens(20, 2)).attach(model, seed=0)
    assert model.shape.vocab_size == 23 and len(model.embedding.weight) == 23
    torch.testing.assert_close(model.embedding.weight[20:22], model.embedding.weight[:20].mean(0).expand(2, 16))


@pytest.mark.parametrize("adapter", [Lora(r=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_filled_say_the_same(adapter: Adapter, tied: bool, tmp_path: Path) -> None:
    model, whole = beside(adapter, tied=tied)
    with torch.no_grad():
        for i, parameter in enumerate(whole.parameters(model).values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 5)
    save_adapter(tmp_path, whole, model, {"base": "tiny"})
    read, tensors, _ = read_adapter(tmp_path)
    assert read.model_dump()["kind"] == adapter.model_dump()["kind"]
    other = tiny.decoder(tied=tied)
    read.attach(other, seed=4)
    fill(other, read, tensors, source="test")
    assert compare(model, other, PROBES, 1e-12).max_difference == 0


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def run(request: pytest.FixtureRequest, make_model: Callable[..., Path], tmp_path: Path, rows: list[Any]) -> Path:
    """A trained run with two new tokens, which its template uses."""
    model = make_model(tmp_path / "model", chat_template=None, tie_word_embeddings=request.param)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = "{% for m in messages %}{{ '<|turn|>' + m['role'] + ' ' + m['content'] + '<|over|>' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ '<|turn|>assistant ' }}{% endif %}"
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(model), "dtype": "float32", "add_tokens": ["<|turn|>", "<|over|>"]},
        "adapter": {"kind": "lora", "r": 2, "target_modules": ["q_proj"]},
        "data": {
            "train": [str(data)],
            "validation": 4,
            "max_length": 128,
            "template": {"kind": "jinja", "source": source},
        },
        "train": {"max_steps": 3, "learning_rate": 0.01, "save_steps": 2},
    }
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert run_command(["train", str(tmp_path / "recipe.yaml")]) == 0
    return tmp_path / "run"


def test_a_run_with_new_tokens_from_end_to_end(run: Path, tmp_path: Path) -> None:
    """Saved: the new rows alone, in PEFT's layout, which PEFT loads; merged: grown tables and their tokenizer."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    rows = {name: one for name, one in tensors.items() if name.endswith("trainable_tokens_delta")}
    tied = len(rows) == 1
    assert all(one.shape == (2, 64) for one in rows.values()) and len(rows) in (1, 2)
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size < 12_000, "no table is in there"
    assert run_command(["evaluate", str(run)]) == 0 and run_command(["evaluate", str(tmp_path / "recipe.yaml")]) == 0
    assert run_command(["merge", str(run), str(tmp_path / "merged")]) == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    size = open_tokenizer(tmp_path / "model", None).vocab_size
    assert merged.config.vocab_size == size + 2 == len(merged.get_input_embeddings().weight)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert words.convert_tokens_to_ids(["<|turn|>", "<|over|>"]) == [size, size + 1]
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base.resize_token_embeddings(size + 2, mean_resizing=False)
    whole = peft.PeftModel.from_pretrained(base, run / "adapter")
    ids = torch.tensor([[size, 3, 4, size + 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    assert engine(run / "adapter").tokenizer.vocab_size == size + 2
    assert tied == merged.config.tie_word_embeddings


@pytest.mark.parametrize("names", [["<|im_end|>"], ["<|a|>", "<|a|>"], [""], ["the"]])
def test_names_that_are_no_new_tokens_are_refused(names: list[str], tiny_model: Path) -> None:
    tokenizer = open_tokenizer(tiny_model, None)
    if names == ["the"] and "the" not in tokenizer._backend.get_vocab():  # type: ignore[attr-defined]
        pytest.skip("no such piece")
    with pytest.raises(TokenizerError, match="not a new token"):
        tokenizer.with_tokens(names)


def test_text_never_becomes_a_new_token(tiny_model: Path) -> None:
    tokenizer = open_tokenizer(tiny_model, None).with_tokens(["<|turn|>"])
    assert tokenizer.control["<|turn|>"] not in tokenizer.encode("a <|turn|> b")[0]
    assert tokenizer.fingerprint != open_tokenizer(tiny_model, None).fingerprint
