"""Kvasir-SEG: 1000 frames of colonoscopies with the outlines of their polyps."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image

from coursekit.data.cache import Arrays, cached, key_of
from coursekit.data.content import is_metadata
from coursekit.data.decode import check_size, decode
from coursekit.data.pairs import Pairs
from coursekit.data.sources import DataError, fetch
from coursekit.runtime import progress_bar

_MODES = ("RGB", "L", "1")  # what becomes RGB without a guess. Not so CMYK (whose inks?), RGBA (before which background?), 16 bits
_RECIPE = "1"  # part of the cache's key: raise it with every change of what is decoded to what


class KvasirSEG(Pairs):
    """Polyps and their masks, each resized to ``size``×``size`` pixels; the aspect is not kept, as in the published protocols.

    ``root`` holds ``images/`` and ``masks/`` with any number of pairs, matched by name without its ending. Without ``root``, the
    registered copy is fetched and verified: 1000 pairs. Both are resized bilinearly with antialiasing. Masks are JPEGs with noise: they
    are thresholded at 127 first and again, at half, after the resize: an outline comes to lie where the resized image has the middle of
    that edge, and a polyp neither grows nor shrinks. Images are RGB or grey; an orientation tag is ignored, since the mask was drawn on
    the pixels as stored.

    Decoded once, then read from ``cache/`` below the data root (see ``coursekit.data.cache.cached``), as long as no byte changes.
    Raises ``ValueError`` for a size below 1 and ``DataError``, which names the file, for a missing folder, image or mask, a pair of
    different sizes, a file that does not decode, and a mask that is no black and white picture.
    Sources: D. Jha and others, Kvasir-SEG, MMM 2020; Basel, problem set 6, exercise 5.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, size: int = 128) -> None:
        check_size(size)
        folder = fetch("kvasir-seg") if root is None else Path(root).expanduser().absolute()
        pairs = _matched(folder)
        key = key_of(_RECIPE, ((path.stem, path) for pair in pairs for path in pair))
        arrays = cached(f"polyps-{size}-{key}", lambda: _decode(pairs, size))
        super().__init__(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["masks"]), [image.stem for image, _ in pairs])


def _matched(folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask), sorted by name."""
    images, masks = _by_stem(folder / "images"), _by_stem(folder / "masks")
    for found, other, kind in ((images, masks, "mask"), (masks, images, "image")):
        if alone := [path for stem, path in found.items() if stem not in other]:
            more = f" (and {len(alone) - 1} more like it)" if len(alone) > 1 else ""
            raise DataError(f"{alone[0]} has no {kind} of that name in {folder / f'{kind}s'}{more}: add it, or take the file away")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: the root must hold images/ and masks/; is it the right one?")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not is_metadata(PurePath(path.name)):
            if path.stem in files:
                raise DataError(f"{path} and {files[path.stem].name} differ in their endings only: keep one of them")
            files[path.stem] = path
    if not files:
        raise DataError(f"{folder} holds no files: put the pictures there")
    return files


def _decode(pairs: list[tuple[Path, Path]], size: int) -> Arrays:
    images = np.empty((len(pairs), 3, size, size), np.uint8)
    masks = np.empty((len(pairs), 1, size, size), np.uint8)
    with ThreadPoolExecutor() as pool, progress_bar(len(pairs), "decode") as bar:  # Pillow decodes outside of Python's lock
        decoded = pool.map(decode_pair, (image for image, _ in pairs), (mask for _, mask in pairs), repeat(size))
        for i, (image, mask) in enumerate(decoded):
            images[i], masks[i] = image, mask
            bar.update(1)
    return {"images": images, "masks": masks}


def decode_pair(image_path: Path, mask_path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 (3, S, S), and its mask, uint8 (1, S, S) of zeros and ones, as ``KvasirSEG`` describes. Raises ``DataError``."""
    image, mask = decode(image_path, _MODES), decode(mask_path, _MODES).convert("L")
    if image.size != mask.size:
        raise DataError(f"{mask_path} has {mask.width}×{mask.height} pixels, its image {image.width}×{image.height}: get the right pair")
    brightness = np.asarray(mask)
    if 0 < brightness.max() <= 127:
        raise DataError(f"{mask_path} has no pixel above 127, the brightest is {brightness.max()}: a mask must hold 0 and 255")
    if (grey := ((brightness > 40) & (brightness < 215)).mean()) > 0.6:   # far beyond noise and soft outlines; photographs reach it
        raise DataError(f"{mask_path} is no black and white picture, {grey:.0%} of it is grey: are images and masks swapped?")
    polyp = Image.fromarray(np.where(brightness > 127, 255, 0).astype(np.uint8))
    small, small_polyp = (np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR)) for whole in (image.convert("RGB"), polyp))
    return small.transpose(2, 0, 1), (small_polyp > 127).astype(np.uint8)[None]  # Pillow's bilinear antialiases where it shrinks
