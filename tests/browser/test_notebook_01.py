"""Notebook 01 in JupyterLab: every cell runs, and its explorer answers every control."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .explorer import Explorer, explorers
from .lab import REPOSITORY, NotebookPage

NOTEBOOK = "notebooks/01_patchwise_mlp.ipynb"


@pytest.mark.browser
def test_notebook_01(open_notebook: Callable[..., NotebookPage], report_latency: Callable[[str, Explorer], None]) -> None:
    assert (REPOSITORY / NOTEBOOK).is_file(), f"{NOTEBOOK} is missing"
    page = open_notebook(NOTEBOOK)
    page.run_all()
    assert page.errors() == []
    found = list(explorers(page))
    assert found, f"{NOTEBOOK} shows no explorer: no element has the class coursekit-explorer"
    for explorer in found:
        explorer.drive()
    for number, explorer in enumerate(found, 1):
        report_latency("notebook 01" + (f", explorer {number}" if len(found) > 1 else ""), explorer)
    assert page.errors() == []
