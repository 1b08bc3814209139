"""Which files of a folder or of a hub's data set belong to which split, by their names.

The names are the ones people give: `train.json`, `dev.jsonl`, `test/part-1.csv`, `data/train-00000-of-00002.parquet`,
`notes_valid.csv`. A folder is looked at with the folders directly in it, no deeper: a recipe that says `.` must not
read a whole home directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lorikeet.base.errors import DataError, nearest
from lorikeet.base.log import note
from lorikeet.data.files import EXTENSIONS

_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_CANONICAL = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}
_SHARD = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}(-\w+)?")
# what stands beside data and is none: what other tools write about a data set, and pages for people
_NO_DATA = re.compile(r"dataset_infos?|dataset_dict|state|lorikeet-source|readme|license|notice|changelog|requirements")
HELD_OUT = ("validation", "test")  # where validation looks, in this order

BySplit = dict[str | None, list[str]]  # names in order; those that name no split stand under None


def canonical(split: str) -> str:
    """`dev` -> `validation`; a name of someone's own stays as it is."""
    return _CANONICAL.get(split.lower(), split)


def split_of(name: str) -> str | None:
    """The split that a relative path names: by a folder, by a shard's name, else by the file name's first or last
    word."""
    path = PurePosixPath(name)
    stem = _stem(path)
    if shard := _SHARD.fullmatch(stem):
        return canonical(shard["split"])
    for folder in path.parts[:-1]:
        if folder.lower() in _CANONICAL:
            return canonical(folder)
    words = [word for word in re.split(r"[^a-z]+", stem.lower()) if word]
    return next((_CANONICAL[word] for word in (words[:1] + words[-1:]) if word in _CANONICAL), None)


def by_split(names: Iterable[str]) -> BySplit:
    """The data files among `names`, in order, under the split each one names."""
    found: BySplit = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in path.parts)
        data = "".join(path.suffixes[-2:]).lower().removesuffix(".gz").endswith(EXTENSIONS)
        if data and not hidden and not _NO_DATA.fullmatch(_stem(path).lower()):
            found.setdefault(split_of(name), []).append(name)
    return found


def look(folder: Path) -> BySplit:
    """The data files in `folder` and in the folders directly in it, as paths relative to it.

    Files of inner folders count where the data are split, or where nothing lies beside the folders: a run's folder
    beside the data is none of it."""
    top, inner = ([path for path in folder.glob(pattern) if path.is_file()] for pattern in ("*", "*/*"))
    here, below = ([path.relative_to(folder).as_posix() for path in paths] for paths in (top, inner))
    everything = by_split([*here, *(name for name in below if split_of(name) is not None)])
    return everything or by_split(below)


def files_of(folder: Path, split: str | None) -> list[str]:
    """The files of one split of a folder (by default `train`), or all its files where their names tell no splits.

    What was chosen is said. Raises DataError for a folder without data, or without that split."""
    found = look(folder)
    splits = [name for name in found if name is not None]
    loose = found.get(None, [])
    wanted = canonical(split or "train")
    if wanted in found:
        chosen, told = found[wanted], f"split {wanted}"
    elif split is None and loose:
        chosen, told = loose, "all data files" if not splits else f"the files that are not of {' or '.join(splits)}"
    elif not found:
        raise _no_data(folder)
    else:
        raise DataError(
            f"{folder}: has no files of the split '{split or 'train'}'",
            given=" ".join(name for names in found.values() for name in names),
            allowed=f"split: {' '.join(splits)}" if splits else "files named like train.jsonl, or no `split`",
            try_=f"split: {nearest(wanted, splits) or splits[0]}" if splits else "leave `split` out",
        )
    left = "" if len(chosen) + len(loose) == len(chosen) or chosen is loose else f"; left out: {' '.join(loose)}"
    note(f"{folder}: {told}: {' '.join(chosen)}{left}"[:500])
    return [str(folder / name) for name in chosen]


def held_out_split(folder: Path) -> str | None:
    """The split of a folder that can validate: validation, else test; None where there is neither."""
    found = look(folder)
    return next((split for split in HELD_OUT if split in found), None)


def _stem(path: PurePosixPath) -> str:
    """The name without the endings that say what kind of file it is."""
    name = path.name.removesuffix(".gz")
    return name[: -len(suffix)] if (suffix := PurePosixPath(name).suffix) else name


def _no_data(folder: Path) -> DataError:
    names = sorted(path.name for path in folder.iterdir())
    if {"state.json", "dataset_dict.json"} & set(names) or any(name.endswith(".arrow") for name in names):
        return DataError(
            f"{folder}: was written by datasets' save_to_disk, as arrow files",
            given=" ".join(names[:12]),
            allowed=f"files ending in {' '.join(EXTENSIONS)}, also with .gz",
            try_="dataset.to_parquet('train.parquet'), from Python",
        )
    return DataError(
        f"{folder}: there are no data files in this folder",
        given=" ".join(names[:12]) or "an empty folder",
        allowed=f"files ending in {' '.join(EXTENSIONS)}, also with .gz",
    )
