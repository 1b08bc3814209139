"""A run's folder: its lock, its identity, its checkpoints.

A checkpoint is a folder `checkpoint-N` that appears whole (written elsewhere, read back, flushed, renamed) and says so
in `complete.json`, with the sha256 of each file. Resuming needs the trained tensors, the optimizer's tensors and the
step: learning rate, data order and dropout are pure functions of the step.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load_file
from torch import Tensor

from lorikeet.base.errors import CheckpointError, OutputError, RecipeError
from lorikeet.base.files import new_folder, remove_folder, sha256_file
from lorikeet.base.log import note
from lorikeet.base.tensor_file import save_tensors
from lorikeet.train.optim import Stepper

COMPLETE, STATE, OPTIMIZER = "complete.json", "state.json", "optimizer.safetensors"
_NAMES = (
    r"(recipe\.yaml|metrics\.jsonl|samples\.jsonl|summary\.json|status\.json|report\.html|tensorboard|wandb|adapter"
    r"|checkpoint-\d+)"
)
_OURS, _HALF_WRITTEN = re.compile(_NAMES), re.compile(rf"\.{_NAMES}\.")
_BASE = {"base_fingerprint", "quant"}  # what an adapter is bound to
LOOKING_SECONDS = 0.5  # who looks whether a run is there (status.holder) has the lock for a moment
_STARTED = {".lock", "metrics.jsonl", "train.log"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock dies with the process, however that ends. Raises OutputError if another run holds it.

    A folder made here in which nothing was written (the block failed early) is removed again."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with _taken(folder) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            _held.discard(file.fileno())
            if made and [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                with suppress(OSError):  # another run has just begun in there
                    for parent in made:
                        parent.rmdir()


_held: set[int] = set()  # open lock files: a forked child would hold the lock beyond our own end


def _taken(folder: Path) -> IO[str]:
    """The folder's lock file, locked; the folder is made where there is none."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
        try:
            _lock(file, folder)
        except BaseException:
            file.close()
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / ".lock").stat()):
                return file
        _held.discard(file.fileno())  # a run that failed has just removed its new folder: this file has no name
        file.close()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        _lock_within(file, LOOKING_SECONDS)
    except BlockingIOError as error:
        file.seek(0)
        raise OutputError(
            f"another run is writing to {folder}",
            given=f"process {file.read().strip() or 'unknown'}",
            allowed="one run in a folder",
            try_="another output_dir, or wait until it is done",
        ) from error
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be locked, so nothing would keep a second run out of it",
            given=error.strerror,
            allowed="a file system with locks",
            try_="an output_dir on a local disk",
        ) from error
    _held.add(file.fileno())


def _lock_within(file: IO[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _let_go_in_child() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise OutputError for an output_dir that is a file, holds other things, or is a finished run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError("output_dir: is a file", given=str(folder), try_="another output_dir")
    names = sorted(path.name for path in folder.iterdir())
    # a recipe of one's own is called recipe.yaml too, so that alone makes no run
    if names and not _STARTED.intersection(names):
        raise OutputError(
            "output_dir: holds files that are not a run's", given=" ".join(names[:5]), try_="another output_dir"
        )
    if is_finished(folder) and not overwrite:
        raise OutputError(
            f"the run in {folder} is finished",
            given=str(folder),
            try_="another output_dir, or --overwrite to start anew",
        )


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, and was not ended by a limit."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not (isinstance(found, dict) and "ended_by" in found)


def empty_folder(folder: Path) -> None:
    """Remove a run's files, all but its lock. What somebody else put there stays."""
    _remove(path for path in folder.iterdir() if _OURS.fullmatch(path.name))
    clear_leftovers(folder)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written under a temporary name; the caller holds the lock."""
    _remove(path for path in folder.iterdir() if _HALF_WRITTEN.match(path.name))


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_checkpoint(
    run: Path,
    step: int,
    save_adapter: Callable[[Path], None],
    stepper: Stepper,
    state: dict[str, Any],
    keep: int | None,
    *,
    spare: int | None = None,
) -> Path:
    """Write checkpoint-`step` after `step` finished steps, then remove the oldest beyond `keep`, but not `spare`, that
    of the best evaluation.

    What was written is read back and compared before anything older goes. Raises CheckpointError where it differs."""
    folder = run / f"checkpoint-{step}"
    with new_folder(folder) as temporary:
        save_adapter(temporary)
        save_tensors(stepper.state_dict(), temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(state | {"step": step}, indent=2), encoding="utf-8")
        (temporary / COMPLETE).write_text(json.dumps(_checksums(temporary), indent=2), encoding="utf-8")
    if keep is not None:
        earlier = [other for other in checkpoints(run) if other < step and other != spare]
        # what stands there of later steps is damaged: the run went on from before it
        later = [other for other in checkpoints(run) if other > step]
        for old in [*later, *earlier[: 1 - keep or None]]:
            remove_folder(run / f"checkpoint-{old}")
    return folder


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(2) as pool:  # hashing lets other threads run
        return {file.name: digest for file, digest in zip(files, pool.map(sha256_file, files))}


def checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, whole or not, ascending."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run.glob("checkpoint-*"))
    return sorted(int(match[1]) for match in found if match)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; damaged ones are skipped with a line."""
    for step in reversed(checkpoints(run)):
        folder = run / f"checkpoint-{step}"
        if intact(folder):
            return folder
        note(f"{folder} is damaged or incomplete: skipped")
    return None


def trained_adapter(run: Path) -> Path:
    """A run's adapter: the finished one, else that of its last checkpoint. Raises CheckpointError for neither."""
    if (run / "adapter").is_dir():
        return run / "adapter"
    last = latest_checkpoint(run)
    if last is None:
        remedy = f"lorikeet train {run}/recipe.yaml"
        raise CheckpointError(f"the run in {run} has no adapter yet", given=str(run), try_=remedy)
    note(f"the run is not finished: using {last.name}")
    return last


def intact(folder: Path) -> bool:
    """Whether every file of a checkpoint has the checksum it was written with."""
    try:
        sums = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return {STATE, OPTIMIZER} <= sums.keys() and all(
            sha256_file(folder / name) == digest for name, digest in sums.items()
        )
    except (OSError, ValueError, AttributeError):  # ValueError: bad JSON, bad UTF-8, a name with a null byte
        return False


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state.json, the optimizer's tensors) of a checkpoint."""
    return json.loads((folder / STATE).read_text(encoding="utf-8")), load_file(folder / OPTIMIZER)


def differing(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{what differs, by its dotted name: (now, then)}; a mapping within is compared key by key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(saved.keys() | current.keys()):
        now, then = current.get(key), saved.get(key)
        if isinstance(now, dict) and isinstance(then, dict):
            found |= {f"{key}.{below}": both for below, both in differing(then, now).items()}
        elif now != then:
            found[key] = now, then
    return found


def refuse_differing(found: Mapping[str, tuple[Any, Any]], folder: Path) -> None:
    """Raise RecipeError, with both sides, where a run would go on with something else than it began with."""
    if not found:
        return
    names = list(found)
    base = any(name.partition(".")[0] in _BASE for name in names)
    anew = "" if base else f"lorikeet train --from {folder.parent} for a new run that starts from what it has learned; "
    named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    now, then = ("; ".join(_said(name, both[i], len(names) > 1) for name, both in found.items()) for i in (0, 1))
    raise RecipeError(
        f"{named} differ{'s' * (len(names) == 1)} from what {folder.name} was trained with, so the run cannot go on",
        given=now,
        allowed=then,
        try_=f"the recipe and data it began with; {anew}or --force-resume, which is written down",
    )


def _said(name: str, value: Any, several: bool) -> str:
    text = "none" if value is None else str(value)
    text = f"{text[:60]}..." if len(text) > 64 else text
    return f"{name.rpartition('.')[2]}={text}" if several else text
