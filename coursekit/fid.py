"""Notebook 05: how far generated images are from real ones, by the statistics of features.

With Inception's features the Fréchet distance is the FID. With the features of ``FeatureNet``, a small classifier trained on the data at
hand, it is a "feature distance" and compares with no published number. Either is biased: two samples of one distribution are apart, the
further the smaller they are. So ``compare`` gives it with its n, the distance of real images from real ones, and beside it the kernel
distance, which has no bias.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from functools import cache
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import ArrayLike
from scipy.linalg.lapack import dpstrf
from torch import Tensor, nn

from coursekit.data.pixels import to_pixels, to_signed
from coursekit.data.sources import DataError, data_root
from coursekit.runtime import progress

_WEIGHTS = inception_url.rsplit("/", 1)[1]
_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # as k-diffusion and others publish it for this file
_WIDEST, _FEATURES = 128, 64
_BATCH = 256
_SPLITS = 8   # of the real images, for the floor


def feature_statistics(features: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by N−1, of features (N, D), both float64 on the CPU.

    Raises ``ValueError`` for another shape, fewer than two rows, and numbers that are not finite.
    """
    x = _samples("features", features)
    return x.mean(0), torch.atleast_2d(x.T.cov())


def frechet_distance(mean_1: ArrayLike | Tensor, cov_1: ArrayLike | Tensor, mean_2: ArrayLike | Tensor, cov_2: ArrayLike | Tensor) -> float:
    """The squared Fréchet (Wasserstein-2) distance of two Gaussians: ‖μ₁−μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½.

    With Σ = AAᵀ for each, Σ₁Σ₂ has the eigenvalues of MMᵀ, M = A₁ᵀA₂, which is symmetric: the trace is the sum of their roots. Found by
    ``eigvalsh``, several times quicker than ``sqrtm``, and never complex. Covariances may be singular: those of few images are, and
    the fewer the quicker. Rounding is taken for 0: what is left of Σ beyond D·2⁻⁵² of its largest entry, negative eigenvalues of MMᵀ,
    and a distance that comes out below 0.
    Raises ``ValueError`` for shapes that do not fit, numbers that are not finite, and matrices that are no covariances.
    Sources: Dowson and Landau 1982; Heusel and others 2017, section 3.
    """
    (m_1, s_1), (m_2, s_2) = _gaussian(1, mean_1, cov_1), _gaussian(2, mean_2, cov_2)
    if m_1.shape != m_2.shape:
        raise ValueError(f"both must have as many features, got {len(m_1)} and {len(m_2)}: take the same network for both")
    m = _root("cov_1", s_1).T @ _root("cov_2", s_2)
    if m.shape[0] > m.shape[1]:
        m = m.T   # so that MMᵀ is the smaller one, and regular
    roots = torch.linalg.eigvalsh(m @ m.T).clamp(min=0).sqrt()
    return max(0.0, float((m_1 - m_2).square().sum() + s_1.trace() + s_2.trace() - 2 * roots.sum()))


def kernel_distance(features_1: Tensor | np.ndarray, features_2: Tensor | np.ndarray) -> float:
    """The kernel distance: the squared maximum mean discrepancy of features (N, D) and (M, D) with the kernel (x·y/D + 1)³.

    Unbiased, and taken over all pairs: the mean of k(x, x′) over x ≠ x′, plus that of k(y, y′), minus twice that of k(x, y). Its mean is 0
    for two samples of one distribution, at every size, so it can come out negative. With Inception's features it is the KID.
    Raises ``ValueError`` as ``feature_statistics`` does, and for features of different numbers. Source: Bińkowski and others 2018.
    """
    x, y = _samples("features_1", features_1), _samples("features_2", features_2)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both must have as many features, got {x.shape[1]} and {y.shape[1]}: take the same network for both")
    n, m = len(x), len(y)
    within = [(_kernel_sum(z, z) - _kernel(z.square().sum(1), z.shape[1]).sum()) / (k * (k - 1)) for z, k in ((x, n), (y, m))]
    return float(within[0] + within[1] - 2 * _kernel_sum(x, y) / (n * m))


class FeatureNet(nn.Module):
    """A small convolutional classifier whose last hidden layer serves as features.

    ``channels``, ``image_size``: of its square images, which it takes as float (B, C, S, S) in [−1, 1]. Strided convolutions halve
    the side until it is at most 4, and double the channels up to 128. ``forward`` gives logits (B, classes), ``features`` (B, 64), of
    mean 0 and variance 1 in each image: so the scale of distances is the same however long the training and however large the network.
    Raises ``ValueError`` for images of another shape.
    """

    def __init__(self, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        self.shape = (channels, image_size, image_size)
        sides = [image_size]
        while sides[-1] > 4:
            sides.append((sides[-1] + 1) // 2)
        widths = [max(8, _WIDEST >> halvings) for halvings in reversed(range(len(sides)))]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU()]
        hidden = nn.Linear(widths[-1] * sides[-1] ** 2, _FEATURES)
        self.body = nn.Sequential(*layers, nn.Flatten(), hidden, nn.LayerNorm(_FEATURES, elementwise_affine=False))
        self.head = nn.Linear(_FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] to (B, 64). Raises ``ValueError`` for another shape."""
        if images.shape[1:] != self.shape:
            raise ValueError(f"images must be (B, {', '.join(map(str, self.shape))}), as in its training; got {tuple(images.shape)}")
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] to logits (B, classes). Raises ``ValueError`` for another shape."""
        return self.head(self.features(images))


def train_features(
    images: Tensor, labels: Tensor | None = None, *, epochs: int = 10, generator: torch.Generator, batch_size: int = 64
) -> FeatureNet:
    """A ``FeatureNet`` trained to classify ``images`` (N, C, S, S), uint8 or float in [−1, 1], on the device where they are; in eval mode.

    ``labels``: (N,) int64 in 0 … K−1. Without labels, as for images of one class, it learns by how many quarters an image was
    turned, which takes knowing what is where in it. ``generator``: a CPU generator; makes the first weights, the batches and the turns.
    Adam, with a learning rate that rises and falls over the run. Raises ``ValueError`` for other shapes, types or ranges.
    Source of the turns: Gidaris, Singh and Komodakis 2018.
    """
    images = _in_range("images", images)
    if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point() or labels.min() < 0):
        raise ValueError(f"labels must be {len(images)} integers from 0, one per image; got {labels.dtype} {tuple(labels.shape)}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    with torch.random.fork_rng(devices=[]):   # the first weights are drawn again below, and torch's own generator stays as it was
        net = FeatureNet(images.shape[1], images.shape[2], 4 if labels is None else int(labels.max()) + 1)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    net.to(images.device)
    steps = epochs * math.ceil(len(images) / batch_size)
    optimizer = torch.optim.Adam(net.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in progress(range(epochs), "train the features"):
        for chosen in torch.randperm(len(images), generator=generator).split(batch_size):
            chosen = chosen.to(images.device)
            batch, targets = _turned(images[chosen], generator) if labels is None else (images[chosen], labels[chosen])
            optimizer.zero_grad()
            F.cross_entropy(net(batch), targets).backward()
            optimizer.step()
            rate.step()
    return net.eval()


def inception_features(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Inception's features (N, 2048), float32 on the CPU, of images (N, 3, S, S), uint8 or float in [−1, 1]: those of the FID.

    Through clean-fid: rounded to whole grey values as a saved PNG is, resized to 299×299 by Pillow's bicubic filter (antialiased,
    not rounded again). Its weights, 96 MB, are kept below the data root; their digest is checked.
    Raises ``DataError`` where they cannot be downloaded or are damaged, ``ValueError`` for other images. Source: Parmar and others 2022.
    """
    images = _in_range("images", images)
    if images.shape[1] != 3:
        raise ValueError(f"Inception takes images with 3 channels, got {images.shape[1]}")
    net, resize = _inception(data_root() / _WEIGHTS).to(device), build_resizer("clean")
    pixels = to_pixels(images).permute(0, 2, 3, 1).cpu().numpy()
    found = []
    with torch.no_grad():
        for first in progress(range(0, len(pixels), 32), "Inception"):
            large = np.stack([resize(image) for image in pixels[first : first + 32]])
            found.append(net(torch.from_numpy(large).permute(0, 3, 1, 2).to(device)).cpu())
    return torch.cat(found)


def compare(real: Tensor, generated: Tensor, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """How far ``generated`` images are from ``real`` ones, and how far real ones are from each other.

    Both (N, C, S, S), uint8 or float in [−1, 1]. ``features`` maps a batch of float images to (B, D): the ``features`` of a
    ``FeatureNet``, or ``inception_features``, with which ``"frechet"`` is the FID and ``"kernel"`` the KID. Returns:

    * ``n_real``, ``n_generated``; ``frechet`` and ``kernel``, the two distances;
    * ``floor_frechet``, ``floor_kernel``: the same between ``n_floor`` real images and the other real ones, the mean of eight random
      splits (one split may give twice another's distance). ``n_floor`` is ``n_generated``, or half of the real ones where that is
      less: so it is about what a perfect generator would reach.

    Raises ``ValueError`` for fewer than four real images or two generated ones, and other shapes or ranges.
    """
    real, generated = _in_range("real", real), _in_range("generated", generated)
    if len(real) < 4 or len(generated) < 2:
        raise ValueError(f"four real images and two generated ones are the least, got {len(real)} and {len(generated)}")
    with torch.no_grad():
        x, y = (torch.cat([features(batch).cpu() for batch in images.split(_BATCH)]) for images in (real, generated))
    n_floor = min(len(y), len(x) // 2)
    draws = torch.Generator().manual_seed(0)
    splits = [x[torch.randperm(len(x), generator=draws)].split([n_floor, len(x) - n_floor]) for _ in range(_SPLITS)]
    floors = [_distances(rest, part) for part, rest in splits]
    floor = {f"floor_{name}": math.fsum(found[name] for found in floors) / _SPLITS for name in floors[0]}
    return {"n_real": len(x), "n_generated": len(y), "n_floor": n_floor, **_distances(x, y), **floor}


def _distances(a: Tensor, b: Tensor) -> dict[str, float]:
    return {"frechet": frechet_distance(*feature_statistics(a), *feature_statistics(b)), "kernel": kernel_distance(a, b)}


def _samples(name: str, features: Tensor | np.ndarray) -> Tensor:
    x = _float64(name, features)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"{name} must have shape (N, D), at least two rows, got {tuple(x.shape)}")
    return x


def _gaussian(which: int, mean: ArrayLike | Tensor, cov: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    m, s = _float64(f"mean_{which}", mean), _float64(f"cov_{which}", cov)
    if m.ndim != 1 or s.shape != (len(m), len(m)):
        raise ValueError(f"mean_{which} and cov_{which} must have shapes (D,) and (D, D), got {tuple(m.shape)} and {tuple(s.shape)}")
    if not torch.allclose(s, s.T, rtol=1e-5, atol=1e-8 * float(s.abs().max())):
        raise ValueError(f"cov_{which} is no covariance: it is not symmetric")
    return m, s


def _float64(name: str, values: ArrayLike | Tensor) -> Tensor:
    x = torch.as_tensor(values).detach().to("cpu", torch.float64)   # the CPU: Apple's GPUs have no float64
    if not x.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite: has the network diverged?")
    return x


def _root(name: str, cov: Tensor) -> Tensor:
    """A (D, rank) with AAᵀ = cov: Cholesky's with pivots, which ends where only rounding is left; where more is left, from eigenvectors."""
    rounding = len(cov) * 2.0**-52
    packed, pivots, rank, _ = dpstrf(cov.numpy(), tol=rounding * float(cov.diagonal().max()), lower=1)
    root = torch.zeros(len(cov), rank, dtype=torch.float64)
    root[torch.from_numpy(pivots).long() - 1] = torch.from_numpy(packed)[:, :rank].tril()   # LAPACK counts from 1
    if rank == len(cov) or (cov - root @ root.T).abs().max() <= rounding * cov.diagonal().max():
        return root
    values, vectors = torch.linalg.eigh(cov)
    if values[0] < -1e-6 * values[-1].abs():
        raise ValueError(f"{name} is no covariance: it has the eigenvalue {float(values[0]):g}")
    kept = values > rounding * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def _kernel(products: Tensor, dimension: int) -> Tensor:
    return (products / dimension + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum of k(x, y) over all pairs, without holding them all at once."""
    return torch.stack([_kernel(rows @ y.T, x.shape[1]).sum() for rows in x.split(1024)]).sum()


def _in_range(name: str, images: Tensor) -> Tensor:
    """Images as float32 in [−1, 1]."""
    if images.ndim != 4 or images.shape[2] != images.shape[3] or not len(images):
        raise ValueError(f"{name} must have shape (N, C, S, S), got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return to_signed(images)
    if not images.is_floating_point() or not images.abs().max() <= 1:
        raise ValueError(f"{name} must be uint8, or float in -1 … 1, got {images.dtype} in {images.min():g} … {images.max():g}")
    return images.float()


def _turned(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image (B, C, S, S) turned by 0 to 3 quarters, and by how many."""
    turns = torch.randint(4, (len(images),), generator=generator)
    turned = [image.rot90(turn, (1, 2)) for image, turn in zip(images, turns.tolist(), strict=True)]
    return torch.stack(turned), turns.to(images.device)


@cache
def _inception(weights: Path) -> InceptionV3W:
    if not weights.exists():
        _download(weights)
    if (digest := hashlib.sha256(weights.read_bytes()).hexdigest()) != _SHA256:
        raise DataError(f"{weights} is not Inception's: its digest is {digest}, not {_SHA256}. Remove it to have it downloaded anew")
    return InceptionV3W(str(weights.parent), download=False).eval()


def _download(weights: Path) -> None:
    """To a folder aside first: clean-fid's own download leaves half a file behind when it is interrupted, and then uses it."""
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{_WEIGHTS}.aside-", dir=weights.parent) as aside:
            with urllib.request.urlopen(inception_url, timeout=60) as response, open(Path(aside, _WEIGHTS), "wb") as file:
                shutil.copyfileobj(response, file)   # a connection that is cut short looks like the end
            if (digest := hashlib.sha256(Path(aside, _WEIGHTS).read_bytes()).hexdigest()) != _SHA256:
                raise OSError(f"what arrived is cut short or another file: its digest is {digest}, not {_SHA256}")
            Path(aside, _WEIGHTS).replace(weights)
    except (OSError, HTTPException) as error:   # URLError is an OSError, and so are a full disk and a time-out
        raise DataError(
            f"Inception's weights could not be had from {inception_url}: {error}. Put that file at {weights}, or do without the FID: "
            "compare by the features of train_features, which needs no network"
        ) from error
