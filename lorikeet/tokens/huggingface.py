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
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lorikeet.base.errors import TokenizerError
from lorikeet.base.files import write_file
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.tokens._contract import After
from lorikeet.tokens._folder import Special, read, special_tokens, stated_tokens
from lorikeet.tokens._prefix import find_prefix
from lorikeet.tokens._spelling import Spelling, spelling
from lorikeet.tokens._words import Words, made_of_words

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
        flags = {token.content: token for token in known.values()}
        wanted = [name for name in (*special.names.values(), *special.others) if name not in already]
        backend.add_special_tokens([_as_special(name, flags.get(name)) for name in dict.fromkeys(wanted)])

        self._backend, self._special = backend, special
        self._files = dict(files or {})
        added = backend.get_added_tokens_decoder()
        self.control = {token.content: id for id, token in added.items() if token.special}
        self.takes_before = frozenset(token.content for token in added.values() if token.special and token.lstrip)
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
        self._prefix = find_prefix(description)
        anew = self._prefix.at == "always"
        self.divides = {one.content: id for id, one in added.items() if not one.special and (anew or one.rstrip)}
        beside = self.control | self.divides
        self.takes_behind = frozenset(one.content for one in added.values() if one.rstrip and one.content in beside)
        if self.takes_before or self.takes_behind or self.divides:  # conversations had other ids before this was said
            deciding |= {"takes": [sorted(self.takes_before), sorted(self.takes_behind), sorted(self.divides)]}
        self.fingerprint = hashlib.sha256(orjson.dumps(deciding, option=orjson.OPT_SORT_KEYS)).hexdigest()
        self._encoder = _plain_encoder(description)

    def encode(self, text: str, *, after: After = "start") -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of plain text and the span of characters behind each. Adds nothing.

        Tokens that are parts of one character (bytes of an emoji) have the same span. Characters that the tokenizer
        swallows (a combining mark that NFC joins) belong to the token before."""
        bare = self._prefix.at != "never" and (after == "text" or (after == "control" and self._prefix.at == "first"))
        encoding = (self._bare if bare else self._encoder).encode(text, add_special_tokens=False)
        return encoding.ids, _cover(encoding.offsets, len(text))

    def encode_many(self, texts: Sequence[str], *, after: After = "start") -> list[bytes]:
        """The ids of each text, those of `encode`, as int32: many times faster where words come again."""
        bare = self._prefix.at != "never" and (after == "text" or (after == "control" and self._prefix.at == "first"))
        if self._words is not None:
            return self._words.ids(texts)
        return _batch(self._bare if bare else self._encoder, texts)

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text whose control strings are control tokens, as transformers computes them: for comparisons."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def backend(self) -> Backend:
        """The package's own tokenizer, which knows control tokens in text."""
        return self._backend

    def description(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        found: dict[str, Any] = orjson.loads(self._backend.to_str())
        return found

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @cached_property
    def _words(self) -> Words | None:
        """For tokenizers whose ids are those of a text's words."""
        description = orjson.loads(self._encoder.to_str())
        found = self._prefix.at == "never" and made_of_words(description)
        return Words(lambda texts: _batch(self._encoder, texts)) if found else None

    @cached_property
    def _bare(self) -> Backend:
        """The encoder that puts no space before text."""
        return _plain_encoder(orjson.loads(self._backend.to_str()) | self._prefix.without)

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of `ids`; incomplete UTF-8 becomes U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_control)
        return text

    @cached_property
    def spelling(self) -> Spelling:
        """The bytes of each token. Raises TokenizerError where tokens have none of their own."""
        decoder = orjson.loads(self._backend.to_str())["decoder"]
        return spelling(self._backend.get_vocab(), set(self.control.values()), decoder)

    def with_tokens(self, names: Sequence[str]) -> HuggingFaceTokenizer:
        """The same with these control tokens behind all others. Raises TokenizerError for names that are tokens."""
        known = set(self._backend.get_vocab())
        wrong = [name for i, name in enumerate(names) if name in known or name in names[:i] or not name.strip()]
        if wrong:
            raise TokenizerError(
                "model.add_tokens: not a new token",
                given=repr(wrong[0]),
                allowed="names that the tokenizer does not know, each once",
                try_="leave it out" if wrong[0] in known else None,
            )
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        files = dict(self._files)
        if [backend.token_to_id(name) for name in names] != list(range(self.vocab_size, self.vocab_size + len(names))):
            raise TokenizerError(
                "model.add_tokens: this tokenizer's ids have gaps, so new tokens do not come behind all others",
                given=f"{self.vocab_size} ids",
                allowed="a tokenizer whose ids follow one another",
            )
        if files:
            files["tokenizer.json"] = backend.to_str(pretty=True).encode()
        return HuggingFaceTokenizer(backend, self._special, files)

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


def recognises(path: Path, checkpoint: Checkpoint | None) -> bool:
    """A folder with tokenizer.json."""
    return (path / "tokenizer.json").is_file()


def load(path: Path, checkpoint: Checkpoint | None = None) -> HuggingFaceTokenizer:
    """The tokenizer in the folder `path`. Raises TokenizerError for a broken file."""
    files = {name: read(path / name) for name in FILES if (path / name).is_file()}
    try:
        backend = Backend.from_str(files["tokenizer.json"].decode("utf-8"))
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(
            f"{path / 'tokenizer.json'}: broken", given=error, allowed="a tokenizer.json of the tokenizers package"
        ) from error
    _add_flags(path, backend)
    return HuggingFaceTokenizer(backend, special_tokens(path, backend.id_to_token), files)


def _add_flags(path: Path, backend: Backend) -> None:
    """What tokenizer_config.json says of tokens that the backend has: it counts, as in transformers, where the two
    files differ (whether a token takes the white space beside it, say)."""
    known = {id: _flags(token) for id, token in backend.get_added_tokens_decoder().items()}
    others: dict[bool, list[AddedToken]] = {True: [], False: []}  # special or not; added at once, for each time is long
    for id, text, said in stated_tokens(path):
        special = bool(said.get("special", False))
        token = AddedToken(
            text,
            special=special,
            normalized=bool(said.get("normalized", not special)),
            lstrip=bool(said.get("lstrip", False)),
            rstrip=bool(said.get("rstrip", False)),
            single_word=bool(said.get("single_word", False)),
        )
        if said and backend.token_to_id(text) == id and known.get(id) != _flags(token):
            others[special].append(token)
    backend.add_special_tokens(others[True])
    backend.add_tokens(others[False])


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return token.special, token.normalized, token.lstrip, token.rstrip, token.single_word


def _as_special(name: str, known: AddedToken | None) -> AddedToken:
    """A special token, with what its token took before it was one."""
    if known is None:
        return AddedToken(name, normalized=False, special=True)
    return AddedToken(
        name, normalized=False, special=True, lstrip=known.lstrip, rstrip=known.rstrip, single_word=known.single_word
    )


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
            # in no text: what such a token would take there makes no text slower to encode (_words.py)
            token.update(content=renamed[content], normalized=False, lstrip=False, rstrip=False, single_word=False)
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(token, token): id for token, id in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model.get("merges"):
        pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]]
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if left not in renamed and right not in renamed and left + right not in renamed
        ]
    # the post-processor is what adds BOS, and what trims spaces off the spans
    description = description | {"post_processor": None, "truncation": None, "padding": None}
    encoder = Backend.from_str(orjson.dumps(description).decode())
    encoder.encode_special_tokens = True
    return encoder


def _batch(encoder: Backend, texts: Sequence[str]) -> list[bytes]:
    """The ids of each text as int32."""
    found = encoder.encode_batch_fast(list(texts), add_special_tokens=False)
    return [array("i", one.ids).tobytes() for one in found]


def _cover(offsets: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Spans without gaps: characters between two tokens go to the token (or the tokens of one character) before,
    those before the first to the first."""
    first = offsets[0] if offsets else (0, 0)
    covered = [(0, end) if (start, end) == first else (start, end) for start, end in offsets]
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
