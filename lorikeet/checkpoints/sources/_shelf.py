"""A finished download has a note beside it (lorikeet-source.json): where it came from, and each file's sha256.

A second run reads the note, sees that nothing changed, and needs no network. What has no note is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DownloadError
from lorikeet.base.files import sha256_file, write_file
from lorikeet.checkpoints.sources._fetch import Progress

NOTE = "lorikeet-source.json"
# what is taken of a published folder: weights, settings, tokenizers; never code
TAKEN = ("*.safetensors", "*.json", "*.jinja", "*.tiktoken", "tokenizer.model", "merges.txt", "vocab.txt")
PICKLES = ("pytorch_model*.bin",)
UNREAD = "consolidated*.safetensors"  # Mistral's second copy of the weights, under names of its own


def wanted(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of a repository's files that the patterns name, in its top folder: other folders hold other models."""
    top = (name for name in names if "/" not in name and not fnmatch(name, UNREAD))
    return [name for name in top if any(fnmatch(name, pattern) for pattern in patterns)]


def write_note(target: Path, source: str, model: str, more: dict[str, str]) -> None:
    """Say that `target` is finished. `model` is the file in it that opens as the model, '' for the folder itself."""
    files = {}
    for file in sorted(entry for entry in target.iterdir() if entry.is_file() and entry.name != NOTE):
        state = file.stat()
        files[file.name] = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256_file(file)}
    note = {"source": source, "model": model, **more, "files": files}
    write_file(target / NOTE, json.dumps(note, indent=2) + "\n")


def check_sum(file: Path, sha256: str) -> None:
    """Raise DownloadError, with the file deleted, where its sha256 is another than its source says."""
    if sha256_file(file) != sha256:
        file.unlink()
        raise DownloadError(
            "the checksum differs; the file is deleted",
            given=str(file),
            allowed=f"sha256 {sha256}",
            try_="the same command again",
        )


def read_note(target: Path) -> dict[str, Any] | None:
    """The note of a download that lies in `target` unchanged. A file is hashed only if its time changed."""
    try:
        note: dict[str, Any] = json.loads((target / NOTE).read_text(encoding="utf-8"))
        for name, known in note["files"].items():
            state = (target / name).stat()
            if state.st_size != known["size"]:
                return None
            if state.st_mtime_ns != known["mtime_ns"] and sha256_file(target / name) != known["sha256"]:
                return None
        return note if isinstance(note["model"], str) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def finished(target: Path) -> Path | None:
    """What opens as the model in `target`, if a finished download lies there unchanged."""
    note = read_note(target)
    return None if note is None else target / note["model"]


def one_after_another(progress: Progress, sizes: list[int | None]) -> Iterator[Progress]:
    """For each of several files, a progress that counts on from the ones before it."""
    total = sum(size for size in sizes if size is not None) if None not in sizes else None
    before = latest = 0

    def show(done: int, length: int | None) -> None:
        nonlocal latest
        latest = done
        progress(before + done, total)

    for size in sizes:
        latest = 0
        yield show
        before += size if size is not None else latest
