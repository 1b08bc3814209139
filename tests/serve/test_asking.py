"""From a body to the engine's requests: what a request leaves out, and how its text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorikeet.api import serving
from lorikeet.base.errors import RecipeError
from lorikeet.infer import structured
from lorikeet.infer.remote import Server
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.serve import asking, simple_api
from lorikeet.serve.errors import ApiError
from lorikeet.serve.protocol import ChatRequest, CompletionRequest, GenerateRequest
from lorikeet.serve.service import Service
from lorikeet.serve.settings import Settings
from serve.conftest import Running


def service(served: Running, **settings: Any) -> Service:
    """The same model under other settings; nothing is asked of it."""
    return Service(served.service.worker, Settings("tiny", **settings))


def chat(one: Service, **more: Any) -> GenerateOptions:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **more})
    return asking.chat(one, body).requests[0].options


def completion(one: Service, **more: Any) -> GenerateOptions:
    return asking.completion(one, CompletionRequest.model_validate({"prompt": "hi", **more})).requests[0].options


def test_a_reply_whose_length_nobody_asks_for_is_as_long_as_the_command_says(served: Running) -> None:
    assert completion(service(served)).max_new_tokens == 16
    said = service(served, generate={"max_new_tokens": 40})
    assert completion(said).max_new_tokens == chat(said).max_new_tokens == 40
    least = service(served, generate={"max_new_tokens": 40}, max_new_tokens=8)
    assert completion(least).max_new_tokens == chat(least).max_new_tokens == 8
    with pytest.raises(ApiError, match="at most 8"):
        completion(least, max_tokens=9)


def test_seed_and_beams_that_the_command_says_are_every_request_s(served: Running) -> None:
    assert chat(service(served, generate={"seed": 3})).seed == 3
    assert chat(service(served, generate={"seed": 3}), seed=4).seed == 4
    beams = chat(service(served, generate={"num_beams": 2}))
    assert (beams.num_beams, beams.temperature) == (2, 0)


@pytest.mark.parametrize(
    "told", [{}, {"temperature": 0.2, "top_p": 0.5, "seed": 3, "max_new_tokens": 40}, {"num_beams": 2}]
)
def test_what_the_page_shows_as_usual_is_what_a_request_that_says_nothing_gets(
    served: Running, told: dict[str, Any]
) -> None:
    one = service(served, generate=told, max_new_tokens=30 if told else None)
    options, shown = chat(one), asking.usual(one.settings)
    assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"} <= set(shown)
    assert ("max_tokens" in shown) == bool(told) and ("seed" in shown) == ("seed" in told)
    names = {"max_tokens": "max_new_tokens"}
    assert {name: getattr(options, names.get(name, name)) for name in shown} == shown


def old(one: Service, **more: Any) -> GenerateOptions:
    return simple_api.old_request(one, GenerateRequest.model_validate({"message": "hi", **more})).options


def test_the_old_protocol_s_usual_values_are_for_what_neither_request_nor_command_says(served: Running) -> None:
    usual = {"temperature": 0.7, "top_k": 20, "top_p": 0.65, "min_p": 0.06, "repetition_penalty": 1.15}
    usual["max_new_tokens"] = 200
    none = old(service(served))
    assert {name: getattr(none, name) for name in usual} == usual
    assert old(service(served), temperature=None, max_new_tokens=None).model_dump(exclude={"seed"}) == none.model_dump(
        exclude={"seed"}
    )
    told = {"temperature": 0.2, "top_k": 5, "repetition_penalty": 1.0, "max_new_tokens": 40, "seed": 3}
    said = service(served, generate={**told, "stop": ["END"], "presence_penalty": 0.5})
    mine = old(said)
    assert {name: getattr(mine, name) for name in told} == told
    assert (mine.top_p, mine.stop, mine.presence_penalty) == (0.65, ["END"], 0.5)
    asked = old(said, temperature=0.9, token_repetition_penalty_max=1.3, max_new_tokens=50)
    assert (asked.temperature, asked.repetition_penalty, asked.max_new_tokens, asked.top_k) == (0.9, 1.3, 50, 5)
    assert old(service(served, generate={"max_new_tokens": 40}, max_new_tokens=8)).max_new_tokens == 8


def test_beams_that_the_command_says_are_the_old_protocol_s_too(served: Running) -> None:
    one = service(served, generate={"num_beams": 2})
    assert (old(one).num_beams, old(one).temperature) == (2, 0)
    with pytest.raises(ApiError, match="num_beams"):
        old(one, temperature=0.7)


@pytest.mark.parametrize("option", ["batch_size=3", "logprobs=2"])
def test_an_option_that_requests_or_rows_decide_is_refused(option: str) -> None:
    name, value = option.split("=")
    with pytest.raises(RecipeError, match=f"generate.{name}: has no effect"):
        serving.application(
            serving.Named("no-such-model"), serving.Access(), serving.Rows(), generate={name: int(value)}
        )


def test_copies_of_quantised_weights_are_kept_as_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(Exception):
        pass

    def made(*_: Any, **given: Any) -> None:
        raise Made(given["dequantize"])

    monkeypatch.setattr(serving, "open_any", lambda *_, **__: (None, None, None, None))
    monkeypatch.setattr(serving, "Batch", made)
    with pytest.raises(Made, match="False"):
        serving.application(serving.Named("tiny"), serving.Access(), serving.Rows(), generate={"dequantize": False})


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_an_adapter_cannot_have_a_name_that_means_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--adapter: the name is taken"):
        serving.application(serving.Named("no-such-model", "tiny", {name: tmp_path}), serving.Access(), serving.Rows())


def test_a_text_to_complete_names_control_tokens_and_what_a_person_says_does_not(served: Running) -> None:
    one, tokenizer = service(served), served.service.engine.tokenizer
    start, end = tokenizer.control["<|im_start|>"], tokenizer.control["<|im_end|>"]
    told = CompletionRequest.model_validate({"prompt": "<|im_start|>user\nhi<|im_end|>\n"})
    (request,) = asking.completion(one, told).requests
    middle = tokenizer.encode("user\nhi", after="control")[0]
    assert list(request.prompt) == [start, *middle, end, *tokenizer.encode("\n", after="control")[0]]
    old = GenerateRequest(message="<|im_end|>", prompt="<|im_start|>{user_input}")
    prompt = list(simple_api.old_request(one, old).prompt)
    assert prompt[0] == start and end not in prompt and len(prompt) > 2


def test_a_guide_is_made_ready_before_the_thread_of_the_weights_sees_it(served: Running) -> None:
    before = structured._compiled.cache_info().misses
    chat(service(served), guided_regex="never asked before [0-9]")
    assert structured._compiled.cache_info().misses == before + 1


@pytest.mark.parametrize("given", [{"regex": "[0-9]+"}, {"choice": ["a", "b"]}, {"grammar": 'start: "a"'}])
def test_guides_have_vllm_s_new_names_too_and_may_come_by_both(served: Running, given: dict[str, Any]) -> None:
    ((kind, value),) = given.items()
    old = {f"guided_{kind}": value}
    found = [chat(service(served), **more).guide for more in (old, {"structured_outputs": given})]
    assert found[0] == found[1] == chat(service(served), **old, structured_outputs=given).guide
    with pytest.raises(ApiError, match="use one"):
        chat(service(served), **old, structured_outputs={"json": {"type": "object"}})


def test_what_predict_asks_of_a_server_this_one_takes(served: Running) -> None:
    server = Server(served.url, "tiny")
    for guide in ({"kind": "regex", "regex": "[0-9]"}, {"kind": "json_object"}, {"kind": "choice", "choice": ["a"]}):
        body = server.body([{"role": "user", "content": "hi"}], GenerateOptions(guide=guide, top_k=3), 0)
        assert chat(service(served), **body).guide.model_dump()["kind"] == guide["kind"]
