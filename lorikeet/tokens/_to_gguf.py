"""A tokenizer as GGUF metadata, from what its tokenizer.json says: the way back from tokens/gguf.py.

BPE over bytes becomes `gpt2`, with the name of its split; BPE over sentencepiece's pieces becomes `llama`, where a
piece's score is its place among the merges; Unigram becomes `t5`. What was written is read again, as llama.cpp reads
it, and has to give the same ids.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from lorikeet.base.errors import TokenizerError
from lorikeet.base.log import note
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.tokens._gguf_pre import PRE
from lorikeet.tokens._gguf_pre_of import EVERYDAY, RARE, pre_of
from lorikeet.tokens._pieces import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from lorikeet.tokens._prefix import find_prefix
from lorikeet.tokens.gguf import ROLES, read_tokenizer
from lorikeet.tokens.huggingface import HuggingFaceTokenizer

PREFIX = "tokenizer.ggml."
NEVER = -1e9  # the score of a piece that no merge makes


def tokenizer_metadata(
    tokenizer: HuggingFaceTokenizer,
    rows: int,
    *,
    pre: str | None = None,
    stop_ids: Sequence[int] = (),
    source: GGUFCheckpoint | None = None,
) -> dict[str, Any]:
    """Everything under tokenizer.ggml. of a model with `rows` rows in its embedding.

    pre: the name of the split, instead of looking for it. stop_ids: what ends a reply, besides EOS. source: the GGUF
    file that the tokenizer was read from, whose words are kept. Raises TokenizerError where llama.cpp has no such
    tokenizer."""
    if pre is not None and pre not in PRE:
        raise TokenizerError("--pre: no such split", given=pre, allowed=" ".join(PRE), try_="leave it out")
    description = tokenizer.description()
    if source is not None:
        found = _kept(source, tokenizer) | ({} if pre is None else {"pre": pre})
    else:
        found = _vocabulary(tokenizer, description, pre)
    _fill(found, rows)
    found |= _special(tokenizer, stop_ids, rows)
    return {PREFIX + key: value for key, value in found.items()}


def differences(tokenizer: HuggingFaceTokenizer, metadata: dict[str, Any]) -> list[str]:
    """The rare texts for which llama.cpp computes other ids from `metadata`. Raises TokenizerError where an everyday
    text is among them."""
    again = read_tokenizer("what is written", lambda key: _as_read(metadata.get(key)))
    for text in EVERYDAY:
        ids, theirs = tokenizer.encode(text)[0], again.encode(text)[0]
        if ids != theirs:
            raise TokenizerError(
                "llama.cpp would compute other ids with this tokenizer",
                given=f"{text!r}: {ids[:12]} here, {theirs[:12]} there",
                try_="another --pre, where it is BPE; or serve it with lorikeet serve",
            )
    return [text for text in RARE if tokenizer.encode(text)[0] != again.encode(text)[0]]


def _as_read(value: Any) -> Any:
    return list(value) if isinstance(value, bytes) else value


def _kept(source: GGUFCheckpoint, tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    """The file's own words, with the tokens that were added to it."""
    keys = [key.removeprefix(PREFIX) for key in source.metadata_keys() if key.startswith(PREFIX)]
    found = {key: source.metadata(PREFIX + key) for key in keys}
    if "precompiled_charsmap" in found:
        found["precompiled_charsmap"] = bytes(byte & 255 for byte in found["precompiled_charsmap"])
    known = len(found["tokens"])
    found.setdefault("token_type", [NORMAL] * known)
    by_id = {id: name for name, id in tokenizer.control.items()}
    for id in range(known, tokenizer.vocab_size):
        found["tokens"].append(by_id[id])
        found["token_type"].append(CONTROL)
        if "scores" in found:
            found["scores"].append(NEVER)
    return found


def _vocabulary(tokenizer: HuggingFaceTokenizer, description: dict[str, Any], pre: str | None) -> dict[str, Any]:
    model = description["model"]
    kind = model.get("type")
    if kind == "BPE" and "ByteLevel" in list(_types(description.get("pre_tokenizer"))):
        return _bytes(tokenizer, description, pre)
    if pre is not None:
        raise TokenizerError("--pre: has no effect, only BPE over bytes has a split", given=pre, try_="leave it out")
    if kind == "BPE" and (model.get("byte_fallback") or _escapes(description)):
        return _scored(description)
    if kind == "Unigram":
        return _unigram(description)
    raise TokenizerError(
        "llama.cpp has no tokenizer of this kind",
        given=f"a tokenizer.json of {kind}",
        allowed="BPE over bytes or over sentencepiece's pieces, and Unigram",
        try_="serve it with lorikeet serve, or vLLM",
    )


def _bytes(tokenizer: HuggingFaceTokenizer, description: dict[str, Any], pre: str | None) -> dict[str, Any]:
    model = description["model"]
    name = pre or pre_of(tokenizer.backend, ignore_merges=bool(model.get("ignore_merges")))
    if name is None:
        raise TokenizerError(
            "llama.cpp has no name for the way in which this tokenizer splits text",
            given="a pre_tokenizer that cuts everyday texts otherwise than all known ones",
            allowed=" ".join(PRE),
            try_="--pre NAME, if you know which one it should be: ids are compared all the same",
        )
    tokens, types = _tokens(description, model["vocab"].items())
    if not model["merges"]:
        raise TokenizerError("llama.cpp reads no BPE without merges", given="a tokenizer.json with none")
    return {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": types, "merges": _merges(model)}


def _scored(description: dict[str, Any]) -> dict[str, Any]:
    model = description["model"]
    tokens, types = _tokens(description, model["vocab"].items())
    order: dict[str, int] = {}
    for left, right in _pairs(model):
        order.setdefault(left + right, len(order))
    scores = [-float(order[text]) if text in order else NEVER for text in tokens]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "add_space_prefix": _prefix_always(description),
    }


def _unigram(description: dict[str, Any]) -> dict[str, Any]:
    model = description["model"]
    vocab = [(text, id) for id, (text, _) in enumerate(model["vocab"])]
    tokens, types = _tokens(description, vocab, unknown=model.get("unk_id"))
    scores = [float(score) for _, score in model["vocab"]]
    found = {
        "model": "t5",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores + [NEVER] * (len(tokens) - len(scores)),
        "add_space_prefix": _prefix_always(description),
        "remove_extra_whitespaces": any(_squeezes(step) for step in _steps(description.get("normalizer"))),
    }
    for step in _steps(description.get("normalizer")):
        if step.get("type") == "Precompiled":
            found["precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
    return found


def _tokens(description: dict[str, Any], vocab: Any, unknown: int | None = None) -> tuple[list[str | None], list[int]]:
    """Texts and types by id; None and UNUSED where an id has no token."""
    by_id = {id: text for text, id in vocab}
    added = {token["id"]: token for token in description["added_tokens"]}
    by_id |= {id: token["content"] for id, token in added.items()}
    size = max(by_id) + 1
    tokens: list[str | None] = [by_id.get(id) for id in range(size)]
    unk = description["model"].get("unk_token")
    types = []
    for id, text in enumerate(tokens):
        if text is None:
            types.append(UNUSED)
        elif id == unknown or text == unk:
            types.append(UNKNOWN)
        elif id in added:
            types.append(CONTROL if added[id]["special"] else USER_DEFINED)
        else:
            types.append(BYTE if len(text) == 6 and text.startswith("<0x") and text.endswith(">") else NORMAL)
    return tokens, types


def _fill(found: dict[str, Any], rows: int) -> None:
    """A name for every row of the embedding, and no more. Rows without a token are many models' padding; a token
    without a row (Gemma 3's image token in its text models) is no id of this network."""
    for key in ("tokens", "token_type", "scores"):
        if key in found:
            found[key] = found[key][:rows]
    tokens, missing = found["tokens"], rows - len(found["tokens"])
    tokens += [None] * missing
    found["token_type"] += [UNUSED] * missing
    if "scores" in found:
        found["scores"] += [NEVER] * missing
    known = set(tokens)
    for id, text in enumerate(tokens):
        if text is None:
            name = f"[PAD{id}]"
            tokens[id] = f"[PAD{id}_]" if name in known else name


def _special(tokenizer: HuggingFaceTokenizer, stop_ids: Sequence[int], rows: int) -> dict[str, Any]:
    named = {role: tokenizer.token_id(tokenizer.names[name]) for name, role in ROLES.items() if name in tokenizer.names}
    ids = {role: id for role, id in named.items() if id is not None and id < rows}  # configs name any id
    others = [id for id in dict.fromkeys((*tokenizer.eos_ids, *stop_ids)) if id < rows]
    if "eos" not in ids and others:
        ids["eos"] = others[0]
    ends = [id for id in others if id != ids.get("eos")]
    ids |= dict(zip(("eot", "eom"), ends))
    if ends[2:]:
        names = {id: name for name, id in tokenizer.control.items()}
        left = " ".join(names.get(id, str(id)) for id in ends[2:])
        note(f"a GGUF file names three tokens that end a reply; left out: {left}")
    found: dict[str, Any] = {f"{role}_token_id": id for role, id in ids.items()}
    found |= {"add_bos_token": tokenizer.add_bos, "add_eos_token": False}
    return found


def _merges(model: dict[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in _pairs(model)]


def _pairs(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        yield left, right


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer, step by step."""
    if step is None:
        return
    inner = [part for key in ("normalizers", "pretokenizers") for part in step.get(key, [])]
    if not inner:
        yield step
    for part in inner:
        yield from _steps(part)


def _types(step: dict[str, Any] | None) -> Iterator[str]:
    return (str(one.get("type")) for one in _steps(step))


def _escapes(description: dict[str, Any]) -> bool:
    """Whether spaces become ▁."""
    steps = [*_steps(description.get("normalizer")), *_steps(description.get("pre_tokenizer"))]
    return any(step.get("type") == "Metaspace" or step.get("content") == SPACE for step in steps)


def _squeezes(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern", {})
    return step.get("type") == "Replace" and pattern.get("Regex") == " {2,}"


def _prefix_always(description: dict[str, Any]) -> bool:
    """Whether a space stands before each text between control tokens. llama.cpp has no space before the very first
    text alone, and a chat begins with a control token."""
    return find_prefix(description).at == "always"
