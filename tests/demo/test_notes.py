"""The demo's task is well posed, follows its seed, and its held-out notes share nothing that training saw."""

from __future__ import annotations

import json
import re
from datetime import date
from itertools import chain, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet.demo.notes import CURRENCIES, SYSTEM_PROMPT, exact_match, make_notes, pool, write_task
from lorikeet.demo.vocabulary import ANY_BUSINESS, CATEGORIES, ITEMS, MERCHANTS, PHRASINGS, PLACES, SURNAMES, WORDS

KEYS = ["merchant", "amount", "currency", "date", "category"]
REFERENCE = '{"merchant":"Café O\'Brien & Co","amount":12.50,"currency":"EUR","date":"2026-03-14","category":"meals"}'


@pytest.fixture(scope="module")
def task():
    return make_notes(1600, 400, seed=0)


def note(row):
    return row["messages"][1]["content"]


def answer(row):
    return json.loads(row["messages"][2]["content"])


def says(text, phrasing, merchant, item):
    """Whether a note is this phrasing of this merchant and purchase."""
    known = {"m": merchant, "item": item}
    parts = re.split(r"\{(\w+)\}", phrasing)
    pattern = "".join(
        re.escape(known[x]) if x in known else ".+" if i % 2 else re.escape(x) for i, x in enumerate(parts)
    )
    return re.fullmatch(pattern, text) or re.fullmatch(pattern[0].upper() + pattern[1:], text)


def test_rows_are_messages_with_one_shared_system_prompt(task):
    for row in (*task[0], *task[1]):
        assert list(row) == ["messages"]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == SYSTEM_PROMPT
        assert len(note(row).split()) <= 45
        assert "{" not in note(row) and "  " not in note(row)


def test_answers_are_compact_normalised_json(task):
    for row in (*task[0], *task[1]):
        text = row["messages"][2]["content"]
        values = answer(row)
        assert list(values) == KEYS
        assert re.search(r'"amount":\d+\.\d\d,"', text) and ", " not in text.replace(values["merchant"], "")
        assert date.fromisoformat(values["date"]).isoformat() == values["date"]
        assert values["currency"] in {row[0] for row in CURRENCIES} and values["category"] in CATEGORIES
        assert exact_match(text, text)


def test_the_system_prompt_names_every_allowed_value():
    for word in (*KEYS, *CATEGORIES, *(row[0] for row in CURRENCIES)):
        assert re.search(rf"\b{word}\b", SYSTEM_PROMPT)


def written_amounts(text):
    """Every amount a reader sees in a note: (currency, number)."""
    names = {key: code for code, sign, name, _, _ in CURRENCIES for key in (code, sign, name) if key}
    unit = "|".join(re.escape(key) for key in sorted(names, key=len, reverse=True))
    number = r"\d[\d.,]*\d|\d"
    found = []
    for match in re.finditer(rf"(?P<u>{unit}) ?(?P<n>{number})|(?P<n2>{number}) (?P<u2>{unit})", text):
        digits, name = match["n"] or match["n2"], match["u"] or match["u2"]
        cents = re.fullmatch(r"(.*)[.,](\d\d)", digits)
        whole, part = cents.groups() if cents else (digits, "0")
        found.append((names[name], float(re.sub(r"\D", "", whole) + "." + part)))
    return found


def test_every_answer_follows_from_its_note(task):
    for row in (*task[0], *task[1]):
        values, text = answer(row), note(row)
        assert values["merchant"] in text
        rest = text.replace(values["merchant"], "M")
        assert written_amounts(rest) == [(values["currency"], values["amount"])], text
        day = date.fromisoformat(values["date"])
        assert re.search(rf"(?<!\d){day.year}(?!\d)", rest) and re.search(rf"(?<!\d)0?{day.day}(?!\d)", rest), text
        in_figures = re.search(r"\b(\d+)[/.](\d\d)[/.]\d{4}\b", rest)
        if in_figures:  # day first, and clear that it is
            assert (int(in_figures[1]), int(in_figures[2])) == (day.day, day.month) and day.day > 12
        mentioned = {name for name, items in ITEMS.items() for item in items if item.lower() in text.lower()}
        assert values["category"] in mentioned


def test_pools_share_nothing():
    for seed in range(3):
        train, held_out = pool("train", seed), pool("held_out", seed)
        assert len(train.phrasings) >= 60 and len(held_out.phrasings) >= 20
        everything = {"phrasings": PHRASINGS, "surnames": SURNAMES, "words": WORDS, "places": PLACES}
        for kind, values in everything.items():
            ours, theirs = set(getattr(train, kind)), set(getattr(held_out, kind))
            assert not ours & theirs and ours | theirs == set(values)
        for name in CATEGORIES:
            assert not set(train.items[name]) & set(held_out.items[name])
            assert len(held_out.items[name]) >= 5
        days = [date(2025, month, 1) for month in range(1, 13)]
        for kind, value in (*product(["amount"], range(500, 900)), *product(["date"], days)):
            assert train.owns(kind, value) != held_out.owns(kind, value)


def test_held_out_notes_share_nothing_with_training_notes(task):
    train, held_out = task
    for key in ("merchant", "amount", "date"):
        assert not {answer(row)[key] for row in train} & {answer(row)[key] for row in held_out}, key
    # the words that make a merchant's name its own, also where glued to another, as in OliveJet
    source = pool("held_out", 0)
    own = re.compile(rf"\b({'|'.join(map(re.escape, (*source.surnames, *source.words, *source.places)))})(?![a-z])")
    fixed = set(re.findall(r"\w+", " ".join((*ANY_BUSINESS, *chain(*MERCHANTS.values())))))
    for row in train:
        assert not set(own.findall(answer(row)["merchant"])) - fixed
    for row in held_out:
        assert re.search("|".join((*source.surnames, *source.words, *source.places)), answer(row)["merchant"])


def test_notes_keep_to_the_phrasings_and_purchases_of_their_part(task):
    for part, rows in zip(("train", "held_out"), task):
        source = pool(part, 0)
        for row in rows[:300]:
            merchant, items = answer(row)["merchant"], source.items[answer(row)["category"]]
            choices = [(p, item) for p in source.phrasings for item in items if item[1:] in note(row)]
            assert any(says(note(row), phrasing, merchant, item) for phrasing, item in choices), note(row)


def test_no_two_slots_touch():
    """A merchant may end in a number, so only a space between two slots would be ambiguous."""
    assert not [phrasing for phrasing in PHRASINGS if "} {" in phrasing or "}{" in phrasing]
    for phrasing in PHRASINGS:
        assert all(phrasing.count(slot) == 1 for slot in ("{m}", "{a}", "{d}", "{item}"))


def test_no_word_or_purchase_is_listed_twice():
    for values in (SURNAMES + WORDS + PLACES, PHRASINGS, [item for items in ITEMS.values() for item in items]):
        assert len(set(values)) == len(values)


def test_training_covers_days_months_and_values(task):
    answers = [answer(row) for row in task[0]]
    dates = [date.fromisoformat(values["date"]) for values in answers]
    assert {day.day for day in dates} == set(range(1, 32)) and {day.month for day in dates} == set(range(1, 13))
    for key, allowed in (("currency", [row[0] for row in CURRENCIES]), ("category", CATEGORIES)):
        counts = [sum(values[key] == value for values in answers) for value in allowed]
        assert min(counts) > 1600 / 8 * 0.7, (key, counts)
    assert {len(str(int(values["amount"]))) for values in answers} >= {1, 2, 3, 4, 5}
    merchants = " ".join(values["merchant"] for values in answers)
    assert all(mark in merchants for mark in "&'éü27")


def test_the_seed_decides():
    first = make_notes(30, 10, seed=1)
    assert first == make_notes(30, 10, seed=1)
    other = make_notes(30, 10, seed=2)
    assert not {map(note, first[0])} & {map(note, other[0])}
    assert set(pool("held_out", 1).phrasings) != set(pool("held_out", 2).phrasings)
    assert first[0][:12] == make_notes(12, 0, seed=1)[0]


def test_write_task(tmp_path):
    train, held_out = write_task(tmp_path / "task", 12, 5, seed=3)
    assert (train.name, held_out.name) == ("train.jsonl", "held_out.jsonl")
    rows = [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in (train, held_out)]
    assert tuple(rows) == make_notes(12, 5, seed=3)


@pytest.mark.parametrize(
    "reply",
    [
        REFERENCE,
        REFERENCE.replace("12.50", "12.5"),
        REFERENCE.replace(",", " ,\n  ").replace(":", ": "),
        f"\n {REFERENCE}\n",
        REFERENCE.replace("é", "\\u00e9"),
    ],
)
def test_exact_match_accepts(reply):
    assert exact_match(reply, REFERENCE)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        REFERENCE[:-1],
        REFERENCE + ".",
        "Here it is: " + REFERENCE,
        f"```json\n{REFERENCE}\n```",
        REFERENCE + REFERENCE,
        f"[{REFERENCE}]",
        json.dumps([list(pair) for pair in json.loads(REFERENCE).items()]),
        REFERENCE.replace("12.50", '"12.50"'),
        REFERENCE.replace("12.50", "12.51"),
        REFERENCE.replace("12.50", "NaN"),
        REFERENCE.replace("12.50", "9" * 5000),
        REFERENCE.replace("12.50", "true"),
        REFERENCE.replace("12.50", '12.50,"amount":12.50'),
        REFERENCE.replace("é", "e"),
        REFERENCE.replace("meals", "Meals"),
        REFERENCE.replace("}", ',"note":""}'),
        REFERENCE.replace(',"category":"meals"', ""),
        json.dumps(dict(sorted(json.loads(REFERENCE).items()))),
    ],
)
def test_exact_match_refuses(reply):
    assert not exact_match(reply, REFERENCE)


@given(st.text(max_size=60))
def test_exact_match_takes_any_text(reply):
    assert not exact_match(reply, REFERENCE)
