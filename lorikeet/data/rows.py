"""One source's rows to a store of prepared examples: read, convert, encode, cut, count.

Streaming, so a source larger than memory is fine; a fault leaves nothing half written. The store's name is a hash of
everything that decides its content, so the next run with the same source finds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lorikeet.base.errors import DataError
from lorikeet.base.files import cache_dir, new_folder
from lorikeet.base.kinds import own_code
from lorikeet.base.log import progress
from lorikeet.base.nouns import Conversation
from lorikeet.data.dataset import Examples, Writer
from lorikeet.data.files import Advance, source_sha256
from lorikeet.data.formats._contract import Format
from lorikeet.data.many import Coder, Done, examples_of
from lorikeet.data.system_prompt import LOOKED_AT, shared
from lorikeet.data.truncate import Encoder
from lorikeet.data.workers import default_workers

if TYPE_CHECKING:
    from lorikeet.data.pipeline import DataOptions

# raised when the same inputs begin to give other examples, or stores another file: those made before are made again
_VERSION = 7
_FIRST_ROWS = 8  # that a format is detected from
_BIG_BYTES = 8 << 20  # files from this size on show a progress bar


@dataclass(slots=True)
class Counts:
    """What became of the rows. A conversation that a template lays out once per reply gives several examples."""

    rows: int = 0
    kept: int = 0  # rows with at least one example
    examples: int = 0
    cut: int = 0  # examples shortened to max_length
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> how many
    tokens: int = 0
    trained_tokens: int = 0

    def drop(self, reason: str) -> None:
        """Count one more row or reply that is left out for `reason`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def add(self, other: Counts) -> None:
        """Add another source's counts to these."""
        for name in ("rows", "kept", "examples", "cut", "tokens", "trained_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """For counts.json and the run's summary."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        left_out = "".join(f", {count} left out ({reason})" for reason, count in self.dropped.items())
        cut = f", {self.cut} cut to max_length" if self.cut else ""
        return (
            f"{self.rows} rows, {self.examples} examples{cut}{left_out}; "
            f"{self.tokens} tokens, {self.trained_tokens} of them trained"
        )


def conversations(
    files: Sequence[str], format: Format, *, reply: bool = True, bad_rows: str = "error"
) -> Iterator[Conversation]:
    """The conversations of files of any kind. `reply=False`: rows may lack the answer (predict)."""
    for conversation, error in _read(files, format, reply):
        if error is not None and bad_rows == "error":
            raise error
        if conversation is not None:
            yield conversation


def _read(files: Sequence[str], format: Format, reply: bool) -> Iterator[tuple[Conversation | None, DataError | None]]:
    """Each row's conversation, or the error of a row that cannot be read. Errors of whole files are raised."""
    for file in files:
        rows = format.rows(file)
        first = list(islice(rows, _FIRST_ROWS))
        settled = format.settle([row for row, _ in first], file)
        for row, origin in chain(first, rows):
            try:
                yield settled.read(row, origin, reply=reply), None
            except DataError as error:
                yield None, error


def store(files: Sequence[str], format: Format, options: DataOptions, encoder: Encoder, limit: int | None) -> Examples:
    """The examples of a source's files, from the cache or made now; `limit` is of rows. Raises DataError and
    TemplateError for rows that cannot be used, unless bad_rows=skip."""
    folder = cache_dir() / "examples" / _key(files, format, options, encoder, limit)
    if not (options.cache and (folder / "counts.json").is_file()):
        with new_folder(folder) as temporary:
            _write(temporary, files, format, options, encoder, limit)
    return Examples(folder)


def _key(files: Sequence[str], format: Format, options: DataOptions, encoder: Encoder, limit: int | None) -> str:
    """A hash over everything that decides the examples, and the file names, because origins name them."""
    parts = {
        "version": _VERSION,
        "files": [[file, source_sha256(file)] for file in files],
        "format": [format.model_dump(mode="json"), *own_code(format)],
        "template": encoder.template.fingerprint,
        "tokenizer": encoder.tokenizer.fingerprint,
        "options": options.model_dump(
            mode="json", include={"loss", "role_weights", "max_length", "truncation", "bad_rows"}
        ),
        "limit": limit,
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _write(
    folder: Path, files: Sequence[str], format: Format, options: DataOptions, encoder: Encoder, limit: int | None
) -> None:
    counts, systems = Counts(), set[str | None]()
    writer = Writer(folder)
    coder = Coder(encoder)
    with _bytes_bar(files) as advance:
        for file in files:
            left = None if limit is None else limit - counts.rows
            if left == 0:
                break
            workers = options.workers or (default_workers() if Path(file).stat().st_size >= _BIG_BYTES else 1)
            with closing(examples_of(file, format, coder, advance, left, workers)) as found:
                for done in found:
                    if done.error is not None and (done.fatal or options.bad_rows == "error"):
                        raise done.error
                    _add(done, writer, counts)
                    if done.examples and done.origin.row < LOOKED_AT:
                        systems.add(done.system)
    if counts.examples == 0:
        raise DataError(
            f"{' '.join(files)[:120]}: no row is left to learn from",
            given=str(counts),
            allowed="at least one conversation with a trained token",
            try_="a larger data.max_length, or data.truncation=keep_reply",
        )
    writer.close(counts.as_dict(), shared(systems))


@contextmanager
def _bytes_bar(files: Sequence[str]) -> Iterator[Advance | None]:
    """A progress bar over the bytes of big files; nothing for small ones."""
    total = sum(Path(file).stat().st_size for file in files)
    if total < _BIG_BYTES:
        yield None
        return
    with progress() as bar:
        task = bar.add_task("preparing data (bytes)", total=total)
        yield lambda count: bar.advance(task, count)


def _add(done: Done, writer: Writer, counts: Counts) -> None:
    """Append a row's examples, and count it."""
    counts.rows += 1
    if done.error is not None:
        counts.drop("cannot be used")
    for reason in done.dropped:
        counts.drop(reason)
    for tokens, weights, cut in done.examples:
        trained = writer.add(tokens, weights, done.origin, done.conversation_hash)
        counts.examples += 1
        counts.cut += cut
        counts.tokens += len(tokens) // 4
        counts.trained_tokens += trained
    counts.kept += bool(done.examples)
