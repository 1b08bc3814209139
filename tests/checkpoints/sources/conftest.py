"""A server on 127.0.0.1 that stands in for the ones models come from, and that can fail in every way they do."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lorikeet.checkpoints.sources import _fetch

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Site:
    """`files` by path. `faults` are used up one per request: a status, "reset", ("cut", bytes) or ("says", length)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.faults: list[Any] = []
        self.etag: str | None = None
        self.ranges = True
        self.length = True
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range")
        self.requests.append((path, wanted))
        self.headers.append(dict(request.headers))
        fault = self.faults.pop(0) if self.faults and path in self.files else None
        if fault == "reset":
            request.connection.close()
            return
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.end_headers()
            return
        if isinstance(fault, int) or path not in self.files:
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        self.send(request, self.files[path], wanted, fault)

    def send(self, request: BaseHTTPRequestHandler, content: bytes, wanted: str | None, fault: Any) -> None:
        start = 0
        same = request.headers.get("If-Range")
        if wanted and self.ranges and same in (None, self.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        kind, number = fault if isinstance(fault, tuple) else (None, 0)
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.length:
            request.send_header("Content-Length", str(number if kind == "says" else len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : start + number] if kind == "cut" else content[start:])

    def wanted(self, end: str) -> list[str | None]:
        """The ranges that were asked of the files whose path ends so."""
        return [wanted for path, wanted in self.requests if path.endswith(end)]

    def publish(self, package: str, members: dict[str, bytes], version: str = "1.0") -> str:
        """Put a wheel onto the package index; its path."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        filename = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        path = f"/files/{filename}"
        content = self.files[path] = buffer.getvalue()
        entry = {
            "filename": filename,
            "url": f"../..{path}",
            "hashes": {"sha256": hashlib.sha256(content).hexdigest()},
            "size": len(content),
        }
        page = f"/simple/{package}/"
        listed = json.loads(self.files.get(page, b'{"files": []}'))["files"]
        self.files[page] = json.dumps({"files": [*listed, entry]}).encode()
        return path


@pytest.fixture
def site(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """See Site. It is the package index and ModelScope, too, and nobody waits before trying again."""
    site = Site()
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", site.host)
    monkeypatch.setattr(_fetch, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(_fetch, "ENOUGH_BYTES", 50_000)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def models(cache: Path) -> Path:
    """Where models are kept."""
    return cache / "lorikeet" / "models"


@pytest.fixture(scope="session")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole GGUF file of 300 kB with one tensor."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("a.weight", np.random.default_rng(0).standard_normal((750, 100)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def left(models: Path) -> list[str]:
    """Every file in the cache of models but locks."""
    return sorted(file.name for file in models.rglob("*") if file.is_file() and file.name != ".lock")
