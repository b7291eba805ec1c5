"""python -m coursekit.student.attempt: try one answer, in a process of its own. Started by ``fence``, with the job as JSON on stdin.

What it says goes over the stdout that it was started with, each line behind a secret word: first each phase, then the verdict.
The student's code gets empty standard streams. It may crash, hang or tamper; then no verdict comes, or the tampering is undone
before each claim. All that holds against clumsiness and tricks, not against an attack: Python code can reach everything in its process.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import symtable
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

LONGEST = 4000   # characters of a message
NO_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory")


@dataclass(frozen=True)
class Statement:
    """One statement at the top level of a cell, the names that it gives a value to, and those it needs."""

    tree: ast.stmt
    binds: frozenset[str]
    needs: frozenset[str]


def statements(source: str) -> list[Statement]:
    """The statements of a cell, as Jupyter would read it; a first line such as %%time counts for nothing. Raises ``SyntaxError``."""
    try:
        tree = ast.parse(source, "your cell")
    except SyntaxError:
        python = TransformerManager().transform_cell(re.sub(r"\A\s*%%.*", "#", source))
        tree = ast.parse(python, "your cell")
    return [_statement(node) for node in tree.body]


def _statement(node: ast.stmt) -> Statement:
    top = symtable.symtable(ast.unparse(node), "cell", "exec")
    binds = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    needs = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        needs |= {s.get_name() for s in table.get_symbols() if s.is_global()}
        binds |= {s.get_name() for s in table.get_symbols() if s.is_declared_global() and s.is_assigned()}
    if any(isinstance(part, ast.ImportFrom) and part.names[0].name == "*" for part in ast.walk(node)):
        binds.add("*")   # any name
    # What is changed in place gets a value too: table.update(…), table[k] = …, table.x = …
    changed = [part for part in ast.walk(node) if isinstance(getattr(part, "ctx", None), ast.Store)]
    changed += [node.value.func] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else []
    for place in changed:
        owner = place
        while isinstance(owner, ast.Attribute | ast.Subscript):
            owner = owner.value
        if isinstance(owner, ast.Name) and owner is not place:
            binds.add(owner.id)
    return Statement(node, frozenset(binds), frozenset(needs))


def needed(candidates: Sequence[Statement], names: Iterable[str]) -> list[Statement]:
    """Those of ``candidates`` on which ``names`` depend, directly or through others, in their order; and every star import."""
    wanted, kept = {"*", *names}, [False] * len(candidates)
    while True:
        fresh = [i for i, statement in enumerate(candidates) if not kept[i] and statement.binds & wanted]
        if not fresh:
            return [statement for i, statement in enumerate(candidates) if kept[i]]
        for i in fresh:
            kept[i] = True
            wanted |= candidates[i].needs


def run(statement: Statement, names: dict[str, Any]) -> None:
    """Execute one statement in ``names``; a ``from __future__ import annotations`` above it counts, as in Jupyter."""
    flags = annotations.compiler_flag if names.get("annotations") is annotations else 0
    exec(compile(ast.Module([statement.tree], []), "your cell", "exec", flags, dont_inherit=True), names)


def snapshot() -> Callable[[], None]:
    """Remember what the checks stand on, and return a function that puts it back: modules, classes and the code of functions."""
    import torch

    rooms = {name: module for name, module in list(sys.modules.items()) if name.split(".")[0] == "coursekit"}
    judges = [module for name, module in rooms.items() if name.startswith(("coursekit.exercises", "coursekit.checks"))]
    used = {value for module in judges for value in vars(module).values() if isinstance(value, ModuleType)}
    stood_on = "__main__", "builtins", "contextlib", "os", "json", "torch", "torch.nn", "torch.nn.functional", "torch.random"
    used |= {sys.modules[name] for name in stood_on}
    modules: list[Any] = list({*rooms.values(), *used})
    found = (value for module in modules for value in vars(module).values())
    classes = {value for value in found if isinstance(value, type) and value.__module__.startswith(("coursekit", "contextlib"))}
    guards = torch.no_grad, torch.enable_grad, torch.inference_mode, torch.set_grad_enabled
    saved = [(owner, dict(vars(owner))) for owner in (*modules, *classes, torch.Tensor, torch.nn.Module, *guards)]
    codes = [(value, value.__code__) for _, names in saved for value in names.values() if isinstance(value, FunctionType)]
    ours = [(owner, names) for owner, names in saved if isinstance(owner, type) or owner.__name__.startswith(("coursekit", "__main__"))]
    missing, get, change, remove, is_a = object(), vars, setattr, delattr, isinstance   # whatever becomes of the builtins

    def restore() -> None:
        for function, code in codes:
            if function.__code__ is not code:
                function.__code__ = code
        for owner, names in saved:
            now = get(owner)
            for name, value in names.items():
                if now.get(name, missing) is not value:
                    change(owner, name, value)
        for owner, names in ours:   # not torch, which may load parts late
            for name in [name for name, value in get(owner).items() if name not in names and not is_a(value, ModuleType)]:
                remove(owner, name)

    return restore


def limit(memory: float, seconds: float) -> None:
    """Allow this process ``memory`` GiB more than it has, and a share of processor time that outlives whoever started it by little."""
    if not memory_is_limited():
        return
    import resource

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize() + int(memory * 2**30)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime + 10 * seconds + 600)
    most = {resource.RLIMIT_AS: size, resource.RLIMIT_CPU: spent, resource.RLIMIT_FSIZE: 2**28, resource.RLIMIT_CORE: 0}
    for kind, number in most.items():
        hard = resource.getrlimit(kind)[1]
        number = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(kind, (number, number))


def memory_is_limited() -> bool:
    """Whether this system can say what a process has, and hold it to a limit."""
    return sys.platform == "linux" and os.path.exists("/proc/self/statm")


class Shell:
    """What get_ipython() gives to the student's cells: whatever a magic or a shell command asks of it, it does nothing."""

    def __getattr__(self, name: str) -> Callable[..., list[str]]:
        return lambda *_, **__: []


def define(own: Sequence[Statement], extras: Sequence[Statement], names: dict[str, Any]) -> str:
    """Run the student's own statements and say what went wrong that may not matter: trials at the end of a cell define nothing."""
    complaint = ""
    for statement in (*extras, *own):
        try:
            run(statement, names)
        except Exception as error:
            complaint = complaint or f"{ast.unparse(statement.tree)[:80]} … ended in {type(error).__name__}: {error}"
    return complaint


def attempt(job: dict[str, Any], phase: Callable[[str], None]) -> tuple[str, str]:
    """The verdict on one answer, and what to look at. ``job``: see ``fence.Job``."""
    names: dict[str, Any] = {"__name__": "__main__", "get_ipython": Shell}
    for source in job["always"]:
        exec(compile(source, "the notebook's first cells", "exec", dont_inherit=True), names)
    table = names["exercises"].EXERCISES
    names |= {name: table[number].reference for number, name in job["earlier"].items()}
    exercise, judge = table[job["number"]], sys.modules["coursekit.exercises"].judge
    context = [statement for source in job["before"] for statement in statements(source)]
    restore = snapshot()
    limit(job["memory"], job["seconds"])
    phase("reading")
    try:
        own = _answer(statements(job["answer"]), job)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return "not right yet", f"your cell is not Python: {type(error).__name__}: {error}"
    extras = _extras(job, _names(context))
    wanted = needed([*context, *extras], {name for statement in own for name in statement.needs})
    phase("context")
    for statement in wanted:
        if statement in context:
            run(statement, names)
    phase("answer")
    complaint = define(own, [s for s in wanted if s in extras], names)
    restore()
    if job["name"] not in names:
        indented = re.search(rf"^[ \t]+(async[ \t]+)?def[ \t]+{job['name']}\b", job["answer"], re.MULTILINE)
        hint = "; write its def line at the left margin, under no if, try, class or other def" if indented else ""
        return "not right yet", "\n".join(filter(None, [f"your cell does not define {job['name']}{hint}", complaint]))
    function = names[job["name"]]
    if function is exercise.reference:
        return "not right yet", "this is the package's own function, not yours"

    @functools.wraps(function, assigned=())   # checks look at the signature
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        finally:
            restore()

    verdict, message = judge(exercise, guarded if callable(function) else function)
    if any(words in message for words in NO_MEMORY):
        message = f"your function needs more than {job['memory']:g} GiB of memory.\n{message}"
    return verdict, "\n".join(filter(None, [message, complaint if verdict != "right" else ""]))


def _answer(cell: Sequence[Statement], job: dict[str, Any]) -> list[Statement]:
    """The cell's statements without its checks, and without what the function became after the notebook's last check of it."""
    number = job["number"]
    last = max((i for i, s in enumerate(cell) if has_check(ast.unparse(s.tree), number)), default=0)
    settled = job["name"] in _names(cell[:last]) and not any(has_check(source, number) for source, _ in job["below"])
    return [s for i, s in enumerate(cell) if _is_no_check(s) and not (settled and i > last and job["name"] in s.binds)]


def has_check(source: str, number: str) -> bool:
    """Whether a check of exercise ``number`` stands in ``source``, in no comment."""
    return bool(re.search(rf"""^[^#\n]*\.check\(\s*["']{re.escape(number)}["']""", source, re.MULTILINE))


def _names(found: Iterable[Statement]) -> set[str]:
    return {name for statement in found for name in statement.binds}


def _is_no_check(statement: Statement) -> bool:
    return isinstance(statement.tree, ast.FunctionDef) or "exercises" not in statement.needs | statement.binds


def _extras(job: dict[str, Any], known: set[str]) -> list[Statement]:
    """What the student's other cells define, star imports first, so that they replace nothing. No exercise's function is among it.

    A cell that was handed out and then edited may add names, but change none of ``known``, those of the notebook; a cell below
    the answer may add what nothing above it defines.
    """
    functions = {job["name"], *job["earlier"].values()}

    def defined(cells: Sequence[tuple[str, bool]], taken: set[str]) -> list[Statement]:
        found: list[Statement] = []
        for source, new in cells:
            refused = taken | functions | (set() if new else known)
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):   # a cell that is not Python defines nothing
                found += [s for s in statements(source) if _is_no_check(s) and not s.binds & refused]
        return found

    above = defined(job["above"], set())
    below = defined(job["below"], (known | _names(above)) - {"*"})
    return sorted([*above, *below], key=lambda s: "*" not in s.binds)


def end_with_the_grader() -> None:
    """Let Linux kill this process when the thread that started it is gone, so that a killed grader leaves none behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)   # PR_SET_PDEATHSIG


def main() -> None:
    """Read the job, try the answer, and send the verdict."""
    end_with_the_grader()
    job = json.load(sys.stdin)
    at = "start"
    pipe, nowhere, word, send, encode = os.dup(1), os.open(os.devnull, os.O_RDWR), job.pop("word"), os.write, json.dumps
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    warnings.simplefilter("ignore")

    def say(*words: str) -> None:
        send(pipe, f"{word} {encode(words)}\n".encode())

    def phase(name: str) -> None:
        nonlocal at
        at = name
        if name == "answer":
            os.dup2(nowhere, 2)   # until here, stderr tells the instructor what is wrong with the notebook or the installation
        say(name)

    try:
        verdict, message = attempt(job, phase)
    except BaseException as error:   # sys.exit, and whatever else no check expects
        if at != "answer":
            raise
        verdict, message = "not right yet", f"your code ended the program, with {type(error).__name__}"
    say("verdict", verdict, message[:LONGEST])


if __name__ == "__main__":
    main()
