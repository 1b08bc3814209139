"""The native path: prepare, train, merge, predict and chat with every training framework blocked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lorikeet.base.yaml_lines import dump

from .conftest import Place, settings

BLOCKED = (
    "transformers", "peft", "accelerate", "datasets", "trl", "huggingface_hub", "kernels", "bitsandbytes", "pyarrow",
)  # fmt: skip
SCRIPT = """
import io, sys

BLOCKED = {blocked!r}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())

from lorikeet.cli.main import run_command

def run(*words):
    code = run_command(words)
    assert code == 0, (words, code)

run("data", "show", "recipe.yaml", "-n", "1")
run("train", "recipe.yaml")
run("evaluate", "run")
run("merge", "run", "merged")
run("predict", "merged", "tiny.jsonl", "generate.max_new_tokens=2", "-o", "replies.jsonl")
run("report", "run")
run("schema")
sys.stdin = io.StringIO("hello\\n:exit\\n")
run("chat", "run", "generate.max_new_tokens=2")
loaded = sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED)
assert not loaded, loaded
print("native path done")
"""


def test_the_native_path_needs_no_framework(place: Place) -> None:
    recipe = settings(place.model, "tiny.jsonl", "run", {"train": {"max_steps": 2}})
    (place.folder / "recipe.yaml").write_text(dump(recipe))
    script = SCRIPT.format(blocked=BLOCKED)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("native path done\n")
    replies = (place.folder / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 24 and all("reply" in json.loads(line) for line in replies)
    assert (place.folder / "merged/model.safetensors").is_file()


def test_a_blocked_package_is_asked_for_in_words(place: Place) -> None:
    """What does need an optional package says which, and how to get it."""
    Path(place.folder / "table.parquet").write_bytes(b"PAR1")
    place.recipe(data={"train": ["table.parquet"]})
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from lorikeet.cli.main import run_command; sys.exit(run_command(['train', 'recipe.yaml']))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2 and done.stderr.startswith("MissingExtra: reading ")
    assert "pip install 'lorikeet-llm[parquet]'" in done.stderr
