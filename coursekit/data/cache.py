"""Arrays that took work to make, kept as .npy files and memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock

from coursekit.data.sources import data_root

Arrays = Mapping[str, np.ndarray]
_DIGESTS = "sha256.json"


def cached(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``make`` returns, memory-mapped from ``cache/<key>/`` below the data root; made only where they are not there.

    ``key``: a file name that says all that the arrays depend on. They appear by one rename after they were written, and a second process
    waits for the first. Files that do not match their digests are made again, with a warning. Where nothing can be written, the arrays are
    made in memory, with a warning, at each call. Writing into an array changes this process's copy, not the file. Any folder
    of the cache may be deleted.
    """
    folder = data_root() / "cache" / key
    if arrays := _read(folder):
        return arrays
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{key}.lock").acquire()
    except OSError as error:
        _warn_not_kept(folder, error)
        return make()
    with lock:
        if arrays := _read(folder):  # another process may have put it there while this one waited
            return arrays
        arrays = make()
        try:
            _write(folder, arrays)
        except OSError as error:
            _warn_not_kept(folder, error)
            return arrays
    return _read(folder) or arrays


def key_of(recipe: str, files: Iterable[tuple[str, Path]]) -> str:
    """The part of a key that changes with the ``recipe`` and with the names and bytes of the files: 16 hexadecimal digits."""
    total = hashlib.sha256(recipe.encode())
    for name, path in files:
        total.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _read(folder: Path) -> Arrays | None:
    """The arrays where they are there and whole. The digests come first: no damaged file is ever mapped."""
    if not folder.exists():
        return None
    try:
        digests = json.loads((folder / _DIGESTS).read_text("utf-8"))
        wrong = [name for name, digest in digests.items() if _digest(folder / name) != digest]
    except (OSError, ValueError, AttributeError) as error:  # a missing file; no JSON; JSON, but no table
        wrong = [str(error)]
    if wrong:
        warnings.warn(f"{folder} is damaged ({', '.join(wrong)}): it is made again", stacklevel=4)
        return None
    return {Path(name).stem: np.load(folder / name, mmap_mode="c") for name in digests}


def _write(folder: Path, arrays: Arrays) -> None:
    for stale in folder.parent.glob(f".{folder.name}.aside-*"):  # whoever holds the lock is alone: their maker is dead
        shutil.rmtree(stale)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.aside-", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        digests = {path.name: _digest(path) for path in sorted(aside.iterdir())}
        (aside / _DIGESTS).write_text(json.dumps(digests), "utf-8")
        aside.chmod(0o755)  # mkdtemp's folders are for their maker alone
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warn_not_kept(folder: Path, error: OSError) -> None:
    warnings.warn(f"{folder} cannot be written ({error}): the pictures are decoded anew each time. Set COURSEKIT_DATA to a folder "
                  "that can be written", stacklevel=4)  # fmt: skip
