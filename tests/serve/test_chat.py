"""Chat completions through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode_prompt
from lorikeet.infer.reply import Request
from lorikeet.infer.sampling import GenerateOptions
from serve.conftest import Running

ASK: Any = [{"role": "user", "content": "Name a colour."}]


def test_a_reply_is_the_engine_s_own(client: openai.OpenAI, tool_engine: Any) -> None:
    found = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, temperature=0)
    assert found.object == "chat.completion" and found.model == "tiny" and found.id.startswith("chatcmpl-")
    (choice,) = found.choices
    asked = Conversation((Message("user", "Name a colour."),))
    ((_, text, reason),) = tool_engine.replies([asked], GenerateOptions(max_new_tokens=8))
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, reason)
    prompt = encode_prompt(asked, tool_engine.template, tool_engine.tokenizer)
    assert found.usage and found.usage.prompt_tokens == len(prompt) and 0 < found.usage.completion_tokens <= 8
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**told)
    pieces = list(client.chat.completions.create(**told, stream=True, stream_options={"include_usage": True}))
    text = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
    assert text == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert {one.id for one in pieces} == {pieces[0].id}
    assert [one.usage for one in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_without_usage_a_stream_ends_with_its_reason(client: openai.OpenAI) -> None:
    pieces = list(client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3, stream=True))
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_the_same_seed_gives_the_same_reply_and_n_gives_others(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 10, "temperature": 1.5, "seed": 7}
    one = client.chat.completions.create(**told)
    three = client.chat.completions.create(**told, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert texts[0] == one.choices[0].message.content and len(set(texts)) == 3
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > one.usage.completion_tokens
    again = client.chat.completions.create(**{**told, "seed": 8})
    assert again.choices[0].message.content == texts[1]


def test_choices_stream_side_by_side(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 6, "temperature": 1.2, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**told)
    texts = ["", ""]
    for piece in client.chat.completions.create(**told, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_stop_strings_are_left_out(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 16, "temperature": 0}
    text = client.chat.completions.create(**told).choices[0].message.content
    stop = text[3:5]
    found = client.chat.completions.create(**told, stop=[stop, "never said"]).choices[0]
    assert found.message.content == text[: text.index(stop)] and found.finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 5, "temperature": 0}
    (choice,) = client.chat.completions.create(**told, logprobs=True, top_logprobs=2).choices
    content = choice.logprobs.content
    assert content and all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in content)
    assert all(one.top_logprobs[0].logprob == one.logprob for one in content)  # the most likely one was taken
    said = b"".join(bytes(one.bytes) for one in content)
    assert said.decode(errors="ignore").startswith(choice.message.content.rstrip("�"))
    streamed = client.chat.completions.create(**told, logprobs=True, top_logprobs=2, stream=True)
    pieces = [one.choices[0].logprobs for one in streamed if one.choices and one.choices[0].logprobs]
    assert [one.token for piece in pieces for one in piece.content] == [one.token for one in content]
    with pytest.raises(openai.BadRequestError, match="logprobs: true"):
        client.chat.completions.create(**told, top_logprobs=2)


def test_samplers_beside_openai_s(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 6, "temperature": 1.5}
    greedy = client.chat.completions.create(**{**told, "temperature": 0}).choices[0].message.content
    first = client.chat.completions.create(**told, extra_body={"top_k": 1}).choices[0].message.content
    assert first == greedy
    biased = client.chat.completions.create(**told, logit_bias={"20": 100}).choices[0].message.content
    assert len(set(biased)) == 1
    client.chat.completions.create(**told, presence_penalty=1.0, frequency_penalty=-1.0, top_p=0.5, user="me")


def test_a_started_reply_is_gone_on_with(client: openai.OpenAI, tool_engine: Any) -> None:
    told: Any = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    begun = [*ASK, {"role": "assistant", "content": "The colour"}]
    found = client.chat.completions.create(**told, messages=begun)
    engine = tool_engine
    prompt = encode_prompt(Conversation((Message("user", "Name a colour."),)), engine.template, engine.tokenizer)
    prompt += engine.tokenizer.encode("The colour")[0]
    request = Request(0, prompt, GenerateOptions(max_new_tokens=8))
    assert found.choices[0].message.content == "".join(event.text for event in engine.generate([request]))
    assert found.usage.prompt_tokens == len(prompt)


def test_content_in_parts_and_the_developer_s_role(client: openai.OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Name "}, {"type": "text", "text": "a colour."}]},
    ]
    plain: Any = [{"role": "system", "content": "Be brief."}, *ASK]
    told: Any = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    one, other = (client.chat.completions.create(**told, messages=messages) for messages in (parts, plain))
    assert one.choices[0].message.content == other.choices[0].message.content
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**told, messages=image)


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_replies_follow_a_schema(client: openai.OpenAI, stream: bool) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 120, "temperature": 1, "seed": 1}
    found = client.chat.completions.create(**told, response_format=form, stream=stream)
    if stream:
        text = "".join(one.choices[0].delta.content or "" for one in found)
    else:
        text = found.choices[0].message.content
        assert found.choices[0].finish_reason == "stop"
    value = json.loads(text)
    assert value["colour"] in ("red", "blue") and isinstance(value["sure"], bool)


def test_other_forms_of_a_reply(client: openai.OpenAI) -> None:
    told: Any = {"model": "tiny", "messages": ASK, "max_tokens": 40, "temperature": 1, "seed": 2}
    choice = client.chat.completions.create(**told, extra_body={"guided_choice": ["yes", "no"]})
    assert choice.choices[0].message.content in ("yes", "no")
    digits = client.chat.completions.create(**told, extra_body={"guided_regex": "[0-9]{3}"})
    assert digits.choices[0].message.content.isdigit()
    grammar = client.chat.completions.create(**told, extra_body={"guided_grammar": 'start: "a" "b"'})
    assert grammar.choices[0].message.content == "ab"
    anything = client.chat.completions.create(**told, response_format={"type": "json_object"}).choices[0]
    assert anything.message.content.startswith("{")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**told, extra_body={"guided_regex": "["})
    with pytest.raises(openai.BadRequestError, match="use one"):
        client.chat.completions.create(
            **told, response_format={"type": "json_object"}, extra_body={"guided_regex": "a"}
        )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"colour": "blue"}, "Unrecognized request argument supplied: colour"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "critic", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": None}]}, "no content"),
    ({"messages": [{"role": "user", "content": "x" * 4000}]}, "maximum context length is 2048"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "follow"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"n": 0}, "'n'"),
    ({"n": 17}, "at most 16"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream: true"),
    ({"logit_bias": {"a": 1}}, "ids of tokens"),
    ({"logit_bias": {"99999": 1}}, "no token has this id"),
    ({"response_format": {"type": "json_schema"}}, "json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "colour"}}}}, "guide"),
    ({"tool_choice": "required"}, "needs tools"),
    ({"seed": 1.5}, "seed"),
]


@pytest.mark.parametrize("wrong, said", WRONG, ids=[next(iter(wrong)) for wrong, _ in WRONG])
def test_a_wrong_request_is_refused_in_openai_s_shape(served: Running, wrong: dict[str, Any], said: str) -> None:
    body = {"model": "tiny", "messages": ASK, "max_tokens": 2} | wrong
    with served.http() as http:
        found = http.post("/v1/chat/completions", json=body)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert said in error["message"]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-4", messages=ASK)
    assert client.chat.completions.create(model="base", messages=ASK, max_tokens=1).model == "tiny"


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "lorikeet"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../tiny")
