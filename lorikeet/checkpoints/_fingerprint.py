"""One sha256 for a model's weights, computed once per file.

The hash runs over names, types, shapes and bytes in the order of the names, so how a model is cut into shards does not
matter. Hashing gigabytes takes seconds, so the answer is kept under the files' paths, sizes and times of change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lorikeet.base.files import cache_dir, write_file


def hash_tensors(tensors: Iterable[tuple[str, str, Sequence[int], np.ndarray]]) -> str:
    """sha256 over (name, type, shape, contiguous uint8 bytes) in the given order."""
    digest = hashlib.sha256()
    for name, kind, shape, content in tensors:
        digest.update(f"{name}\0{kind}\0{list(shape)}\0{content.nbytes}\0".encode())
        digest.update(content.data)
    return digest.hexdigest()


def cached_fingerprint(files: Iterable[Path], tensors: Iterator[tuple[str, str, Sequence[int], np.ndarray]]) -> str:
    """`hash_tensors(tensors)`, remembered until one of `files` changes. `tensors` is not touched when remembered."""
    key = hashlib.sha256()
    for file in sorted(path.resolve() for path in files):
        state = file.stat()
        key.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    note = cache_dir() / "fingerprints" / key.hexdigest()
    if note.is_file():
        known = note.read_text(encoding="utf-8").strip()
        if len(known) == 64:
            return known
    fingerprint = hash_tensors(tensors)
    write_file(note, fingerprint + "\n")
    return fingerprint
