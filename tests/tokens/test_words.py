"""Ids by words are the ids of whole texts, for every pre-tokenizer that is taken; others are told apart."""

from __future__ import annotations

from array import array

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lorikeet.tokens._folder import Special
from lorikeet.tokens._gguf_pre import PRE
from lorikeet.tokens._words import Words, made_of_words
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from lorikeet.tokens.tiktoken import FAMILIES

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt2": [None],
    "smollm": ["digits", None],
    "llama3": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "cl100k": [FAMILIES["cl100k_base"].pattern],
    "llama-bpe": list(PRE["llama-bpe"].patterns),
    "gguf smollm": list(PRE["smollm"].patterns),
    "gguf qwen2": list(PRE["qwen2"].patterns),
    "minicpm5": list(PRE["minicpm5"].patterns),
}
TEXT = [
    "the answer  is 42, isn't it?\n\n  def f(x):\n\treturn x + 1  \n",
    "über naïve 日本語 🙂 don't WE'LL  12345",
] * 4


def tokenizer(patterns: list[str | None], normalizer: object = None, added: tuple[AddedToken, ...] = ()) -> Tokenizer:
    made = Tokenizer(models.BPE())
    steps: list[object] = []
    for pattern in patterns:
        if pattern == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif pattern is None:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        else:
            steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    if patterns[-1] is not None:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=letters, special_tokens=["<|end|>"])
    made.train_from_iterator(TEXT, trainer)
    made.add_tokens(list(added))
    return made


def description(made: Tokenizer) -> dict:
    return orjson.loads(made.to_str())


MADE = {name: HuggingFaceTokenizer(tokenizer(patterns), Special({}, ())) for name, patterns in PATTERNS.items()}
PIECES = st.sampled_from(
    [" ", "  ", "\n", " \n", "\n ", "\t", "a", "b ", " c", "it's", "'LL", "1", "234", " 56789", "?!", " ...", ".\n",
     "é", "e\u0301", " \u0301", "日本", "🙂", "\u00a0", "\u2028", "\x1c", "\x85", "\u3000 ", "<|end|>", "\r\n",
     "/", "\u200b", "ſ"]
)  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
@given(texts=st.lists(st.lists(PIECES | st.text(max_size=4), max_size=14).map("".join), max_size=5))
@settings(max_examples=40, deadline=None)
def test_ids_by_words_are_those_of_whole_texts(name: str, texts: list[str]) -> None:
    made = MADE[name]
    assert made._words is not None
    expected = [array("i", made.encode(text)[0]).tobytes() for text in texts]
    assert made.encode_many(texts) == expected
    assert made.encode_many(texts, after="control") == expected  # again, from what was kept


@given(texts=st.lists(st.lists(PIECES, max_size=14).map("".join), max_size=5))
@settings(max_examples=40, deadline=None)
def test_with_nfc_and_words_of_its_own(texts: list[str]) -> None:
    added = (AddedToken("it's", normalized=False), AddedToken("  ", normalized=False), AddedToken("日本"))
    made = HuggingFaceTokenizer(tokenizer([LLAMA3], normalizers.NFC(), added), Special({}, ()))
    assert made._words is not None
    assert made.encode_many(texts) == [array("i", made.encode(text)[0]).tobytes() for text in texts]


def test_what_is_not_made_of_words() -> None:
    assert made_of_words(description(tokenizer([LLAMA3])))
    for pattern in (
        r".+",
        r"\w+ \w+|\s+",
        LLAMA3 + "|a b",
        r"[^\n]+|[\n]+",
        r" ?\p{L}+|\s+",
        *PRE["deepseek-v3"].patterns,
    ):
        assert not made_of_words(description(tokenizer([pattern]))), pattern
    for token in (
        AddedToken("a b"),
        AddedToken("x", lstrip=True),
        AddedToken("x", rstrip=True),
        AddedToken("x", single_word=True),
    ):
        assert not made_of_words(description(tokenizer([LLAMA3], added=(token,)))), token
    assert not made_of_words(description(tokenizer([LLAMA3], normalizers.Prepend("_"))))
    assert not made_of_words(description(tokenizer([LLAMA3], normalizers.Lowercase())))
    prefixed = tokenizer([None])
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not made_of_words(description(prefixed))
    bare = tokenizer([None])
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not made_of_words(description(bare))


def test_a_sentencepiece_like_tokenizer_encodes_many_as_one() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"]))
    plain = HuggingFaceTokenizer(made, Special({}, ()))
    assert plain._words is None
    for after in ("start", "control", "text"):
        expected = [array("i", plain.encode(text, after=after)[0]).tobytes() for text in TEXT]
        assert plain.encode_many(TEXT, after=after) == expected


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet.tokens._words._MOST_WORDS", 8)
    words = Words(lambda texts: [text.encode() for text in texts])
    for number in range(40):
        text = f"{number} and {number + 1}  or {number}"
        assert words.ids([text]) == [text.encode()]
        assert len(words._later) <= 8 + 4


def test_control_tokens_that_take_white_space_are_in_no_text() -> None:
    """Phi-4's take it on both sides; its texts are encoded by their words like any other's."""
    taking = AddedToken("<|end|>", special=True, normalized=False, lstrip=True, rstrip=True)
    made = tokenizer(PATTERNS["llama3"])
    made.add_special_tokens([taking])
    own = HuggingFaceTokenizer(made, Special({"eos_token": "<|end|>"}))
    assert own.takes_before == own.takes_behind == {"<|end|>"} and own._words is not None
    texts = [*TEXT, "a  <|end|>  b", " \n<|end|>\n"]
    assert own.encode_many(texts) == [array("i", own.encode(text)[0]).tobytes() for text in texts]
