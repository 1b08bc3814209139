"""Which tensor of a GGUF file each tensor of a checkpoint becomes, and the shapes and types of the file's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._gguf_file import GGUFFile, Kind, Stored, kept_as
from lorikeet.models.gguf_layouts._contract import GGUFLayout

Converted = Callable[[str, Tensor], Tensor]


class Plan:
    """The tensors of a file in the making. `tensors` are named as there, `places` as in a checkpoint."""

    def __init__(
        self,
        layout: GGUFLayout,
        spec: Any,
        listed: Iterable[tuple[str, tuple[int, ...]]],
        kind: Kind,
        *,
        suffix: str = "",
        converted: Converted | None = None,
    ):
        """listed: (name, shape) of a checkpoint's tensors. suffix: behind the file's names (`.lora_a`). converted:
        instead of `layout.to_gguf`. Raises ModelError for one that such a file has no name for."""
        self.layout, self.spec = layout, spec
        self._converted = converted or (lambda name, tensor: layout.to_gguf(name, tensor, spec))
        self.places: dict[str, tuple[str, int | None]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        parts: dict[str, int] = {}
        for name, shape in listed:
            try:
                found, part = layout.gguf_place(name, spec)
            except (KeyError, ValueError) as error:
                raise ModelError(
                    f"a GGUF file of {layout.written_as} has no name for the tensor '{name}'",
                    given=name,
                    try_="lorikeet merge, and an engine for Hugging Face folders",
                ) from error
            found += suffix
            self.places[name] = found, part
            shapes[found] = tuple(self._converted(name, torch.empty(shape, device="meta")).shape)
            parts[found] = parts.get(found, 0) + (part is not None)
        self.tensors: dict[str, Stored] = {}
        for found, shape in shapes.items():
            whole = (parts[found], *shape) if parts[found] else shape
            self.tensors[found] = Stored(whole, kept_as(found, whole, kind))

    def write(self, file: GGUFFile, name: str, tensor: Tensor) -> None:
        """Write a checkpoint's tensor to where it belongs."""
        found, part = self.places[name]
        file.write(found, self._converted(name, tensor.detach().cpu()), part)
