"""tiktoken's ranks files: Llama 3's `tokenizer.model`, Qwen 1's `qwen.tiktoken`, OpenAI's `*.tiktoken`.

A line is a token's bytes in base64 and its rank. tiktoken joins the neighbours whose join ranks lowest, so ranks are
merges (_pieces.joins). How text is split before, and the special tokens, are not in the file: they stood in each
model's Python code, and stand in FAMILIES here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.tokens._folder import added_tokens, read, read_json, special_tokens
from lorikeet.tokens._pieces import joins
from lorikeet.tokens._spelling import byte_letters
from lorikeet.tokens.huggingface import HuggingFaceTokenizer

LINE = re.compile(rb"([A-Za-z0-9+/]+=*) (\d+)\s*")

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """What a model's code says besides its ranks. `special` gives the special tokens' ids, from the number of ranks."""

    pattern: str
    special: Callable[[int], dict[str, int]]
    names: dict[str, str] = field(default_factory=dict)  # "eos_token" -> "<|endoftext|>"
    ends: tuple[str, ...] = ()  # what ends a reply besides
    add_bos: bool = False
    nfc: bool = False


def _qwen(size: int) -> dict[str, int]:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
    return {name: size + number for number, name in enumerate(names)}


def _llama3(size: int) -> dict[str, int]:
    """Llama 3.1's names; 3.0 called three of them reserved."""
    named = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id"}
    named |= {8: "eom_id", 9: "eot_id", 10: "python_tag"}
    reserved = iter(range(256))
    texts = [named.get(number) or f"reserved_special_token_{next(reserved)}" for number in range(256)]
    return {f"<|{text}|>": size + number for number, text in enumerate(texts)}


def _openai(places: dict[str, int]) -> Callable[[int], dict[str, int]]:
    """Ids count from the number of ranks; some leave a gap."""
    return lambda size: {name: size + place for name, place in places.items()}


_EOT = {"eos_token": "<|endoftext|>"}
_FIM = {"<|endoftext|>": 1, "<|fim_prefix|>": 2, "<|fim_middle|>": 3, "<|fim_suffix|>": 4, "<|endofprompt|>": 20}
FAMILIES = {
    "qwen": Family(_CL100K.replace("{1,3}", ""), _qwen, _EOT, ends=("<|im_end|>",), nfc=True),
    "llama": Family(
        _CL100K,
        _llama3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        ends=("<|eot_id|>", "<|eom_id|>"),
        add_bos=True,
    ),
    "cl100k_base": Family(_CL100K, _openai(_FIM), _EOT),
    "o200k_base": Family(_O200K, _openai({"<|endoftext|>": 1, "<|endofprompt|>": 20}), _EOT),
    "r50k_base": Family(_GPT2, _openai({"<|endoftext|>": 0}), _EOT),
}


def is_ranks(file: Path) -> bool:
    """Does the file begin as a ranks file does?"""
    with file.open("rb") as opened:
        return LINE.match(opened.read(200)) is not None


def files(path: Path) -> list[str]:
    """The ranks files in the folder `path`."""
    if not path.is_dir():
        return []
    named = sorted(file.name for file in path.glob("*.tiktoken"))
    model = path / "tokenizer.model"
    return named + ([model.name] if model.is_file() and is_ranks(model) else [])


def recognises(path: Path, checkpoint: Checkpoint | None) -> bool:
    """A folder with a ranks file and no tokenizer.json."""
    return not (path / "tokenizer.json").is_file() and bool(files(path))


def load(path: Path, checkpoint: Checkpoint | None = None) -> HuggingFaceTokenizer:
    """The tokenizer in the folder `path`, with what its JSON files say. Raises TokenizerError."""
    found = files(path)
    if len(found) > 1:
        raise TokenizerError(
            f"{path}: {len(found)} ranks files", given=" ".join(found), allowed="one", try_="move the others elsewhere"
        )
    file = path / found[0]
    ranks = parse(file)
    family = FAMILIES[_family(path, file)]
    special = family.special(len(ranks))
    flags: dict[str, dict[str, Any]] = {}
    for id, text, flags_of in added_tokens(path, max([len(ranks), *(id + 1 for id in special.values())])):
        if id < len(ranks):
            raise TokenizerError(
                f"{path}: the files contradict each other about token {id}",
                given=f"'{text}' in the JSON files, a token of {file.name} as well",
                allowed=f"added tokens from {len(ranks)} on",
                try_="the tokenizer files that belong together, from one source",
            )
        special = {name: other for name, other in special.items() if other != id and name != text} | {text: id}
        flags[text] = flags_of
    backend = _backend(file, family, ranks, special, flags)
    names = {role: name for role, name in family.names.items() if name in special}
    said = special_tokens(path, backend.id_to_token, names, family.add_bos)
    ends = tuple(special[name] for name in family.ends if name in special)
    bos = said.names.get("bos_token")
    if said.add_bos and bos in special:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special[bos])]
        )
    return HuggingFaceTokenizer(backend, replace(said, end_ids=tuple(dict.fromkeys((*said.end_ids, *ends)))))


def _family(path: Path, file: Path) -> str:
    """The file's own name says it, else the model's kind; Llama 3 names its file like a sentencepiece model."""
    kind = str(read_json(path / "config.json").get("model_type", ""))
    for name in (file.stem, kind, "llama" if file.name == "tokenizer.model" and not kind else ""):
        if name in FAMILIES:
            return name
    raise TokenizerError(
        f"{file}: a ranks file does not say how text is split, and this model is not known here",
        given=f"{file.name}, model_type '{kind}'",
        allowed=" ".join(f"{name}.tiktoken" for name in FAMILIES) + ", or tokenizer.model of Llama 3",
        try_="a folder with tokenizer.json",
    )


def parse(file: Path) -> dict[bytes, int]:
    """Token bytes -> rank. Raises TokenizerError for a line that is none, a gap, or a byte without a token."""
    ranks: dict[bytes, int] = {}
    lines = read(file).splitlines()
    for rank, line in enumerate(lines):
        match = LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match is not None else b""
        except ValueError:
            token = b""
        if not token or match is None or int(match[2]) != rank or token in ranks:
            raise TokenizerError(
                f"{file}: line {rank + 1} is no new token of rank {rank}",
                given=f"'{line[:60].decode(errors='replace')}'" + " (the last line)" * (rank + 1 == len(lines)),
                allowed="base64, a space and the rank; ranks from 0 without a gap, each token once",
                try_="download the file again",
            )
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{file}: not every byte has a token",
            given=f"no token for byte 0x{missing[0]:02X}, nor for {len(missing) - 1} others",
            allowed="all 256",
            try_="download the file again",
        )
    return ranks


def _backend(
    file: Path, family: Family, ranks: dict[bytes, int], special: dict[str, int], flags: dict[str, dict[str, Any]]
) -> Backend:
    """`flags`: what the JSON files say of some of the `special` tokens, among them that one is no control token."""
    letters = byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = joins(vocab, range(len(vocab)))
    # special tokens have their ids from the vocabulary, because some leave gaps
    backend = Backend(models.BPE(vocab | special, merges, ignore_merges=True))
    if family.nfc:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(family.pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    for control in (True, False):
        ordered = [name for name in sorted(special, key=special.__getitem__) if _control(flags, name) is control]
        tokens = [_added(name, flags.get(name, {}), control) for name in ordered]
        backend.add_special_tokens(tokens) if control else backend.add_tokens(tokens)
    return backend


def _control(flags: dict[str, dict[str, Any]], name: str) -> bool:
    # without flags, it is one of a chat template's: no text should become it
    return bool(flags.get(name, {}).get("special", True))


def _added(name: str, said: dict[str, Any], control: bool) -> AddedToken:
    return AddedToken(
        name,
        special=control,
        normalized=bool(said.get("normalized", True)) and not control,
        lstrip=bool(said.get("lstrip", False)),
        rstrip=bool(said.get("rstrip", False)),
        single_word=bool(said.get("single_word", False)),
    )
