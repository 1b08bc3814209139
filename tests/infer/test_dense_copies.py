"""Dense copies of quantised weights: the same replies, each weight made dense once, and gone afterwards."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from infer.conftest import VOCAB, ByteTokenizer, LineTemplate, ids
from lorikeet import config, kernels
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.nouns import Example
from lorikeet.infer import dense_copies as module
from lorikeet.infer import engine as engine_module
from lorikeet.infer.batch import Batch
from lorikeet.infer.dense_copies import RESERVE, Dequantize, copied_weights, decide, dense_copies
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.samples import write_samples
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.kernels import few_rows
from lorikeet.kernels.linear import computes_with
from lorikeet.models.kv_cache import KvCache
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.int8 import Int8, Int8Weight
from lorikeet.quant.nf4 import NF4
from parity import tiny

TEXTS = tuple(enumerate(("one", "another", "x")))


def engine(quant: Quant, dtype: torch.dtype = torch.float32, **sizes: int) -> Engine:
    model = tiny.decoder(3, vocab=VOCAB, dtype=dtype, max_position=96, **sizes)
    for group in model.groups():
        group.weight = quant.freeze(group.weight.dense(dtype))
        for linear in group.linears:
            linear._weight[0] = group.weight
    return Engine(model, ByteTokenizer(), LineTemplate())


def replies(engine: Engine, **options: object) -> list[str]:
    made = GenerateOptions(max_new_tokens=8, **options)
    requests = [Request(i, ids(text), made) for i, text in TEXTS]
    texts = [""] * len(requests)
    for event in engine.generate(requests):
        texts[event.name] += event.text
    return texts


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each weight was made dense."""
    counted: Counter[int] = Counter()
    plain = Int8Weight.rows

    def rows(self: Int8Weight, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        counted[id(self)] += 1
        return plain(self, start, stop, dtype)

    monkeypatch.setattr(Int8Weight, "rows", rows)
    return counted


def test_every_weight_is_made_dense_once_and_the_replies_are_the_same(made: Counter[int]) -> None:
    answering = engine(Int8())
    slow = replies(answering, dequantize=False)
    assert min(made.values()) >= 8, "without copies: in every pass"
    made.clear()
    assert replies(answering) == slow
    assert set(made.values()) == {1} and len(made) == len(list(answering.model.groups()))


def test_no_copy_outlives_the_replies() -> None:
    answering = engine(NF4())
    weights = [group.weight for group in answering.model.groups()]
    decided = decide(answering.model, True)
    with dense_copies(answering.model):
        copies = [weakref.ref(weight.dense(torch.float32)) for weight in weights]
        alive = [copy() for copy in copies]
        assert decided is not None
        assert decided.needed == sum(0 if copy is None else copy.untyped_storage().nbytes() for copy in alive)
        del alive
        assert decide(answering.model, "auto") is None, "they are there already"
        with dense_copies(answering.model):
            pass
        assert weights[0].dense(torch.float32) is copies[0](), "the inner block left them alone"
    gc.collect()
    assert all(copy() is None for copy in copies)
    assert not any("dense" in vars(weight) or "rows" in vars(weight) for weight in weights)


def test_replies_that_nobody_waits_for_leave_no_copies() -> None:
    answering = engine(Int8())
    weights = [group.weight for group in answering.model.groups()]
    made = answering.generate([Request(0, ids("ab"), GenerateOptions(max_new_tokens=8))])
    next(made)
    assert "dense" in vars(weights[0])
    made.close()
    assert not any("dense" in vars(weight) for weight in weights)


def test_the_samples_of_a_training_run_keep_no_copies(made: Counter[int], tmp_path: Path) -> None:
    example = Example(np.array(ids("a question")), np.array([0.0] * 8 + [1.0] * 2, np.float32))
    write_samples(tmp_path, engine(Int8()), [example], GenerateOptions(max_new_tokens=4), "before")
    assert min(made.values()) >= 4, "made dense in every pass"


def test_another_dtype_and_rows_are_answered_as_ever() -> None:
    weight = Int8().freeze(torch.randn(6, 8))
    answering = engine(Int8())
    (group, *_) = answering.model.groups()
    group.weight = weight
    expected = {dtype: weight.dense(dtype) for dtype in (torch.float32, torch.float64)}
    with dense_copies(answering.model):
        for _ in range(2):
            assert torch.equal(weight.rows(1, 4, torch.float32), expected[torch.float32][1:4])
            for dtype, dense in expected.items():
                assert torch.equal(weight.dense(dtype), dense)
            assert torch.equal(weight.rows(1, 4, torch.float64), expected[torch.float64][1:4])


QUANTS = [NF4(), NF4(double_quant=True), Int8(), Gptq(bits=4, group_size=32)]


@pytest.mark.parametrize("quant", QUANTS, ids=str)
def test_new_tokens_are_multiplied_with_what_is_kept_to_the_same_bits(
    quant: Quant, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.choose("auto")  # whatever was opened before
    answering = engine(quant, torch.bfloat16, width=32, head_dim=8)
    if not kernels.serves(torch.empty(1, dtype=torch.bfloat16)):
        pytest.skip("no compiler here")
    asked, auto = copied_weights(answering.model), copied_weights(answering.model, "auto")
    fit = [weight for weight in asked if weight.out_features % 16 == 0 and weight.in_features % 32 == 0]
    kept = set(fit) if few_rows.keeps_pace() else set()
    assert fit and set(auto) == set(asked) - kept, "copies only of sizes that the kernel does not take"

    def states(keep: Dequantize) -> list[Tensor]:
        requests = [Request(i, ids(text), GenerateOptions(max_new_tokens=8, dequantize=keep)) for i, text in TEXTS]
        found: list[Tensor] = []
        plain = answering.model.head.logits
        with monkeypatch.context() as patch:
            patch.setattr(answering.model.head, "logits", lambda x: found.append(x.clone()) or plain(x))
            for _ in answering.generate(requests):
                pass
        return found

    copied = states(True)
    assert len(copied) > 4
    for other in (states(False), states("auto")):
        assert all(torch.equal(one, two) for one, two in zip(copied, other, strict=True))


def test_of_more_rows_than_the_kernel_takes_copies_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.choose("auto")  # whatever was opened before
    answering = engine(NF4(), torch.bfloat16, width=32, head_dim=8)
    if not kernels.serves(torch.empty(1, dtype=torch.bfloat16)):
        pytest.skip("no compiler here")
    most = few_rows.MOST_ROWS if computes_with() == "tiles" else few_rows.MOST_ROWS_ON_VECTORS
    every, few, many = (
        copied_weights(answering.model, *asked) for asked in ((True,), ("auto", most), ("auto", most + 1))
    )
    assert len(few) < len(every) or not few_rows.keeps_pace()
    assert many == every
    told: list[int] = []
    monkeypatch.setattr(engine_module, "decide", lambda model, keep, beside, rows: told.append(rows))
    options = GenerateOptions(max_new_tokens=1, batch_size=200)
    for count in (3, most + 1):
        for _ in answering.generate([Request(i, ids("x"), options) for i in range(count)]):
            pass
    monkeypatch.setattr(type(answering.model), "reads_whole", True)  # anew for each token
    with closing(Batch(answering, rows=1, cache_tokens=96)):
        assert told == [3, most + 1, 96]


@pytest.mark.parametrize("by", ["tiles", "pairs", None])
def test_where_making_rows_dense_takes_long_copies_are_kept(by: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.choose("auto")  # whatever was opened before
    answering = engine(NF4(), torch.bfloat16, width=32, head_dim=8)
    if not kernels.serves(torch.empty(1, dtype=torch.bfloat16)):
        pytest.skip("no compiler here")
    monkeypatch.setattr(few_rows, "computes_with", lambda: by)
    every, auto = copied_weights(answering.model), copied_weights(answering.model, "auto")
    assert (auto == every) is (by is None)


def memory_is(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(module, "memory_of", lambda device: (total, free))


@pytest.mark.parametrize("asked", ["auto", True, False])
def test_little_memory_means_no_copies_unless_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: Dequantize
) -> None:
    answering, beside = engine(Int8()), 1000
    needed = sum(4 * weight.out_features * weight.in_features for weight in copied_weights(answering.model))
    total = 8 * needed
    for free, fits in ((needed + beside + int(RESERVE * total), True), (needed + int(RESERVE * total), False)):
        memory_is(monkeypatch, total, free)
        decided = decide(answering.model, asked, beside)
        assert decided is not None and decided.needed == needed
        assert decided.keep is (fits if asked == "auto" else asked)


def test_what_was_decided_is_said_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, made: Counter[int], capsys: pytest.CaptureFixture[str]
) -> None:
    answering = engine(Int8())
    memory_is(monkeypatch, 1 << 34, 1 << 33)
    replies(answering), replies(answering)
    assert capsys.readouterr().err == (
        "quantised weights stay dense while replies are made: dense they take 0.00 GiB, 6.00 GiB are free for that\n"
    )
    memory_is(monkeypatch, 1 << 34, 1 << 30)
    made.clear()
    replies(answering)
    assert min(made.values()) >= 8, "made dense in every pass"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "dense anew for each token" in said and "generate.dequantize" in said
    replies(answering, dequantize=False)
    assert capsys.readouterr().err == ""


def test_the_memory_of_the_cache_of_keys_and_values_is_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = engine(Int8())
    decided = decide(answering.model, "auto")
    assert decided is not None
    cache = KvCache(answering.model.shape, 4, torch.float32, torch.device("cpu"))
    assert KvCache.bytes_of(answering.model.shape, 4, 16, torch.float32) == cache.nbytes
    asked: list[int] = []
    monkeypatch.setattr(engine_module, "decide", lambda model, keep, beside, rows: asked.append(beside))
    replies(answering)
    assert asked == [cache.nbytes], "three replies of at most 7 + 8 tokens, and a page for nobody"


@pytest.mark.parametrize("value", ["sometimes", 2, "Auto", None])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="dequantize"):
        GenerateOptions(dequantize=value)


def test_the_name_that_saved_recipes_have_is_read(tmp_path: Path) -> None:
    for written, read in (("true", "auto"), ("false", False)):
        file = tmp_path / f"{written}.yaml"
        about = "output_dir: out\nmodel: {path: m}\ndata: {train: [rows.json]}\n"
        file.write_text(f"{about}generate: {{dense_copies: {written}}}\n")
        assert config.load(file).generate.dequantize == read
        config.save(config.load(file), file)
        assert "dense_copies" not in file.read_text() and config.load(file).generate.dequantize == read


def test_dense_weights_and_weights_with_a_product_of_their_own_are_left_alone() -> None:
    model = tiny.decoder(3, vocab=VOCAB, dtype=torch.float32, max_position=96)
    assert copied_weights(model) == []

    class Fused(Int8Weight):
        def linear(self, x: Tensor) -> Tensor:
            return FrozenWeight.linear(self, x)

    group = next(model.groups())
    group.weight = Fused(group.weight.out_features, group.weight.in_features, torch.device("cpu"))
    assert copied_weights(model) == []


def test_the_kinds_of_the_folder_give_the_same_replies_with_copies() -> None:
    for kind in kinds("lorikeet.quant"):
        answering = engine(kind_class("lorikeet.quant", Quant, kind).model_validate({}))
        assert replies(answering) == replies(answering, dequantize=False), kind
