"""Which linears a person means: `target_modules` of an adapter, or of a quantisation, against the network's names.

A list holds the ends of names (`q_proj`, `layers.3.mlp.up_proj`); a text is a regex on the whole name, or one such end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.option_fields import as_yaml

ALL = "all-linear"
Targets = str | list[str]


def everything(targets: Targets) -> bool:
    """Whether all linears are meant."""
    return targets in (ALL, [ALL])


def matching(
    option: str, targets: Targets, names: Sequence[str], stacked: Mapping[str, str] = {}, otherwise: str = ALL
) -> set[str]:
    """Those of `names` that are meant; `stacked` has another name for some. `option` is what messages call it, and
    `otherwise` the value they propose where no name is near.

    Raises RecipeError for a word that matches none, or a regex that is none."""
    if everything(targets):
        return set(names)
    chosen: set[str] = set()
    for word in [targets] if isinstance(targets, str) else targets:
        if isinstance(targets, str):
            pattern = _regex(option, word)
            found = {name for name in names if pattern.fullmatch(name) or name.endswith(f".{word}")}
        else:
            found = {name for name in names if f".{name}".endswith(f".{word}")}
            found |= {name for name, whole in stacked.items() if f".{whole}".endswith(f".{word}")}
        if not found:
            leaves = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
            near = nearest(word, leaves)
            raise RecipeError(
                f"{option}: the model has no linear layer named '{word}'",
                given=as_yaml(targets),
                allowed=" ".join(leaves),
                try_=f"{option}='[{near}]'" if near else f"{option}={otherwise}",
            )
        chosen |= found
    return chosen


def means(option: str, targets: Targets, name: str) -> bool:
    """Whether one name is meant. Raises RecipeError for a regex that is none."""
    if everything(targets):
        return True
    if isinstance(targets, str):
        return bool(_regex(option, targets).fullmatch(name)) or name.endswith(f".{targets}")
    return any(f".{name}".endswith(f".{word}") for word in targets)


def _regex(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"{option}: not a valid regular expression",
            given=pattern,
            allowed=f"a Python regex, a list of names, or {ALL}",
        ) from error
