"""Curves over steps as SVG geometry: what report.html and `runs compare` draw. No library, no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 220, 54, 12, 12, 34  # of a drawing, in SVG units
SIZE = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
MOST_POINTS = 500  # per curve; longer runs keep every k-th point, so the file stays small

Point = tuple[float, float | None]  # step, value; None where the value is not finite


@dataclass(frozen=True, slots=True)
class Curve:
    """One line (or, with `dots`, a line with a dot at each point) of a chart. `look` is its CSS class."""

    name: str
    points: Sequence[Point]
    look: str = "main"
    dots: bool = False


@dataclass(slots=True)
class Chart:
    """A chart with its geometry in SVG units; `drawn` holds (curve, path, dots)."""

    title: str
    curves: list[Curve]
    description: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    drawn: list[tuple[Curve, str, list[tuple[float, float]]]]
    readout: list[dict[str, Any]] = field(default_factory=list)  # per curve: name, points as [x, y, step, text]
    marks: list[tuple[float, str]] = field(default_factory=list)  # upright lines: where, and the step


def make_chart(title: str, curves: list[Curve], *, from_zero: bool = True, marks: Iterable[float] = ()) -> Chart | None:
    """The chart with its geometry, or None where there is nothing to draw. `marks`: steps with an upright line."""
    curves = [curve for curve in curves if any(y is not None for _, y in curve.points)]
    steps = [x for curve in curves for x, _ in curve.points]
    values = [y for curve in curves for _, y in curve.points if y is not None]
    if not values:
        return None
    x_ticks = round_ticks(min(steps), max(steps), whole=True)
    y_ticks = round_ticks(min(0.0, *values) if from_zero else min(values), max(values))
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    drawn, readout = [], []
    for curve in curves:
        path, pen_down, placed = "", False, []
        for x, y in curve.points:
            if y is None:
                pen_down = False
                continue
            across, down = place(x, y)
            path += f"{'L' if pen_down else 'M'}{across} {down}"
            pen_down = True
            placed.append((across, down, f"{x:g}", short(y)))
        dots = [(across, down) for across, down, *_ in placed] if curve.dots or len(placed) == 1 else []
        drawn.append((curve, path, dots))
        readout.append({"name": curve.name, "points": placed})
    return Chart(
        title,
        curves,
        _describe(title, curves),
        x_ticks=[(place(tick, y_low)[0], short(tick)) for tick in x_ticks if x_low <= tick <= x_high],
        y_ticks=[(place(x_low, tick)[1], short(tick)) for tick in y_ticks],
        drawn=drawn,
        readout=readout,
        marks=[(place(mark, y_low)[0], f"{mark:g}") for mark in sorted(set(marks)) if x_low <= mark <= x_high],
    )


def points_of(rows: Iterable[dict], key: str, divisor: float = 1.0) -> list[Point]:
    """(step, value) of the rows that have both; a value that is not finite becomes None, a gap in the curve."""
    found: list[Point] = []
    for row in rows:
        step = number(row.get("step"))
        if step is not None and key in row:
            value = number(row[key])
            found.append((step, None if value is None else value / divisor))
    stride = -(-len(found) // MOST_POINTS)
    return found if stride <= 1 else found[:-1:stride] + found[-1:]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential mean over about a fortieth of the curve, started without bias."""
    keep = 1 - 2 / (max(len(points) / 40, 3) + 1)
    total = weight = 0.0
    smoothed: list[Point] = []
    for step, value in points:
        if value is None:
            smoothed.append((step, None))
            continue
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append((step, total / weight))
    return smoothed


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def short(value: float) -> str:
    """At most four figures: 0.0002 is 2e-4, 12345 is 12,345."""
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        digits, power = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value / 1e6:,.2f} M" if abs(value) < 1e9 else f"{value:.3g}"


def _describe(title: str, curves: list[Curve]) -> str:
    """One sentence for those who cannot see the drawing."""
    parts = []
    for curve in curves:
        known = [(x, y) for x, y in curve.points if y is not None]
        (x0, y0), (x1, y1) = known[0], known[-1]
        parts.append(f"{curve.name} {short(y0)} at step {x0:g}, {short(y1)} at step {x1:g}")
    return f"{title} over steps: {'; '.join(parts)}."


def round_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to seven round values that enclose low and high."""
    largest = max(abs(low), abs(high))
    span = max(high - low, largest * 1e-6, 1e-30) if high > low else largest * 0.1 or 1.0
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        size = max(1.0, float(math.ceil(size)))
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{i * size:.10g}") for i in range(first, max(last, first + 1) + 1)]
