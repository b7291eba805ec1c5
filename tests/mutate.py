"""Break every formula of a module, one small change at a time, and see whether its tests notice.

    python tests/mutate.py coursekit/diffusion/kernels.py tests/test_diffusion.py [more tests, or tests/test_x.py::test_y]

Mutants: + ↔ −, * ↔ /, a power or an integer off by one, a root or a minus sign dropped, a comparison turned, α for ᾱ and
back, one named array for another. Only expressions count: docstrings, annotations and messages stay. Each mutant runs the
tests with -x in a copy of the package; it is killed when they fail or time out. Prints the survivors and the score.
This is a proof to be run by hand and recorded, not a part of CI.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"   # before torch: a fork cannot use its parent's threads

import matplotlib.pyplot
import pytest
import scipy.stats
import torch
from diffusers import DDIMScheduler, DDPMScheduler

SHARED = (matplotlib.pyplot, scipy.stats, torch, DDIMScheduler, DDPMScheduler)   # imported once, for all mutants

ROOT = Path(__file__).resolve().parents[1]
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
NAMES = {
    "alpha": "alpha_bar", "alpha_bar": "alpha", "beta": "alpha", "previous": "alpha_bar",
    "alpha_bar_s": "alpha_bar_t", "alpha_bar_t": "alpha_bar_s",
}  # fmt: skip
UNWRAPPED = {"sqrt", "square", "log", "exp", "clamp", "logsumexp"}


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What one node may be replaced by."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in SWAPS:
                ops = [*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield ast.Constant(node.value + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in UNWRAPPED:
        yield node.func.value
    if isinstance(node, ast.Attribute) and node.attr in NAMES and isinstance(node.ctx, ast.Load):
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    if isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield ast.Name(NAMES[node.id], node.ctx)


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, description, mutated source) for each replacement inside a function body."""
    tree = ast.parse(source)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}

    def counts(node: ast.AST) -> bool:
        inside = False
        while node in parents:
            parent = parents[node]
            if isinstance(node, ast.JoinedStr | ast.Raise | ast.arguments):
                return False
            if isinstance(parent, ast.FunctionDef) and node is parent.returns:
                return False
            if isinstance(parent, ast.AnnAssign) and node is parent.annotation:
                return False
            inside |= isinstance(parent, ast.FunctionDef)
            node = parent
        return inside

    nodes = [node for node in ast.walk(tree) if counts(node)]
    for index, node in enumerate(ast.walk(tree)):
        if node not in nodes:
            continue
        for number, new in enumerate(replacements(node)):
            clone = copy.deepcopy(tree)
            target = list(ast.walk(clone))[index]
            fresh = list(replacements(target))[number]
            ast.copy_location(fresh, target)
            mutated = ast.fix_missing_locations(_Replace(target, fresh).visit(clone))
            yield node.lineno, f"{ast.unparse(node)}  →  {ast.unparse(new)}", ast.unparse(mutated)


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, new: ast.AST) -> None:
        self.target, self.new = target, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.target else super().generic_visit(node)


def killed(job: tuple[str, str, tuple[str, ...]]) -> bool:
    """Whether the tests fail on a copy of the package with one module replaced. Runs in a process of its own."""
    module, mutated, tests = job
    signal.setitimer(signal.ITIMER_PROF, 120)   # CPU seconds: a mutant that never ends ends this process, and counts as killed
    signal.alarm(1200)   # or waits for ever
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        shutil.copytree(ROOT / "coursekit", Path(folder) / "coursekit", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "data", Path(folder) / "data", ignore=shutil.ignore_patterns("[!sr]*", "runs"))
        (Path(folder) / module).write_text(mutated, encoding="utf-8")
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *[str(ROOT / test) for test in tests]])
        os.chdir(ROOT)
    return code != 0   # 1: a test failed; 2: the module could not even be imported


def main(module: str, *tests: str) -> None:
    if missing := [name for name in (module, *tests) if not (ROOT / name.partition("::")[0]).is_file()]:
        sys.exit(f"no such file: {', '.join(missing)}")
    source = (ROOT / module).read_text(encoding="utf-8")
    jobs = list(mutants(source))
    print(f"{module}: {len(jobs)} mutants; each runs the tests up to the first that fails", flush=True)
    context = multiprocessing.get_context("fork")   # what is imported here, all mutants share
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        if pool.submit(_alone, (module, source, tests)).result():
            sys.exit("the tests fail on the unchanged module, so they can judge nothing")
        verdicts = []
        results = pool.map(_alone, [(module, mutated, tests) for _, _, mutated in jobs])
        for (line, description, _), dead in zip(jobs, results, strict=True):
            verdicts.append(dead)
            if not dead:
                print(f"survives  {module}:{line}  {description}", flush=True)
    print(f"{module}: {sum(verdicts)} of {len(jobs)} mutants killed ({100 * sum(verdicts) / len(jobs):.0f} %)")


def _alone(job: tuple[str, str, tuple[str, ...]]) -> bool:
    """``killed`` in a fork, so that no mutant sees another's modules. A fork that dies counts as killed."""
    child = os.fork()
    if not child:
        try:
            os._exit(int(killed(job)))
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] != 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
