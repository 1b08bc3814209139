"""Many clients, for minutes: nothing fails, and memory stays where it is.

    python benchmarks/serve_soak.py smollm2-135m --minutes 10 --adapter a=FOLDER --adapter b=FOLDER

Clients ask `lorikeet serve`, which runs in a process of its own: chats and completions, streamed and whole, short and
long, with seeds, logprobs, tools and schemas, of the base and of each adapter; every fifth client goes in the middle of
its reply. Counted are responses by status, and the server's memory once a second. Without --adapter two random LoRA
adapters are made. It fails at any 5xx, and where memory grows by more than 5 % from a quarter of the time on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

GROWTH = 0.05
TEXT = "Name the colours of a rainbow and sort the numbers three one two by size then say why it rains"
WORDS = TEXT.split()
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


def random_adapters(model: str, folder: Path) -> list[str]:
    """Two LoRA adapters of `model` with small random weights, as --adapter takes them."""
    import torch

    from lorikeet.adapters import _storage as storage
    from lorikeet.adapters.lora import Lora
    from lorikeet.api.answering import open_any

    made = []
    for seed in (1, 2):
        engine, base, _, _ = open_any(model)
        adapter = Lora(r=8)
        adapter.attach(engine.model, seed=seed)
        torch.manual_seed(seed)
        for value in adapter.parameters(engine.model).values():
            value.data.normal_(0, 0.02)
        (folder / f"random{seed}").mkdir()
        known = {"base": model, "base_fingerprint": base.checkpoint.fingerprint()}
        storage.save_adapter(folder / f"random{seed}", adapter, engine.model, known)
        made.append(f"random{seed}={folder / f'random{seed}'}")
    return made


def body(rng: random.Random, models: list[str], calls: bool) -> tuple[str, dict[str, Any]]:
    """(path, body) of some request."""
    text = " ".join(rng.choices(WORDS, k=rng.choice((3, 10, 40, 200))))
    told: dict[str, Any] = {"model": rng.choice(models), "max_tokens": rng.choice((1, 8, 32, 96))}
    told |= {"temperature": rng.choice((0, 0.7, 1.3)), "stream": rng.random() < 0.6, "n": rng.choice((1, 1, 1, 2))}
    if rng.random() < 0.3:
        told |= {"seed": rng.randrange(100), "top_p": 0.9}
    if rng.random() < 0.3:
        return "/v1/completions", told | {"prompt": text} | ({"logprobs": 2} if rng.random() < 0.3 else {})
    told["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    kind = rng.random()
    if kind < 0.1:
        told["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    elif kind < 0.2 and calls:
        told |= {"tools": [TOOL], "tool_choice": "required"}
    elif kind < 0.3:
        told |= {"logprobs": True, "top_logprobs": 3}
    return "/v1/chat/completions", told


async def one_client(number: int, url: str, models: list[str], calls: bool, end: float, seen: Counter[str]) -> None:
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        while time.monotonic() < end:
            path, told = body(rng, models, calls)
            leaves = rng.random() < 0.2
            try:
                async with http.stream("POST", path, json=told) as response:
                    status = str(response.status_code)
                    async for line in response.aiter_lines():
                        if line.startswith('data: {"error"'):
                            status = "error in a stream"
                        if leaves and rng.random() < 0.3:
                            status = "left"
                            break
                seen[status] += 1
                if status not in ("200", "left", "429"):
                    print(f"{status}: {json.dumps(told)[:300]}", file=sys.stderr)
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1
            if status == "429":
                await asyncio.sleep(0.5)


def rss(process: int) -> int:
    """Bytes of memory that a process has."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


async def soak(url: str, process: int, told: argparse.Namespace) -> tuple[Counter[str], list[int]]:
    models = [one["id"] for one in httpx.get(url + "/v1/models").json()["data"]]
    ask = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "max_tokens": 1}
    calls = httpx.post(url + "/v1/chat/completions", json=ask, timeout=600).status_code == 200
    print(f"models {' '.join(models)}; tools {'asked for' if calls else 'not in this template'}")
    seen, memory, end = Counter[str](), list[int](), time.monotonic() + told.minutes * 60
    clients = [asyncio.create_task(one_client(number, url, models, calls, end, seen)) for number in range(told.clients)]
    while time.monotonic() < end:
        await asyncio.sleep(1)
        memory.append(rss(process))
    await asyncio.gather(*clients)
    return seen, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--cache-tokens", type=int, default=8192, help="few: full once it is warm")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapters = told.adapter or random_adapters(told.model, Path(folder))
        command = [sys.executable, "-m", "lorikeet.cli.main", "serve", told.model, "--port", "0", "--queue", "64"]
        command += ["--cache-tokens", str(told.cache_tokens)]
        for one in adapters:
            command += ["--adapter", one]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        url = next((found[1] for line in server.stderr if (found := re.search(r"at (http://\S+?)/v1", line))), None)
        if url is None:
            sys.exit("the server did not start")
        threading.Thread(target=lambda: sys.stderr.writelines(server.stderr or ()), daemon=True).start()
        try:
            seen, memory = asyncio.run(soak(url, server.pid, told))
            alive = httpx.get(url + "/health", timeout=60).status_code == 200
        finally:
            server.terminate()
            code = server.wait(120)
    settled = memory[len(memory) // 4 :]
    edge = max(1, len(settled) // 10)
    first, last = (sorted(part)[len(part) // 2] for part in (settled[:edge], settled[-edge:]))
    growth = last / first - 1
    print(
        f"{told.minutes:g} minutes, {told.clients} clients: " + ", ".join(f"{n} x {k}" for k, n in seen.most_common())
    )
    print(f"memory {first >> 20} MiB after a quarter of the time, {last >> 20} MiB at the end ({growth:+.1%})")
    bad = sum(count for status, count in seen.items() if status not in ("200", "left", "429"))
    if bad or not alive or code or growth > GROWTH:
        sys.exit(f"failed: {bad} bad responses, alive {alive}, exit code {code}, growth {growth:+.1%}")


if __name__ == "__main__":
    main()
