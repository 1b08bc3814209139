"""A run's folder: its lock, its identity, its checkpoints.

A checkpoint is a folder `checkpoint-N` that appears whole (written elsewhere, flushed, renamed) and says so in
`complete.json`, with the sha256 of each file. Resuming needs the trained tensors, the optimizer's tensors and the
step: learning rate, data order and dropout are pure functions of the step.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lorikeet.base.errors import CheckpointError, OutputError, RecipeError
from lorikeet.base.files import new_folder, sha256_file, write_file
from lorikeet.base.log import note
from lorikeet.train.optim import Stepper

COMPLETE = "complete.json"
_NAMES = r"(recipe\.yaml|metrics\.jsonl|samples\.jsonl|summary\.json|report\.html|adapter|checkpoint-\d+)"
_OURS, _HALF_WRITTEN = re.compile(_NAMES), re.compile(rf"\.{_NAMES}\.")
_STARTED = {".lock", "metrics.jsonl"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock dies with the process. Raises OutputError if another run holds it.

    A folder made here in which nothing was written (the block failed early) is removed again."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise OutputError(
                f"another run is writing to {folder}",
                given=f"process {file.read().strip() or 'unknown'}",
                allowed="one run in a folder",
                try_="another output_dir, or wait until it is done",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            if made and [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                for parent in made:
                    parent.rmdir()


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
    if (folder / "summary.json").is_file() and not overwrite:
        raise OutputError(
            f"the run in {folder} is finished",
            given=str(folder),
            try_="another output_dir, or --overwrite to start anew",
        )


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
) -> Path:
    """Write checkpoint-`step` after `step` finished steps, then remove the oldest beyond `keep`."""
    folder = run / f"checkpoint-{step}"
    with new_folder(folder) as temporary:
        save_adapter(temporary)
        save_file(stepper.state_dict(), temporary / "optimizer.safetensors")
        write_file(temporary / "state.json", json.dumps(state | {"step": step}, indent=2))
        sums = {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}
        write_file(temporary / COMPLETE, json.dumps(sums, indent=2))
    if keep is not None:
        for old in sorted(checkpoints(run))[:-keep]:
            shutil.rmtree(run / f"checkpoint-{old}")
    return folder


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
        sums = json.loads((folder / COMPLETE).read_text())
        return all(sha256_file(folder / name) == digest for name, digest in sums.items())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return False


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state.json, the optimizer's tensors) of a checkpoint."""
    return json.loads((folder / "state.json").read_text()), load_file(folder / "optimizer.safetensors")


def check_identity(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    """Raise RecipeError where a run would go on with something else than it began with."""
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key):
            raise RecipeError(
                f"{key} differs from what {folder.name} was trained with, so the run cannot go on",
                given=current.get(key),
                allowed=saved.get(key),
                try_="the recipe and data it began with, another output_dir, or --overwrite to start anew",
            )
