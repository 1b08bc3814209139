"""What every source system does: say whether a file is its own, and turn its settings into ours.

A file of another trainer becomes `Content`, plain values that know their lines. A `System` reads it and fills a
`Translation`: settings of ours, each with the key it came from, and what could not be carried over. Nothing is left
out in silence: a key without an equivalent is listed as `differs` (the run would come out otherwise), `not needed`
(nothing to carry over), `unknown`, or `missing` (a file that training needs and that is not here).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from lorikeet.base.errors import RecipeError
from lorikeet.base.option_fields import as_yaml
from lorikeet.base.yaml_lines import Key

Status = Literal["missing", "differs", "not needed", "unknown"]
# YAML 1.1's words, which PyYAML makes booleans, and what HfArgumentParser and python-fire take on a command line
_TRUE, _FALSE = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")


@dataclass(frozen=True)
class Content:
    """A file of another system: its values, and where each was written."""

    path: Path
    values: dict[str, Any]
    places: Mapping[Key, str]
    program: str = ""  # the script a command line runs: finetune.py
    devices: int = 1  # that a launcher in front of it starts
    given: frozenset[str] = frozenset()  # options of ours set behind the command: the file need not say them

    def place(self, key: str) -> str:
        """`recipe.yaml:6`, or the file's name."""
        return self.places.get((key,), str(self.path))

    def has(self, key: str) -> bool:
        """Whether `key` is written with a value: `key:` and nothing behind it counts as absent."""
        return self.values.get(key) is not None

    def wrong(self, key: str, wanted: str) -> NoReturn:
        """Raise the error of a value of the wrong type."""
        given = f"{as_yaml(self.values[key])}   ({self.place(key)})"
        raise RecipeError(f"{key}: has the wrong type", given=given, allowed=wanted)

    def text(self, key: str, default: str = "") -> str:
        """A value that is one text."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, (dict, list)):
            self.wrong(key, "text")
        return str(value)

    def number(self, key: str, default: float = 0.0) -> float:
        """A value that is a number; a whole one stays whole. Texts such as '2e-4' are numbers too."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.wrong(key, "a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.wrong(key, "a number")
        return int(value) if float(value).is_integer() else value

    def whole(self, key: str, default: int = 0) -> int:
        """A value that is a whole number."""
        value = self.number(key, default)
        if not isinstance(value, int):
            self.wrong(key, "a whole number")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A value that is true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        word = str(value).lower()
        if isinstance(value, (dict, list)) or word not in _TRUE + _FALSE:
            self.wrong(key, "true or false")
        return word in _TRUE

    def words(self, key: str) -> list[str]:
        """A list of texts, written as a list or with commas, in brackets or not."""
        value = self.values.get(key)
        if value is None:
            return []
        if isinstance(value, str):
            value = value.strip().removeprefix("[").removesuffix("]").split(",")
        if not isinstance(value, list) or any(isinstance(word, (dict, list)) for word in value):
            self.wrong(key, "a list of texts")
        return [word for word in (str(word).strip().strip("'\"") for word in value) if word]


@dataclass(frozen=True)
class Setting:
    """One option of ours, and what a person should know about where it came from."""

    value: Any
    source: str
    place: str


@dataclass(frozen=True)
class Left:
    """One thing that was not carried over."""

    status: Status
    key: str
    value: Any
    why: str
    place: str = ""

    def __str__(self) -> str:
        shown = "" if self.value in (None, "", self.key) else as_yaml(self.value)[:80]
        return f"{': '.join(part for part in (self.key, shown) if part)} - {self.why}"


@dataclass
class Translation:
    """A recipe in the making."""

    content: Content
    system: str  # as people call it
    settings: dict[tuple[str, ...], Setting] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)  # source keys that were dealt with

    def set(self, option: str, value: Any, key: str, note: str = "") -> None:
        """Set `train.learning_rate` (an option of ours) from the source's `key`, or from `note` alone."""
        self.seen.add(key)
        source = ", ".join(part for part in (self.where(key) if key else "", note) if part)
        place = self.content.place(key) if key else str(self.content.path)
        self.settings[tuple(option.split("."))] = Setting(value, source, place)

    def get(self, option: str, default: Any = None) -> Any:
        """The value of an option of ours so far."""
        found = self.settings.get(tuple(option.split(".")))
        return default if found is None else found.value

    def leave(self, status: Status, key: str, why: str, value: Any = None) -> None:
        """List `key` as not carried over."""
        self.seen.add(key)
        value = self.content.values.get(key) if value is None else value
        self.left.append(Left(status, key, value, why, self.content.place(key)))

    def where(self, key: str) -> str:
        """`learning_rate (line 31)`."""
        line = self.content.places.get((key,), "").rpartition(":")[2]
        return f"{key} (line {line})" if line.isdigit() else key

    def unknown(self, known: Sequence[str]) -> None:
        """List the source's keys that nobody has dealt with."""
        for key, value in self.content.values.items():
            if key in self.seen or value is None:
                continue
            near = next(iter(get_close_matches(key, known, n=1, cutoff=0.8)), None)
            self.leave("unknown", key, f"not a key this importer knows{f'; meant: {near}?' if near else ''}")


class System:
    """Base of the source systems; one file each."""

    name: ClassVar[str]  # as people call it
    precedence: ClassVar[int] = 0  # where two recognise a file equally, the highest reads it

    def recognise(self, content: Content) -> int:
        """How sure: 0 for not mine, else the number of keys that speak for it."""
        raise NotImplementedError

    def translate(self, content: Content, datasets: Sequence[str]) -> Translation:
        """The settings of ours that say the same. `datasets`: only these of the names listed, where it lists any.

        Raises RecipeError for a value that the system itself would refuse."""
        raise NotImplementedError
