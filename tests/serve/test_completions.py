"""Completions through OpenAI's client, and /generate and /check."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from lorikeet.infer.reply import Request
from lorikeet.infer.sampling import GenerateOptions
from serve.conftest import Running

TOLD: Any = {"model": "tiny", "max_tokens": 8, "temperature": 0}


def greedy(tool_engine: Any, prompt: list[int], most: int = 8) -> str:
    request = Request(0, prompt, GenerateOptions(max_new_tokens=most))
    return "".join(event.text for event in tool_engine.generate([request]))


def test_text_and_ids(client: openai.OpenAI, served: Running, tool_engine: Any) -> None:
    ids = served.service.engine.tokenizer.encode("Sort the numbers")[0]
    found = client.completions.create(**TOLD, prompt="Sort the numbers")
    assert found.object == "text_completion" and found.choices[0].text == greedy(tool_engine, ids)
    assert client.completions.create(**TOLD, prompt=ids).choices[0].text == found.choices[0].text
    assert found.usage.prompt_tokens == len(ids)


def test_several_prompts_with_several_replies(client: openai.OpenAI) -> None:
    told = {**TOLD, "temperature": 1.3, "seed": 4}
    found = client.completions.create(**told, prompt=["Name a colour", "Sort"], n=2)
    assert [one.index for one in found.choices] == [0, 1, 2, 3]
    alone = client.completions.create(**told, prompt="Sort", n=2)
    assert [one.text for one in found.choices[2:]] == [one.text for one in alone.choices]


def test_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(**TOLD, prompt="Name")
    pieces = list(client.completions.create(**TOLD, prompt="Name", stream=True))
    assert "".join(one.choices[0].text for one in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_logprobs(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(**TOLD, prompt="Name", logprobs=3).choices
    told = choice.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) > 0
    assert all(len(one) >= 1 and max(one.values()) <= 0 for one in told.top_logprobs)
    assert told.text_offset[0] == 0 and told.text_offset == sorted(told.text_offset)


@pytest.mark.parametrize("most", [0, 4])
def test_echo(client: openai.OpenAI, served: Running, tool_engine: Any, most: int) -> None:
    ids = served.service.engine.tokenizer.encode("Name a colour.")[0]
    told = {**TOLD, "max_tokens": most}
    (choice,) = client.completions.create(**told, prompt="Name a colour.", echo=True, logprobs=1).choices
    said = greedy(tool_engine, ids, most) if most else ""
    assert choice.text == "Name a colour." + said
    assert most or choice.finish_reason == "length", "as many tokens as were asked for: none"
    assert choice.logprobs.token_logprobs[0] is None
    assert all(one <= 0 for one in choice.logprobs.token_logprobs[1 : len(ids)])
    assert "".join(choice.logprobs.tokens[: len(ids)]) == "Name a colour."


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"best_of": 3}, "best_of is not supported"),
        ({"suffix": "end"}, "suffix is not supported"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [99999]}, "none of the model's"),
        ({"prompt": [-1]}, "none of the model's"),
        ({"prompt": ["a"] * 17}, "at most 16"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"echoes": True}, "Unrecognized"),
    ],
)
def test_wrong_completions(served: Running, wrong: dict[str, Any], said: str) -> None:
    with served.http() as http:
        found = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1} | wrong)
    assert found.status_code == 400 and said in found.json()["error"]["message"], found.text


def test_generate_streams_plain_text_and_says_the_whole(served: Running, tool_engine: Any) -> None:
    told = {"message": "a colour", "prompt": "USER: Name {user_input}.\nBOT:", "max_new_tokens": 6, "top_k": 1}
    told |= {"token_repetition_penalty_max": 1.0, "token_repetition_penalty_sustain": 256}
    ids = served.service.engine.tokenizer.encode("USER: Name a colour.\nBOT:")[0]
    with served.http() as http:
        streamed = http.post("/generate", json=told)
        whole = http.post("/generate", json=told | {"stream": False})
        asked = http.post("/generate", json={"message": "hi", "max_new_tokens": 2, "stream": False})
        assert http.get("/check").json() == "tiny"
    assert streamed.headers["content-type"] == "text/plain; charset=utf-8"
    assert streamed.text == whole.json() == greedy(tool_engine, ids, 6)
    assert asked.status_code == 200 and isinstance(asked.json(), str)
