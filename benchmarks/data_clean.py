"""Cleaning ShareGPT's pages: the shipped chain against FastChat's scripts, on the same conversations made here.

    python benchmarks/data_clean.py --peer PEER/bin/python

PEER is a venv with fschat (without its dependencies), beautifulsoup4, markdownify 0.11.6, polyglot, pycld2 and PyICU.
Both are whole commands: start, read, work over all cores, write. FastChat's are merge, clean_sharegpt, optional_clean,
one after another, as its README runs them; ours is the same chain in one command. With `--model` both also split long
conversations by its tokens. FastChat may get fewer rows (`--peer-rows`), since rows per second is what is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_WORDS = (
    "the model list value function return answer data of and to in a is for with that as on it can you write read"
    " open file result error number string table first second example because however number_of_rows rate system"
)
WORDS = _WORDS.split()
CODE = (
    "def work(items):",
    "    for item in items:",
    "        print(item, 1 < 2)",
    "    return [x for x in items if x]",
    "# done",
)
STEPS = "merge,roles,blocklist,html_to_markdown,roles,length,dedupe,language,repetition"
OPTIONS = (
    "blocklist.phrases=[openai, chatgpt]", "length.min_characters=16", "dedupe.by=[id, opening]", "language.keep=[en]",
    "repetition.digits=9", "roles.repeated=drop",
)  # fmt: skip
PEER_SPLIT = (
    "import sys, argparse, fastchat.data.split_long_conversation as s; i, o, m = sys.argv[1:];"
    "s.main(argparse.Namespace(in_file=i, out_file=o, model_name_or_path=m, max_length=2048, begin=None, end=None))"
)


def sentence(draw: random.Random, most: int = 24) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(5, most))).capitalize() + "."


def page(draw: random.Random) -> str:
    """An answer as ChatGPT's page holds it."""
    parts = [f"<p>{sentence(draw)} <strong>{sentence(draw, 8)}</strong> {sentence(draw)}</p>" for _ in range(2)]
    if draw.random() < 0.5:
        lines = "\n".join(
            line.replace("<", "&lt;").replace("print", '<span class="hljs-built_in">print</span>')
            for line in draw.choices(CODE, k=draw.randrange(4, 16))
        )
        parts.append(
            '<pre><div class="bg-black rounded-md mb-4"><div class="flex items-center relative text-gray-200 text-xs">'
            '<span class="">python</span><button class="flex ml-auto gap-2"><svg stroke="currentColor"><path d="M16 4">'
            '</path></svg>Copy code</button></div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs'
            f' language-python">{lines}\n</code></div></div></pre>'
        )
    if draw.random() < 0.5:
        parts.append(
            "<ol>" + "".join(f"<li><p>{sentence(draw)}</p></li>" for _ in range(draw.randrange(3, 7))) + "</ol>"
        )
    if draw.random() < 0.1:
        row = "<tr><td>{}</td><td>{}</td></tr>"
        cells = "".join(row.format(sentence(draw, 7), draw.randrange(99)) for _ in range(4))
        parts.append(f"<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>{cells}</tbody></table>")
    parts.append(f"<p>Use <code>number_of_rows</code>: {sentence(draw)} <em>{sentence(draw, 8)}</em></p>")
    body = "\n".join(parts)
    return f'<div class="markdown prose w-full break-words dark:prose-invert light">{body}</div>'


def conversation(draw: random.Random, number: int) -> dict[str, Any]:
    turns = []
    for _ in range(draw.randrange(1, 6)):
        turns.append({"from": "human", "value": " ".join(sentence(draw) for _ in range(draw.randrange(1, 4)))})
        turns.append({"from": "gpt", "value": page(draw)})
    chance = draw.random()
    if chance < 0.05:
        turns.insert(0, {"from": "gpt", "value": page(draw)})
    elif chance < 0.1:
        turns.append({"from": "human", "value": sentence(draw)})
    elif chance < 0.15:
        turns[-1]["value"] = f"<p>I am ChatGPT. {sentence(draw)}</p>"
    return {"id": f"r{number if chance > 0.2 else number // 2}", "conversations": turns}


def make(path: Path, rows: int) -> None:
    """Two files of conversations, made from a seed."""
    for half in (0, 1):
        draw = random.Random(half)
        made = [conversation(draw, half * rows + number) for number in range(rows // 2)]
        path.with_name(f"{path.name}{half}.json").write_text(json.dumps(made))


def timed(commands: list[list[str]], environment: dict[str, str]) -> float:
    """Seconds of commands one after another."""
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def ours(at: Path, name: str, model: str | None) -> list[list[str]]:
    files = [str(at / f"{name}{half}.json") for half in (0, 1)]
    extra = [f"split_turns.model={model}", "split_turns.max_tokens=2048"] if model else []
    start = [sys.executable, "-c", "from lorikeet.cli.main import main; main()", "data", "clean"]
    chain = STEPS + (",split_turns" if model else "")
    return [[*start, *files, "-o", str(at / "ours.jsonl"), "--steps", chain, "--overwrite", *OPTIONS, *extra]]


def peers(at: Path, name: str, python: str, model: str | None) -> list[list[str]]:
    files = [str(at / f"{name}{half}.json") for half in (0, 1)]
    merged, clean, kept = (str(at / f"peer_{step}.json") for step in ("merged", "clean", "kept"))
    module, rules = [python, "-m"], ["--keep-lang", "en", "--reduce-rep"]
    commands = [
        [*module, "fastchat.data.merge", "--in-file", *files, "--out-file", merged],
        [*module, "fastchat.data.clean_sharegpt", "--in-file", merged, "--out-file", clean],
        [*module, "fastchat.data.optional_clean", "--in-file", clean, "--out-file", kept, *rules],
    ]  # fmt: skip
    return commands + ([[python, "-c", PEER_SPLIT, kept, str(at / "peer_split.json"), model]] if model else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the python of a venv with fschat; without it only ours is timed")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--peer-rows", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", help="a folder with a tokenizer: split long conversations too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        make(at / "all", arguments.rows)
        make(at / "part", arguments.peer_rows)
        environment = {**os.environ, "XDG_CACHE_HOME": str(at / "cache")}
        rates: dict[str, list[float]] = {"lorikeet": [], "fastchat": []}
        for _ in range(arguments.rounds):
            seconds = timed(ours(at, "all", arguments.model), environment)
            (at / "ours.report.json").unlink()
            rates["lorikeet"].append(arguments.rows / seconds)
            if arguments.peer:
                seconds = timed(peers(at, "part", arguments.peer, arguments.model), environment)
                rates["fastchat"].append(arguments.peer_rows / seconds)
            print({name: round(each[-1]) for name, each in rates.items() if each}, file=sys.stderr, flush=True)
        megabytes = sum(file.stat().st_size for file in at.glob("all?.json")) / 1e6
        found: dict[str, Any] = {name: [round(rate) for rate in each] for name, each in rates.items() if each}
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        found |= {"rows": arguments.rows, "megabytes": round(megabytes), "peak_gib_of_a_process": round(peak, 2)}
        if arguments.peer:
            found["ratio"] = round(statistics.median(rates["lorikeet"]) / statistics.median(rates["fastchat"]), 1)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
