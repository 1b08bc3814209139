import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.tokens import huggingface
from lorikeet.tokens.open import open_tokenizer

PLAIN = [
    "",
    " ",
    "a",
    "Hello world, this is plain text.",
    "  leading and trailing  ",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": x_y**2}\n\n\n",
    "line\r\nline\r\n\r\n\tindented",
    "日本語と中文，한국어。",
    "👩‍👩‍👧‍👦 🇩🇪 ❤️ 👍🏽",
    "e\u0301 n\u0303 A\u030a \u1e9b\u0323",
    "ﬁ ½ Ⅷ x² ٣٤٥ १२३",
    "1234567890 3.14159 1,000,000  42",
    " " * 100 + "x" + "\t" * 9 + "\n" * 7,
    "\u00a0nbsp\u3000wide\u200bzero",
    "I'll don't WE'RE they'd",
    "naïve café Zürich Ωmega привет שלום مرحبا",
    "\x00\x01\x7f control characters",
    "<think>between</think> tags",
]
CONTROL = [
    "<|im_start|>user\nhi<|im_end|>",
    "<s>",
    "</s></s>",
    "a<s>b</s>c",
    " <pad> ",
    "[INST] <unk> [/INST]",
    "<|im_end|",
]
TRAINING = [*PLAIN, *CONTROL, "hello world the quick brown fox"] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]


def byte_level(normalizer=None):
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2's: it would cut spaces off the spans
    return backend


def unigram():
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TRAINING, trainer)
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return backend


def prepended():
    """Llama 2's way: a space is put before, spaces become ▁, unknown characters become bytes."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    every_byte = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *every_byte], show_progress=False)
    backend.train_from_iterator(["hello world the quick brown fox"] * 3, trainer)
    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIAL]
    return Backend.from_str(json.dumps(described))


MADE = {
    "byte_level": byte_level,
    "nfc": lambda: byte_level(normalizers.NFC()),
    "unigram": unigram,
    "prepended": prepended,
}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "chat_template": "{{ messages }}",
    "model_max_length": 77,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, make in MADE.items():
        folder = tmp_path_factory.mktemp(name)
        backend = make()
        backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
        backend.enable_truncation(5)  # must not cut anything
        backend.enable_padding(length=9)  # nor add anything
        backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
        made[name] = folder
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: huggingface.load(folder) for name, folder in folders.items()}


def transformers_ids(folder, text):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    return theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("kind", MADE)
def test_ids_are_those_of_transformers(kind, folders, loaded):
    # a Unigram vocabulary contains "</s>" as a piece: transformers makes it a control token, which is wrong here
    texts = PLAIN if kind == "unigram" else PLAIN + CONTROL
    assert transformers_ids(folders[kind], texts) == [loaded[kind].encode(text)[0] for text in texts]


@pytest.mark.parametrize("kind", MADE)
def test_plain_text_never_becomes_a_control_token(kind, loaded):
    tokenizer = loaded[kind]
    forbidden = {id for name, id in tokenizer.control.items() if name != "<unk>"}
    assert set(tokenizer.control) == set(SPECIAL)
    for text in [*CONTROL, *SPECIAL[1:], " ".join(SPECIAL)]:
        ids, _ = tokenizer.encode(text)
        assert not forbidden & set(ids), (text, ids)
        if kind in ("byte_level", "nfc"):
            assert tokenizer.decode(ids) == text


def test_without_the_plain_encoder_unigram_would_make_control_tokens(loaded):
    backend = Backend.from_str(loaded["unigram"]._backend.to_str())
    backend.encode_special_tokens = True
    assert backend.token_to_id("</s>") in backend.encode("a</s>", add_special_tokens=False).ids


@pytest.mark.parametrize("kind", MADE)
def test_added_tokens_that_are_not_special_stay_matched(kind, loaded):
    tokenizer = loaded[kind]
    ids, spans = tokenizer.encode("x<think>y")
    at = ids.index(tokenizer._backend.token_to_id("<think>"))
    assert spans[at] == (1, 8) and "<think>" not in tokenizer.control


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(
        st.one_of(st.sampled_from(" \t\r\n▁éa1<>|👩\u200d\u0301日"), st.characters(exclude_categories=["Cs"])),
        max_size=30,
    )
)
@pytest.mark.parametrize("kind", MADE)
def test_spans_cover_the_text_in_order(kind, loaded, text):
    ids, spans = loaded[kind].encode(text)
    assert len(ids) == len(spans)
    reach = 0
    for start, end in spans:
        assert 0 <= start <= end <= len(text)
        assert start <= reach  # no gap
        reach = max(reach, end)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert not spans or reach == len(text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_byte_level_round_trip_and_spans_hold_their_bytes(loaded, text):
    tokenizer = loaded["byte_level"]
    ids, spans = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    for id, (start, end) in zip(ids, spans):
        piece = tokenizer.decode([id])
        # a token that is whole characters spells exactly its span
        if "\ufffd" not in piece + text:
            assert piece == text[start:end]


def test_spans_by_hand(loaded):
    text = " a👩e\u0301 "
    ids, spans = loaded["nfc"].encode(text)
    pieces = [loaded["nfc"].decode([id]) for id in ids]
    assert spans[0] == (0, 2) or spans[:2] == [(0, 1), (1, 2)], (pieces, spans)
    emoji = [span for span in spans if span == (2, 3)]
    assert len(emoji) >= 1
    assert spans[-1][1] == 6 and (3, 5) in spans  # e and its accent were joined: one span of two characters
    _, spans = loaded["prepended"].encode("hello world")
    assert spans[0][0] == 0 and spans[-1][1] == 11


def test_nothing_is_added_or_cut(loaded):
    for tokenizer in loaded.values():
        assert tokenizer.encode("")[0] == []
        ids, _ = tokenizer.encode("hello world " * 20)
        assert len(ids) >= 20 and tokenizer.control["<s>"] not in ids and tokenizer.control["<pad>"] not in ids


def test_decode(loaded):
    tokenizer = loaded["byte_level"]
    ids, _ = tokenizer.encode("hé")
    end = tokenizer.control["<|im_end|>"]
    assert tokenizer.decode([*ids, end]) == "hé" and tokenizer.decode([*ids, end], skip_control=False) == "hé<|im_end|>"
    cut = tokenizer.encode("👩")[0][:-1]
    assert tokenizer.decode(cut).endswith("\ufffd")


def test_what_the_model_says_about_itself(loaded):
    tokenizer = loaded["byte_level"]
    assert tokenizer.names == {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_ids == (5,) and tokenizer.pad_id == 3
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.vocab_size == tokenizer._backend.get_vocab_size()
    assert tokenizer.bos_token is None  # the post-processor adds none
    assert loaded["unigram"].bos_token == "<s>"  # here it does


def change(folder, target, name="tokenizer_config.json", **values):
    if not target.exists():
        shutil.copytree(folder, target)
    file = target / name
    content = json.loads(file.read_text()) if file.exists() else {}
    content = {key: value for key, value in (content | values).items() if value is not None}
    file.write_text(json.dumps(content))
    return target


def test_bos_pad_eos_from_elsewhere(folders, tmp_path):
    folder = change(folders["byte_level"], tmp_path / "m", add_bos_token=True, pad_token=None, eos_token=None)
    change(folder, folder, "generation_config.json", eos_token_id=[2, 5])
    tokenizer = huggingface.load(folder)
    assert tokenizer.bos_token == "<s>" and tokenizer.eos_token == "</s>"
    assert tokenizer.eos_ids == (2, 5) and tokenizer.pad_id == 2  # eos where the model names no pad
    (folder / "generation_config.json").unlink()
    change(folder, folder, "special_tokens_map.json", eos_token="<|im_end|>")
    assert huggingface.load(folder).eos_ids == (5,)


def test_control_tokens_that_only_the_config_names(folders, tmp_path):
    folder = change(folders["byte_level"], tmp_path / "m", additional_special_tokens=["<|tool|>"])
    tokenizer = huggingface.load(folder)
    assert tokenizer.control["<|tool|>"] == tokenizer.vocab_size - 1
    assert tokenizer.decode(tokenizer.encode("<|tool|>")[0]) == "<|tool|>"
    assert tokenizer.control["<|tool|>"] not in tokenizer.encode("<|tool|>")[0]


def test_chat_templates(folders, tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = change(folders["byte_level"], tmp_path / "m", chat_template=named)
    assert huggingface.load(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J {{ ä }}")
    assert huggingface.load(folder).chat_template == "J {{ ä }}"
    assert huggingface.load(change(folders["byte_level"], tmp_path / "n", chat_template=None)).chat_template is None


def test_saving_keeps_the_original_files(folders, tmp_path):
    for name, folder in folders.items():
        tokenizer = huggingface.load(folder)
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / name / file).read_bytes() == (folder / file).read_bytes()
        assert huggingface.load(tmp_path / name).fingerprint == tokenizer.fingerprint


def test_the_fingerprint_is_of_what_decides_ids(folders, loaded, tmp_path):
    assert len({tokenizer.fingerprint for tokenizer in loaded.values()}) == len(loaded)
    same = change(folders["byte_level"], tmp_path / "same", model_max_length=5)
    assert huggingface.load(same).fingerprint == loaded["byte_level"].fingerprint
    other = change(folders["byte_level"], tmp_path / "other", eos_token="</s>")
    assert huggingface.load(other).fingerprint != loaded["byte_level"].fingerprint


def test_refusals(folders, tmp_path):
    def refused(match, folder):
        with pytest.raises(TokenizerError, match=match) as caught:
            open_tokenizer(folder, None)
        assert str(caught.value).count("\n") <= 3

    refused(r"no tokenizer.json[\s\S]*no such folder", tmp_path / "absent")
    folder = change(folders["byte_level"], tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{")
    refused("tokenizer_config.json: not JSON", folder)
    (folder / "tokenizer_config.json").write_text("[]")
    refused("not a JSON object", folder)
    (folder / "tokenizer_config.json").unlink()
    whole = (folder / "tokenizer.json").read_bytes()
    for content in (b"", whole[:-5], b"{}", b"\xff"):
        (folder / "tokenizer.json").write_bytes(content)
        refused("tokenizer.json: broken", folder)
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("")
    refused(r"no tokenizer.json[\s\S]*merges.txt", folder)


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_control_token_that_merges_can_make_is_not_made(tmp_path, ignore_merges):
    vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3, "!": 4}
    backend = Backend(models.BPE(vocab, [("a", "b"), ("ab", "b")], ignore_merges=ignore_merges))
    backend.add_special_tokens(["ab", "!"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = huggingface.load(tmp_path)
    assert tokenizer.control == {"ab": 2, "!": 4}
    assert tokenizer.encode("ab")[0] == [0, 1]
    # a single character has no other way to be written, so it keeps its id though the model calls it special
    assert tokenizer.encode("a!")[0] == [0, 4]
