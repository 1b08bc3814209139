"""The alarm for a loss that jumps: far above what the last steps had, by their own scatter.

Median and median absolute deviation, because a mean and a variance would learn from the first spike that spikes are
usual. The deviation is taken as at least a hundredth, of the median and of a nat, so that a run that repeats itself
raises none, nor one whose losses are thousandths because it knows its rows by heart.
"""

from __future__ import annotations

from statistics import median

WINDOW, LEAST = 64, 16  # losses that are remembered; fewer than LEAST say nothing yet
NORMAL = 1.4826  # times the median absolute deviation is a normal distribution's standard deviation
FLOOR = 0.01


def ceiling(losses: list[float], factor: float) -> float | None:
    """The loss from which on a step is a spike; None while too few are known."""
    if not factor or len(losses) < LEAST:
        return None
    middle = median(losses)
    scatter = NORMAL * median(abs(loss - middle) for loss in losses)
    return middle + factor * max(scatter, FLOOR * abs(middle), FLOOR)


def remember(losses: list[float], loss: float) -> None:
    """Add a loss; the oldest beyond WINDOW goes."""
    losses.append(loss)
    del losses[:-WINDOW]
