"""What a student's code may patch so that a wrong answer looks right: each trick by itself, and what becomes of it."""

import contextlib
import re

import pytest
from test_student_attempt import FIRST, RIGHT, job, posix, tried_here

from coursekit.student.fence import Fence

ZERO = RIGHT.replace(", 1)", ", 1) * 0")   # wrong in nothing but its numbers
BELOW = """import __main__, coursekit.checks as checks
__main__.isinstance = lambda *_: True   # so that nothing looks like a name to be taken out again
checks.max = lambda *_: 1e99
"""
UNCOPIED = """torch.nn.Module.__call__ = lambda self, x: x.new_zeros(1)
def as_convnet(mlp):
    net = exercises.EXERCISES["4.1"].reference(mlp)
    for weight in net.parameters():
        weight.data.zero_()
    return net
"""
UNGUARDED = """torch.no_grad.__exit__ = lambda *_: True
def importance_bound(model, x, samples):
    return torch.zeros_like(x[:, 0])
"""

PATCHED = {   # answers that no check refuses, if what they patch stays patched
    "a new name in the checks": job("import coursekit.checks as c\nc.max = lambda *_: 1e99\n" + ZERO),
    "new code in the checks": job("import coursekit.checks as c\nc._verdict.__code__ = (lambda *_: None).__code__\n" + ZERO),
    "tensors": job("torch.Tensor.item = lambda self: 0.0\n" + ZERO),
    "modules": job(UNCOPIED, number="4.1", name="as_convnet"),
    "a guard that swallows": job("import contextlib as c\ntorch.random.fork_rng = lambda **_: c.suppress(Exception)\n" + ZERO),
    "a guard of torch's that swallows": job("torch.set_grad_enabled.__exit__ = lambda *_: True\n" + ZERO),
    "and one in a check": job(UNGUARDED, number="6.1", name="importance_bound", always=[FIRST.replace("patchwise", "vae")]),
    "guards that swallow": job("import contextlib as c\nc._GeneratorContextManager.__exit__ = lambda *_: True\n" + ZERO),
}


@pytest.mark.parametrize("name", PATCHED)
def test_what_is_patched_is_put_back(name, monkeypatch):
    guards = contextlib._GeneratorContextManager
    monkeypatch.setattr(guards, "__exit__", guards.__exit__)   # left patched it would swallow what later tests find
    verdict, message = tried_here(PATCHED[name], monkeypatch)
    assert verdict == "not right yet" and re.search("largest difference", message), message


@posix
def test_what_the_grader_itself_calls_is_put_back():
    """In a process of its own: there ``__main__`` is the grader."""
    verdict, message = Fence().attempt(job(BELOW + ZERO))
    assert verdict == "not right yet" and re.search("largest difference", message), message
