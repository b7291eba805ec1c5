"""`pytest --nbval` fails when a stored number, a formula or a slider's callback changes, and in the cell that tells of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from coursekit.workbook.notebooks import code_cells, notebook_text

ROOT = Path(__file__).resolve().parents[1]


class Bite(NamedTuple):
    """One change, and the cell in which nbval has to notice it."""

    name: str
    file: str | None  # in coursekit; None for the notebook's stored output
    old: str
    new: str
    cell: str  # a piece of that cell's source


NOTEBOOK = ROOT / "notebooks" / "01_patchwise_mlp.ipynb"
LAST_CELL = 'check(f"4.1  MLP = convnet'  # the cells after this one are left out, to be quick
BITES = [
    Bite("a stored number", None, "20 networks", "21 networks", LAST_CELL),
    Bite("a formula", "patchwise.py", "z = layer(activation(z))", "z = activation(layer(z))", LAST_CELL),
    Bite("a slider's callback", "explore/patch.py", "product = weights * patch", "product = weights + patch", "after three moves"),
    Bite("a slider without one", "explore/base.py", 'control.observe(self._show, names="value")', "pass", "after three moves"),
]


def failing_cells(folder: Path, notebook: NotebookNode, package: Path, bite: Bite | None) -> list[int]:
    """The code cells, by nbval's number, in which `notebook` fails against a copy of `package` in which `bite` is applied."""
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder / "notebooks")
    shutil.copytree(package, folder / "coursekit", ignore=shutil.ignore_patterns("__pycache__"))
    if (package.parent / "data" / "sources.toml").exists():  # what the package reads from its checkout
        (folder / "data").mkdir()
        shutil.copy(package.parent / "data" / "sources.toml", folder / "data")
    if bite is not None and bite.file is not None:
        path = folder / "coursekit" / bite.file
        path.write_text(_replaced(path.read_text(encoding="utf-8"), bite), encoding="utf-8")
    if bite is not None and bite.file is None:
        cell = code_cells(notebook)[_number(notebook, bite.cell)]
        streams = [output for output in cell.outputs if bite.old in output.get("text", "")]
        assert streams, f"the cell with {bite.cell!r} has no stored output with {bite.old!r}: point the bite at one that has"
        streams[0].text = _replaced(streams[0].text, bite)
    (folder / "notebooks" / "bitten.ipynb").write_text(notebook_text(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--nbval", "--no-header", "-q", "-rfE", "--color=no", "-p", "no:cacheprovider", "notebooks"]
    result = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=600)
    cells = [int(number) for number in re.findall(r"^(?:FAILED|ERROR) \S+::Cell (\d+)", result.stdout, re.MULTILINE)]
    assert (result.returncode, bool(cells)) in ((0, False), (1, True)), result.stdout + result.stderr
    return cells


def _replaced(text: str, bite: Bite) -> str:
    assert bite.old in text, f"{bite.name}: {bite.old!r} is no longer in {bite.file or 'the output'}; point the bite at what replaced it"
    return text.replace(bite.old, bite.new)


def _number(notebook: NotebookNode, piece: str) -> int:
    """The number of the one code cell whose source holds `piece`."""
    (number,) = (number for number, cell in enumerate(code_cells(notebook)) if piece in cell.source)
    return number


def up_to(notebook: NotebookNode, piece: str) -> NotebookNode:
    """The code cells of `notebook` up to the one whose source holds `piece`."""
    return new_notebook(cells=code_cells(notebook)[: _number(notebook, piece) + 1])


@pytest.mark.parametrize("bite", [None, *BITES], ids=lambda bite: bite.name if bite else "nothing changed")
def test_nbval_bites(tmp_path: Path, bite: Bite | None) -> None:
    notebook = up_to(nbformat.read(NOTEBOOK, as_version=4), LAST_CELL)
    failed = failing_cells(tmp_path, notebook, ROOT / "coursekit", bite)
    if bite is None:
        assert failed == []
    else:
        assert _number(notebook, bite.cell) in failed


def empty_package(folder: Path) -> Path:
    package = folder / "original" / "coursekit"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    return package


def test_a_warning_is_a_fault_where_nothing_is_compared(tmp_path: Path) -> None:
    sources = ["print('as ever')", "import warnings\nwarnings.warn('hm')", "print('as ever')"]
    ignored = {"tags": ["nbval-ignore-output"]}
    cells = [new_code_cell(source, metadata=ignored, execution_count=count) for count, source in enumerate(sources, start=1)]
    folder = tmp_path / "copy"
    folder.mkdir()
    assert failing_cells(folder, new_notebook(cells=cells), empty_package(tmp_path), None) == [1]


def test_a_cell_that_was_never_executed_fails_alone(tmp_path: Path) -> None:
    """Those below need what it defines."""
    sources = ["x = 1", "y = x + 1", "print(x + y)"]
    cells = [new_code_cell(source, execution_count=count) for source, count in zip(sources, (1, None, 3), strict=True)]
    cells[-1].outputs = [new_output("stream", text="3\n")]
    folder = tmp_path / "copy"
    folder.mkdir()
    assert failing_cells(folder, new_notebook(cells=cells), empty_package(tmp_path), None) == [1]


# The helper itself, on a package of one file.


TINY = {
    "from coursekit.tiny import Explorer, area": "",
    "print('area', area(3))": "area 9\n",
    "explorer = Explorer()\nexplorer.slider.value = 4\nprint(explorer.shown)": "twice 8\n",
    "print('untouched')": "untouched\n",
}
TINY_PACKAGE = """
from ipywidgets import IntSlider

def area(side):
    return side * side

class Explorer:
    def __init__(self):
        self.slider = IntSlider(value=1)
        self.slider.observe(self.show, names="value")

    def show(self, change):
        self.shown = f"twice {2 * change.new}"
"""


@pytest.mark.parametrize(("bite", "expected"), [
    (None, []),
    (Bite("stored", None, "area 9", "area 8", "area("), [1]),
    (Bite("formula and callback", "tiny.py", " * ", " + ", ""), [1, 2]),
], ids=lambda value: getattr(value, "name", None))  # fmt: skip
def test_helper_finds_the_cell(tmp_path: Path, bite: Bite | None, expected: list[int]) -> None:
    package = empty_package(tmp_path)
    (package / "tiny.py").write_text(TINY_PACKAGE, encoding="utf-8")
    outputs = [[new_output("stream", text=text)] if text else [] for text in TINY.values()]
    cells = [new_code_cell(source, outputs=output) for source, output in zip(TINY, outputs, strict=True)]
    for count, cell in enumerate(cells, start=1):
        cell.execution_count = count
    folder = tmp_path / "copy"
    folder.mkdir()
    assert failing_cells(folder, new_notebook(cells=cells), package, bite) == expected
