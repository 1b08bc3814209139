"""The tokenizer of a Hugging Face folder (tokenizer.json), over the `tokenizers` package.

Ids are transformers' ids with two differences, both on purpose. Nothing is added: no BOS, no EOS. And a control token
is never made from plain text. `tokenizers` has a switch for that (`encode_special_tokens`), but it only stops the
search for added tokens; a Unigram or whole-word vocabulary still finds "</s>" as one of its pieces. So text is encoded
by a copy whose control tokens carry names that no text can contain.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.base.files import write_file

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# what a tokenizer is made of; kept as it came, so that saving gives it back
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Special:
    """What a model says about its special tokens, besides the vocabulary."""

    names: dict[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>"
    others: tuple[str, ...] = ()  # further control tokens
    add_bos: bool | None = None  # None: what the backend's post-processor does decides
    end_ids: tuple[int, ...] = ()  # ids that end a reply besides eos_token
    chat_template: str | None = None


class HuggingFaceTokenizer:
    """Implements tokens._contract.Tokenizer over a `tokenizers` backend.

    `names` are the model's own special tokens by role, added to text or not ("bos_token" -> "<s>"): what a jinja chat
    template reads. `eos_ids` are all ids that end a reply.
    """

    def __init__(self, backend: Backend, special: Special, files: Mapping[str, bytes] | None = None):
        backend.no_truncation()
        backend.no_padding()
        known = backend.get_added_tokens_decoder()
        already = {token.content for token in known.values() if token.special}
        wanted = [name for name in (*special.names.values(), *special.others) if name not in already]
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in dict.fromkeys(wanted)])

        self._backend = backend
        self._files = dict(files or {})
        added = backend.get_added_tokens_decoder()
        self.control = {token.content: id for id, token in added.items() if token.special}
        self.names = dict(special.names)
        self.vocab_size = max(backend.get_vocab().values(), default=-1) + 1
        self.chat_template = special.chat_template
        bos, self.eos_token = self.names.get("bos_token"), self.names.get("eos_token")
        self.add_bos = _adds(backend, bos) if special.add_bos is None else special.add_bos
        self.bos_token = bos if self.add_bos else None
        eos_id = () if self.eos_token is None else (self.control[self.eos_token],)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*eos_id, *special.end_ids)))
        pad = self.names.get("pad_token")
        self.pad_id = self.control[pad] if pad is not None else self.eos_ids[0] if self.eos_ids else 0

        description = orjson.loads(backend.to_str())
        deciding = {
            key: description[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
        }
        deciding |= {"names": self.names, "add_bos": self.add_bos, "eos_ids": self.eos_ids}
        self.fingerprint = hashlib.sha256(orjson.dumps(deciding, option=orjson.OPT_SORT_KEYS)).hexdigest()
        self._encoder = _plain_encoder(description)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of plain text and the span of characters behind each. Adds nothing.

        Tokens that are parts of one character (bytes of an emoji) have the same span. Characters that the tokenizer
        swallows (a combining mark that NFC joins) belong to the token before."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        return encoding.ids, _cover(encoding.offsets, len(text))

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of `ids`; incomplete UTF-8 becomes U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_control)
        return text

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into the existing `folder`: the original ones where it came from a folder, else
        tokenizer.json, tokenizer_config.json and special_tokens_map.json, which transformers reads to the same ids."""
        for name, content in (self._files or self._made_files()).items():
            write_file(folder / name, content)

    def _made_files(self) -> dict[str, bytes]:
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.add_bos,
            **self.names,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        contents = {"tokenizer_config.json": config, "special_tokens_map.json": dict(self.names)}
        made = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in contents.items()}
        made["tokenizer.json"] = self._backend.to_str(pretty=True)
        return {name: text.encode() for name, text in made.items()}


def load(folder: Path) -> HuggingFaceTokenizer:
    """The tokenizer in `folder`. Raises TokenizerError for a missing or broken file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{folder}: no tokenizer.json",
            given=" ".join(sorted(entry.name for entry in folder.iterdir())[:12])
            if folder.is_dir()
            else "no such folder",
            allowed="a folder with tokenizer.json",
            try_=f"copy the base model's tokenizer files into {folder}",
        )
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    try:
        backend = Backend.from_str(files["tokenizer.json"].decode("utf-8"))
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(
            f"{file}: broken", given=error, allowed="a tokenizer.json of the tokenizers package"
        ) from error
    config = _json(folder / "tokenizer_config.json")
    names = _names(_json(folder / "special_tokens_map.json")) | _names(config)
    generation, model = _json(folder / "generation_config.json"), _json(folder / "config.json")
    end_ids = _ids(generation.get("eos_token_id", model.get("eos_token_id")))
    for role in ("bos_token", "eos_token", "pad_token"):
        stated = _ids(generation.get(f"{role}_id")) or _ids(model.get(f"{role}_id"))
        token = backend.id_to_token(stated[0]) if stated else None
        if role not in names and token is not None:
            names[role] = token
    add_bos = config.get("add_bos_token")
    special = Special(
        names=names,
        others=tuple(_others(config)),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        end_ids=end_ids,
        chat_template=_chat_template(folder, config),
    )
    return HuggingFaceTokenizer(backend, special, files)


def _plain_encoder(description: dict[str, Any]) -> Backend:
    """A backend that cannot produce control tokens: they have unguessable names, under the same ids.

    Merges that would build one are left out. A single character stays what it is even where a model uses it as its
    padding token, say: without it that character could not be written at all."""
    secret = secrets.token_hex(16)
    model = description["model"]
    renamed: dict[str, str] = {}
    for token in description["added_tokens"]:
        content = token["content"]
        is_byte = model.get("byte_fallback") and len(content) == 6 and content.startswith("<0x")
        if token["special"] and len(content) > 1 and not is_byte:
            renamed[content] = f"\U0010fffe{secret}{token['id']}"
            token.update(content=renamed[content], normalized=False)
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(token, token): id for token, id in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model.get("merges"):
        pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if renamed.keys().isdisjoint((*pair, "".join(pair)))]
    # the post-processor is what adds BOS, and what trims spaces off the spans
    description = description | {"post_processor": None, "truncation": None, "padding": None}
    encoder = Backend.from_str(orjson.dumps(description).decode())
    encoder.encode_special_tokens = True
    return encoder


def _cover(offsets: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Spans without gaps: characters between two tokens go to the token (or the tokens of one character) before."""
    covered = list(offsets)
    reach = 0
    for i in range(len(covered) + 1):
        start = covered[i][0] if i < len(covered) else length
        if i > 0 and start > reach:
            j = i - 1
            while j >= 0 and covered[j][1] == reach:
                covered[j] = (covered[j][0], start)
                j -= 1
        if i < len(covered):
            reach = max(reach, covered[i][1])
    return covered


def _adds(backend: Backend, token: str | None) -> bool:
    """Does the backend put `token` before a text?"""
    return token is not None and backend.encode("a", add_special_tokens=True).tokens[:1] == [token]


def _json(file: Path) -> dict[str, Any]:
    """The object in `file`, {} when there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file}: not JSON", given=error, try_="download the file again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file}: not a JSON object", given=type(content).__name__)
    return content


def _content(token: Any) -> str | None:
    """A token is written as a string, or as an object with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _names(config: dict[str, Any]) -> dict[str, str]:
    found = {role: _content(config.get(role)) for role in NAMED}
    return {role: token for role, token in found.items() if token is not None}


def _others(config: dict[str, Any]) -> list[str]:
    listed = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    tokens = [token for some in listed for token in (some.values() if isinstance(some, dict) else some or ())]
    decoder = config.get("added_tokens_decoder") or {}
    tokens += [decoder[id] for id in sorted(decoder, key=int) if decoder[id].get("special")]
    return [text for text in map(_content, tokens) if text is not None]


def _ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return tuple(id for id in value if isinstance(id, int)) if isinstance(value, list) else ()


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else None
