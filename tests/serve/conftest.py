"""A server of the tiny model in this process, on a port of its own, and clients of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lorikeet import api
from lorikeet.api.serving import Access, bound
from lorikeet.infer.batch import Batch
from lorikeet.serve.app import create_app
from lorikeet.serve.process import Server
from lorikeet.serve.service import Service
from lorikeet.serve.settings import Settings
from lorikeet.serve.worker import Worker

# ChatML with the tools and calls of Hermes and Qwen
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for c in m['tool_calls'] %}{{ '<tool_call>\n{\"name\": \"' + c.function.name + '\", \"arguments\": ' }}"
    "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Running:
    """A server that answers, and how to ask it."""

    def __init__(self, server: Server, service: Service, port: int):
        self.server, self.service, self.port = server, service, port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key: str = "no-key-is-set", **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=300, **more)

    def http(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, verify=False, **more)  # no TLS here: its setup is slow


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, as long as a busy machine may take."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextmanager
def running(engine: Any, settings: Settings | None = None, **rows: Any) -> Iterator[Running]:
    """A server of `engine` while the block lasts."""
    settings = settings or Settings("tiny")
    worker = Worker(Batch(engine, **{"rows": 4, **rows}), queue=settings.queue)
    app = create_app(worker, settings)
    listening = bound(Access(port=0))
    server = Server(app, settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        yield Running(server, app.state.service, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(300)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def tool_model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose template knows tools."""
    return make_model(tmp_path_factory.mktemp("served") / "tiny", chat_template=TOOLS, max_position_embeddings=2048)


@pytest.fixture(scope="session")
def tool_engine(tool_model: Path) -> Any:
    """The same model again, which no server has: what it says is what a server's has to say."""
    return api.engine(tool_model, {"dtype": "float32"})


@pytest.fixture(scope="session")
def served(tool_model: Path) -> Iterator[Running]:
    """One server for all tests that leave it as it is."""
    with running(api.engine(tool_model, {"dtype": "float32"})) as found:
        yield found


@pytest.fixture(scope="session")
def client(served: Running) -> openai.OpenAI:
    return served.client()


def changed(settings: Settings, **more: Any) -> Settings:
    return replace(settings, **more)
