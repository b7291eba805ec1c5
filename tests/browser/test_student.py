"""A student in JupyterLab: types a wrong answer to each exercise of a handed-out notebook, reads the hint, and types the right one."""

from __future__ import annotations

import re
from collections.abc import Callable

import nbformat
import pytest

from .lab import REPOSITORY, LabServer, NotebookPage

WRONG = {   # by notebook and exercise: in the solution, what a student writes instead, and a word of the hint
    "01": {
        "1.1": ("i : i + k, j : j + k", "i : i + k - 1, j : j + k - 1", "end"),
        "2.1": ("        convolution.bias.copy_(layer.bias)\n", "", "bias"),
        "4.1": ("return nn.Sequential(*modules)", "return nn.Sequential(*modules, nn.ReLU())", "end"),
        "4.2": ("- rows.min() + 1", "- rows.min()", "last − first"),
    },
    "04": {
        "2.1": ("batchmean", "mean", "batchmean"),
        "2.2": ("0.5 * ", "", "½"),
        "3.1": ("(log_var / 2)", "log_var", "deviation"),
        "4.1": ("math.log(2 * math.pi * variance)", "math.log(2 * math.pi)", "log"),
        "6.1": (" - math.log(samples)", "", "K"),
    },
}


def written(page: NotebookPage, cell: int, source: str) -> str:
    """What the cell shows after the source was typed into it, in the place of what it held, and run."""
    place = page.page.locator(".jp-Notebook .jp-Cell").nth(cell)
    place.scroll_into_view_if_needed()
    place.locator(".cm-content").click()
    page.page.keyboard.press("Control+A")
    page.page.keyboard.insert_text(source)
    page.page.keyboard.press("Control+Enter")
    page.settle()
    return place.locator(".jp-OutputArea").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("name", WRONG)
def test_wrong_then_right(name: str, lab_server: LabServer, open_notebook: Callable[..., NotebookPage]) -> None:
    from coursekit.student.__main__ import main as student

    assert student(["build", "--to", str(lab_server.root / "student"), name, "--force"]) == 0
    file = next((lab_server.root / "student").glob(f"{name}_*.ipynb"))
    blank = nbformat.read(file, as_version=4)
    solved = nbformat.read(REPOSITORY / "notebooks" / file.name, as_version=4)
    answers = {found[1]: cell.source for cell in solved.cells if (found := re.search(r'exercises\.check\("([\d.]+)"', cell.source))}
    cells = {found[1]: n for n, cell in enumerate(blank.cells) if (found := re.search(r'exercises\.check\("([\d.]+)"', cell.source))}
    assert answers.keys() == cells.keys() == WRONG[name].keys()

    page = open_notebook(f"student/{file.name}")
    page.run_all()
    assert page.errors() == []
    for exercise, cell in cells.items():
        right, wrong, hint = WRONG[name][exercise]
        assert right in answers[exercise]
        said = written(page, cell, answers[exercise].replace(right, wrong))
        assert f"✗ Exercise {exercise}: not right yet." in said and hint in said
        assert f"✓ Exercise {exercise}: right." in written(page, cell, answers[exercise])
    assert page.errors() == []
