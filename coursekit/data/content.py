"""Whether a folder holds what its registry entry says: by digest where one is known, else by counts, names and decoding."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from PIL import Image

from coursekit.runtime import progress

if TYPE_CHECKING:
    from coursekit.data.sources import Source

UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for damaged files
# Errors of Pillow and of zipfile carry no number; with one, data can be to blame for an offset beyond every file, for a file where
# a folder must be, and for a name that no disk takes
_ITS_FAULT = (None, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ)


def machines_fault(error: Exception) -> bool:
    """Whether the machine is to blame, and not the picture or the archive that it reads."""
    return getattr(error, "errno", None) not in _ITS_FAULT


def is_metadata(path: PurePath) -> bool:
    """Whether a file was left by an operating system and is no part of the data."""
    return path.parts[:1] == ("__MACOSX",) or path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")


def fault(folder: Path, source: Source) -> str | None:
    """What is wrong with the content of ``folder``, narrowed down as far as can be told, or None."""
    expected = source.counts or dict.fromkeys(source.digest_folders, source.files // len(source.digest_folders))
    listed = [path for name in expected for path in sorted((folder / name).glob("*"), key=lambda path: path.name)]
    files = {path.relative_to(folder).as_posix(): path for path in listed if path.is_file() and not is_metadata(path)}
    if source.sha256:
        lines = (f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files.items())
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        if digest == source.sha256:
            return None
        times = Counter(path.name for path in files.values())
        odd = [f"{name} has no partner of that name" for name, path in files.items() if times[path.name] < len(expected)]
    else:
        odd = [f"{name} is not named *.jpg" for name in files if not name.endswith(".jpg")]
    found = Counter(name.rpartition("/")[0] for name in files)
    odd = [f"{name}/ has {found[name]} files, not {count}" for name, count in expected.items() if found[name] != count] + odd
    if not odd:
        odd = [f"{name} does not decode: {why}" for name, path in progress(files.items(), "verify") if (why := _undecodable(path))]
        if source.sha256 and not odd:
            odd = [f"counts and names are right and every file decodes, but some content differs: digest {digest}, not {source.sha256}"]
    return "; ".join(odd[:4] + [f"and {len(odd) - 4} more faults"] * (len(odd) > 4)) or None


def _undecodable(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (64, 64))  # reads the whole JPEG, but spares most of the arithmetic
            image.load()
    except UNDECODABLE as error:
        if machines_fault(error):
            raise
        return str(error)
    return None
