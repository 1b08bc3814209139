"""`lorikeet data clean` as a whole: counts that balance, the record of what went, resuming, processes, bad input."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import Interrupted, LorikeetError
from lorikeet.cli.main import run_command
from lorikeet.data import clean as cleaning
from lorikeet.data.clean import CleanOptions, clean
from lorikeet.data.diff import compare, examples
from lorikeet.data.files import read_rows
from lorikeet.data.steps import _recipe, _work
from lorikeet.data.steps._report import Report

ROOT = Path(__file__).parents[2]
CHAIN: list[Any] = [
    "merge",
    "roles",
    {"kind": "blocklist", "phrases": ["secret"]},
    "html_to_markdown",
    {"kind": "dedupe", "by": ["id", "content"]},
    {"kind": "length", "min_characters": 6},
]


def talk(*turns: tuple[str, str], **rest: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": said} for who, said in turns], **rest}


def some_rows(count: int) -> list[dict[str, Any]]:
    made, draw = [], random.Random(0)
    for number in range(count):
        said = draw.choice(["plain {}", "<p>a <b>page</b> {}</p>", "a secret {}", "", "same {}"])
        text = said.format(draw.randrange(count))
        made.append(talk(("human", f"question {number % 7}"), ("gpt", text), id=f"n{number % (count - 3)}"))
    return made


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def cleaned(inputs: list[Path], output: Path, steps: list[Any], **options: Any) -> Report:
    given = {"input": [str(path) for path in inputs], "output": output, "steps": steps, **options}
    return clean(CleanOptions.model_validate(given))


def balanced(report: Report, output: Path, rows_in: int) -> None:
    """Every row of the input is in the output, or in rejected.jsonl with a reason, and nowhere twice."""
    kept = Counter(tuple(one) for one in read(output.with_name(f"{output.stem}.origins.jsonl")))
    gone = [one for one in read(output.with_name(f"{output.stem}.rejected.jsonl")) if "cut" not in one]
    assert all(one["step"] and one["reason"] for one in gone)
    out = Counter((one["file"], one["row"], one.get("part", "")) for one in gone)
    assert not max((kept + out).values(), default=1) > 1
    assert len({(file, row) for file, row, _ in kept + out}) == rows_in == report.rows_in
    assert sum((kept + out).values()) == rows_in + report.total("parts")
    assert sum(kept.values()) == report.rows_out


def test_a_chain_over_two_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.json", some_rows(300)), write(tmp_path / "two.jsonl", some_rows(200))
    report = cleaned([one, two], tmp_path / "clean.jsonl", CHAIN)
    balanced(report, tmp_path / "clean.jsonl", 500)
    rows = read(tmp_path / "clean.jsonl")
    assert not any("secret" in str(row) or "<p>" in str(row) for row in rows) and len(rows) == report.rows_out
    assert {step["step"] for step in report.steps} >= {"read", "merge", "dedupe"}
    assert json.loads((tmp_path / "clean.report.json").read_text())["rows_out"] == len(rows)
    assert not list(tmp_path.glob(".*"))
    assert "500 rows in" in list(report.lines())[-1]


def test_processes_and_one_process_give_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "one.json", some_rows(700))
    for workers in (1, 2):
        cleaned([source], tmp_path / f"{workers}.json", CHAIN, workers=workers)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert (tmp_path / "1.rejected.jsonl").read_bytes() == (tmp_path / "2.rejected.jsonl").read_bytes()
    assert isinstance(json.loads((tmp_path / "1.json").read_text()), list)


@pytest.mark.parametrize("after", [1, 6])
def test_interrupted_work_goes_on(tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "one.json", some_rows(500))
    real, worked, stop = _work.work, [0], [1 << 30]

    def counted(task: _work.Task) -> bytes:
        if worked[0] == stop[0]:
            raise KeyboardInterrupt
        worked[0] += 1
        return real(task)

    monkeypatch.setattr(_work, "work", counted)
    cleaned([source], tmp_path / "whole.jsonl", CHAIN, workers=1)
    pieces, worked[0], stop[0] = worked[0], 0, after
    with pytest.raises(Interrupted):
        cleaned([source], tmp_path / "part.jsonl", CHAIN, workers=1)
    assert not (tmp_path / "part.jsonl").exists() and not (tmp_path / "part.report.json").exists()
    worked[0], stop[0] = 0, 1 << 30
    cleaned([source], tmp_path / "part.jsonl", CHAIN, workers=1)
    assert worked[0] == pieces - after, "what was done is not done again"
    for kind in ("jsonl", "rejected.jsonl", "origins.jsonl"):
        assert (tmp_path / f"part.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()


def test_a_torn_journal_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    journal = _work.Journal(tmp_path / "j")
    journal.reading = False
    for made in (b"one", b"two" * 1000):
        journal.write(made)
    journal.close()
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-5])
    journal = _work.Journal(tmp_path / "j")
    assert journal.read() == b"one" and journal.read() is None
    journal.write(b"three")
    journal.close()
    journal = _work.Journal(tmp_path / "j")
    assert [journal.read(), journal.read(), journal.read()] == [b"one", b"three", None]


def test_a_finished_output_is_left_and_another_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = write(tmp_path / "one.json", some_rows(50))
    command = ["data", "clean", str(source), "-o", str(tmp_path / "out.jsonl"), "--steps"]
    assert run_command([*command, "roles,dedupe"]) == 0
    written = (tmp_path / "out.jsonl").stat().st_mtime_ns
    assert run_command([*command, "roles,dedupe"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == written
    assert run_command([*command, "roles,dedupe", "--overwrite"]) == 0
    assert "nothing to do" not in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns > written
    assert run_command([*command, "roles"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run_command([*command, "roles", "--overwrite"]) == 0


def test_diff_says_what_a_changed_chain_changed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write(tmp_path / "one.json", some_rows(60))
    cleaned([source], tmp_path / "a.jsonl", ["roles"])
    cleaned([source], tmp_path / "b.jsonl", ["roles", {"kind": "blocklist", "phrases": ["secret"]}, "html_to_markdown"])
    found = compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert found.same + len(found.changed) + len(found.only_a) == found.rows[0] and not found.only_b
    assert found.changed and found.why["B"] == Counter({"blocklist: blocked": len(found.only_a)})
    ((_, _, lines),) = examples(tmp_path / "a.jsonl", tmp_path / "b.jsonl", found.changed[:1])
    assert any(line.startswith("-gpt: <p>") for line in lines)
    assert run_command(["data", "diff", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    assert "B left out: blocklist: blocked" in capsys.readouterr().out
    found = compare(source, tmp_path / "b.jsonl")  # by id: the input has no record of where rows came from
    assert found.matched_by.startswith("id") and found.rows[0] == 60


def test_the_shipped_recipe(tmp_path: Path, tiny_model: Path) -> None:
    source = write(
        tmp_path / "sg.json",
        [*some_rows(40), talk(("human", "請問這是什麼"), ("gpt", "這是測試用的資料喔，沒有別的意思。"))],
    )
    command = [
        "data",
        "clean",
        str(source),
        "-o",
        str(tmp_path / "out.jsonl"),
        "-r",
        str(ROOT / "examples/sharegpt_clean.yaml"),
    ]
    assert run_command([*command, f"split_turns.model={tiny_model}", "split_turns.max_tokens=200"]) == 0
    assert "这是测试用的" in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("layout", ["alpaca", "messages", "prompt", "text"])
def test_rows_come_back_in_their_own_layout(tmp_path: Path, layout: str) -> None:
    row = {
        "alpaca": {"instruction": "Add", "input": "1 and 2", "output": "3, of course", "system": "s", "score": 2},
        "messages": {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]
        },
        "prompt": {"prompt": "q", "completion": "a", "n": 1},
        "text": {"text": "a document", "source": "x"},
    }[layout]
    source = write(tmp_path / "one.jsonl", [row])
    cleaned([source], tmp_path / "out.jsonl", ["dedupe"])
    (out,) = read(tmp_path / "out.jsonl")
    if layout == "prompt":
        assert [turn["content"] for turn in out["messages"]] == ["q", "a"] and out["n"] == 1
    else:
        assert out == row


def test_diff_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_command(["data", "diff", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_second_process_waits_for_none(tmp_path: Path) -> None:
    first, second = (cleaning._work_folder(tmp_path / "out.jsonl", "x") for _ in range(2))
    with first, pytest.raises(LorikeetError, match="another process"), second:
        pass


SPEAKERS = st.sampled_from(["human", "gpt", "system", "observation", "function_call", "user", "bob", ""])
SAID = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["<p>So <b>you</b></p>", "openai", "0.000000000", "1 / 2\nyes", "繁體中文", "An answer.", " ",
                     "I am {{name}}", "by <AUTHOR>"]),
    st.none(),
)  # fmt: skip
TALKS = st.fixed_dictionaries(
    {"conversations": st.lists(st.fixed_dictionaries({"from": SPEAKERS, "value": SAID}), max_size=7)},
    optional={"id": st.sampled_from(["a", "b", 1, None]), "system": st.text(max_size=5)},
)
# answers most, refuses some, and says nothing about others that anybody could use
ANSWERS = """
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    odd = len(said["text"]) % 5
    told = {"error": "no"} if odd == 1 else {"text": 3} if odd == 2 else {"text": said["text"] + "!"}
    print(json.dumps({"id": said["id"], **told}), flush=True)
"""
STEPS: list[Any] = [
    "merge", "roles", {"kind": "roles", "repeated": "join", "empty": "drop"}, {"kind": "roles", "repeated": "first"},
    {"kind": "blocklist", "phrases": ["openai"]}, {"kind": "blocklist", "phrases": ["openai"], "drop": "turn"},
    "html_to_markdown", {"kind": "html_to_markdown", "which": "all"}, {"kind": "language", "keep": ["en"]},
    "simplify_chinese", "dedupe", {"kind": "dedupe", "by": ["id", "opening"], "near": 0.7},
    {"kind": "repetition", "digits": 9, "share": 0.5}, {"kind": "length", "min_characters": 4},
    {"kind": "sample", "rows": 4}, {"kind": "sample", "share": 0.5},
    {"kind": "rename_roles", "names": {"bob": "human"}}, "to_alpaca", {"kind": "to_alpaca", "history": "none"},
    "to_messages", "to_sharegpt", {"kind": "fill_in", "name": "Ada"},
    {"kind": "fill_in", "name": "Ada", "author": "B", "left": "keep"},
    {"kind": "command", "run": [sys.executable, "-c", ANSWERS], "id_prefix": "x_"},
]  # fmt: skip
CHAINS = st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)


def any_rows_any_chain(folder: Path, rows: list[Any], chain: list[Any]) -> None:
    source, output = write(folder / "in.json", rows), folder / "out.jsonl"
    options = {"input": [str(source)], "output": output, "steps": chain, "format": "sharegpt", "workers": 1}
    report = clean(CleanOptions.model_validate(options), overwrite=True)
    balanced(report, output, len(rows))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(TALKS, min_size=1, max_size=6), chain=CHAINS)
def test_any_rows_through_any_chain_are_accounted_for(rows: list, chain: list, tmp_path: Path) -> None:
    any_rows_any_chain(tmp_path, rows, chain)


@pytest.mark.slow
def test_ten_thousand_conversations_through_chains(tmp_path: Path) -> None:
    """10,000 examples in few files: a conversation each, 250 through each of 40 chains."""
    draw = random.Random(1)
    speakers = ["human", "gpt", "human", "gpt", "system", "observation", "function_call", "bob"]
    texts = ["Hello there", "<p>Hi <b>you</b></p>", "openai", "0.000000000", "1 / 2\nyes", "繁體中文的", "", "\ud83d",
             None, "<pre>pythonCopy code\nx</pre>", "a < b", "{{NAME}} by {{author}}", "😀 é \u2028 \0"]  # fmt: skip
    for _ in range(40):
        rows = []
        for _ in range(250):
            turns = [
                (speakers[at % 4] if draw.random() < 0.8 else draw.choice(speakers), draw.choice(texts))
                for at in range(draw.randrange(8))
            ]
            rows.append(talk(*turns, id=draw.randrange(200)))  # type: ignore[arg-type]
        any_rows_any_chain(tmp_path, rows, draw.choices(STEPS, k=draw.randrange(1, 7)))


def test_every_step_is_in_the_chains_that_are_tried() -> None:
    tried = {one if isinstance(one, str) else one["kind"] for one in STEPS}
    assert tried | {"split_turns"} == set(_recipe.kinds(_recipe.PACKAGE))  # split_turns has a test of its own


def test_what_was_left_out_is_in_the_same_order_whatever_the_number_of_processes(tmp_path: Path) -> None:
    source = write(tmp_path / "one.json", some_rows(1500))
    chain = ["roles", "dedupe", {"kind": "length", "min_characters": 22}]
    for workers in (1, 3):
        report = cleaned([source], tmp_path / f"{workers}.jsonl", chain, workers=workers)
        assert report.total("merged") and sum(report.steps[-1]["dropped"].values()) > 100
    assert (tmp_path / "1.rejected.jsonl").read_bytes() == (tmp_path / "3.rejected.jsonl").read_bytes()


def test_another_file_s_report_does_not_finish_this_one(tmp_path: Path) -> None:
    source = write(tmp_path / "one.json", some_rows(30))
    cleaned([source], tmp_path / "out.jsonl", ["roles"])
    options = {"input": [str(source)], "output": tmp_path / "out.json", "steps": ["dedupe"]}
    clean(CleanOptions.model_validate(options), overwrite=True)  # its report takes the place of the other's
    with pytest.raises(LorikeetError, match="is there already"):
        cleaned([source], tmp_path / "out.jsonl", ["dedupe"])


def test_what_no_step_needs_rides_along_exactly(tmp_path: Path) -> None:
    rows = [talk(("human", "q"), ("gpt", "a"), id=2**70, score=float("nan"), title="cut \ud83d", n=1e30)]
    for output, chain in (("a.jsonl", ["roles"]), ("b.jsonl", ["merge", "dedupe", "roles", "dedupe"])):
        cleaned([write(tmp_path / "one.json", rows)], tmp_path / output, chain)
        ((row, _),) = read_rows(tmp_path / output)
        assert (row["id"], row["score"], row["title"], row["n"]) == (2**70, None, "cut \ufffd", 1e30)
        assert type(row["n"]) is float


def test_what_is_said_of_an_input_has_its_effect(tmp_path: Path) -> None:
    talks = write(tmp_path / "talks.json", some_rows(300))
    asked = write(tmp_path / "asked.jsonl", [{"Q": f"q{number}", "A": f"a{number}"} for number in range(9)])
    columns = {"kind": "columns", "prompt": "Q", "response": "A"}
    inputs: list[Any] = [{"path": str(talks), "max_examples": 200}, {"path": str(asked), "format": columns}]
    options: dict[str, Any] = {"output": tmp_path / "out.jsonl", "steps": ["to_messages"]}
    report = clean(CleanOptions.model_validate({"input": inputs, **options}))
    assert report.files == {str(talks): 200, str(asked): 9} and report.rows_out == 209
    inputs[0]["max_examples"] = 100
    with pytest.raises(LorikeetError, match="other inputs or steps"):
        clean(CleanOptions.model_validate({"input": inputs, **options}))
    inputs[0] = {"path": str(talks), "weight": 2}
    with pytest.raises(LorikeetError, match=r"input\.0\.weight: has no effect"):
        clean(CleanOptions.model_validate({"input": inputs, **options}), overwrite=True)
