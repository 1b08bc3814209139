"""What every tokenizer does: plain text to ids with character offsets, and back.

Control strings are never recognised in plain text: `encode("<|im_end|>")` gives the ids of those characters, never
the control token. Control tokens come only from a template, by name, through `control`.

A control token may take the white space beside it (Phi-3's behind it, Phi-4's on both sides): then no ids come of that,
whether a template wrote it or a message. data/encode.py leaves it out, for whoever encodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from lorikeet.tokens._spelling import Spelling

After = Literal["start", "control", "text"]

# what is white space to the tokenizers package: Unicode's property, without the four separators that Python adds
WHITE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


class Tokenizer(Protocol):
    """Ids are ints in [0, vocab_size)."""

    vocab_size: int
    control: dict[str, int]  # control (special) token string -> id
    takes_before: frozenset[str]  # control tokens that take the white space before them (`lstrip`)
    takes_behind: frozenset[str]  # and behind them (`rstrip`); those of `divides` too
    divides: dict[str, int]  # tokens of plain text -> id, where what follows one is encoded as behind a control token
    bos_token: str | None  # None: the model has none, or does not want one added
    eos_token: str | None
    eos_ids: tuple[int, ...]  # all tokens that end a reply, as the model's own files say
    pad_id: int  # eos where the model names none
    chat_template: str | None  # jinja source, from the model
    fingerprint: str  # sha256 of everything that decides ids

    def encode(self, text: str, *, after: After = "start") -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of plain text and, for each, its (start, end) character span in `text`. Adds nothing.

        `after` is what the text follows. A tokenizer that puts a space before text (sentencepiece's) does so at the
        start, mostly after a control token too, and never inside a text, where a reply follows its prompt, say."""
        ...

    def encode_many(self, texts: Sequence[str], *, after: After = "start") -> list[bytes]:
        """The ids of each text, exactly those of `encode`, as int32 in this machine's order."""
        ...

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of `ids`; incomplete UTF-8 at the end becomes U+FFFD."""
        ...

    @property
    def spelling(self) -> Spelling:
        """The bytes of each token. Raises TokenizerError where tokens have none of their own."""
        ...

    def with_tokens(self, names: Sequence[str]) -> Tokenizer:
        """The same with these control tokens behind all others. Raises TokenizerError for names that are tokens."""
        ...

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template) as Hugging Face folders have them."""
        ...
