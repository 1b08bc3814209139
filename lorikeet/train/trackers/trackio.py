"""trackio: a local database of runs with a page to look at them (`trackio show`), or a Hugging Face Space.

A run is found again by its name, which therefore ends in the run's id. What the database holds of it already, from
before a stop, is left out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from lorikeet.base.extras import require
from lorikeet.base.log import note
from lorikeet.train.trackers._contract import About, Row, Session, Tracker, scalars, step_of


class Trackio(Tracker):
    """trackio's local database ($TRACKIO_DIR, by default ~/.cache/huggingface/trackio): figures and the recipe."""

    kind: Literal["trackio"] = "trackio"
    project: str = Field("lorikeet", pattern=r"^[\w.-]+$", description="The project that the run belongs to.")
    name: str | None = Field(None, min_length=1, description="The run's name there; by default its folder's name.")
    space_id: str | None = Field(
        None, min_length=1, description="A Hugging Face Space to send the figures to; by default they stay here."
    )

    def check(self) -> None:
        _package()

    def start(self, about: About, past: Sequence[Row]) -> Session:
        return _Session(self, about, past)


def _package() -> Any:
    return require("trackio", extra="trackio", needed_by="train.report_to: trackio")


class _Session:
    def __init__(self, options: Trackio, about: About, past: Sequence[Row]):
        said = io.StringIO()  # it prints to standard output, which is for results
        with contextlib.redirect_stdout(said):
            self.run = _package().init(
                project=options.project,
                name=f"{options.name or about.name}-{about.id}",
                space_id=options.space_id,
                config=dict(about.recipe),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        _package().context_vars.current_run.set(None)  # or it would be finished once more at exit
        held = getattr(self.run, "_initial_last_step", None)  # of a run that it knows from before
        self.last_step = -1 if held is None else int(held)
        for row in past:
            self.row(row)
        if options.space_id is None:
            note(f"trackio: to look at it:  trackio show --project {options.project}")

    def row(self, row: Row) -> None:
        step = step_of(row)
        if step is not None and step > self.last_step and (found := scalars(row)):
            self.run.log(found, step=step)

    def close(self, *, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()
