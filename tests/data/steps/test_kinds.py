"""Each step on small rows: what stays, what changes, what goes, and that it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.steps.conftest import record, run, step_of
from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Origin
from lorikeet.data.formats.preference import Preference
from lorikeet.data.steps import _read
from lorikeet.data.steps._contract import Log
from lorikeet.data.steps._record import Record, Turn, unpacked
from lorikeet.data.steps._values import from_line, to_line


def test_merge_keeps_ids_of_two_files_apart() -> None:
    one, two, three = record("a", "b", id="x"), record("c", "d", id="x"), record("e", "f", id="y")
    two.origin = three.origin = Origin("b.json", 0)
    kept, log = run("merge", one, two, three)
    assert [one.rest["id"] for one in kept] == ["x", "x@b", "y"]
    assert log.changed == 1 and log.seen == {"a.json": 1, "b.json": 2}
    assert [one.rest["id"] for one in run("merge", record("a", "b", id=1), ids="keep")[0]] == [1]


OUTSIDE = "before the user or behind the reply"
ROLES = {
    "in order": (["q", "a"], {}, ["q", "a"], {}),
    "system": (["system: s", "human: q", "gpt: a"], {}, ["s", "q", "a"], {}),
    "first is the model's": (["gpt: x", "human: q", "gpt: a"], {}, ["q", "a"], {OUTSIDE: 1}),
    "last is the user's": (["q", "a", "q2"], {}, ["q", "a"], {OUTSIDE: 1}),
    "empty answer": (["q", "a", "q2", " ", "q3", "a3"], {}, ["q", "a"], None),
    "joined": (["human: q", "human: r", "gpt: a"], {"repeated": "join"}, ["q\n\nr", "a"], {}),
    "the first of two": (["human: q", "gpt: a", "gpt: b"], {"repeated": "first"}, ["q", "a"], {"one speaker twice": 1}),
    "the last of two": (["human: q", "gpt: a", "gpt: b"], {"repeated": "last"}, ["q", "b"], {"one speaker twice": 1}),
    "a tool": (["human: q", "function_call: {}", "observation: 1", "gpt: a"], {}, ["q", "{}", "1", "a"], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROLES)
def test_roles_repairs(case: str) -> None:
    texts, options, expected, cuts = ROLES[case]
    ((kept,), log) = run("roles", record(*texts), **options)
    assert kept.texts() == expected
    assert cuts is None or log.cuts == cuts
    assert len(log.entries) == sum(log.cuts.values())


DROPPED = {
    "alone": ("roles", ["q"], {}, "too few turns"),
    "only the model": ("roles", ["gpt: a", "gpt: b"], {}, "too few turns"),
    "twice": ("roles", ["human: q", "gpt: a", "gpt: b"], {}, "not in turn"),
    "a stranger": ("roles", ["narrator: q", "gpt: b"], {}, "unknown role"),
    "wrong start": ("roles", ["gpt: x", "human: q", "gpt: a"], {"ends": "drop"}, "wrong ends"),
    "an empty turn": ("roles", ["q", " ", "q", "a"], {"empty": "drop"}, "empty turn"),
    "a phrase": ("blocklist", ["q", "I am CHATgpt."], {"phrases": ["ChatGPT"]}, "blocked"),
    "a pattern": ("blocklist", ["q", "key sk-abc123"], {"patterns": ["sk-[a-z0-9]+"]}, "blocked"),
    "digits": ("repetition", ["q", "0.000000000"], {"digits": 9}, "a digit repeated"),
    "characters": ("repetition", ["q", "aaaaaah"], {"characters": 6}, "a character repeated"),
    "phrases": ("repetition", ["q", "I do not know what to say here. " * 20], {"share": 0.5}, "phrases repeated"),
    "Chinese phrases": ("repetition", ["q", "我不知道该说什么好。" * 20], {"share": 0.5}, "phrases repeated"),
    "short": ("length", ["q", "a"], {"min_characters": 16}, "too few characters"),
    "long": ("length", ["q", "a" * 20], {"max_characters": 16}, "too many characters"),
    "short reply": ("length", ["q" * 50, "a"], {"min_reply": 3}, "too few reply"),
    "few turns": ("length", ["q", "a"], {"min_turns": 4}, "too few turns"),
    "many turns": ("length", ["q", "a", "q", "a"], {"max_turns": 2}, "too many turns"),
    "language": ("language", ["Wie geht es dir heute?", "Mir geht es sehr gut, danke."], {"keep": ["en"]}, "de"),
    "skipped": ("language", ["Wie geht es dir heute?", "Mir geht es sehr gut, danke."], {"skip": ["de"]}, "de"),
    "unknown": ("language", ["ok", "1 + 1"], {"keep": ["en"], "unknown": "drop"}, "unknown"),
    "no pairs": ("to_alpaca", ["human: q", "human: q", "gpt: a"], {}, "no questions with one answer each"),
    "unknown speaker": ("to_messages", ["bob: q", "gpt: a"], {}, "unknown role"),
}


@pytest.mark.parametrize("case", DROPPED)
def test_dropped_with_a_reason(case: str) -> None:
    kind, texts, options, reason = DROPPED[case]
    kept, log = run(kind, record(*texts), **options)
    assert not kept and log.dropped == {reason: 1}
    (entry,) = [one for one in log.entries if "cut" not in one]
    assert (entry["file"], entry["row"], entry["line"], entry["step"]) == ("a.json", 0, 1, kind)
    assert entry["content"]["conversations"]


def test_blocklist_of_turns_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("secret\n\nother\n")
    given = record("system: s", "human: q", "gpt: a", "human: tell", "gpt: a Secret", "human: r", "gpt: b")
    ((kept,), log) = run("blocklist", given, file=str(tmp_path / "words"), drop="turn")
    assert kept.texts() == ["s", "q", "a", "r", "b"] and log.cuts == {"blocked": 2}
    assert not run("blocklist", record("q", "a secret"), file=str(tmp_path / "words"), drop="turn")[0]


def test_blocklist_looks_where_it_is_told() -> None:
    assert run("blocklist", record("openai?", "no"), phrases=["openai"], roles=["assistant"])[0]
    assert run("blocklist", record("OpenAI", "no"), phrases=["openai"], ignore_case=False)[0]


def test_languages_are_found_and_short_texts_are_not_guessed() -> None:
    texts = {
        "en": ("How do I sort a list in Python?", "You can use the function sorted."),
        "zh": ("你好，请介绍一下你自己。", "我是一个人工智能助手。"),
        "ja": ("日本語で答えてください。", "はい、わかりました。"),
        "fr": ("Bonjour, comment allez-vous ?", "Très bien, merci beaucoup."),
        "unknown": ("ok", "```python\nfor value in sequence: print(value)\n```"),
    }
    kept, log = run("language", *(record(*pair) for pair in texts.values()), mark="language")
    assert [one.rest["language"] for one in kept] == list(texts)
    assert log.seen == dict.fromkeys(texts, 1)


def test_text_that_no_identifier_reads_is_unknown() -> None:
    kept, log = run("language", record("\x00\x01\ufffe" * 40, "a\x08b"))
    assert kept and log.seen == {"unknown": 1}


def test_chinese_is_simplified_and_japanese_is_not() -> None:
    chinese = record("請用繁體中文回答", "好的，這是測試。\n日本の學校はいい", id=1)
    japanese = record("學校はどこですか", "東京の學校です")
    kept, log = run("simplify_chinese", chinese, japanese, record("plain", "text"))
    assert kept[0].texts() == ["请用繁体中文回答", "好的，这是测试。\n日本の學校はいい"]
    assert kept[1].texts() == ["學校はどこですか", "東京の學校です"]
    assert log.changed == 1


@pytest.mark.parametrize(
    "by, expected", [(["id"], [0, 1, 3]), (["content"], [0, 2, 3]), (["opening"], [0, 3]), (["id", "content"], [0, 3])]
)
def test_dedupe(by: list[str], expected: list[int]) -> None:
    rows = [
        record("q", "a", id="x"),
        record("q", "a", row=1, id="y"),
        record("q", "a", "more", "b", row=2, id="x"),
        record("r", "a", row=3),
    ]
    kept, log = run("dedupe", *rows, by=by)
    assert [one.origin.row for one in kept] == expected
    assert all(entry["same_as"] == "a.json:1" for entry in log.entries) and len(log.entries) == 4 - len(expected)


def test_nearly_the_same() -> None:
    words = [f"word{number}" for number in range(120)]
    almost = [*words[:60], "other", *words[61:]]
    rows = [
        record(" ".join(words), "a"),
        record(" ".join(almost), "a", row=1),
        record(" ".join(words[::-1]), "a", row=2),
    ]
    kept, log = run("dedupe", *rows, by=[], near=0.8)
    assert [one.origin.row for one in kept] == [0, 2] and log.merged == {"nearly the same": 1}


def test_sample_draws_the_same_rows_again() -> None:
    rows = [record("q", f"a{number}", row=number) for number in range(100)]
    kept, log = run("sample", *rows, rows=10)
    assert len(kept) == 10 and [one.origin.row for one in kept] == sorted(one.origin.row for one in kept)
    assert log.dropped == {"not drawn": 90} and "content" not in log.entries[0]
    again, _ = run("sample", *rows, rows=10)
    assert [one.packed() for one in kept] == [one.packed() for one in again]
    assert [one.origin.row for one in run("sample", *rows, rows=10, seed=1)[0]] != [one.origin.row for one in kept]
    assert 20 < len(run("sample", *rows, share=0.4)[0]) < 60
    assert len(run("sample", *rows, rows=1000)[0]) == 100


def test_rename_roles() -> None:
    ((kept,), log) = run("rename_roles", record("bot: q", "human: a"), names={"bot": "gpt"})
    assert [turn.speaker for turn in kept.turns] == ["gpt", "human"] and log.changes == {"bot to gpt": 1}


def test_to_messages_and_back() -> None:
    call = '[{"name": "f", "arguments": {"x": 1}}]'
    given = record("system: s", "human: q", f"function_call: {call}", "observation: 1", "gpt: a", id=7)
    ((kept,), _) = run("to_messages", given)
    row = kept.as_row()
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"][0]["function"]["name"] == "f" and row["id"] == 7
    ((back,), _) = run("to_sharegpt", kept)
    turns = back.as_row()["conversations"]
    assert [turn["from"] for turn in turns] == ["system", "human", "function_call", "observation", "gpt"]


def test_to_messages_rejects_a_call_that_is_none() -> None:
    kept, log = run("to_messages", record("human: q", "function_call: not json", "gpt: a"))
    assert not kept and log.dropped == {"cannot be worked on": 1}


def test_to_alpaca() -> None:
    given = record("system: s", "human: q", "gpt: a", "human: r", "gpt: b", id="x")
    ((kept,), _) = run("to_alpaca", given)
    assert kept.as_row() == {
        "instruction": "r", "input": "", "output": "b", "system": "s", "history": [["q", "a"]], "id": "x",
    }  # fmt: skip
    given = record("system: s", "human: q", "gpt: a", "human: r", "gpt: b", id="x")
    kept_rows, log = run("to_alpaca", given, history="none")
    assert [one.as_row()["instruction"] for one in kept_rows] == ["q", "r"] and log.parts == 1
    assert [one.as_row()["id"] for one in kept_rows] == ["x_0", "x_1"]


def test_an_input_column_is_changed_for_itself() -> None:
    given = Record(
        Origin("a", 0), [Turn("user", "<p>Sort</p>", "<ul><li>b</li></ul>"), Turn("assistant", "x")], layout="alpaca"
    )
    ((kept,), _) = run("html_to_markdown", given, which="any")
    assert kept.as_row() == {"instruction": "Sort", "input": "- b", "output": "x"}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "blocklist of nothing": ("blocklist", {}),
    "an empty phrase": ("blocklist", {"phrases": [" "]}),
    "a broken pattern": ("blocklist", {"patterns": ["(("]}),
    "keep and skip": ("language", {"keep": ["en"], "skip": ["de"]}),
    "a language's name": ("language", {"keep": ["english"]}),
    "confidence above one": ("language", {"min_confidence": 60}),
    "dedupe by nothing": ("dedupe", {"by": []}),
    "dedupe by a guess": ("dedupe", {"by": ["title"]}),
    "near everything": ("dedupe", {"near": 0.01}),
    "repetition of nothing": ("repetition", {}),
    "no limit": ("length", {}),
    "impossible limits": ("length", {"min_characters": 9, "max_characters": 3}),
    "a reply longer than all": ("length", {"min_reply": 9, "max_characters": 3}),
    "more digits than a pattern counts": ("repetition", {"digits": 2**32}),
    "more characters than memory has": ("repetition", {"characters": 10**12}),
    "rows and share": ("sample", {"rows": 3, "share": 0.5}),
    "neither": ("sample", {}),
    "no names": ("rename_roles", {"names": {}}),
    "split without a model": ("split_turns", {}),
    "an unknown policy": ("split_turns", {"model": "m", "too_long": "guess"}),
    "an unknown option": ("roles", {"repair": True}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_make_no_sense_are_refused(case: str) -> None:
    kind, options = REFUSED[case]
    with pytest.raises(ValidationError):
        step_of(kind, **options)


def test_a_blocklist_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        step_of("blocklist", file=str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(DataError, match="no phrases"):
        step_of("blocklist", file=str(tmp_path / "empty"))


PAIR = {
    "conversations": [{"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "<p>Because of <b>this</b>.</p>"},
    "rejected": {"from": "gpt", "value": "<p>No idea.</p>"},
    "id": "p1",
}


def pair(**columns: Any) -> Record:
    """A preference pair as cleaning reads it."""
    row = {name: value for name, value in {**PAIR, **columns}.items() if value is not None}
    log = Log(_read.STEP)
    settled = Preference().settle([row], "a.json")
    (found,) = _read.records([(row, "a.json", 0, 1)], settled, log)
    return unpacked(from_line(to_line(found.packed())))  # as it reaches a step in another process


def test_a_pair_stands_in_the_output_as_it_stood_in_the_file() -> None:
    assert pair().as_row() == PAIR
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "score": 3}
    written = pair(conversations=None, id="x", **row).as_row()
    assert written["rejected"] == [{"role": "assistant", "content": "No."}]
    assert [turn["content"] for turn in written["messages"]] == ["Why?"]
    assert written["chosen"][0]["content"] == "So." and written["score"] == 3


def test_both_replies_of_a_pair_are_cleaned() -> None:
    ((kept,), log) = run("html_to_markdown", pair())
    assert kept.as_row()["chosen"]["value"] == "Because of **this**."
    assert kept.as_row()["rejected"]["value"] == "No idea."
    assert (log.changed, log.changes) == (1, {"HTML to Markdown": 1})
    assert kept.as_row()["conversations"] == PAIR["conversations"]


def test_a_change_of_one_side_s_prompt_alone_keeps_the_pair() -> None:
    entity = pair(conversations=[{"from": "human", "value": "Why &lt;b&gt;?"}], rejected={"from": "gpt", "value": "x"})
    ((kept,), _) = run("html_to_markdown", entity)
    row = kept.as_row()
    assert row["conversations"][0]["value"] == "Why <b>?" and row["rejected"] == {"from": "gpt", "value": "x"}


UNPAIRED = {
    "blocked": ("blocklist", {"phrases": ["idea"]}, {}, "blocked", "with the rejected reply: 'idea'"),
    "blocked in the chosen one": ("blocklist", {"phrases": ["this"]}, {}, "blocked", "'this'"),
    "the same": (
        "html_to_markdown", {}, {"rejected": {"from": "gpt", "value": "<p>Because of <strong>this</strong>.</p>"}},
        "both replies are the same", None,
    ),
    "a short one": (
        "length", {"min_reply": 9}, {"rejected": {"from": "gpt", "value": "No."}},
        "too few reply", "with the rejected reply: 3 characters in the longest reply",
    ),
    "cut": ("to_alpaca", {"history": "none"}, {"conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
        "a pair cannot be cut into parts", "2 and 2 parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPAIRED)
def test_a_pair_stays_where_both_of_its_replies_stay(case: str) -> None:
    kind, options, columns, reason, detail = UNPAIRED[case]
    kept, log = run(kind, pair(**columns), **options)
    assert not kept and log.dropped == {reason: 1}
    (entry,) = log.entries
    assert entry.get("detail") == detail and "rejected" in entry["content"]


def test_a_pair_whose_rejected_reply_became_empty_is_no_pair() -> None:
    earlier = [{"from": who, "value": who} for who in ("human", "gpt", "human")]
    hollow = pair(conversations=earlier, rejected={"from": "gpt", "value": "<p></p>"})
    ((emptied,), _) = run("html_to_markdown", hollow)
    assert emptied.rejected[0].content == ""
    kept, log = run("roles", emptied)
    assert not kept and log.dropped == {"a reply of the pair is gone": 1}


def test_a_pair_to_other_layouts() -> None:
    ((alpaca,), _) = run("to_alpaca", pair())
    assert alpaca.as_row() == {
        "instruction": "Why?", "input": "", "id": "p1",
        "chosen": PAIR["chosen"]["value"], "rejected": PAIR["rejected"]["value"],
    }  # fmt: skip
    ((messages,), _) = run("to_messages", pair())
    assert messages.as_row()["rejected"] == [{"role": "assistant", "content": "<p>No idea.</p>"}]


def test_pairs_that_differ_in_the_rejected_reply_are_two() -> None:
    kept, log = run("dedupe", pair(), pair(rejected={"from": "gpt", "value": "Hm."}), pair())
    assert len(kept) == 2 and log.merged == {"same content": 1}
