"""Files that are whole or not there."""

from __future__ import annotations

import glob
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

import psutil


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that nobody sees half written, not even after a crash, nor where several write it at once: the last one counts.

    Raises ``OSError``, which names it; a file that was there is then untouched.
    """
    name = path.name[:50]   # the name beside it may be as long as names can be
    aside = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.part")
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
    remove_rests(path.parent, f".{glob.escape(name)}.[0-9]*-[0-9]*.part")


def remove_rests(folder: Path, pattern: str) -> None:
    """Remove the files of such names that killed processes have left half written, but not what a living one of this machine writes."""
    for rest in folder.glob(pattern):
        writer = re.search(r"\.(\d+)-\d+\.part$", rest.name)
        with suppress(OSError, OverflowError):   # the next one finds it again; and no process has a number that long
            if not (writer and psutil.pid_exists(int(writer[1]))):
                rest.unlink()
