"""Data sets of the Hugging Face hub: `hf:org/name` becomes local files that our own readers read.

Which files a configuration and a split have is said by the data set's card where it says so, else by the files' names.
Data sets that exist only as a script or in formats we do not read have a copy in parquet on the hub's own branch.
What was fetched is kept with a note, and a second run needs no network.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DataError, nearest
from lorikeet.base.files import cache_dir, sha256_file, write_file
from lorikeet.base.log import note
from lorikeet.checkpoints.sources._datasets import Repository
from lorikeet.checkpoints.sources._fetch import only_one
from lorikeet.data.files import EXTENSIONS
from lorikeet.data.folders import by_split, canonical

NOTE = "lorikeet-source.json"
PARQUET_BRANCH = "refs/convert/parquet"
_NAME = r"[\w-][\w.-]*"


def hub_name(path: str) -> tuple[str, str | None] | None:
    """(name, revision) of `hf:org/name@revision`; also of a plain `org/name`, which no file of data is called."""
    match = re.fullmatch(rf"(?:(hf|hub):)?({_NAME}(?:/{_NAME})?)(?:@([\w./-]+))?", path)
    if match is None or (not match[1] and ("/" not in path or path.lower().removesuffix(".gz").endswith(EXTENSIONS))):
        return None
    return match[2], match[3]


def hub_files(name: str, *, revision: str | None, config: str | None, split: str | None) -> list[str]:
    """The local files of one split (by default `train`) of one configuration, downloaded on first use.

    Raises MissingExtra without the hub's client, DownloadError, and DataError for a configuration or split that the
    data set does not have."""
    shelf = cache_dir() / "data" / "hf" / name.replace("/", "--")
    asked = json.dumps([revision or "main", config, canonical(split or "train")])
    target = shelf / hashlib.sha256(asked.encode()).hexdigest()[:16]
    with only_one(shelf / ".lock"):
        here = _finished(target)
        if here is None:
            here = _fetch(name, revision, config, split, target)
    return here


def _fetch(name: str, revision: str | None, config: str | None, split: str | None, target: Path) -> list[str]:
    repository = Repository(name, revision)
    splits = _splits(repository, config)
    if not any(splits.values()) and revision is None:
        note(f"hf:{name} has no files of a kind we read; taking the hub's own copy in parquet")
        repository = Repository(name, PARQUET_BRANCH)
        splits = _converted(repository, config)
    wanted = canonical(split or "train")
    named = [one for one in splits if one is not None]
    chosen = splits.get(wanted) or (splits.get(None) if not named and split is None else None)
    if not chosen:
        raise DataError(
            f"hf:{name}: has no split '{split or 'train'}'",
            given=f"{len(repository.sizes)} files: {' '.join(list(repository.sizes)[:8])}",
            allowed=f"split: {' '.join(named)}" if named else f"files ending in {' '.join(EXTENSIONS)}",
            try_=f"split: {nearest(wanted, named) or named[0]}" if named else None,
        )
    repository.fetch(chosen, target)
    known = {}
    for file in chosen:
        state = (target / file).stat()
        digest = sha256_file(target / file)
        known[file] = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": digest}
    told = {"source": f"hf:{name}@{repository.commit}", "config": config, "split": wanted, "files": known}
    write_file(target / NOTE, json.dumps(told, indent=2) + "\n")
    return [str(target / file) for file in chosen]


def _finished(target: Path) -> list[str] | None:
    """The files of an earlier download, in order, if they lie there unchanged."""
    try:
        files = json.loads((target / NOTE).read_text(encoding="utf-8"))["files"]
        for name, known in files.items():
            state = (target / name).stat()
            if state.st_size != known["size"]:
                return None
            if state.st_mtime_ns != known["mtime_ns"] and sha256_file(target / name) != known["sha256"]:
                return None
        return [str(target / name) for name in files] or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _splits(repository: Repository, config: str | None) -> dict[str | None, list[str]]:
    """The files of each split of a configuration: by the card, else by the names."""
    if not by_split(repository.sizes):
        return {}
    configs = [one for one in repository.card.get("configs") or () if isinstance(one, Mapping)]
    if not configs:
        names: Iterable[str] = repository.sizes
        if config is not None:  # a configuration without a card is a folder
            inside = [name for name in repository.sizes if config in name.split("/")[:-1]]
            if not inside:
                raise _no_config(repository.name, config, sorted({n.split("/")[0] for n in names if "/" in n}))
            names = inside
        return dict(by_split(names))
    names_of = {str(one.get("config_name", "default")): one for one in configs}
    first = next((key for key, one in names_of.items() if one.get("default")), None)
    only = next(iter(names_of)) if len(names_of) == 1 else None
    chosen = config or first or ("default" if "default" in names_of else only)
    if chosen not in names_of:
        raise _no_config(repository.name, config, list(names_of))
    return _by_card(names_of[chosen], repository)


def _by_card(config: Mapping[str, Any], repository: Repository) -> dict[str | None, list[str]]:
    folder = str(config.get("data_dir") or "").strip("./")
    names = [name for name in sorted(repository.sizes) if name.startswith(f"{folder}/" if folder else "")]
    listed = config.get("data_files")
    if listed is None:
        return dict(by_split(names))
    found: dict[str | None, list[str]] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, Mapping) else (None, entry)
        patterns = [str(path).removeprefix("./") for path in (paths if isinstance(paths, list) else [paths])]
        matching = [name for name in names if any(_matches(name, pattern, folder) for pattern in patterns)]
        for key, files in by_split(matching).items():
            found.setdefault(canonical(str(split)) if split else key, []).extend(files)
    return found


def _matches(name: str, pattern: str, folder: str) -> bool:
    """Whether a pattern of the card, seen from the top or from the configuration's folder, names the file."""
    parts = name.split("/")
    return any(_fits(parts, one.split("/")) for one in (pattern, f"{folder}/{pattern}" if folder else pattern))


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """As the hub reads them: `*` stays within a folder, `**` is any number of folders."""
    if not patterns or not parts:
        return not patterns and not parts
    if patterns[0] == "**":
        return len(patterns) == 1 or any(_fits(parts[start:], patterns[1:]) for start in range(len(parts)))
    return fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


def _converted(repository: Repository, config: str | None) -> dict[str | None, list[str]]:
    """The parquet branch's files, `config/split/0000.parquet`; very large splits are there in part, and say so."""
    names = [name for name in sorted(repository.sizes) if name.endswith(".parquet") and name.count("/") == 2]
    configs = list(dict.fromkeys(name.split("/")[0] for name in names))
    chosen = config or ("default" if "default" in configs else configs[0] if len(configs) == 1 else None)
    if configs and chosen not in configs:
        raise _no_config(repository.name, config, configs)
    found: dict[str | None, list[str]] = {}
    for name in names:
        folder, split, _ = name.split("/")
        if folder == chosen:
            if split.startswith("partial-"):
                note(f"hf:{repository.name}: the hub's copy has only a part of the split {split[8:]}")
            found.setdefault(canonical(split.removeprefix("partial-")), []).append(name)
    return found


def _no_config(name: str, config: str | None, configs: list[str]) -> DataError:
    return DataError(
        f"hf:{name}: " + ("has several configurations" if config is None else f"has no configuration '{config}'"),
        given="no `name`" if config is None else f"name: {config}",
        allowed=f"name: {' '.join(configs[:40]) or '(none)'}",
        try_=f"{{path: hf:{name}, name: {nearest(config or '', configs) or configs[0]}}}" if configs else None,
    )
