"""A server that fails, stalls, breaks off and answers out of order, as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Plan = Callable[[str, int], Any]  # (question, how often it was asked before) -> reply, or what goes wrong


class FakeServer:
    """`asked`: every (question, body) in the order in which they came."""

    def __init__(self, plan: Plan):
        self.plan, self.asked, self.counts, self.lock = (
            plan,
            list[tuple[str, Any]](),
            dict[str, int](),
            threading.Lock(),
        )
        self.headers: list[dict[str, str]] = []
        self.most, self.now = 0, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: Any) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        told = body["messages"][-1]["content"] if "messages" in body else body.get("prompt", body.get("inputs"))
        with self.lock:
            before = self.counts.get(told, 0)
            self.counts[told] = before + 1
            self.asked.append((told, body))
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.say(request, self.plan(told, before))
        finally:
            with self.lock:
                self.now -= 1

    def say(self, request: Any, found: Any) -> None:
        """A text is a reply; a number a status; ("wait", status, header) a status with Retry-After; "stall", "break"
        and bytes are what they say."""
        status, headers, content = 200, {}, b""
        if found == ("stall",):
            time.sleep(1.5)
            return
        if isinstance(found, int):
            status, content = found, b'{"error": {"message": "no: %d"}}' % found
        elif isinstance(found, tuple) and found[0] == "wait":
            status, headers = found[1], {"Retry-After": found[2]}
        elif isinstance(found, bytes):
            content = found
        elif found != ("break",):
            content = json.dumps(reply(request.path, found)).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        size = 1000 if found == ("break",) else len(content)
        request.send_header("Content-Length", str(size))
        request.end_headers()
        request.wfile.write(content)
        if found == ("break",):
            request.close_connection = True

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def reply(path: str, text: Any) -> dict[str, Any]:
    if path.endswith("/generate"):
        return {"generated_text": text, "details": {"finish_reason": "eos_token", "generated_tokens": 3}}
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": text}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    return {"choices": [{"index": 0, "text": text, "finish_reason": "length"}], "usage": usage}
