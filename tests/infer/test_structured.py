"""What a guide allows is what brute force finds; what ends by itself is what was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infer.conftest import END, ByteTokenizer, LineTemplate, ids
from lorikeet import api, config
from lorikeet.base.errors import MissingExtra, RecipeError
from lorikeet.infer import structured
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.sampling import GenerateOptions, Sampler
from lorikeet.tokens._spelling import Spelling
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from tokens.test_spelling import byte_level, pieces

pytest.importorskip("llguidance")

TEXTS = ["yes", "yesterday", "no", "nö", "東京 🗼", " yes", "  x", 'a "b"\n\\', "no/yes"]
# a guide, and all the texts that it allows
FINITE: dict[str, tuple[Any, list[str]]] = {
    "choice": ({"kind": "choice", "choice": TEXTS}, TEXTS),
    "regex": ({"kind": "regex", "regex": "(ab|a)b?(ü|ö){1,2}/ ?"}, [
        f"{start}{b}{end}/{space}" for start in ("ab", "a") for b in ("b", "")
        for end in ("ü", "ö", "üü", "üö", "öü", "öö") for space in ("", " ")
    ]),
    "grammar": ({"kind": "grammar", "lark": 'start: "a" rest?\nrest: " b" "é"? | "東"'}, ["a", "a b", "a bé", "a東"]),
    "enum": (
        {"kind": "json_schema", "max_whitespace": 0, "json_schema": {"enum": ["yes", 3, None, {"a": [True, "ö"]}]}},
        ['"yes"', "3", "null", '{"a":[true,"ö"]}'],
    ),
    "object": (
        {
            "kind": "json_schema", "max_whitespace": 0, "json_schema": {
                "type": "object", "properties": {"a": {"type": "boolean"}, "b": {"const": "x"}}, "required": ["a"],
                "additionalProperties": False,
            },
        },
        [f'{{"a":{a}{b}}}' for a in ("true", "false") for b in ("", ',"b":"x"')],
    ),
}  # fmt: skip
TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda folder: ByteTokenizer(),
    "byte-level": byte_level,
    "sentencepiece": lambda folder: pieces(folder, model_type="bpe", control_symbols=["<end>"]),
    "sentencepiece without prefix": lambda folder: pieces(folder, model_type="bpe", add_dummy_prefix=False),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: make(tmp_path_factory.mktemp("tokenizer")) for name, make in TOKENIZERS.items()}


def guide(**options: Any) -> Any:
    return GenerateOptions(guide=options).guide


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_allowed_equals_brute_force(kind: str, name: str, data: st.DataObject, tokenizers: dict) -> None:
    """Token by token along a text that is drawn: a token is allowed if with it the text can still become one of the
    guide's, an end where it is one."""
    tokenizer, (options, texts) = tokenizers[kind], FINITE[name]
    wanted, spelling = [text.encode() for text in texts], tokenizer.spelling
    follower, said, place = guide(**options).compile(tokenizer, tokenizer.eos_ids), b"", 0
    while follower.ended is None:
        bytes_of = spelling.inside if place else spelling.first
        expected = [
            bool(text) and any(one.startswith(said + text) for one in wanted)
            for text in bytes_of
        ]  # fmt: skip
        for end in tokenizer.eos_ids:
            expected[end] = said in wanted
        assert follower.allowed().tolist() == expected, said
        may = [i for i, one in enumerate(expected) if one and i not in tokenizer.eos_ids]
        assert follower.accepts(said.decode(errors="replace")) == (said in wanted)
        if not may or (said in wanted and data.draw(st.booleans())):
            break
        token = data.draw(st.sampled_from(may))
        follower.take(token)
        said, place = said + bytes_of[token], place + 1
    assert said in wanted and follower.ended in (None, "stop")
    assert follower.accepts(said.decode()) and not follower.accepts(said.decode() + "!")


def test_ids_that_are_no_tokens_are_never_allowed() -> None:
    """Networks have logits for more ids than there are tokens."""
    sampler = Sampler(GenerateOptions(guide={"kind": "choice", "choice": ["a"]}), [], 0, ByteTokenizer(), [END])
    scores = sampler.scores(torch.zeros(END + 20))
    assert (scores > float("-inf")).nonzero()[:, 0].tolist() == [ord("a")]
    assert sampler.pick(torch.zeros(END + 20)) == ord("a") and sampler.ended == "stop"


def test_control_tokens_are_never_allowed() -> None:
    follower = guide(kind="regex", regex="(?s:.){3,}").compile(ByteTokenizer(), ())
    assert not follower.allowed()[END]


def test_a_copy_goes_its_own_way() -> None:
    first = guide(kind="choice", choice=["ab", "ac"]).compile(ByteTokenizer(), [END])
    first.take(ord("a"))
    second = first.copy()
    second.take(ord("b"))
    assert second.ended == "stop" and first.ended is None
    first.take(ord("c"))
    assert first.ended == "stop"


def test_a_guide_is_compiled_once_for_a_tokenizer() -> None:
    made = guide(kind="regex", regex="only[0-9]once")
    for _ in range(3):
        made.compile(ByteTokenizer(), [END])
    before = structured._compiled.cache_info()
    made.compile(ByteTokenizer(), [END])
    after = structured._compiled.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


# replies ------------------------------------------------------------------------------------------------------------


def reply(engine: Engine, prompt: str = "hello", **options: Any) -> tuple[str, str, int]:
    events = list(engine.generate([Request(0, ids(prompt), GenerateOptions(**options))]))
    return "".join(event.text for event in events), str(events[-1].reason), events[-1].tokens


def test_a_guided_reply_ends_by_itself(engine: Engine) -> None:
    """A network of noise, over bytes."""
    text, reason, tokens = reply(engine, guide={"kind": "choice", "choice": ["yes", "no"]})
    assert text in ("yes", "no") and reason == "stop" and tokens == len(text)
    for seed in range(4):
        text, reason, _ = reply(engine, guide={"kind": "regex", "regex": "[a-f]{5}"}, temperature=1.0, seed=seed)
        assert reason == "stop" and len(text) == 5 and set(text) <= set("abcdef")


def test_without_a_token_that_ends_replies_the_guide_does(engine: Engine) -> None:
    other = Engine(engine.model, engine.tokenizer, engine.template)
    other.stop_ids = ()
    assert reply(other, guide={"kind": "choice", "choice": ["yes"]}) == ("yes", "stop", 3)


def test_a_guided_reply_that_is_cut_says_so(echo: Engine, engine: Engine) -> None:
    nine = {"kind": "regex", "regex": "[a-z]{9}"}
    assert reply(engine, guide=nine, max_new_tokens=4)[1] == "length"
    # a stop string inside, and one before which the reply is what was asked for
    assert reply(echo, "abcdefghi", guide=nine, stop=["de"]) == ("abc", "length", 5)
    some = {"kind": "regex", "regex": "[a-z]+"}
    assert reply(echo, "abcdefghi", guide=some, stop=["de"]) == ("abc", "stop", 5)


def test_a_guide_says_where_a_reply_ends_not_the_template(echo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineTemplate, "stop_strings", ("e",))
    assert reply(echo, "hello there")[0] == "h"
    assert reply(echo, "hello there", guide={"kind": "regex", "regex": "[a-z]{4}"}) == ("hell", "stop", 4)


def test_beams_follow_a_guide(engine: Engine) -> None:
    """The best of all texts that the guide allows: with enough beams none is missed."""
    choice = ["ab", "ba", "aab", "bb"]
    text, reason, _ = reply(engine, guide={"kind": "choice", "choice": choice}, num_beams=6, length_penalty=0.0)
    scores = {one: _log_probability(engine, ids("hello"), ids(one)) for one in choice}
    assert text == max(choice, key=scores.__getitem__) and reason == "stop"


def _log_probability(engine: Engine, prompt: list[int], said: list[int]) -> float:
    from lorikeet.ops.attention import PackedView

    row = torch.tensor(prompt + said)
    view = PackedView(torch.full((len(row),), len(row), dtype=torch.int32), torch.arange(len(row)))
    with torch.no_grad():
        logits = engine.model.head.logits(engine.model.hidden(row, torch.arange(len(row)), view))
    logprobs = logits.float().log_softmax(-1)
    return float(sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(said)))


# JSON ---------------------------------------------------------------------------------------------------------------

NAMES = st.text('abcö" ', min_size=1, max_size=4)
INTEGERS = st.integers(-(1 << 53), 1 << 53)
VALUES = st.lists(st.one_of(INTEGERS, NAMES, st.none()), min_size=1, max_size=3)


def _between(kind: str, low: str, high: str, bottom: int, most: int) -> st.SearchStrategy[Any]:
    ends = st.tuples(st.integers(bottom, most), st.integers(0, most))
    return ends.map(lambda some: {"type": kind, low: some[0], high: sum(some)})


LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "number"}, {"type": "string", "format": "date"}]),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"}),
    _between("integer", "minimum", "maximum", -99, 99),
    _between("string", "minLength", "maxLength", 0, 4),
    VALUES.map(lambda values: {"enum": values}),
    NAMES.map(lambda value: {"const": value}),
)


def _branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: dict[str, Any], needed: int) -> dict[str, Any]:
        required = list(properties)[:needed]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    arrays = st.builds(lambda items, low: {"type": "array", "items": items, "minItems": low, "maxItems": low + 2},
                       inner, st.integers(0, 2))  # fmt: skip
    either = st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3))
    return st.one_of(st.builds(made, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 3)), arrays, either)


SCHEMAS = st.recursive(LEAVES, _branches, max_leaves=6)


def _valid(schema: Any, text: str) -> bool:
    validator = pytest.importorskip("jsonschema_rs")
    # 1E999 is a number of JSON; Python reads it as an infinity, which the validator takes for none
    read = json.loads(text, parse_float=lambda said: max(-sys.float_info.max, min(sys.float_info.max, float(said))))
    return bool(validator.is_valid(schema, read, validate_formats=True))


@given(SCHEMAS, st.integers(0, 1 << 20))
@settings(max_examples=40, deadline=None)
def test_json_of_any_schema_is_valid(schema: Any, seed: int) -> None:
    """Tokens drawn from noise, so that whatever is allowed is said some time."""
    options = GenerateOptions(guide={"kind": "json_schema", "json_schema": schema}, temperature=1.0, seed=seed)
    sampler, noise, said = Sampler(options, [], 0, ByteTokenizer(), [END]), torch.Generator().manual_seed(seed), []
    while sampler.ended is None and len(said) < 400:
        said.append(sampler.pick(torch.randn(END + 1, generator=noise)))
    if sampler.ended is not None:
        assert sampler.ended == "stop" and _valid(schema, bytes(token for token in said if token < END).decode())


@pytest.mark.slow
def test_200_json_replies_that_end_by_themselves_are_valid(tiny_model: Path) -> None:
    engine, ended, tried = api.engine(tiny_model, {"dtype": "float32"}), 0, 0

    @given(SCHEMAS)
    @settings(max_examples=400, deadline=None, database=None)
    def check(schema: Any) -> None:
        nonlocal ended, tried
        if ended >= 200:
            return
        asked = {"kind": "json_schema", "json_schema": schema, "max_whitespace": 2}
        options = GenerateOptions(guide=asked, temperature=1.0, max_new_tokens=120, seed=tried)
        tried += 1
        events = list(engine.generate([Request(0, [1, 2, 3], options)]))
        if events[-1].reason == "stop":
            ended += 1
            assert _valid(schema, "".join(event.text for event in events))

    check()
    assert ended == 200, tried


@pytest.mark.parametrize("value", ["-9223372036854775808", 1 << 53, -(1 << 53), 0.5])
def test_long_numbers_that_are_written_as_asked(value: Any) -> None:
    follower = guide(kind="json_schema", json_schema={"const": value}).compile(ByteTokenizer(), [END])
    assert follower is not None and follower.accepts(json.dumps(value))


def test_a_json_object_is_one_and_white_space_has_its_measure(engine: Engine) -> None:
    follower = guide(kind="json_object", max_whitespace=2).compile(ByteTokenizer(), [END])
    for text, allowed in [
        ("{}", True), ('{"a": 1}', True), ('{ \n"a":[]}', True), ('{   "a":1}', False), ("[]", False), ("{} ", False),
    ]:  # fmt: skip
        assert follower.accepts(text) == allowed, text
    compact = guide(kind="json_object", max_whitespace=0).compile(ByteTokenizer(), [END])
    assert compact.accepts('{"a":1,"b":{}}') and not compact.accepts('{"a": 1}')


# what cannot be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "json_schema", "json_schema": {"type": "bogus"}}, "Invalid type: bogus"),
        ({"kind": "json_schema", "json_schema": {"enum": []}}, "Unsatisfiable"),
        ({"kind": "json_schema", "json_schema": False}, "false allows nothing"),
        ({"kind": "json_schema", "json_schema": {"type": "array", "uniqueItems": True}}, "Unimplemented keys"),
        ({"kind": "json_schema", "json_schema": {"const": -(1 << 63)}}, "is beyond the integers that a double holds"),
        ({"kind": "grammar", "lark": 'start: %json {"const": -9223372036854775808}'}, "is beyond the integers"),
        (
            {"kind": "json_schema", "json_schema": {"anyOf": [{"enum": [3, -(10**20)]}]}},
            "-1000.* is beyond the integers",
        ),
        ({"kind": "json_schema", "json_schema": {"$ref": "#/nowhere"}}, "does not exist"),
        ({"kind": "json_schema", "json_schema": [1]}, "json_schema"),
        ({"kind": "json_schema", "json_schema": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"kind": "json_schema", "json_schema": {"minimum": 3, "maximum": 2, "type": "integer"}}, "greater than"),
        ({"kind": "json_schema"}, "Field required"),
        ({"kind": "json_object", "max_whitespace": -1}, "greater than or equal to 0"),
        ({"kind": "regex", "regex": "("}, "unclosed group"),
        ({"kind": "regex", "regex": r"(a)\1"}, "backreferences"),
        ({"kind": "choice", "choice": []}, "at least 1"),
        ({"kind": "choice", "choice": ["a", ""]}, "empty"),
        ({"kind": "grammar", "lark": "start: nothing"}, "unknown name"),
        ({"kind": "grammar", "lark": ""}, "start"),
        ({"kind": "poem"}, "no kind 'poem'"),
        ({"regex": "a"}, "'kind'"),
        (7, "'kind'"),
        ("nowhere.json", "cannot read nowhere.json"),
    ],
)
def test_a_bad_guide_is_refused_with_the_reason(wrong: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as error:
        GenerateOptions(guide=wrong)
    assert "<state>" not in str(error.value)


def test_files_stand_for_what_is_in_them(tmp_path: Path) -> None:
    schema, lark, broken = tmp_path / "one.json", tmp_path / "two.lark", tmp_path / "broken.json"
    schema.write_text('{"type": "boolean"}')
    lark.write_text('start: "a" | "ö"', encoding="utf-8")
    broken.write_text('{"type": ')
    assert GenerateOptions(guide=str(schema)).guide == guide(kind="json_schema", json_schema={"type": "boolean"})
    assert GenerateOptions(guide=str(lark)).guide == guide(kind="grammar", lark='start: "a" | "ö"')
    with pytest.raises(ValidationError, match=r"broken\.json is not JSON"):
        GenerateOptions(guide=str(broken))
    assert GenerateOptions(guide=None) == GenerateOptions(guide="none") == GenerateOptions()
    whole = GenerateOptions(guide=str(schema))
    assert GenerateOptions.model_validate_json(whole.model_dump_json()) == whole


def test_a_tokenizer_that_cannot_write_it_is_an_error_not_a_wrong_reply() -> None:
    class OnlyA(ByteTokenizer):
        fingerprint = "only a"
        spelling = Spelling([b"a", b""], [b"a", b""])
        control, eos_ids = {"<end>": 1}, (1,)

    with pytest.raises(RecipeError, match="cannot write what the guide asks for"):
        guide(kind="choice", choice=["b"]).compile(OnlyA(), (1,))
    follower = guide(kind="choice", choice=["ab"]).compile(OnlyA(), (1,))
    assert follower.allowed().tolist() == [True, False]
    follower.take(0)
    assert follower.ended == "length"


def test_without_the_package_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"generate\.guide needs the package 'llguidance'") as error:
        GenerateOptions(guide={"kind": "regex", "regex": "never seen before"})
    assert "lorikeet-llm[structured]" in str(error.value)


def test_spaces_that_a_tokenizer_drops_at_the_start_are_counted(tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    """`▁yes` at the start of a reply is the text `yes`, so a choice of `yes` allows it, and ` yes` does not."""
    tokenizer = tokenizers["sentencepiece"]
    inside = tokenizer.spelling.inside
    word, text = next((id, text.decode()) for id, text in enumerate(inside) if text[:1] == b" " and text[1:].isalpha())
    assert tokenizer.decode([word]) == text[1:]
    assert guide(kind="choice", choice=[text[1:]]).compile(tokenizer, ()).allowed()[word]
    assert not guide(kind="choice", choice=[text]).compile(tokenizer, ()).allowed()[word]


def test_a_command_line_names_a_file_or_a_kind(tmp_path: Path) -> None:
    """`predict --guide FILE` is the first of these."""
    file = tmp_path / "a guide: mine.json"
    file.write_text('{"type": "boolean"}')
    for words, expected in [
        ([f"generate.guide={json.dumps(str(file))}"], guide(kind="json_schema", json_schema={"type": "boolean"})),
        (["generate.guide={kind: choice, choice: [a, b]}"], guide(kind="choice", choice=["a", "b"])),
        (
            ["generate.guide=json_object", "generate.guide.max_whitespace=0"],
            guide(kind="json_object", max_whitespace=0),
        ),
    ]:
        assert config.options("generate", words)["guide"] == expected
    with pytest.raises(RecipeError, match=r"generate\.guide") as error:
        config.options("generate", ["generate.guide={kind: regex, regex: '('}"])
    assert "unclosed group" in str(error.value) and str(error.value).count("\n") <= 3
