"""Which linears are quantised: an option of every kind that is not `none`.

Linears that read the same input lie in one storage (q, k and v; gate and up; all experts of a layer), so they are
quantised together or not at all. Embedding, head, norms and the routers of experts always stay dense.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from lorikeet.base.errors import RecipeError
from lorikeet.base.option_fields import as_yaml
from lorikeet.base.targets import matching, means
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant

OPTION = "quant.target_modules"
_DENSE = re.compile(r"(lm_head|embed_tokens|embed_out|wte|norm)$")  # what other programs can be told to quantise


class Quantised(Quant):
    """Base of the kinds that quantise."""

    target_modules: Literal["all-linear"] | str | list[str] = Field(
        "all-linear",
        description="What is quantised: all-linear (every linear but the head and the routers of experts), a list of "
        "names (down_proj or layers.3.mlp.down_proj), or a regex on the whole name. The others stay dense.",
    )

    @field_validator("target_modules")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("is empty, so nothing would be quantised; quant.kind=none says that")
        return value

    def keeps(self, names: Sequence[str]) -> Quant:
        """See `Quant.keeps`. Raises RecipeError where some are meant and others are not."""
        meant = [name for name in names if means(OPTION, self.target_modules, name)]
        if not meant:
            return NoQuant()
        if len(meant) < len(names):
            left = next(name for name in names if name not in meant)
            leaves = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
            named = isinstance(self.target_modules, list)
            raise RecipeError(
                f"{OPTION}: {meant[0]} would be quantised and {left} not, and they are kept in one matrix",
                given=as_yaml(self.target_modules),
                allowed=f"all or none of {' '.join(leaves)}",
                try_=f"{OPTION}='[{', '.join(dict.fromkeys([*self.target_modules, *leaves]))}]'" if named else None,
            )
        return self

    def check(self, names: Sequence[str]) -> None:
        """See `Quant.check`."""
        words = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        leaves = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
        dense = [word for word in words if _DENSE.search(word) and not any(name.endswith(word) for name in names)]
        if dense:
            rest = [word for word in words if word not in dense]
            raise RecipeError(
                f"{OPTION}: '{dense[0]}' cannot be quantised: embedding, head and norms stay dense",
                given=as_yaml(self.target_modules),
                allowed=" ".join(leaves),
                try_=f"{OPTION}='{as_yaml(rest)}'" if rest else f"{OPTION}=all-linear",
            )
        matching(OPTION, self.target_modules, names)
