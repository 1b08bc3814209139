"""The tokenizer inside a GGUF file, built from its metadata into the same class as a folder's.

`tokenizer.ggml.model` is `gpt2` (BPE; `tokenizer.ggml.pre` names how text is split before merging), `gemma4` (the same,
with the split of that name), `llama` (pieces with scores, joined best first) or `t5` (Unigram). Ids are those llama.cpp
computes. It normalises nothing for BPE and scored pieces, and neither does this, even where the original had NFC.
Whether tokens take the white space behind them follows from the model's name (_gguf_name.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.tokens._folder import Special
from lorikeet.tokens._gguf_name import taken_behind
from lorikeet.tokens._gguf_pre import PRE, Pre
from lorikeet.tokens._pieces import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Pieces
from lorikeet.tokens.huggingface import HuggingFaceTokenizer

# what llama.cpp takes where the file names no id
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "t5": {"eos": 1, "unknown": 2, "padding": 0}}
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def recognises(path: Path, checkpoint: Checkpoint | None) -> bool:
    """A GGUF file, unless a tokenizer.json lies at `path`."""
    return isinstance(checkpoint, GGUFCheckpoint) and not (path / "tokenizer.json").is_file()


def load(path: Path, checkpoint: Checkpoint | None) -> HuggingFaceTokenizer:
    """The tokenizer that the file describes. Raises TokenizerError for a kind or a split that is not known here."""
    assert isinstance(checkpoint, GGUFCheckpoint)
    return read_tokenizer(str(checkpoint.path), checkpoint.metadata)


def read_tokenizer(where: str, metadata: Callable[[str], Any]) -> HuggingFaceTokenizer:
    """As `load`, from `metadata`: the value of each of a file's keys, None where it has none."""

    def value(key: str) -> Any:
        return metadata(f"tokenizer.ggml.{key}")

    kind = value("model")
    if kind not in ("gpt2", "gemma4", "llama", "t5"):
        raise TokenizerError(
            f"{where}: " + ("no tokenizer in this file" if kind is None else f"tokenizer of kind '{kind}'"),
            given=kind,
            allowed="gpt2 and gemma4 (BPE), llama (pieces with scores), t5 (Unigram)",
            try_="the same model as a Hugging Face folder with tokenizer.json",
        )
    tokens: list[str] = [token or f"[EMPTY_{id}]" for id, token in enumerate(value("tokens") or [])]
    types: list[int] = value("token_type") or [NORMAL] * len(tokens)
    behind = taken_behind(metadata("general.name"), tokens, types)
    add_bos = kind == "llama"
    if kind in ("gpt2", "gemma4"):
        pre = _pre(where, kind if kind == "gemma4" else value("pre") or "default")
        backend = _merged(where, tokens, types, value("merges"), pre, behind)
        add_bos = pre.add_bos
    else:
        backend = _scored(where, kind, tokens, types, value, behind)
    special = _special(where, kind, tokens, types, value, add_bos, metadata("tokenizer.chat_template"))
    bos = special.names.get("bos_token")
    if special.add_bos and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return HuggingFaceTokenizer(backend, special)


def _pre(where: str, name: str) -> Pre:
    if name not in PRE:
        raise TokenizerError(
            f"{where}: a way of splitting text that is not known here",
            given=f"tokenizer.ggml.pre = {name}",
            allowed=" ".join(PRE),
            try_="the same model as a Hugging Face folder with tokenizer.json",
        )
    return PRE[name]


def _incomplete(where: str, given: str, allowed: str) -> TokenizerError:
    return TokenizerError(
        f"{where}: the tokenizer is incomplete",
        given=given,
        allowed=allowed,
        try_="convert the model again, or use its Hugging Face folder",
    )


def _merged(
    where: str, tokens: list[str], types: list[int], merges: list[str] | None, pre: Pre, behind: frozenset[str]
) -> Backend:
    vocab = {token: id for id, token in enumerate(tokens)}
    if not tokens or merges is None or len(types) != len(tokens) or len(vocab) != len(tokens):
        raise _incomplete(
            where,
            f"{len(tokens)} tokens ({len(vocab)} different), {len(types)} types, {len(merges or [])} merges",
            "different tokens, a type for each, and merges",
        )
    # a token may itself begin with a space, so the gap is looked for from the second character on
    pairs = [(merge[: merge.find(" ", 1)], merge[merge.find(" ", 1) + 1 :]) for merge in merges]
    try:
        bpe = models.BPE(vocab, pairs, ignore_merges=pre.ignore_merges, byte_fallback=not pre.bytewise)
        backend = Backend(bpe)
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"{where}: merges that do not fit the vocabulary", given=error) from error
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    if pre.bytewise:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        backend.decoder = decoders.ByteLevel()
    else:
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
        backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])

    def added(wanted: int) -> list[AddedToken]:
        found = [token for token, kind in zip(tokens, types) if kind == wanted]
        return [AddedToken(one, normalized=False, special=wanted == CONTROL, rstrip=one in behind) for one in found]

    backend.add_tokens(added(USER_DEFINED))
    backend.add_special_tokens(added(CONTROL))
    return backend


def _scored(
    where: str, kind: str, tokens: list[str], types: list[int], value: Callable[[str], Any], behind: frozenset[str]
) -> Backend:
    """llama.cpp's SPM and UGM. User-defined tokens are cut out of the raw text, and what follows one gets the space
    that a text's start gets."""
    scores: list[float] = value("scores") or []
    different = len(set(tokens))
    if not tokens or len(types) != len(tokens) or len(scores) != len(tokens) or different != len(tokens):
        raise _incomplete(
            where,
            f"{len(tokens)} tokens ({different} different), {len(types)} types, {len(scores)} scores",
            "different tokens, a type and a score for each",
        )
    prefix, tidy = value("add_space_prefix"), value("remove_extra_whitespaces")
    unigram = kind == "t5"
    prefixed = (not unigram if prefix is None else bool(prefix)) or (unigram and bool(tidy))
    pieces = Pieces(
        texts=tokens,
        scores=scores,
        kinds=types,
        unknown=_id(value, kind, "unknown") or 0,
        unigram=unigram,
        prefix="always" if prefixed else "never",
        tidy_spaces=unigram and bool(tidy),
        charsmap=bytes(byte & 255 for byte in value("precompiled_charsmap") or b"") if unigram else b"",
        match_normalised=False,
        takes_behind=behind,
    )
    try:
        return pieces.backend()
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"{where}: pieces that make no tokenizer", given=error) from error


def _id(value: Callable[[str], Any], kind: str, role: str) -> int | None:
    stated = value(f"{role}_token_id")
    return DEFAULT_IDS.get(kind, {}).get(role) if stated is None else stated


def _special(
    where: str,
    kind: str,
    tokens: list[str],
    types: list[int],
    value: Callable[[str], Any],
    add_bos: bool,
    chat_template: str | None,
) -> Special:
    ids = {role: _id(value, kind, key) for role, key in ROLES.items()}
    ends = tuple(id for id in (value("eot_token_id"), value("eom_token_id")) if id is not None)
    outside = [id for id in (*ids.values(), *ends) if id is not None and not 0 <= id < len(tokens)]
    if outside:
        raise TokenizerError(
            f"{where}: a special token outside the vocabulary",
            given=f"id {outside[0]}",
            allowed=f"0 to {len(tokens) - 1}",
        )
    found = {role: id for role, id in ids.items() if id is not None}
    if "unk_token" in found and types[found["unk_token"]] not in (CONTROL, UNKNOWN):
        del found["unk_token"]  # byte-level BPE has no unknown text; do not make a word of the vocabulary special
    stated = value("add_bos_token")
    return Special(
        names={role: tokens[id] for role, id in found.items()},
        others=tuple(tokens[id] for id in ends),
        add_bos=add_bos if stated is None or kind == "gemma4" else bool(stated),  # so does llama.cpp, whatever is said
        end_ids=ends,
        chat_template=chat_template,
    )
