"""The run report: one HTML file that shows how a run went, from the files in its folder.

Everything is inside the file (styles, drawings, a few lines of script for the read-out), so it opens from a disk, a
mail or an archive without a network. The curves are SVG whose geometry is computed here; `report.html.j2` only writes
it down. A run that is still going, that stopped, or that diverged has a report too: what is missing is left out.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorikeet.base.files import write_file
from lorikeet.train.certificates import certificates
from lorikeet.train.charts import SIZE, Chart, Curve, make_chart, number, points_of, short, smooth
from lorikeet.train.run_files import RunFiles, read_run
from lorikeet.train.status import starts_of

GIB = 1 << 30
MOST_SAMPLES = 50
_HELD = {"frozen": "frozen weights", "trained": "trained tensors", "optimizer": "the optimizer's states of them"}


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder from its metrics.jsonl, summary.json, status.json, recipe.yaml and
    samples.jsonl, and from the certificates in it and beside it.

    Each of these may be missing or cut off. Raises OutputError where the folder itself does not exist."""
    files = read_run(run_folder)
    recipe, charts = run_folder / "recipe.yaml", _charts(files)
    samples = files.samples
    shown = {
        "name": run_folder.resolve().name,
        "problems": files.problems + _problems(files),
        "tiles": _tiles(files.summary, files.train, files.evals),
        "charts": charts,
        "readout": [chart.readout for chart in charts],
        "size": SIZE,
        "held": _held(files.status),
        "recipe": recipe.read_text("utf-8", errors="replace") if recipe.is_file() else None,
        "summary": [(str(key), _plain(value)) for key, value in files.summary.items()],
        "sources": _sources(files.summary),
        "samples": [_sample(row) for row in samples[:MOST_SAMPLES]],
        "sample_count": len(samples),
        "marks": [(when, *_marks(samples, f"match_{when}")) for when in ("before", "after")],
        "certificates": certificates(run_folder),
    }
    path = run_folder / "report.html"
    write_file(path, page("report.html.j2", shown))
    return path


def page(template: str, shown: dict[str, Any]) -> str:
    """An HTML page from a template of this folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(shown)


def _problems(files: RunFiles) -> list[str]:
    """Lines that stand above everything else."""
    found = []
    state, why = files.state()
    if files.summary.get("ended_by"):
        remedy = files.summary.get("go_on")
        found.append(
            f"A limit ended the run: {files.summary['ended_by']}." + (f" To go on: {remedy}" if remedy else "")
        )
    elif not files.summary:
        said = {"killed": "was killed; the same command goes on from its last checkpoint", "running": "is still going"}
        said |= {"failed": f"failed: {why}", "stopped": f"stopped: {why}"} if why else {}
        found.append(
            f"There is no summary yet: the run {said.get(state, 'is still going, or it stopped before its end')}."
        )
    rows = files.train
    bad = sum(1 for row in rows if number(row.get("loss")) is None)
    if bad:
        found.append(f"{bad} of {len(rows)} training rows have a loss that is not a finite number.")
    return found


def _held(status: dict) -> list[tuple[str, str]]:
    """(what, GiB or MiB) of the tensors that stay from step to step."""
    held = status.get("held_bytes")
    rows = (
        [(_HELD.get(name, str(name)), number(value)) for name, value in held.items()] if isinstance(held, dict) else []
    )
    return [(name, _size(value)) for name, value in rows if value]


def _size(value: float) -> str:
    return f"{value / GIB:.2f} GiB" if value >= GIB / 10 else f"{value / (1 << 20):.1f} MiB"


def _sources(summary: dict) -> list[tuple[list[str], float | None]]:
    """A row for each source of the training data, where there are several: name, weight, passes, rows, examples,
    tokens; with its share of the tokens of an epoch."""
    data = summary.get("data")
    found = data.get("sources") if isinstance(data, dict) else None
    rows, tokens = [], []
    for one in [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []:
        held = one.get("counts")
        counts = held if isinstance(held, dict) else {}
        figures = (one.get("weight"), one.get("passes"), *(counts.get(key) for key in ("rows", "examples", "tokens")))
        rows.append([_plain(one.get("source")), *(_figure(figure) for figure in figures)])
        seen, passes = number(counts.get("tokens")), number(one.get("passes"))
        tokens.append(None if seen is None else seen * (1.0 if passes is None else passes))
    total = math.fsum(one for one in tokens if one is not None)
    return [(row, None if one is None or not total else one / total) for row, one in zip(rows, tokens)]


def _figure(value: object) -> str:
    found = number(value)
    return "" if found is None else f"{found:,.0f}" if found >= 100 else f"{found:.3g}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tiles(summary: dict, train: list[dict], evals: list[dict]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the figures that exist."""

    def known(key: str, rows: list[dict], row_key: str) -> float | None:
        last = next((row[row_key] for row in reversed(rows) if row_key in row), None)
        return number(summary.get(key, last))

    after, before = known("eval_loss", evals, "loss"), number(summary.get("eval_loss_before"))
    tiles: list[tuple[str, str, str]] = []

    def add(label: str, value: float | None, remark: str = "", text: str | None = None) -> None:
        if value is not None:
            # a number and its unit stay on one line, however narrow the tile
            tiles.append((label, re.sub(r"(?<=\d) (?=[^\d\s])", "\xa0", text or short(value)), remark))

    match, match_before = number(summary.get("exact_match_after")), number(summary.get("exact_match_before"))
    if match is not None:
        of = f"of {summary['held_out']} held out" if "held_out" in summary else ""
        was = f"{match_before:.1%} before" if match_before is not None else ""
        add("Exact match", match, ", ".join(filter(None, (of, was))), f"{match:.1%}")
    add("Training loss", known("train_loss", train, "loss"), "" if "train_loss" in summary else "at the last row")
    add("Validation loss", after, f"{short(before)} before" if before is not None else "")
    if after is not None and after < 50:
        was = f"{short(math.exp(before))} before" if before is not None and before < 50 else ""
        add("Perplexity", math.exp(after), was)
    add("Tokens", number(summary.get("tokens", _total(train, "tokens"))))
    seconds = number(summary.get("seconds", _total(train, "seconds")))
    compiling = number(summary.get("compile_seconds"))
    add("Time", seconds, f"{compiling:.0f} s of it compiling" if compiling else "", _duration(seconds or 0))
    add("Tokens per second", known("tokens_per_second", train, "tokens_per_second"))
    peak = known("peak_rss_bytes", train, "peak_rss_bytes")
    add("Peak memory", peak, "", f"{(peak or 0) / GIB:.2f} GiB")
    trainable, everything = number(summary.get("trainable_parameters")), number(summary.get("parameters"))
    share = f"{trainable / everything:.2%} of {short(everything)}" if trainable and everything else ""
    add("Trainable parameters", trainable, share)
    return tiles


def _total(rows: list[dict], key: str) -> float | None:
    values = [value for row in rows if (value := number(row.get(key))) is not None]
    return math.fsum(values) if values else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _sample(row: dict) -> dict[str, Any]:
    """A prompt with its answers in the order of time: (label, text, whether it is right; None where nobody judged)."""
    answers = [("Before", row.get("before"), _mark(row.get("match_before")))]
    during = row.get("at")
    steps = during.items() if isinstance(during, dict) else ()
    known = sorted((int(step), text) for step, text in steps if re.fullmatch(r"\d{1,12}", str(step)))
    answers += [(f"At step {step}", text, None) for step, text in known]
    answers += [("After", row.get("after"), _mark(row.get("match_after"))), ("Reference", row.get("reference"), None)]
    told = [(label, _plain(text), mark) for label, text, mark in answers if text is not None]
    return {"prompt": None if row.get("prompt") is None else _plain(row["prompt"]), "answers": told}


def _mark(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _marks(samples: list[dict], key: str) -> tuple[int, int]:
    """(right, judged) over all samples."""
    judged = [value for row in samples if (value := _mark(row.get(key))) is not None]
    return sum(judged), len(judged)


def _charts(files: RunFiles) -> list[Chart]:
    train, evals, again = files.train, files.evals, starts_of(files.status)
    loss, accuracy = points_of(train, "loss"), points_of(evals, "token_accuracy")
    losses = [
        Curve("each step", loss, "raw"),
        Curve("smoothed", smooth(loss)),
        Curve("validation", points_of(evals, "loss"), "second", dots=True),
    ]
    every = [
        make_chart("Loss", losses, from_zero=False, marks=again),
        make_chart("Learning rate", [Curve("learning rate", points_of(train, "learning_rate"))], marks=again),
        make_chart("Gradient norm", [Curve("gradient norm", points_of(train, "grad_norm"))], marks=again),
        make_chart("Tokens per second", [Curve("tokens/s", points_of(train, "tokens_per_second"))], marks=again),
        make_chart("Memory by kind, GiB", _memory(train), marks=again),
        make_chart(
            "Validation token accuracy",
            [Curve("accuracy", accuracy, "second", dots=True)],
            from_zero=False,
            marks=again,
        ),
    ]
    return [chart for chart in every if chart is not None]


def _memory(train: list[dict]) -> list[Curve]:
    """What the process holds over time: the pages of its own and those of files, which the system can take back."""
    return [
        Curve("resident", points_of(train, "rss_bytes", GIB)),
        Curve("of it mapped files", points_of(train, "rss_file_bytes", GIB), "third"),
        Curve("swapped out", [(step, value) for step, value in points_of(train, "swap_bytes", GIB) if value], "raw"),
        Curve("on the device", points_of(train, "device_bytes", GIB), "fourth"),
        Curve("peak so far", points_of(train, "peak_rss_bytes", GIB), "second"),
    ]
