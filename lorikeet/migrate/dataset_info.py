"""LLaMA-Factory's dataset_info.json alone: the `data` section of a recipe, for the chosen names or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lorikeet.migrate._contract import Content, System, Translation
from lorikeet.migrate._datasets import from_info, set_datasets, split_names

MODEL = "smollm2-135m"  # small enough for any machine, until a person names another
_SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")


class DatasetInfo(System):
    """See the module."""

    name: ClassVar[str] = "dataset_info.json"
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
            key = names[0] if len(names) == 1 else ""
            chosen = [
                from_info(made, name, content.values, folder, name if name in content.values else "") for name in names
            ]
            set_datasets(made, "data.train", chosen, key)
        return made
