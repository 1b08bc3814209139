"""Fetch a file over HTTP: resumed where it stopped, and kept only when its sha256 is the promised one."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DownloadError
from lorikeet.base.files import sha256_file

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where known
TIMEOUT_SECONDS = 60
ATTEMPTS = 4  # each goes on where the one before stopped


def open_url(url: str, headers: Mapping[str, str]) -> Any:
    """The open response. Raises DownloadError with the reason."""
    request = urllib.request.Request(url, headers={"User-Agent": "lorikeet", **headers})
    # pip's certificate setting, because this reads pip's index: a proxy that pip trusts works here too
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context)
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
        refused = isinstance(error, urllib.error.HTTPError) and error.code == 404
        raise DownloadError(
            "not found" if refused else "cannot be reached",
            given=f"{url}: {error}",
            try_="check the name" if refused else "check the network, then the same command goes on where it stopped",
        ) from error


def fetch(url: str, target: Path, *, sha256: str, size: int | None, progress: Progress) -> None:
    """Download `url` to `target`, going on from `target`.part if that exists.

    A wrong sha256 deletes the part and raises DownloadError."""
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            total = _continue(url, part, size, progress)
        except (OSError, http.client.HTTPException, DownloadError):
            # an attempt that got somewhere does not count as the last one
            got = part.stat().st_size if part.exists() else 0
            if attempt == ATTEMPTS - 1 or got <= before:
                raise
            continue
        if total is None or part.stat().st_size >= total:
            break
    else:
        raise DownloadError(
            "the connection keeps breaking off",
            given=f"{part.stat().st_size:,} of {total:,} bytes of {url}",
            try_="the same command again: it goes on where it stopped",
        )
    found = sha256_file(part)
    if found != sha256.lower():
        part.unlink()
        raise DownloadError(
            "the checksum differs; what was downloaded is deleted",
            given=f"sha256 {found} of {url}",
            allowed=f"sha256 {sha256}",
            try_="the same command again; if it stays, do not trust this source",
        )
    part.replace(target)


def _continue(url: str, part: Path, size: int | None, progress: Progress) -> int | None:
    """Append what is missing; the file's whole length, where the server tells it."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    if size is not None and have == size:
        return size
    with open_url(url, {"Range": f"bytes={have}-"} if have else {}) as response:
        resumed = response.status == 206
        if not resumed:
            have = 0  # the server does not know ranges and sends everything
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else size
        with part.open("ab" if resumed else "wb") as file:
            progress(have, total)
            while block := response.read(1 << 20):
                file.write(block)
                have += len(block)
                progress(have, total)
    return total


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold `lock` for the block: several processes that start together download once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
