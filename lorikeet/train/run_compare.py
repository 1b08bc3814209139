"""`lorikeet runs compare A B`: where two recipes differ, what each run came to, and their curves side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lorikeet.base.errors import OutputError
from lorikeet.base.files import write_file
from lorikeet.train.charts import HEIGHT, SIZE, WIDTH, Chart, Curve, make_chart, number, points_of, short, smooth
from lorikeet.train.report import page
from lorikeet.train.run_files import RunFiles, read_started
from lorikeet.train.run_list import facts, in_units

GIB = 1 << 30
MOST_ROWS = 12  # of the text table of curves
# (name, key of summary.json); the rest of the figures stand in the runs' own reports
_FIGURES = ("eval_loss", "eval_loss_before", "train_loss", "token_accuracy", "tokens", "seconds", "tokens_per_second")
_COLOURS = {"main": "#1f5fbf", "second": "#b3470b"}  # of a drawing on white


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Everything that is shown, for programs: {"runs", "recipe", "figures", "curves"}. Raises OutputError for a folder
    that is no run's."""
    both = read_started(first), read_started(second)
    curves: dict[str, Any] = {}
    for name, key in (("loss", "train"), ("eval_loss", "eval")):
        found = [dict(points_of(files.train if key == "train" else files.evals, "loss")) for files in both]
        steps = sorted(set(found[0]) | set(found[1]))
        curves[name] = [[step, found[0].get(step), found[1].get(step)] for step in steps]
    recipes = [_leaves(files.recipe) for files in both]
    keys = dict.fromkeys((*recipes[0], *recipes[1]))
    differing = [key for key in keys if key != "output_dir" and recipes[0].get(key) != recipes[1].get(key)]
    return {
        "runs": [facts(files) for files in both],
        "recipe": {key: [recipes[0].get(key), recipes[1].get(key)] for key in differing},
        "figures": _figures(both),
        "curves": curves,
    }


def text(found: Mapping[str, Any]) -> list[str]:
    """Three tables for a terminal: the recipes' differences, the figures, and the losses at some steps."""
    names = _names(found)
    lines = _aligned([("recipe", *names), *((key, *map(_said, pair)) for key, pair in found["recipe"].items())])
    if not found["recipe"]:
        lines = ["The recipes are the same."]
    lines += [
        "",
        *_aligned(
            [
                ("figure", *names),
                *((key.replace("_", " "), *map(_figure, pair)) for key, pair in found["figures"].items()),
            ]
        ),
    ]
    rows = _some(found["curves"]["loss"])
    if rows:
        lines += ["", *_aligned([("step", *(f"{name} loss" for name in names)), *map(_curve_row, rows)])]
    held_out = _some(found["curves"]["eval_loss"])
    if held_out:
        heads = ("step", *(f"{name} validation loss" for name in names))
        lines += ["", *_aligned([heads, *map(_curve_row, held_out)])]
    return lines


def plot(found: Mapping[str, Any], first: Path, second: Path, path: Path) -> None:
    """Draw both runs' curves: a page with all of them (.html), or the losses as one drawing (.svg)."""
    if path.suffix not in (".html", ".svg"):
        raise OutputError(f"--plot: cannot draw a '{path.suffix or path.name}'", given=path, allowed=".html or .svg")
    charts = _charts(found, read_started(first), read_started(second))
    if not charts:
        raise OutputError("--plot: there is nothing to draw", given=f"{first} and {second}", allowed="runs with steps")
    if path.suffix == ".svg":
        write_file(path, _svg(charts[0]))
        return
    shown = {
        "names": _names(found),
        "charts": charts,
        "readout": [chart.readout for chart in charts],
        "size": SIZE,
        "recipe": [(key, *map(_said, pair)) for key, pair in found["recipe"].items()],
        "figures": [(key.replace("_", " "), *map(_figure, pair)) for key, pair in found["figures"].items()],
    }
    write_file(path, page("compare.html.j2", shown))


def _charts(found: Mapping[str, Any], first: RunFiles, second: RunFiles) -> list[Chart]:
    both = list(zip(_names(found), (first, second), ("main", "second")))

    def of(title: str, key: str, kind: str = "train", divisor: float = 1.0, *, from_zero: bool = True) -> Chart | None:
        curves = []
        for name, files, look in both:
            points = points_of(files.train if kind == "train" else files.evals, key, divisor)
            drawn = smooth(points) if key == "loss" and kind == "train" else points
            curves.append(Curve(name, drawn, look, dots=kind == "eval"))
        return make_chart(title, curves, from_zero=from_zero)

    every = [
        of("Loss, smoothed", "loss", from_zero=False),
        of("Validation loss", "loss", "eval", from_zero=False),
        of("Validation token accuracy", "token_accuracy", "eval", from_zero=False),
        of("Learning rate", "learning_rate"),
        of("Gradient norm", "grad_norm"),
        of("Tokens per second", "tokens_per_second"),
        of("Resident memory, GiB", "rss_bytes", divisor=GIB),
    ]
    return [chart for chart in every if chart is not None]


def _svg(chart: Chart) -> str:
    """One chart as a file of its own, dark on white."""
    put = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 24}" width="{2 * WIDTH}" '
        f'height="{2 * (HEIGHT + 24)}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(chart.description)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/><g transform="translate(0 24)">',
    ]
    for y, label in chart.y_ticks:
        put.append(f'<path d="M{SIZE["left"]} {y}H{WIDTH - SIZE["right"]}" stroke="#ddd"/>')
        put.append(f'<text x="{SIZE["left"] - 6}" y="{y + 4}" text-anchor="end" fill="#555">{escape(label)}</text>')
    for x, label in chart.x_ticks:
        put.append(f'<text x="{x}" y="{HEIGHT - 18}" text-anchor="middle" fill="#555">{escape(label)}</text>')
    for curve, path, dots in chart.drawn:
        colour = _COLOURS[curve.look]
        put.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        put += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
    put.append("</g>")
    for i, curve in enumerate(chart.curves):
        put.append(
            f'<text x="{SIZE["left"]}" y="{12 + 12 * i}" fill="{_COLOURS[curve.look]}">{escape(curve.name)}</text>'
        )
    return "\n".join([*put, "</svg>"]) + "\n"


def _figures(both: Sequence[RunFiles]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"state": [files.state()[0] for files in both]}
    told = [facts(files) for files in both]
    found["step"] = [one["step"] for one in told]
    found["best"] = [f"{one['best']['name']} {one['best']['value']:.4g}" if one["best"] else None for one in told]
    for key in _FIGURES:
        pair = [number(files.summary.get(key)) for files in both]
        if pair != [None, None]:
            found[key] = pair
    peaks = [number(files.summary.get("peak_rss_bytes")) for files in both]
    peaks = [peak or max((number(row.get("peak_rss_bytes")) or 0 for row in files.train), default=0) or None
             for peak, files in zip(peaks, both)]  # fmt: skip
    found["peak memory"] = [in_units(peak) if peak else None for peak in peaks]
    found["size on disk"] = [in_units(one["size_bytes"]) for one in told]
    return found


def _names(found: Mapping[str, Any]) -> list[str]:
    """The folders' own names, or the whole paths where those are the same."""
    paths = [Path(one["run"]) for one in found["runs"]]
    short_names = [path.resolve().name for path in paths]
    return short_names if len(set(short_names)) == len(short_names) else [str(path) for path in paths]


def _leaves(values: Any, key: str = "") -> dict[str, Any]:
    """The plain values of a recipe by dotted key; a list is one value."""
    if not isinstance(values, dict):
        return {key: values}
    found: dict[str, Any] = {}
    for name, below in values.items():
        found |= _leaves(below, f"{key}.{name}" if key else str(name))
    return found


def _some(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """At most MOST_ROWS of them, evenly, with first and last; of those where both have a value, if there are."""
    common = [row for row in rows if row[1] is not None and row[2] is not None] or list(rows)
    if len(common) <= MOST_ROWS:
        return common
    return [common[round(i * (len(common) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]


def _curve_row(row: Sequence[Any]) -> tuple[str, ...]:
    return (f"{row[0]:g}", *("-" if value is None else f"{value:.4f}" for value in row[1:]))


def _said(value: Any) -> str:
    said = "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def _figure(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else short(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
