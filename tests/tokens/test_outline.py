import json
import shutil

import gguf
import numpy as np
import pytest

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.tokens.open import open_tokenizer
from lorikeet.tokens.outline import outline

SAME = ("vocab_size", "control", "names", "bos_token", "eos_token", "eos_ids", "pad_id", "add_bos", "chat_template")


@pytest.fixture
def as_gguf(tiny_model, tmp_path):
    """Write the tiny model's tokenizer into a GGUF file; `changes` of its metadata, None leaves a key out."""

    def write(**changes):
        content = json.loads((tiny_model / "tokenizer.json").read_text())
        ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
        tokens = sorted(ids, key=ids.get)
        control = {token["content"] for token in content["added_tokens"]}
        values = {"model": "gpt2", "pre": "gpt-2", "eos": ids["<|im_end|>"], "template": "{{ messages }}"} | changes
        writer = gguf.GGUFWriter(str(tmp_path / "made.gguf"), "llama")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in control else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        writer.add_eos_token_id(values["eos"])
        for key, add in (("model", writer.add_tokenizer_model), ("pre", writer.add_tokenizer_pre)):
            if values[key] is not None:
                add(values[key])
        writer.add_chat_template(values["template"])
        if "add_bos" in values:
            writer.add_bos_token_id(ids["<|im_start|>"])
            writer.add_add_bos_token(values["add_bos"])
        writer.add_tensor("a.weight", np.ones((4, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return open_checkpoint(tmp_path / "made.gguf")

    return write


@pytest.mark.parametrize(
    "settings", [{}, {"add_bos_token": True, "bos_token": "<|im_start|>"}, {"chat_template": None}]
)
def test_an_outline_says_what_the_tokenizer_says(tiny_model, tmp_path, settings):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    seen, built = outline(folder, checkpoint), open_tokenizer(folder, checkpoint)
    assert {name: getattr(seen, name) for name in SAME} == {name: getattr(built, name) for name in SAME}
    assert seen.kind == "byte-level BPE"


@pytest.mark.parametrize("changes", [{}, {"add_bos": True}, {"add_bos": False}, {"pre": "llama-bpe"}])
def test_an_outline_of_a_gguf_file_says_so_too(as_gguf, tmp_path, changes):
    checkpoint = as_gguf(**changes)
    seen, built = outline(tmp_path, checkpoint), open_tokenizer(tmp_path, checkpoint)
    assert {name: getattr(seen, name) for name in SAME} == {name: getattr(built, name) for name in SAME}
    assert seen.kind == f"byte-level BPE, split like {changes.get('pre', 'gpt-2')}"


@pytest.mark.parametrize("add_bos", [True, False])
def test_gemma_4_begins_with_bos_whatever_its_file_says(as_gguf, tmp_path, add_bos):
    checkpoint = as_gguf(model="gemma4", pre=None, add_bos=add_bos)
    seen, built = outline(tmp_path, checkpoint), open_tokenizer(tmp_path, checkpoint)
    assert seen.bos_token == built.bos_token == "<|im_start|>" and seen.add_bos is built.add_bos is True


@pytest.mark.parametrize("changes, said", [({"model": "bert"}, "'bert'"), ({"pre": "odd"}, "way of splitting text")])
def test_gguf_tokenizers_that_cannot_be_built_have_no_outline(as_gguf, tmp_path, changes, said):
    with pytest.raises(TokenizerError, match=said):
        outline(tmp_path, as_gguf(**changes))


@pytest.mark.parametrize("content", ["", "{}", '{"model": {}}', '{"model": {"vocab": 3}}', "[]"])
def test_a_broken_tokenizer_json(tiny_model, tmp_path, content):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer.json: broken"):
        outline(folder, open_checkpoint(folder))


def test_words_of_the_vocabulary(tiny_model):
    seen = outline(tiny_model, open_checkpoint(tiny_model))
    assert seen.encode("<|im_end|>")[0] == [seen.control["<|im_end|>"]]
    assert len(seen.encode("\u2603")[0]) > 1
