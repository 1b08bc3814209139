import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.tokens import huggingface
from lorikeet.tokens._gguf_pre import PRE
from lorikeet.tokens.open import open_tokenizer

from .gguf_file import write_gguf

TEXTS = [
    "",
    "price:  42,  7 years 2024-11-22",
    "def f(x):\n\treturn {'a': 1_000.5}\r\n\r\n    pass",
    "日本語と中文，한국어。 12３",
    "👩‍👩‍👧‍👦 🇩🇪 ❤️ e\u0301",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|>",
    "  leading and trailing  ",
    " " * 60 + "\t\t\n\n\n x",
    "I'll DON'T we'Re",
    "٣٤ ½ Ⅷ x²",
    "\u00a0nbsp\u3000wide",
    "a <tool> b",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# the same splits as tokenizer.json files write them
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINAL = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": LLAMA3,
    "qwen2": LLAMA3.replace("{1,3}", ""),
}


@pytest.fixture(scope="module")
def trained():
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, "<tool>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def write(path, backend, pre="gpt-2", model="gpt2", **changed):
    inside = json.loads(backend.to_str())["model"]
    tokens = sorted(inside["vocab"], key=inside["vocab"].get)
    types = [3 if token in SPECIAL else 4 if token == "<tool>" else 1 for token in tokens]
    values = {"tokens": tokens, "token_type": types, "merges": [" ".join(pair) for pair in inside["merges"]]}
    values |= {"bos_token_id": 1, "eos_token_id": 2} | changed
    return write_gguf(path, model=model, pre=pre, chat_template="{{ bos_token }}", **values)


def load(path):
    return open_tokenizer(path, open_checkpoint(path))


@pytest.mark.parametrize("pre", ORIGINAL)
def test_pieces_are_those_of_the_original_tokenizer(pre, trained):
    from tokenizers import Regex

    original = ORIGINAL[pre]
    if isinstance(original, str):
        original = pre_tokenizers.Split(Regex(original), behavior="isolated")
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PRE[pre].patterns]
    ours = pre_tokenizers.Sequence(splits)
    for text in TEXTS:
        want = [span for _, span in original.pre_tokenize_str(text)]
        assert [span for _, span in ours.pre_tokenize_str(text)] == want, text


def test_default_splits_as_llama_cpp_does():
    from tokenizers import Regex

    ours = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PRE["default"].patterns]
    )
    # punctuation alone, words with their space, digits without it and in threes from the left
    pieces = [piece for piece, _ in ours.pre_tokenize_str("Hi, you've 12345 x")]
    assert pieces == ["Hi", ",", " you", "'", "ve", " ", "123", "45", " x"]


@pytest.mark.parametrize("pre", sorted(name for name, pre in PRE.items() if pre.bytewise))
def test_round_trip_and_transformers_reads_what_is_saved(pre, trained, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = load(write(tmp_path / "m.gguf", trained, pre))
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    again = huggingface.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint and again.chat_template == tokenizer.chat_template
    assert (again.names, again.eos_ids, again.bos_token) == (tokenizer.names, tokenizer.eos_ids, tokenizer.bos_token)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.eos_token == "<|im_end|>" and theirs.chat_template == "{{ bos_token }}"
    for text in TEXTS:
        ids, _ = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        # with the model's own additions: BOS where the file wants one
        bos = [1] if tokenizer.add_bos else []
        assert theirs(text, split_special_tokens=True)["input_ids"] == bos + ids


def test_token_types(trained, tmp_path):
    tokenizer = load(write(tmp_path / "m.gguf", trained, eot_token_id=0))
    assert tokenizer.control == {token: id for id, token in enumerate(SPECIAL)}
    assert 3 in tokenizer.encode("a <tool> b")[0]  # user-defined: found in text, and no control token
    assert not {0, 1, 2} & set(tokenizer.encode("".join(SPECIAL))[0])
    assert tokenizer.eos_ids == (2, 0) and tokenizer.pad_id == 2 and tokenizer.vocab_size == trained.get_vocab_size()
    assert tokenizer.names == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_bos(trained, tmp_path):
    path = tmp_path / "m.gguf"
    assert load(write(path, trained)).bos_token is None
    assert load(write(path, trained, add_bos_token=True)).bos_token == "<|im_start|>"
    assert load(write(path, trained, "llama-bpe")).bos_token == "<|im_start|>"  # llama.cpp's default for this one
    assert load(write(path, trained, "llama-bpe", add_bos_token=False)).bos_token is None


def test_refusals(trained, tmp_path):
    path = tmp_path / "m.gguf"

    def refused(match, *arguments, **changed):
        with pytest.raises(TokenizerError, match=match) as caught:
            load(write(path, trained, *arguments, **changed))
        assert str(caught.value).count("\n") <= 3

    refused(r"tokenizer of kind 'bert'[\s\S]*gpt2", "gpt-2", "bert")
    refused("no tokenizer in this file", "gpt-2", None)
    refused(r"tokenizer.ggml.pre = made-up[\s\S]*smollm", "made-up")
    refused("incomplete", tokens=None)
    refused("incomplete", merges=None)
    refused("incomplete", token_type=[1, 1])
    refused(r"incomplete[\s\S]*\(1 different\)", tokens=["a"] * trained.get_vocab_size())
    refused("merges that do not fit", merges=["neither nor"])
    refused(r"outside the vocabulary[\s\S]*id 9999", eos_token_id=9999)


def test_without_pre_the_default_is_taken(trained, tmp_path):
    named = load(write(tmp_path / "m.gguf", trained, "default"))
    assert load(write(tmp_path / "n.gguf", trained, None)).fingerprint == named.fingerprint


def test_a_folder_with_tokenizer_json_comes_first(trained, tmp_path):
    tokenizer = load(write(tmp_path / "m.gguf", trained, "qwen2"))
    other = load(write(tmp_path / "n.gguf", trained, "smollm"))
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other")
    chosen = open_tokenizer(tmp_path / "other", open_checkpoint(tmp_path / "m.gguf"))
    assert chosen.fingerprint == other.fingerprint != tokenizer.fingerprint


@pytest.mark.slow
def test_smollm2():
    """The real file, against transformers.

    transformers 5.23 ignores `tokenizer.ggml.pre = smollm` and splits like GPT-2, which joins a run of spaces before a
    digit differently. Right is what the file asks for, llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM: each digit alone, then
    GPT-2's pattern. With that split put in, transformers gives our ids."""
    from transformers import AutoTokenizer

    path = resolve("smollm2-135m")
    tokenizer = load(path)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def ids(text):
        return theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    differing = [text for text in TEXTS if tokenizer.encode(text)[0] != ids(text)]
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in TEXTS:
        assert tokenizer.encode(text)[0] == ids(text), text
        assert tokenizer.decode(ids(text)) == text
    assert all(any(character.isnumeric() for character in text) for text in differing)
    spaces = tokenizer.encode("a  1")[1]
    assert spaces == [(0, 1), (1, 3), (3, 4)]  # the two spaces are one token, the digit another
    assert theirs.vocab_size == 49152 and differing
    assert tokenizer.vocab_size == 49152 and len(tokenizer.control) == 17
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_id, tokenizer.eos_ids) == (
        None,
        "<|im_end|>",
        2,
        (2,),
    )
    assert "SmolLM" in tokenizer.chat_template
