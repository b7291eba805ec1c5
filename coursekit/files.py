"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that nobody sees half written, not even after a crash.

    Raises ``OSError``, which names it; a file that was there is then untouched.
    """
    aside = path.with_name(f".{path.name[:60]}.part")   # the name beside it may be as long as names can be
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}. What was saved before is whole; make room and run again") from error
    finally:
        if aside.exists():
            aside.unlink()
