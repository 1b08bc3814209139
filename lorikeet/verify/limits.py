"""How near a merged model has to be to the trained one: limits that a person gives, and those of each way to merge.

A way that rounds nothing but the sum (into a dense folder, or the adapter kept beside the base it was trained on) has
to say the same as the trained model, within the rounding of its dtype. A way that quantises anew, or that puts the
update on another base, makes another model: there the limit is on what it costs, the held-out loss. docs/merging.md
has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Limits:
    """What a merged model must keep to; None is not asked for. Names are those of `verify.merge.Measured`."""

    mean_kl: float | None = None
    max_kl: float | None = None
    loss_increase: float | None = None
    top1_agreement: float | None = None
    same_replies: float | None = None

    AT_LEAST: ClassVar[tuple[str, ...]] = ("top1_agreement", "same_replies")  # the others are upper bounds

    def broken(self, measured: Any) -> list[str]:
        """The names of the limits that `measured` does not keep. What is not a number keeps none."""
        found = []
        for name, limit in asdict(self).items():
            value = getattr(measured, name)
            if limit is None or value is None:  # nothing was asked, or there were no prompts
                continue
            kept = value >= limit if name in self.AT_LEAST else value <= limit
            found += [] if kept else [name]
        return found


# what rounding to 16 bits leaves; it decides between tokens that are almost equally likely: `make demo` has 96 %
SAME = Limits(mean_kl=0.01, top1_agreement=0.95, loss_increase=0.01)
NEAR = Limits(mean_kl=0.05, top1_agreement=0.9, loss_increase=0.02)  # 8 bits
OTHER = Limits(loss_increase=0.05)  # a base that was not the one in training, or 4 bits and fewer


def default_limits(how: Mapping[str, Any]) -> Limits:
    """The limits of a merged folder, from what its lorikeet.json says: `into` {kind, ...}, `base`, `trained` {kind,
    ...} and `kept`, whether the adapter lies beside the base."""
    into, trained = how.get("into") or {}, how.get("trained") or {}
    kind, before = into.get("kind", "none"), trained.get("kind", "none")
    if how.get("kept") and into == trained:
        return SAME  # also of the full base: the same numbers were rounded the same way
    full, eight = how.get("base") == "full", kind == "int8" or into.get("bits") == 8
    if (full and before not in ("none", "int8")) or (kind != "none" and not eight):
        return OTHER
    return NEAR if full or eight else SAME
