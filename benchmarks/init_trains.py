"""Does a recipe that `lorikeet init` writes train as it stands? For every data file and every model given.

    python benchmarks/init_trains.py --model smollm2-135m --data a.json b.jsonl ...

For each pair: `lorikeet init --yes`, then `lorikeet train` of the recipe for a few steps on some of the rows, with
nothing else changed. Exit code 1 if any of them fails; `--whole` trains each recipe without any override.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LORIKEET = [sys.executable, "-m", "lorikeet.cli.main"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["smollm2-135m"], help="anything a recipe's model.path can be")
    parser.add_argument("--data", nargs="+", required=True, help="files, each a recipe of its own")
    parser.add_argument("--purpose", nargs="+", default=[None], help="default: what the data look like")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="data.max_examples")
    parser.add_argument("--whole", action="store_true", help="train each recipe as it stands, to its end")
    return parser.parse_args()


def overrides(recipe: Path, asked: argparse.Namespace) -> list[str]:
    """What makes a run short and leaves everything else as the recipe has it."""
    if asked.whole:
        return []
    short = [f"train.max_steps={asked.steps}", "train.num_train_epochs=1", f"data.max_examples={asked.rows}"]
    held_out = next(line for line in recipe.read_text().splitlines() if line.strip().startswith("validation:"))
    if held_out.split()[1].isdigit():  # of few rows only few can be held out
        short += ["data.validation=4", "evaluate.samples=1", "generate.max_new_tokens=8"]
    return short


def run(words: list[str], folder: Path) -> tuple[bool, str]:
    """(whether it ended well, what it said)."""
    done = subprocess.run([*LORIKEET, *words], cwd=folder, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    asked, failed = arguments(), 0
    models = [str(Path(model).resolve()) if Path(model).exists() else model for model in asked.model]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for model in models:
            for data in asked.data:
                for purpose in asked.purpose:
                    start, recipe = time.perf_counter(), folder / "recipe.yaml"
                    words = ["init", "--model", model, "--data", str(Path(data).resolve()), "--yes", "--overwrite"]
                    good, said = run(words + (["--purpose", purpose] if purpose else []), folder)
                    if good:
                        output = folder / "runs" / "trained"
                        words = ["train", str(recipe), f"output_dir={output}", "--overwrite"]
                        good, said = run(words + overrides(recipe, asked), folder)
                    seconds = time.perf_counter() - start
                    what = f"{Path(model).name:32} {Path(data).name:28} {purpose or '':9} {seconds:6.1f} s"
                    print(f"{'trains' if good else 'FAILS '}  {what}", flush=True)
                    if not good:
                        failed += 1
                        print("\n".join(f"        {line}" for line in said.splitlines()[-6:]))
    print(f"{failed} failed" if failed else "all train without edits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
