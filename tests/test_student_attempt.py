"""Single attempts: right, wrong and hostile answers. Those in processes run once for all tests."""

import os
import queue
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import indent

import pytest

from coursekit.student import attempt, fence
from coursekit.student.fence import BROKEN, Fence, Job

RIGHT = """def extract_patches(x, k):
    height, width = x.shape[-2:]
    corners = [(i, j) for i in range(height - k + 1) for j in range(width - k + 1)]
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i, j in corners], 1)
"""
WRONG = "def extract_patches(x, k):\n    return x * 0\n"
CHECK = 'extract_patches = exercises.check("1.1", extract_patches)\n'
FIRST = "import torch\nfrom coursekit.exercises import patchwise as exercises"
BASE = Job("1.1", "extract_patches", RIGHT + CHECK, [FIRST], [], {}, [], [], seconds=60.0, memory=1.0)


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
OURS = "not right yet", "^this is the package's own function, not yours$"
COUNT = RIGHT.replace("range(height", "count(height") + CHECK   # needs a helper
GOOD, BAD = "def count(n): return range(n)", "def count(n): return range(1)"
CASES = {
    "right": (job(), "right", "^$"),
    "wrong": (job(WRONG + CHECK), "not right yet", "look at: a patch is"),
    "stub, edited": (job(body("# still thinking", ending="raise NotImplementedError")), "not attempted", "^$"),
    "its check deleted": (job(RIGHT), "right", "^$"),
    "its check edited": (job(WRONG + 'extract_patches = exercises.EXERCISES["1.1"].reference\n'), "not right yet", "look at"),
    "its check under another name": (
        job("from coursekit.exercises import patchwise as ex\n" + WRONG + CHECK.replace("exercises", "ex")), *OURS,
    ),
    "its check by a helper": (
        job(WRONG + CHECK.replace("exercises.", "my"), above=[("def mycheck(*args): return exercises.check(*args)", True)]), *OURS,
    ),
    "its check in a new cell": (
        job(WRONG + CHECK.replace("exercises.", "my"), above=[("mycheck = exercises.check", True)]), "not right yet", "look at",
    ),
    "the package's function": (job("from coursekit.patchwise import extract_patches"), *OURS),
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
    "syntax error": (
        job("def extract_patches(x, k)\n    return x\n" + CHECK), "not right yet", r"SyntaxError: expected ':' \(your cell, line 1\)",
    ),
    "no function left": (job("patches = 3\n" + CHECK), "not right yet", "does not define extract_patches"),
    "under an if": (job("if not torch:\n" + indent(RIGHT, "    ")), "not right yet", "not define extract_patches; .* at the left"),
    "indented and fails": (job("if 1 / 0:\n" + indent(RIGHT, "    ")), "not right yet", "(?s)at the left.*ended in ZeroDivisionError"),
    "no function but a number": (job("extract_patches = 3\n" + CHECK), "not right yet", "."),
    "other arguments": (job(RIGHT.replace("(x, k)", "(x)")), "not right yet", r"called with 2 arguments|takes 1 positional argument"),
    "the cell fails": (
        job("table = {}['a']\n1/0\n" + WRONG), "not right yet", r"(?s)look at.*table = \{\}\['a'\] … ended in KeyError: 'a'",
    ),
    "a trial at the end fails": (job(RIGHT + CHECK + "extract_patches(photo, 3).shape\n"), "right", "^$"),
    "another trial after its check": (job(RIGHT + CHECK + WRONG), "right", "^$"),
    "deleted after its check": (job(RIGHT + CHECK + "del extract_patches"), "right", "^$"),
    "mended after its check": (job(WRONG + CHECK + RIGHT), "not right yet", "look at"),
    "mended after its check, and checked below": (job(WRONG + CHECK + RIGHT, below=[(CHECK, True)]), "right", "^$"),
    "mended and checked again": (job(WRONG + CHECK + RIGHT + CHECK), "right", "^$"),
    "mended after another's check": (job(f"{WRONG}g = exercises.check('9', len)\n{RIGHT}"), "right", "^$"),
    "defined after its check only": (job(CHECK + RIGHT), "right", "^$"),
    "two exercises in a cell": (job(f"def f(): return\nf = exercises.check('9', f)\n{RIGHT}"), "right", "^$"),
    "annotations that name nothing": (
        job("from __future__ import annotations\n" + RIGHT.replace("(x, k)", "(x: Image, k: int) -> Patches")), "right", "^$",
    ),
    "a flood": (job(body("for _ in range(9): print('loud ' * 10**6)", "raise ValueError('loud ' * 10**6)")), "not right yet", "r: loud"),
    "asks": (job(body("input('k? ')")), "not right yet", "EOFError"),
    "leaves processes": (job(STAYS.replace("PATH", repr(str(PATH)))), "not right yet", "look at"),
    "more magics": (
        job("%%time\nfiles = !ls\n%matplotlib \\\n  inline\n" + RIGHT.replace("    height", "    !ls\n    height") + "extract_patches?"),
        "right",
        "^$",
    ),
    "a helper's cell ends in a question": (job(COUNT, above=[(GOOD + "\nrange?", True)]), "right", "^$"),
    "two lines that begin with %": (job(RIGHT + "hint = (7\n% 4)\n%timeit 1\n"), "right", "^$"),
    "magics": (job("%matplotlib inline\n!ls\n" + RIGHT), "right", "^$"),
    "own helper": (
        job(
            COUNT,
            above=[("1 / 0", True), ("start = []\nstart.append(0)", True), ("def count(n): return range(start[0], n)", True), ("(", True)],
        ),
        "right",
        "^$",
    ),
    "the helper above counts": (job(COUNT, above=[(BAD, True), (GOOD, True)], below=[(BAD, True)]), "right", "^$"),
    "the helper above is wrong": (job(COUNT, above=[(BAD, True)], below=[(GOOD, True)]), "not right yet", "look at"),
    "a new cell replaces the original's helper": (job(COUNT, before=[BAD], above=[(GOOD, True)]), "right", "^$"),
    "the helper stands below": (job(COUNT, below=[(GOOD, True)]), "right", "^$"),
    "the original's helper and one below": (job(COUNT, before=[GOOD], below=[(BAD, True)]), "right", "^$"),
    "the helper is in an exercise's cell": (job(COUNT, above=[(f"{GOOD}\nf = 3\nf = exercises.check('9', f)", False)]), "right", "^$"),
    "an earlier exercise's function of the student's": (
        job(COUNT, always=[*BASE.always, GOOD], earlier={"2.1": "linear_as_convolution"}, above=[
            ("def linear_as_convolution(*_): return 1 / 0", False), ("def linear_as_convolution(*_): return 1 / 0", True),
            ("size = linear_as_convolution(torch.nn.Linear(4, 3), 1, 2)", True),
            ("def count(n): return range(n if size is not None else 1)", True),
        ]), "right", "^$",
    ),
    "star import": (job(COUNT.replace("count(height", "range(trunc(0.5) + height"), above=[("from math import *", True)]), "right", "^$"),
    "star imports above and below": (
        job(
            RIGHT.replace("range(height", "islice(range(9), height"),
            above=[("from math import *", True)],
            below=[("from itertools import *", True)],
        ),
        "right",
        "^$",
    ),
    "star import below": (job(COUNT, above=[(GOOD, True)], below=[("from itertools import *", True)]), "right", "^$"),
    "import in an edited cell": (
        job(RIGHT.replace("torch.", "pytorch."), before=["import math\nk = 1"], above=[("import math, torch as pytorch\n", False)]),
        "not right yet",   # one statement with a name of the original's: that cell is restored
        "NameError",
    ),
    "another import in it": (
        job(RIGHT.replace("torch.", "pytorch."), before=["import math"], above=[("import math\nimport torch as pytorch\n", False)]),
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
    monkeypatch.setattr(attempt, "limit", lambda memory, seconds: None)
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
    gone(int(PATH.read_text()))


def gone(pid):
    for _ in range(100):   # killed, but it takes a moment until it is gone
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return   # nobody collects it here
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid}, of a student's, is still there")


GRADER = """import os, sys
from coursekit.student.fence import Fence, Job
answer = "import os\\nopen({path!r}, 'w').write(str(os.getpid()))\\nwhile True: pass"
Fence().attempt(Job("1.1", "extract_patches", answer, {always!r}, [], {{}}, [], [], 300.0, 1.0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_a_killed_grader_leaves_no_attempt(tmp_path):
    path = tmp_path / "pid"
    grader = subprocess.Popen([sys.executable, "-c", GRADER.format(path=str(path), always=BASE.always)])
    try:
        while not (path.exists() and path.read_text()):
            assert grader.poll() is None
            time.sleep(0.1)
    finally:
        grader.send_signal(signal.SIGKILL)
        grader.wait()
    try:
        gone(int(path.read_text()))
    except AssertionError:
        os.kill(int(path.read_text()), signal.SIGKILL)
        raise


def test_end_stops_what_is_under_way():
    runner = Fence()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.attempt, job(body("while True: pass"), seconds=300.0))
        while not runner._running:
            time.sleep(0.05)
        runner.end()
        assert future.result(timeout=60)[0] in (BROKEN, "stopped")


@pytest.mark.parametrize(
    ("phases", "verdict"), [("", BROKEN), ("reading", "stopped"), ("reading context", BROKEN), ("reading context answer", "stopped")]
)
def test_who_is_to_blame_for_a_silence(phases, verdict, monkeypatch):
    lines, seconds = queue.SimpleQueue(), {BROKEN: 0.01, "stopped": 60.0}
    for phase in phases.split():
        lines.put([phase])
    monkeypatch.setattr(fence, "START", seconds[verdict])
    start = time.monotonic()
    assert fence._await_verdict(None, lines, job(seconds=60.01 - seconds[verdict]), None)[0] == verdict
    assert time.monotonic() - start < 30


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
        ("from math import *\nif a:\n    from b import *", {"*"}, {"a"}),
        ("files = !ls\nfiles?", {"files"}, {"get_ipython"}),
        ("%pip install x\na, (b, *c) = 1, (2, 3)", {"a", "b", "c"}, {"get_ipython"}),
    ],
)
def test_names_of_a_statement(source, binds, needs):
    found = attempt.statements(source)
    assert set().union(*(s.binds for s in found)) == binds
    assert set().union(*(s.needs for s in found)) - {"i"} == needs


def test_only_what_is_needed_runs_in_order():
    cells = attempt.statements("a = 1\nb = a\nunused = b\nc = d\ndef f(): return b\nb = 2")
    assert [sorted(s.binds) for s in attempt.needed(cells, ["f", "nowhere"])] == [["a"], ["b"], ["f"], ["b"]]
