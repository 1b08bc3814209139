"""The step `command`: answers in order, faults as named rejects, a run that stops and goes on, and never a hang."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.steps.conftest import record, run, step_of
from data.test_clean import balanced, cleaned, read, talk, write
from lorikeet.base.errors import Interrupted, OutputError, RecipeError
from lorikeet.base.nouns import Origin
from lorikeet.data.steps import _work
from lorikeet.data.steps._record import Record, Turn

HEAD = """
import json, os, sys, time
def answer(said, **more):
    print(json.dumps({"id": said["id"], **more}), flush=True)
for line in sys.stdin:
    said = json.loads(line)
    bad = "bad" in line
"""
SHOUT = '    answer(said, text=said["text"].upper())\n'


def script(folder: Path, body: str) -> list[str]:
    """The command that runs a program which answers every request as `body` says."""
    path = folder / "answer.py"
    path.write_text(HEAD + body)
    return [sys.executable, str(path)]


def test_texts_are_answered_in_order(tmp_path: Path) -> None:
    rows = [record(f"q{number}", f"a{number}", row=number, id=f"i{number}") for number in range(20)]
    kept, log = run("command", *rows, run=script(tmp_path, SHOUT), ahead=7, id_prefix="cn_")
    assert [one.texts() for one in kept] == [[f"Q{number}", f"A{number}"] for number in range(20)]
    assert [one.rest["id"] for one in kept] == [f"cn_i{number}" for number in range(20)]
    assert log.changes == {"answered": 20, "id with a prefix": 20} and log.changed == 20


def test_inputs_calls_and_other_roles(tmp_path: Path) -> None:
    given = [
        Record(Origin("a", 0), [Turn("user", "sort", "b a"), Turn("assistant", "a b")], layout="alpaca"),
        record("human: q", "function_call: {}", "observation: x", "gpt:  ", "bob: who"),
    ]
    kept, _ = run("command", *given, run=shlex.join(script(tmp_path, SHOUT)))
    assert kept[0].as_row() == {"instruction": "SORT", "input": "B A", "output": "A B"}
    assert kept[1].texts() == ["Q", "{}", "x", " ", "who"]


def test_a_row_at_a_time_and_answers_in_any_order(tmp_path: Path) -> None:
    body = '    answer(said, texts=[one["role"] + ":" + one["text"] for one in said["turns"]])\n'
    ((kept,), _) = run("command", record("q", "a"), run=script(tmp_path, body), send="row")
    assert kept.texts() == ["user:q", "assistant:a"]
    later = '    held = globals().setdefault("held", [])\n    held.append(said)\n    if len(held) == 4:\n'
    later += (
        '        for one in reversed(held):\n            answer(one, text="x" + one["text"])\n        held.clear()\n'
    )
    kept_rows, _ = run("command", record("a", "b"), record("c", "d"), run=script(tmp_path, later), ahead=2)
    assert [one.texts() for one in kept_rows] == [["xa", "xb"], ["xc", "xd"]]


FAULTS: dict[str, tuple[str, str, str]] = {
    "ends": ("print('no memory', file=sys.stderr); os._exit(3)", "the command ended", "code 3: no memory"),
    "closes": ("sys.stdout.flush(); os._exit(0)", "the command ended", "code 0"),
    "chatters": ("print('Loading ...', flush=True)", "no answer but something else", "Loading ..."),
    "half a line": ("print('{', flush=True)", "no answer but something else", "no JSON"),
    "a list": ("print('[]', flush=True)", "no answer but something else", "nothing that was asked"),
    "another id": ("print(json.dumps({'id': 99, 'text': 'x'}), flush=True)", "no answer but something else", "99"),
    "true as id": ("print(json.dumps({'id': True, 'text': 'x'}), flush=True)", "no answer but something else", "true"),
    "bytes": ("os.write(1, b'\\xff\\xfe\\n')", "no answer but something else", "no JSON"),
    "deep": ("print('[' * 50000, flush=True)", "no answer but something else", "no JSON"),
    "refuses": ("answer(said, error='too long')", "the command refused", "too long"),
    "no text": ("answer(said)", "an answer without its texts", "text"),
    "a number": ("answer(said, text=3)", "an answer without its texts", "text"),
    "nothing": ("answer(said, text=' ')", "an empty answer", "text"),
    "half a character": ("answer(said, text='\\ud83d')", "half a character in an answer", "ud83d"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_rejects_the_row_it_was_asked_about_and_no_other(tmp_path: Path, case: str) -> None:
    body, reason, detail = FAULTS[case]
    command = script(tmp_path, f"    if bad:\n        {body}\n        continue\n{SHOUT}")
    rows = [record("q", "bad one" if number in (2, 5) else f"a{number}", row=number) for number in range(8)]
    kept, log = run("command", *rows, run=command, timeout_seconds=3600, give_up_after=2)
    assert [one.origin.row for one in kept] == [0, 1, 3, 4, 6, 7]
    assert all(one.texts() == ["Q", f"A{one.origin.row}"] for one in kept)
    assert log.dropped == {reason: 2} and all(detail in entry["detail"] for entry in log.entries)
    assert log.entries[0]["content"]["conversations"][0]["value"] == "q", "rejected as it was"


def test_texts_of_a_row_that_are_too_few(tmp_path: Path) -> None:
    command = script(tmp_path, '    answer(said, texts=["only one"])\n')
    kept, log = run("command", record("q", "a"), record("alone"), run=command, send="row")
    assert [one.texts() for one in kept] == [["only one"]] and log.dropped == {"an answer without its texts": 1}


@pytest.mark.parametrize("body", ["    time.sleep(3600)\n", "    break\ntime.sleep(3600)\n"], ids=["silent", "deaf"])
def test_a_command_that_says_nothing_is_never_waited_for(tmp_path: Path, body: str) -> None:
    rows = [record("q" * 300_000, "a", row=number) for number in range(3)]  # more than a pipe holds
    kept, log = run("command", *rows, run=script(tmp_path, body), timeout_seconds=0.2, give_up_after=99)
    assert not kept and log.dropped == {"no answer in time": 3}


def test_after_faults_one_behind_the_other_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="3 faults one behind the other") as caught:
        run("command", *(record("q", "a") for _ in range(9)), run=script(tmp_path, "    raise SystemError('key')\n"))
    assert "SystemError: key" in str(caught.value)


def test_work_that_stopped_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    asked, broken = tmp_path / "asked", tmp_path / "broken"
    broken.touch()
    body = f'    if "q7" in line and os.path.exists({str(broken)!r}):\n        os._exit(1)\n'
    body += f'    open({str(asked)!r}, "a").write(said["text"] + " ")\n' + SHOUT
    source = write(tmp_path / "in.jsonl", [talk(("human", f"q{number}"), ("gpt", "a")) for number in range(12)])
    step = {"kind": "command", "run": script(tmp_path, body), "give_up_after": 1, "ahead": 1}
    with pytest.raises(OutputError, match="faults"):
        cleaned([source], tmp_path / "out.jsonl", [step])
    assert not (tmp_path / "out.jsonl").exists()
    broken.unlink()
    report = cleaned([source], tmp_path / "out.jsonl", [step])
    balanced(report, tmp_path / "out.jsonl", 12)
    said = [row["conversations"][0]["value"] for row in read(tmp_path / "out.jsonl")]
    assert said == [f"Q{number}" for number in range(12)]
    questions = [word for word in asked.read_text().split() if word != "a"]
    assert len(set(questions)) == 12 and len(questions) <= 14, "at most what was under way is asked again"
    (tmp_path / "answer.py").write_text(HEAD + SHOUT.replace("upper", "lower"))  # another program, another output
    with pytest.raises(OutputError, match="of other inputs or steps"):
        cleaned([source], tmp_path / "out.jsonl", [step])


def test_finished_pieces_are_of_the_rows_that_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was refused before the stop and is answered behind it moves all that follow."""
    refuse = tmp_path / "refuse"
    refuse.touch()
    body = f'    if said["text"] == "q5" and os.path.exists({str(refuse)!r}):\n        answer(said, error="busy")\n'
    body += "        continue\n" + SHOUT
    source = write(tmp_path / "in.jsonl", [talk(("human", f"q{number}"), ("gpt", "a")) for number in range(400)])
    chain: list[Any] = [{"kind": "command", "run": script(tmp_path, body), "roles": ["user"]}, "rename_roles"]
    chain[1] = {"kind": "rename_roles", "names": {"gpt": "bot"}}
    real, left = _work.work, [2]

    def counted(task: _work.Task) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(_work, "work", counted)
    with pytest.raises(Interrupted):
        cleaned([source], tmp_path / "out.jsonl", chain, workers=1)
    refuse.unlink()
    left[0] = 1 << 30
    report = cleaned([source], tmp_path / "out.jsonl", chain, workers=1)
    balanced(report, tmp_path / "out.jsonl", 400)
    said = [row["conversations"][0]["value"] for row in read(tmp_path / "out.jsonl")]
    assert said == [f"Q{number}" for number in range(400)]


def test_work_on_older_answers_is_done_again_where_they_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the same places with other texts: what the steps behind made of the former ones does not hold."""
    version = tmp_path / "version"
    version.write_text("old")
    body = f'    answer(said, text=said["text"] + open({str(version)!r}).read())\n'
    source = write(tmp_path / "in.jsonl", [talk(("human", f"q{number}"), ("gpt", "a")) for number in range(400)])
    chain: list[Any] = [{"kind": "command", "run": script(tmp_path, body), "roles": ["user"], "remember": False}]
    chain.append({"kind": "rename_roles", "names": {"gpt": "bot"}})
    real, left = _work.work, [2]

    def counted(task: _work.Task) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(_work, "work", counted)
    with pytest.raises(Interrupted):
        cleaned([source], tmp_path / "out.jsonl", chain, workers=1)
    version.write_text("new")
    left[0] = 1 << 30
    cleaned([source], tmp_path / "out.jsonl", chain, workers=1)
    said = [row["conversations"][0]["value"] for row in read(tmp_path / "out.jsonl")]
    assert said == [f"q{number}new" for number in range(400)]


def test_answers_are_asked_again_where_that_is_wanted(tmp_path: Path) -> None:
    command = script(tmp_path, '    answer(said, text=f"{os.getpid()}")\n')
    first, second, third = (
        run("command", record("q"), run=command, remember=kept)[0][0].texts() for kept in (True, True, False)
    )
    assert first == second != third


def test_a_cache_that_is_damaged_is_an_error(tmp_path: Path, cache: Path) -> None:
    path = cache / "lorikeet" / "answers.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(OutputError, match="cannot be kept") as caught:
        run("command", record("q"), run=script(tmp_path, SHOUT))
    assert "remove" in str(caught.value)


def test_commands_that_are_not_there(tmp_path: Path) -> None:
    for words in ("no-such-command-anywhere --x", [str(tmp_path / "none.py")], [str(tmp_path)]):
        with pytest.raises(RecipeError, match="there is no command"):
            step_of("command", run=words)
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(OutputError, match=r"cannot be started|faults"):
        run("command", record("q"), run=[str(tmp_path / "text")], give_up_after=1)


REFUSED: list[dict[str, Any]] = [
    {}, {"run": ""}, {"run": []}, {"run": " "}, {"run": ["", "x"]}, {"run": "echo 'open"}, {"run": "cat", "ahead": 0},
    {"run": "cat", "timeout_seconds": 0}, {"run": "cat", "send": "all"}, {"run": "cat", "roles": ["bot"]},
    {"run": "cat", "give_up_after": 0},
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED, ids=json.dumps)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        step_of("command", **options)
