"""Every command that README.md and the docs show is run, in order, with the tiny model in the real one's place."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer

from lorikeet.checkpoints import download
from lorikeet.cli.main import app, run_command
from lorikeet.config import load
from lorikeet.data.steps import _recipe
from lorikeet.plan.process import Resident

ROOT = Path(__file__).parents[2]
MEASURED = "docs/benchmarks.md"  # its commands take hours, on real models
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
PAGES.remove(MEASURED)
BLOCK = re.compile(r"^ *```(?:sh|bash|shell|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
KNOWN = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
# what is not run here, and why
EXCEPTIONS = {
    "make demo": "takes minutes and a download; it is run by itself",
    "make test": "is what runs this test",
    "make lint": "is a step of its own where these tests run",
    "make bench": "measures for minutes",
    "lorikeet demo": "takes minutes and a download; it is run by itself",
    "lorikeet download": "needs a network; tests/checkpoints run it against a server of their own",
    "pip install": "changes the environment",
    "git clone": "needs a network",
    "python -m venv": "changes the environment",
    ". .venv": "changes the environment",
    "source .venv": "changes the environment",
    "cd ": "there is one folder here",
    "pytest": "is what runs this test",
    "python -m pytest": "is what runs this test",
    "make ": "targets of the Makefile run whole programs",
}


def commands(page: str) -> Iterator[str]:
    """The commands in a page's shell blocks, without prompts, comments and the output of `console` blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        lines = match[1].replace("\\\n", " ").splitlines()
        prompted = any(line.lstrip().startswith("$ ") for line in lines)
        for line in lines:
            line = line.strip()
            if prompted and not line.startswith("$ "):
                continue  # output
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield shlex.join(words)


def excused(command: str) -> bool:
    bare = command.removeprefix(".venv/bin/")
    return any(bare.startswith(known) for known in EXCEPTIONS)


@pytest.fixture
def checkout(
    tmp_path: Path, make_model: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder like the root of the repository, where smollm2-135m is a tiny model with room for long rows."""
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    model = make_model(tmp_path / "model", max_position_embeddings=2048)
    monkeypatch.setitem(download.ALIASES, "smollm2-135m", str(model))
    # a command of its own process holds no other tests' libraries, which `plan` would count
    monkeypatch.setattr("lorikeet.api.planning.resident", lambda: Resident(400 << 20))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # more threads than free cores make a tiny model crawl
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(page: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands(page):
        if excused(command):
            continue
        words = shlex.split(command)
        if words[0] == "python" and Path(words[1]).is_file():  # in this process, which knows the tiny model
            monkeypatch.setattr("sys.argv", words[1:])
            monkeypatch.syspath_prepend(str(Path(words[1]).parent))
            runpy.run_path(words[1], run_name="__main__")
            continue
        assert Path(words[0]).name == "lorikeet", f"{page}: neither run nor excused: {command}"
        shell = {word for word in words if word in ("|", ">", ">>", "&&", ";", "<")}
        assert not shell, f"{page}: one command a line, without the shell's {shell}: {command}"
        monkeypatch.setattr("sys.stdin", io.StringIO("Name a colour.\n:exit\n"))
        assert run_command(words[1:]) == 0, f"{page}: {command}"


def test_the_readme_shows_commands() -> None:
    """The extraction finds what a reader sees; a page that changed its fences would otherwise be tested in vain."""
    found = [command for command in commands("README.md") if command.startswith("lorikeet ")]
    assert {"train", "evaluate", "predict", "merge"} <= {command.split()[1] for command in found}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`lorikeet ([a-z]+)", text)
    assert set(named) <= KNOWN


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_load(recipe: Path) -> None:
    if "steps:" in recipe.read_text(encoding="utf-8").splitlines():  # a chain that cleans
        assert _recipe.options(recipe, {"input": ["in.json"], "output": "out.jsonl"}, None, []).steps
        return
    load(recipe)


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    whole = [block for block in blocks if "output_dir:" in block]
    assert whole
    for number, block in enumerate(whole):
        (tmp_path / f"{number}.yaml").write_text(block)
        load(tmp_path / f"{number}.yaml")
