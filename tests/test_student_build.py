"""Student notebooks: what goes, what stays, what is refused; and that an untouched one runs through."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from answers import NOT_ATTEMPTED

from coursekit.student import StudentError
from coursekit.student.__main__ import main
from coursekit.student.build import BADGE, HOW, build, student_notebook
from coursekit.workbook import notebooks
from coursekit.workbook.notebooks import code_cells, in_step, sources

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sources(ROOT)
RUN = SOURCES if os.environ.get("COURSEKIT_ALL_STUDENTS") else SOURCES[:1]   # a notebook takes up to two minutes
TINY = '''# %% [markdown]
# # Tiny
#
# One sentence.

# %% tags=["setup"]
import sys

# %% [markdown]
# **Exercise 1.1** (easy, 5 minutes, 2 points). Write it. **Exercise 1.2** (hard, 1 minute, 1 point). And this.

# %% tags=["instructor"]
print("the answer is 2 x")


# %%
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    y = 2 * x

    return y
    ### END SOLUTION


double = exercises.check("1.1", double)   # a comment


# %%
def nested(x):
    if x:
        ### BEGIN SOLUTION
        return 1
        ### END SOLUTION
    return 0


nested = exercises.check("1.2", nested)

# %%
print(double(3))
'''


@pytest.fixture
def tiny(tmp_path):
    """A checkout with one tiny notebook, which has outputs."""
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    rewrite(root, TINY)
    notebook = in_step(root / "notebooks" / "01_tiny.py")
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": cell.source[:5]}, execution_count=count)]
    (root / "notebooks" / "01_tiny.ipynb").write_text(notebooks.notebook_text(notebook), encoding="utf-8")
    return root


def rewrite(root, text):
    (root / "notebooks" / "01_tiny.py").write_text(text, encoding="utf-8")


def built(root, folder, **options):
    return nbformat.read(build(root, folder, **options)[0], as_version=4)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_with_the_solutions_put_back_it_is_the_source(source):
    whole, (notebook, tasks) = in_step(source), student_notebook(source)
    nbformat.validate(notebook)
    kept = [cell for cell in whole.cells if "instructor" not in cell.metadata.get("tags", [])]
    by_cell, assigned = {task.stub.id: task for task in tasks}, set()
    assert len(tasks) == len(by_cell) == sum("### BEGIN SOLUTION" in cell.source for cell in whole.cells) >= 4
    for before, after in zip(kept, notebook.cells, strict=True):
        assert (after.cell_type, after.metadata) == (before.cell_type, before.metadata)
        if task := by_cell.get(after.id):
            solution = re.search(r" +### BEGIN SOLUTION\n.*?### END SOLUTION", before.source, re.DOTALL)[0]
            stub = f'    raise NotImplementedError("Exercise {task.number}")'
            assert after.source.replace(stub, solution) == before.source != after.source
            assert after.outputs == []
            assert '"""' in after.source and f"def {task.name}(" in after.source
            assigned.add(task.number)
        else:
            assert (after.source, after.id, len(after.get("outputs", []))) == (before.source, before.id, len(before.get("outputs", [])))
    assert assigned == {task.number for task in tasks}
    text = notebooks.notebook_text(notebook)
    assert "BEGIN SOLUTION" not in text and "END SOLUTION" not in text
    assert all(cell.execution_count is None for cell in code_cells(notebook))
    points = re.findall(r"Exercise ([\d.]+)\*\* \(.*?(\d+) points?\)", "".join(c.source for c in kept if c.cell_type == "markdown"))
    assert points == [(task.number, str(task.points)) for task in tasks]


def test_all_notebooks_built_twice_are_the_same_bytes(tmp_path):
    first, second = build(ROOT, tmp_path / "a"), build(ROOT, tmp_path / "b" / "c")
    assert [path.name for path in first] == [f"{source.stem}.ipynb" for source in SOURCES]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)   # no drafts are left


@pytest.mark.parametrize("source", RUN, ids=lambda path: path.stem)
def test_untouched_it_runs_through(source, tmp_path):
    """In fast mode, no error, nothing on stderr, "not attempted" at its stubs and nowhere else, and all other text as it was."""
    notebook, tasks = student_notebook(source)
    expected = {cell.id: said(cell) for cell in code_cells(notebook)}
    notebooks.run(notebook, source)
    attempts = {task.stub.id: task.number for task in tasks}
    for cell in code_cells(notebook):
        if number := attempts.get(cell.id):
            assert said(cell) == NOT_ATTEMPTED.format(number)
        elif "nbval-ignore-output" not in cell.metadata.get("tags", []):
            assert said(cell) == expected[cell.id]


def said(cell):
    """What a cell printed or returned, less what names a widget in memory."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(text for text in texts if "Explorer(" not in text)


def test_the_tiny_one(tiny, tmp_path):
    notebook = built(tiny, tmp_path / "out")
    code = code_cells(notebook)
    assert [cell.id for cell in code[1:3]] == ["exercise-1-1", "exercise-1-2"]
    assert code[1].source == (
        'def double(x):\n    """Twice x."""\n    raise NotImplementedError("Exercise 1.1")\n\n\n'
        'double = exercises.check("1.1", double)   # a comment'
    )
    assert '    if x:\n        raise NotImplementedError("Exercise 1.2")\n    return 0\n' in code[2].source
    assert [len(cell.outputs) for cell in code] == [1, 0, 0, 1]
    assert [output.execution_count for cell in code for output in cell.outputs] == [None, None]
    assert "the answer is" not in notebooks.notebook_text(notebook)
    assert notebook.metadata.coursekit.notebook == "01_tiny"
    _, tasks = student_notebook(tiny / "notebooks" / "01_tiny.py")
    assert [(t.id, t.name, t.points) for t in tasks] == [("01-1.1", "double", 2), ("01-1.2", "nested", 1)]


def test_ids_survive_an_edit_of_a_solution(tiny, tmp_path):
    before = [cell.id for cell in built(tiny, tmp_path / "a").cells]
    rewrite(tiny, TINY.replace("y = 2 * x", "y = x + x + 0").replace("print(double(3))", "print(double(3))  # six"))
    assert [cell.id for cell in built(tiny, tmp_path / "b").cells] == before


PARAGRAPH = "**Exercise 1.1** (easy, 5 minutes, 2 points)"
MALFORMED = [
    (lambda s: s.replace("    ### END SOLUTION\n\n\ndouble", ""), r"01_tiny\.py, the cell that begins 'def double.*1 lines .* 0 lines"),
    (lambda s: s.replace("    ### BEGIN SOLUTION\n    y", "    y"), "0 lines ### BEGIN"),
    (lambda s: s.replace("    ### BEGIN SOLUTION\n    y", "  ### BEGIN SOLUTION\n    y"), "equally far indented"),
    (lambda s: s.replace("    y = 2 * x\n", "    ### END SOLUTION\n    ### BEGIN SOLUTION\n"), "2 lines ### BEGIN"),
    (lambda s: s.replace("print(double(3))", "### END SOLUTION"), "0 lines ### BEGIN SOLUTION and 1 lines"),
    (lambda s: s.replace("   # a comment", '\ndouble = exercises.check("1.1", double)'), r"2 lines name = exercises\.check"),
    (lambda s: s.replace('double = exercises.check("1.1", double)   # a comment', ""), r"0 lines name = exercises\.check"),
    (lambda s: s.replace('check("1.1", double)', 'check("1.1", nested)'), "one function defined there"),
    (lambda s: s.replace("def double", "def doubled"), "one function defined there"),
    (lambda s: s.replace('check("1.2", nested)', 'check("1.1", nested)'), r"exercise 1\.1 has 2 code cells"),
    (lambda s: s.replace('check("1.2", nested)', 'check("1.3", nested)'), r"no paragraph says .\*\*Exercise 1\.3"),
    (lambda s: s.replace(PARAGRAPH, "**Exercise 1.1** (easy, 5 minutes)"), r"01_tiny\.py: .\*\*Exercise 1\.1\*\*. needs"),
    (lambda s: s.replace(PARAGRAPH, f"{PARAGRAPH}. {PARAGRAPH}"), "two paragraphs"),
    (lambda s: s.replace(PARAGRAPH, f"{PARAGRAPH}. {PARAGRAPH.replace('1.1', '3.1')}"), r"exercise 3\.1 has 0 code cells"),
]


@pytest.mark.parametrize(("doctor", "message"), MALFORMED)
def test_malformed_sources_are_refused_with_nothing_written(doctor, message, tiny, tmp_path):
    rewrite(tiny, doctor(TINY))
    assert doctor(TINY) != TINY
    with pytest.raises(StudentError, match=message):
        build(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_it_may_not_write(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, message in [
        (tiny / "notebooks", "solution notebooks"),
        (tiny / "notebooks" / "student", "solution notebooks"),
        (tmp_path / "checkout" / "x" / ".." / "notebooks", "solution notebooks"),
        (tmp_path / "file", "is a file; name another"),
        (tmp_path / "file" / "below", "is a file; name another"),
    ]:
        with pytest.raises(StudentError, match=message):
            build(tiny, folder)
    (tmp_path / "out" / "01_tiny.ipynb").mkdir(parents=True)
    with pytest.raises(StudentError, match="no file; move it"):
        build(tiny, tmp_path / "out", force=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("change", ["edited", "text", "empty", "executed", "a list"])
def test_a_file_in_which_somebody_worked_stays(change, tiny, tmp_path):
    path = build(tiny, tmp_path)[0]
    content = json.loads(path.read_text(encoding="utf-8"))
    if change == "edited":
        content["cells"][3]["source"] = "def double(x):\n    return 3"
    if change == "executed":
        content["cells"][1]["execution_count"] = 1
    text = {"text": "notes", "empty": "", "a list": "[1]"}.get(change, json.dumps(content))
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudentError, match=r"Nothing was written\. Move it, or name those to write: .* --force"):
        build(tiny, tmp_path)
    assert path.read_text(encoding="utf-8") == text
    assert build(tiny, tmp_path, force=True) == [path] and "exercise-1-1" in path.read_text(encoding="utf-8")


def test_a_former_build_is_replaced(tiny, tmp_path):
    build(tiny, tmp_path)
    rewrite(tiny, TINY.replace("One sentence.", "Another sentence."))
    first = built(tiny, tmp_path).cells[0].source
    assert "Another" in first and first.count("Write your answer where `raise NotImplementedError` stands") == 1
    text = json.dumps(json.loads((tmp_path / "01_tiny.ipynb").read_text(encoding="utf-8")))   # laid out otherwise, as by another editor
    (tmp_path / "01_tiny.ipynb").write_text(text, encoding="utf-8")
    build(tiny, tmp_path)


def test_the_badge_leads_to_the_student_notebook_or_nowhere(tiny, tmp_path):
    colab = "(https://colab.research.google.com/github/"
    pyproject, tag = tiny / "pyproject.toml", "v" + re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]

    def badge(folder, **options):
        lines = built(tiny, folder, force=True, **options).cells[0].source.splitlines()
        assert lines[0] == "# Tiny" and lines[-4:] == ["One sentence.", "", *HOW.splitlines()]
        return [line.removeprefix(BADGE) for line in lines if line.startswith(BADGE)]

    rewrite(tiny, TINY.replace("# # Tiny\n", f"# # Tiny\n# {BADGE}{colab}a/b/blob/v1/notebooks/01_tiny.ipynb)\n"))   # the solution's
    pyproject.write_text(re.sub(r'(?m)^repository = ".*"', 'repository = ""', pyproject.read_text()))
    assert badge(tmp_path / "out") == badge(tiny / "student") == []
    assert badge(tmp_path / "out", repository="class/of-27") == [f"{colab}class/of-27/blob/main/01_tiny.ipynb)"]
    assert "class/of-27@main" in code_cells(built(tiny, tmp_path / "out", repository="class/of-27"))[0].source
    pyproject.write_text(pyproject.read_text().replace('repository = ""', 'repository = "owner/book"'))
    assert badge(tmp_path / "out") == []
    assert code_cells(built(tiny, tmp_path / "out", repository="class/of-27"))[0].source == "import sys", "the published package stays"
    assert badge(tiny / "for students") == [f"{colab}owner/book/blob/{tag}/for%20students/01_tiny.ipynb)"]
    with pytest.raises(StudentError, match="write owner/name"):
        build(tiny, tmp_path, repository="https://github.com/owner/book")


def test_the_command(tmp_path, capsys):
    assert main(["build", "--to", str(tmp_path), "01"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / '01_patchwise_mlp.ipynb'}\n" and said.err.endswith(f" -m jupyter lab {tmp_path}\n")
    assert main(["build", "--to", str(ROOT / "notebooks")]) == 1
    assert "solution notebooks" in capsys.readouterr().err
    assert main(["build", "--to", str(tmp_path), "99"]) == 1
    assert "'99' is no notebook" in capsys.readouterr().err
