"""Handing the workbook out and taking it back in: `python -m coursekit.student build` and `grade`.

`build` makes student notebooks of the solution notebooks, `grade` reads what comes back, `fence` runs each answer in a
process of its own with limits, and `attempt` is what runs there.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


class StudentError(Exception):
    """Something has to be put right by hand before notebooks can be built or graded; the message says what and where."""


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` all at once: whoever reads it meanwhile, or after a crash, finds the old file or the new one."""
    draft = path.with_name(f".{secrets.token_hex(8)}.draft")
    try:
        draft.write_bytes(text.encode("utf-8", "replace"))   # half of a surrogate pair, as a student's text may hold, has no code
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
