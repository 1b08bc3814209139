"""What the package shows to the outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lorikeet

PUBLIC = [
    "__version__",
    "api",
    "Recipe",
    "load_recipe",
    "save_recipe",
    "Message",
    "Conversation",
    "Origin",
    "Example",
    "Batch",
    "LorikeetError",
    "RecipeError",
    "DataError",
    "TemplateError",
    "CheckpointError",
    "TokenizerError",
    "ModelError",
    "DownloadError",
    "OutputError",
    "MissingExtra",
    "TrainingError",
    "CheckFailed",
    "Interrupted",
]
VERBS = ["prepare", "train", "evaluate", "predict", "chat", "merge", "show"]


def test_the_public_names() -> None:
    assert lorikeet.__all__ == PUBLIC
    assert dir(lorikeet) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lorikeet, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lorikeet.nothing


def test_the_verbs() -> None:
    from lorikeet import api

    assert [verb for verb in VERBS if not callable(getattr(api, verb, None))] == []


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\nMODULES', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=True)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


HEAVY = {"torch", "numpy", "tokenizers", "gguf", "yaml"}
CLI = "from lorikeet.cli.main import run_command as run; "


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import lorikeet", HEAVY | {"pydantic"}),
        (CLI + "assert run(['--help']) == 0", HEAVY | {"pydantic"}),
        (CLI + "assert run(['--version']) == 0", HEAVY | {"pydantic"}),
        (CLI + "assert run(['train', '--help']) == 0", HEAVY),  # typer itself asks pydantic about arguments
    ],
)
def test_light(statement: str, absent: set[str]) -> None:
    assert not loaded_by(statement) & absent
