"""One picture from its file, or an error that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from coursekit.data.content import UNDECODABLE, machines_fault
from coursekit.data.sources import DataError


def decode(path: Path, modes: Sequence[str]) -> Image.Image:
    """The decoded picture. Raises ``DataError`` where it does not decode, or to a mode that is none of ``modes``.

    An error of the machine, such as too many open files, passes as the ``OSError`` that it is.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except UNDECODABLE as error:
        if machines_fault(error):
            raise
        raise DataError(f"{path} does not decode: {error}. Get a right copy of it") from error
    if image.mode not in modes:
        raise DataError(f"{path} is in mode {image.mode}, not {' or '.join(modes)}, so its colours are not known: save it as RGB")
    return image


def check_size(size: object) -> None:
    """Raises ``ValueError`` where ``size`` is no positive number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be an int of at least 1 pixel, got {size!r}")
