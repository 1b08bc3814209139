"""Parts that learn slower or faster: each trained tensor's own factor on the step's learning rate, by its name.

Factors come from three places and multiply: the layer a tensor is in (layerwise_lr_decay), patterns that a person
wrote (lr_multipliers), and the adapter (LoRA+, say).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydantic import Field, field_validator

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.options import Options

MOST_FACTOR = 1e6
_LAYER = re.compile(r"\.(?:layers?|blocks?|h)\.(\d+)(?:\.|$)")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings|tok_embeddings|embeddings?)(?:\.|$)")


class RateOptions(Options):
    """The part of the recipe's `train` section that gives tensors learning rates of their own."""

    layerwise_lr_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer learns at this share of the rate of the layer above it."
    )
    lr_multipliers: dict[str, float] = Field(
        default_factory=dict,
        description="Factors on the learning rate by regex, found anywhere in a trained tensor's name: "
        "{lora_B: 16, 'layers\\.[0-3]\\.': 0.5}. Where several match, they multiply.",
    )

    @field_validator("lr_multipliers")
    @classmethod
    def _usable(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, factor in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regex: {error}") from None
            if not 0 < factor <= MOST_FACTOR:
                raise ValueError(
                    f"the factor of '{pattern}' has to be above 0 and at most {MOST_FACTOR:g}, not {factor}"
                )
        return value


def factors(options: RateOptions, names: Iterable[str], given: Mapping[str, float] = {}) -> dict[str, float]:
    """The factor of each trained tensor by name; `given` are those of the adapter.

    Raises RecipeError for a pattern that matches no tensor, and for a decay where all tensors would learn alike."""
    found = {name: given.get(name, 1.0) for name in names}
    for name, depth in _depths(options, found).items():
        found[name] *= options.layerwise_lr_decay**depth
    for pattern, factor in options.lr_multipliers.items():
        matching = [name for name in found if re.search(pattern, name)]
        if not matching and found:
            words = {word for name in found for word in name.split(".") if not word.isdigit()}
            raise RecipeError(
                f"train.lr_multipliers: no trained tensor's name has '{pattern}' in it",
                given=pattern,
                allowed=f"regexes found in names like {next(iter(found))}",
                try_=nearest(pattern, words),
            )
        for name in matching:
            found[name] *= factor
    return found


def _depths(options: RateOptions, names: Iterable[str]) -> dict[str, int]:
    """How many layers lie above each tensor, counted from the last layer that trains; the embedding is below all."""
    if options.layerwise_lr_decay == 1.0:
        return {}
    layers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if not layers:
        raise RecipeError(
            "train.layerwise_lr_decay: has no effect, because nothing that trains is inside a layer",
            given=options.layerwise_lr_decay,
            try_="leave it out, or use train.lr_multipliers",
        )
    count = max(layers.values()) + 1
    below = {name: count for name in names if name not in layers and _EMBEDDING.search(name)}
    if len({*layers.values()}) == 1 and not below:
        raise RecipeError(
            "train.layerwise_lr_decay: has no effect, because all that trains in layers is in one",
            given=f"{options.layerwise_lr_decay}, layer {count - 1}",
            try_="leave it out, or use train.lr_multipliers",
        )
    return {name: count - 1 - layer for name, layer in layers.items()} | below
