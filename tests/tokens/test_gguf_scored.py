"""GGUF files with scored pieces (`tokenizer.ggml.model` llama and t5)."""

import io
import re
from itertools import pairwise

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.tokens import huggingface
from lorikeet.tokens._pieces import joins
from lorikeet.tokens.open import open_tokenizer
from lorikeet.tokens.sentencepiece import parse

from .corpus import ALPHABET, TEXTS, check
from .gguf_file import write_gguf
from .test_sentencepiece import SENTENCES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CASES = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=["Cs"])), max_size=30)
DEFINED = ["<tool>", "ab", "  ", "\n\n"]


def reference(tokens, scores, types, text, prefix=True):
    """llama.cpp's llm_tokenizer_spm, quadratic: join the neighbours whose join scores best, the leftmost of equals;
    what is no token at the end is written in bytes. User-defined tokens are cut out of the raw text before, the
    longest first, and what follows one begins like a text."""
    ids = {token: id for id, token in enumerate(tokens)}
    parts = [text] if text else []
    for defined in sorted((token for token, kind in zip(tokens, types) if kind == USER_DEFINED), key=len, reverse=True):
        cut = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
                continue
            for number, piece in enumerate(part.split(defined)):
                cut += [ids[defined]] * (number > 0) + [piece] * bool(piece)
        parts = cut
    found = []
    for number, part in enumerate(parts):
        if isinstance(part, int):
            found.append(part)
            continue
        begins = number == 0 or isinstance(parts[number - 1], int)
        symbols = list(((" " if prefix and begins else "") + part).replace(" ", "▁"))
        while True:
            joins = [
                (-scores[ids[left + right]], place)
                for place, (left, right) in enumerate(pairwise(symbols))
                # unlike llama.cpp, text never becomes a control token, nor one of the names of bytes
                if left + right in ids and types[ids[left + right]] == NORMAL
            ]
            if not joins:
                break
            place = min(joins)[1]
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        for symbol in symbols:
            known = symbol in ids and types[ids[symbol]] == NORMAL
            found += [ids[symbol]] if known else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """(tokens, scores, types) of a small sentencepiece BPE, with user-defined tokens at its end as Gemma has them."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=450,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=["<end_of_turn>"],
        minloglevel=2,
    )
    file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    file.write_bytes(written.getvalue())
    model = parse(file)
    keep = [number for number, text in enumerate(model.texts) if text not in DEFINED]
    tokens = [model.texts[number] for number in keep] + DEFINED
    scores = [model.scores[number] for number in keep] + [-1000.0] * len(DEFINED)
    return tokens, scores, [model.kinds[number] for number in keep] + [USER_DEFINED] * len(DEFINED), file


def write(path, tokens, scores, types, model="llama", **values):
    return write_gguf(path, **{"model": model, "tokens": tokens, "scores": scores, "token_type": types} | values)


def load(path):
    return open_tokenizer(path, open_checkpoint(path))


@pytest.fixture(scope="module", params=[True, False, None], ids=["prefix", "no prefix", "not said"])
def made(request, pieces, tmp_path_factory):
    values = {} if request.param is None else {"add_space_prefix": request.param}
    path = write(tmp_path_factory.mktemp("gguf") / "m.gguf", *pieces[:3], **values)
    return load(path), request.param is not False


def test_ids_are_those_of_llama_cpp(made, pieces):
    tokenizer, prefix = made
    for text in [*TEXTS, "<tool> b ab  x\n\n\n", "a<tool>b", "<tool>", "x  ab", "    "]:
        assert tokenizer.encode(text)[0] == reference(*pieces[:3], text, prefix), text
    # with a prefix, what follows a user-defined token comes back with a space, from llama.cpp too
    check(tokenizer, lossless=not prefix, loses="▁")


@settings(max_examples=150, deadline=None)
@given(text=CASES)
def test_ids_of_any_text(made, pieces, text):
    tokenizer, prefix = made
    # runs of user-defined tokens that overlap are cut longest first there, leftmost first here
    if "   " not in text and "\n\n\n" not in text:
        assert tokenizer.encode(text)[0] == reference(*pieces[:3], text, prefix)


def test_ids_are_those_of_the_sentencepiece_model_it_was_made_from(pieces, tmp_path):
    model = parse(pieces[3])
    tokenizer = load(write(tmp_path / "m.gguf", model.texts, model.scores, model.kinds))
    original = sentencepiece.SentencePieceProcessor(model_file=str(pieces[3]))
    for text in TEXTS:
        assert tokenizer.encode(text)[0] == original.encode(text)
        assert tokenizer.decode(original.encode(text)) == original.decode(original.encode(text))


def test_what_the_file_says_and_what_llama_cpp_takes_otherwise(pieces, tmp_path):
    tokenizer = load(write(tmp_path / "m.gguf", *pieces[:3]))
    assert tokenizer.names == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer.bos_token == "<s>" and tokenizer.eos_ids == (2,) and "<end_of_turn>" in tokenizer.control
    end = pieces[0].index("<end_of_turn>")
    tokenizer = load(write(tmp_path / "n.gguf", *pieces[:3], eot_token_id=end, add_bos_token=False))
    assert tokenizer.bos_token is None and tokenizer.eos_ids == (2, end)
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    again = huggingface.load(tmp_path / "saved")
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("kind", ["gemma4", "gpt2"])
def test_merges_over_whole_lines(kind, pieces, tmp_path):
    """Gemma 4's and Sarvam's BPE: the merges of scored pieces, written down; a line is never cut at words. Checked by
    hand against llama.cpp b9190 on these texts: ids are those of the scored pieces but that newlines stay apart, and
    that Gemma 4 takes a run of them whole where it is a token."""
    tokens, scores, types, _ = pieces
    tokens, types = [*tokens[: -len(DEFINED)], "\n", "\n\n"], [*types[: -len(DEFINED)], NORMAL, NORMAL]
    scores = [*scores[: -len(DEFINED)], -1e6, -1e6]
    joinable = {token: id for id, token in enumerate(tokens) if types[id] == NORMAL and "\n" not in token}
    merges = [" ".join(pair) for pair in joins(joinable, [-score for score in scores])]
    values = {"merges": merges, "pre": "sarvam-moe", "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False}
    tokenizer = load(write(tmp_path / "m.gguf", tokens, None, types, kind, **values))
    whole = tokens.index("\n\n")
    for text in [*TEXTS, "a\n\nb", "\n\n\n\nx"]:
        expected = []
        for part in re.findall(r"[^\n]+|\n+", text):
            newlines = [whole] if part == "\n\n" and kind == "gemma4" else [tokens.index("\n")] * len(part)
            expected += newlines if part[0] == "\n" else reference(tokens, scores, types, part, prefix=False)
        assert tokenizer.encode(text)[0] == expected, text
    check(tokenizer, loses="▁")
    assert tokenizer.bos_token == ("<s>" if kind == "gemma4" else None)


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_unigram(rule, tmp_path):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=180,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name=rule,
        unk_id=2,
        bos_id=-1,
        eos_id=1,
        pad_id=0,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    model = parse(tmp_path / "tokenizer.model")
    charsmap = {"precompiled_charsmap": list(model.charsmap)} if model.charsmap else {}
    path = write(
        tmp_path / "m.gguf",
        *(model.texts, model.scores, model.kinds, "t5"),
        **(charsmap | {"add_space_prefix": True, "remove_extra_whitespaces": True}),
    )
    tokenizer = load(path)
    original = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert tokenizer.bos_token is None and tokenizer.eos_ids == (1,) and tokenizer.pad_id == 0
    for text in TEXTS:
        if "ab" not in text:  # ties are settled by float32 sums there
            assert tokenizer.encode(text)[0] == original.encode(text), text
    check(tokenizer, lossless=False)


def test_refusals(pieces, tmp_path):
    tokens, scores, types = pieces[:3]

    def refused(match, *parts, **values):
        with pytest.raises(TokenizerError, match=match) as caught:
            load(write(tmp_path / "m.gguf", *parts, **values))
        assert str(caught.value).count("\n") <= 3

    refused(r"incomplete[\s\S]*0 scores", tokens, None, types)
    refused(r"incomplete[\s\S]*3 scores", tokens, scores[:3], types)
    refused(r"incomplete[\s\S]*2 types", tokens, scores, types[:2])
    refused(r"incomplete[\s\S]*different", [*tokens[:-1], tokens[5]], scores, types)
    refused(r"outside the vocabulary[\s\S]*id 70000", tokens, scores, types, bos_token_id=70000)
    refused(r"tokenizer of kind 'rwkv'", tokens, scores, types, model="rwkv")


@pytest.mark.slow
def test_gemma3():
    """The real file (262,144 pieces), against llama.cpp's algorithm and, but for two texts, against transformers.

    transformers 5.23 cuts sixty spaces into shorter tokens than llama.cpp does, and takes ▁ in a text for a space."""
    from transformers import AutoTokenizer

    path = resolve("gemma3-270m")
    checkpoint = open_checkpoint(path)
    tokenizer = open_tokenizer(path, checkpoint)
    parts = [checkpoint.metadata(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")]
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = tokenizer.encode(text)[0]
        assert ids == reference(*parts, text, prefix=False), text
        if "▁" not in text and " " * 32 not in text:
            assert ids == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], text
    check(tokenizer, loses="▁")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_id) == ("<bos>", "<eos>", 0)
    assert tokenizer.vocab_size == 262144 and tokenizer.control["<start_of_turn>"] == 105
