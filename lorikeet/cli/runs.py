"""Commands about runs that are there: runs, runs compare, runs watch, runs stop, runs resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lorikeet.cli import _command

if TYPE_CHECKING:
    from lorikeet.train.run_files import RunFiles

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]
_CODES = {"finished": 0, "stopped": 3, "failed": 1, "killed": 1}


class _Runs(TyperGroup):
    """`runs FOLDER...` is `runs list FOLDER...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        found: list[str] = super().parse_args(ctx, args if named else ["list", *args])
        return found


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    said = "List runs, compare them, watch, stop and resume them."
    group = typer.Typer(cls=_Runs, rich_markup_mode=None, help=said)
    _command.add(group, listed, "list", "lorikeet runs")
    _command.add(group, compare, "compare", "lorikeet runs compare runs/a runs/b --plot curves.html")
    _command.add(group, watch, "watch", "lorikeet runs watch runs/first")
    _command.add(group, stop, "stop", "lorikeet runs stop runs/first")
    _command.add(group, resume, "resume", "lorikeet runs resume runs/first --detach")
    app.add_typer(group, name="runs")


def listed(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Runs, or folders with runs below.", show_default="runs, else ."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List runs with their state, step, best figure and size: `lorikeet runs [FOLDER]...` for short."""
    from lorikeet.base.errors import OutputError, nearest
    from lorikeet.base.log import note
    from lorikeet.train.run_list import list_runs, table

    asked = folders or [Path("runs") if Path("runs").is_dir() else Path()]
    near = nearest(str(asked[0]), ("list", "compare", "watch", "stop", "resume"))
    if near and not asked[0].exists():
        raise OutputError(
            f"there is no folder '{asked[0]}', nor such a command", given=asked[0], try_=f"lorikeet runs {near}"
        )
    found = list_runs(asked)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif found:
        for line in table(found):
            typer.echo(line)
    else:
        note(f"no run in {' '.join(map(str, asked))} or three folders below")


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another one.", show_default=False)],
    *,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the curves: a page (.html), or the losses alone (.svg).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show two runs beside each other: where their recipes differ, what they came to, their curves."""
    from lorikeet.train import run_compare

    found = run_compare.compare(first, second)
    if plot is not None:
        run_compare.plot(found, first, second, plot)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in run_compare.text(found):
        typer.echo(line)


def watch(run: RunFolder) -> None:
    """Follow a run's figures as they come. Ctrl-C ends the watching and leaves the run alone.

    Exit code 0 where the run finished, 3 where it stopped, 1 where it failed or was killed."""
    from lorikeet.base.log import note
    from lorikeet.train.run_files import read_run, read_started
    from lorikeet.train.run_follow import LAST, follow, line
    from lorikeet.train.status import read_status

    read_started(run)
    most = LAST
    try:
        for rows in follow(run):
            steps = read_status(run).get("steps") if rows else None
            for row in rows[-most:] if most else rows:
                if said := line(row, steps if isinstance(steps, int) else None):
                    typer.echo(said)
            most = 0
    except KeyboardInterrupt:
        note(f"the run goes on; lorikeet runs stop {run} would end it")
        return
    files = read_run(run)
    state, why = files.state()
    note(f"{state}" + (f": {why}" if why else "") + (_remedy(files) if state in ("stopped", "killed") else ""))
    raise typer.Exit(_CODES.get(state, 1))


def stop(
    run: RunFolder,
    *,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until it has saved.")] = False,
) -> None:
    """Ask a running run to end its step, save and stop. It goes on with `runs resume`."""
    from lorikeet.base.log import note
    from lorikeet.cli import _process
    from lorikeet.train.run_files import read_run, read_started

    read_started(run)
    _process.stop(run, wait=not no_wait)
    if not no_wait:
        files = read_run(run)
        state, _ = files.state()
        note(state + (_remedy(files) if state != "finished" else ""))


def resume(
    run: RunFolder,
    *,
    detached: Annotated[bool, typer.Option("--detach", help="In a process that outlives the terminal.")] = False,
) -> None:
    """Go on with a run that was stopped or killed, by the recipe in its folder."""
    from lorikeet.base.errors import OutputError
    from lorikeet.cli.run import train_detached, train_here
    from lorikeet.train.run_files import RECIPE, read_started

    files = read_started(run)
    state, _ = files.state()
    folder, place = run.resolve(), files.status.get("working_directory")
    if state == "running":
        raise OutputError(f"the run in {run} is running", given=str(run), try_=f"lorikeet runs watch {run}")
    if state == "finished":
        raise OutputError(
            f"the run in {run} is finished",
            given=str(run),
            allowed="a run that was stopped or killed",
            try_=f"lorikeet report {run}",
        )
    if not (run / RECIPE).is_file():
        raise OutputError(f"{run} has no {RECIPE}", given=str(run), try_="lorikeet train RECIPE, with its own recipe")
    if isinstance(place, str) and Path(place).is_dir():
        os.chdir(place)  # what its recipe says of files was meant from there
    with _command.loaded(folder / RECIPE, []) as loaded:
        if loaded.output_dir.resolve() != folder:  # the folder was moved
            loaded = loaded.model_copy(update={"output_dir": folder})
        if detached:
            train_detached(["runs", "resume", str(folder)], folder)
        else:
            train_here(loaded, overwrite=False)


def _remedy(files: RunFiles) -> str:
    """How to go on. By the recipe in its folder a run that met a limit would meet it again at once, but for time."""
    ended, go_on = (str(files.summary.get(name, "")) for name in ("ended_by", "go_on"))
    if go_on and not ended.startswith("limits.time"):
        return f"; {go_on}"
    return f"; to go on: lorikeet runs resume {files.folder}"
