"""Fetch a file over HTTP: resumed where it stopped, tried again when the connection fails, kept only when it is whole.

Whole means: as long as promised, and with the promised sha256. Where nobody promises a sha256, an interrupted file is
only continued when the server says that it is still the same one (If-Range); otherwise it starts anew.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from lorikeet.base.errors import DownloadError, OutputError
from lorikeet.base.files import need_space, sha256_file

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where known
TIMEOUT_SECONDS = 60
ATTEMPTS = 4  # in a row that brought less than ENOUGH_BYTES; each goes on where the one before stopped
ENOUGH_BYTES = 1 << 20
PAUSE_SECONDS = 0.5  # after a failed attempt; doubled for each further one
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a moment later
BLOCK_BYTES = 1 << 20


def is_private(url: str) -> bool:
    """Whether what travels cannot be changed on the way: https, or a server on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1"))


def shown(url: str) -> str:
    """The URL without what may be secret: a password, and everything from `?` on."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to plain http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if is_private(req.full_url) and not is_private(newurl):
            raise DownloadError(
                "a secure address leads to an insecure one",
                given=f"{shown(req.full_url)} leads to {shown(newurl)}",
                allowed="https all the way",
                try_="another source",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str, headers: Mapping[str, str]) -> Any:
    """The open response; urllib's own errors."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        urlunsplit(parts._replace(netloc=host, fragment="")), headers={"User-Agent": "lorikeet", **headers}
    )
    if at:  # for this server alone, not for one that it redirects to
        name, _, password = user.partition(":")
        token = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    # pip's certificate setting, because this reads pip's index: a proxy that pip trusts works here too
    return _opener(os.environ.get("PIP_CERT") or None).open(request, timeout=TIMEOUT_SECONDS)


@lru_cache
def _opener(certificates: str | None) -> urllib.request.OpenerDirector:
    """Made once: reading the certificates takes 50 ms."""
    context = ssl.create_default_context(cafile=certificates)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Redirects())


def _refusal(url: str, error: Exception) -> DownloadError:
    """The error for people behind one of urllib's."""
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    if code in (404, 410):
        return DownloadError("not found", given=f"{shown(url)}: {error}", try_="check the name")
    if code in (401, 403):
        return DownloadError(
            "the server refuses to hand this out: it is gated, private, or gone",
            given=f"{shown(url)}: {error}",
            allowed="what anyone may download",
            try_="download it with the site's own tools, then name the folder or file",
        )
    return DownloadError(
        "cannot be reached",
        given=f"{shown(url)}: {error}",
        try_="check the network, then the same command goes on where it stopped",
    )


def read_url(url: str, headers: Mapping[str, str], *, missing_ok: bool = False) -> bytes | None:
    """What the server answers, for short answers. Raises DownloadError with the reason.

    None when there is no such page, if that is `missing_ok`."""
    for attempt in range(ATTEMPTS):
        try:
            with _request(url, headers) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing_ok:
                return None
            if error.code not in PASSING or attempt == ATTEMPTS - 1:
                raise _refusal(url, error) from error
        except (TimeoutError, ConnectionResetError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS - 1:
                raise _refusal(url, error) from error
        except (OSError, ValueError) as error:
            raise _refusal(url, error) from error
        time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError("every attempt returns or raises")


def fetch(url: str, target: Path, *, sha256: str | None, size: int | None, progress: Progress) -> None:
    """Download `url` to `target`, going on from `target`.part if that exists.

    A `target` that already has the promised sha256 stays. A wrong sha256 deletes what came. Raises DownloadError, and
    OutputError when it cannot be written."""
    if sha256 is not None and target.is_file() and sha256_file(target) == sha256.lower():
        progress(target.stat().st_size, target.stat().st_size)
        return
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _length(part)
        broke_off: Exception | None = None
        try:
            if _continue(url, part, size, sha256 is not None, progress):
                break
        except urllib.error.HTTPError as error:
            if error.code not in PASSING:
                raise _refusal(url, error) from error
            broke_off = error
        except (OSError, ValueError, http.client.HTTPException) as error:
            broke_off = error
        failures = failures + 1 if _length(part) - before < ENOUGH_BYTES else 0
        if failures == ATTEMPTS:
            if broke_off is not None and not _length(part):
                raise _refusal(url, broke_off) from broke_off
            raise DownloadError(
                "the connection keeps breaking off",
                given=f"{_length(part):,} {f'of {size:,} ' if size else ''}bytes of {shown(url)}"
                + (f": {broke_off}" if broke_off else ""),
                try_="the same command again: it goes on where it stopped",
            ) from broke_off
        if failures:
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
    _mark(part).unlink(missing_ok=True)
    if sha256 is not None and (found := sha256_file(part)) != sha256.lower():
        part.unlink()
        raise DownloadError(
            "the checksum differs; what was downloaded is deleted",
            given=f"sha256 {found} of {shown(url)}",
            allowed=f"sha256 {sha256}",
            try_="the same command again; if it stays, do not trust this source",
        )
    part.replace(target)


def _continue(url: str, part: Path, size: int | None, checked: bool, progress: Progress) -> bool:
    """Append what is missing; whether the file is whole now. `checked`: a sha256 will tell afterwards."""
    have = _length(part)
    if size is not None and have > size:
        part.unlink()
        have = 0
    if size is not None and have == size and have:
        return True
    same = _mark(part).read_text(encoding="utf-8") if _mark(part).is_file() else None
    headers = {"Range": f"bytes={have}-"} if have and (checked or same) else {}
    if headers and not checked and same:
        headers["If-Range"] = same
    try:
        response = _request(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if whole and int(whole[1]) == have:
            return True
        part.unlink()  # the part is of another, longer file
        return False
    with response:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
        resumed = response.status == 206 and begins is not None and int(begins[1]) == have
        if response.status == 206 and not resumed:
            part.unlink()
            return False
        have = have if resumed else 0  # 200: the server does not know ranges, or the file changed: it sends everything
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else size
        if size is not None and total != size:
            raise DownloadError(
                "the server has another file than promised",
                given=f"{total:,} bytes at {shown(url)}",
                allowed=f"{size:,} bytes",
                try_="the same command again later; if it stays, do not trust this source",
            )
        if total is not None:
            need_space(part.parent, total - have, f"downloading {shown(url)}")
        if not resumed and not checked:
            _remember(part, response.headers)
        with _writable(part, "ab" if resumed else "wb") as write:
            progress(have, total)
            while block := response.read(BLOCK_BYTES):
                write(block)
                have += len(block)
                progress(have, total)
    return total is None or have >= total


@contextmanager
def _writable(part: Path, mode: str) -> Iterator[Callable[[bytes], None]]:
    """A function that appends to `part`. Its errors are the disk's, not the connection's: no reason to try again."""

    def write(block: bytes) -> None:
        with _disk(part):
            file.write(block)
            file.flush()

    with _disk(part):
        file = part.open(mode)
    with file:
        yield write


@contextmanager
def _disk(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{part} cannot be written", given=error, try_="free some space, then the same command goes on"
        ) from error


def _mark(part: Path) -> Path:
    return part.with_name(part.name + ".same")


def _remember(part: Path, headers: Any) -> None:
    """Keep what the server calls this version of the file. A weak ETag does not promise equal bytes."""
    tag = headers.get("ETag") or ""
    known = tag if tag.startswith('"') else headers.get("Last-Modified")
    if known:
        _mark(part).write_text(known, encoding="utf-8")
    else:
        _mark(part).unlink(missing_ok=True)


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold `lock` for the block: several processes that start together download once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w", encoding="utf-8") as file:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
