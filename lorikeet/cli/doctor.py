"""The command doctor: what this machine can do, and what stands in its way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lorikeet.cli import _command

_GIB = 1 << 30


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, doctor, "doctor", "lorikeet doctor --json")


def doctor(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where runs would be written.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say what this machine has and what to do about it. Times a matmul per dtype, which takes about two seconds."""
    from lorikeet.plan import checkup

    found = checkup.examine(output)
    told = checkup.advice(found)
    if json:
        from json import dumps

        typer.echo(dumps({**found, "advice": told}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), expand=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, line in _lines(found):
        table.add_row(name, Text(line))
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for line in told or ["nothing stands in the way"]:
        console.print(Text(f"! {line}" if told else line, style="yellow" if told else "green"))


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, figures) of each line; the name stands only where it is another than above."""
    cpu, memory = found["machine"], found["memory"]
    yield "system", cpu["system"]
    yield "cpu", cpu["cpu"]
    of_all = "" if cpu["usable_cores"] == cpu["cores"] else f" of {cpu['cores']}"
    yield "", f"{cpu['usable_cores']}{of_all} cores; {' '.join(cpu['features']) or 'features unknown'}"
    limit = memory["cgroup_limit_bytes"]
    yield (
        "memory",
        f"{_gib(memory['available_bytes'])} free of {_gib(memory['total_bytes'])}"
        + (f" (the container's limit is {_gib(limit)})" if limit else ""),
    )
    if memory["swap_total_bytes"]:
        yield "", f"swap: {_gib(memory['swap_used_bytes'])} used of {_gib(memory['swap_total_bytes'])}"
    for gpu in found["gpus"]:
        bf16 = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
        yield "gpu", f"{gpu['name']}, {_gib(gpu['memory_bytes'])}, {bf16}"
    if not found["gpus"]:
        yield "gpu", "none that torch can use"
    speeds = ", ".join(f"{name} {flops / 1e12:.2f}" for name, flops in found["matmul"]["flops"].items())
    yield "matmul", f"{speeds} TFLOP/s ({found['matmul']['device']})"
    for name, disk in found["disk"].items():
        yield name, f"{disk['folder']}: {_gib(disk['free_bytes'])} free" + ("" if disk["writable"] else ", read-only")
        if name == "cache":
            inside = ", ".join(f"{folder} {_gib(size)}" for folder, size in found["cache"].items())
            yield "", inside or "empty"
    yield "versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    set_ = [f"{name}={value}" for name, value in found["threads"].items() if value]
    yield "threads", " ".join(set_) or "no OMP settings"
    for number, extra in enumerate(found["extras"]):
        yield "" if number else "extras", _extra(extra)


def _extra(extra: dict[str, Any]) -> str:
    brings = re.sub("<(.+?)>", lambda found: found[1].upper(), "; ".join(extra["brings"]))
    if not brings:  # for developers: nobody else misses anything
        return f"{extra['name']}: {'installed' if extra['installed'] else 'missing'} (only for work on lorikeet itself)"
    if extra["installed"]:
        return f"{extra['name']}: installed ({brings})"
    return f"{extra['name']}: missing {' '.join(extra['missing'])} ({brings}): {extra['install']}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB // 10 else f"{size / (1 << 20):.0f} MiB"
