"""The command line: what it hands to the verbs, and what it says and returns when they fail."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lorikeet import config
from lorikeet.base.errors import CheckFailed, Interrupted, RecipeError
from lorikeet.cli.main import how_threads_wait, run_command

RECIPE = "output_dir: runs/x\nmodel: {path: m}\nadapter: {kind: lora, r: 4}\ndata: {train: a.json}\n"


SUMMARY = {"train_loss": 1.23456789, "steps": 3, "curve": [1, 2]}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A stand-in for lorikeet.api that remembers its calls; `fails` is raised by the next one."""
    state: dict[str, Any] = {"calls": [], "fails": None}

    def verb(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            state["calls"].append((name, args, kwargs))
            if state["fails"]:
                raise state["fails"]
            return SUMMARY if name == "train" else {"answered": 2}

        return call

    stand_in = types.ModuleType("lorikeet.api")
    for name in ("train", "evaluate", "predict", "chat", "merge", "show"):
        setattr(stand_in, name, verb(name))
    stand_in.asking = types.SimpleNamespace(check_metrics=list, measure=lambda *measured: {})  # type: ignore[attr-defined]
    stand_in.run_recipe = types.SimpleNamespace(  # type: ignore[attr-defined]
        load_run=lambda folder, overrides: config.load(folder / "recipe.yaml", overrides)
    )
    stand_in.evaluating = types.SimpleNamespace(table=lambda found: [])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lorikeet.api", stand_in)
    import lorikeet

    monkeypatch.setattr(lorikeet, "api", stand_in, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    return state


def test_train_prints_the_summary(api: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "recipe.yaml", "adapter.r=16", "--overwrite"]) == 0
    ((name, (recipe,), options),) = api["calls"]
    assert (name, recipe.adapter.r, options) == (
        "train",
        16,
        {"overwrite": True, "force_resume": False, "stop_after": None},
    )
    printed = capsys.readouterr()
    assert printed.out == "train_loss  1.23457\nsteps       3\n"
    folder = recipe.output_dir
    assert f"report: {folder}/report.html" in printed.err and f"lorikeet chat {folder}\n" in printed.err


def test_predict_tells_files_from_options(api: dict[str, Any]) -> None:
    options = ["generate.temperature=0.5", "model.dtype=float32"]
    assert run_command(["predict", "runs/x", "a.json", "b.csv", *options, "-o", "out.jsonl"]) == 0
    expected = (Path("runs/x"), [Path("a.json"), Path("b.csv")], Path("out.jsonl"), {"dtype": "float32"})
    assert api["calls"] == [("predict", expected, {"temperature": 0.5, "allow_other_base": False})]
    assert run_command(["predict", "runs/x", "generate.temperature=1", "-o", "out.jsonl"]) == 2


def test_merge_counts_in_gib(api: dict[str, Any]) -> None:
    assert run_command(["merge", "runs/x", "merged", "--max-shard-gib", "0.5"]) == 0
    given = api["calls"][0][2]
    assert {name: given[name] for name in given if given[name] not in (None, {})} == {
        "base": "quantised",
        "keep_adapter": False,
        "allow_other_base": False,
        "max_shard_bytes": 1 << 29,
    }


def test_evaluate_takes_a_run_or_a_recipe(api: dict[str, Any]) -> None:
    folder = Path("runs/x")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    assert run_command(["evaluate", "runs/x"]) == 2, "a run that has trained nothing yet"
    (folder / "adapter").mkdir()
    assert run_command(["evaluate", "runs/x"]) == 0
    assert run_command(["evaluate", "recipe.yaml"]) == 0
    assert api["calls"][0][2]["adapter"] == folder / "adapter"
    assert api["calls"][1][1][0].model.path == "m" and api["calls"][1][2]["adapter"] is None


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (Interrupted("stopped at step 3"), 3, "Interrupted: stopped at step 3\n"),
        (CheckFailed("merged differs"), 1, "CheckFailed: merged differs\n"),
        (
            RecipeError("adapter.r: too big", given=4),
            2,
            "RecipeError: adapter.r: too big\n  given    4   (recipe.yaml:3)\n",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (ZeroDivisionError("a\nb"), 1, "ZeroDivisionError: a b\n  this is a fault of Lorikeet"),
        (MemoryError("no room"), 1, "OutOfMemory: memory ended outside a training step\n  given    no room\n  try "),
    ],
)
def test_failures(
    api: dict[str, Any], capsys: pytest.CaptureFixture[str], failure: BaseException, code: int, said: str
) -> None:
    api["fails"] = failure
    assert run_command(["train", "recipe.yaml"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert run_command(["train", "recipe.yaml", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nope"], ["train"], ["train", "recipe.yaml", "--nope"], ["merge", "a"], []])
def test_wrong_requests(api: dict[str, Any], capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run_command(words) == 2
    assert api["calls"] == []


def test_a_bad_recipe_never_reaches_a_verb(api: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "recipe.yaml", "adapter.rr=1"]) == 2
    assert capsys.readouterr().err.startswith("RecipeError: adapter.rr: there is no such option")
    assert api["calls"] == []


COMMANDS = ["demo", "train", "evaluate", "report", "chat", "predict", "merge", "download", "schema", "data show"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: lorikeet {command}" in shown
    assert "--debug" in shown


def test_the_first_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command.split()[0]} " in shown for command in COMMANDS)
    assert "..." not in shown.split("Commands:")[1], "a first sentence is too long to be shown whole"


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert run_command(["schema"]) == 0
    assert "learning_rate" in json.dumps(json.loads(capsys.readouterr().out))
    assert run_command(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("# Every option")


@pytest.mark.parametrize(
    ("arguments", "load", "spins"),
    [(["serve", "m"], 0.0, True), (["serve", "m"], 99.0, False), (["train", "r.yaml"], 0.0, False), ([], 0.0, False)],
)
def test_threads_spin_only_where_one_answers_on_a_quiet_machine(
    arguments: list[str], load: float, spins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    how_threads_wait(arguments)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert ("GOMP_SPINCOUNT" in os.environ) == spins
