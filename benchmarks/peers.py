"""The same work by Lorikeet and by other trainers, each in an environment of its own and at its best CPU setting.

    python benchmarks/peers.py install                                       environments from PyPI
    python benchmarks/peers.py sweep   --data alpaca_en_demo.json            each trainer's best setting
    python benchmarks/peers.py compare --data alpaca_en_demo.json            Lorikeet and the others, in turns
    python benchmarks/peers.py flops   --data alpaca_en_demo.json            counted operations of one pass over W1

`--workload W1 W2` and `--peer trl` name fewer. Every run is remembered in `--results`, so a command that was stopped
goes on where it was; what failed is a row with its error (`--again` runs those again). A run trains at most 64 rows or
4 steps: a warm-up step that is not timed, then the others. Lorikeet trains with `--row-tokens`, `--checkpointing`, or
as it ships.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import workloads
from counted_flops import counted
from machine import BUSY, matmul_peak_flops, others
from peer_figures import Run, best, describe, line, plot, table
from peer_jobs import FULL, LORIKEET, PEERS, SHORT, Jobs, Setting, candidates, code, neighbours
from workloads import WORKLOADS, Workload

CONSTRAINTS = "torch==2.13.0\n"  # the CPU build that is here; without it some would bring a CUDA build of gigabytes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["install", "sweep", "compare", "flops"])
    parser.add_argument("--data", type=Path, help="alpaca rows: alpaca_en_demo.json")
    parser.add_argument("--workload", nargs="+", default=["W1"], choices=list(WORKLOADS))
    parser.add_argument("--peer", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--venvs", type=Path, default=workloads.FOLDER / "venvs", help="one environment per trainer")
    parser.add_argument("--folder", type=Path, default=workloads.FOLDER, help="where rows, models and jobs go")
    parser.add_argument("--results", type=Path, default=workloads.FOLDER / "peers.json", help="what was run")
    parser.add_argument("--rounds", type=int, default=3, help="compare: how often each runs, in turns")
    parser.add_argument("--label", default="", help="compare: measure again under this name")
    parser.add_argument("--row-tokens", type=int, help="Lorikeet's train.row_tokens")
    parser.add_argument("--checkpointing", type=int, metavar="LAYERS", help="Lorikeet's train.gradient_checkpointing")
    parser.add_argument("--first", type=int, metavar="N", help="compare: try only the first N settings of each trainer")
    parser.add_argument("--eager", action="store_true", help="compare: also Lorikeet without compiled kernels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds a run may take")
    parser.add_argument("--again", action="store_true", help="runs that failed before run again")
    parser.add_argument("--busy", action="store_true", help="measure although others are running")
    parser.add_argument("--json", type=Path, help="compare: figures; default: beside --results")
    parser.add_argument("--plot", type=Path, help="compare: an .svg or .png")
    asked = parser.parse_args()
    if asked.command != "install" and asked.data is None:
        parser.error("--data is needed")
    return asked


def install(venvs: Path, names: list[str]) -> int:
    """Environments from PyPI; returns how many failed."""
    venvs.mkdir(parents=True, exist_ok=True)
    (venvs / "constraints.txt").write_text(CONSTRAINTS)
    failed = 0
    for name in names:
        python = venvs / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(venvs / name)], check=True)
        pip = [str(python), "-m", "pip"]
        wanted = ["install", "-q", "-c", str(venvs / "constraints.txt"), CONSTRAINTS.strip(), *PEERS[name].requirements]
        if subprocess.run([*pip, *wanted]).returncode:
            print(f"{name}: pip failed")
            failed += 1
            continue
        for unloadable in PEERS[name].removed:
            subprocess.run([*pip, "uninstall", "-q", "-y", unloadable])
        listed = subprocess.run([*pip, "list"], capture_output=True, text=True).stdout
        found = [" ".join(row.split()) for row in listed.splitlines() if "torch" in row or "nvidia" in row]
        print(f"{name}: {', '.join(found)}" + ("   A CUDA BUILD CAME ALONG" if "nvidia" in listed else ""))
    return failed


def sweep(jobs: Jobs, peer: str, work: Workload, first: int | None = None) -> list[Run]:
    """Short runs of all candidates, then of the best one's neighbours; the two best once more. Best first.

    `first`: only so many candidates, once each."""
    short = SHORT[work.name]
    if first is not None:
        return best([say(jobs.run(peer, work, short, setting)) for setting in candidates(peer, work.name)[:first]], 2)
    runs = [say(jobs.run(peer, work, short, setting)) for setting in candidates(peer, work.name)]
    for leader in best(runs):
        runs += [say(jobs.run(peer, work, short, setting)) for setting in neighbours(peer, leader["setting"])]
    if not best(runs):
        return []
    again = [say(jobs.run(peer, work, short, run["setting"], round_="again")) for run in best(runs, 2)]
    return best(runs + again, 2)


def say(run: Run) -> Run:
    """Print a run."""
    what = f"{run['tool']:13} {run['workload']} {describe(run['setting']):62}"
    if "error" in run:
        print(f"{what} {run['error']}")
    else:
        busy = f"  OTHERS {run['others_during']:.0%}" if (run["others_during"] or 0) > BUSY else ""
        print(f"{what} {run['tokens_per_second']:7.0f} tok/s {run['peak_rss_gib']:6.2f} GiB {run['seconds']:6.1f} s"
              f"  loss {run['losses'][0]:.4f}, {run['losses'][-1]:.4f}{busy}")  # fmt: skip
    sys.stdout.flush()
    return run


def compare(
    jobs: Jobs,
    peers: list[str],
    work: Workload,
    ours: dict[str, Setting],
    rounds: int,
    label: str,
    first: int | None = None,
) -> Run:
    """Lorikeet (`ours`: its settings by the names of their rows) and each trainer's best setting in turns; the matmul
    peak before, between and after."""
    settings = dict(ours)
    failed = []
    for peer in peers:
        found = sweep(jobs, peer, work, first)
        if found:
            settings[peer] = found[0]["setting"]
        else:
            failed.append({"tool": peer, "setting": "", "error": "no setting ran: see the sweep"})
    runs: dict[str, list[Run]] = {tool: [] for tool in settings}
    peaks, built = [peak()], code()
    for number in range(rounds):
        for tool, setting in settings.items():
            run = jobs.run(
                LORIKEET if tool in ours else tool,
                work,
                FULL[work.name],
                setting,
                round_=f"{label}{built} round {number + 1}",
            )
            runs[tool].append(say(run))
            peaks.append(peak())
    size = FULL[work.name]
    untimed = size.warmup_steps * (size.rows_per_step or work.examples_per_step)
    timed = jobs.rows(work, size.rows(work))[untimed:]
    sizes = jobs.sizes(work)
    alone = sizes.alone([(len(row.tokens), int((row.weights > 0).sum())) for row in timed])
    lines = [line(tool, runs[tool], runs[LORIKEET], sizes, alone, max(peaks)) for tool in settings] + failed
    return {
        "lines": lines, "rows": len(timed), "tokens": sum(len(row.tokens) for row in timed),
        "matmul_peak_tflops": max(peaks) / 1e12, "matmul_peaks_tflops": [one / 1e12 for one in peaks],
        "runs": runs, "machine": platform.processor() or platform.machine(), "python": platform.python_version(),
    }  # fmt: skip


def peak() -> float:
    """The best bfloat16 matmul, operations per second."""
    return matmul_peak_flops(torch.bfloat16, torch.device("cpu"))


def quiet(allowed: bool) -> bool:
    """Whether figures taken now are worth keeping."""
    with others() as busy:
        time.sleep(2)
    if (busy.share or 0) > BUSY:
        print(f"others use {busy.share:.0%} of the cores: these figures would be wrong (--busy measures all the same)")
        return allowed
    return True


def main() -> int:
    asked = arguments()
    if asked.command == "install":
        return install(asked.venvs, asked.peer)
    torch.set_num_threads(asked.threads)
    jobs = Jobs(asked.data, asked.folder, asked.venvs, asked.results, threads=asked.threads, limit=asked.limit)
    jobs.peak = peak
    works = [WORKLOADS[name] for name in asked.workload]
    if asked.command == "flops":
        for work in works:
            print("\n".join(f"{name:60} {value}" for name, value in counted(jobs, work).items()))
        return 0
    if asked.again:
        jobs.forget_failures()
    if not quiet(asked.busy):
        return 1
    if asked.command == "sweep":
        for work in works:
            for peer in asked.peer:
                sweep(jobs, peer, work)
        return 0
    setting: Setting = {"row_tokens": asked.row_tokens} if asked.row_tokens else {}
    setting |= {"gradient_checkpointing": asked.checkpointing} if asked.checkpointing else {}
    ours = {LORIKEET: setting}
    if asked.eager:
        ours[f"{LORIKEET}, no compiler"] = setting | {"kernels": "eager"}
    out = asked.json or asked.results.with_name("comparison.json")
    figures = json.loads(out.read_text()) if out.exists() else {}
    for work in works:
        figures[work.name] = compare(jobs, asked.peer, work, ours, asked.rounds, asked.label, asked.first)
        out.write_text(json.dumps(figures, indent=1) + "\n")
        found = figures[work.name]
        title = f"{work.name}: {found['rows']} rows, {found['tokens']:,} tokens, matmul peak"
        print(f"\n{title} {found['matmul_peak_tflops']:.2f} TFLOP/s\n\n{table(found['lines'])}\n")
    if asked.plot:
        plot(figures, asked.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
