"""WSD (Hu et al. 2024, MiniCPM): a warm-up, most of the run at the peak, and a decay at its end."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from lorikeet.base.option_types import Waves
from lorikeet.train.schedules._contract import Moment, Schedule, refuse

Curve = Literal["linear", "cosine", "1-sqrt"]


class WarmupStableDecay(Schedule):
    """Stays at the peak and decays in the last steps, so that a run can be prolonged from a checkpoint before them."""

    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    of_warmup: ClassVar[tuple[str, ...]] = ("warmup_type",)
    num_decay_steps: int | None = Field(None, ge=1, description="Steps of the decay; by default a tenth of the run.")
    num_stable_steps: int | None = Field(
        None, ge=0, description="Steps at the peak; by default all that are left. Behind the decay the rate is lowest."
    )
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="The lowest rate, as a share of learning_rate.")
    warmup_type: Curve = Field("linear", description="The curve of the warm-up.")
    decay_type: Curve = Field("cosine", description="The curve of the decay.")
    num_cycles: Waves = Field(0.5, description="Waves of a cosine decay: 0.5 falls once.")

    def rising(self, at: Moment) -> float:
        curves = {
            "linear": at.warmed,
            "cosine": 0.5 * (1.0 - math.cos(math.pi * at.warmed)),
            "1-sqrt": 1.0 - math.sqrt(1.0 - at.warmed),
        }
        return max(0.0, self._above(curves[self.warmup_type]))

    def falling(self, at: Moment) -> float:
        stable, decay = self._phases(at)
        step = at.step - at.warmup - stable
        if step < 0:
            return 1.0
        if step >= decay:
            return self.min_lr_ratio
        progress = step / decay
        curves = {
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * self.num_cycles * 2.0 * progress)),
            "1-sqrt": 1.0 - math.sqrt(progress),
        }
        return max(0.0, self._above(curves[self.decay_type]))

    def idle(self, *, warmup: bool) -> dict[str, tuple[str, str]]:
        """See `Schedule.idle`."""
        straight = ("decay_type is " + self.decay_type, "train.lr_scheduler_type.decay_type=cosine")
        return super().idle(warmup=warmup) | ({} if self.decay_type == "cosine" else {"num_cycles": straight})

    def _above(self, share: float) -> float:
        return share * (1.0 - self.min_lr_ratio) + self.min_lr_ratio

    def _phases(self, at: Moment) -> tuple[int, int]:
        """Steps at the peak, and steps of the decay."""
        behind = max(0, at.steps - at.warmup)
        decay = self.num_decay_steps or min(math.ceil(at.steps / 10), behind)
        return (behind - decay if self.num_stable_steps is None else self.num_stable_steps), max(1, decay)

    def check_length(self, start: Moment) -> None:
        parts = {"warm-up": start.warmup, "stable": self.num_stable_steps or 0, "decay": self.num_decay_steps or 0}
        if sum(parts.values()) > start.steps and (self.num_decay_steps or self.num_stable_steps):
            option = "num_decay_steps" if self.num_decay_steps else "num_stable_steps"
            told = " + ".join(f"{count} of {name}" for name, count in parts.items() if count)
            left = start.steps - sum(parts.values()) + (getattr(self, option) or 0)
            raise refuse(
                option,
                f"the phases are longer than the run of {start.steps} steps",
                told,
                f"at most {max(0, left)} here",
                f"train.lr_scheduler_type.{option}=null",
            )
