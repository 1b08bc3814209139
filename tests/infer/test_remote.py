"""Predictions by a server that misbehaves: order and count stay, nothing is asked twice that was answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infer.remote_server import FakeServer, Plan
from lorikeet.api.asking import check_metrics, measure, predict_api
from lorikeet.base.errors import LorikeetError, OutputError, RecipeError, ServerError
from lorikeet.cli.main import run_command
from lorikeet.infer.remote import Server
from lorikeet.infer.sampling import GenerateOptions

QUICK: dict[str, Any] = {"pause_seconds": 0.001}


@pytest.fixture
def serve() -> Iterator[Callable[[Plan], FakeServer]]:
    running: list[FakeServer] = []

    def start(plan: Plan) -> FakeServer:
        running.append(FakeServer(plan))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(20)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def answer(question: str) -> str:
    return f"a{question[1:]}"


def test_replies_are_in_the_prompts_order_whatever_goes_wrong(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    wrong = [500, 503, 429, ("break",), b"<html>", b'{"choices": []}', ("wait", 503, "0.01"), 408]

    def plan(question: str, before: int) -> Any:
        number = int(question[1:])
        time.sleep(0.002 * (20 - number))  # the last come first
        return wrong[number % len(wrong)] if before == 0 else answer(question)

    server = serve(plan)
    found = predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=8, **QUICK)
    rows = read(tmp_path / "out.jsonl")
    assert [row["reply"] for row in rows] == [f"a{i}" for i in range(20)] == [row["reference"] for row in rows]
    assert set(rows[0]) == {"messages", "reply", "reference", "finish_reason"}
    assert found["replies"] == 20
    assert measure(tmp_path / "out.jsonl", ["exact_match", "ended"]) == {"exact_match": 1.0, "ended": 1.0}
    assert found["tokens_per_second"] > 0 and 1 < server.most <= 8
    assert all(count == 2 for count in server.counts.values())
    assert not (tmp_path / "out.jsonl.part").exists()


def test_a_stalled_connection_is_asked_again(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    server = serve(lambda question, before: ("stall",) if question == "q3" and before == 0 else answer(question))
    predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, timeout_seconds=0.5, **QUICK)
    assert [row["reply"] for row in read(tmp_path / "out.jsonl")] == [f"a{i}" for i in range(20)]
    assert server.counts["q3"] >= 2  # more where this machine stalled too


def test_what_was_answered_is_not_asked_again(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    down = True
    server = serve(lambda question, before: 503 if down and int(question[1:]) > 11 else answer(question))
    with pytest.raises(ServerError, match="does not answer") as caught:
        predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=2, retries=1, **QUICK)
    assert caught.value.exit_code == 1 and not (tmp_path / "out.jsonl").exists()
    down, first = False, dict(server.counts)
    done = {
        json.loads(line)["row"]["messages"][0]["content"]
        for line in (tmp_path / "out.jsonl.part").read_text().splitlines()[1:]
    }
    assert len(done) >= 10
    found = predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=2, **QUICK)
    assert [row["reply"] for row in read(tmp_path / "out.jsonl")] == [f"a{i}" for i in range(20)]
    assert all(server.counts[question] == first[question] for question in done)
    assert found["asked_now"] == 20 - len(done)


def test_a_killed_prediction_goes_on(serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path) -> None:
    hold = True
    server = serve(lambda question, before: ("stall",) if hold and int(question[1:]) > 7 else answer(question))
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "lorikeet.cli.main", "predict", "m", str(prompts), "-o", str(out)]
    process = subprocess.Popen([*command, "--api", server.url, "--concurrency", "2"], stderr=subprocess.DEVNULL)
    part = tmp_path / "out.jsonl.part"
    until = time.monotonic() + 300
    while time.monotonic() < until and not (part.exists() and part.read_text().count("\n") >= 9):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    hold, first = False, dict(server.counts)
    predict_api("m", [prompts], out, server.url, **QUICK)
    assert [row["reply"] for row in read(out)] == [f"a{i}" for i in range(20)]
    assert all(server.counts[f"q{i}"] == first[f"q{i}"] == 1 for i in range(8))


def test_a_prompt_that_is_refused_keeps_its_place(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    server = serve(lambda question, before: 400 if question == "q5" else answer(question))
    found = predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=1, **QUICK)
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == 20 and rows[5]["finish_reason"] == "error" and "no: 400" in rows[5]["error"]
    assert rows[6]["reply"] == "a6" and found["replies"] == 20 and server.counts["q5"] == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_server_that_takes_no_questions_stops_everything(
    status: int, serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    server = serve(lambda question, before: status)
    with pytest.raises(ServerError, match="does not take questions"):
        predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=1, **QUICK)
    assert len(server.asked) == 1 and not (tmp_path / "out.jsonl").exists()


def test_refusals_of_everything_are_an_error(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    server = serve(lambda question, before: 422)
    with pytest.raises(ServerError, match="refuses the questions"):
        predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=1, **QUICK)
    assert len(server.asked) <= 4


def test_quick_refusals_do_not_hide_replies_that_take_longer(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    def plan(question: str, before: int) -> Any:
        if int(question[1:]) % 2:
            return 400  # too long, say
        time.sleep(0.2)
        return answer(question)

    server = serve(plan)
    predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=8, **QUICK)
    assert [row["finish_reason"] for row in read(tmp_path / "out.jsonl")] == ["stop", "error"] * 10


def test_what_was_refused_before_anything_was_answered_is_asked_again(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path
) -> None:
    strict = True
    server = serve(lambda question, before: 422 if strict else answer(question))
    with pytest.raises(ServerError, match="refuses the questions"):
        predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=1, **QUICK)
    strict = False
    predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, **QUICK)
    assert [row["reply"] for row in read(tmp_path / "out.jsonl")] == [f"a{i}" for i in range(20)]


def test_a_key_that_no_header_can_hold_is_refused_at_once(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY"):
        predict_api("m", [prompts], tmp_path / "out.jsonl", "http://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == [prompts]


def test_other_options_ask_again(serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path) -> None:
    server = serve(lambda question, before: 401 if question == "q9" and before == 0 else answer(question))
    with pytest.raises(ServerError):
        predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=1, **QUICK)
    predict_api("m", [prompts], tmp_path / "out.jsonl", server.url, concurrency=1, max_new_tokens=5, **QUICK)
    assert server.counts["q0"] == 2


def test_what_is_sent(
    serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda question, before: answer(question))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    guide = {"kind": "json_schema", "json_schema": schema}
    options = {"temperature": 0.5, "seed": 3, "top_k": 7, "stop": ["x"], "guide": guide, "max_new_tokens": 9}
    predict_api("m", [prompts], tmp_path / "out.jsonl", server.url + "/v1/", **options, **QUICK)
    bodies = dict(server.asked)
    body = bodies["q4"]
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body.pop("response_format")["type"] == "json_schema"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "q4"}], "max_tokens": 9, "temperature": 0.5,
        "seed": 7, "top_k": 7, "stop": ["x"],
    }  # fmt: skip
    assert server.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_prompts_are_rendered_for_addresses_that_take_text(
    path: str, serve: Callable[[Plan], FakeServer], prompts: Path, tmp_path: Path, tiny_model: Path
) -> None:
    server = serve(lambda question, before: "said")
    predict_api("m", [prompts], tmp_path / "out.jsonl", server.url + path, render=tiny_model, **QUICK)
    question, body = server.asked[0]
    assert question.startswith("<|im_start|>user\nq") and question.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert body.get("parameters", body)["stop"] == ["<|im_end|>"]
    assert {row["reply"] for row in read(tmp_path / "out.jsonl")} == {"said"}


def test_tgi_is_told_the_guide() -> None:
    pytest.importorskip("llguidance")
    server = Server("http://127.0.0.1:1/generate", "m", rendered=True)
    for guide, grammar in (
        ({"kind": "regex", "regex": "[0-9]+"}, {"type": "regex", "value": "[0-9]+"}),
        ({"kind": "choice", "choice": ["a.", "b"]}, {"type": "regex", "value": "a\\.|b"}),
    ):
        body = server.body("text", GenerateOptions(guide=guide), 0)
        assert body["parameters"]["grammar"] == grammar


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/", "http://", "file:///etc/passwd", "http://host:99999", "http://h\n/x"]
)
def test_addresses_that_are_none(url: str, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not the address of a server"):
        predict_api("m", [prompts], tmp_path / "out.jsonl", url)
    assert list(tmp_path.iterdir()) == [prompts]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 2}, "generate.num_beams"),
        ({"deterministic": True}, "generate.deterministic"),
        ({"batch_size": 4}, "generate.batch_size"),
        ({"render": "x", "url": "http://h/v1/chat/completions"}, "--render"),
        ({"url": "http://h/v1/completions"}, "takes text"),
    ],
)
def test_what_has_no_effect_is_refused(given: dict[str, Any], said: str, prompts: Path, tmp_path: Path) -> None:
    options = {"url": "http://127.0.0.1:1", **given}
    with pytest.raises(RecipeError, match=said):
        predict_api("m", [prompts], tmp_path / "out.jsonl", options.pop("url"), **options)
    assert list(tmp_path.iterdir()) == [prompts]


@pytest.mark.parametrize(
    "options",
    [["--render", "x"], ["--concurrency", "2"], ["--retries", "1"], ["--timeout", "5"],
     ["--allow-other-base", "--api", "http://127.0.0.1:1"]],
)  # fmt: skip
def test_options_of_the_other_way_are_refused(
    options: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["predict", "no-such-model", str(prompts), "-o", str(tmp_path / "out.jsonl"), *options]) == 2
    assert f"{options[0]}: has no effect with" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [prompts]


def test_a_metric_that_is_none() -> None:
    with pytest.raises(RecipeError, match="--metrics"):
        check_metrics(["bleu"])


def test_an_output_that_is_an_input_is_refused(prompts: Path) -> None:
    with pytest.raises(OutputError):
        predict_api("m", [prompts], prompts, "http://127.0.0.1:1")


def test_nobody_there(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(LorikeetError) as caught:
        predict_api("m", [prompts], tmp_path / "out.jsonl", "http://127.0.0.1:9", retries=1, **QUICK)
    assert "does not answer" in str(caught.value) and len(str(caught.value).splitlines()) <= 4
