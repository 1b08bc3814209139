"""How much the HTTP layer adds to the time to the first token.

    python benchmarks/serve_latency.py smollm2-135m --requests 200

A client in a process of its own asks one streamed chat after another and notes when it began to send and when the first
piece of text came. The server notes when the batch took each request and when it had the first token. All four times
are of the system's one monotonic clock, so for each request

    added = (first piece - sent) - (first token - taken)

is what everything around the engine costs: HTTP both ways, JSON, the template, encoding, two threads.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from machine import others

SAID = "Name three colours of the rainbow, and say which one you like best and why."
WARM = 5  # requests that are not counted


def client(port: int, requests: int, words: int) -> None:
    """Ask and print one `sent first` a line."""
    text = " ".join([SAID] * words)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for number in range(requests):
        # a beginning of its own, so that no prompt is found in the cache
        messages = [{"role": "user", "content": f"{number}. {text}"}]
        body = json.dumps({"messages": messages, "max_tokens": 4, "temperature": 0, "stream": True})
        sent = time.monotonic()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        first = None
        while line := response.readline():
            if first is None and b'"content":"' in line and b'"content":""' not in line:
                first = time.monotonic()
        assert first is not None, "no text came"
        print(sent, first)


class Noted:
    """When the batch took a request, and when it had its first token."""

    def __init__(self, batch: Any):
        self.taken: list[float] = []
        self.first: list[float] = []
        add, step, self.waits = batch.add, batch.step, False

        def noted_add(request: Any) -> None:
            self.taken.append(time.monotonic())
            self.waits = True
            add(request)

        def noted_step() -> Any:
            events = step()
            if self.waits and any(event.text for event in events):
                self.first.append(time.monotonic())
                self.waits = False
            return events

        batch.add, batch.step = noted_add, noted_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--words", type=int, default=1, help="times the sentence is said in a prompt")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.client is not None:
        client(told.client, told.requests, told.words)
        return
    from lorikeet.api import serving
    from lorikeet.serve.process import SWITCH_SECONDS, Server

    sys.setswitchinterval(SWITCH_SECONDS)
    app, settings = serving.application(serving.Named(told.model), serving.Access(), serving.Rows(4))
    noted = Noted(app.state.service.worker.batch)
    listening = serving.listen(serving.Access(port=0))
    server = Server(app, settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    while not server.started:
        time.sleep(0.05)
    command = [sys.executable, str(Path(__file__)), "--client", str(listening.getsockname()[1])]
    command += ["--requests", str(told.requests + WARM), "--words", str(told.words)]
    with others() as rest:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    server.should_exit = True
    thread.join()
    if done.returncode:
        sys.exit(done.stderr)
    lines = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == len(noted.taken) == len(noted.first)
    pairs = list(zip(lines, noted.taken, noted.first))[WARM:]
    added = sorted((first - sent) - (token - taken) for (sent, first), taken, token in pairs)
    before = statistics.median(taken - sent for (sent, _), taken, _ in pairs)
    behind = statistics.median(first - token for (_, first), _, token in pairs)
    engine = statistics.median(token - taken for _, taken, token in pairs)
    print(f"{len(added)} requests; other processes took {rest.share or 0:.0%} of the processor")
    print(f"time to first token in the engine  {engine * 1e3:.2f} ms (median)")
    print(f"added by HTTP and all around it    {statistics.median(added) * 1e3:.2f} ms (median), ", end="")
    print(f"{added[int(0.95 * len(added))] * 1e3:.2f} ms (95 %)")
    print(f"  from sending to the batch        {before * 1e3:.2f} ms")
    print(f"  from the token to its piece      {behind * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
