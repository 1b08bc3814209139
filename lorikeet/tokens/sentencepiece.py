"""A sentencepiece `tokenizer.model` (BPE or Unigram) without tokenizer.json: Llama 2, Mistral, Gemma, old checkpoints.

The file is one protobuf message (sentencepiece's sentencepiece_model.proto). Only a dozen of its fields decide ids, so
they are read from the wire format here; the sentencepiece package could not tell how text is normalised. The pieces
become a backend of the `tokenizers` package (_pieces.py), which also gives offsets and a tokenizer.json to save.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.tokens._folder import Special, added_tokens, read, read_json, special_tokens
from lorikeet.tokens._pieces import BYTE, NORMAL, UNKNOWN, Pieces
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from lorikeet.tokens.tiktoken import is_ranks

NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
UNIGRAM, BPE = 1, 2  # TrainerSpec.model_type
PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5  # fields of ModelProto
ROLES = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # TrainerSpec's field and its default
# classes of transformers that put four tokens of fairseq's before the pieces
SHIFTED = ("XLMRoberta", "MBart", "Camembert", "Barthez", "XGLM", "Nllb", "SeamlessM4T", "XLMProphetNet")
Fields = dict[int, Any]  # of a protobuf message, the last value of each number


def files(path: Path) -> list[str]:
    """The sentencepiece models in the folder `path`."""
    return [name for name in NAMES if (path / name).is_file() and not is_ranks(path / name)]


def recognises(path: Path, checkpoint: Checkpoint | None) -> bool:
    """A folder with a sentencepiece model and no tokenizer.json."""
    return not (path / "tokenizer.json").is_file() and bool(files(path))


def load(path: Path, checkpoint: Checkpoint | None = None) -> HuggingFaceTokenizer:
    """The tokenizer in the folder `path`, with what its JSON files say. Raises TokenizerError."""
    file = path / files(path)[0]
    config = read_json(path / "tokenizer_config.json")
    _refuse_shifted(path, str(config.get("tokenizer_class", "")))
    model = parse(file)
    pieces = Pieces(
        texts=model.texts,
        scores=model.scores,
        kinds=model.kinds,
        unknown=model.kinds.index(UNKNOWN),
        unigram=model.model_type == UNIGRAM,
        # `legacy: false` is transformers' mark of a model that wants no space after a control token
        prefix="never" if not model.add_dummy_prefix else "first" if config.get("legacy") is False else "always",
        tidy_spaces=model.remove_extra_whitespaces,
        charsmap=model.charsmap,
    )
    try:
        backend = pieces.backend()
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"{file}: pieces that make no tokenizer", given=error) from error
    _add(path, backend, len(model.texts))
    # Llama, Mistral and Gemma want a BOS without saying so; Unigram models (T5) have none, or do not want it
    add_bos = model.model_type == BPE and "bos_token" in model.names
    special = special_tokens(path, backend.id_to_token, model.names, add_bos)
    _template(backend, special)
    return HuggingFaceTokenizer(backend, special)


def _add(path: Path, backend: Backend, size: int) -> None:
    """Tokens that the JSON files put behind the pieces, or whose kind they change."""
    for id, text, flags in added_tokens(path, size):
        inside = backend.id_to_token(id)
        if id < size and inside != text:
            raise TokenizerError(
                f"{path}: the files contradict each other about token {id}",
                given=f"'{text}' in the JSON files, '{inside}' in the sentencepiece model",
                allowed="the same token",
                try_="the tokenizer files that belong together, from one source",
            )
        # without flags, a token behind the vocabulary is one of a chat template's: no text should become it
        special = bool(flags.get("special", id >= size))
        if id < size and not special:
            continue
        token = AddedToken(
            text,
            special=special,
            normalized=bool(flags.get("normalized", False)) and not special,
            lstrip=bool(flags.get("lstrip", False)),
            rstrip=bool(flags.get("rstrip", False)),
            single_word=bool(flags.get("single_word", False)),
        )
        backend.add_special_tokens([token]) if special else backend.add_tokens([token])


def _template(backend: Backend, special: Special) -> None:
    bos = special.names.get("bos_token")
    id = None if bos is None else backend.token_to_id(bos)
    if special.add_bos and bos is not None and id is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, id)]
        )


def _refuse_shifted(path: Path, name: str) -> None:
    if name.startswith(SHIFTED):
        raise TokenizerError(
            f"{path}: this kind of model numbers its tokens otherwise than its sentencepiece file does",
            given=f"tokenizer_class: {name}",
            allowed="a sentencepiece model whose ids are the model's own",
            try_="a folder with tokenizer.json",
        )


@dataclass
class Model:
    """What decides ids in a sentencepiece file; defaults are the protobuf's."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>"
    model_type: int = UNIGRAM
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


def parse(file: Path) -> Model:
    """Read a sentencepiece model. Raises TokenizerError for anything else, for half a file and for settings that
    change text in ways not known here."""
    parts: dict[int, list[bytes]] = {}
    for number, value in _fields(file, read(file)):
        if isinstance(value, bytes):
            parts.setdefault(number, []).append(value)
    if not all(number in parts for number in (PIECES, TRAINER, NORMALIZER)):
        given = f"{len(parts.get(PIECES, []))} pieces, then the file ends"
        raise _broken(file, given, "pieces, then how they were trained, then how text is normalised")
    model = Model()
    for part in parts[PIECES]:
        piece = dict(_fields(file, part))
        model.texts.append(_text(file, piece.get(1, b"")))
        model.scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
        model.kinds.append(piece.get(3, NORMAL))
    trainer, normalizer = dict(_fields(file, parts[TRAINER][-1])), dict(_fields(file, parts[NORMALIZER][-1]))
    model.model_type = trainer.get(3, UNIGRAM)
    for role, (number, default) in ROLES.items():
        id = _signed(trainer.get(number, default))
        if 0 <= id < len(model.texts):
            model.names[f"{role}_token"] = model.texts[id]
    model.charsmap = normalizer.get(2, b"")
    model.add_dummy_prefix = bool(normalizer.get(3, 1))
    model.remove_extra_whitespaces = bool(normalizer.get(4, 1))
    _check(file, model, trainer, normalizer, parts.get(DENORMALIZER, []))
    return model


def _check(file: Path, model: Model, trainer: Fields, normalizer: Fields, denormalizer: list[bytes]) -> None:
    def refuse(given: str, allowed: str) -> NoReturn:
        raise TokenizerError(
            f"{file}: a sentencepiece model of a kind that is not known here",
            given=given,
            allowed=allowed,
            try_="a folder with tokenizer.json",
        )

    if model.model_type not in (UNIGRAM, BPE):
        refuse({3: "model_type WORD", 4: "model_type CHAR"}.get(model.model_type, "another model_type"), "UNIGRAM, BPE")
    if trainer.get(24):
        refuse("treat_whitespace_as_suffix", "spaces before words")
    if not normalizer.get(5, 1):
        refuse("escape_whitespaces: false", "spaces written as ▁")
    if any(dict(_fields(file, part)).get(2) for part in denormalizer):
        refuse("a denormalizer", "pieces that are the text")
    if model.kinds.count(UNKNOWN) != 1 or len(set(model.texts)) != len(model.texts):
        unknown, same = model.kinds.count(UNKNOWN), len(model.texts) - len(set(model.texts))
        raise _broken(file, f"{unknown} unknown pieces, {same} pieces twice", "one unknown piece, and each piece once")
    if trainer.get(35) and model.kinds.count(BYTE) != 256:
        raise _broken(file, f"byte_fallback with {model.kinds.count(BYTE)} bytes", "256 bytes")


def _fields(file: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message: an int, or the bytes of everything else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise _broken(file, f"{len(data)} bytes", "a whole protobuf message")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}.get(wire, -1)
        if number == 0 or size < 0 or at + size > len(data):
            raise _broken(file, f"{len(data)} bytes, damaged at {at}", "a whole protobuf message")
        yield number, data[at : at + size]
        at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken(file, error, "pieces in UTF-8") from error


def _broken(file: Path, given: object, allowed: str) -> TokenizerError:
    return TokenizerError(
        f"{file}: not a whole sentencepiece model", given=given, allowed=allowed, try_="download the file again"
    )
