"""A tokenizer from the outside: its kind, size, special tokens and chat template, without building it.

Building one of 262,144 pieces takes seconds; reading what the files say about it takes none. An outline can be shown,
and templates can be bound to it and rendered; it cannot encode text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.tokens import gguf
from lorikeet.tokens._folder import Special, read, special_tokens
from lorikeet.tokens._gguf_pre import PRE
from lorikeet.tokens._pieces import CONTROL
from lorikeet.tokens._spelling import Spelling
from lorikeet.tokens.open import open_tokenizer

GGUF_KINDS = {
    "gpt2": "byte-level BPE",
    "gemma4": "BPE over whole lines",
    "llama": "pieces with scores (sentencepiece BPE)",
    "t5": "pieces with scores (Unigram)",
}


class Outline:
    """What `tokens._contract.Tokenizer` says about itself."""

    def __init__(self, kind: str, ids: dict[str, int], control: dict[str, int], special: Special):
        self.kind, self._ids, self.control = kind, ids, control
        self.vocab_size = max(ids.values(), default=-1) + 1
        self.takes_before, self.takes_behind = frozenset[str](), frozenset[str]()  # it encodes nothing
        self.divides: dict[str, int] = {}
        self.names = {role: name for role, name in special.names.items() if name in ids}
        self.control |= {name: ids[name] for name in (*self.names.values(), *special.others) if name in ids}
        self.add_bos = bool(special.add_bos)
        self.bos_token = self.names.get("bos_token") if self.add_bos else None
        self.eos_token = self.names.get("eos_token")
        ends = [ids[self.eos_token]] if self.eos_token is not None else []
        self.eos_ids = tuple(dict.fromkeys((*ends, *special.end_ids)))
        pad = self.names.get("pad_token")
        self.pad_id = ids[pad] if pad is not None else self.eos_ids[0] if self.eos_ids else 0
        self.chat_template = special.chat_template
        self.fingerprint = ""

    def encode(self, text: str, *, after: str = "text") -> tuple[list[int], list[tuple[int, int]]]:
        """One id where `text` is a token of the vocabulary; -1 for each character where it is not."""
        if text in self._ids:
            return [self._ids[text]], [(0, len(text))]
        return [-1] * max(2, len(text)), [(place, place + 1) for place in range(max(2, len(text)))]

    def encode_many(self, texts: Sequence[str], *, after: str = "text") -> list[bytes]:
        raise AssertionError("an outline encodes no texts")

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        raise AssertionError("an outline does not decode")

    @property
    def spelling(self) -> Spelling:
        raise AssertionError("an outline spells nothing")

    def with_tokens(self, names: Sequence[str]) -> Outline:
        raise AssertionError("an outline takes no new tokens")

    def save(self, folder: Path) -> None:
        raise AssertionError("an outline cannot be saved")


def outline(path: Path, checkpoint: Checkpoint) -> Outline:
    """The outline of the tokenizer at `path` (a folder, or a GGUF file). Raises TokenizerError as building it would,
    where that can be told without building it."""
    if gguf.recognises(path, checkpoint):
        assert isinstance(checkpoint, GGUFCheckpoint)
        return _of_gguf(checkpoint)
    if (path / "tokenizer.json").is_file():
        return _of_folder(path)
    built: Any = open_tokenizer(path, checkpoint)  # the other kinds are small
    special = Special(dict(built.names), (), built.add_bos, built.eos_ids, built.chat_template)
    ids = dict(built.control) | {"": built.vocab_size - 1}
    kind = "sentencepiece" if (path / "tokenizer.model").is_file() else "tiktoken"
    return Outline(kind, ids, dict(built.control), special)


def _of_folder(folder: Path) -> Outline:
    file = folder / "tokenizer.json"
    try:
        content = orjson.loads(read(file))
        model, added = content["model"], content.get("added_tokens") or []
        vocab = model["vocab"]
        ids = dict(vocab) if isinstance(vocab, dict) else {piece[0]: id for id, piece in enumerate(vocab)}
        ids |= {token["content"]: token["id"] for token in added}
        control = {token["content"]: token["id"] for token in added if token["special"]}
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(
            f"{file}: broken", given=f"{error!r}", allowed="a tokenizer.json of the tokenizers package"
        ) from error
    texts = {id: text for text, id in ids.items()}
    special = special_tokens(folder, texts.get)
    if special.add_bos is None:
        adds = _begins_with(content.get("post_processor"), special.names.get("bos_token"))
        special = Special(special.names, special.others, adds, special.end_ids, special.chat_template)
    kind = str(model.get("type", "BPE"))
    if kind == "BPE":
        byte_level = b'"ByteLevel"' in orjson.dumps([content.get("pre_tokenizer"), content.get("decoder")])
        kind = "byte-level BPE" if byte_level else "BPE"
    return Outline(kind, ids, control, special)


def _begins_with(processor: Any, bos: str | None) -> bool:
    """Whether the post-processor puts `bos` before a text."""
    if not isinstance(processor, dict) or bos is None:
        return False
    if processor.get("type") == "Sequence":
        return any(_begins_with(one, bos) for one in processor.get("processors", []))
    first = (processor.get("single") or [{}])[0]
    return bool(first.get("SpecialToken", {}).get("id") == bos)


def _of_gguf(checkpoint: GGUFCheckpoint) -> Outline:
    def value(key: str) -> Any:
        return checkpoint.metadata(f"tokenizer.ggml.{key}")

    kind, tokens, pre = value("model"), value("tokens") or [], value("pre") or "default"
    if kind not in GGUF_KINDS or not tokens or (kind == "gpt2" and pre not in PRE):
        gguf.load(checkpoint.path, checkpoint)  # says what is wrong
    pre_adds = PRE[pre].add_bos if kind == "gpt2" else kind in ("llama", "gemma4")
    types = value("token_type") or []
    ids = {token: id for id, token in enumerate(tokens)}
    control = {token: id for id, (token, type_) in enumerate(zip(tokens, types)) if type_ == CONTROL}
    stated = {role: value(f"{key}_token_id") for role, key in gguf.ROLES.items()}
    defaults = gguf.DEFAULT_IDS.get(kind, {})
    stated = {role: defaults.get(gguf.ROLES[role]) if id is None else id for role, id in stated.items()}
    names = {role: tokens[id] for role, id in stated.items() if id is not None and 0 <= id < len(tokens)}
    ends = tuple(id for id in (value("eot_token_id"), value("eom_token_id")) if id is not None)
    adds = value("add_bos_token")
    special = Special(
        names,
        (),
        bool(pre_adds if adds is None or kind == "gemma4" else adds),
        ends,
        checkpoint.metadata("tokenizer.chat_template"),
    )
    name = GGUF_KINDS[kind] + (f", split like {pre}" if kind == "gpt2" else "")
    return Outline(name, ids, control, special)
