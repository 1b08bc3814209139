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


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebook_runs(make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model that has learned nothing, and few notes: what runs is the same, and takes seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: threads that spin make a tiny model crawl
    model = make_model(tmp_path / "model", max_position_embeddings=2048)
    notebook = read()
    first = parameters(notebook)
    code = first.source.replace('"smollm2-135m"', repr(str(model)))
    first.source, changed = re.subn(r"NOTES, ASKED = \d+, \d+", "NOTES, ASKED = 16, 2", code)
    assert changed == 1 and str(model) in first.source
    # waiting takes what it takes on a busy machine
    client = NotebookClient(
        notebook, timeout=None, startup_timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env={**os.environ})
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
    assert (tmp_path / "runs" / "notebook-merged" / "config.json").is_file()


def said(cell: nbformat.NotebookNode) -> str:
    """All that a cell shows, as text."""
    return "\n".join(one.text if one.output_type == "stream" else one.data["text/plain"] for one in cell.outputs)


def test_what_the_notebook_shows_is_small_and_nobodys_own() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    assert not re.search(r"/(?:home|root|work|tmp|opt|Users)/|site-packages|[Ww]arning", text), "of somebody's machine"
    assert "execution" not in "".join(str(cell.metadata) for cell in read().cells), "when it ran"


def test_what_the_notebook_shows_is_of_one_run_of_its_cells() -> None:
    """Of all cells in order, with no error and nothing on standard error; a bar has left one line."""
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert [cell.source for cell in cells if not cell.outputs] == [parameters(read()).source]
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type in ("stream", "display_data") and output.get("name", "stdout") == "stdout"
    assert max(len(cell.outputs) for cell in cells) <= 4
    assert re.findall(r"training ━+ (\d+)/(\d+) .* GiB", "\n".join(map(said, cells))) == [("76", "76")]


def test_what_the_notebook_shows_is_a_model_that_learned() -> None:
    notebook = read()
    notes, asked = re.findall(r"\d+", parameters(notebook).source.splitlines()[1])
    shown = "\n".join(said(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert f"data: {notes} rows" in shown
    before, after = (int(right) for right in re.findall(rf"^(\d+) of {asked} right$", shown, re.M))
    assert before == 0 and after >= int(asked) / 2
    assert "⟦{" in shown.replace("\x1b[1;32m", ""), "what is learned stands in brackets where a page has no colours"


def test_links_of_the_notebook_lead_to_files() -> None:
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
