"""Other programs that serve: a kind says how one is started with what was trained.

A kind is a file of this folder. It names the program and writes its command line; nothing of the program is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Served:
    """What is to be served. `weights` is a Hugging Face folder or a GGUF file, as the engine takes it."""

    weights: Path
    name: str  # what requests call it
    template: Path | None  # a chat template in jinja; None: the model's own
    adapters: Mapping[str, Path] = field(default_factory=dict)  # LoRA folders in PEFT's layout, by name
    rank: int = 0  # the largest of the adapters'
    context: int = 4096  # tokens of a prompt with its reply
    rows: int = 16  # replies at once
    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None


@dataclass(frozen=True)
class Start:
    """A command line, and what its environment has besides (secrets, which a command line would show to everyone)."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class ServeEngine:
    """Base of the engines; a file of this folder defines one subclass."""

    kind: ClassVar[str]  # what --engine calls it
    takes: ClassVar[Literal["hf", "gguf"]]
    install: ClassVar[str]  # the line that installs the program
    several_adapters: ClassVar[bool] = False

    def start(self, served: Served) -> Start:
        """How the program is started. Raises RecipeError for what it cannot serve."""
        raise NotImplementedError
