"""Who may ask, from where, how much; and requests that mean harm: no 5xx, no file outside the folders named."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from lorikeet import api
from lorikeet.api import serving
from lorikeet.base.errors import LorikeetError
from lorikeet.serve.adapters_api import inside
from lorikeet.serve.errors import ApiError
from lorikeet.serve.settings import Settings
from serve.conftest import Running, running, until

KEYS = ("first-key-0123456789", "second-key-0123456789")
ASK: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked(tool_model: Path) -> Iterator[Running]:
    settings = Settings(
        "tiny", api_keys=KEYS, users=("anna:a long password",), origins=("https://page.example",),
        max_body_bytes=20_000, body_seconds=300, header_seconds=300, max_connections=40,
    )  # fmt: skip
    with running(api.engine(tool_model, {"dtype": "float32"}), settings) as found:
        yield found


def hasty(tool_model: Path, **seconds: float) -> AbstractContextManager[Running]:
    """A server without patience for one thing. Who asks it for another may be late with that, too: hence its own."""
    patience = Settings("tiny", **{"body_seconds": 300.0, "header_seconds": 300.0} | seconds)
    return running(api.engine(tool_model, {"dtype": "float32"}), patience)


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(user.encode()).decode()


def test_keys_and_passwords_open(locked: Running) -> None:
    for key in KEYS:
        assert [one.id for one in locked.client(key).models.list()] == ["tiny"]
    with locked.http() as http:
        headers = {"Authorization": basic("anna:a long password")}
        assert http.get("/v1/models", headers=headers).status_code == 200
        assert http.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer first-key", "Bearer first-key-01234567890", "bearer FIRST-KEY-0123456789",
        "first-key-0123456789", "Basic first-key-0123456789", basic("anna:"), basic("anna"), "Basic ====",
        "Bearer anna:a long password", basic("first-key-0123456789:"), "Bearer None", "Bearer \xff", "Digest x=y",
    ],
)  # fmt: skip
def test_nothing_else_does(locked: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with locked.http(headers=headers) as http:
        for method, path in (
            ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/check"),
            ("GET", "/openapi.json"), ("POST", "/generate"), ("GET", "//v1/models"), ("GET", "/health/../v1/models"),
            ("GET", "/health/"), ("GET", "/nothing"), ("OPTIONS", "/v1/models"), ("HEAD", "/v1/models"),
            ("GET", "/report"),
        ):  # fmt: skip
            found = http.request(method, path, json=ASK if method == "POST" else None)
            assert found.status_code == 401, (method, path)
            assert method == "HEAD" or found.json()["error"]["code"] == "invalid_api_key"


def test_two_authorization_headers_are_none(locked: Running) -> None:
    two = [("Authorization", f"Bearer {KEYS[0]}"), ("Authorization", "Bearer wrong")]
    assert httpx.get(locked.url + "/v1/models", headers=two, timeout=300).status_code == 401


def test_only_named_origins_may_ask(locked: Running, served: Running) -> None:
    def allowed(one: Running, origin: str) -> str | None:
        headers = {"Origin": origin, "Authorization": f"Bearer {KEYS[0]}"}
        found = httpx.get(one.url + "/v1/models", headers=headers, timeout=300)
        return found.headers.get("access-control-allow-origin")

    assert allowed(locked, "https://page.example") == "https://page.example"
    assert allowed(locked, "https://other.example") is None
    assert allowed(served, "https://page.example") is None, "off by default"


def test_a_named_origin_may_send_the_headers_of_openai_s_own_client(locked: Running) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-os"
    found = httpx.options(locked.url + "/v1/chat/completions", headers=asked, timeout=300)
    assert found.status_code == 200


def test_a_page_cannot_ask_without_being_asked_first(served: Running) -> None:
    """A form or a simple fetch of a web page sends no JSON by that name."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        form, url = {"Content-Type": kind}, served.url + "/v1/chat/completions"
        found = httpx.post(url, content=json.dumps(ASK), headers=form, timeout=300)
        assert found.status_code == 400


def test_a_server_of_this_machine_goes_by_its_own_names(tool_model: Path) -> None:
    app, told = serving.application(serving.Named(tool_model), serving.Access(), serving.Rows(2))
    assert told.hosts == ("localhost", "127.0.0.1", "[::1]")
    transport = httpx.ASGITransport(app)

    async def status(host: str) -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return (await http.get("/v1/models", headers={"Host": host})).status_code

    import asyncio

    found = [asyncio.run(status(host)) for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "evil.example", "")]
    assert found == [200, 200, 200, 403, 403]
    app.state.service.close()


def post(one: Running, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    told = {"Content-Type": "application/json", "Authorization": f"Bearer {KEYS[0]}"} | headers
    return httpx.post(one.url + path, content=body, headers=told, timeout=300)


def test_large_bodies_are_refused(locked: Running) -> None:
    assert post(locked, b" " * 20_001).status_code == 413
    pieces, key = iter([b" " * 5000] * 8), {"Authorization": f"Bearer {KEYS[0]}"}
    chunked = httpx.post(locked.url + "/v1/completions", content=pieces, headers=key, timeout=300)
    assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "too_large"


DEEP = b"[" * 9000 + b"]" * 9000
WRAPPED = b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f","parameters":%s}}]}'
BROKEN = {
    "deep": DEEP,
    "deep in a field": WRAPPED % (b'{"a":' * 900 + b"1" + b"}" * 900),
    "not UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
    "UTF-16": json.dumps(ASK).encode("utf-16"),
    "half a character": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "not a number": b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "infinite": b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "huge number": b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 5000 + b"}",
    "cut": b'{"messages":[',
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "null byte in a key": b'{"mess\\u0000ages":[]}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_json_is_the_client_s_fault(served: Running, locked: Running, name: str) -> None:
    for one in (served, locked):
        for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
            found = post(one, BROKEN[name], path)
            assert found.status_code in (400, 413), found.text
            assert found.json()["error"]["type"] == "invalid_request_error"


def test_odd_characters_are_answered(served: Running) -> None:
    content = "\0\x01\ufeff\uffff<|im_end|>\U0001f426 \u202e"
    found = post(served, json.dumps(ASK | {"messages": [{"role": "user", "content": content}]}).encode())
    assert found.status_code == 200


def test_slow_senders_are_sent_away(tool_model: Path) -> None:
    def waited(one: Running, first: bytes, drip: bytes) -> tuple[float, bytes]:
        with socket.create_connection(("127.0.0.1", one.port)) as raw:
            raw.sendall(first)
            raw.settimeout(0.05)
            begun, got = time.monotonic(), b""
            while time.monotonic() - begun < 200:
                try:
                    piece = raw.recv(4096)
                    if not piece:
                        break
                    got += piece
                except TimeoutError:
                    with suppress(OSError):  # what it said before it closed is still to be read
                        raw.sendall(drip)
                except OSError:
                    break
            return time.monotonic() - begun, got

    with hasty(tool_model, header_seconds=0.5) as one:
        assert waited(one, b"", b"G")[0] < 100
        assert waited(one, b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-a: b\r\n")[0] < 100
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n"
    with hasty(tool_model, body_seconds=0.5) as one:
        seconds, answer = waited(one, head, b"x")
    assert seconds < 100 and b" 408 " in answer


def test_connections_without_end_do_not_stop_the_server(locked: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", locked.port), timeout=300) for _ in range(60)]
    assert held[-1].recv(12) == b"HTTP/1.1 429"
    for one in held:
        one.close()

    def answers() -> bool:
        try:
            return httpx.get(locked.url + "/health", timeout=300).status_code == 200
        except httpx.TransportError:  # sent away before it had asked
            return False

    until(answers)  # once the server has seen that they went


@pytest.mark.parametrize(
    "line", [b"\x16\x03\x01\x00\xff", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 99]
)
def test_what_is_no_http_is_answered_and_forgotten(served: Running, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=300) as raw:
        raw.sendall(line + b"\r\n\r\n")
        assert b" 5" not in raw.recv(64)[:12]
    assert httpx.get(served.url + "/health", timeout=300).status_code == 200


def test_adapters_come_from_the_folders_named_and_nowhere_else(tmp_path: Path) -> None:
    folder, secret = tmp_path / "adapters", tmp_path / "secret"
    for one in (folder / "good", secret):
        one.mkdir(parents=True)
        (one / "adapter_config.json").write_text("{}")
    (folder / "link").symlink_to(secret)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "sly").mkdir()
    (folder / "sly" / "adapter_config.json").symlink_to(secret / "adapter_config.json")
    assert inside("good", (folder,)) == inside(str(folder / "good"), (folder,)) == (folder / "good").resolve()
    messages = set()
    for path in (
        "../secret", str(secret), "link", "loop", "sly", "good/../../secret", "/etc", "/etc/passwd", ".", "",
        "a" * 5000, "\0", "good\0", "~", "file:///etc", "..", "good/adapter_config.json", "nothing",
    ):  # fmt: skip
        with pytest.raises(ApiError) as refused:
            inside(path, (folder,))
        messages.add(refused.value.message)
    assert len(messages) == 1, "what is on the disk is not told"


def test_adapters_are_loaded_only_where_it_was_allowed(served: Running) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert post(served, b'{"lora_name": "a", "lora_path": "b"}', path).status_code == 404


@pytest.mark.parametrize(
    "text, said",
    [("", "holds no secret"), ("# only a comment\n", "holds no secret"), ("short\n", "too short")],
)
def test_bad_key_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(LorikeetError, match=said):
        serving.secrets(serving.KEYS, tmp_path / "keys")


def test_keys_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(f"# mine\n{KEYS[0]}\n\n")
    monkeypatch.setenv(serving.KEYS, f"{KEYS[1]}, {KEYS[0]}")
    assert serving.secrets(serving.KEYS, tmp_path / "keys") == (KEYS[1], KEYS[0])
    with pytest.raises(LorikeetError, match="cannot read"):
        serving.secrets(serving.KEYS, tmp_path / "nothing")


def test_a_port_that_is_taken_is_told(served: Running) -> None:
    with pytest.raises(LorikeetError, match="cannot listen there"):
        serving.bound(serving.Access(port=served.port))


def test_who_reads_the_address_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a port that another took while the model was read is one error."""
    connected: list[int] = []

    def told(line: str) -> None:
        port = int(line.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=300):
            connected.append(port)
        with pytest.raises(LorikeetError, match="cannot listen there"):
            serving._listen(late, serving.Access(port=port))

    def bound(access: serving.Access) -> socket.socket:
        taken.append(real(access))
        return taken[0]

    def made(*_: Any, **__: Any) -> tuple[Any, Settings]:
        late.bind(taken[0].getsockname())
        return SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(models=lambda: ["tiny"]))), Settings(
            "tiny"
        )

    real, taken = serving.bound, list[socket.socket]()
    late = socket.socket()
    late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    monkeypatch.setattr(serving, "bound", bound)
    monkeypatch.setattr(serving, "application", made)
    monkeypatch.setattr(serving, "note", told)
    monkeypatch.setattr("lorikeet.serve.process.serve", lambda *_: None)
    with late:
        serving.serve(serving.Named("tiny"), serving.Access(port=0), serving.Rows())
        assert connected == [late.getsockname()[1]]


# ------------------------------------------------------------------------------------- whatever the document allows


CHECKS = [schemathesis.checks.not_a_server_error, schemathesis.checks.response_schema_conformance]


def harmless(case: Any) -> None:
    """Short replies: what is tried is the door."""
    if not isinstance(case.body, dict):
        return
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        if name in case.body and type(case.body[name]) in (int, type(None)):
            case.body[name] = 1
    if case.operation.path == "/generate":
        case.body.setdefault("max_new_tokens", 1)
    elif not case.body.get("max_completion_tokens"):
        case.body.setdefault("max_tokens", 1)


def answered(one: Running, examples: int, stream: bool | None = None) -> None:
    document = schemathesis.openapi.from_url(one.url + "/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:

        @hypothesis_settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def is_answered(case: Any) -> None:
            harmless(case)
            if stream is not None and isinstance(case.body, dict) and case.operation.path.endswith("completions"):
                case.body["stream"] = stream
            case.call_and_validate(checks=CHECKS, timeout=300)  # of a machine that does other things too

        is_answered()


def test_whatever_the_document_allows_is_answered(served: Running) -> None:
    answered(served, 5)


def test_streams_are_what_the_document_says(served: Running) -> None:
    answered(served, 12, stream=True)


@pytest.mark.slow
def test_a_great_deal_of_what_the_document_allows_is_answered(served: Running) -> None:
    answered(served, 300)
