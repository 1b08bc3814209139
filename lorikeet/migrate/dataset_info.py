"""LLaMA-Factory's dataset_info.json alone: the `data` section of a recipe, for the chosen names or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lorikeet.base.errors import RecipeError
from lorikeet.migrate._contract import Content, System, Translation
from lorikeet.migrate._datasets import Dataset, from_info, set_datasets, split_names

MODEL = "smollm2-135m"  # small enough for any machine, until a person names another
_SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")


class DatasetInfo(System):
    """See the module."""

    name: ClassVar[str] = "LLaMA-Factory's list of data"
    precedence: ClassVar[int] = -1

    def recognise(self, content: Content) -> int:
        entries: list[Any] = list(content.values.values())
        if not all(isinstance(entry, dict) for entry in entries):
            return 0
        return sum(any(source in entry for source in _SOURCES) for entry in entries)

    def translate(self, content: Content, datasets: Sequence[str]) -> Translation:
        made = Translation(content, self.name)
        names = split_names(datasets) or list(content.values)
        folder = content.path.parent
        made.set("output_dir", f"runs/{names[0]}" if len(names) == 1 else "runs/imported", "", "named after the data")
        made.set("model.path", MODEL, "", "your model goes here; dataset_info.json names none")
        if "data.train" not in content.given:
            chosen = [from_info(made, name, content.values, folder, _key(content, name)) for name in datasets]
            chosen = chosen or _usable(made, names)
            set_datasets(made, "data.train", chosen, _key(content, names[0]) if len(names) == 1 else "")
        return made


def _key(content: Content, name: str) -> str:
    return name if name in content.values else ""


def _usable(made: Translation, names: Sequence[str]) -> list[Dataset]:
    """All the datasets listed, without those that lie nowhere; those are listed as missing."""
    found: list[Dataset] = []
    refused: list[RecipeError] = []
    for name in names:
        try:
            found.append(from_info(made, name, made.content.values, made.content.path.parent, name))
        except RecipeError as error:
            refused.append(error)
            made.leave("missing", name, error.what.removeprefix(f"{name}: "), "")
    if not found:
        raise refused[0]
    return found
