import contextlib
import io
import json
import shutil

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import TokenizerError
from lorikeet.tokens import huggingface
from lorikeet.tokens.open import open_tokenizer
from lorikeet.tokens.sentencepiece import parse

from .corpus import ALPHABET, CONTROL, PLAIN, TEXTS, check

SENTENCES = [line for text in TEXTS for line in text.split("\n") if line.strip()] * 3
SENTENCES += ["the lower lowest newer wider ababa abab", "hello world the quick brown fox"] * 5
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MADE = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, **LLAMA},
    "bpe without bytes": {"model_type": "bpe", **LLAMA},
    "bpe without prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **LLAMA},
    "defined": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<tool>", "ab", "▁▁"], **LLAMA},
    "unigram": {"model_type": "unigram", "byte_fallback": True, **LLAMA},
    "unigram without bytes": {"model_type": "unigram", "add_dummy_prefix": False, **LLAMA},
    "tidy": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "pad_id": 3},
}
CASES = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=["Cs"])), max_size=30)


def train(**options):
    written = io.BytesIO()
    size = 470 if options.get("byte_fallback") else 200
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=0.98,
        control_symbols=["<|im_end|>"],
        minloglevel=2,
        **options,
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, options in MADE.items():
        made[name] = tmp_path_factory.mktemp("sentencepiece")
        (made[name] / "tokenizer.model").write_bytes(train(**options))
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    opened = {name: open_tokenizer(folder, None) for name, folder in folders.items()}
    for name, tokenizer in opened.items():
        tokenizer.kind = name
    return opened


@pytest.fixture(scope="module")
def originals(folders):
    return {
        name: sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        for name, folder in folders.items()
    }


def assert_same(tokenizer, original, text):
    ids, expected = tokenizer.encode(text)[0], original.encode(text)
    if ids != expected and MADE[tokenizer.kind]["model_type"] == "unigram":
        # two ways to cut with one total score: float32 sums decide there, float64 here
        assert "".join(map(original.id_to_piece, ids)) == "".join(map(original.id_to_piece, expected)), text
        scores = [sum(map(original.get_score, some)) for some in (ids, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4), text
        return
    assert ids == expected, text
    if original.unk_id() not in ids:
        assert tokenizer.decode(ids) == original.decode(ids), text


@pytest.mark.parametrize("kind", MADE)
def test_ids_are_those_of_sentencepiece(kind, loaded, originals):
    for text in [*TEXTS, " <tool> b ab x", "a<tool>b", "<tool> ", "ab" * 40]:
        assert_same(loaded[kind], originals[kind], text)


@settings(max_examples=100, deadline=None)
@given(text=CASES)
@pytest.mark.parametrize("kind", [kind for kind in MADE if kind not in ("t5", "defined")])
def test_ids_of_any_text(kind, loaded, originals, text):
    assert_same(loaded[kind], originals[kind], text)


@pytest.mark.parametrize("kind", MADE)
def test_spans_cover_and_text_comes_back(kind, loaded):
    # without bytes, characters that training did not see are lost; tidy spaces are lost; T5 normalises
    check(loaded[kind], lossless=kind in ("bpe", "bpe without prefix", "unigram", "defined"), loses="▁")


@pytest.mark.parametrize("kind", MADE)
def test_what_is_saved_gives_the_same_ids(kind, loaded, tmp_path):
    from transformers import PreTrainedTokenizerFast

    loaded[kind].save(tmp_path)
    again = huggingface.load(tmp_path)
    assert (again.fingerprint, again.names, again.bos_token) == (
        loaded[kind].fingerprint,
        loaded[kind].names,
        loaded[kind].bos_token,
    )
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in PLAIN:
        ids = loaded[kind].encode(text)[0]
        assert again.encode(text)[0] == ids
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids


def test_what_the_model_says_about_itself(loaded):
    tokenizer = loaded["bpe"]
    assert tokenizer.control == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 3}
    assert tokenizer.names == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.bos_token == "<s>" and tokenizer.eos_ids == (2,) and tokenizer.pad_id == 2
    assert loaded["t5"].bos_token is None and loaded["t5"].pad_id == 3  # Unigram models want no BOS


def test_the_space_before_text(folders, loaded, tmp_path):
    """Before every text between control tokens; with `legacy: false` only at the start; never inside a text."""
    shutil.copytree(folders["bpe"], tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"legacy": False}))
    modern, legacy, without = open_tokenizer(tmp_path / "m", None), loaded["bpe"], loaded["bpe without prefix"]

    def pieces(tokenizer, after, text="he"):
        ids, spans = tokenizer.encode(text, after=after)
        return [tokenizer._backend.id_to_token(id) for id in ids], spans

    bare, prefixed = pieces(without, "start")[0], pieces(legacy, "start")[0]
    assert prefixed[0].startswith("▁") and not bare[0].startswith("▁")
    assert pieces(modern, "start") == pieces(legacy, "start") == pieces(legacy, "control")
    assert "".join(bare) == "".join(pieces(modern, "control")[0]) == "".join(pieces(legacy, "text")[0]) == "he"
    # a space that is there already is not taken for the one that is put there
    assert "".join(pieces(modern, "start", " he")[0]) == "".join(pieces(legacy, "start", " he")[0]) == "▁▁he"
    assert "".join(pieces(modern, "control", " he")[0]) == "".join(pieces(legacy, "text", " he")[0]) == "▁he"
    for text in TEXTS:
        assert modern.encode(text)[0] == legacy.encode(text)[0]
    check(modern, loses="▁")


def beside(folder, target, **files):
    shutil.copytree(folder, target)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (target / name.replace("__", ".")).write_text(text)
    return target


def test_the_files_beside_it_count(folders, tmp_path):
    size = parse(folders["bpe"] / "tokenizer.model").texts.__len__()
    decoder = {
        "0": {"content": "<unk>", "special": True},
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "<think>", "special": False},
    }
    config = {"add_bos_token": False, "chat_template": "T", "eos_token": {"content": "<|im_end|>"}}
    config["added_tokens_decoder"] = decoder
    added = {"<|pad|>": size + 2}
    folder = beside(
        folders["bpe"],
        tmp_path / "m",
        tokenizer_config__json=config,
        added_tokens__json=added,
        special_tokens_map__json={"pad_token": "<|pad|>"},
    )
    tokenizer = open_tokenizer(folder, None)
    assert tokenizer.bos_token is None and tokenizer.chat_template == "T" and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.control["<|im_start|>"] == size and tokenizer.pad_id == size + 2
    assert tokenizer.vocab_size == size + 3
    assert size + 1 in tokenizer.encode("a <think> b")[0] and "<think>" not in tokenizer.control
    check(tokenizer, [*CONTROL, "<|im_start|><|pad|>"], lossless=False)
    tokenizer.save(tmp_path)
    assert huggingface.load(tmp_path).control == tokenizer.control


def test_tokens_added_without_flags_are_control_tokens(folders, tmp_path):
    size = len(parse(folders["bpe"] / "tokenizer.model").texts)
    folder = beside(folders["bpe"], tmp_path / "m", added_tokens__json={"<|im_start|>": size})
    tokenizer = open_tokenizer(folder, None)
    assert tokenizer.control["<|im_start|>"] == size and size not in tokenizer.encode("<|im_start|>")[0]


def refused(match, folder):
    with pytest.raises(TokenizerError, match=match) as caught:
        open_tokenizer(folder, None)
    assert str(caught.value).count("\n") <= 3


def test_half_a_file_and_what_is_none(folders, tmp_path):
    whole = (folders["bpe"] / "tokenizer.model").read_bytes()
    file = tmp_path / "tokenizer.model"
    for content, match in {
        b"": "not a whole sentencepiece model",
        whole[: len(whole) // 2]: "not a whole sentencepiece model",
        whole[:-3]: "not a whole sentencepiece model",
        b"<!DOCTYPE html><html>": "not a whole sentencepiece model",
        b"\xff" * 50: "not a whole sentencepiece model",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n": r"git-lfs pointer[\s\S]*git lfs pull",
    }.items():
        file.write_bytes(content)
        refused(match, tmp_path)


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, 1 << 20), flip=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(folders, tmp_path_factory, cut, flip):
    content = bytearray((folders["t5"] / "tokenizer.model").read_bytes())
    content[cut % len(content)] ^= flip
    file = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    file.write_bytes(bytes(content))
    with contextlib.suppress(TokenizerError):
        parse(file)


@pytest.mark.parametrize(
    "options", [{"model_type": "char"}, {"model_type": "word"}, {"treat_whitespace_as_suffix": True}]
)
def test_kinds_that_are_not_known(options, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train(**options))
    refused(r"of a kind that is not known here[\s\S]*tokenizer.json", tmp_path)


def test_files_that_contradict_each_other(folders, tmp_path):
    size = len(parse(folders["bpe"] / "tokenizer.model").texts)
    wrong = {"added_tokens_decoder": {"1": {"content": "<bos>", "special": True}}}
    refused(
        r"contradict each other about token 1[\s\S]*'<bos>'[\s\S]*'<s>'",
        beside(folders["bpe"], tmp_path / "a", tokenizer_config__json=wrong),
    )
    refused(
        rf"do not follow the vocabulary[\s\S]*nothing with id {size}",
        beside(folders["bpe"], tmp_path / "b", added_tokens__json={"<x>": size + 1}),
    )
    refused("no number", beside(folders["bpe"], tmp_path / "c", added_tokens__json={"<x>": "7"}))
    refused("not JSON", beside(folders["bpe"], tmp_path / "d", added_tokens__json="{"))
    shifted = {"tokenizer_class": "XGLMTokenizer"}
    refused("numbers its tokens otherwise", beside(folders["bpe"], tmp_path / "e", tokenizer_config__json=shifted))
