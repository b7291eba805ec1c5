"""Checks of the reader's functions, one file a notebook.

A check takes the function, not its output, and tries it on awkward shapes in float64. Whatever it finds, the notebook
goes on: with the reader's function where it is right, else with the package's own, saying so. The package's own
function is the only reference; there is no second copy of a solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coursekit.checks import CheckFailed, silent


@dataclass(frozen=True)
class Exercise:
    """``verify(function)`` raises ``CheckFailed`` with a message that teaches; ``reference`` is the package's own function."""

    reference: Callable[..., Any]
    verify: Callable[[Callable[..., Any]], None]


def check(exercises: Mapping[str, Exercise], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Try ``function`` as the answer to exercise ``name``, print one line, and return the function to go on with.

    Raises ``ValueError`` for an unknown name, and nothing else: a wrong answer is reported, not raised.
    """
    if name not in exercises:
        raise ValueError(f"there is no exercise {name!r} here; there are {', '.join(exercises)}")
    exercise = exercises[name]
    try:
        with silent():   # one line an exercise, not one for each claim in it; what the reader prints stays
            exercise.verify(function)
    except NotImplementedError:
        print(f"– Exercise {name}: not attempted. The notebook goes on with the package's own function.")
    except CheckFailed as failure:
        print(f"✗ Exercise {name}: not right yet. The notebook goes on with the package's own function.\n{failure}")
    except Exception as error:  # a reader's function may raise anything; it is reported, and the notebook goes on
        message = f"trying your function ended in {type(error).__name__}: {error}"
        print(f"✗ Exercise {name}: not right yet. The notebook goes on with the package's own function.\n{message}")
    else:
        print(f"✓ Exercise {name}: right.")
        return function
    return exercise.reference
