"""A model's name in a GGUF file says what its tokens take, and it is chosen so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode_prompt
from lorikeet.data.templates.phi3 import Phi3
from lorikeet.tokens._folder import Special
from lorikeet.tokens._gguf_name import name_for, taken_behind
from lorikeet.tokens._to_gguf import PREFIX, differences, tokenizer_metadata
from lorikeet.tokens.gguf import read_tokenizer
from lorikeet.tokens.huggingface import HuggingFaceTokenizer

from .test_to_gguf import bytewise, pieces

ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
NAMES = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
SAID = Conversation((Message("user", " \n a b </s>  \n c "), Message("assistant", "\n d"), Message("user", "e")))


def made(kind: str, **flags: bool) -> HuggingFaceTokenizer:
    """A tokenizer with Phi-3's tokens; the `flags` are those of its roles."""
    backend = bytewise() if kind == "bytes" else pieces(True)
    plain = [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "<|endoftext|>")]
    backend.add_special_tokens([*plain, *(AddedToken(name, special=True, normalized=False, **flags) for name in ROLES)])
    backend.add_tokens([AddedToken("</s>", special=False, normalized=False, rstrip=flags.get("rstrip", False))])
    said = json.loads(backend.to_str())
    tokenizer = type(backend).from_str(json.dumps(said))
    return HuggingFaceTokenizer(tokenizer, Special(NAMES, add_bos=True))


def written(tokenizer: HuggingFaceTokenizer, name: str) -> dict[str, Any]:
    found = tokenizer_metadata(tokenizer, tokenizer.vocab_size)
    tokens, types = found[PREFIX + "tokens"], found[PREFIX + "token_type"]
    return found | {"general.name": name_for(name, tokens, types, tokenizer.description()["added_tokens"])}


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("rstrip", [False, True])
def test_read_again_conversations_have_the_same_ids(kind: str, rstrip: bool, capsys: pytest.CaptureFixture) -> None:
    tokenizer = made(kind, rstrip=rstrip)
    for name, phi3 in {"mine": "mine-phi-3", "Phi-3.5-mini": "Phi-3.5-mini", "my-phi3": "my-phi3"}.items():
        found = written(tokenizer, name)
        other = {"mine": "mine", "Phi-3.5-mini": "Phi_3.5-mini", "my-phi3": "my-phi_3"}[name]
        assert found["general.name"] == (phi3 if rstrip else other)
        differences(tokenizer, found)
        again = read_tokenizer("here", found.get)
        assert again.takes_behind == tokenizer.takes_behind == ({*ROLES, "</s>"} if rstrip else set())
        ids = [encode_prompt(SAID, Phi3().bind(one), one) for one in (tokenizer, again)]
        assert ids[0] == ids[1]
    assert "white space" not in capsys.readouterr().err


def test_what_no_name_says_is_told(capsys: pytest.CaptureFixture) -> None:
    """Phi-4's tokens take white space on both sides, and it has no </s>: no file called phi-3 would load."""
    backend = bytewise()
    taking = [AddedToken(name, special=True, lstrip=True, rstrip=True) for name in ("<|im_start|>", "<|im_end|>")]
    backend.add_special_tokens(taking)
    tokenizer = HuggingFaceTokenizer(backend, Special({"eos_token": "<|im_end|>"}))
    assert written(tokenizer, "phi3-or-4")["general.name"] == "phi_3-or-4"
    assert "keeps white space beside 2 tokens that take it here, <|im_end|> for one" in capsys.readouterr().err


def test_tokens_that_leave_what_others_take_are_told(capsys: pytest.CaptureFixture) -> None:
    tokenizer = made("bytes", rstrip=True)
    tokenizer = tokenizer.with_tokens(["<|mine|>"])
    assert written(tokenizer, "a")["general.name"] == "a-phi-3"
    assert "drops white space beside 1 tokens that leave it here, <|mine|>" in capsys.readouterr().err


def test_only_special_tokens_take_anything() -> None:
    tokens, types = ["<unk>", "<s>", "</s>", "<|endoftext|>", "a", "<|user|>", None], [2, 3, 1, 3, 1, 4, 5]
    assert taken_behind("PHI-3", tokens, types) == {"<|user|>"}
    assert taken_behind("phi-4", tokens, types) == taken_behind(None, tokens, types) == set()
