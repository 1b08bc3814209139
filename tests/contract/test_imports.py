"""Imports point down the list of layers, never up; inside a line from left to right; packages stay where they may."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from contract import source

# top to bottom; inside a row an item may import those to its right only, across `|` nobody imports the other
LAYERS: list[list[set[str]]] = [
    [{"cli"}, {"demo"}, {"api", "migrate"}, {"config"}],
    [{"plan", "verify", "serve"}],
    [{"train", "infer"}],
    [{"adapters"}],
    [{"models", "data"}],
    [{"tokens"}, {"checkpoints", "ops"}],
    [{"quant"}],
    [{"kernels"}],
    [{"base"}],
]
_PLACE = {item: (row, column) for row, line in enumerate(LAYERS) for column, group in enumerate(line) for item in group}

GUARDED = {"transformers", "peft", "accelerate", "datasets", "trl", "huggingface_hub", "kernels"}
MAY = {
    "models/huggingface.py": GUARDED,
    "tokens/huggingface.py": {"transformers"},
    "checkpoints/sources/hf.py": {"huggingface_hub"},
    "checkpoints/sources/_datasets.py": {"huggingface_hub"},
}
EXTRAS = [*sorted(GUARDED), "pyarrow", "bitsandbytes", "tiktoken", "sentencepiece", "deepspeed", "modelscope"]


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def may_import(importer: str, imported: str) -> bool:
    """Whether a file of layer `importer` may import layer `imported`."""
    if importer == imported:
        return True
    (row, column), (other_row, other_column) = _PLACE[importer], _PLACE[imported]
    return other_row > row or (other_row == row and other_column > column)


def violations(module: str, tree: ast.Module) -> list[str]:
    found = []
    for imported, line in source.imports(tree):
        if not imported.startswith("lorikeet.") or not layer(module):
            continue
        if not may_import(layer(module), layer(imported)):
            found.append(f"{module}:{line} imports {imported}")
    return found


@pytest.mark.parametrize("path", source.files(), ids=source.name)
def test_imports_point_down(path: Path) -> None:
    if path.name == "__init__.py":  # the package's public names come from everywhere; the folders' are empty
        return
    assert violations(source.module(path), source.tree(path)) == []


def test_the_rule_can_fail() -> None:
    assert violations("lorikeet.train.loop", ast.parse("from lorikeet.infer import engine"))
    assert violations("lorikeet.models.load", ast.parse("def f():\n    import lorikeet.data.files"))
    assert violations("lorikeet.ops.norm", ast.parse("from lorikeet.tokens import open"))
    assert violations("lorikeet.config", ast.parse("from lorikeet import api"))
    assert violations("lorikeet.base.files", ast.parse("import lorikeet.quant.none"))
    assert not violations("lorikeet.tokens.gguf", ast.parse("from lorikeet.checkpoints import gguf"))
    assert not violations("lorikeet.api", ast.parse("from lorikeet import config"))


def test_every_folder_has_a_layer() -> None:
    parts = {layer(source.module(path)) for path in source.files()} - {""}
    assert parts <= set(_PLACE), "a new folder needs its place in the list of layers"


def test_only_api_joins_layers() -> None:
    joiners = {"cli", "demo", "api", "config", "plan", "verify", "serve", ""}
    for path in source.files():
        reached = {
            layer(imported) for imported, _ in source.imports(source.tree(path)) if imported.startswith("lorikeet.")
        }
        if layer(source.module(path)) not in joiners:
            assert not {"train", "data"} <= reached | {layer(source.module(path))}, (
                f"{source.name(path)} joins train and data"
            )


@pytest.mark.parametrize("path", source.files(), ids=source.name)
def test_guarded_packages_stay_where_they_may(path: Path) -> None:
    allowed = MAY.get(source.name(path), set())
    used = {imported.split(".")[0] for imported, _ in source.imports(source.tree(path))} & GUARDED
    for call in ast.walk(source.tree(path)):  # require("huggingface_hub", ...) imports too
        if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) in (
            "require",
            "import_module",
        ):
            used |= {item.value.split(".")[0] for item in call.args if isinstance(item, ast.Constant)} & GUARDED
    assert used <= allowed


@pytest.mark.parametrize("path", source.files(), ids=source.name)
def test_no_try_around_an_import_at_the_top(path: Path) -> None:
    for statement in source.tree(path).body:
        if isinstance(statement, ast.Try):
            assert not list(source.imports(statement)), (
                f"{source.name(path)}:{statement.lineno}: use base.extras.require"
            )


BLOCKED_IMPORT = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in set(sys.argv[1].split()):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for name in sys.argv[2].split():
    importlib.import_module(name)
print("imported", len(sys.argv[2].split()))
"""


def test_every_module_imports_without_any_extra() -> None:
    modules = [source.module(path) for path in source.files()]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, " ".join(EXTRAS), " ".join(modules)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", str(len(modules))]
