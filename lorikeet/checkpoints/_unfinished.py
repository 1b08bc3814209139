"""Downloads that stopped half-way, told from models that are damaged in other ways.

Three traces are known: pointers that Git LFS leaves where it did not fetch the files, the names that download programs
give to a file in progress, and shards whose numbers have gaps.
"""

from __future__ import annotations

import re
from pathlib import Path

from lorikeet.base.errors import CheckpointError

PARTS = (".safetensors", ".gguf", ".bin", ".json", ".model", ".txt", ".tiktoken", ".jinja")
POINTER, POINTER_BYTES = b"version https://git-lfs.github.com/", 1024
IN_PROGRESS = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".opdownload", ".!qB")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin|\.gguf)")


def refuse_pointers(path: Path) -> None:
    """Raise CheckpointError where a file of the model is only a pointer, or is still being written by aria2."""
    for file in _files(path):
        if file.suffix not in PARTS:
            continue
        if file.stat().st_size <= POINTER_BYTES and (content := file.read_bytes()).startswith(POINTER):
            size = re.search(rb"^size (\d+)", content, re.MULTILINE)
            raise CheckpointError(
                f"{file}: only a pointer of Git LFS; the file itself was not downloaded",
                given=f"{len(content)} bytes" + (f" that stand for {int(size[1]):,}" if size else ""),
                allowed="the file itself",
                try_=f"git lfs pull  in {file.parent}",
            )
        control = file.with_name(file.name + ".aria2")  # aria2 makes the file as long as it will be, then fills it
        if control.exists():
            raise CheckpointError(
                f"{file}: a download that did not finish",
                given=f"{control.name} lies beside it",
                allowed="the whole file",
                try_="the same download again",
            )


def explained(error: CheckpointError, path: Path) -> CheckpointError | None:
    """`error`, about the model at `path`, with the traces of a download that did not finish; None without any."""
    traces = _in_progress(path) + _gaps(path)
    if not traces:
        return None
    shown = " ".join(traces[:4]) + (f" ... ({len(traces)} in all)" if len(traces) > 4 else "")
    return CheckpointError(
        f"{error.what}: a download that did not finish",
        given=f"{shown}   ({error.given})" if error.given else shown,
        allowed=error.allowed,
        try_="the same download again",
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file())
    return [path] if path.is_file() else []


def _in_progress(path: Path) -> list[str]:
    """Files that a download program has begun: beside `path`, in the folder, or where the hubs' clients put them."""
    if not path.is_dir():
        return [file.name for end in IN_PROGRESS if (file := path.with_name(path.name + end)).is_file()]
    begun = [file for file in _files(path) if file.name.endswith(IN_PROGRESS)]
    for place in (".cache/huggingface", "._____temp"):  # huggingface_hub, modelscope
        begun += sorted(file for file in (path / place).rglob("*") if file.is_file() and _is_begun(file, place))
    return [str(file.relative_to(path)) for file in begun]


def _is_begun(file: Path, place: str) -> bool:
    return file.suffix == ".incomplete" or (place == "._____temp" and file.suffix in PARTS)


def _gaps(path: Path) -> list[str]:
    """Shards that are missing among those that are there."""
    there = {file.name for file in _files(path)} if path.is_dir() else set()
    missing: list[str] = []
    for name, count, end in {(match[1], match[3], match[4]) for file in there if (match := SHARD.fullmatch(file))}:
        if int(count) <= 1000:
            shards = [f"{name}-{number:05d}-of-{count}{end}" for number in range(1, int(count) + 1)]
            missing += [f"no {shard}" for shard in shards if shard not in there]
    return sorted(missing)
