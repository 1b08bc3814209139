"""Adapters by name: in one batch each reply is the one that its adapter gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer.conftest import VOCAB, ByteTokenizer, LineTemplate
from infer.test_batch import drain, options, random_prompt, text_of
from lorikeet.adapters import _storage as storage
from lorikeet.adapters.ia3 import Ia3
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import CheckpointError, LorikeetError, RecipeError
from lorikeet.infer.answering_linears import answering_linears
from lorikeet.infer.batch import Batch
from lorikeet.infer.engine import Engine, Request
from parity import tiny

TARGETS = {"one": "all-linear", "two": ["q_proj", "down_proj"], "three": "all-linear"}


def network(dtype: torch.dtype = torch.float64, **more: Any) -> tiny.Decoder:
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 16, "width": 32}
    return tiny.decoder(3, vocab=VOCAB, dtype=dtype, max_position=400, **sizes | more)


def attached(seed: int, targets: Any, dtype: torch.dtype = torch.float64, rank: int = 3) -> tuple[tiny.Decoder, Lora]:
    model, adapter = network(dtype), Lora(r=rank, lora_alpha=2 * rank, target_modules=targets)
    adapter.attach(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values():
            parameter.normal_(0, 0.3, generator=generator)
    return model, adapter


def engine(model: tiny.Decoder) -> Engine:
    return Engine(model, ByteTokenizer(), LineTemplate())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for seed, (name, targets) in enumerate(TARGETS.items()):
        found[name] = tmp_path_factory.mktemp(name)
        model, adapter = attached(seed, targets, rank=2 + seed)
        storage.save_adapter(found[name], adapter, model, {"template_fingerprint": "lines"})
    return found


def alone(name: str, prompt: list[int]) -> str:
    """The reply of the model with this adapter on it, as it is trained."""
    seed = list(TARGETS).index(name) if name in TARGETS else 0
    model = attached(seed, TARGETS[name], rank=2 + seed)[0] if name in TARGETS else network()
    return text_of(list(engine(model).generate([Request(0, prompt, options())])))


def test_each_reply_of_one_batch_has_its_own_adapter(folders: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    start = random_prompt(rng, 40)  # no page of one adapter serves another
    asked = [(name, [*start, *random_prompt(rng, 5)]) for name in ("one", "two", "base", "three", "one", None)]
    batch = Batch(engine(network()), rows=8)
    for name, folder in folders.items():
        batch.load_adapter(name, folder)
    assert batch.adapters == ["one", "two", "three"]
    for i, (name, prompt) in enumerate(asked):
        batch.add(Request(i, prompt, options(), adapter=name))
    found = drain(batch)
    for i, (name, prompt) in enumerate(asked):
        assert text_of(found[i]) == alone(name or "base", prompt), name
    batch.close()


def test_a_model_with_lora_of_its_own_answers_beside_its_base_and_others(folders: dict[str, Path]) -> None:
    prompt = random_prompt(np.random.default_rng(1), 9)
    batch = Batch(engine(attached(0, "all-linear", rank=2)[0]))  # as "one"
    batch.load_adapter("two", folders["two"])
    for name in (None, "base", "two"):
        batch.add(Request(str(name), prompt, options(), adapter=name))
    found = drain(batch)
    assert [text_of(found[name]) for name in ("None", "base", "two")] == [
        alone(n, prompt) for n in ("one", "base", "two")
    ]
    batch.close()


def test_adapters_come_and_go_while_replies_run(folders: dict[str, Path]) -> None:
    rng = np.random.default_rng(2)
    prompt, batch = random_prompt(rng, 70), Batch(engine(network()))
    batch.load_adapter("mine", folders["one"])
    batch.add(Request(0, prompt, options(), adapter="mine"))
    first = batch.step()
    batch.unload_adapter("mine")  # the reply that has it goes on
    with pytest.raises(LorikeetError, match="no adapter of this name"):
        batch.add(Request(1, prompt, options(), adapter="mine"))
    batch.load_adapter("mine", folders["two"])  # another one: what the first computed is not its
    batch.add(Request(2, prompt, options(), adapter="mine"))
    found = drain(batch, first)
    assert text_of(found[0]) == alone("one", prompt) and text_of(found[2]) == alone("two", prompt)
    assert found[2][0].reused == 0 and len(batch._answering.adapters) == 1
    batch.unload_adapter("mine")
    assert batch.adapters == [] and batch._answering.adapters == []
    batch.close()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("rows", [7, 120])
@torch.no_grad()
def test_rows_of_several_adapters_in_one_product_equal_each_alone(
    dtype: torch.dtype, tolerance: float, rows: int
) -> None:
    model = network(dtype)
    group = next(model.groups())
    generator = torch.Generator().manual_seed(0)
    width, inside = group.weight.out_features, group.weight.in_features
    x = torch.randn(rows, inside, generator=generator).to(dtype)
    rank, name = {"a": 3, "b": 40}, group.linears[0].name
    size = group.linears[0].out_features
    updates = {one: (torch.randn(r, inside), torch.randn(size, r), 0.3) for one, r in rank.items()}
    with answering_linears(model) as answering:
        for one, update in updates.items():
            answering.load(one, {name: update})
        parts = [("b", 2), ("base", 1), ("a", rows - 3)]
        answering.serve(parts)
        found, start = group(x), 0
        for one, count in parts:
            answering.serve([(one, count)])
            expected = group(x)[start : start + count]
            error = (found[start : start + count] - expected).abs().max() / expected.abs().max()
            assert error <= tolerance, one
            start += count
    assert found.shape == (rows, width)


def refused(batch: Batch, folder: Path, match: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=match):
        batch.load_adapter("new", folder)
    assert batch.adapters == [] and batch._answering.adapters == []


def test_what_does_not_fit_is_refused_and_nothing_is_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    batch = Batch(engine(network()))
    refused(batch, tmp_path, "no adapter_config.json")
    refused(Batch(engine(network(width=48))), folders["one"], "does not fit this model")
    refused(Batch(engine(network(layers=1))), folders["one"], "does not fit this model")
    model = network()
    other = Ia3(target_modules=["k_proj"], feedforward_modules=[])
    other.attach(model, seed=0)
    storage.save_adapter(tmp_path, other, model, {})
    refused(batch, tmp_path, "cannot be given to single requests", RecipeError)
    refused(Batch(engine(model)), folders["one"], "own adapter can be left out", RecipeError)
    identity = tmp_path / "other"
    identity.mkdir()
    lora_model, lora = attached(0, "all-linear")
    storage.save_adapter(identity, lora, lora_model, {"template_fingerprint": "not lines"})
    refused(batch, identity, "another template")
    for name in ("", "base"):
        with pytest.raises(LorikeetError, match="cannot have this name"):
            batch.load_adapter(name, folders["one"])
    with pytest.raises(LorikeetError, match="no adapter of this name"):
        batch.unload_adapter("nobody")


def test_a_text_that_is_read_anew_keeps_its_adapter(folders: dict[str, Path]) -> None:
    """Where a rope changes with the text's length, a reply that passes it is read again in the middle of a pass."""
    model = network()
    model.shares_within = 14
    rng = np.random.default_rng(5)
    asked = [(name, random_prompt(rng, size)) for name, size in (("one", 9), ("two", 11), ("base", 9), ("one", 12))]
    batch = Batch(engine(model), rows=4)
    for name in ("one", "two"):
        batch.load_adapter(name, folders[name])
    for i, (name, prompt) in enumerate(asked):
        batch.add(Request(i, prompt, options(), adapter=name))
    found = drain(batch)
    assert [text_of(found[i]) for i in range(4)] == [alone(name, prompt) for name, prompt in asked]
    batch.close()
