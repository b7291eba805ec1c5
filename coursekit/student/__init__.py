"""Handing the workbook out and taking it back in: ``python -m coursekit.student build`` and ``grade``.

``build`` makes student notebooks of the solution notebooks, ``grade`` reads what comes back, ``fence`` runs each answer in a
process of its own with limits, and ``attempt`` is what runs there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from coursekit.files import write_whole


class StudentError(Exception):
    """Something has to be put right by hand before notebooks can be built or graded; the message says what and where."""


def make_folder(folder: Path) -> None:
    """Make ``folder``, and those above it. Raises ``StudentError`` where that cannot be, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        raise StudentError(f"{folder} cannot be a folder: {file} is a file; name another") from error
    except OSError as error:
        raise StudentError(f"nothing can be written to {folder}: {error.strerror}; name another") from error


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` all at once: whoever reads it meanwhile, or after a crash, finds the old file or the new one."""
    write_whole(path, text.encode("utf-8", "replace"))   # half of a surrogate pair, as a student's text may hold, has no code
