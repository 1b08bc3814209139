"""The package index that pip uses, read as JSON (PEP 691): which wheel a package's name stands for."""

from __future__ import annotations

import configparser
import json
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

from lorikeet.base.errors import DownloadError
from lorikeet.checkpoints.sources._fetch import read_url, shown

JSON = "application/vnd.pypi.simple.v1+json"


class Wheel(NamedTuple):
    """One downloadable wheel as the index describes it."""

    filename: str
    version: str
    url: str
    sha256: str
    size: int | None


def normalised(package: str) -> str:
    """The name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def index_url() -> str:
    """pip's index: PIP_INDEX_URL, pip's configuration files, or pypi.org."""
    if os.environ.get("PIP_INDEX_URL"):
        return os.environ["PIP_INDEX_URL"]
    home = Path.home()
    named = os.environ.get("PIP_CONFIG_FILE")
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        config_home / "pip/pip.conf",
        *([Path(named)] if named else []),
    ]
    parser = configparser.RawConfigParser()
    try:
        parser.read(files)
    except configparser.Error as error:
        raise DownloadError("pip's configuration cannot be read", given=error, try_="set PIP_INDEX_URL") from error
    return parser.get("global", "index-url", fallback="https://pypi.org/simple")


def find_wheel(package: str, version: str | None) -> Wheel:
    """The wheel of `version`, or of the newest release that is neither withdrawn nor a preview."""
    found = known_wheel(package, version)
    if found is None:
        raise DownloadError("not found", given=shown(_page(package)), try_="check the name")
    return found


def known_wheel(package: str, version: str | None) -> Wheel | None:
    """`find_wheel`, but None for a package that the index does not know."""
    page = _page(package)
    content = read_url(page, {"Accept": JSON}, missing_ok=True)
    if content is None:
        return None
    try:
        listed = json.loads(content)["files"]
        wheels = [_wheel(page, entry) for entry in listed if re.fullmatch(r"[^/]+-[^/]+\.whl", entry["filename"])]
        yanked = {entry["filename"] for entry in listed if entry.get("yanked")}
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            "the package index does not answer in JSON",
            given=shown(page),
            allowed=f"an index that speaks {JSON}",
            try_="PIP_INDEX_URL=https://pypi.org/simple",
        ) from error
    if version is None:
        fit = [wheel for wheel in wheels if wheel.filename not in yanked and _final(wheel.version)]
    else:
        fit = [wheel for wheel in wheels if wheel.version == version]
    if not fit:
        raise DownloadError(
            f"no wheel of {package}" + (f" {version}" if version else ""),
            given=shown(page),
            allowed=" ".join(sorted({wheel.version for wheel in wheels}, key=version_key))
            or "none: the package has no wheels",
        )
    best = max(fit, key=lambda wheel: version_key(wheel.version))
    if not best.sha256:
        raise DownloadError("the package index gives no sha256, so the file could not be checked", given=shown(page))
    return best


def _page(package: str) -> str:
    return f"{index_url().rstrip('/')}/{normalised(package)}/"


def _wheel(page: str, entry: dict) -> Wheel:
    name = entry["filename"]
    return Wheel(
        name, name.split("-")[1], urljoin(page, entry["url"]), entry["hashes"].get("sha256", ""), entry.get("size")
    )


def _final(version: str) -> bool:
    return re.fullmatch(r"(\d+!)?\d+(\.\d+)*(\.post\d+)?", version) is not None


def version_key(version: str) -> tuple[list[int], bool]:
    """Orders versions by their numbers; a preview comes before its release."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return ([int(part) for part in numbers[0].split(".")] if numbers else [], _final(version))
