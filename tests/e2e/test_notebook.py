"""The notebook in examples/ runs from its first cell to its last, and what it shows is what a run of it showed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "lorikeet.ipynb"
LARGEST = 60_000  # bytes, with what it shows


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebook_runs(make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model that has learned nothing, and few notes: what runs is the same, and takes seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: threads that spin make a tiny model crawl
    model = make_model(tmp_path / "model", max_position_embeddings=2048)
    notebook = read()
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    code = parameters.source.replace('"smollm2-135m"', repr(str(model)))
    parameters.source, changed = re.subn(r"NOTES, ASKED = \d+, \d+", "NOTES, ASKED = 16, 2", code)
    assert changed == 1 and str(model) in parameters.source
    # waiting takes what it takes on a busy machine
    client = NotebookClient(
        notebook, timeout=None, startup_timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env={**os.environ})
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
    assert (tmp_path / "runs" / "notebook-merged" / "config.json").is_file()


def test_what_the_notebook_shows_is_small_and_nobodys_own() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    assert not re.search(r"/(?:home|root|work|tmp)/", text), "a path of somebody's machine"
    outputs = [output for cell in read().cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream"}, "an error, or a picture"


def test_links_of_the_notebook_lead_to_files() -> None:
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
