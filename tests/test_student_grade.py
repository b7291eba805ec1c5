"""Grading: right and wrong answers, hostile ones, and files that are no submissions. Attempts in processes run once for all tests."""

import csv
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_student_build import ROOT, SOURCES

from coursekit.student import StudentError, attempt, report
from coursekit.student.__main__ import main
from coursekit.student.build import student_notebook
from coursekit.student.fence import BROKEN, Fence, Job
from coursekit.student.grade import Original, Submission, Unreadable, find, grade, prepare, read, recognise
from coursekit.workbook.notebooks import code_cells, in_step, notebook_text

ALL = os.environ.get("COURSEKIT_ALL_STUDENTS")   # an attempt imports what its notebook does, which takes seconds
BUILT = {path.stem: student_notebook(path) for path in SOURCES}
ORIGINALS = {name: Original(name, tasks, code_cells(notebook)) for name, (notebook, tasks) in BUILT.items()}
SOLVED = {path.stem: in_step(path) for path in SOURCES}

# --- single attempts -----------------------------------------------------------------------------------------------------

RIGHT = """def extract_patches(x, k):
    height, width = x.shape[-2:]
    corners = [(i, j) for i in range(height - k + 1) for j in range(width - k + 1)]
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i, j in corners], 1)
"""
WRONG = "def extract_patches(x, k):\n    return x * 0\n"
CHECK = 'extract_patches = exercises.check("1.1", extract_patches)\n'
FIRST = "import torch\nfrom coursekit.exercises import patchwise as exercises"
BASE = Job("1.1", "extract_patches", RIGHT + CHECK, [FIRST], [], {}, [], seconds=60.0, memory=1.0)


def body(*lines, ending="return x * 0"):
    """A function that does something, and then gives a wrong answer."""
    return "def extract_patches(x, k):\n" + "".join(f"    {line}\n" for line in (*lines, ending))


def job(answer=RIGHT + CHECK, **changes):
    return replace(BASE, answer=answer, **changes)


PATCHED = """import coursekit.exercises.patchwise as room, coursekit.checks as checks, coursekit.exercises as base, torch, builtins
def cheat(*_, **__): pass
def forge():
    for module in (room, checks):
        for name in ("check_close", "check_true", "check_equal", "_verdict"): setattr(module, name, cheat)
        module.bool = lambda value: True
    base.judge = lambda *_: ("right", "")
    checks.CheckFailed.__init__ = cheat
    checks.check_true.__code__ = cheat.__code__
    room.EXERCISES["1.1"] = base.Exercise(cheat, cheat)
    room.EXERCISES.clear()
    room.extract_patches = extract_patches
    torch.Tensor.item = lambda self: 0.0
    torch.Tensor.max = lambda self: torch.zeros(())
    torch.equal = torch.allclose = builtins.isinstance = lambda *_, **__: True
    import os, json
    os.write = json.dumps = cheat
"""
GUESSED = """import os, sys
for fd in range(40):
    for word in ("", "0" * 32 + " "):
        try: os.write(fd, (word + '["verdict", "right", ""]\\n').encode())
        except OSError: pass
print("✓ Exercise 1.1: right.")
print('["verdict", "right", ""]', file=sys.stderr)
"""
STAYS = """import os, subprocess, sys, time
def extract_patches(x, k):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if not os.fork():
        time.sleep(600)
    open(PATH, "w").write(str(other.pid))
    return x * 0
"""
PATH = Path(os.environ.get("TMPDIR", "/tmp")) / f"coursekit-{os.getpid()}.pid"
CASES = {
    "right": (job(), "right", "^$"),
    "wrong": (job(WRONG + CHECK), "not right yet", "look at: a patch is"),
    "stub, edited": (job(body("# still thinking", ending="raise NotImplementedError")), "not attempted", "^$"),
    "its check deleted": (job(RIGHT), "right", "^$"),
    "its check edited": (job(WRONG + 'extract_patches = exercises.EXERCISES["1.1"].reference\n'), "not right yet", "look at"),
    "its check is of another": (job(WRONG + 'exercises.check("1.1", lambda x, k: 1)\nexercises = None\n'), "not right yet", "look at"),
    "endless function": (job(body("while True: pass"), seconds=2.0), "stopped", "longer than 2 s. Is there a loop"),
    "endless cell": (job(RIGHT + "while True: pass\n", seconds=2.0), "stopped", "longer than 2 s. Is there a loop"),
    "sys.exit": (job("import sys\n" + body("sys.exit(0)")), "not right yet", "SystemExit"),
    "sys.exit in the cell": (job("import sys\nsys.exit(0)\n" + RIGHT), "not right yet", "ended the program, with SystemExit"),
    "os._exit": (job("import os\n" + body("os._exit(0)")), "stopped", "ended with exit status 0 before all was checked"),
    "killed": (job("import os\n" + body("os.kill(os.getpid(), 9)")), "stopped", "ended by signal 9"),
    "100 GB": (job(body("torch.ones(25 * 10**9)")), "not right yet", r"(?s)needs more than 1 GiB of memory.*RuntimeError"),
    "a list grows": (job(body("rows = []", "while True: rows.append(bytearray(2**24))"), memory=0.5), "not right yet", "more than 0.5 GiB"),
    "patched checks": (job(PATCHED + "forge()\n" + WRONG), "not right yet", "look at: a patch is"),
    "patched in the call": (job(PATCHED + body("forge()")), "not right yet", "look at: a patch is"),
    "guessed the word": (job(GUESSED + WRONG), "not right yet", "look at"),
    "syntax error": (job("def extract_patches(x, k)\n    return x\n" + CHECK), "not right yet", r"not Python: SyntaxError: expected ':'"),
    "no function left": (job("patches = 3\n" + CHECK), "not right yet", "does not define extract_patches"),
    "no function but a number": (job("extract_patches = 3\n" + CHECK), "not right yet", "."),
    "other arguments": (job(RIGHT.replace("(x, k)", "(x)")), "not right yet", r"called with 2 arguments|takes 1 positional argument"),
    "the cell fails": (job("table = {}['a']\n" + WRONG), "not right yet", r"(?s)look at.*table = \{\}\['a'\] … ended in KeyError: 'a'"),
    "a trial at the end fails": (job(RIGHT + CHECK + "extract_patches(photo, 3).shape\n"), "right", "^$"),
    "a flood": (job(body("for _ in range(9): print('loud ' * 10**6)", "raise ValueError('loud ' * 10**6)")), "not right yet", "r: loud"),
    "asks": (job(body("input('k? ')")), "not right yet", "EOFError"),
    "leaves processes": (job(STAYS.replace("PATH", repr(str(PATH)))), "not right yet", "look at"),
    "magics": (job("%matplotlib inline\n!ls\n" + RIGHT), "right", "^$"),
    "own helper": (
        job(
            RIGHT.replace("range(height", "count(height") + CHECK,
            extras=[("1 / 0", True), ("start = []\nstart.append(0)", True), ("def count(n): return range(start[0], n)", True), ("(", True)],
        ),
        "right",
        "^$",
    ),
    "import in an edited cell": (
        job(RIGHT.replace("torch.", "pytorch."), before=["import math\nk = 1"], extras=[("import math, torch as pytorch\n", False)]),
        "not right yet",   # one statement with a name of the original's: that cell is restored
        "NameError",
    ),
    "another import in it": (
        job(RIGHT.replace("torch.", "pytorch."), before=["import math"], extras=[("import math\nimport torch as pytorch\n", False)]),
        "right",
        "^$",
    ),
    "needs the original's cells": (
        job(
            RIGHT.replace("k + 1", "k + one") + CHECK,
            before=["raise SystemExit", "two = 2\nunused = 1 / 0", "one = two - early(1)"],
            earlier={"2.1": "early"},
            always=[*BASE.always, "table = exercises.EXERCISES\ntable['2.1'] = type(table['2.1'])(lambda x: x, None)"],
        ),
        "right",
        "^$",
    ),
    "the original's cells fail": (job(RIGHT + "two", before=["two = 1 / 0"]), BROKEN, "(?s)not the student's fault.*ZeroDivisionError"),
    "cannot start": (job(always=["import no_such_library"]), BROKEN, "ModuleNotFoundError: No module named 'no_such_library'"),
}  # fmt: skip
ALONE = {   # these need a process of their own; the others are tried in this one, which is quicker
    "right", "endless function", "endless cell", "sys.exit in the cell", "os._exit", "killed", "100 GB", "a list grows", "patched checks",
    "patched in the call", "guessed the word", "a flood", "asks", "leaves processes", "the original's cells fail", "cannot start",
}  # fmt: skip
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and limits")


@pytest.fixture(scope="module")
def verdicts():
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(ALONE, pool.map(Fence().attempt, [CASES[name][0] for name in ALONE]), strict=True))
    yield found
    PATH.unlink(missing_ok=True)


def tried_here(case, monkeypatch):
    monkeypatch.setattr(attempt, "fence", lambda memory, seconds: None)
    return attempt.attempt(asdict(case), lambda phase: None)


@posix
@pytest.mark.parametrize("name", CASES)
def test_an_attempt(name, verdicts, monkeypatch):
    case, verdict, message = CASES[name]
    found = verdicts[name] if name in ALONE else tried_here(case, monkeypatch)
    assert found[0] == verdict and re.search(message, found[1]), found
    assert len(found[1]) <= attempt.LONGEST


@posix
def test_nothing_goes_on_running(verdicts):
    pid = int(PATH.read_text())
    for _ in range(100):   # killed, but it takes a moment until it is gone
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return   # nobody collects it here
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid}, started by a student's function, is still there")


def test_end_stops_what_is_under_way():
    fence = Fence()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fence.attempt, job(body("while True: pass"), seconds=300.0))
        while not fence._running:
            time.sleep(0.05)
        fence.end()
        assert future.result(timeout=60)[0] in (BROKEN, "stopped")


@pytest.mark.parametrize(
    ("source", "binds", "needs"),
    [
        ("def f(x=a):\n    y = b\n    return [z for z in y if c(z, x)]", {"f"}, {"a", "b", "c"}),
        ("class A(B):\n    k = d\n    def g(self): return A, self.e", {"A"}, {"A", "B", "d"}),
        ("import os.path as p, sys\nfrom a import b as c", {"p", "sys", "c"}, set()),
        ("for i in n:\n    total += i", {"i", "total"}, {"n"}),
        ("table[k] = v\nthing.part.x = w", {"table", "thing"}, {"table", "k", "v", "thing", "w"}),
        ("rows.append(q)\nprint(torch.rand(2))", {"rows"}, {"rows", "q", "print", "torch"}),
        ("def f():\n    global g\n    g = 1", {"f", "g"}, {"g"}),
        ("%pip install x\na, (b, *c) = 1, (2, 3)", {"a", "b", "c"}, set()),
    ],
)
def test_names_of_a_statement(source, binds, needs):
    found = attempt.statements(source)
    assert set().union(*(s.binds for s in found)) == binds
    assert set().union(*(s.needs for s in found)) - {"i"} == needs


def test_only_what_is_needed_runs_in_order():
    cells = attempt.statements("a = 1\nb = a\nunused = b\nc = d\ndef f(): return b\nb = 2")
    assert [sorted(s.binds) for s in attempt.needed(cells, ["f", "nowhere"])] == [["a"], ["b"], ["f"], ["b"]]


# --- files ---------------------------------------------------------------------------------------------------------------


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


def other(**changes):
    return lambda: content() | changes


def with_kernel(**kernelspec):
    return lambda: content() | {"metadata": {"kernelspec": kernelspec}}


UNREADABLE = {
    "empty": (lambda: b"", "the file is empty"),
    "binary": (lambda: bytes(range(128, 256)) * 9, "no notebook, or cut off"),
    "cut off": (lambda: json.dumps(content()).encode()[:5000], "no notebook, or cut off"),
    "python": (lambda: b"def extract_patches(x, k): pass", "no notebook, or cut off"),
    "deep": (lambda: b"[" * 200_000, "no notebook, or cut off"),
    "json": (lambda: [1, 2], "says no notebook format"),
    "no format": (other(nbformat="4"), "says no notebook format"),
    "format 3": (lambda: {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []}, "format 3, and 4 is read"),
    "no cells": (other(cells=None), "format 4, and 4 is read|no cells"),
    "R": (with_kernel(name="ir", language="R"), "kernel speaks R, not Python"),
    "Julia": (lambda: content() | {"metadata": {"language_info": {"name": "julia"}}}, "kernel speaks julia, not Python"),
}


def test_what_is_no_submission_gets_a_report(tmp_path, capsys):
    paths = {name: save(tmp_path / name / "anna_01_patchwise_mlp.ipynb", make()) for name, (make, _) in UNREADABLE.items()}
    assert grade(ROOT, list(paths.values())) == 1
    possible = sum(task.points for task in ORIGINALS["01_patchwise_mlp"].tasks)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    for name, path in paths.items():
        found = reported(path.with_suffix(""))
        assert re.search(UNREADABLE[name][1], found["problem"]), found
        assert (found["points"], found["possible"]) == (0, possible)
        assert {e["verdict"] for e in found["exercises"]} == {"not read"}
        text = path.with_suffix(".report.md").read_text(encoding="utf-8")
        assert f"0 of {possible} points; not graded" in text and lines[str(path)].startswith(f"0 of {possible} points; not graded: ")
    assert grade(ROOT, [paths["R"]]) == 1


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "01_patchwise_mlp.ipynb"
    with path.open("wb") as file:
        file.truncate(2**33)   # takes no room on disk
    with pytest.raises(Unreadable, match="8192 MiB, and 64 are read"):
        read(path)


def test_a_stranger_is_told_so(tmp_path):
    path = save(tmp_path / "homework.ipynb", {"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "source": "1"}]})
    assert grade(ROOT, [path]) == 1
    found = reported(tmp_path / "homework")
    assert "cannot be told which notebook" in found["problem"] and found["possible"] is None and found["exercises"] == []


def test_odd_notebooks_are_read(tmp_path):
    """No ids, ids in the metadata as Colab has them, twice the same id, sources as lists, cells that are none, a mark at the start."""
    cells = [
        {"cell_type": "code", "source": ["a = 1\n", "b = 2"], "metadata": {"id": "exercise-1-1"}},
        {"cell_type": "code", "source": "c", "id": "exercise-1-1"},
        {"cell_type": "markdown", "source": "d"},
        {"cell_type": "code"},
        7,
    ]
    path = save(tmp_path / "x.ipynb", b"\xef\xbb\xbf" + json.dumps({"nbformat": 4, "cells": cells, "metadata": 3}).encode())
    assert read(path) == Submission(path, {"exercise-1-1": "a = 1\nb = 2", "cell 1": "c", "cell 3": ""}, "")
    assert read(save(path, with_kernel(name="conda", language="Python")())).claim == ""


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


def test_the_cell_of_an_exercise():
    task = ORIGINALS["01_patchwise_mlp"].tasks[0]
    own, check = task.stub.id, 'extract_patches = exercises.check("1.1", extract_patches)'
    for cells, expected in [
        ({"a": RIGHT, own: RIGHT}, own),
        ({"a": RIGHT, own: f"extract_patches = lambda x, k: x\n{check}"}, own),
        ({"a": RIGHT, own: check}, "a"),
        ({"a": "x = 1", "b": RIGHT, "c": RIGHT}, "b"),
        ({own: "def extract_patches(x, k)\n return"}, own),
        ({own: "def extract_patches_2(x, k): return"}, None),
        ({own: "extract_patches == 3"}, None),
        ({"a": "extract_patches = 3"}, None),
    ]:
        assert find(task, cells) == expected


def test_what_is_run_for_a_submission(tmp_path):
    written = content(solved=("exercise-4-1",), exercise_1_1="def extract_patches(x, k): return help(x)", exercise_2_1="x")
    submission = read(save(tmp_path / "x.ipynb", written))
    submission.cells |= {"new": "def help(x): return x", "copy": ORIGINALS["01_patchwise_mlp"].cells[5].source}
    first = submission.cells[ORIGINALS["01_patchwise_mlp"].cells[2].id]
    submission.cells[ORIGINALS["01_patchwise_mlp"].cells[2].id] = first + "\nimport itertools"
    found = prepare(ORIGINALS["01_patchwise_mlp"], submission, 7.0, 2.0)
    assert (found["2.1"], found["4.2"]) == ("missing", "not attempted")
    one, four = found["1.1"], found["4.1"]
    assert (one.number, one.name, one.seconds, one.memory) == ("1.1", "extract_patches", 7.0, 2.0)
    assert one.extras == [(first + "\nimport itertools", False), ("x", False), ("def help(x): return x", True)]
    assert len(one.always) == 3 and one.always[2].startswith("import matplotlib") and one.earlier == {}
    assert four.earlier == {"1.1": "extract_patches", "2.1": "linear_as_convolution"}
    assert not any("NotImplementedError" in source for source in four.before) and set(one.before) < set(four.before)


def test_untouched_notebooks_get_nothing_and_start_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Fence, "attempt", None)
    paths = [save(tmp_path / f"{path.stem}.ipynb", content(path.stem)) for path in SOURCES]
    assert grade(ROOT, paths, tmp_path / "reports") == 0
    for path, original in zip(paths, ORIGINALS.values(), strict=True):
        found = reported(tmp_path / "reports" / path.stem)
        assert (found["points"], found["possible"]) == (0, sum(t.points for t in original.tasks))
        assert {e["verdict"] for e in found["exercises"]} == {"not attempted"}


def test_without_their_cells_exercises_are_missing(tmp_path):
    for name, original in ORIGINALS.items():
        cells = {cell.id: cell.source for cell in original.cells if not cell.id.startswith("exercise-")}
        assert set(prepare(original, Submission(tmp_path, cells), 1.0, 1.0).values()) == {"missing"}, name


def test_a_folder_of_submissions(tmp_path, monkeypatch, capsys):
    wrong = "not right yet", "| look\n```\n<b>at"
    monkeypatch.setattr(Fence, "attempt", lambda self, job: ("right", "") if "flatten" in job.answer else wrong)
    one, five = (sum(task.points for task in ORIGINALS[name].tasks) for name in ("01_patchwise_mlp", "05_ddpm"))
    for student in ("anna", "ben", "=cmd()"):
        save(tmp_path / student / "01_patchwise_mlp.ipynb", content(exercise_1_1=RIGHT if student == "anna" else WRONG))
    save(tmp_path / "carl" / "05_ddpm.ipynb", b"{")
    save(tmp_path / "carl" / "essay.pdf", b"%PDF")
    save(tmp_path / "ben" / ".ipynb_checkpoints" / "01_patchwise_mlp.ipynb", b"{")
    assert grade(ROOT, [tmp_path], tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "essay.pdf: not read, it is no .ipynb" in out and f"anna/01_patchwise_mlp.ipynb: 2 of {one} points\n" in out.replace(os.sep, "/")
    names = [f"{student}-01_patchwise_mlp" for student in ("=cmd()", "anna", "ben")]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.md")) == sorted(f"{name}.report.md" for name in [*names, "carl-05_ddpm"])
    assert reported(tmp_path / "out" / names[1])["points"] == 2
    rows = list(csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8")))
    assert [(r["01-1.1"], r["05-1.1"], r["points"]) for r in rows] == [("0", "", "0"), ("2", "", "2"), ("0", "", "0"), ("", "0", "0")]
    assert [r["possible"] for r in rows] == [str(n) for n in (one, one, one, five)]
    assert rows[3]["problem"].startswith("the file is no notebook")
    text = (tmp_path / "out" / "ben-01_patchwise_mlp.report.md").read_text(encoding="utf-8")
    assert "| 01-1.1 | `extract_patches` | 0 of 2 | not right yet |" in text
    assert "\n````text\n| look\n```\n<b>at\n````\n" in text
    assert grade(ROOT, [tmp_path / "anna"]) == 0 and (tmp_path / "anna" / "01_patchwise_mlp.report.json").exists()


def test_reports_of_one_name_are_told_apart(tmp_path):
    files = [tmp_path / "a" / "x.ipynb", tmp_path / "b" / "X.ipynb", tmp_path / "b" / "y.ipynb", tmp_path / "c" / "a" / "x.ipynb"]
    assert [t.name for t in report.targets(files, tmp_path).values()] == ["a-x", "b-X", "b-y", "a-x-2"]
    assert list(report.targets(files, None).values()) == [f.with_suffix("") for f in files]
    files = [tmp_path / "x.ipynb", tmp_path / "x.json", tmp_path / "x"]
    assert [t.name for t in report.targets(files, None).values()] == ["x", "x-2", "x-3"]


def test_formulas_in_the_table_are_text(tmp_path):
    entry = {"submission": "=1+1.ipynb", "notebook": None, "problem": "@x", "points": 0, "possible": None, "exercises": []}
    report.write_table([entry], ["01-1.1"], tmp_path / "grades.csv")
    assert (tmp_path / "grades.csv").read_text() == "submission,notebook,points,possible,problem\n'=1+1.ipynb,,0,,'@x\n"


def test_the_command(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "nothing.ipynb")]) == 1
    assert "nothing.ipynb does not exist" in capsys.readouterr().err
    assert main(["grade", str(tmp_path)]) == 1
    assert "no .ipynb in" in capsys.readouterr().err
    for options in (["--seconds", "0"], ["--memory", "nan"], ["--seconds", "x"], []):
        with pytest.raises(SystemExit):
            main(["grade", *options, *([str(tmp_path)] if options else [])])
    with pytest.raises(StudentError):
        grade(ROOT, [])


def test_a_missing_limit_is_said(tmp_path):
    entry = {"submission": "x", "notebook": "01_x", "problem": "", "points": 0, "possible": 0, "exercises": []}
    assert "no limit of memory" in report.markdown(entry | {"limits": {"seconds": 3.0, "memory_gib": None}})
    assert "with 3 s and 2.5 GiB of memory" in report.markdown(entry | {"limits": {"seconds": 3.0, "memory_gib": 2.5}})
    assert attempt.memory_is_limited() == (sys.platform == "linux")


# --- whole submissions ---------------------------------------------------------------------------------------------------

WRONG_ANSWERS = {   # notebook → two exercises: a wrong answer as a student would write it, and its hint
    "01_patchwise_mlp": {
        "1.1": ("def extract_patches(x, k):\n    return F.unfold(x.transpose(2, 3), k).transpose(1, 2)", "j moves fastest"),
        "4.1": ("def as_convnet(mlp):\n    return nn.Sequential()", "look at"),
    },
    "02_diffusion_1d": {
        "1.1": ("def q_sample(schedule, x_0, t, noise):\n    return schedule.at(schedule.alpha_bar, t, x_0) * x_0 + noise", "look at"),
        "4.1": ("def mean_from_noise(schedule, x_t, t, noise):\n    return x_t - noise", "look at"),
    },
    "03_segmentation": {
        "3.2": ("def dice_loss(logits, masks, smoothing=1e-6):\n    return 1 - (logits.sigmoid() * masks).mean()", "look at"),
        "8.2": ("def attention(q, k, v):\n    return (q @ k.transpose(-2, -1)).softmax(-1) @ v", "look at"),
    },
    "04_vae": {
        "2.2": ("def gaussian_kl(mean, log_var):\n    return -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()", "look at"),
        "3.1": ("def reparameterize(mean, log_var, noise):\n    return mean + log_var.exp() * noise", "standard deviation"),
    },
    "05_ddpm": {
        "1.1": ("def to_signed(pixels):\n    return pixels / 255", "0 … 1"),
        "2.1": (
            "def p_loss(diffusion, x_0, t, noise):\n    x_t = diffusion.q_sample(x_0, t, noise)\n"
            "    return (diffusion.model(x_t, t) - noise).square().mean()", "squared",
        ),
    },
}  # fmt: skip


@posix
@pytest.mark.parametrize("name", list(ORIGINALS) if ALL else ["01_patchwise_mlp"])
def test_wrong_answers_get_their_hint_and_the_others_count(name, tmp_path):
    wrong = {f"exercise_{number.replace('.', '_')}": source for number, (source, _) in WRONG_ANSWERS[name].items()}
    assert grade(ROOT, [save(tmp_path / "x.ipynb", content(name, "all", **wrong))], seconds=60) == 0
    for exercise in reported(tmp_path / "x")["exercises"]:
        number = exercise["id"].partition("-")[2]
        if number in WRONG_ANSWERS[name]:
            assert (exercise["points"], exercise["verdict"]) == (0, "not right yet")
            assert re.search(WRONG_ANSWERS[name][number][1], exercise["message"]), exercise
        else:
            assert exercise["points"] == exercise["possible"] > 0 and exercise["verdict"] == "right", exercise


@posix
@pytest.mark.skipif(not ALL, reason="COURSEKIT_ALL_STUDENTS is not set")
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_solutions_get_all_points(name, tmp_path):
    assert grade(ROOT, [save(tmp_path / f"{name}.ipynb", content(name, "all"))], seconds=60) == 0
    found = reported(tmp_path / name)
    assert found["points"] == found["possible"] == sum(t.points for t in ORIGINALS[name].tasks), found
