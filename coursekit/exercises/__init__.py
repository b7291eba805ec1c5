"""Checks of the reader's functions, one file a notebook.

A check takes the function, not its output, and tries it on awkward shapes in float64. Whatever it finds, the notebook
goes on: with the reader's function where it is right, else with the package's own, saying so. The package's own
function is the only reference; there is no second copy of a solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from coursekit.checks import CheckFailed, silent

Verdict = Literal["right", "not right yet", "not attempted"]


@dataclass(frozen=True)
class Exercise:
    """``verify(function)`` raises ``CheckFailed`` with a message that teaches; ``reference`` is the package's own function."""

    reference: Callable[..., Any]
    verify: Callable[[Callable[..., Any]], None]


def judge(exercise: Exercise, function: Callable[..., Any]) -> tuple[Verdict, str]:
    """Try ``function`` as the answer, printing nothing, and say what came of it and what to look at, "" where nothing."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        # One line an exercise, not one for each claim in it; and what is drawn or set here changes nothing in the notebook later.
        with silent(), torch.random.fork_rng(devices=gpus):
            exercise.verify(function)
    except NotImplementedError:
        return "not attempted", ""
    except CheckFailed as failure:
        return "not right yet", str(failure)
    except Exception as error:  # a reader's function may raise anything; it is reported, and the notebook goes on
        return "not right yet", f"trying your function ended in {type(error).__name__}: {error}"
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
    return "right", ""


def check(exercises: Mapping[str, Exercise], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Try ``function`` as the answer to exercise ``name``, print what came of it, and return the function to go on with.

    Raises ``ValueError`` for an unknown name, and nothing else: a wrong answer is reported, not raised.
    """
    if name not in exercises:
        raise ValueError(f"there is no exercise {name!r} here; there are {', '.join(exercises)}")
    verdict, message = judge(exercises[name], function)
    if verdict == "right":
        print(f"✓ Exercise {name}: right.")
        return function
    mark, advice = ("–", "; write it where NotImplementedError is raised") if verdict == "not attempted" else ("✗", "")
    print(f"{mark} Exercise {name}: {verdict}{advice}. The notebook goes on with the package's own function.")
    if message:
        print(message)
    return exercises[name].reference
