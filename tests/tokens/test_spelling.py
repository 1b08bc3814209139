"""What the tokens' bytes say is what `decode` says, wherever the bytes are text."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lorikeet.base.errors import TokenizerError
from lorikeet.tokens._folder import Special
from lorikeet.tokens._spelling import byte_letters, spelling
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from lorikeet.tokens.open import open_tokenizer

from .corpus import TEXTS

SENTENCES = [line for text in TEXTS for line in text.split("\n") if line.strip()] * 3


def byte_level(_folder: Path) -> HuggingFaceTokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    bpe.add_tokens([AddedToken("<think>", normalized=False), AddedToken("ab cd 東", normalized=False)])
    return HuggingFaceTokenizer(bpe, Special({"eos_token": "<|end|>"}))


def pieces(folder: Path, **options: Any) -> HuggingFaceTokenizer:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=written, vocab_size=470, hard_vocab_limit=False,
        character_coverage=0.98, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
        byte_fallback=True, **options,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return open_tokenizer(folder, None)


KINDS: dict[str, Callable[[Path], HuggingFaceTokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece bpe": lambda folder: pieces(folder, model_type="bpe"),
    "sentencepiece bpe without prefix": lambda folder: pieces(folder, model_type="bpe", add_dummy_prefix=False),
    "sentencepiece unigram": lambda folder: pieces(folder, model_type="unigram"),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceTokenizer]:
    return {name: make(tmp_path_factory.mktemp("tokenizer")) for name, make in KINDS.items()}


def spelled(tokenizer: HuggingFaceTokenizer, ids: list[int]) -> bytes:
    said = tokenizer.spelling
    return b"".join((said.inside if place else said.first)[id] for place, id in enumerate(ids))


@pytest.mark.parametrize("kind", KINDS)
@given(seeds=st.lists(st.integers(0, 1 << 30), max_size=12))
@settings(max_examples=150, deadline=None)
def test_bytes_of_any_tokens_join_to_what_decode_says(
    kind: str, seeds: list[int], loaded: dict[str, HuggingFaceTokenizer]
) -> None:
    tokenizer = loaded[kind]
    plain = sorted(set(range(tokenizer.vocab_size)) - set(tokenizer.control.values()))
    ids = [plain[seed % len(plain)] for seed in seeds]
    joined = spelled(tokenizer, ids)
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in tokenizer.decode(ids)  # how many of them a decoder shows is its own affair
    else:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_at_the_start_and_behind_another(kind: str, loaded: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = loaded[kind]
    control, (a,) = set(tokenizer.control.values()), tokenizer.encode("a", after="text")[0]
    for id in range(tokenizer.vocab_size):
        first, inside = tokenizer.spelling.first[id], tokenizer.spelling.inside[id]
        if id in control:
            assert first == inside == b""
            continue
        assert tokenizer.decode([id]) == first.decode(errors="replace")
        assert tokenizer.decode([a, id]) == "a" + inside.decode(errors="replace")


def test_a_letter_stands_for_each_byte() -> None:
    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    "decoder",
    [None, {"type": "WordPiece", "prefix": "##"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}],
)
def test_tokens_without_bytes_of_their_own_are_refused(decoder: dict[str, Any] | None) -> None:
    with pytest.raises(TokenizerError, match="not known"):
        spelling({"a": 0}, (), decoder)


def test_metaspace_drops_the_space_at_the_start() -> None:
    always = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    backend = Tokenizer(models.Unigram([("▁a", 0.0), ("b▁", 0.0), ("▁", 0.0)], None, False))
    for scheme in ("always", "never"):
        backend.decoder = decoders.Metaspace("▁", scheme)
        said = spelling({"▁a": 0, "b▁": 1, "▁": 2}, (), always | {"prepend_scheme": scheme})
        for ids in ([0, 1], [1, 0], [2, 0], [2, 2]):
            joined = said.first[ids[0]] + said.inside[ids[1]]
            assert joined.decode() == backend.decode(ids)
