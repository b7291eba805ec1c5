"""Makes `pytest --nbval` on this folder, started from anywhere, compare every cell in the way in which its output was made."""
from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """The kernel of this environment, in fast mode and without progress bars, with limits that a slow machine can meet."""
    if not config.getoption("nbval", False):
        return
    config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = 900
    os.environ |= {"COURSEKIT_MODE": "fast", "COURSEKIT_QUIET": "1"}
    os.environ.pop("MPLBACKEND", None)  # the kernel's default shows figures inline


def pytest_itemcollected(item: pytest.Item) -> None:
    """nbval gives up if a kernel is silent for 5 s between two messages; a loaded machine can need longer."""
    if hasattr(item, "output_timeout"):
        item.output_timeout = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Two faults that nbval passes over: a cell without an execution count, which has nothing to be compared with, and a warning
    where outputs are ignored. The cell is run before: those below need what it defines."""
    yield
    cell = getattr(item, "cell", None)
    if cell is not None and item.config.getoption("nbval") and cell.execution_count is None:
        pytest.fail("this cell was never executed, so there is nothing to compare it with; run: make notebooks", pytrace=False)
    if said := "".join(output.text for output in getattr(item, "test_outputs", None) or () if output.get("name") == "stderr"):
        pytest.fail(f"this cell wrote to stderr:\n{said}", pytrace=False)
