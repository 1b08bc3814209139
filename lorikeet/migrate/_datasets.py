"""Datasets of other systems: an entry of dataset_info.json or of Axolotl's list, as `data.train` and `data.format`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.option_fields import as_yaml, default_of, find, kinds_of, option_classes
from lorikeet.base.options import Options
from lorikeet.config import Recipe
from lorikeet.migrate._contract import Content, Translation

_COLUMNS = ("prompt", "query", "response", "history")
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_MEDIA = ("images", "videos", "audios")
_KNOWN = {
    *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting", "ranking"),
    *("subset", "split", "folder", "num_samples", "columns", "tags", "file_sha1", "revision"),
}


@dataclass
class Dataset:
    """One source of rows: where it lies and how its rows read."""

    name: str
    path: str
    format: dict[str, Any] = field(default_factory=lambda: {"kind": "auto"})
    split: str = ""
    subset: str = ""  # a configuration of a hub's data set
    revision: str = ""
    samples: int | None = None
    weight: float | None = None


def entry_fields() -> set[str]:
    """What an entry of data.train can say besides its path; nothing where entries are plain texts."""
    field_, _ = find(Recipe, ("data", "train"), {})
    assert field_ is not None
    return {name for one in option_classes(field_.annotation) for name in one.model_fields}


def set_datasets(translation: Translation, option: str, datasets: Sequence[Dataset], key: str) -> None:
    """`data.train` or `data.validation`, and the format where all datasets have the same."""
    fields = entry_fields()
    formats = [dataset.format for dataset in datasets]
    shared = all(one == formats[0] for one in formats)
    entries: list[Any] = []
    for dataset in datasets:
        told: dict[str, Any] = {"split": dataset.split, "name": dataset.subset, "revision": dataset.revision}
        told["weight"] = dataset.weight
        if dataset.samples is not None:
            told["max_examples"] = dataset.samples
        if not shared:
            told["format"] = dataset.format
        told = {name: value for name, value in told.items() if value not in ("", None, {"kind": "auto"})}
        for name in [name for name in told if name not in fields]:
            _cannot_say(translation, dataset, name, told.pop(name), key)
        entries.append({"path": dataset.path, **told} if told else dataset.path)
        if ":" not in dataset.path and not Path(dataset.path).exists():
            translation.leave("missing", key, f"there is no {dataset.path} here", dataset.name)
    names = ", ".join(dataset.name for dataset in datasets)
    translation.set(option, entries, key, names if len(names) < 60 else "")
    if not shared:
        return
    before = translation.get("data.format")
    if before is not None and before != formats[0]:  # training files read otherwise
        why = f"validation rows read as {formats[0]['kind']}, training rows as {before['kind']}: data.format is auto"
        translation.leave("differs", key, why)
        translation.set("data.format", {"kind": "auto"}, key)
    elif before is None and formats[0] != {"kind": "auto"}:
        translation.set("data.format", formats[0], key)


def _cannot_say(translation: Translation, dataset: Dataset, name: str, value: Any, key: str) -> None:
    why = {
        "split": f"only the split {value} was used there",
        "name": f"only the subset {value} was used there",
        "revision": f"revision {value} was used there",
        "weight": f"drawn with weight {value} there; here every row comes once an epoch",
        "max_examples": f"only {value} rows were used there",
        "format": f"reads as {as_yaml(value)}; data.format is auto, which finds one format for each file",
    }[name]
    harmless = name == "format" and len(value) == 1
    translation.leave("not needed" if harmless else "differs", key, why, dataset.name)


def local(path: Path) -> str:
    """A path as a recipe should say it: relative to where the command is typed, if it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else Path(relative).as_posix()


def beside(path: str, content: Content) -> str:
    """A path as `local` says it; where only the file beside the source exists, that one."""
    near = content.path.parent / path
    return local(near if near.exists() and not Path(path).expanduser().exists() else Path(path).expanduser())


def from_info(translation: Translation, name: str, info: dict[str, Any], folder: Path, key: str) -> Dataset:
    """The dataset that an entry of dataset_info.json describes; `folder` is where that file lies.

    Raises RecipeError for a name that it does not list, or an entry that is no mapping."""
    if name not in info:
        raise RecipeError(
            f"there is no dataset '{name}' in {folder / 'dataset_info.json'}",
            given=f"{name}   ({translation.content.place(key) if key else 'the command line'})",
            allowed=" ".join(list(info)[:40]),
            try_=nearest(name, info) or "data.train='[FILE]' behind the command",
        )
    entry = info[name]
    parts = [entry.get("columns"), entry.get("tags")] if isinstance(entry, dict) else [()]
    if not all(part is None or isinstance(part, dict) for part in parts):
        raise RecipeError(
            f"{name}: an entry of dataset_info.json is a mapping",
            given=f"{str(entry)[:80]}   ({folder / 'dataset_info.json'})",
            allowed='{"file_name": "rows.json", "formatting": "alpaca", "columns": {...}}',
        )
    made = Dataset(name, _path(translation, name, entry, folder, key))
    made.format = _format(translation, name, entry, key)
    made.split = "" if entry.get("split", "train") == "train" else str(entry["split"])
    made.subset, made.revision = str(entry.get("subset") or ""), str(entry.get("revision") or "")
    samples = entry.get("num_samples")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise RecipeError(
            f"{name}.num_samples: has the wrong type",
            given=f"{samples}   ({folder / 'dataset_info.json'})",
            allowed="a whole number >= 1",
        )
    made.samples = samples
    unread = sorted(entry.keys() - _KNOWN)
    if unread:
        translation.leave("unknown", key, f"{' '.join(unread)} in dataset_info.json", name)
    return made


def _path(translation: Translation, name: str, entry: dict[str, Any], folder: Path, key: str) -> str:
    """LLaMA-Factory's order: a hub's name before a file."""
    if entry.get("hf_hub_url") or entry.get("ms_hub_url"):
        if entry.get("folder"):
            translation.leave("differs", key, f"only the folder {entry['folder']} was read there", name)
        if entry.get("hf_hub_url"):
            return f"hf:{entry['hf_hub_url']}"
        translation.leave("differs", key, "data sets of ModelScope are not fetched; download its files", name)
        return f"modelscope:{entry['ms_hub_url']}"
    if not entry.get("file_name"):
        reason = "is made by a script, and scripts of a hub are not run" if entry.get("script_url") else "names no file"
        raise RecipeError(
            f"{name}: {reason}",
            given=f"{str(entry)[:120]}   ({folder / 'dataset_info.json'})",
            allowed="file_name, hf_hub_url or ms_hub_url",
            try_="data.train='[FILE]' behind the command",
        )
    return local(folder / str(entry["file_name"]))


def _format(translation: Translation, name: str, entry: dict[str, Any], key: str) -> dict[str, Any]:
    formatting = str(entry.get("formatting", "alpaca"))
    columns: dict[str, Any] = entry.get("columns") or {}
    for medium in _MEDIA:
        if columns.get(medium):
            translation.leave("differs", key, f"{medium} are left out; models here read text only", name)
    if columns.get("kto_tag"):
        translation.leave("differs", key, "KTO's labels are not read; every answer is trained", name)
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise RecipeError(
            f"{name}: there is no formatting '{formatting}'", given=formatting, allowed="alpaca sharegpt openai"
        )
    if formatting == "alpaca":
        made = _row(translation, name, columns, key)
    else:
        made = _turns(translation, name, formatting, columns, entry.get("tags") or {}, key)
    if not entry.get("ranking"):
        return made
    translation.leave("differs", key, "pairs of answers; the chosen one is trained, the other is not used", name)
    wanted = {"chosen": columns.get("chosen"), "rejected": columns.get("rejected"), "context": made}
    return with_options(translation, name, "preference", wanted, key)


def _row(translation: Translation, name: str, columns: dict[str, Any], key: str) -> dict[str, Any]:
    """One question and one answer a row. With a `columns` section, a column that it does not name is not read."""
    named = {column: columns.get(column) for column in _COLUMNS}
    ranking = columns.get("chosen")
    if named["prompt"] and not (named["response"] or named["query"] or ranking):
        return with_options(translation, name, "text", {"text": named["prompt"]}, key)
    if not columns or named["query"] or named["history"] or columns.get("tools") or ranking:
        wanted = {**named, "system": columns.get("system"), "tools": columns.get("tools")}
        return with_options(translation, name, "alpaca", wanted, key)
    wanted = {"prompt": named["prompt"], "response": named["response"], "system": columns.get("system")}
    return with_options(translation, name, "columns", wanted, key)


def _turns(
    translation: Translation, name: str, formatting: str, columns: dict[str, Any], tags: dict[str, Any], key: str
) -> dict[str, Any]:
    openai = formatting == "openai" or {**_OPENAI_TAGS, **tags} == tags
    usual = {**_TAGS, **_OPENAI_TAGS} if openai else _TAGS
    odd = {tag: word for tag, word in tags.items() if word not in (usual.get(tag), tag.removesuffix("_tag"))}
    wanted = {column: columns.get(column) for column in ("messages", "system", "tools")}
    if openai and not odd and not wanted["system"]:
        return with_options(translation, name, "messages", wanted, key)
    if openai:
        odd = {"role_tag": "role", "content_tag": "content", **odd}
    wanted["messages"] = wanted["messages"] or ("messages" if formatting == "openai" else None)
    return with_options(translation, name, "sharegpt", {**wanted, **odd}, key)


def with_options(translation: Translation, name: str, kind: str, wanted: dict[str, Any], key: str) -> dict[str, Any]:
    """The format of that kind with the wanted options that are not its defaults; one it does not have is listed."""
    chosen = _formats().get(kind)
    if chosen is None:
        translation.leave("differs", key, f"there is no data.format {kind}; it is auto", name)
        return {"kind": "auto"}
    made: dict[str, Any] = {"kind": kind}
    for option, value in wanted.items():
        field_ = chosen.model_fields.get(option)
        if value is None or (field_ is not None and value == default_of(field_)):
            continue
        if field_ is not None:
            made[option] = value
        else:
            translation.leave("differs", key, f"the column {value} as {option}; format {kind} cannot name it", name)
    return made


def _formats() -> dict[str, type[Options]]:
    field_, _ = find(Recipe, ("data", "format"), {})
    assert field_ is not None
    return kinds_of(field_)


def split_names(names: Iterable[str]) -> list[str]:
    """Dataset names without blanks and doubles, in their order."""
    return list(dict.fromkeys(name for name in names if name))
