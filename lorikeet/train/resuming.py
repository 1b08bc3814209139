"""Going on with a run: from its newest whole checkpoint, with the same things, and with its record as it stood there.

What the interrupted run wrote behind that checkpoint is forgotten, but for the links of its chain: those steps are done
again, and have to come to the same. They are kept in the row of kind `start` that every beginning and every going on
leaves in metrics.jsonl, so that a run that is stopped again and again still knows the farthest it has been.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorikeet.base.errors import CheckpointError
from lorikeet.base.log import note
from lorikeet.train.chain import DIFFERS, START, first_wrong, links
from lorikeet.train.metrics import Metrics
from lorikeet.train.optim import Stepper
from lorikeet.train.run import Progress, Run
from lorikeet.train.state import checkpoints, differing, latest_checkpoint, read_state, refuse_differing


def resume(run: Run, stepper: Stepper, fill: Callable[[Path], None], *, force: bool = False) -> Progress:
    """Put the newest whole checkpoint into the stepper and, by `fill`, into the model; the run's record ends there.

    A run without one begins. Raises CheckpointError where there are only damaged ones, RecipeError, with both sides,
    where the run's identity is another than it was, unless `force`: then it is written down."""
    metrics = Metrics(run.folder / "metrics.jsonl")
    rows, last = metrics.rows(), latest_checkpoint(run.folder)
    if last is None:
        if checkpoints(run.folder):
            raise CheckpointError(f"no checkpoint in {run.folder} is whole", try_="--overwrite to start anew")
        same = [row for row in rows if row.get("kind") == START][-1:]
        if not same or differing(same[0].get("identity", {}), _as_json(run.identity)):
            rows = []  # another run that came to no checkpoint: nothing of it holds
        _begin(run, metrics, rows, Progress(), {})
        return Progress()
    state, optimizer = read_state(last)
    found = differing(state["identity"], _as_json(run.identity))
    if not force:
        refuse_differing(found, last)
    fill(last)
    stepper.load_state_dict(optimizer)
    done = Progress(**state["progress"])
    _check_record(rows, done, metrics)
    note(f"going on from {last}")
    if found:
        note("forced: " + "; ".join(f"{name} is {now} and was {then}" for name, (now, then) in found.items())[:400])
    changed = {name: {"now": now, "before": then} for name, (now, then) in found.items()}
    _begin(run, metrics, rows, done, changed)
    return done


def forced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What --force-resume has let pass in a run: {step, and by name what it was and became}, for its summary."""
    return [{"step": row["step"], **row["forced"]} for row in rows if row.get("kind") == START and row.get("forced")]


def interrupted_identity(folder: Path) -> dict[str, Any]:
    """What the run that was last begun in this folder computed with; empty where there was none."""
    starts = [row for row in Metrics(folder / "metrics.jsonl").rows() if row.get("kind") == START]
    found = starts[-1].get("identity") if starts else None
    return found if isinstance(found, dict) else {}


def _begin(run: Run, metrics: Metrics, rows: list[dict[str, Any]], done: Progress, changed: Mapping[str, Any]) -> None:
    """The record as it was at `done`, and the row that says that the run begins or goes on."""
    kept = [row for row in rows if row.get("kind") in (START, DIFFERS) or row.get("step", 0) <= done.step]
    if done.step == run.steps:  # the last evaluation is done again
        kept = [row for row in kept if row.get("kind") != "eval" or row["step"] < run.steps]
    # what something else computed is nothing to be held against
    run.again = {} if changed else {step: link for step, link in links(rows).items() if step > done.step}
    row: dict[str, Any] = {
        "kind": START,
        "step": done.step,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "identity": _as_json(run.identity),
    }
    row |= {"again": run.again} if run.again else {}
    row |= {"forced": changed} if changed else {}
    if done.step == 0:
        kept = []  # with the first evaluation, which is done again
    told = (found for found in kept if found.get("kind") == DIFFERS)
    run.differed = next(({name: value for name, value in one.items() if name != "kind"} for one in told), None)
    metrics.keep([*kept, row])


def _check_record(rows: list[dict[str, Any]], done: Progress, metrics: Metrics) -> None:
    wrong = first_wrong(rows, done.step, done.chain)
    if wrong is not None:
        note(
            f"{metrics.path} is not as the run wrote it: what it says of step {wrong} does not follow from the steps "
            "before. The checkpoint is whole, so training is not touched by it"
        )


def _as_json(identity: dict[str, Any]) -> dict[str, Any]:
    """As state.json gives it back."""
    read: dict[str, Any] = json.loads(json.dumps(identity))
    return read
