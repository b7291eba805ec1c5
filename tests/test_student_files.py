"""Files that are submissions and files that are none: what is read in them, and what is run of it."""

import copy
import json
import os
from pathlib import Path

import pytest
from test_student_attempt import RIGHT, WRONG
from test_student_build import ROOT, SOURCES

from coursekit.student import grade
from coursekit.student.__main__ import main
from coursekit.student.build import student_notebook
from coursekit.student.grade import LONGEST, MISSING, Original, Submission, Unreadable, find, prepare, read, recognise
from coursekit.workbook.notebooks import code_cells, in_step, notebook_text

BUILT = {path.stem: student_notebook(path) for path in SOURCES}
ORIGINALS = {name: Original(name, tasks, code_cells(notebook)) for name, (notebook, tasks) in BUILT.items()}
SOLVED = {path.stem: in_step(path) for path in SOURCES}


def content(name="01_patchwise_mlp", solved=(), **cells):
    """An untouched notebook as JSON; exercises of ``solved`` solved, other cells' sources by id."""
    notebook, tasks = student_notebook(ROOT / "notebooks" / f"{name}.py")
    notebook.metadata.coursekit.digest = ""
    solutions = {t.stub.id: s.source for t in tasks for s in code_cells(SOLVED[name]) if f'check("{t.number}", {t.name})' in s.source}
    for cell in code_cells(notebook):
        if cell.id in solved or solved == "all":
            cell.source = solutions.get(cell.id, cell.source)
        cell.source = cells.get(cell.id.replace("-", "_"), cell.source)
        cell.outputs = []
    return json.loads(notebook_text(notebook))


def save(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
    return path


def reported(base):
    return json.loads(base.with_name(base.name + ".report.json").read_text(encoding="utf-8"))


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "01_patchwise_mlp.ipynb"
    with path.open("wb") as file:
        file.truncate(2**33)   # takes no room on disk
    with pytest.raises(Unreadable, match="8192 MiB, and 64 are read"):
        read(path)
    save(path, content())
    monkeypatch.setattr(grade, "LARGEST", path.stat().st_size)
    assert read(path).claim == "01_patchwise_mlp"


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "x.ipynb").symlink_to("nowhere")
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        read(tmp_path / "x.ipynb")


def test_a_folder_that_cannot_be_read_is_said_first(tmp_path, monkeypatch, capsys):
    for name in ("anna", "ben"):
        save(tmp_path / name / "01_patchwise_mlp.ipynb", content())
    scan, locked = os.scandir, tmp_path / "ben"

    def refuse(path):   # as Linux does, but not to root
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["grade", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"{locked} cannot be read: Permission denied; make it readable")
    assert os.listdir(tmp_path / "anna") == ["01_patchwise_mlp.ipynb"]


def test_a_huge_cell_costs_no_other(tmp_path):
    cells = content(exercise_1_1=RIGHT + "#" * LONGEST, exercise_2_1="def linear_as_convolution(*_): return")
    submission = read(save(tmp_path / "x.ipynb", cells))
    assert max(map(len, submission.cells.values())) == LONGEST
    found = prepare(ORIGINALS["01_patchwise_mlp"], submission, 1.0, 1.0)
    assert found["1.1"][0] == "not right yet" and "another cell" in found["1.1"][1] and found["2.1"].name == "linear_as_convolution"


def test_odd_notebooks_are_read(tmp_path):
    """No ids, ids in the metadata as Colab has them, twice the same id, sources as lists, cells that are none, a mark at the start."""
    cells = [
        {"cell_type": "code", "source": ["a = 1\n", "b = 2"], "metadata": {"id": "exercise-1-1"}},
        {"cell_type": "code", "source": "c", "id": "exercise-1-1"},
        {"cell_type": "markdown", "source": "d"},
        {"cell_type": "code"},
        7,
        {"cell_type": "code", "source": None},
        {"cell_type": "code", "source": ["e = 1\r\n", "f = 2\r\n"]},
    ]
    path = save(tmp_path / "x.ipynb", b"\xef\xbb\xbf" + json.dumps({"nbformat": 4, "cells": cells, "metadata": 3}).encode())
    sources = {"exercise-1-1": "a = 1\nb = 2", "cell 1": "c", "cell 3": "", "cell 5": "", "cell 6": "e = 1\nf = 2\n"}
    assert read(path) == Submission(path, sources, "")
    assert read(save(path, content() | {"metadata": {"kernelspec": {"name": "conda", "language": "Python"}}})).claim == ""


def test_which_notebook_it_is():
    vae = {"1": "def batch_kl(p, q):\n    return 0"}
    for path, claim, cells, name in [
        ("x.ipynb", "04_vae", {}, "04_vae"),
        ("05_ddpm.ipynb", "04_vae", {}, "04_vae"),
        ("Anna 7_05_ddpm (1).ipynb", "99_none", vae, "05_ddpm"),
        ("x.ipynb", "", vae, "04_vae"),
    ]:
        assert recognise(Submission(Path(path), cells, claim), ORIGINALS).name == name
    with pytest.raises(Unreadable, match="01_patchwise_mlp, 02_diffusion_1d"):
        recognise(Submission(Path("x.ipynb"), {"1": "x = 1"}), ORIGINALS)
    with pytest.raises(Unreadable, match="cannot be told"):
        recognise(Submission(Path("x.ipynb"), vae | {"2": RIGHT}), ORIGINALS)


def test_the_cell_of_an_exercise():
    task = ORIGINALS["01_patchwise_mlp"].tasks[0]
    own, check = task.stub.id, 'extract_patches = exercises.check("1.1", extract_patches)'
    for cells, expected in [
        ({"a": RIGHT, own: RIGHT}, own),
        ({"a": RIGHT, own: f"extract_patches = lambda x, k: x\n{check}"}, own),
        ({"a": RIGHT, own: check}, "a"),
        ({"a": "x = 1", "b": RIGHT, "c": RIGHT}, "b"),
        ({own: "def extract_patches(x, k)\n return"}, own),
        ({own: task.stub.source, "a": RIGHT + check}, "a"),   # its stub left as it was, the answer in a new cell
        ({own: task.stub.source + "\n", "a": RIGHT, "b": RIGHT}, "a"),
        ({own: task.stub.source, "a": task.stub.source}, own),
        ({own: task.stub.source, "a": f"extract_patches = lambda x, k: x\n{check}"}, "a"),
        ({own: task.stub.source, "a": check, "b": "print(extract_patches(x, 3))"}, own),
        ({own: task.stub.source, "a": "class A:\n    def extract_patches(self): return"}, own),
        ({"a": "class A:\n    def extract_patches(self): return", "b": RIGHT}, "b"),
        ({"a": "if x:\n  async  def  extract_patches (x, k): return"}, "a"),
        ({"a": "def \t extract_patches(x, k): return"}, "a"),
        ({own: "def extract_patches_2(x, k): return"}, None),
        ({own: "extract_patches == 3"}, None),
        ({"a": "extract_patches = 3"}, None),
        # The notebook's last check says its last word on what was defined last above it.
        ({own: WRONG + check, "a": RIGHT + check}, "a"),
        ({own: RIGHT + check, "a": WRONG + check}, "a"),
        ({own: WRONG + check, "a": RIGHT, "b": check.replace('"', "'"), "c": WRONG}, "a"),
        ({own: WRONG + check, "a": RIGHT, "b": f"# {check}", "c": check.replace("1.1", "1x1")}, own),
        ({"a": RIGHT + check, own: WRONG + check}, own),
        ({"a": RIGHT, "b": RIGHT + check, own: task.stub.source}, "b"),
    ]:
        assert find(task, cells) == expected


def test_what_is_run_for_a_submission(tmp_path):
    written = content(solved=("exercise-4-1",), exercise_1_1="def extract_patches(x, k): return help(x)", exercise_2_1="x")
    submission = read(save(tmp_path / "x.ipynb", written))
    submission.cells |= {"new": "def help(x): return x", "copy": ORIGINALS["01_patchwise_mlp"].cells[5].source}
    first = submission.cells[ORIGINALS["01_patchwise_mlp"].cells[2].id]
    submission.cells[ORIGINALS["01_patchwise_mlp"].cells[2].id] = first + "\nimport itertools"
    found = prepare(ORIGINALS["01_patchwise_mlp"], submission, 7.0, 2.0)
    renamed = "your cell no longer defines linear_as_convolution. Give the function this name again."
    assert (found["2.1"], found["4.2"]) == (("missing", renamed), ("not attempted", ""))
    one, four = found["1.1"], found["4.1"]
    assert (one.number, one.name, one.seconds, one.memory) == ("1.1", "extract_patches", 7.0, 2.0)
    solved = submission.cells["exercise-4-1"]
    assert one.above == [(first + "\nimport itertools", False)]
    assert one.below == [("x", False), (solved, False), ("def help(x): return x", True)]
    assert four.above == [*one.above, (one.answer, False), ("x", False)] and four.below == one.below[-1:]
    assert len(one.always) == 3 and one.always[2].startswith("import matplotlib") and one.earlier == {}
    assert four.earlier == {"1.1": "extract_patches", "2.1": "linear_as_convolution"}
    assert not any("NotImplementedError" in source for source in four.before) and set(one.before) < set(four.before)


def test_settings_always_run(tmp_path):
    original = copy.deepcopy(ORIGINALS["01_patchwise_mlp"])
    next(cell for cell in original.cells if cell.metadata.get("tags") == ["parameters"]).source = "size = 7"
    found = prepare(original, Submission(tmp_path, {"1": RIGHT}), 1.0, 1.0)["1.1"]
    assert "size = 7" in found.always and "size = 7" not in found.before


def test_without_their_cells_exercises_are_missing(tmp_path):
    for name, original in ORIGINALS.items():
        cells = {cell.id: cell.source for cell in original.cells if not cell.id.startswith("exercise-")}
        assert set(prepare(original, Submission(tmp_path, cells), 1.0, 1.0).values()) == {("missing", MISSING)}, name
