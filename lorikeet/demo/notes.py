"""The demo's task: free-text expense notes to strict JSON, made anew from a seed.

A note says in its own words what was paid, to whom, when and for what; the answer is one JSON object with the amount
as a number, the ISO currency, the ISO date and one of eight categories. The held-out notes test generalisation and
not memory: their merchants are made of words, and their sentences, purchases, amounts and dates are ones, that no
training note has. Both sides come from the same pools, cut by the seed, so neither side is the easier one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np

from lorikeet.base.files import write_file
from lorikeet.base.rng import derive, numpy_rng
from lorikeet.demo.vocabulary import (
    ANY_BUSINESS,
    CATEGORIES,
    ITEMS,
    MERCHANTS,
    PHRASINGS,
    PLACES,
    SURNAMES,
    WORDS,
)

Part = Literal["train", "held_out"]

# The currency's code, sign, spoken name, whether a decimal comma is usual, and a factor on the size of amounts.
CURRENCIES = (
    ("USD", "$", "dollars", False, 1),
    ("EUR", "€", "euros", True, 1),
    ("GBP", "£", "pounds", False, 1),
    ("CHF", None, "Swiss francs", False, 1),
    ("SEK", None, "Swedish kronor", True, 10),
    ("BRL", "R$", "reais", True, 5),
    ("INR", "₹", "rupees", False, 40),
    ("JPY", "¥", "yen", False, 100),  # has no cents
)

SYSTEM_PROMPT = (
    "Read the expense note and answer with one line of JSON: merchant, amount (12.50), "
    f"currency ({' '.join(row[0] for row in CURRENCIES)}), date (YYYY-MM-DD), category ({' '.join(CATEGORIES)})."
)

# Not strftime's names: those change with the locale.
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST_DAY, DAYS = date(2022, 1, 1), 6 * 365
HELD_OUT_SHARE = 4  # one in so many words, phrasings, purchases, amounts and dates is held out


@dataclass(frozen=True, slots=True)
class Pool:
    """What the notes of one part are made of."""

    part: Part
    seed: int
    phrasings: tuple[str, ...]
    items: dict[str, tuple[str, ...]]  # by category
    surnames: tuple[str, ...]
    words: tuple[str, ...]
    places: tuple[str, ...]

    def owns(self, kind: str, value: object) -> bool:
        """Whether an amount or a date belongs to this part: a pure function of seed and value."""
        return (derive(self.seed, kind, value) % HELD_OUT_SHARE == 0) == (self.part == "held_out")


def pool(part: Part, seed: int) -> Pool:
    """The pool of a part; the two parts of a seed share no phrasing, purchase, or word of a name."""

    def cut(kind: str, values: tuple[str, ...]) -> tuple[str, ...]:
        order = numpy_rng(seed, "split", kind).permutation(len(values))
        held_out = len(values) // HELD_OUT_SHARE
        return tuple(values[i] for i in (order[:held_out] if part == "held_out" else order[held_out:]))

    return Pool(
        part,
        seed,
        phrasings=cut("phrasings", PHRASINGS),
        items={name: cut(f"items/{name}", items) for name, items in ITEMS.items()},
        surnames=cut("surnames", SURNAMES),
        words=cut("words", WORDS),
        places=cut("places", PLACES),
    )


def make_notes(n_train: int, n_held_out: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Training and held-out rows in OpenAI's `messages` layout: system, user (the note), assistant (the JSON).

    Row i of a part depends on (seed, part, i) alone, so fewer rows are the beginning of more rows.
    """
    train, held_out = pool("train", seed), pool("held_out", seed)
    return [_row(train, i) for i in range(n_train)], [_row(held_out, i) for i in range(n_held_out)]


def write_task(folder: Path, n_train: int, n_held_out: int, seed: int) -> tuple[Path, Path]:
    """Write `train.jsonl` and `held_out.jsonl` into `folder`; returns the two paths."""
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, rows in zip(paths, make_notes(n_train, n_held_out, seed), strict=True):
        write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return paths


def exact_match(reply: str, reference: str) -> bool:
    """Whether `reply` is the reference's JSON object and nothing else.

    Same keys in the same order, none twice, equal values of the same JSON type; numbers are compared as numbers
    (12.5 is 12.50, but "12.50" is a string). White space between JSON's parts is free; any other text is a miss.
    """
    expected = _canonical(reference)
    assert expected is not None, "a reference is always a JSON object"
    return _canonical(reply) == expected


def _canonical(text: str) -> str | None:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=float, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return json.dumps(value) if isinstance(value, dict) else None


def _row(source: Pool, index: int) -> dict:
    rng = numpy_rng(source.seed, "note", source.part, index)
    category = _pick(rng, CATEGORIES)
    item, merchant = _pick(rng, source.items[category]), _merchant(rng, source, category)
    currency, cents, amount = _amount(rng, source)
    day, written_day = _date(rng, source)
    phrasing = _pick(rng, source.phrasings)
    note = phrasing.format(item=item, m=merchant, a=amount, d=written_day, r=int(rng.integers(1000, 10000)))
    answer = (
        f'{{"merchant":{json.dumps(merchant, ensure_ascii=False)},"amount":{cents // 100}.{cents % 100:02d},'
        f'"currency":"{currency}","date":"{day.isoformat()}","category":"{category}"}}'
    )
    texts = {"system": SYSTEM_PROMPT, "user": note[0].upper() + note[1:], "assistant": answer}
    return {"messages": [{"role": role, "content": content} for role, content in texts.items()]}


def _merchant(rng: np.random.Generator, source: Pool, category: str) -> str:
    """A name; a quarter of them say nothing about the category."""
    name = _pick(rng, ANY_BUSINESS if rng.random() < 0.25 else MERCHANTS[category])
    for slot, values in (("{s}", source.surnames), ("{w}", source.words), ("{p}", source.places)):
        words = rng.permutation(len(values))[:2]  # two different ones, should a name need two
        for i in words:
            name = name.replace(slot, values[i], 1)
    return name.replace("{n}", str(rng.integers(2, 100)))


def _amount(rng: np.random.Generator, source: Pool) -> tuple[str, int, str]:
    """The currency, the amount in cents, and how the note writes it."""
    code, sign, name, comma_usual, factor = CURRENCIES[rng.integers(len(CURRENCIES))]
    while True:
        size = factor * float(np.exp(rng.uniform(np.log(4), np.log(1500))))
        whole = code == "JPY" or rng.random() < 0.25
        cents = round(size) * 100 if whole else round(size * 100)
        if source.owns("amount", cents):
            break
    digits = f"{cents / 100:,.{0 if whole and (code == 'JPY' or rng.random() < 0.7) else 2}f}"
    if rng.random() < 0.4:
        digits = digits.replace(",", "")
    if comma_usual and "." in digits and rng.random() < 0.4:
        digits = digits.translate(str.maketrans(",.", ".,"))
    forms = [f"{code} {digits}", f"{digits} {code}", f"{digits} {name}"]
    if sign is not None:
        forms += [f"{sign}{digits}", f"{digits} €" if sign == "€" else f"{sign}{digits}"]
    return code, cents, _pick(rng, forms)


def _date(rng: np.random.Generator, source: Pool) -> tuple[date, str]:
    """A day and how the note writes it; day and month in figures only where the day is above 12, hence clear."""
    while True:
        day = FIRST_DAY + timedelta(days=int(rng.integers(DAYS)))
        if source.owns("date", day):
            break
    n, month, year = day.day, MONTHS[day.month - 1], day.year
    th = "th" if 11 <= n <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    forms = [
        day.isoformat(),
        f"{n} {month} {year}",
        f"{month} {n}, {year}",
        f"{month} {n}{th}, {year}",
        f"{n}{th} {month} {year}",
        f"the {n}{th} of {month} {year}",
        f"{n} {month[:3]} {year}",
        f"{month[:3]} {n}, {year}",
        f"{WEEKDAYS[day.weekday()]} {n} {month} {year}",
        f"{year}/{day.month:02d}/{n:02d}",
    ]
    if n > 12:
        forms += [f"{n}/{day.month:02d}/{year}", f"{n}.{day.month:02d}.{year}"]
    return day, _pick(rng, forms)


def _pick(rng: np.random.Generator, values: list[str] | tuple[str, ...]) -> str:
    return values[rng.integers(len(values))]
