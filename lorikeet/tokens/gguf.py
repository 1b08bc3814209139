"""The tokenizer inside a GGUF file, built from its metadata into the same class as a folder's.

Only byte-level BPE (`tokenizer.ggml.model = gpt2`). `tokenizer.ggml.pre` names how text is split before merging; the
patterns are llama.cpp's (src/llama-vocab.cpp), each applied to the pieces the one before it left. llama.cpp normalises
nothing for BPE, and neither does this, even where the original tokenizer had NFC: the ids are those llama.cpp computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.tokens.huggingface import HuggingFaceTokenizer, Special

CONTROL, USER_DEFINED = 3, 4  # token types

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Pre(NamedTuple):
    """How text is split, and what llama.cpp assumes with it."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole is not merged up from bytes
    add_bos: bool = False  # when the file does not say


_GPT2_PRE = Pre((_GPT2,))
_DIGITS_PRE = Pre((r"\p{N}", _GPT2))
_LLAMA3_PRE = Pre((f"{_CONTRACTION}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",), ignore_merges=True, add_bos=True)
_QWEN2_PRE = Pre((f"{_CONTRACTION}|{_WORDS}|\\p{{N}}|{_REST}",))
_DEFAULT_PRE = Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

PRE = {
    "default": _DEFAULT_PRE,
    "gpt-2": _GPT2_PRE,
    "phi-2": _GPT2_PRE,
    "olmo": _GPT2_PRE,
    "smollm": _DIGITS_PRE,
    "starcoder": _DIGITS_PRE,
    "refact": _DIGITS_PRE,
    "command-r": _DIGITS_PRE,
    "codeshell": _DIGITS_PRE,
    "llama-bpe": _LLAMA3_PRE,
    "llama3": _LLAMA3_PRE,
    "llama-v3": _LLAMA3_PRE,
    "qwen2": _QWEN2_PRE,
    "deepseek-r1-qwen": _QWEN2_PRE,
    "stablelm2": _QWEN2_PRE,
}


def load(checkpoint: GGUFCheckpoint) -> HuggingFaceTokenizer:
    """The tokenizer that the file describes. Raises TokenizerError for a kind or a split that is not known here."""
    where = str(checkpoint.path)

    def value(key: str) -> Any:
        return checkpoint.metadata(f"tokenizer.ggml.{key}")

    kind = value("model")
    if kind != "gpt2":
        raise TokenizerError(
            f"{where}: " + ("no tokenizer in this file" if kind is None else f"tokenizer of kind '{kind}'"),
            given=kind,
            allowed="gpt2 (byte-level BPE)",
            try_="the same model as a Hugging Face folder with tokenizer.json",
        )
    name = value("pre") or "default"
    if name not in PRE:
        raise TokenizerError(
            f"{where}: a way of splitting text that is not known here",
            given=f"tokenizer.ggml.pre = {name}",
            allowed=" ".join(PRE),
            try_="the same model as a Hugging Face folder with tokenizer.json",
        )
    tokens: list[str] = value("tokens") or []
    types: list[int] = value("token_type") or [1] * len(tokens)
    backend = _backend(where, tokens, types, value("merges"), PRE[name])
    special = _special(where, tokens, types, value, PRE[name], checkpoint.metadata("tokenizer.chat_template"))
    bos = special.names.get("bos_token")
    if special.add_bos and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return HuggingFaceTokenizer(backend, special)


def _backend(where: str, tokens: list[str], types: list[int], merges: list[str] | None, pre: Pre) -> Backend:
    vocab = {token: id for id, token in enumerate(tokens)}
    if not tokens or merges is None or len(types) != len(tokens) or len(vocab) != len(tokens):
        raise TokenizerError(
            f"{where}: the tokenizer is incomplete",
            given=f"{len(tokens)} tokens ({len(vocab)} different), {len(types)} types, {len(merges or [])} merges",
            allowed="different tokens, a type for each, and merges",
            try_="convert the model again, or use its Hugging Face folder",
        )
    # a token may itself begin with a space, so the gap is looked for from the second character on
    pairs = [(merge[: merge.find(" ", 1)], merge[merge.find(" ", 1) + 1 :]) for merge in merges]
    try:
        backend = Backend(models.BPE(vocab, pairs, ignore_merges=pre.ignore_merges))
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"{where}: merges that do not fit the vocabulary", given=error) from error
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    added = [token for token, kind in zip(tokens, types) if kind == USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    control = [token for token, kind in zip(tokens, types) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return backend


def _special(
    where: str, tokens: list[str], types: list[int], value: Callable[[str], Any], pre: Pre, chat_template: str | None
) -> Special:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: value(f"{key}_token_id") for role, key in keys.items()}
    ends = tuple(id for id in (value("eot_token_id"), value("eom_token_id")) if id is not None)
    outside = [id for id in (*ids.values(), *ends) if id is not None and not 0 <= id < len(tokens)]
    if outside:
        raise TokenizerError(
            f"{where}: a special token outside the vocabulary",
            given=f"id {outside[0]}",
            allowed=f"0 to {len(tokens) - 1}",
        )
    names = {role: tokens[id] for role, id in ids.items() if id is not None}
    if "unk_token" in names and types[ids["unk_token"]] not in (CONTROL, 2):
        del names["unk_token"]  # byte-level BPE has no unknown text; do not make a word of the vocabulary special
    add_bos = value("add_bos_token")
    return Special(
        names=names,
        others=tuple(tokens[id] for id in ends),
        add_bos=pre.add_bos if add_bos is None else bool(add_bos),
        end_ids=ends,
        chat_template=chat_template,
    )
