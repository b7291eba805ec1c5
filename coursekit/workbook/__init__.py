"""The notebooks as files. ``python -m coursekit.workbook`` lists the commands; ``notebooks``, ``pages`` and ``publish`` do the work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import coursekit


class WorkbookError(Exception):
    """Something in the checkout has to be put right by hand; the message says what and where."""


def checkout(*modules: str) -> Path:
    """The root of the checkout, once its notebooks are there and ``modules``, which load Jupyter's tools, can be imported.

    Raises ``WorkbookError`` that says what to install.
    """
    root = Path(coursekit.__file__).resolve().parents[1]
    if not (root / "notebooks").is_dir():
        raise WorkbookError(f"{root} has no notebooks/: this needs a checkout. Clone the project, then: pip install -e \".[lab,test]\"")
    try:
        for module in modules:
            import_module(module)
    except ImportError as error:
        raise WorkbookError(f"{error}. The notebooks' tools are missing; install them: pip install -e \".[lab,test]\"") from error
    return root
