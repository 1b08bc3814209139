"""A disk that takes no more: for real, by a limit on the size of files that the system enforces on the process, and
on a small file system of its own where one can be mounted."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorikeet.base.files import disk_is_full, write_file
from lorikeet.train.state import checkpoints, intact

from .conftest import LORIKEET, Place
from .test_interrupt import to_catch

STEPS = {"max_steps": 6, "save_steps": 2, "save_total_limit": 9}
WEIGHTS = "adapter/adapter_model.safetensors"


def limited(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def train(place: Place, *words: str, most: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LORIKEET, "train", "recipe.yaml", *words],
        capture_output=True, text=True, cwd=place.folder, preexec_fn=None if most is None else limited(most),
    )  # fmt: skip


@pytest.fixture
def whole(place: Place, tiny_data: Path) -> Place:
    """A place with a run `whole` that had room."""
    place.recipe(train=STEPS)
    assert place.run("train", "recipe.yaml", "output_dir=whole").code == 0
    return place


@pytest.mark.parametrize("most", [600, pytest.param(3_000, marks=pytest.mark.slow), 20_000, 50_000])
def test_a_full_disk_stops_the_run_and_it_goes_on(whole: Place, most: int) -> None:
    found = train(whole, most=most)
    assert found.returncode == 3, found.stderr
    assert "DiskFull: the disk is full" in found.stderr and "Traceback" not in found.stderr
    assert "the same command" in found.stderr
    run = whole.folder / "run"
    assert [path.name for path in run.rglob(".*") if path.name != ".lock"] == [], "something half-written is left"
    assert all(intact(run / f"checkpoint-{step}") for step in checkpoints(run))
    assert not (run / "summary.json").exists()
    assert train(whole).returncode == 0
    assert (run / WEIGHTS).read_bytes() == (whole.folder / "whole" / WEIGHTS).read_bytes()
    last = "checkpoint-6/optimizer.safetensors"
    assert (run / last).read_bytes() == (whole.folder / "whole" / last).read_bytes()


INSIDE = """
set -e
mount -t tmpfs -o size=300m tmpfs disk
set +e
%(caught)s & child=$!
while ! grep -qs '"kind": "train", "step": 3' disk/run/metrics.jsonl; do kill -0 $child || exit 91; sleep 0.01; done
head -c 400m /dev/zero > disk/ballast 2>/dev/null
wait $child; echo code $?
ls -A disk/run
rm disk/ballast
%(train)s; echo code $?
cp -r disk/run kept
"""


@pytest.mark.slow
def test_a_small_file_system_that_fills_up(whole: Place) -> None:
    unshare = shutil.which("unshare")
    tried = unshare and subprocess.run([unshare, "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if not tried or tried.returncode:
        pytest.skip("no file system can be mounted here")
    (whole.folder / "disk").mkdir()
    long = {**STEPS, "max_steps": 60}
    whole.recipe(train=long)
    assert whole.run("train", "recipe.yaml", "output_dir=whole", "--overwrite").code == 0
    recipe, run = Path("recipe.yaml"), Path("disk/run")
    again = [*LORIKEET, "train", str(recipe), f"output_dir={run}"]
    script = INSIDE % {"caught": shlex.join(to_catch(recipe, run, 3)), "train": shlex.join(again)}
    found = subprocess.run([str(unshare), "-rm", "sh", "-c", script], capture_output=True, text=True, cwd=whole.folder)
    assert found.stdout.count("code 3") == 1 and "code 0" in found.stdout, found.stderr
    assert "DiskFull" in found.stderr
    assert (whole.folder / "kept" / WEIGHTS).read_bytes() == (whole.folder / "whole" / WEIGHTS).read_bytes()


def test_a_command_that_has_nothing_to_go_on_with_says_it_too(whole: Place) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*LORIKEET, "schema", "--markdown"]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 2 and "OutputError: the disk is full" in found.stderr


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom lorikeet.train.metrics import Metrics\n"
        "metrics = Metrics(Path(sys.argv[1]))\nmetrics.append({'step': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))\n"
        "try:\n    metrics.append({'step': 2, 'text': 'x' * 100})\nexcept OSError as error:\n    print(error.errno)\n"
    )
    file = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "27", done.stderr
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"step": 1}]


def test_what_says_that_a_disk_is_full() -> None:
    assert disk_is_full(OSError(28, "No space left on device")) and disk_is_full(OSError(27, "File too large"))
    assert disk_is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not disk_is_full(OSError(2, "No such file")) and not disk_is_full(ValueError("os error 2"))
    with pytest.raises(OSError) as error:
        write_file(Path("/dev/full/x"), "y")
    assert not disk_is_full(error.value)
