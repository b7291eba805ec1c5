"""Handwritten digits: scikit-learn's 8×8 ones, which need no network, and MNIST."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import download_url

from coursekit.data.sources import DataError, data_root

_COUNTS = {"train": 60_000, "t10k": 10_000}


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: images (1797, 1, 8, 8), float32 in [0, 1] (grey value/16), and labels (1797,), int64 in 0..9."""
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target, dtype=torch.int64)


def mnist(train: bool, root: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """MNIST: images (N, 1, 28, 28), float32 in [0, 1] (grey value/255), and labels (N,), int64; N is 60,000 (``train``) or 10,000.

    Reads the two idx files of the asked part, raw or ``.gz``, from the data root (see ``data_root``) or from ``MNIST/raw`` below
    it, where torchvision keeps them and where a file that is missing is downloaded to. Another N than MNIST's is refused.
    Raises ``DataError`` for a failed download and for a file that is not what it should be, which is left as it is.
    """
    part = "train" if train else "t10k"
    images = _idx(root, f"{part}-images-idx3-ubyte", (_COUNTS[part], 28, 28))
    labels = _idx(root, f"{part}-labels-idx1-ubyte", (_COUNTS[part],))
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels).long()


def _idx(root: str | os.PathLike[str] | None, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of an idx file: two zeros, the type (8: uint8), the number of axes, each length in four bytes, then the data."""
    file = _find(data_root(root), name)
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:   # gzip raises OSError for a bad file, EOFError for one cut short
        raise DataError(f"{file} cannot be read: {error}. Put a right copy in its place, or remove it to have it downloaded") from error
    header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
    size = len(header) + int(np.prod(shape))
    if content[: len(header)] != header or len(content) != size:
        raise DataError(
            f"{file} is not MNIST's {name}: found {len(content)} bytes that begin with {content[: len(header)].hex()}, expected {size} "
            f"that begin with {header.hex()}. Put a right copy in its place, or remove it to have it downloaded"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()


def _find(root: Path, name: str) -> Path:
    folder = root / "MNIST" / "raw"
    for file in (place / f"{name}{suffix}" for place in (root, folder) for suffix in ("", ".gz")):
        if file.exists():
            return file
    md5 = dict(MNIST.resources)[f"{name}.gz"]
    reasons = []
    for mirror in MNIST.mirrors:
        try:
            download_url(f"{mirror}{name}.gz", str(folder), f"{name}.gz.part", md5)   # it verifies what arrived
            return (folder / f"{name}.gz.part").rename(folder / f"{name}.gz")
        except (RuntimeError, URLError, OSError) as error:
            reasons.append(f"  {mirror}{name}.gz: {error}")
    by_hand = f"get {name}.gz elsewhere and put it into {folder}"
    raise DataError("\n".join(["MNIST could not be downloaded:", *reasons, f"Try again later, or {by_hand}"]))
