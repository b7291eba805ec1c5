"""Images with their masks, held as bytes: the data set that real and rendered polyps share, its split, its look-alikes, its batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

if TYPE_CHECKING:
    from coursekit.data.augment import Augment

Pair = tuple[Tensor, Tensor]
_THUMB, _MARGIN, _SHIFT = 32, 6, 2  # pixels of the fingerprints that near_duplicates compares


class Pairs(Dataset[Pair]):
    """Square images and their masks. ``dataset[i]``: a float32 image (3, S, S) in [0, 1] and a float32 mask (1, S, S) of zeros and ones.

    ``images``: uint8 (N, 3, S, S). ``masks``: uint8 (N, 1, S, S) of zeros and ones. ``names``: one per pair, none twice; ``split`` goes
    by them. Raises ``ValueError`` for anything else.
    """

    def __init__(self, images: Tensor, masks: Tensor, names: Sequence[str]) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 of shape (N, 3, S, S), got {images.dtype} {tuple(images.shape)}")
        if masks.shape != (len(images), 1, *images.shape[2:]) or masks.dtype != torch.uint8:
            raise ValueError(f"masks must be uint8 of shape {(len(images), 1, *images.shape[2:])}, got {masks.dtype} {tuple(masks.shape)}")
        if len(images) and masks.max() > 1:
            raise ValueError(f"masks must hold zeros and ones, got {int(masks.max())}")
        if len(names) != len(images) or len(set(names)) != len(names):
            raise ValueError(f"names must be {len(images)} different ones, one per image; got {len(names)}, {len(set(names))} different")
        self.images, self.masks, self.names = images, masks, list(names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        """Image (3, S, S) in [0, 1] and mask (1, S, S) of zeros and ones, both float32. Raises ``IndexError``."""
        return self.images[index].float() / 255, self.masks[index].float()


def split(dataset: Pairs, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> tuple[Subset[Pair], ...]:
    """Disjoint parts of the data set, in these proportions, drawn by ``seed``.

    The pairs are ordered by a hash of seed and name, then cut: the same parts with every version of torch and in every order of the
    files, and a pair more or less moves few others. Sizes are n·fraction, rounded so that they add up (largest remainder).
    Raises ``ValueError`` where the fractions do not add up to 1, or a part would be empty. Source: Basel, problem set 6, exercise 5.1.
    """
    _whole(dataset)
    if not all(fraction > 0 for fraction in fractions) or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(f"fractions must be positive and add up to 1, got {tuple(fractions)}, together {sum(fractions):g}")
    exact = [len(dataset) * fraction for fraction in fractions]
    sizes = [math.floor(size) for size in exact]
    for part in sorted(range(len(sizes)), key=lambda part: sizes[part] - exact[part])[: len(dataset) - sum(sizes)]:
        sizes[part] += 1
    if 0 in sizes:
        raise ValueError(f"{len(dataset)} pairs split into {tuple(fractions)} leave a part empty: {tuple(sizes)}; take more pairs")
    order = sorted(range(len(dataset)), key=lambda i: hashlib.sha256(f"{seed}\0{dataset.names[i]}".encode()).digest())
    return tuple(Subset(dataset, sorted(order[start:end])) for start, end in pairwise(accumulate(sizes, initial=0)))


def near_duplicates(dataset: Pairs, threshold: float = 0.37) -> list[tuple[int, int, float]]:
    """(i, j, distance) of the images that show the same scene at the same place, i < j, nearest first: 0 is the same, 1 unrelated.

    The distance is 1 − the correlation of two fingerprints, which leave out what frames share without being alike: black borders
    are cut off, shading and colour taken away, and only the middle, without corners and text, is compared, at shifts of up to 2/32 of
    the side. In Kvasir-SEG at 128 px, the 20 pairs below .37 were all seen to be the same scene, some with another border or an inset;
    from there to .4 there were right and wrong ones. The same polyp seen from another side is not found. An image of one
    colour is like none, not even its copy.
    Raises ``ValueError`` for images below 32 pixels.
    """
    _whole(dataset)
    if dataset.images.shape[-1] < _THUMB:
        raise ValueError(f"images must have at least {_THUMB} pixels a side to be told apart, got {dataset.images.shape[-1]}")
    thumbs = _thumbnails(dataset.images)
    inner, shifts = slice(_MARGIN, _THUMB - _MARGIN), range(-_SHIFT, _SHIFT + 1)
    centred = _unit(thumbs[:, inner, inner])
    shifted = (_unit(thumbs.roll((dy, dx), (1, 2))[:, inner, inner]) for dy in shifts for dx in shifts)
    likeness = torch.zeros(len(thumbs), len(thumbs))
    for other in shifted:
        torch.maximum(likeness, centred @ other.T, out=likeness)
    distance = (1 - torch.maximum(likeness, likeness.T)).clamp(min=0)
    found = (distance < threshold).triu(1).nonzero().tolist()
    return sorted(((i, j, float(distance[i, j])) for i, j in found), key=lambda pair: pair[2])


def _thumbnails(images: Tensor) -> Tensor:
    """What is left of images (N, 3, S, S), uint8, without black borders, colour and shading: float32 (N, 32, 32)."""
    small = np.empty((len(images), _THUMB, _THUMB), np.float32)
    for i, image in enumerate(images.numpy()):
        grey = image.mean(0, dtype=np.float32) / 255
        (top, bottom), (left, right) = (_lit((grey > 0.1).mean(axis)) for axis in (1, 0))
        thumb = Image.fromarray(grey).resize((_THUMB, _THUMB), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        small[i] = np.asarray(thumb)
    thumbs = torch.from_numpy(small)
    # Clamped, so that an edge or a highlight counts no more than a vessel
    return (thumbs - F.avg_pool2d(thumbs, 5, 1, 2, count_include_pad=False)).clamp(-0.05, 0.05)


def _lit(share: np.ndarray) -> tuple[int, int]:
    """Where the rows, or columns, begin and end of which more than 15 % are no black border."""
    found = np.flatnonzero(share > 0.15)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(share))


def _unit(thumbs: Tensor) -> Tensor:
    return F.normalize(thumbs.flatten(1) - thumbs.flatten(1).mean(1, keepdim=True), dim=1)


def _whole(dataset: Pairs) -> None:
    if not isinstance(dataset, Pairs) or not len(dataset):
        found = "none" if isinstance(dataset, Pairs) else f"a {type(dataset).__name__}; take the whole data set, as Pairs"
        raise ValueError(f"dataset must hold images with their masks and names, at least one; got {found}")


class Batches:
    """The batches of an epoch: float32 images (B, 3, S, S) in [0, 1] and masks (B, 1, S, S) of zeros and ones, on ``device``.

    Each ``for`` over it is one epoch, in which every pair comes once; the last batch may be smaller, or is left out by ``drop_last``.
    ``len`` counts the batches. The bytes are held on the GPU when they take at most half of its free memory, else moved batch by batch.
    ``generator``: a CPU generator, needed to shuffle or augment: it makes the same batches on every device.
    Raises ``ValueError`` for a batch size that is no positive int, no batch at all, and randomness without a generator.
    """

    def __init__(
        self, data: Pairs | Subset[Pair], batch_size: int, *, generator: torch.Generator | None = None,
        device: torch.device | str = "cpu", augment: Augment | None = None, shuffle: bool = True, drop_last: bool = False,
    ) -> None:  # fmt: skip
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an int of at least 1, got {batch_size!r}")
        if generator is None and (shuffle or augment):
            raise ValueError("shuffling and augmenting need a generator: torch.Generator().manual_seed(0); or say shuffle=False")
        self.images, self.masks = _arrays(data)
        self.device, self.batch_size, self.generator = torch.device(device), batch_size, generator
        self.augment, self.shuffle, self.drop_last = augment, shuffle, drop_last
        if not len(self):
            raise ValueError(f"{len(self.images)} pairs make no batch of {batch_size}: take more pairs or a smaller batch")
        if self.device.type != "cuda" or 2 * (self.images.nbytes + self.masks.nbytes) <= torch.cuda.mem_get_info(self.device)[0]:
            self.images, self.masks = self.images.to(self.device), self.masks.to(self.device)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size if self.drop_last else math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[Pair]:
        count = len(self.images)
        order = torch.randperm(count, generator=self.generator) if self.shuffle else torch.arange(count)
        for chosen in order.split(self.batch_size)[: len(self)]:
            at = chosen.to(self.images.device)
            images = self.images[at].to(self.device).float().div_(255)
            masks = self.masks[at].to(self.device).float()
            yield self.augment(images, masks, self.generator) if self.augment and self.generator else (images, masks)


def _arrays(data: Pairs | Subset[Pair]) -> Pair:
    if isinstance(data, Pairs):
        return data.images, data.masks
    if not isinstance(data, Subset):
        raise ValueError(f"data must be Pairs or a Subset of them, got {type(data).__name__}")
    images, masks = _arrays(data.dataset)  # type: ignore[arg-type]  # whatever it is, the next call judges it
    return images[data.indices], masks[data.indices]
