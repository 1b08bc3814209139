"""A data file behind a URL: fetched once into the cache, under the name it has there.

What was fetched stays what it is: a run that goes on, or is repeated, reads the same rows even if the page changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from lorikeet.base.errors import DataError
from lorikeet.base.files import cache_dir
from lorikeet.base.log import note
from lorikeet.checkpoints.sources._fetch import fetch, only_one, shown
from lorikeet.data.files import EXTENSIONS


def is_url(path: str) -> bool:
    """Whether a source is to be fetched by its URL."""
    return path.startswith(("https://", "http://"))


def fetch_data(url: str) -> Path:
    """The local copy of the data file at `url`.

    Raises DataError where the URL does not name a data file, DownloadError where it cannot be fetched whole."""
    try:
        name = PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError as error:  # brackets that enclose no address
        raise DataError("a URL that cannot be read", given=error, allowed="https://host/path") from error
    if not name.lower().removesuffix(".gz").endswith(EXTENSIONS):
        raise DataError(
            "the URL does not name a data file",
            given=url,
            allowed=f"a path that ends in {' '.join(EXTENSIONS)}, also with .gz",
            try_="download it yourself, and give it the ending that says what is in it",
        )
    folder = cache_dir() / "data" / "url" / hashlib.sha256(url.encode()).hexdigest()[:24]
    with only_one(folder / ".lock"):
        if not (folder / name).is_file():
            note(f"downloading {shown(url)}")
            fetch(url, folder / f".{name}", sha256=None, size=None, progress=lambda done, total: None)
            _refuse_page(folder / f".{name}", url)
            (folder / f".{name}").replace(folder / name)
    return folder / name


def _refuse_page(file: Path, url: str) -> None:
    """A site's page about the file, where the file was meant, is the usual mistake."""
    with file.open("rb") as opened:
        start = opened.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        file.unlink()
        raise DataError(
            "a web page came instead of a data file",
            given=shown(url),
            allowed="the file's own URL",
            try_="on GitHub the link of the button Raw; on a hub /resolve/ in place of /blob/",
        )
