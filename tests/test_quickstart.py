"""docs/quickstart.ipynb runs from top to bottom, and finds what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs_and_finds_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    # Committed without what it printed.
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["auroc"]["bundled"] > 0.9 and names["auroc"]["detector"] > 0.9
    inside = [(names["truth"][one.mask] == 1).mean() for one in names["result"].components]
    assert max(inside) > 0.5
    assert np.abs(names["score"][0] - names["found"].score).max() < 1e-3 * np.ptp(names["found"].score)
