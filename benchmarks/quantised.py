"""What a quantised base costs and saves: time, memory, held-out loss, and what another trainer takes for the same.

    python benchmarks/quantised.py speed   --data alpaca_en_demo.json      a step of W1 with each kind, in turns
    python benchmarks/quantised.py decode  --data alpaca_en_demo.json      tokens/s of greedy replies, in turns
    python benchmarks/quantised.py quality --data alpaca_en_demo.json [--model gemma3-270m]   held-out loss, per kind
    python benchmarks/quantised.py errors  --data alpaca_en_demo.json      why a kind loses what it loses
    python benchmarks/quantised.py install                                 TRL with bitsandbytes, from PyPI
    python benchmarks/quantised.py peer    --data alpaca_en_demo.json      nf4 here and there, in turns

`--kind nf4 int8` names fewer. `speed` trains each kind alone for its peak memory, and then all in one process, step by
step in turns; `quality` and `peer` remember every run in `--results` and go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import quant_errors
import quant_figures
import torch
import workloads
import yaml
from machine import BUSY, others
from peer_figures import describe
from peer_jobs import FULL, LORIKEET, PEERS, RUNNERS, SHORT, Jobs, Peer, Setting, Size, code, remember, run_limited
from peers import install
from quant_kinds import DENSE, KINDS, MADE, with_kind
from train_speed import Workload as Training
from workloads import WORKLOADS, Workload

from lorikeet import config
from lorikeet.api import open_base
from lorikeet.base.nouns import Conversation, Message
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions

W1 = WORKLOADS["W1"]
SPEED = (DENSE, "int8", "nf4", "nf4 double", "fp4", "int4 nearest, group 128")
TRL = Peer("trl-bitsandbytes", (*PEERS["trl"].requirements, "bitsandbytes==0.50.2"), "trl_run.py")
TRL_SETTINGS: tuple[Setting, ...] = tuple(  # the first is the fastest dense one
    {"quant": "nf4", "micro_batch": size, "grouped": size > 1, "checkpointing": checkpointing, "adapters": "float32"}
    | ({"packing": packing} if packing else {})
    for size, checkpointing, packing in ((1, False, 2048), (4, False, 0), (1, False, 0), (1, True, 0))
)
OURS: Setting = {"kind": "nf4"}
OURS_SMALL: Setting = OURS | {"row_tokens": 1024, "gradient_checkpointing": True}
TEMPLATES = {"gemma3-270m": "gemma"}  # base models have none of their own


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["speed", "decode", "quality", "errors", "install", "peer"])
    parser.add_argument("--data", type=Path, help="alpaca rows: alpaca_en_demo.json")
    parser.add_argument("--kind", nargs="+", choices=[*KINDS, *MADE], help="default: the command's own choice")
    parser.add_argument("--model", default="smollm2-135m", help="quality, errors: an alias")
    parser.add_argument("--rounds", type=int, default=3, help="speed, decode, peer: how often each, in turns")
    parser.add_argument("--short", action="store_true", help="peer: rounds as short as the search for a setting")
    parser.add_argument("--steps", type=int, default=12, help="quality: of training")
    parser.add_argument("--tokens", type=int, default=48, help="decode, quality: of each reply")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="speed: leave out the runs that measure memory")
    parser.add_argument("--only-memory", action="store_true", help="speed: nothing but those, which others may disturb")
    parser.add_argument("--show", action="store_true", help="quality: only print what is there")
    parser.add_argument("--folder", type=Path, default=workloads.FOLDER, help="where rows, models and jobs go")
    parser.add_argument("--venvs", type=Path, default=workloads.FOLDER / "venvs", help="one environment per trainer")
    parser.add_argument("--results", type=Path, default=workloads.FOLDER / "quantised.json", help="what was run")
    parser.add_argument("--limit", type=float, default=1800, help="seconds a run may take")
    parser.add_argument("--plot", type=Path, help="quality: draw all that is remembered here (needs matplotlib)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    if asked.no_memory and asked.only_memory:
        parser.error("--only-memory or --no-memory")
    if asked.command != "install" and asked.data is None:
        parser.error("--data is needed")
    return asked


class KindJobs(Jobs):
    """Jobs of W1 whose setting may name a kind for Lorikeet."""

    def job(self, tool: str, work: Workload, size: Size, setting: Setting) -> dict[str, Any]:
        """See `Jobs.job`."""
        rest = {name: value for name, value in setting.items() if name != "kind"}
        made = super().job(tool, work, size, rest)
        if "kind" in setting:
            made["recipe"] = with_kind(made["recipe"], setting["kind"])
        return made | {"setting": setting}


def speed(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps of W1 with each kind in turns, on the same rows; a first step of each is not timed."""
    kinds = list(asked.kind or SPEED)
    rows = workloads.write_rows(W1, asked.data, asked.folder).resolve()
    recipe = workloads.recipe(W1, rows, W1.model, threads=asked.threads)
    # first: a process counts what the one that started it held
    memory = {} if asked.no_memory else {kind: peak(asked, kind) for kind in kinds}
    if asked.only_memory:
        print(quant_figures.memory_table(memory))
        return {"peak_rss_gib": memory}
    works = {}
    for kind in kinds:
        works[kind] = Training(config.parse(with_kind(recipe, kind)))
        works[kind].step(0)

    def step(kind: str, number: int) -> float:
        start = time.perf_counter()
        works[kind].step(number + 1)
        return time.perf_counter() - start

    jobs = {kind: lambda number, kind=kind: step(kind, number) for kind in kinds}
    with others() as busy:
        found = quant_figures.against(quant_figures.in_turns(jobs, asked.rounds), kinds[0])
    print(quant_figures.speed_table(found, memory))
    return {"steps": found, "peak_rss_gib": memory, "others_during": busy.share}


def peak(asked: argparse.Namespace, kind: str) -> float:
    """GiB of a process that trains two steps of W1 with this kind."""
    jobs = KindJobs(asked.data, asked.folder, asked.venvs, asked.results, threads=asked.threads, limit=asked.limit)
    found = jobs._measure(LORIKEET, jobs.job(LORIKEET, W1, Size(1, 1), {"kind": kind}))
    if "error" in found:
        raise SystemExit(f"{kind}: {found['error']}")
    print(f"{kind}: {found['peak_rss_gib']:.2f} GiB", file=sys.stderr, flush=True)
    return float(found["peak_rss_gib"])


def decode(asked: argparse.Namespace) -> dict[str, Any]:
    """Greedy replies of the same length by each kind in turns, its weights kept dense meanwhile (`generate.dequantize`)
    and not: one prompt, and eight at once."""
    kinds = list(asked.kind or SPEED)
    rows = workloads.write_rows(W1, asked.data, asked.folder).resolve()
    recipe = workloads.recipe(W1, rows, W1.model, threads=asked.threads)
    base = open_base(config.parse(recipe).model)
    template = config.parse(recipe).data.template.bind(base.tokenizer)
    engines = {}
    for kind in kinds:
        quant = config.parse(with_kind(recipe, kind)).quant
        engines[kind] = Engine(base.load(quant), base.tokenizer, template)
        engines[kind].stop_ids = ()  # every reply has as many tokens as were asked for
    asks = [Conversation((Message("user", ask),)) for ask, _ in workloads.pairs_of(asked.data)[:8]]
    prompts = [engines[kinds[0]].prompt(ask) for ask in asks]

    def replies(kind: str, count: int, keep: bool) -> float:
        options = GenerateOptions(max_new_tokens=asked.tokens, dequantize=keep)
        start = time.perf_counter()
        for _ in engines[kind].generate([Request(i, prompt, options) for i, prompt in enumerate(prompts[:count])]):
            pass
        return time.perf_counter() - start

    found, tokens = {}, {}
    with others() as busy:
        for name, count in (("one prompt", 1), ("eight prompts", 8)):
            jobs = {kind: lambda _, kind=kind, count=count: replies(kind, count, True) for kind in kinds}
            jobs |= {
                f"{kind}, kept quantised": lambda _, kind=kind, count=count: replies(kind, count, False)
                for kind in kinds[1:]
            }
            for job in jobs.values():
                job(0)  # what is made at first use
            found[name] = quant_figures.against(quant_figures.in_turns(jobs, asked.rounds), kinds[0])
            tokens[name] = count * asked.tokens
    print(quant_figures.decode_table(found, tokens, kinds[0]))
    return {"decode": found, "tokens": tokens, "others_during": busy.share}


def quality(asked: argparse.Namespace) -> dict[str, Any]:
    """Held-out loss before and after a short training with each kind, each in a process of its own, remembered."""
    runs = {}
    for kind in asked.kind or [*KINDS, *MADE]:
        key = f"quality {asked.model} {kind} {asked.steps} steps"
        done = json.loads(asked.results.read_text()) if asked.results.exists() else {}
        if key not in done and not asked.show:
            done[key] = held_out(asked, kind)
            remember(asked.results, key, done[key])
        if key in done:
            runs[kind] = done[key]
    print(quant_figures.quality_table(runs))
    if asked.plot:
        quant_figures.quality_plot(remembered(asked.results), asked.plot)
    return runs


def remembered(results: Path) -> dict[str, dict[str, Any]]:
    """Of each model, each kind's run that did not fail."""
    models: dict[str, dict[str, Any]] = {}
    for key, run in json.loads(results.read_text()).items():
        what, _, rest = key.partition(" ")
        if what == "quality" and "error" not in run:
            model, *kind, _, _ = rest.split(" ")  # N steps
            models.setdefault(model, {})[" ".join(kind)] = run
    return models


def held_out(asked: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One kind's run."""
    folder = (asked.folder / "quality" / f"{asked.model}-{kind}".replace(", ", "-").replace(" ", "-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    made = str(quantised_folder(asked, kind)) if kind in MADE else None
    recipe = with_kind(quality_recipe(asked, folder / "run"), kind, made)
    (folder / "job.json").write_text(json.dumps({"recipe": recipe, "tokens": asked.tokens, "threads": asked.threads}))
    command = [sys.executable, str(RUNNERS / "kind_run.py"), str(folder / "job.json")]
    return run_limited(command, folder / "log.txt", asked.limit, asked.threads)


def quality_recipe(asked: argparse.Namespace, output: Path) -> dict[str, Any]:
    """W1's LoRA on the first 640 rows, of which a tenth is held out."""
    made = workloads.recipe(W1, asked.data.resolve(), asked.model, threads=asked.threads, max_steps=asked.steps,
                            learning_rate=5e-4, lr_scheduler_type="cosine")  # fmt: skip
    data = {"max_examples": 640, "validation": 0.1, "template": TEMPLATES.get(asked.model, W1.template)}
    return made | {"output_dir": str(output), "data": made["data"] | data, "evaluate": {"samples": 0}}


def quantised_folder(asked: argparse.Namespace, kind: str) -> Path:
    """The model as `lorikeet quantize` writes it with these options, made at first use from the run's own rows."""
    options = MADE[kind]
    folder = asked.folder / f"{asked.model}-gptq-{options['bits']}-{options['group_size']}"
    if not (folder / "config.json").exists():
        recipe = folder.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump(quality_recipe(asked, folder)))
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = [str(Path(sys.executable).with_name("lorikeet")), "quantize", str(recipe), "-o", str(folder), *words]
        subprocess.run(command, check=True)
    return folder.resolve()


def errors(asked: argparse.Namespace) -> dict[str, Any]:
    """See quant_errors.py."""
    return quant_errors.study(config.parse(quality_recipe(asked, Path("unused"))))


def peer(asked: argparse.Namespace) -> dict[str, Any]:
    """nf4 here and by TRL with PEFT and bitsandbytes: its settings once each, then its fastest beside ours, and its
    smallest beside our smallest, in turns."""
    jobs = KindJobs(asked.data, asked.folder, asked.venvs, asked.results, threads=asked.threads, limit=asked.limit)
    size = (SHORT if asked.short else FULL)[W1.name]
    swept = [jobs.run(TRL.name, W1, SHORT[W1.name], setting) for setting in TRL_SETTINGS]
    for run in swept:
        print(describe(run["setting"]), run.get("error") or f"{run['seconds']:.1f} s, {run['peak_rss_gib']:.2f} GiB")
    good = [run for run in swept if "error" not in run]
    if not good or not asked.rounds:
        return {"swept": swept}
    fastest = min(good, key=lambda run: run["seconds"])["setting"]
    smallest = min(good, key=lambda run: run["peak_rss_gib"])["setting"]
    pairs = [(OURS, fastest), (OURS_SMALL, smallest)]
    rows = []
    for ours, theirs in pairs:
        found: dict[str, list[dict[str, Any]]] = {LORIKEET: [], TRL.name: []}
        for number in range(asked.rounds):
            for tool, setting in ((LORIKEET, ours), (TRL.name, theirs)):
                version = code() if tool == LORIKEET else ""  # what others took stays true when we change
                found[tool].append(jobs.run(tool, W1, size, setting, round_=f"{version} round {number + 1}"))
        for runs in found.values():
            if failed := [run["error"] for run in runs if "error" in run]:
                raise SystemExit(failed[0])
        rows.append([quant_figures.of_tool(runs, describe(runs[0]["setting"])) for runs in found.values()])
    print(quant_figures.peer_table(rows))
    return {"swept": swept, "rows": rows}


def main() -> int:
    asked = arguments()
    PEERS[TRL.name] = TRL
    if asked.command == "install":
        return install(asked.venvs, [TRL.name])
    torch.set_num_threads(asked.threads)
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = {"speed": speed, "decode": decode, "quality": quality, "errors": errors, "peer": peer}[asked.command](asked)
    if (found.get("others_during") or 0) > BUSY:
        print(f"others used {found['others_during']:.0%} of the cores meanwhile: measure again", file=sys.stderr)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
