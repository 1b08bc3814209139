"""What the server counts, as text for Prometheus."""

from __future__ import annotations

import os
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorikeet.serve.worker import Worker

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, worker: Worker):
        self.registry = CollectorRegistry()
        batch = worker.batch
        self.requests = Counter(
            "lorikeet_requests", "HTTP requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "lorikeet_request_seconds", "From a request to the end of its response.", ["route"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "lorikeet_first_token_seconds", "From a request to the first piece of its reply.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        gauges = {
            "lorikeet_replies_running": ("Replies that have a row.", lambda: batch.rows - batch.free),
            "lorikeet_replies_waiting": ("Replies that wait for a row.", lambda: worker.waiting),
            "lorikeet_rows": ("Replies that can be made at once.", lambda: batch.rows),
            "lorikeet_prompt_tokens_total": ("Tokens of prompts.", lambda: batch.prompt_tokens),
            "lorikeet_reused_tokens_total": ("Of them, found in the cache.", lambda: batch.reused_tokens),
            "lorikeet_generated_tokens_total": ("Tokens of replies.", lambda: batch.generated_tokens),
        }
        for name, (help, value) in gauges.items():
            Gauge(name, help, registry=self.registry).set_function(value)
        ProcessCollector(registry=self.registry, pid=os.getpid)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class Counting:
    """Counts what passes, by the route that took it: a path that a client made up is no label."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begun)
