"""The notebooks of examples/ run from start to end, and their outputs stay small."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    root = str(EXAMPLES.parent)
    monkeypatch.setenv("PYTHONPATH", root)
    notebook = nbformat.read(path, 4)
    before = [len(cell.get("outputs", ())) for cell in notebook.cells]
    resources = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output.output_type == "error"] == []
    # What is saved in the repository has the outputs of every cell that has any.
    after = [
        len([o for o in cell.get("outputs", ()) if o.get("name") != "stderr"])
        for cell in notebook.cells
    ]
    assert after == before


def test_there_is_one_for_filling_and_one_for_research() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["filling", "research"]
    for path in NOTEBOOKS:
        assert path.stat().st_size < 250_000
