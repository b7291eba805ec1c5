"""AFHQ: faces of cats, dogs and wild animals."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from coursekit.data.cache import Arrays, cached, key_of
from coursekit.data.content import is_metadata
from coursekit.data.decode import check_size, decode
from coursekit.data.pixels import to_signed
from coursekit.data.sources import DataError, fetch
from coursekit.runtime import progress_bar

_CLASSES = ("cat", "dog", "wild")
_RECIPE = "1"  # part of the cache's key: raise it with every change of what is decoded to what


class AFHQ(Dataset[Tensor]):
    """Animal faces: the middle square of each image, resized to ``size``×``size`` pixels. ``dataset[i]``: float32 (3, S, S) in [−1, 1].

    ``images``: uint8 (N, 3, S, S). ``names``: of their files below the root, as in ``cat/flickr_cat_000002.jpg``, in this order.

    ``root`` holds the folders ``cat/``, ``dog/`` and ``wild/``; ``data_class`` is one of them, or "all". For "all" it may also be a folder
    of images itself. Without ``root``, the registered copy is fetched, verified, and its training part read. The shorter side
    becomes ``size``, bilinearly with antialiasing; an orientation tag is obeyed.

    Bad files are those that do not decode to RGB (broken or cut short, greyscale, CMYK, no picture at all) or whose shorter side is below
    ``size``. They are refused together; with ``skip_bad`` they are left out, with a warning. Either names the first five.
    Decoded once, then read from ``cache/`` below the data root (see ``coursekit.data.cache.cached``), as long as no byte changes.
    Raises ``ValueError`` for an unknown class and a size below 1, ``DataError`` for bad files, a missing or an empty folder,
    and ``OSError`` where the machine cannot read them.
    Sources: Y. Choi and others, StarGAN v2, CVPR 2020; CMU, homework 2, section 5.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None = None, data_class: str = "cat", size: int = 32, *, skip_bad: bool = False
    ) -> None:
        if data_class not in ("all", *_CLASSES):
            raise ValueError(f"data_class must be 'all', 'cat', 'dog' or 'wild', got {data_class!r}")
        check_size(size)
        folder = fetch("afhq") / "train" if root is None else Path(root).expanduser().absolute()
        names = _files(folder, data_class)
        key = key_of(_RECIPE, ((name, folder / name) for name in names))
        arrays = cached(f"afhq-{size}-{key}", lambda: _decode(folder, names, size))
        faults = arrays["faults"].tolist()
        if any(faults):
            if not skip_bad:
                advice = "Mend or remove them, or leave them out with skip_bad=True"
                raise DataError(f"{_complaint(folder, names, faults)}\n{advice}")
            warnings.warn(f"{_complaint(folder, names, faults)}\nThey are left out", stacklevel=2)
        self.images = torch.from_numpy(arrays["images"])
        self.names = [name for name, fault in zip(names, faults, strict=True) if not fault]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return to_signed(self.images[index])


def _files(folder: Path, data_class: str) -> list[str]:
    """The names of the files below ``folder``, sorted."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Name one with cat/, dog/ and wild/ in it or, for data_class 'all', one of pictures")
    there = [name for name in _CLASSES if (folder / name).is_dir()]
    wanted = list(_CLASSES) if data_class == "all" else [data_class]
    if data_class == "all" and not there:
        wanted = ["."]
    if missing := [name for name in wanted if name not in (*there, ".")]:
        others = "it holds none of cat/, dog/ and wild/; for a folder of images say data_class 'all'"
        found = f"there is {', '.join(there)}" if there else others
        raise DataError(f"{folder} has no folder {', '.join(missing)}, needed for data_class {data_class!r}: {found}")
    files: list[str] = []
    for name in wanted:
        found_here = sorted(path for path in (folder / name).iterdir() if path.is_file() and not is_metadata(PurePath(path.name)))
        if not found_here:
            raise DataError(f"{folder / name} holds no files: put the pictures there")
        files += [path.relative_to(folder).as_posix() for path in found_here]
    return files


def _decode(folder: Path, names: list[str], size: int) -> Arrays:
    """``images`` of the good files, and ``faults`` of all files: a text each, empty for a good one."""
    images = np.empty((len(names), 3, size, size), np.uint8)
    faults: list[str] = []
    with ThreadPoolExecutor() as pool, progress_bar(len(names), "decode") as bar:  # Pillow decodes outside of Python's lock
        for decoded in pool.map(_face, (folder / name for name in names), repeat(size)):
            if isinstance(decoded, str):
                faults.append(decoded)
            else:
                images[len(faults)] = decoded
                faults.append("")
            bar.update(1)
    good = np.array([not fault for fault in faults])
    if not good.any():
        raise DataError(f"{_complaint(folder, names, faults)}\nNone is left: is it the right folder?")
    return {"images": images[good], "faults": np.array(faults)}


def _face(path: Path, size: int) -> np.ndarray | str:
    """uint8 (3, S, S), or what is wrong with the file."""
    try:
        image = ImageOps.exif_transpose(decode(path, ["RGB"]))
    except DataError as error:
        return str(error).replace(f"{path} ", "", 1).replace(str(path), path.name)  # the cache goes by content: the folder may move
    if min(image.size) < size:
        return f"has {image.width}×{image.height} pixels, fewer than {size} on a side: leave it out, or take a smaller size"
    square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)  # crops the middle, then resizes; antialiased
    return np.asarray(square).transpose(2, 0, 1)


def _complaint(folder: Path, names: list[str], faults: list[str]) -> str:
    bad = [f"  {name} {fault}" for name, fault in zip(names, faults, strict=True) if fault]
    more = [f"  and {len(bad) - 5} more"] if len(bad) > 5 else []
    return "\n".join([f"{len(bad)} of the {len(names)} files in {folder} cannot be used:", *bad[:5], *more])
