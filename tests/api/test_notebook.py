"""The notebook of the documentation, in a kernel as a person has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorials" / "notebook.ipynb"


def texts(cell: Any) -> str:
    """Return all that a cell shows."""
    return json.dumps(cell["outputs"])


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("IMGCLS_CODE", "")
    book = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path / "work"
    folder.mkdir()
    # No worker may import what is in the notebook's folder; the notebook's own process has it first on Python's path.
    note = "open('IMPORTED', 'a').write('torchvision')"
    (folder / "torchvision.py").write_text(f"import sys\nif 'ipykernel' not in sys.modules:\n    {note}\n")
    there = {"metadata": {"path": folder}}
    nbclient.NotebookClient(book, timeout=1200, kernel_name="python3", resources=there).execute()
    shown = {"".join(cell["source"]): texts(cell) for cell in book.cells if cell["cell_type"] == "code"}

    def of(start: str) -> str:
        return next(text for source, text in shown.items() if start in source)

    assert "<strong>Study notebook</strong>" in of("study = ic.run(space")
    # Progress is drawn below the cell, and printed lines are text.
    assert "data digits: 10 classes" in of("study = ic.run(space")
    assert "<strong>Trial " in of("study.best")
    assert "dataframe" in of("study.trials()")
    assert "10 classes" in of("study.export")
    assert "own_metrics:distance" in of("own_metrics.py")
    assert "finished" in of("ic.studies()")
    for text in shown.values():
        assert "<script" not in text
        assert "stderr" not in text
    assert (folder / "report.html").is_file()
    assert not (folder / "IMPORTED").exists()
