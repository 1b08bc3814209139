"""One GGUF file on any server: `https://.../model.gguf`, with `#sha256=...` if it is known what should come.

Without a sha256 nobody says what the file should be; then it is only checked to be a whole GGUF file. Plain http is
refused: what it brings may have been changed on the way.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from lorikeet.base.errors import CheckpointError, DownloadError
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.checkpoints.sources._fetch import Progress, fetch, is_private, shown
from lorikeet.checkpoints.sources._shelf import finished, read_note, write_note

FORM = "https://.../MODEL.gguf[#sha256=...]"


def parse(name: str, home: Path) -> Url | None:
    """`https://.../MODEL.gguf[#sha256=...]`."""
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", name, re.IGNORECASE)
    if scheme is None:
        return None
    url, _, fragment = name.partition("#")
    try:
        host = urlsplit(url).hostname
    except ValueError as error:  # brackets that enclose no address
        raise DownloadError("a source that cannot be read", given=error, allowed=FORM) from error
    if not host or scheme[1].lower() not in ("http", "https"):
        raise DownloadError("a source that cannot be read", given=shown(url), allowed=FORM)
    if not is_private(url):
        raise DownloadError(
            "a model over plain http could be changed on its way",
            given=shown(url),
            allowed="https (http only from this machine)",
            try_=f"https{shown(url)[4:]}",
        )
    check = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and check is None:
        raise DownloadError(
            "what stands behind # is no checksum", given=f"#{fragment}", allowed="#sha256= and 64 hexadecimal digits"
        )
    file = PurePosixPath(unquote(urlsplit(url).path)).name
    _refuse_other_files(url, host, file)
    return Url(url, check[1].lower() if check else None, file, home)


def _refuse_other_files(url: str, host: str, file: str) -> None:
    """What cannot become a model is refused before gigabytes are fetched."""
    if "/blob/" in url and host.removeprefix("www.") in ("huggingface.co", "modelscope.cn", "github.com"):
        raise DownloadError(
            "the address of a page about a file, not of the file",
            given=shown(url),
            try_=shown(url).replace("/blob/", "/raw/" if "github" in host else "/resolve/", 1),
        )
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file):
        raise DownloadError(
            "one part of a split GGUF",
            given=file,
            allowed="a GGUF in one file",
            try_="download all parts, then llama.cpp's  llama-gguf-split --merge FIRST_PART OUTPUT",
        )
    if not file.endswith(".gguf"):
        hub = re.fullmatch(r"https?://(?:www\.)?(huggingface\.co|modelscope\.cn)/(?:models/)?([\w.-]+/[\w.-]+).*", url)
        kind = "hf" if hub and "hugging" in hub[1] else "modelscope"
        raise DownloadError(
            "a URL has to name one .gguf file: a folder cannot be listed over https",
            given=shown(url),
            allowed=FORM,
            try_=f"{kind}:{hub[2]}" if hub else "download the whole folder yourself, then name it",
        )


class Url:
    """One file at an address."""

    def __init__(self, url: str, sha256: str | None, file: str, home: Path):
        self.url, self.sha256, self.file = url, sha256, file
        self.shelf = home / "url" / f"{Path(file).stem[:80]}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"
        self.target = self.shelf / "file"

    def here(self) -> Path | None:
        """The file, if it is whole and has the sha256 that is asked for."""
        note = read_note(self.target)
        if note is None or (self.sha256 is not None and note["files"][self.file]["sha256"] != self.sha256):
            return None
        return finished(self.target)

    def fetch(self, *, allow_pickle: bool, progress: Progress) -> Path:
        """The file, which has to open as a GGUF file."""
        path = self.target / self.file
        fetch(self.url, path, sha256=self.sha256, size=None, progress=progress)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            path.unlink()
            raise DownloadError(
                "what came is no model; it is deleted",
                given=f"{shown(self.url)}: {error.what.removeprefix(f'{path}: ')}"
                + (f": {error.given}" if error.given else ""),
                allowed="a complete GGUF file",
                try_="open the address in a browser: is it the file itself?",
            ) from error
        write_note(self.target, shown(self.url), self.file, {})
        return path
