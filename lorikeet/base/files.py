"""Files that are either whole or not there: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorikeet.base.errors import OutputError


def cache_dir() -> Path:
    """Where downloads and prepared data lie: $XDG_CACHE_HOME/lorikeet, by default ~/.cache/lorikeet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorikeet"


def write_file(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes files that only their owner may read
                _sync(file)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a file, or in a folder one may not look into
        return False


def need_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise OutputError unless `folder` can be made and written to, and its disk has `needed_bytes` free."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if _exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(
            f"{folder} cannot be written to",
            given=f"{existing} is {'a folder you may not change' if existing.is_dir() else 'a file'}",
            allowed="a folder you may write to",
            try_="another folder",
        )
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        gib = 1 << 30
        raise OutputError(
            f"not enough disk space for {what}",
            given=f"{free / gib:.2f} GiB free at {existing}",
            allowed=f"at least {needed_bytes / gib:.2f} GiB",
            try_="free some space, or choose another output_dir",
        )
