"""What lies on disk decides which tokenizer it is; what contradicts itself is refused."""

import shutil

import pytest

from lorikeet import api
from lorikeet.base.errors import TokenizerError
from lorikeet.models.load import ModelOptions
from lorikeet.tokens.open import open_tokenizer

from .test_sentencepiece import LLAMA, train
from .test_tiktoken import ranks, write  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def model_file():
    return train(model_type="bpe", byte_fallback=True, **LLAMA)


def refused(match, folder):
    with pytest.raises(TokenizerError, match=match) as caught:
        open_tokenizer(folder, None)
    assert str(caught.value).count("\n") <= 3


def test_tokenizer_json_comes_first(model_file, ranks, tmp_path):  # noqa: F811
    (tmp_path / "tokenizer.model").write_bytes(model_file)
    scored = open_tokenizer(tmp_path, None)
    scored.save(tmp_path)
    write(tmp_path / "qwen.tiktoken", ranks)  # does not matter any more
    assert open_tokenizer(tmp_path, None).fingerprint == scored.fingerprint


def test_one_name_two_kinds(model_file, ranks, tmp_path):  # noqa: F811
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model_file)
    assert "<s>" in open_tokenizer(tmp_path, None).control
    write(file, ranks)
    assert "<|eot_id|>" in open_tokenizer(tmp_path, None).control


def test_two_kinds_at_once(model_file, ranks, tmp_path):  # noqa: F811
    (tmp_path / "tokenizer.model").write_bytes(model_file)
    write(tmp_path / "qwen.tiktoken", ranks)
    refused(r"tokenizers of 2 kinds[\s\S]*tokenizer.model[\s\S]*qwen.tiktoken", tmp_path)


def test_none(tmp_path):
    refused(r"no tokenizer.json[\s\S]*no such folder", tmp_path / "absent")
    (tmp_path / "vocab.txt").write_text("")
    refused(r"no tokenizer.json[\s\S]*vocab.txt[\s\S]*tiktoken", tmp_path)
    (tmp_path / "tokenizer.model").mkdir()
    refused("no tokenizer.json", tmp_path)


def test_pointers(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    for name in ("tokenizer.json", "tokenizer.model", "qwen.tiktoken"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(pointer)
        refused(r"git-lfs pointer[\s\S]*git lfs pull", folder)


def test_a_tokenizer_of_another_model(tiny_model, ranks, tmp_path):  # noqa: F811
    """More tokens than the model has rows is refused where the model is opened, whatever the kind."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer.json").unlink()
    write(folder / "qwen.tiktoken", ranks)
    with pytest.raises(TokenizerError, match=r"more tokens than the model[\s\S]*at most"):
        api.open_base(ModelOptions(path=str(folder)))


def test_a_model_with_a_sentencepiece_tokenizer_opens(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer.json").unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(train(model_type="bpe", **LLAMA))
    base = api.open_base(ModelOptions(path=str(folder)))
    assert base.tokenizer.names["bos_token"] == "<s>" and base.tokenizer.vocab_size <= base.shape.vocab_size
