"""The command `lorikeet`: gathers the groups of commands, and turns what goes wrong into a message and an exit code.

Exit codes: 0 done, 1 failed or a check found errors, 2 the request was wrong, 3 stopped and resumable, 130 stopped.
Nothing heavy is imported here or in the groups until a command runs, so `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from lorikeet.base.errors import LorikeetError
from lorikeet.base.system_errors import as_ours
from lorikeet.cli import (
    _command,
    adapters,
    convert,
    data,
    doctor,
    export,
    init,
    migrate,
    model,
    models,
    plan,
    predict,
    quantize,
    recipe,
    run,
    runs,
    serve,
    verify,
)

app = typer.Typer(
    name="lorikeet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune a large language model on the machine you have, and prove that it worked.",
    epilog="First time here: lorikeet demo    Every command: lorikeet COMMAND --help",
)
# in the order of the help
for group in (
    doctor,
    init,
    plan,
    run,
    runs,
    model,
    predict,
    serve,
    verify,
    quantize,
    export,
    convert,
    models,
    adapters,
    migrate,
    recipe,
    data,
):
    group.register(app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"lorikeet {version('lorikeet-llm')}")
        raise typer.Exit


@app.callback()
def _lorikeet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


ANSWER = ("chat", "predict", "serve")
QUIET = 0.25  # processes that want to run, for each core


def main() -> None:
    """The console entry point."""
    how_threads_wait(sys.argv[1:])
    sys.exit(run_command(sys.argv[1:]))


def how_threads_wait(arguments: Sequence[str]) -> None:
    """It changes no result, and must be said before torch starts its threads.

    Threads that wait by spinning cost fifteen times the time as soon as another process is busy, so they wait asleep.
    But to wake one takes a while, and a reply's token has hundreds of small products: a command that answers lets
    them spin for a fraction of a millisecond, if the machine has nothing else to do when it starts."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments and arguments[0] in ANSWER and os.getloadavg()[0] < QUIET * (os.cpu_count() or 1):
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    debug = "--debug" in arguments
    try:
        result = app(list(arguments), prog_name="lorikeet", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LorikeetError as error:
        _show(str(error), debug)
        return error.exit_code
    except (_command.Stopped, KeyboardInterrupt, typer.Abort):
        _show("stopped", debug)
        return 130
    except BrokenPipeError:  # `lorikeet data show ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (known := as_ours(error)) is not None:
            _show(str(known), debug)
            return known.exit_code
        show = getattr(error, "show", None)
        if callable(show) and hasattr(error, "exit_code"):  # a usage error of the parser
            show()
            return int(error.exit_code)
        said = " ".join(str(error).split())[:300]
        hint = "" if debug else "\n  this is a fault of Lorikeet or of your machine; --debug shows the traceback"
        _show(f"{type(error).__name__}: {said}{hint}", debug)
        return 1


def _show(message: str, debug: bool) -> None:
    with contextlib.suppress(OSError):  # what is said may go to a full disk itself
        if debug:
            traceback.print_exc()
        print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
