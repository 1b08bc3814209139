"""What steps must tell apart: patterns of one list, languages by their codes, texts without words, replies of pairs."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from data.steps.conftest import record, run, step_of
from data.steps.test_kinds import pair
from lorikeet.base.errors import RecipeError


def test_patterns_have_groups_and_flags_of_their_own() -> None:
    patterns = [r"(foo)bar", r"(\w)\1{5}", "(?i)SECRET", r"(?P<a>x)y", r"(?P<a>z)y", "(?x) n o # not a word"]
    options = {"patterns": patterns, "ignore_case": False}
    for text in ("foobar", "zzzzzz", "a Secret", "xy", "zy", "no"):
        assert not run("blocklist", record("q", text), **options)[0], text
    assert run("blocklist", record("q", "foofoofoofoofoofoo fine"), **options)[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("שלום לכולם, מה שלומכם היום? אני שמח מאוד לראות אתכם כאן.", "he"),
        ("Hei, hvordan har du det i dag? Jeg vet ikke hva jeg skal gjøre.", "no"),
    ],
)
def test_languages_have_their_iso_codes(text: str, code: str) -> None:
    kept, log = run("language", record(text, text), keep=[code])
    assert kept and log.seen == {code: 1}


def test_a_code_of_no_language_is_refused() -> None:
    for options in ({"keep": ["jp"]}, {"skip": ["cn"]}, {"keep": ["eng"]}):
        with pytest.raises(RecipeError, match="language"):
            step_of("language", **options)


def test_texts_without_words_are_not_alike() -> None:
    rows = [record("😀", "👍", row=0), record("🎉 !", "?", row=1), record("😀", "👍", row=2)]
    kept, _ = run("dedupe", *rows, by=[], near=0.8)
    assert [one.origin.row for one in kept] == [0, 1]


def test_pairs_with_other_rejected_replies_are_not_alike() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    other = pair(rejected={"from": "gpt", "value": words})
    assert len(run("dedupe", pair(), other, pair(), by=[], near=0.9)[0]) == 2


def test_thousands_of_phrases_are_looked_for_in_little_time(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrst", k=draw.randrange(4, 10))) for _ in range(3000)]
    phrases = [f"{draw.choice(words)}x {draw.choice(words)}" for _ in range(8000)]
    (tmp_path / "words").write_text("\n".join([*phrases, "no go"]))
    rows = [record("q", " ".join(draw.choices(words, k=800)), row=row) for row in range(60)]
    start = time.process_time()
    kept, _ = run("blocklist", *rows, record("q", "A No Go!"), file=str(tmp_path / "words"))
    assert len(kept) == 60 and time.process_time() - start < 8, "20 s where each phrase is looked for at each place"


def test_what_was_found_is_shown_as_it_stands() -> None:
    for options in ({"phrases": ["chatgpt"]}, {"patterns": ["chat[g]pt"]}):
        kept, log = run("blocklist", record("q", "I am ChatGPT."), **options)
        assert not kept and log.entries[0]["detail"] == "'ChatGPT'"


def test_a_middle_dot_is_no_japanese() -> None:
    ((kept,), log) = run("simplify_chinese", record("約翰・史密斯是誰？", "他是一個作家。"))
    assert kept.texts() == ["约翰・史密斯是谁？", "他是一个作家。"] and log.changed == 1
