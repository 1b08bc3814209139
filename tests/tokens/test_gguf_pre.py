"""The splits against what llama.cpp itself computed (make_llama_cpp.py says how)."""

import json
from pathlib import Path

import pytest

from lorikeet.tokens._gguf_pre import PRE
from lorikeet.tokens.gguf import _merged

EXPECTED = json.loads(Path(__file__).with_name("llama_cpp.json").read_text(encoding="utf-8"))
IDS = {name: ids for names, ids in EXPECTED["ids"].items() for name in names.split()}
# kinds that this llama.cpp did not know yet, from its later source; their patterns are parts of verified ones
UNVERIFIED = {"cohere2moe", "granite-embed-multi-97m", "hy_v4", "laguna", "llama-v3"} | {
    "mellum2",
    "minicpm5",
    "spark2_5",
    "talkie",
    "ufakzeka",
}


BYTEWISE = sorted(name for name, pre in PRE.items() if pre.bytewise)


@pytest.mark.parametrize("name", BYTEWISE)
def test_ids_are_those_of_llama_cpp(name):
    tokens = EXPECTED["tokens"]
    backend = _merged("here", tokens, [1] * len(tokens), EXPECTED["merges"], PRE[name], frozenset())
    for number, text in enumerate(EXPECTED["texts"]):
        ids = backend.encode(text).ids
        assert backend.decode(ids) == text
        if name in IDS:
            assert ids == [int(id) for id in IDS[name][number].split()], text


def test_what_was_verified():
    assert set(BYTEWISE) - set(IDS) == UNVERIFIED
    assert len(EXPECTED["ids"]) == 23  # so many different behaviours


def test_the_vocabulary_tells_splits_apart():
    """Every kind that splits otherwise gives other ids, but one: bailingmoe's patterns find what qwen2's find."""
    kinds = {}
    for name in IDS:
        kinds.setdefault(PRE[name].patterns, set()).add(tuple(IDS[name]))
    assert all(len(different) == 1 for different in kinds.values())
    assert len(kinds) == 24
