"""Tokenizers as GGUF metadata: read again they give the same ids, whatever they were."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lorikeet.base.errors import TokenizerError
from lorikeet.tokens._folder import Special
from lorikeet.tokens._gguf_pre import PRE
from lorikeet.tokens._gguf_pre_of import _pre_tokenizer, pre_of
from lorikeet.tokens._to_gguf import PREFIX, differences, tokenizer_metadata
from lorikeet.tokens.gguf import read_tokenizer
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from tokens.corpus import TEXTS

CONTROL = ["<unk>", "<s>", "</s>"]
# kinds whose pieces are those of another: bailingmoe's expressions find what qwen2's find
ALIKE = {"bailingmoe", "bailingmoe2", "llada-moe"}
# one name of each
KINDS = {pre: name for name, pre in PRE.items() if pre.bytewise and name not in ALIKE}.values()


@pytest.mark.parametrize("name", KINDS)
def test_every_split_is_recognised_by_its_pieces(name: str) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer(PRE[name])
    found = pre_of(backend, ignore_merges=PRE[name].ignore_merges)
    assert found is not None and PRE[found].patterns == PRE[name].patterns
    assert PRE[found].ignore_merges == PRE[name].ignore_merges


def test_a_split_that_llama_cpp_does_not_have_is_none() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("l"), behavior="isolated")
    assert pre_of(backend, ignore_merges=False) is None


def bytewise() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def pieces(prefix: bool) -> Tokenizer:
    """sentencepiece's BPE, as transformers converts it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*CONTROL, *bytes_], show_progress=False)
    made.train_from_iterator([text.replace("\n", " ") for text in TEXTS] * 3, trainer)
    said = json.loads(made.to_str())
    said["added_tokens"] = [token for token in said["added_tokens"] if token["content"] in CONTROL]
    return Tokenizer.from_str(json.dumps(said))


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("kind", ["bytes", "pieces", "pieces with a space"])
def test_read_again_the_ids_are_the_same(kind: str) -> None:
    backend = bytewise() if kind == "bytes" else pieces("space" in kind)
    backend.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    tokenizer = HuggingFaceTokenizer(backend, Special(NAMES, add_bos=True, end_ids=(7,)))
    rows = tokenizer.vocab_size + 5  # rows without a token
    metadata = tokenizer_metadata(tokenizer, rows, stop_ids=(7,))
    assert len(metadata[PREFIX + "tokens"]) == rows == len(set(metadata[PREFIX + "tokens"]))
    assert metadata[PREFIX + "model"] == ("gpt2" if kind == "bytes" else "llama")
    differences(tokenizer, metadata)  # refuses where an everyday text differs
    again = read_tokenizer("here", metadata.get)
    unlike = [text for text in TEXTS if again.encode(text)[0] != tokenizer.encode(text)[0]]
    assert len(unlike) <= (0 if kind == "bytes" else 2), unlike  # equal pieces joined in another order
    assert again.bos_token == "<s>" and again.eos_ids[0] == tokenizer.eos_ids[0] and 7 in again.eos_ids


def test_a_token_without_a_row_is_left_out() -> None:
    """Gemma 3's text models have an image token behind all others and no row for it; llama.cpp wants as many names as
    rows."""
    backend = bytewise()
    backend.add_special_tokens(["</s>", "<image>"])
    tokenizer = HuggingFaceTokenizer(backend, Special({"eos_token": "</s>", "pad_token": "<image>"}))
    metadata = tokenizer_metadata(tokenizer, tokenizer.vocab_size - 1)
    assert len(metadata[PREFIX + "tokens"]) == len(metadata[PREFIX + "token_type"]) == tokenizer.vocab_size - 1
    assert metadata[PREFIX + "tokens"][-1] == "</s>" and PREFIX + "padding_token_id" not in metadata
    differences(tokenizer, metadata)


def test_more_ends_than_a_file_has_keys_for_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    backend = bytewise()
    backend.add_special_tokens(["<end>", "<turn>", "<call>", "<out>"])
    ids = tuple(backend.token_to_id(name) for name in ("<turn>", "<call>", "<out>"))
    tokenizer = HuggingFaceTokenizer(backend, Special({"eos_token": "<end>"}, end_ids=ids))
    metadata = tokenizer_metadata(tokenizer, tokenizer.vocab_size)
    assert [metadata[f"{PREFIX}{role}_token_id"] for role in ("eot", "eom")] == list(ids[:2])
    assert "left out: <out>" in capsys.readouterr().err


def test_kinds_that_llama_cpp_does_not_have_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(TokenizerError, match="no tokenizer of this kind"):
        tokenizer_metadata(HuggingFaceTokenizer(words, Special({"unk_token": "<unk>"})), 2)


def test_a_split_that_gives_other_ids_is_refused() -> None:
    tokenizer = HuggingFaceTokenizer(bytewise(), Special())
    with pytest.raises(TokenizerError, match="other ids"):
        differences(tokenizer, tokenizer_metadata(tokenizer, tokenizer.vocab_size, pre="bloom"))


def test_no_merges_are_refused() -> None:
    letters = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(TokenizerError, match="without merges"):
        tokenizer_metadata(HuggingFaceTokenizer(backend, Special()), 256)
