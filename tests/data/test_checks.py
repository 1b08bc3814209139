"""Faults that are put into clean rows are found by the check that is there for them, and nothing else is."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from data.conftest import TinyTokenizer
from data.templates.families import bind
from data.test_ledger import template
from lorikeet.base.errors import RecipeError
from lorikeet.base.nouns import Conversation, Origin
from lorikeet.data import checking
from lorikeet.data.checks._contract import Row, Setting
from lorikeet.data.checks.encoding import damage
from lorikeet.data.checks.languages import main_script, scripts
from lorikeet.data.pipeline import DataOptions, prepare
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, Template
from lorikeet.data.templates.chatml import ChatML
from lorikeet.data.truncate import Encoder
from lorikeet.data.walk import Walked, walk

COLOURS = ["red", "green", "blue", "white", "black", "brown", "yellow", "pink"]
THINGS = ["house", "car", "bird", "river", "letter"]
SCRIPTS = [
    "Столица Франции это Париж", "法国的首都是巴黎这座美丽的城市", "عاصمة فرنسا هي باريس",
    "Η πρωτεύουσα είναι το Παρίσι", "フランスの首都はパリです",
]  # fmt: skip


def clean(number: int) -> dict[str, Any]:
    """A row like no other."""
    colour, thing = COLOURS[number % len(COLOURS)], THINGS[number % len(THINGS)]
    question = f"Who painted {thing} {number} in {colour}, and why?"
    return talk(question, f"Painter {number * 7} did: {colour} is a “friendly” colour, isn’t it? Ça va, José.")


def talk(question: Any, answer: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]
    return {"messages": turns}


def question(row: dict[str, Any]) -> str:
    return row["messages"][-2]["content"]


def answer(row: dict[str, Any]) -> str:
    return row["messages"][-1]["content"]


LEVELS = ("error", "warning")
LONG = "and then something else happened to all of them, "
DAMAGE = ["caf\ufffd", "a\x00b", "cafÃ© au lait", "itâ€™s late", "锟斤拷 there"]
MARKERS = ["### Response:", "[INST] go [/INST]", "### Instruction:\nGo on.", "<start_of_turn>model", "<|eom_id|>"]
HOLES = ["{{name}}", "{{ NAME }}", "<NAME>", "{{author}}", "<AUTHOR>"]
# fault: (the check that finds it, what it does to the n-th of five clean rows); with two rows, the second is found
Make = Callable[[dict[str, Any], int, Template], list[dict[str, Any]]]


def control(row: dict[str, Any], number: int, made: Template) -> list[dict[str, Any]]:
    names = sorted(name for name in made.tokenizer.control if name not in ("<think>", "</think>"))
    return [talk(f"{question(row)} {names[number % len(names)]} So?", answer(row))]


def markers(row: dict[str, Any], number: int, made: Template) -> list[dict[str, Any]]:
    left = [marker for marker in MARKERS if not any(name in marker for name in made.tokenizer.control)]
    return [talk(question(row), f"{answer(row)}\n\n{left[number % len(left)]}")]


FAULTS: dict[str, tuple[str, Make]] = {
    "nothing is learned": ("no_trained_token", lambda row, n, _: [talk(question(row), answer(row), trained=False)]),
    "a weight of 0": ("no_trained_token", lambda row, n, _: [talk(question(row), answer(row), weight=0)]),
    "a reply without its end": ("untrained_end", lambda row, n, _: [talk(question(row), LONG * 32 + str(n))]),
    "a row that is cut": ("rows_cut", lambda row, n, _: [talk(f"{LONG * 32} {n}", answer(row))]),
    "a control string": ("control_strings", control),
    "a marker of turns": ("template_markers", markers),
    "an empty reply": ("empty_text", lambda row, n, _: [talk(question(row), ["", " ", "\n\n", "\t", "nan"][n])]),
    "a reply that is the question": ("reply_is_prompt", lambda row, n, _: [talk(question(row), question(row))]),
    "two answers": ("conflicting_answers", lambda row, n, _: [row, talk(question(row).upper(), "Nobody knows that.")]),
    "a row again": ("repeated_rows", lambda row, n, _: [row, talk(question(row), answer(row).replace(" ", "  "))]),
    "a row that validates too": ("leakage", lambda row, n, _: [row]),
    "damaged text": ("encoding", lambda row, n, _: [talk(question(row), f"{answer(row)} {DAMAGE[n]}")]),
    "another language": ("languages", lambda row, n, _: [talk(question(row), SCRIPTS[n])]),
    "a name left out": ("placeholders", lambda row, n, _: [talk(question(row), f"I am {HOLES[n]}, and {answer(row)}")]),
    "not text": ("unusable", lambda row, n, _: [talk(question(row), [7, None, {"a": 1}, True, ["x"]][n])]),
}
STYLES = ["own chatml", "own trimmed", "alpaca", "llama3", "gemma", "vicuna", "llama2", "published qwen3"]


def injected(folder: Path, made: Template, truncation: str) -> tuple[DataOptions, dict[str, set[int]], set[int]]:
    """(options of files with five rows of each fault, fault -> its rows, clean rows) in an order that is mixed."""
    groups: list[tuple[str | None, list[dict[str, Any]]]] = [(None, [clean(number)]) for number in range(60)]
    fresh = iter(range(100, 10_000))
    for fault, (_, make) in FAULTS.items():
        groups += [(fault, make(clean(next(fresh)), number, made)) for number in range(5)]
    random.Random(truncation).shuffle(groups)
    rows: list[dict[str, Any]] = []
    at: dict[str, set[int]] = {fault: set() for fault in FAULTS}
    sound, held = set(), []
    for fault, group in groups:
        if fault == "a row that validates too":
            at[fault].add(len(held))
            held += group
        elif fault is not None:
            at[fault].add(len(rows) + len(group) - 1)
        if fault is None:
            sound.add(len(rows))
        rows += group
    held += [clean(number) for number in range(80, 90)]
    for name, content in (("train.json", rows), ("held.json", held)):
        (folder / name).write_text(json.dumps(content))
    return (
        DataOptions(
            train=[str(folder / "train.json")],
            validation=[str(folder / "held.json")],
            max_length=700,
            truncation=truncation,
        ),
        at,
        sound,
    )


def found_rows(report: checking.Report, name: str, file: str = "train.json") -> set[int]:
    (one,) = (one for one in report.checks if one.name == name)
    return {finding.origin.row for _, finding in one.findings if finding.origin.file.endswith(file)}


@pytest.mark.parametrize(("style", "truncation"), list(zip(STYLES, cycle(["keep_reply", "drop"]))))
def test_every_fault_is_found_and_no_clean_row(style: str, truncation: str, tmp_path: Path) -> None:
    made = template(style)
    options, at, sound = injected(tmp_path, made, truncation)
    encoder = Encoder(made, made.tokenizer, options, options.max_length, options.truncation)
    report = checking.run(walk(options, encoder, go_on=True), checking.chosen(), Setting(options, encoder))
    for fault, (check, _) in FAULTS.items():
        if fault == "a reply without its end" and truncation == "drop":
            check = "rows_cut"  # it is not learned at all
        file = "held.json" if check == "leakage" else "train.json"
        assert at[fault] <= found_rows(report, check, file), fault
    everywhere = {finding.origin.row for one in report.checks for _, finding in one.findings
                  if finding.origin.file.endswith("train.json")}  # fmt: skip
    assert not everywhere & sound, "false alarms"
    named = set().union(*(rows for fault, rows in at.items() if fault != "a row that validates too"))
    assert everywhere == named
    assert found_rows(report, "leakage", "held.json") == at["a row that validates too"]
    assert report.count("error") and report.rows == len(json.loads((tmp_path / "train.json").read_text())) + 15


def test_a_question_that_leaves_no_room_for_its_answer(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    rows = [talk(f"{LONG * 32} {n}", "Yes.") if n % 2 else clean(n) for n in range(10)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = checked(DataOptions(train=[str(file)], max_length=300, truncation="cut"), template("own chatml"))
    assert found_rows(report, "no_trained_token", "train.jsonl") == {1, 3, 5, 7, 9}


def checked(options: DataOptions, made: Template) -> checking.Report:
    encoder = Encoder(made, made.tokenizer, options, options.max_length, options.truncation)
    return checking.run(walk(options, encoder, go_on=True), checking.chosen(), Setting(options, encoder))


TWICE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Without(BoundTemplate):
    """ChatML that forgets BOS where a question is odd, and puts it inside the turn where the colour is pink."""

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        segments: list[Segment] = []
        for index, message in enumerate(conversation.messages):
            segments += [self.token("<|im_start|>"), Segment(f"{message.role}\n"), self.content(index, message.content)]
            segments.append(self.token("<|im_end|>", message=index, end=True))
        return [*segments, self.token("<|im_start|>"), Segment("assistant\n")] if reply else segments

    def render(self, conversation: Conversation, *, reply: bool = False) -> list[Segment]:
        segments = super().render(conversation, reply=reply)
        said = conversation.messages[0].content
        if "pink" in said:
            segments[3:3] = [segments[0]]
        return segments[1:] if "house" in said else segments


def test_bos_twice_missing_and_inside(tmp_path: Path) -> None:
    rows = [clean(number) for number in range(40)]
    file = tmp_path / "rows.json"
    for number in range(3, 40, 8):
        rows[number]["messages"].insert(0, {"role": "system", "content": f"Be kind {number}."})
    file.write_text(json.dumps(rows))
    options = DataOptions(train=[str(file)])
    report = checked(options, bind("jinja", TinyTokenizer(bos="<s>", chat_template=TWICE)))
    assert found_rows(report, "bos", "rows.json") == set(range(3, 40, 8)) and len(range(3, 40, 8)) == 5

    file.write_text(json.dumps([clean(number) for number in range(40)]))
    tokenizer = TinyTokenizer(bos="<s>")
    report = checked(options, Without(ChatML(), tokenizer, end="<|im_end|>"))
    missing = {number for number in range(40) if number % len(THINGS) == 0}
    inside = {number for number in range(40) if number % len(COLOURS) == COLOURS.index("pink")}
    assert found_rows(report, "bos", "rows.json") == missing | inside and len(missing) == 8 and len(inside) == 5


def test_without_a_model_the_texts_are_still_checked(tmp_path: Path) -> None:
    made = template("own chatml")
    options, at, sound = injected(tmp_path, made, "keep_reply")
    report = checking.run(walk(options, None, go_on=True), checking.chosen(), Setting(options, None))
    assert report.not_run == ["bos", "no_trained_token", "rows_cut", "untrained_end"]
    for fault, (check, _) in FAULTS.items():
        if check not in report.not_run and check != "control_strings":
            found = found_rows(report, check, "held.json" if check == "leakage" else "train.json")
            # without a model, the control tokens of all families are control strings
            assert at[fault] <= found | (
                found_rows(report, "control_strings") if check == "template_markers" else set()
            )
    assert not {row for one in report.checks for row in found_rows(report, one.name)} & sound
    facts = report.facts("lengths")
    assert facts is not None and facts["unit"] == "characters" and facts["max_length"] is None


def test_a_damaged_file_is_one_finding_and_the_next_is_read(tmp_path: Path) -> None:
    half, whole = tmp_path / "half.jsonl", tmp_path / "whole.jsonl"
    half.write_text(json.dumps(clean(0)) + '\n{"messages": [\n')
    whole.write_text(json.dumps(clean(1)) + "\n")
    options = DataOptions(train=[str(half), str(whole)], bad_rows="skip")
    report = checking.run(walk(options, None, go_on=True), checking.chosen(), Setting(options, None))
    assert report.rows == 1, "a file's first rows decide its format, so a fault among them ends it"
    assert report.count("error") == 1
    rows = [clean(number) for number in range(20)]
    half.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[")
    report = checking.run(walk(options, None, go_on=True), checking.chosen(), Setting(options, None))
    assert report.rows == 21 and found_rows(report, "unusable", "half.jsonl") == {20}


def test_rows_left_out_on_purpose_are_warnings(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [clean(0), talk("Why?", ""), talk("Why?", 5)]))
    for policy, errors in (("error", 2), ("skip", 0)):
        options = DataOptions(train=[str(file)], bad_rows=policy)
        report = checking.run(walk(options, None, go_on=True), checking.chosen(), Setting(options, None))
        assert (report.count("error"), report.count("warning")) == (errors, 2 - errors)


def test_every_check_says_why_and_what_to_do() -> None:
    assert len(checking.known()) >= 14
    for name, kind in checking.known().items():
        assert kind.reason.endswith(".") and kind.fix.endswith("."), name
        assert kind.level in ("error", "warning") and kind.__doc__, name


def test_someones_own_check_is_a_file(tmp_path: Path) -> None:
    own = tmp_path / "shouting.py"
    own.write_text(
        "from lorikeet.data.checks._contract import Check\n\n\nclass Shouting(Check):\n    '''Replies in capitals.'''\n"
        "    level = 'error'\n    reason, fix = 'It is loud.', 'Be quiet.'\n\n    def row(self, row):\n"
        "        return (row.found('shouts', at) for at, one in row.replies() if one.content.isupper())\n"
    )
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(clean(0)) + "\n" + json.dumps(talk("Why?", "BECAUSE.")) + "\n")
    options = DataOptions(train=[str(file)])
    report = checking.run(walk(options, None), checking.chosen([str(own)]), Setting(options, None))
    assert [one.name for one in report.checks] == ["shouting"] and found_rows(report, "shouting", "rows.jsonl") == {1}
    assert any("shouting" in line for line in checking.as_text(report, 5))
    with pytest.raises(RecipeError, match="there is no check 'leak'"):
        checking.chosen(["leak"])
    assert "leakage" not in checking.chosen(without=["leakage"])


@pytest.mark.parametrize("text", [
    "Ça va, José? “Oui” – déjà vu… 50 °C, £5, ½ naïve Ñandú", "IRMÃ”", "СТОЛИЦА – Москва", "你好，世界。", "🦜🏳️‍🌈 ok",
    "Größe «à la carte» Ålesund", "tab\tand\r\nlines", "Tiếng Việt có dấu", "ÀÉÎÕÜ", "“CAFÉ”",
])  # fmt: skip
def test_sound_texts(text: str) -> None:
    assert damage(text) is None


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", ["déjà vu", "Größe", "it’s “so”", "señor", "Москва", "你好世界", "naïve – yes"])
def test_texts_read_with_the_wrong_encoding(text: str, encoding: str) -> None:
    shown = text.encode().decode(encoding, "ignore")
    assert damage(f"He said: {shown}.") is not None


def test_rows_held_out_that_are_trained_on_too(tmp_path: Path, cache: Path) -> None:
    """A split keeps rows of the same tokens on one side; those that say the same otherwise fall as they fall."""
    made = template("own chatml")
    rows = [clean(number) for number in range(60)]
    rows += [talk(question(row).upper(), answer(row)) for row in rows[:30]] + rows[30:40]
    rows += [talk(question(row).lower(), "Nobody knows that.") for row in rows[40:60]] + [talk("Why?", "")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = DataOptions(train=[str(file)], validation=0.3, bad_rows="skip", max_length=400, cache=False)
    encoder = Encoder(made, made.tokenizer, options, options.max_length, options.truncation)
    for seed in (0, 7):
        prepared = prepare(options, made.tokenizer, made, seed=seed)
        assert prepared.validation is not None
        held = {example.origin.row for example in prepared.validation if example.origin is not None}
        setting = Setting(options, encoder, seed)
        report = checking.run(walk(options, encoder), checking.chosen(["leakage"]), setting)
        found = {level: {one.origin.row for of, one in report.checks[0].findings if of == level} for level in LEVELS}
        pairs = {(at, at + 60) for at in range(30)}
        assert found["error"] == {at for pair in pairs for at in pair if at in held and len(held & set(pair)) == 1}
        others = {(at, at + 60) for at in range(40, 60)}
        assert found["warning"] == {at for pair in others for at in pair if at in held and len(held & set(pair)) == 1}
        assert len(found["error"]) >= 5 and len(found["warning"]) >= 3
    texts = checking.run(walk(options, None), checking.chosen(["leakage"]), Setting(options, None))
    assert not texts.checks[0].findings, "which rows are held out is not known without a model"


LANGUAGES = [
    ("How do I keep my sourdough starter alive while I am away from home on a long holiday in summer?",
     "Ponlo en la nevera y dale harina y agua una vez por semana; antes de irte, aliméntalo bien y déjalo reposar."),
    ("Wie bewahre ich frische Kräuter aus dem Garten am besten für den Winter auf?",
     "Sie lassen sich gut trocknen, und auch im Gefrierfach bleiben Kräuter mehrere Monate lang frisch."),
    ("Say this in Spanish: The train leaves from the second platform this evening at nine.",
     "El tren sale esta noche a las nueve desde el segundo andén de la estación."),
    ("What does a cat say in France?", "Miaou, miaou."),
]  # fmt: skip


def test_languages_of_one_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(talk(*pair)) + "\n" for pair in LANGUAGES))
    options = DataOptions(train=[str(file)])

    def said() -> checking.Report:
        return checking.run(walk(options, None), checking.chosen(["languages"]), Setting(options, None))

    assert found_rows(said(), "languages", "rows.jsonl") == {0}
    assert (said().facts("languages") or {})["languages"] == {"es": 2, "de": 1, "unknown": 1}
    monkeypatch.setitem(sys.modules, "pycld2", None)  # as where it is not installed
    assert not said().checks[0].findings and "languages" not in (said().facts("languages") or {})


def test_scripts() -> None:
    assert main_script(scripts("Hello there, friends")) == "Latin"
    assert main_script(scripts("フランスの首都はパリです")) == "Japanese"
    assert main_script(scripts("法国的首都是巴黎这座城市")) == "Han"
    assert main_script(scripts("12 + 3")) is None


def test_the_report_without_a_row(tmp_path: Path) -> None:
    options = DataOptions(train=["none.json"])
    rows: list[Walked] = []
    report = checking.run(rows, checking.chosen(), Setting(options, None))
    assert report.as_dict()["errors"] == 0 and "0 rows of 0 files" in checking.closing(report)
    row = Row(Walked(Origin("f", 0), "train", None, None), None)
    assert row.messages == () and row.kept == [] and row.spelled == [] and list(row.replies()) == []
