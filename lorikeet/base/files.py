"""Files that are either whole or not there: written under a temporary name, flushed, then renamed.

Whole also after the power failed: a file's content, the folder that lists it and the folder that lists that one are
flushed in this order, each before the name that makes it count.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorikeet.base.errors import LorikeetError, OutputError


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
        sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.
    What killed processes left of it vanishes at the beginning.

    An existing `path` is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.making-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_left(left)
    temporary, lock = _locked_folder(path.parent, prefix)
    try:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            if inside.is_file():
                inside.chmod(0o644)  # safetensors writes files that only their owner may read
            sync(inside)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / path.name)
            temporary.replace(path)
            sync(path.parent)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and a handle of it that holds a lock for as long as this process lives and does not close it."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        handle = os.open(folder, os.O_RDONLY)
        _lock(handle, wait=True)
        if folder.exists():  # else another process took it for a dead one's before it was locked
            folder.chmod(0o755)
            return folder, handle
        os.close(handle)


def _remove_left(folder: Path) -> None:
    """Remove a folder that no process is making any more."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone meanwhile, or not ours
        return
    try:
        if _lock(handle, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether this handle is now the only one that holds the lock. False on systems and disks that have none."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no moment shows half of it under its name."""
    gone = path.with_name(f".{path.name}.old.{os.getpid()}")  # a new folder to move it to would need room
    path.replace(gone)
    shutil.rmtree(gone)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, the user's share is used up, the file may not grow
_FULL_SAID = re.compile(
    rf"os error ({'|'.join(map(str, _FULL))})\b|[Nn]o space left|Disk quota exceeded|File too large"
)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, ours or of a library that only has words for it, says that nothing more can be written."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors and pyarrow are written in other languages and pass the system's words on
    return not isinstance(error, LorikeetError) and bool(_FULL_SAID.search(str(error)))


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


def check_new(folder: Path) -> None:
    """Raise OutputError unless `folder` is not there yet, or empty."""
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise OutputError(f"{folder} exists already", given=str(folder), try_="another folder")


def check_writable(output: Path, usual: str) -> None:
    """Raise OutputError unless `output` can be a file in a folder that is there; `usual`: the name to try."""
    if output.is_dir() or not output.parent.is_dir():
        raise OutputError(
            f"{output}: cannot be written",
            given=str(output),
            allowed="a file in a folder that exists",
            try_=f"--output {usual}",
        )


def free_bytes(folder: Path) -> int:
    """Room on the disk of `folder`, or of the nearest folder above it that exists."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.resolve().parents) if _exists(parent))).free


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
            try_="free some space, or a folder on another disk",
        )
