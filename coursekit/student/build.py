"""Solution notebooks → student notebooks: the solutions go, all else stays.

An exercise is a paragraph "**Exercise 1.1** (easy, 5 minutes, 2 points)." and one code cell with one function, whose solution
stands between ``### BEGIN SOLUTION`` and ``### END SOLUTION``, and with ``name = exercises.check("1.1", name)``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode

from coursekit.student import StudentError, make_folder, write
from coursekit.workbook.notebooks import METADATA, code_cells, in_step, notebook_text, sources
from coursekit.workbook.publish import BADGE, NAME, published, setup_cell

PARAGRAPH = re.compile(r"\*\*Exercise ([\w.]+)\*\*(?: \(\w+, \d+ minutes?, (\d+) points?\))?")
CHECK = re.compile(r'^(\w+) = exercises\.check\("([^"]*)", (\w+)\)', re.MULTILINE)
HOW = """**Exercises.** Write your answer where `raise NotImplementedError` stands, and run the cell: it says that this is right,
or what to look at. Hints stand above it. The notebook goes on without an answer, and with a wrong one: you can run all of it first."""
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^\1### END SOLUTION$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Task:
    """An exercise as the student gets it: ``id`` "01-1.1", ``number`` "1.1", the function's ``name``, and the ``stub``'s cell."""

    id: str
    number: str
    name: str
    points: int
    stub: NotebookNode


def student_notebook(path: Path) -> tuple[NotebookNode, list[Task]]:
    """The student's form of the notebook whose .py is at ``path``, and its exercises in order; badge and setup cell as in the source.

    Raises ``StudentError``, naming notebook and cell, for an exercise that is not as the module's docstring says.
    """
    notebook = in_step(path)
    notebook.cells = [cell for cell in notebook.cells if "instructor" not in cell.metadata.get("tags", [])]
    points = _points(notebook, path)
    tasks = [task for cell in code_cells(notebook) if (task := _stubbed(cell, path, points))]
    numbers = [task.number for task in tasks]
    for number in points:
        if numbers.count(number) != 1:
            raise StudentError(f"{path.name}: exercise {number} has {numbers.count(number)} code cells with its check; it needs one")
    for cell in code_cells(notebook):
        cell.execution_count = None
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
    notebook.metadata = nbformat.from_dict(METADATA | {"coursekit": {"notebook": path.stem}})
    return notebook, tasks


def _points(notebook: NotebookNode, path: Path) -> dict[str, int]:
    """Exercise → points, as the text gives them."""
    points: dict[str, int] = {}
    for cell in notebook.cells:
        for number, worth in PARAGRAPH.findall(cell.source) if cell.cell_type == "markdown" else ():
            if not worth:
                raise StudentError(f'{path.name}: "**Exercise {number}**" needs "(easy, 5 minutes, 2 points)" after it, on the same line')
            if number in points:
                raise StudentError(f"{path.name}: exercise {number} has two paragraphs; an id belongs to one exercise")
            points[number] = int(worth)
    return points


def _stubbed(cell: NotebookNode, path: Path, points: dict[str, int]) -> Task | None:
    """Take the solution and the outputs out of ``cell``, if it is an exercise's, and say whose."""
    begins, ends, checks = cell.source.count("### BEGIN SOLUTION"), cell.source.count("### END SOLUTION"), CHECK.findall(cell.source)
    if not (begins or ends or checks):
        return None
    where = f"{path.name}, the cell that begins {cell.source.partition(chr(10))[0]!r}"
    if (begins, ends) != (1, 1) or not SOLUTION.search(cell.source):
        found = f"{begins} lines ### BEGIN SOLUTION and {ends} lines ### END SOLUTION"
        raise StudentError(f"{where}: {found}; an exercise's cell needs one of each, in this order and equally far indented")
    if len(checks) != 1:
        raise StudentError(f'{where}: {len(checks)} lines name = exercises.check("1.1", name); a cell with a solution needs one')
    name, number, argument = checks[0]
    if name != argument or len(re.findall(rf"^def {name}\(", cell.source, re.MULTILINE)) != 1:
        raise StudentError(f"{where}: its check is of {argument!r} and goes on as {name!r}; both are to be the one function defined there")
    if number not in points:
        raise StudentError(f'{where}: no paragraph says "**Exercise {number}** (easy, 5 minutes, 2 points)"')
    cell.source = SOLUTION.sub(rf'\1raise NotImplementedError("Exercise {number}")', cell.source)
    cell.id, cell.outputs = "exercise-" + re.sub(r"\W", "-", number), []
    return Task(f"{path.stem[:2]}-{number}", number, name, points[number], cell)


def build(root: Path, folder: Path, names: Iterable[str] = (), repository: str = "", force: bool = False) -> list[Path]:
    """Write the student notebooks of the checkout ``root``, or those of ``names``, to ``folder``, and return their paths.

    ``repository``, "owner/name": where the files of ``folder`` will lie at the top of the branch main; without it, the one that
    pyproject.toml names, if ``folder`` lies in the checkout. Raises ``StudentError``, with nothing written, for a malformed notebook
    or name, and for a file in the way that is not as ``build`` left it (``force`` replaces it).
    """
    if repository and not re.fullmatch(NAME, repository):
        raise StudentError(f"--repo {repository} is no repository's name; write owner/name, as in octocat/workbook")
    if folder.resolve().is_relative_to((root / "notebooks").resolve()):
        raise StudentError(f"{folder} lies in the folder of the solution notebooks; name another")
    texts = {}
    for source in sources(root, names):
        target = folder / f"{source.stem}.ipynb"
        if target.exists() and not target.is_file():
            raise StudentError(f"{target} is in the way and is no file; move it")
        if target.exists() and not force and not _as_built(target):
            advice = "Move it, or name those to write: build --to FOLDER 01 04. With --force it is replaced, and the work in it lost"
            raise StudentError(f"{target} is not as it was built: somebody has worked in it. Nothing was written. {advice}")
        texts[target] = _text(_linked(student_notebook(source)[0], source, root, folder, repository))
    make_folder(folder)
    for target, text in texts.items():
        write(target, text)
    return list(texts)


def _linked(notebook: NotebookNode, source: Path, root: Path, folder: Path, repository: str) -> NotebookNode:
    """Say how to answer; let the badge lead to the student's file or nowhere, and the setup cell install from where it can."""
    home, tag = published(root)
    inside = folder.resolve().is_relative_to(root.resolve())
    place = f"{home}/blob/{tag}/{folder.resolve().relative_to(root.resolve()).as_posix()}" if home and inside else ""
    place = f"{repository}/blob/main" if repository else place
    link = f"{BADGE}(https://colab.research.google.com/github/{quote(place)}/{source.stem}.ipynb)"
    first, *rest = notebook.cells[0].source.split("\n")
    rest = [line for line in rest if not line.startswith(BADGE)]
    notebook.cells[0].source = "\n".join([first, *([link] if place else []), *rest, "", HOW])
    for cell in notebook.cells:
        if repository and not home and "setup" in cell.metadata.get("tags", []):
            cell.source = setup_cell(repository, "main")
    return notebook


def _text(notebook: NotebookNode) -> str:
    """The file, with a digest of all of it by which a later build knows that nobody has worked in it."""
    notebook.metadata.coursekit.digest = _digest(json.loads(notebook_text(notebook)))
    return notebook_text(notebook)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _as_built(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return bool(content["metadata"]["coursekit"].pop("digest") == _digest(content))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):   # whatever it is, it is not a notebook that was built
        return False
