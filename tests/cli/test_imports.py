"""What a command imports, it pays for at every start: in seconds, and in memory that stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "numpy", "transformers", "pandas", "pyarrow", "tokenizers", "gguf", "pydantic", "rich", "jinja2")
NOT_FOR_TRAINING = (
    "transformers", "peft", "datasets", "pandas", "pyarrow", "huggingface_hub", "requests", "scipy",
    "sympy", "torch._dynamo", "torch._inductor", "fastapi", "starlette", "uvicorn",
)  # fmt: skip


def imported(program: str, *arguments: str) -> set[str]:
    """Names of the modules that a fresh process has imported after `program`."""
    report = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    run = [sys.executable, "-c", f"{program}\n{report}", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    found = imported("from lorikeet.cli.main import run_command; assert run_command(['--help']) == 0")
    assert "lorikeet.cli.run" in found
    assert not found.intersection(HEAVY)


def test_training_imports_neither_the_compiler_nor_what_reads_other_formats(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output_dir: {tmp_path / 'run'}\nmodel: {{path: {tiny_model}, dtype: float32}}\nadapter: {{kind: lora}}\n"
        f"data: {{train: [{tiny_data}], max_length: 128, validation: null}}\n"
        "train: {max_steps: 1, examples_per_step: 2, row_tokens: 256}\n"
    )
    program = "import sys; from lorikeet.cli.main import run_command; assert run_command(['train', sys.argv[1]]) == 0"
    found = imported(program, str(recipe))
    assert {"torch", "lorikeet.train.loop"} <= found
    assert not found.intersection(NOT_FOR_TRAINING)
