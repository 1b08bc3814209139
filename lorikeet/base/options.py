"""What every options class is: a frozen pydantic model that refuses unknown keys.

An option is declared in the file that reads it, with a description; docs/options.md is made from those.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Base of all option classes. Fields carry `Field(description=...)`; the recipe's YAML keys are their names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
