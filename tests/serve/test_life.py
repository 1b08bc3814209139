"""A server's life: queues that are full, clients that go, adapters that come and go, and an end that is orderly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import openai
import pytest
import torch
from starlette.testclient import TestClient

from lorikeet import api
from lorikeet.adapters import _storage as storage
from lorikeet.adapters.lora import Lora
from lorikeet.api import serving
from lorikeet.api.answering import open_any
from lorikeet.base import heap
from lorikeet.base.errors import RecipeError
from lorikeet.infer.batch import Batch
from lorikeet.serve import worker
from lorikeet.serve.settings import Settings
from serve.conftest import Running, running, until

LONG: Any = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 1500, "temperature": 0}


@pytest.fixture(scope="module")
def narrow(tool_model: Path) -> Iterator[Running]:
    """One row, and one reply that may wait. Nothing ends a reply but its length, and a long one takes half a minute:
    whoever looks what became of it may come late."""
    engine = api.engine(tool_model, {"dtype": "float32"})
    engine.stop_ids = ()
    with running(engine, Settings("tiny", queue=1), rows=1) as found:
        batch = found.service.worker.batch
        step = batch.step

        def slowly() -> Any:
            time.sleep(0.02)
            return step()

        batch.step = slowly  # type: ignore[method-assign]
        yield found


def test_a_client_that_goes_frees_its_row(narrow: Running) -> None:
    worker = narrow.service.worker
    client = narrow.client()
    stream = client.chat.completions.create(model="tiny", stream=True, **LONG)
    next(iter(stream))
    assert worker.live == 1 and worker.batch.free == 0
    stream.close()
    until(lambda: worker.live == 0 and worker.batch.free == 1)
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", narrow.port)) as raw:  # one that does not stream
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: worker.live == 1)
    until(lambda: worker.live == 0 and worker.batch.free == 1)


def test_a_full_queue_says_when_to_come_back(narrow: Running) -> None:
    client, worker = narrow.client(), narrow.service.worker
    streams = [client.chat.completions.create(model="tiny", stream=True, **LONG) for _ in range(2)]
    until(lambda: worker.live == 2 and worker.batch.free == 0)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="tiny", **LONG)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    text = httpx.get(narrow.url + "/metrics", timeout=300).text
    assert "lorikeet_replies_running 1.0" in text and "lorikeet_replies_waiting 1.0" in text
    assert re.search(r'lorikeet_requests_total\{route="/v1/chat/completions",status="429"\} [1-9]', text)
    for stream in streams:
        stream.close()
    until(lambda: worker.live == 0)


def test_a_pass_that_fails_fails_its_replies_and_no_more(tool_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(api.engine(tool_model, {"dtype": "float32"})) as one:
        real = Batch.step

        def fails(self: Batch) -> Any:
            monkeypatch.setattr(Batch, "step", real)
            raise RuntimeError("out of luck")

        monkeypatch.setattr(Batch, "step", fails)
        with pytest.raises(openai.InternalServerError) as failed:
            one.client().chat.completions.create(model="tiny", **{**LONG, "max_tokens": 2})
        assert "luck" not in str(failed.value), "what is inside stays inside"
        assert one.client().chat.completions.create(model="tiny", **{**LONG, "max_tokens": 2}).choices
        assert one.service.worker.live == 0


@pytest.fixture(scope="module")
def adapters(tool_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of LoRA adapters of the tiny model, two that differ."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in ((1, "one"), (2, "two")):
        engine, base, _, _ = open_any(tool_model, {"dtype": "float32"})
        adapter = Lora(r=4)
        adapter.attach(engine.model, seed=seed)
        torch.manual_seed(seed)
        for value in adapter.parameters(engine.model).values():
            value.data.normal_(0, 0.3)
        (folder / name).mkdir()
        known = {"base": str(tool_model), "base_fingerprint": base.checkpoint.fingerprint()}
        storage.save_adapter(folder / name, adapter, engine.model, known)
    return folder


def text(one: Running, model: str) -> str:
    told: Any = {**LONG, "max_tokens": 10}
    return one.client().chat.completions.create(model=model, **told).choices[0].message.content or ""


def test_adapters_by_name_come_and_go(tool_model: Path, adapters: Path) -> None:
    settings = Settings("tiny", adapter_folders=(adapters,))
    with running(api.engine(tool_model, {"dtype": "float32"}), settings) as one, one.http() as http:

        def load(name: str, path: str) -> int:
            return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path}).status_code

        plain = text(one, "tiny")
        assert load("first", "one") == load("second", str(adapters / "two")) == 200
        assert [model.id for model in one.client().models.list()] == ["tiny", "first", "second"]
        assert one.client().models.retrieve("first").model_dump()["parent"] == "tiny"
        replies = {name: text(one, name) for name in ("first", "second")}
        assert len({plain, *replies.values()}) == 3 and text(one, "base") == plain
        with ThreadPoolExecutor(2) as pool:  # side by side in one batch
            assert dict(zip(replies, pool.map(lambda name: text(one, name), replies))) == replies
        refused = [("first", "two"), ("base", "one"), ("../x", "one"), ("x", "../adapters/one/.."), ("x", "three")]
        assert [load(*words) for words in refused] == [400] * len(refused)
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "first"}).status_code == 200
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "first"}).status_code == 404
        assert [model.id for model in one.client().models.list()] == ["tiny", "second"]


def test_a_server_that_grew_gives_back_what_it_freed(tool_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Event()
    monkeypatch.setattr(heap, "give_back", given.set)
    monkeypatch.setattr(worker, "HOLES", -(1 << 60))
    with running(api.engine(tool_model, {"dtype": "float32"}), Settings("tiny")) as one:
        assert text(one, "tiny")
        assert given.wait(300)


SHAPES = """
import torch
from lorikeet.api import serving

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def application(*_, **__):  # what a model does where no kernel of ours is
    weight, before = torch.ones(64, 64, dtype=torch.bfloat16), 0
    for rows in range(1, 601):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
        before = resident() if rows == 300 else before
    print(resident() - before)
    raise SystemExit

serving.application = application
serving.serve(serving.Named("tiny"), serving.Access(port=0), serving.Rows())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_matmuls_of_ever_new_sizes_are_not_all_kept() -> None:
    ran = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 40, "MiB; 190 where all are kept"


def test_replies_go_on_while_an_adapter_is_read(
    tool_model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, answered = Event(), Event()
    read = Batch.read_adapter

    def slowly(batch: Batch, folder: Path) -> Any:
        reading.set()
        assert answered.wait(300), "nobody was answered meanwhile"
        return read(batch, folder)

    settings = Settings("tiny", adapter_folders=(adapters,))
    with running(api.engine(tool_model, {"dtype": "float32"}), settings) as one, one.http() as http:
        monkeypatch.setattr(Batch, "read_adapter", slowly)
        with ThreadPoolExecutor(1) as pool:
            told = {"lora_name": "late", "lora_path": "one"}
            loaded = pool.submit(http.post, "/v1/load_lora_adapter", json=told, timeout=400)
            try:
                assert reading.wait(300)
                assert text(one, "tiny")
            finally:
                answered.set()
            assert loaded.result().status_code == 200
        assert text(one, "late")


SLOW = """
import sys, time
from pathlib import Path
from lorikeet.cli.main import run_command
from lorikeet.infer.batch import Batch

step, quick = Batch.step, Path(sys.argv[1])

def slowly(batch):
    if not quick.exists():
        time.sleep(0.2)
    return step(batch)

Batch.step = slowly
sys.exit(run_command(sys.argv[2:]))
"""


def start(model: Path, quick: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    """`lorikeet serve` in a process of its own, which says that it reads the model; (process, its address). It makes 5
    tokens a second at most, until there is a file `quick`."""
    command = [sys.executable, "-c", SLOW, str(quick), "serve", str(model), "--port", "0", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    assert process.stderr.readline() == f"reading {model}\n"
    for line in process.stderr:
        if found := re.search(r"at (http://\S+?)/v1", line):
            return process, found[1]
    raise AssertionError(process.wait())


@pytest.mark.parametrize("patience, whole", [("300", True), pytest.param("0.2", False, marks=pytest.mark.slow)])
def test_asked_to_stop_it_ends_replies_or_says_that_it_did_not(
    tool_model: Path, patience: str, whole: bool, tmp_path: Path
) -> None:
    quick = tmp_path / "quick"
    process, url = start(tool_model, quick, "--drain-seconds", patience, "model.dtype=float32", "--name", "mine")
    assert process.stderr is not None
    try:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=300)
        # half a minute of work: a server looks ten times a second whether it was asked to stop
        told: Any = {**LONG, "max_tokens": 200, "logit_bias": {"20": 100}}
        stream = client.chat.completions.create(model="mine", stream=True, **told)
        pieces = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == f"stopping: 1 reply has {patience} s to end; Ctrl-C ends at once\n"
        if whole:
            quick.touch()
        try:
            pieces += list(stream)
        except openai.APIError as error:
            assert not whole and "stopped before" in str(error)
        else:
            assert whole and pieces[-1].choices[0].finish_reason == "length"
        with pytest.raises((openai.APIConnectionError, httpx.HTTPError)):
            httpx.get(url + "/health")
            client.models.list()
        assert process.wait(300) == 0 and process.stderr.read() == ""
    finally:
        process.kill()


def test_a_run_s_adapter_and_its_base_answer_by_name(tool_model: Path, adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters / "one", tmp_path / "mine")
    known = json.loads((tmp_path / "mine" / "lorikeet.json").read_text())
    (tmp_path / "mine" / "lorikeet.json").write_text(json.dumps(known | {"system": "Be brief."}))
    app, told = serving.application(
        serving.Named(tmp_path / "mine", model={"dtype": "float32"}), serving.Access(), serving.Rows(2)
    )
    assert told.base == "apart" and app.state.service.models() == ["mine", "base"]
    assert app.state.service.adapter("base") == ("base", "base") and app.state.service.adapter(None) == ("mine", None)
    assert [one["system"] for one in TestClient(app, "http://localhost").get("/v1/models").json()["data"]] == [
        "Be brief.", None,
    ]  # fmt: skip
    app.state.service.close()


def usual_of(path: Path, **generate: Any) -> dict[str, Any]:
    """What the page of a server of `path` shows in empty fields; requests that say nothing get it."""
    app, _ = serving.application(
        serving.Named(path, model={"dtype": "float32"}), serving.Access(), serving.Rows(2), generate=generate
    )
    try:
        return TestClient(app, "http://localhost").get("/page/about").json()["usual"]
    finally:
        app.state.service.close()


def test_a_model_s_own_settings_are_those_of_requests_that_say_nothing(
    tool_model: Path, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usual_of(tool_model)["temperature"] == 1  # nothing says otherwise: OpenAI's
    assert "answered as" not in capsys.readouterr().err
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 50, "eos_token_id": 2}
    model = shutil.copytree(tool_model, tmp_path / "tiny")
    (model / "generation_config.json").write_text(json.dumps(said))
    expected = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_tokens": 50}
    assert usual_of(model).items() >= expected.items()
    assert "generation_config.json says: temperature 0.6, top_p 0.9" in " ".join(capsys.readouterr().err.split())
    assert usual_of(model, temperature=0.1).items() >= (expected | {"temperature": 0.1}).items()
    beams = usual_of(model, num_beams=2)
    assert beams["temperature"] == 0 and beams["top_p"] == 0.9
    # an adapter is answered as its base's folder says
    config = json.loads((adapters / "one" / "adapter_config.json").read_text())
    mine = shutil.copytree(adapters / "one", tmp_path / "mine")
    (mine / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(model)}))
    assert usual_of(mine)["temperature"] == 0.6
    # a run says more than its base: how it was measured
    run = tmp_path / "run"
    shutil.copytree(mine, run / "adapter")
    recipe = {"output_dir": str(run), "model": {"path": str(model)}, "data": {"train": ["none.jsonl"]}}
    (run / "recipe.yaml").write_text(json.dumps(recipe | {"generate": {"max_new_tokens": 7, "top_k": 3}}))
    shown = usual_of(run)
    assert "recipe.yaml says: temperature 0.0, top_k 3\n" in capsys.readouterr().err.replace("\n ", " ")
    assert shown["temperature"] == 0 and shown["top_k"] == 3 and shown["top_p"] == 1 and "max_tokens" not in shown


def test_more_beams_than_rows_are_refused_before_a_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"generate.num_beams: more than the server has rows[\s\S]*--rows 4"):
        serving.application(serving.Named(tmp_path), serving.Access(), serving.Rows(2), generate={"num_beams": 4})
