"""The run report: one HTML file that shows how a run went, from the files in its folder.

Everything is inside the file (styles, drawings, a few lines of script for the read-out), so it opens from a disk, a
mail or an archive without a network. The curves are SVG whose geometry is computed here; `report.html.j2` only writes
it down. A run that is still going, that stopped, or that diverged has a report too: what is missing is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorikeet.base.errors import OutputError
from lorikeet.base.files import write_file

GIB = 1 << 30
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 220, 54, 12, 12, 34  # of a drawing, in SVG units
MOST_POINTS = 500  # per curve; longer runs keep every k-th point, so the file stays small
MOST_SAMPLES = 50

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


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder from its metrics.jsonl, summary.json, recipe.yaml and samples.jsonl.

    Each of these may be missing or cut off. Raises OutputError where the folder itself does not exist.
    """
    if not run_folder.is_dir():
        raise OutputError(
            f"there is no run folder '{run_folder}'", given=run_folder, try_="the output_dir of a run that has started"
        )
    problems: list[str] = []
    metrics = _read_rows(run_folder / "metrics.jsonl", problems)
    samples = _read_rows(run_folder / "samples.jsonl", problems)
    summary = _read_summary(run_folder / "summary.json", problems)
    train = [row for row in metrics if row.get("kind") == "train"]
    evals = [row for row in metrics if row.get("kind") == "eval"]
    if not summary:
        problems.append("There is no summary yet: the run is still going, or it stopped before its end.")
    bad = sum(1 for row in train if _number(row.get("loss")) is None)
    if bad:
        problems.append(f"{bad} of {len(train)} training rows have a loss that is not a finite number.")
    recipe = run_folder / "recipe.yaml"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = _charts(train, evals)
    page = environment.get_template("report.html.j2").render(
        name=run_folder.resolve().name,
        problems=problems,
        tiles=_tiles(summary, train, evals),
        charts=charts,
        readout=[chart.readout for chart in charts],
        size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        recipe=recipe.read_text("utf-8", errors="replace") if recipe.is_file() else None,
        summary=[(str(key), _plain(value)) for key, value in summary.items()],
        sources=_sources(summary),
        samples=[_sample(row) for row in samples[:MOST_SAMPLES]],
        sample_count=len(samples),
        marks=[(when, *_marks(samples, f"match_{when}")) for when in ("before", "after")],
    )
    path = run_folder / "report.html"
    write_file(path, page)
    return path


def _read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. Half a line, as a killed run leaves it, is counted and skipped."""
    if not path.is_file():
        return []
    rows, skipped = [], 0
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            skipped += 1
    if skipped:
        problems.append(f"{path.name}: {skipped} {'line' if skipped == 1 else 'lines'} could not be read.")
    return rows


def _read_summary(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        problems.append("summary.json could not be read.")
        return {}
    return value


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def _short(value: float) -> str:
    """At most four figures: 0.0002 is 2e-4, 12345 is 12,345."""
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        digits, power = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value / 1e6:,.2f} M" if abs(value) < 1e9 else f"{value:.3g}"


def _sources(summary: dict) -> list[list[str]]:
    """A row for each source of the training data, where there are several: name, weight, passes, rows, tokens."""
    data = summary.get("data")
    found = data.get("sources") if isinstance(data, dict) else None
    rows = []
    for one in [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []:
        held = one.get("counts")
        counts = held if isinstance(held, dict) else {}
        figures = (one.get("weight"), one.get("passes"), *(counts.get(key) for key in ("rows", "examples", "tokens")))
        rows.append([_plain(one.get("source")), *(_figure(figure) for figure in figures)])
    return rows


def _figure(value: object) -> str:
    number = _number(value)
    return "" if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tiles(summary: dict, train: list[dict], evals: list[dict]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the figures that exist."""

    def known(key: str, rows: list[dict], row_key: str) -> float | None:
        last = next((row[row_key] for row in reversed(rows) if row_key in row), None)
        return _number(summary.get(key, last))

    after, before = known("eval_loss", evals, "loss"), _number(summary.get("eval_loss_before"))
    tiles: list[tuple[str, str, str]] = []

    def add(label: str, value: float | None, remark: str = "", text: str | None = None) -> None:
        if value is not None:
            tiles.append((label, text or _short(value), remark))

    match, match_before = _number(summary.get("exact_match_after")), _number(summary.get("exact_match_before"))
    if match is not None:
        of = f"of {summary['held_out']} held out" if "held_out" in summary else ""
        was = f"{match_before:.1%} before" if match_before is not None else ""
        add("Exact match", match, ", ".join(filter(None, (of, was))), f"{match:.1%}")
    add("Training loss", known("train_loss", train, "loss"), "" if "train_loss" in summary else "at the last row")
    add("Validation loss", after, f"{_short(before)} before" if before is not None else "")
    if after is not None and after < 50:
        was = f"{_short(math.exp(before))} before" if before is not None and before < 50 else ""
        add("Perplexity", math.exp(after), was)
    add("Tokens", _number(summary.get("tokens", _total(train, "tokens"))))
    seconds = _number(summary.get("seconds", _total(train, "seconds")))
    compiling = _number(summary.get("compile_seconds"))
    add("Time", seconds, f"{compiling:.0f} s of it compiling" if compiling else "", _duration(seconds or 0))
    add("Tokens per second", known("tokens_per_second", train, "tokens_per_second"))
    peak = known("peak_rss_bytes", train, "peak_rss_bytes")
    add("Peak memory", peak, "", f"{(peak or 0) / GIB:.2f} GiB")
    trainable, everything = _number(summary.get("trainable_parameters")), _number(summary.get("parameters"))
    share = f"{trainable / everything:.2%} of {_short(everything)}" if trainable and everything else ""
    add("Trainable parameters", trainable, share)
    return tiles


def _total(rows: list[dict], key: str) -> float | None:
    values = [value for row in rows if (value := _number(row.get(key))) is not None]
    return math.fsum(values) if values else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _sample(row: dict) -> dict[str, Any]:
    """A before/after pair as text; `mark_*` is True, False, or None where nobody judged it."""
    keys = ("prompt", "reference", "before", "after")
    texts = {key: None if row.get(key) is None else _plain(row[key]) for key in keys}
    marks = {f"mark_{when}": _mark(row.get(f"match_{when}")) for when in ("before", "after")}
    return {**texts, **marks}


def _mark(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _marks(samples: list[dict], key: str) -> tuple[int, int]:
    """(right, judged) over all samples."""
    judged = [value for row in samples if (value := _mark(row.get(key))) is not None]
    return sum(judged), len(judged)


def _charts(train: list[dict], evals: list[dict]) -> list[Chart]:
    loss = _points(train, "loss")
    accuracy = _points(evals, "token_accuracy")
    every = [
        _chart(
            "Loss",
            [
                Curve("each step", loss, "raw"),
                Curve("smoothed", _smoothed(loss)),
                Curve("validation", _points(evals, "loss"), "second", dots=True),
            ],
            from_zero=False,
        ),
        _chart("Learning rate", [Curve("learning rate", _points(train, "learning_rate"))]),
        _chart("Gradient norm", [Curve("gradient norm", _points(train, "grad_norm"))]),
        _chart("Tokens per second", [Curve("tokens/s", _points(train, "tokens_per_second"))]),
        _chart(
            "Memory, GiB",
            [
                Curve("resident", _points(train, "rss_bytes", GIB)),
                Curve("peak so far", _points(train, "peak_rss_bytes", GIB), "second"),
            ],
        ),
        _chart("Validation token accuracy", [Curve("accuracy", accuracy, "second", dots=True)], from_zero=False),
    ]
    return [chart for chart in every if chart is not None]


def _points(rows: Iterable[dict], key: str, divisor: float = 1.0) -> list[Point]:
    """(step, value) of the rows that have both; a value that is not finite becomes None, a gap in the curve."""
    found: list[Point] = []
    for row in rows:
        step = _number(row.get("step"))
        if step is not None and key in row:
            value = _number(row[key])
            found.append((step, None if value is None else value / divisor))
    stride = -(-len(found) // MOST_POINTS)
    return found if stride <= 1 else found[:-1:stride] + found[-1:]


def _smoothed(points: Sequence[Point]) -> list[Point]:
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


def _chart(title: str, curves: list[Curve], *, from_zero: bool = True) -> Chart | None:
    """The chart with its geometry, or None where there is nothing to draw."""
    curves = [curve for curve in curves if any(y is not None for _, y in curve.points)]
    steps = [x for curve in curves for x, _ in curve.points]
    values = [y for curve in curves for _, y in curve.points if y is not None]
    if not values:
        return None
    x_ticks = _ticks(min(steps), max(steps), whole=True)
    y_ticks = _ticks(min(0.0, *values) if from_zero else min(values), max(values))
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
            placed.append((across, down, f"{x:g}", _short(y)))
        dots = [(across, down) for across, down, *_ in placed] if curve.dots or len(placed) == 1 else []
        drawn.append((curve, path, dots))
        readout.append({"name": curve.name, "points": placed})
    return Chart(
        title,
        curves,
        _describe(title, curves),
        x_ticks=[(place(tick, y_low)[0], _short(tick)) for tick in x_ticks if x_low <= tick <= x_high],
        y_ticks=[(place(x_low, tick)[1], _short(tick)) for tick in y_ticks],
        drawn=drawn,
        readout=readout,
    )


def _describe(title: str, curves: list[Curve]) -> str:
    """One sentence for those who cannot see the drawing."""
    parts = []
    for curve in curves:
        known = [(x, y) for x, y in curve.points if y is not None]
        (x0, y0), (x1, y1) = known[0], known[-1]
        parts.append(f"{curve.name} {_short(y0)} at step {x0:g}, {_short(y1)} at step {x1:g}")
    return f"{title} over steps: {'; '.join(parts)}."


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
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
