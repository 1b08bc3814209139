"""Numbers on the command line that the parser takes and nothing can use: nan, inf, more than 64 bits."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from lorikeet.base.errors import RecipeError


def check(given: Mapping[str, Any]) -> None:
    """Raise RecipeError for such a number among a command's arguments, by name."""
    for name, value in given.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise _refused(name, number, "a finite number")
            if isinstance(number, int) and abs(number) > sys.maxsize:
                raise _refused(name, number, f"a whole number, at most {sys.maxsize}")


def _refused(name: str, number: float, allowed: str) -> RecipeError:
    option = f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")
    return RecipeError(f"{option}: out of range", given=number, allowed=allowed)
