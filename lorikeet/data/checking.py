"""Runs the checks over rows, and says what they found: for a terminal, or as JSON."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.kinds import family_files, file_class, kinds
from lorikeet.data.checks._contract import Check, Finding, Level, Row, Setting
from lorikeet.data.walk import Walked

PACKAGE = "lorikeet.data.checks"
MOST_KEPT = 10_000  # findings of a check that are kept with their rows; all are counted


@dataclass
class Found:
    """What one check found."""

    name: str
    kind: type[Check]
    findings: list[tuple[Level, Finding]] = field(default_factory=list)
    counts: Counter[Level] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)

    def take(self, findings: Iterable[Finding]) -> None:
        """Count the findings, and keep the first of them."""
        for one in findings:
            level = one.level or self.kind.level
            self.counts[level] += 1
            if len(self.findings) < MOST_KEPT:
                self.findings.append((level, one))


@dataclass
class Report:
    """What all checks found."""

    checks: list[Found]
    not_run: list[str]  # names of checks that need a model
    rows: int = 0
    files: dict[str, int] = field(default_factory=dict)  # rows of each

    def count(self, level: Level) -> int:
        """How many findings of a level there are."""
        return sum(one.counts[level] for one in self.checks)

    def facts(self, name: str) -> dict[str, Any] | None:
        """The figures of the check `name`, where it ran."""
        return next((one.facts for one in self.checks if one.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """For --json: everything, a check at a time."""
        return {
            "rows": self.rows,
            "files": self.files,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "checks": {one.name: _told(one) for one in self.checks},
            "not_run": dict.fromkeys(self.not_run, "needs a model"),
        }


def _told(one: Found) -> dict[str, Any]:
    findings = [
        {
            "level": level,
            "file": finding.origin.file,
            "row": finding.origin.row,
            "line": finding.origin.line,
            "message": finding.message,
            "what": finding.what,
        }
        for level, finding in one.findings
    ]
    told: dict[str, Any] = {"errors": one.counts["error"], "warnings": one.counts["warning"]}
    told |= {"reason": one.kind.reason, "fix": one.kind.fix, "findings": findings}
    return told | ({"facts": one.facts} if one.facts else {})


def known() -> dict[str, type[Check]]:
    """All checks of the folder, by name."""
    return dict(zip(kinds(PACKAGE), family_files(PACKAGE, Check)))


def chosen(only: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, type[Check]]:
    """The checks to run: all, or `only` these (a .py file is someone's own); never those in `without`.

    Raises RecipeError for a name that is no check's."""
    every = known()
    for name in (*only, *without):
        if name not in every and not name.endswith(".py"):
            raise RecipeError(
                f"there is no check '{name}'",
                given=name,
                allowed=" ".join(every) + "  (or a path to your own .py file)",
                try_=nearest(name, every),
            )
    own = {Path(name).stem: file_class(Path(name), Check) for name in only if name.endswith(".py")}
    names = {name: every[name] for name in every if name in only} | own if only else every
    return {name: kind for name, kind in names.items() if name not in without}


def run(rows: Iterable[Walked], checks: dict[str, type[Check]], setting: Setting) -> Report:
    """Ask every check about every row, then about all of them."""
    runs = {name: kind for name, kind in checks.items() if setting.encoder is not None or not kind.needs_model}
    found = [Found(name, kind) for name, kind in runs.items()]
    asked = [one.kind(setting) for one in found]
    report = Report(found, [name for name in checks if name not in runs])
    for walked in rows:
        row = Row(walked, setting.encoder)
        if walked.raw is not None:
            report.rows += 1
            report.files[walked.origin.file] = report.files.get(walked.origin.file, 0) + 1
        for one, check in zip(found, asked):
            one.take(check.row(row))
    for one, check in zip(found, asked):
        one.take(check.end())
        one.facts = check.facts()
    return report


def as_text(report: Report, most: int) -> Iterator[str]:
    """The report as lines; of each check the first `most` findings."""
    for one in sorted(report.checks, key=lambda one: (-one.counts["error"], -one.counts["warning"])):
        if not one.findings:
            continue
        counts = ", ".join(_plural(one.counts[level], level) for level in ("error", "warning") if one.counts[level])
        yield f"{one.name}: {counts}"
        for level, finding in one.findings[:most]:
            message = f" message {finding.message}" if finding.message is not None else ""
            # a line alone is what editors jump to; the row is what `data show --row` takes
            line = f" (line {finding.origin.line})" if finding.origin.line is not None else ""
            yield f"  {level:<7}  {finding.origin.file} row {finding.origin.row}{line}{message}: {finding.what}"
        if (more := sum(one.counts.values()) - most) > 0:
            yield f"  ... and {more:,} more"
        yield f"  why  {one.kind.reason}"
        yield f"  fix  {one.kind.fix}"
        yield ""


def closing(report: Report) -> str:
    """The last line."""
    ran = f"{len(report.checks)} checks"
    if report.not_run:
        ran += f" ({len(report.not_run)} more with a model: {' '.join(report.not_run)})"
    counted = f"{_plural(report.count('error'), 'error')}, {_plural(report.count('warning'), 'warning')}"
    return f"{_plural(report.rows, 'row')} of {_plural(len(report.files), 'file')}, {ran}: {counted}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def described() -> Iterator[tuple[str, str, str, str]]:
    """(name, level, what it looks for, whether it needs a model) of every check, for the documentation."""
    for name, kind in known().items():
        module = importlib.import_module(f"{PACKAGE}.{name}")
        assert module.__doc__
        yield name, kind.level, " ".join((inspect.getdoc(kind) or "").split()), "yes" if kind.needs_model else ""
