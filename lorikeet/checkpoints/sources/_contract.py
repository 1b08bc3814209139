"""Where models come from. A kind is a file of this folder, known by how its names begin: `pypi:`, `hf:`, `https://`.

Its module has `FORM`, how the name is written, and `parse(name, home) -> Source | None`: None when the name is not of
this kind, DownloadError when it is and cannot be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lorikeet.checkpoints.sources._fetch import Progress


class Source(Protocol):
    """One model somewhere else, and its place in the cache."""

    shelf: Path  # the folder in the cache where this model, its parts and its lock lie

    def here(self) -> Path | None:
        """What opens as the model, if a finished download lies there unchanged. Needs no network."""
        ...

    def fetch(self, *, allow_pickle: bool, progress: Progress) -> Path:
        """Download, check, and return what opens as the model. Raises DownloadError, OutputError, CheckpointError."""
        ...
