"""How many rows are how long, in memory that does not grow with them; as lines of text and as a picture.

Lengths from 4,096 on are kept to three digits, so a few thousand counts hold any number of rows; which are longer than
the limit, and the longest, is exact all the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import Any

_EXACT = 4096
_BARS = 48
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 56, 16, 56, 46  # of the picture, in SVG units
_WITHIN, _BEYOND, _INK, _FAINT = "#3b6ea5", "#c8553d", "#1f2933", "#d5dae0"
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"


@dataclass
class Histogram:
    """Counts of lengths."""

    counts: Counter[int] = field(default_factory=Counter)
    limit: int | None = None  # which no rounding crosses: rows cut to just fit it are many, and do
    longest: int = 0

    def add(self, length: int) -> None:
        """Count a row of `length`; 0 is a row without one, and is left aside."""
        if length > 0:
            self.counts[self._rounded(length)] += 1
            self.longest = max(self.longest, length)

    def _rounded(self, length: int) -> int:
        if length < _EXACT:
            return length
        near = int(float(f"{length:.3g}"))
        if self.limit is None:
            return near
        return min(near, self.limit) if length <= self.limit else max(near, self.limit + 1)

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed; 0 for no rows."""
        wanted, reached = share * self.rows, 0
        for length in sorted(self.counts):
            reached += self.counts[length]
            if reached >= wanted:
                return length
        return 0

    def beyond(self, limit: int | None) -> int:
        """How many rows are longer than `limit`."""
        return 0 if limit is None else sum(count for length, count in self.counts.items() if length > limit)

    def as_dict(self, limit: int | None) -> dict[str, Any]:
        """Figures, and the bars as [from, to, rows]."""
        rows = self.rows
        total = sum(length * count for length, count in self.counts.items())
        quantiles = {"median": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "rows": rows,
            "shortest": min(self.counts, default=0),
            "mean": round(total / rows, 1) if rows else 0,
            **{name: self.quantile(share) for name, share in quantiles.items()},
            "longest": self.longest,
            "beyond_max_length": self.beyond(limit),
            "bars": [list(bar) for bar in self.bars(limit)],
        }

    def bars(self, limit: int | None = None) -> list[tuple[int, int, int]]:
        """(from, to, rows) of equally wide bars; where rows are longer than `limit`, one ends there, and the first is
        narrower for it. The last takes all that is longer than 99.5 % of the rows and `limit`."""
        if not self.counts:
            return []
        longest = max(*self.counts, self.longest)
        beyond = limit if limit is not None and self.beyond(limit) else 0
        shown = max(self.quantile(0.995), beyond + 1)
        width = _round_up(shown / _BARS)
        first = beyond % width or width
        found = [0] * (1 + -(-max(shown - first, 0) // width))
        for length, count in self.counts.items():
            found[min(max(0, -(-(length - first) // width)), len(found) - 1)] += count
        ends = [first + number * width for number in range(len(found))]
        ends[-1] = max(ends[-1], longest)
        starts = [1, *(first + number * width + 1 for number in range(len(found) - 1))]
        return list(zip(starts, ends, found))


def _round_up(value: float) -> int:
    """1, 2, 5, 10, 20, 50 ...: the first that is not below `value`."""
    size = 1
    while True:
        for step in (1, 2, 5):
            if step * size >= value:
                return step * size
        size *= 10


def as_text(facts: dict[str, Any], width: int = 40, most: int = 16) -> list[str]:
    """The histogram as lines of a terminal; `facts` are those of the check `lengths`."""
    bars = facts["bars"]
    while bars and not bars[0][2]:  # short lengths that no row has
        bars = bars[1:]
    step = -(-len(bars) // most) if bars else 1
    joined = [
        (some[0][0], some[-1][1], sum(count for _, _, count in some))
        for some in (bars[start : start + step] for start in range(0, len(bars), step))
    ]
    highest = max((count for _, _, count in joined), default=1)
    digits = len(f"{joined[-1][1]:,}") if joined else 1
    lines = [
        f"{low:>{digits},} to {high:>{digits},}  {'█' * -(-count * width // highest):<{width}} {count:,}"
        for low, high, count in joined
    ]
    return [*lines, summary(facts)]


def summary(facts: dict[str, Any]) -> str:
    """The figures in one line."""
    limit = facts["max_length"]
    against = f"; {facts['beyond_max_length']:,} of {facts['rows']:,} rows beyond max_length {limit:,}" if limit else ""
    return (
        f"{facts['unit']}: median {facts['median']:,}, 90 % up to {facts['p90']:,}, 99 % up to {facts['p99']:,}, "
        f"longest {facts['longest']:,}{against}"
    )


def as_svg(facts: dict[str, Any], title: str) -> str:
    """The histogram as a picture: one bar for each range of lengths, a line at max_length."""
    bars = facts["bars"] or [[1, 1, 0]]
    highest = max(1, *(count for _, _, count in bars))
    top = _round_up(highest)
    inside, tall, limit = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, facts["max_length"]
    wide = bars[2][0] - bars[1][0] if len(bars) > 2 else bars[0][1]
    scale = inside / (bars[-1][0] - 1 + wide)  # SVG units a token; the last bar is drawn as wide as the others
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600" fill="{_INK}">{escape(title)}</text>',
        f'<text x="{LEFT}" y="40" font-size="12" fill="{_INK}">{escape(summary(facts))}</text>',
    ]
    for share in (0, 0.5, 1):
        y = TOP + tall * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_FAINT}"/>')
        parts.append(_label(LEFT - 6, y + 4, f"{top * share:,.0f}" if top * share % 1 == 0 else "", "end"))
    for number, (low, high, count) in enumerate(bars):
        size, drawn = tall * count / top, (high if number < len(bars) - 1 else low - 1 + wide) - low + 1
        colour = _BEYOND if limit is not None and low > limit else _WITHIN
        said = f"{low:,} to {high:,} {facts['unit']}: {count:,} rows"
        parts.append(
            f'<rect x="{LEFT + (low - 1) * scale + 0.5:.1f}" y="{TOP + tall - size:.1f}" '
            f'width="{max(drawn * scale - 1, 0.5):.1f}" '
            f'height="{size:.1f}" fill="{colour}"><title>{said}</title></rect>'
        )
    every = _round_up(inside / scale / 10)
    for tick in range(0, int(inside / scale) + 1, every):
        parts.append(_label(LEFT + tick * scale, HEIGHT - BOTTOM + 16, f"{tick:,}", "middle"))
    parts.append(_label(LEFT + inside / 2, HEIGHT - 8, f"{facts['unit']} in a row", "middle"))
    if limit is not None and limit * scale < inside:
        x = LEFT + limit * scale
        across = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{TOP + tall}"'
        parts.append(f'<line {across} stroke="{_INK}" stroke-dasharray="4 3"/>')
        left = limit * scale > inside / 2  # the half that has room for the words
        parts.append(_label(x - 5 if left else x + 5, TOP + 4, f"max_length {limit:,}", "end" if left else "start"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" font-family="{escape(_FONT)}">\n{body}\n</svg>\n'
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{_INK}" text-anchor="{anchor}">{escape(text)}</text>'
