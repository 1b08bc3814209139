import base64
import json
import unicodedata
from unittest import mock

import pytest
import tiktoken
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from lorikeet.base.errors import TokenizerError
from lorikeet.tokens import huggingface
from lorikeet.tokens._spelling import byte_letters
from lorikeet.tokens.open import open_tokenizer
from lorikeet.tokens.tiktoken import FAMILIES

from .corpus import ALPHABET, CONTROL, TEXTS, check

# as the models' own code writes them (Qwen's tokenization_qwen.py, Llama's tokenizer.py)
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FILES = {"qwen": "qwen.tiktoken", "llama": "tokenizer.model"}
CASES = st.text(
    st.one_of(st.sampled_from(ALPHABET + "sſSRELǅʰK½,"), st.characters(exclude_categories=["Cs"])), max_size=30
)


def pattern(family):
    if family in FILES:
        return QWEN if family == "qwen" else QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
    loads = {"load_tiktoken_bpe": dict, "data_gym_to_mergeable_bpe_ranks": dict}  # the ranks would be downloaded
    with mock.patch.multiple(tiktoken_ext.openai_public, **{name: lambda *_, **__: {} for name in loads}):
        return getattr(tiktoken_ext.openai_public, family)()["pat_str"]


@pytest.fixture(scope="module")
def ranks():
    """Ranks that join across words, so that a split at another place gives other ids."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, max_token_length=12, initial_alphabet=alphabet, show_progress=False)
    words = ["the lower lowest widest ababab I'll WE'RE HelloWorld 's 'S 123456 \r\n\r\n /\n"]
    backend.train_from_iterator(TEXTS * 3 + words * 9, trainer)
    bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    return {bytes(bytes_of[letter] for letter in token): rank for token, rank in backend.get_vocab().items()}


def write(file, ranks):
    lines = [
        base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda pair: pair[1])
    ]
    file.write_bytes(b"".join(lines))
    return lines


@pytest.fixture(scope="module")
def loaded(ranks, tmp_path_factory):
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("tiktoken")
        write(folder / FILES.get(family, f"{family}.tiktoken"), ranks)
        made[family] = open_tokenizer(folder, None)
    return made


@pytest.fixture(scope="module")
def originals(ranks):
    return {
        family: tiktoken.Encoding(family, pat_str=pattern(family), mergeable_ranks=ranks, special_tokens={})
        for family in FAMILIES
    }


def assert_same(family, loaded, originals, text):
    if family == "qwen":
        text = unicodedata.normalize("NFC", text)
    ids = originals[family].encode(text, disallowed_special=())
    assert loaded[family].encode(text)[0] == ids, text
    assert loaded[family].decode(ids) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_tiktoken(family, loaded, originals):
    for text in TEXTS:
        assert_same(family, loaded, originals, text)


@settings(max_examples=150, deadline=None)
@given(text=CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_any_text(family, loaded, originals, text):
    assert_same(family, loaded, originals, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_cover_and_text_comes_back(family, loaded):
    check(loaded[family], [*TEXTS, *loaded[family].control], loses="\u0301\u0303\u030a" if family == "qwen" else "")


def test_qwen_normalises_as_its_code_does(loaded, originals):
    assert loaded["qwen"].encode("e\u0301")[0] == originals["qwen"].encode("é") != originals["qwen"].encode("e\u0301")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_gives_the_same_ids(family, loaded, tmp_path):
    loaded[family].save(tmp_path)
    again = huggingface.load(tmp_path)
    assert (again.control, again.names, again.bos_token) == (
        loaded[family].control,
        loaded[family].names,
        loaded[family].bos_token,
    )
    for text in TEXTS:
        assert again.encode(text) == loaded[family].encode(text)


def test_special_tokens(loaded, ranks):
    size = len(ranks)
    qwen, llama, openai = loaded["qwen"], loaded["llama"], loaded["cl100k_base"]
    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert [qwen.control[name] - size for name in named] == [0, 1, 2, 3, 207] and len(qwen.control) == 208
    assert qwen.eos_ids == (size, size + 2) and qwen.bos_token is None and qwen.pad_id == size
    named = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|reserved_special_token_247|>",
    ]
    assert [llama.control[name] - size for name in named] == [0, 6, 7, 9, 255] and llama.vocab_size == size + 256
    assert llama.bos_token == "<|begin_of_text|>" and llama.eos_ids == (size + 1, size + 9, size + 8)
    # OpenAI's leave a gap: 100,256 ranks, <|endoftext|> is 100,257 and <|endofprompt|> 100,276
    assert openai.control["<|endoftext|>"] == size + 1 and openai.vocab_size == size + 21


def test_the_files_beside_it_count(ranks, tmp_path):
    write(tmp_path / "tokenizer.model", ranks)
    size = len(ranks)
    decoder = {str(size + 4): {"content": "<|pad|>", "special": True}}
    config = {"added_tokens_decoder": decoder, "pad_token": "<|pad|>", "chat_template": "T", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path, None)
    assert tokenizer.pad_id == size + 4 and "<|finetune_right_pad_id|>" not in tokenizer.control
    assert tokenizer.chat_template == "T" and tokenizer.bos_token is None
    check(tokenizer, CONTROL)


def test_what_is_said_of_added_tokens_counts_as_in_transformers(loaded, ranks, tmp_path):
    """Whether they take the white space beside them, and whether they are control tokens at all."""
    transformers = pytest.importorskip("transformers")
    folder, plain, saved = (tmp_path / name for name in ("ranks", "plain", "saved"))
    for path in (folder, plain, saved):
        path.mkdir()
    size = len(ranks)
    decoder = {
        str(size + 6): {"content": "<|start_header_id|>", "special": True, "lstrip": True},
        str(size + 9): {"content": "<|eot_id|>", "special": True, "rstrip": True},
        str(size + 256): {"content": "<tool>", "special": False, "normalized": False, "rstrip": True},
        str(size + 257): {"content": "wor", "special": False, "normalized": False, "single_word": True},
    }
    write(folder / "tokenizer.model", ranks)
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    loaded["llama"].save(plain)
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    theirs = transformers.AutoTokenizer.from_pretrained(plain)
    theirs.save_pretrained(tmp_path / "whole")
    expected, tokenizer = huggingface.load(tmp_path / "whole"), open_tokenizer(folder, None)
    for name in ("control", "takes_before", "takes_behind", "divides"):
        assert getattr(tokenizer, name) == getattr(expected, name), name
    assert tokenizer.takes_before == {"<|start_header_id|>"} and "<tool>" not in tokenizer.control
    tokenizer.save(saved)
    ours = transformers.AutoTokenizer.from_pretrained(saved)
    for text in [" \n<|start_header_id|> a<|eot_id|>  b", "x <tool>  y wor worst word <tool>", *TEXTS]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


def refused(match, folder):
    with pytest.raises(TokenizerError, match=match) as caught:
        open_tokenizer(folder, None)
    assert str(caught.value).count("\n") <= 3


def test_broken_files(ranks, tmp_path):
    file = tmp_path / "qwen.tiktoken"
    lines = write(file, ranks)

    def after(*changed):
        file.write_bytes(b"".join(changed))

    after(*lines[:300], *lines[301:])
    refused(r"line 301 is no new token of rank 300", tmp_path)
    after(*lines[:-1], lines[-1][:-3])
    refused(rf"line {len(lines)} [\s\S]*the last line", tmp_path)
    after(*lines[:400], b"not a rank\n")
    refused(r"line 401 [\s\S]*'not a rank'", tmp_path)
    after(*lines, lines[5].split()[0] + b" %d\n" % len(lines))
    refused("no new token", tmp_path)  # a token twice
    after(*lines[:200])
    refused("not every byte has a token", tmp_path)
    after()
    refused("not every byte has a token", tmp_path)
    after(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused("git-lfs pointer", tmp_path)


def test_a_file_that_nobody_knows(ranks, tmp_path):
    write(tmp_path / "mine.tiktoken", ranks)
    refused(r"does not say how text is split[\s\S]*qwen.tiktoken", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen"}))
    assert "<|extra_0|>" in open_tokenizer(tmp_path, None).control
    write(tmp_path / "other.tiktoken", ranks)
    refused("2 ranks files", tmp_path)


def test_json_files_that_contradict_it(ranks, tmp_path):
    write(tmp_path / "qwen.tiktoken", ranks)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"added_tokens_decoder": {"7": {"content": "<|x|>", "special": True}}}))
    refused("contradict each other about token 7", tmp_path)
    file.write_text(json.dumps({"added_tokens_decoder": {"99999": {"content": "<|x|>", "special": True}}}))
    refused("do not follow the vocabulary", tmp_path)
