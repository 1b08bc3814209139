"""An OpenAI API that says what it is told, so that the page meets every ending a reply can have."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lorikeet.serve import page

USUAL = {"temperature": 0.25, "top_k": 0, "max_tokens": 300}
HOSTILE = """\
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2"> [bad](javascript:alert(1)) ![p](https://x.invalid/p.png)

**bold <b>not</b>** and `<i>code</i>` and [good](https://example.org/a_b) and https://example.org/x.

| merchant | amount |
|---|---:|
| Avalon | **14** |

1. one
   - inner
2. two

> quoted

```python
def f(x):
    return "<script>" * x
```
"""  # fmt: skip


class FakeApi:
    """The app, what it was asked, and how many replies a client left."""

    def __init__(self, report: Path | None = None, key: str | None = None, models: tuple[str, ...] = ("notes", "base")):
        self.app, self.key, self.models = FastAPI(), key, models
        self.asked: list[dict[str, Any]] = []
        self.left = 0
        self.system: str | None = None  # of the training of its first model
        self.app.add_api_route("/v1/models", self.list_models)
        self.app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"], response_model=None)
        page.mount(self.app, report, USUAL)

        @self.app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Response:
            path = request.url.path
            shut = self.key and not (path == page.OPEN[0] or path.startswith(page.OPEN[1]))
            if shut and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "The key is missing or wrong."}}, status_code=401)
            return await call_next(request)

    def list_models(self) -> dict[str, Any]:
        first = self.models[0]
        found = [{"id": name, "object": "model", "parent": None if name == first else first} for name in self.models]
        found[0]["system"] = self.system
        return {"object": "list", "data": found}

    async def complete(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        text = asked["messages"][-1]["content"]
        if text == "busy":
            error = {"error": {"message": "Too many wait."}}
            return JSONResponse(error, status_code=429, headers={"Retry-After": "7"})
        return StreamingResponse(self.stream(asked, text), media_type="text/event-stream")

    async def stream(self, asked: dict[str, Any], text: str) -> AsyncIterator[bytes]:
        said, tokens = self.reply(asked, text), 0
        for word in said:
            if text == "slow":
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    self.left += 1
                    raise
            tokens += 1
            yield event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            if text == "breaks" and tokens == 3:
                yield event({"error": {"message": "The engine stopped."}})
                return
            if text == "vanishes" and tokens == 3:
                return
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length" if text == "long" else "stop"}]})
        yield event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})
        yield b"data: [DONE]\n\n"

    def reply(self, asked: dict[str, Any], text: str) -> list[str]:
        if text == "slow":
            return [f"word{n} " for n in range(3000)]
        if text == "hostile":
            return [HOSTILE[n : n + 7] for n in range(0, len(HOSTILE), 7)]
        if text == "json":
            return ['{"merchant": "_A_', ' & *B*", "amount": 1}']
        if text == "think":
            return ["<think>", "hm, äöü 鹦鹉", "</think>", "Done."]
        words = f"{asked['model']} answers {text} as message {len(asked['messages'])}"
        return [word + " " for word in words.split()]


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


@contextmanager
def serving(fake: FakeApi) -> Iterator[str]:
    """The address of `fake`, which answers in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(fake.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
