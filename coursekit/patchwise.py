"""Notebook 01: an MLP applied to every patch of an image, and the convnet that it is.

One handout writes a patch as ``x[i:i+k-1, j:j+k-1]``; with Python's half-open slices it is ``x[i:i+k, j:j+k]``.
Everywhere here "convolution" means what ``nn.Conv2d`` computes, a cross-correlation: the kernel is not flipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def extract_patches(x: Tensor, patch_size: int) -> Tensor:
    """All overlapping k×k patches of ``x`` (B, C, H, W), flattened, in row-major order of their top-left corners.

    Returns (B, (H−k+1)·(W−k+1), C·k·k). Each patch runs over channels, then rows, then columns, the order of a
    ``Conv2d`` weight. Raises ``ValueError`` where ``x`` is not four-dimensional or smaller than a patch.
    Source: Basel, problem set 6, exercise 1.
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}; add missing axes with x[None]")
    _check_fits(patch_size, *x.shape[-2:])
    return F.unfold(x, patch_size).transpose(1, 2)


class PatchwiseMLP(nn.Module):
    """One MLP, with shared weights, applied to every overlapping k×k patch of an image.

    ``channels`` is (in, hidden…, out): an L-layer MLP has L+1 entries, and the activation stands between the layers,
    not after the last. Maps (B, in, H, W) to (B, out, H−k+1, W−k+1).
    ``activation`` makes a pointwise module; it is called once per gap between layers.
    Raises ``ValueError`` for a patch size below 1, fewer than two channel counts or one below 1, and wrong inputs.
    Source: Basel, problem set 6, exercise 1.
    """

    def __init__(self, patch_size: int, channels: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size}")
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels must be (in, hidden…, out), each at least 1, got {tuple(channels)}")
        self.patch_size, self.channels = patch_size, tuple(channels)
        widths = [channels[0] * patch_size**2, *channels[1:]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activations = nn.ModuleList(activation() for _ in self.layers[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H−k+1, W−k+1). Raises ``ValueError`` for another shape and an image smaller than a patch."""
        if x.ndim == 4 and x.shape[1] != self.channels[0]:
            raise ValueError(f"x must have {self.channels[0]} channels, got {x.shape[1]} in shape {tuple(x.shape)}")
        z = self.layers[0](extract_patches(x, self.patch_size))
        for activation, layer in zip(self.activations, list(self.layers)[1:], strict=True):
            z = layer(activation(z))
        height, width = (side - self.patch_size + 1 for side in x.shape[-2:])
        return z.transpose(1, 2).unflatten(2, (height, width))


def as_convnet(mlp: PatchwiseMLP) -> nn.Sequential:
    """The convnet that computes what ``mlp`` computes: one k×k convolution, then 1×1 convolutions, σ between them.

    Weights are copied, not shared: the two can be trained apart. Type, device and train/eval mode are kept.
    """
    first, *rest = cast(Iterable[nn.Linear], mlp.layers)
    modules: list[nn.Module] = [linear_as_convolution(first, mlp.channels[0], mlp.patch_size)]
    for activation, layer in zip(mlp.activations, rest, strict=True):
        modules += [copy.deepcopy(activation), linear_as_convolution(layer, layer.in_features, 1)]
    return nn.Sequential(*modules).train(mlp.training)


def linear_as_convolution(layer: nn.Linear, in_channels: int, kernel_size: int) -> nn.Conv2d:
    """The convolution that applies ``layer`` to every patch: its weight (D, C·k·k) reshaped to (D, C, k, k).

    Entry ``l·k + m`` of a flattened patch meets entry ``[l, m]`` of the kernel, because both run row by row.
    Weights are copied; type and device are kept. With ``kernel_size=1`` it is the layer at every pixel.
    Raises ``ValueError`` where ``layer.in_features`` is not C·k·k. Sources: Basel, problem set 6, solutions 1.1 and 1.2.
    """
    if layer.in_features != in_channels * kernel_size**2:
        raise ValueError(f"the layer takes {layer.in_features} numbers; {in_channels}·{kernel_size}² are {in_channels * kernel_size**2}")
    convolution = nn.Conv2d(in_channels, layer.out_features, kernel_size, bias=layer.bias is not None).to(layer.weight)
    with torch.no_grad():
        convolution.weight.copy_(layer.weight.view_as(convolution.weight))
        if convolution.bias is not None:
            convolution.bias.copy_(layer.bias)
    return convolution


def receptive_field(network: nn.Module, in_channels: int, size: int) -> tuple[int, int]:
    """Height and width of the input region that one output pixel depends on, found by differentiating.

    Feeds eight random images of ``size``×``size`` pixels, so that a ReLU that is off for one is on for another,
    and returns the bounding box of the input pixels with a gradient at the middle output pixel. In eval mode, and
    then in the mode that it was in: in training batch norm averages over the whole image, and changes with it.
    Raises ``ValueError`` where no input pixel has one. Source: Basel, problem set 6, exercise 1 (extended).
    """
    x = torch.randn(8, in_channels, size, size, generator=torch.Generator().manual_seed(0))
    x = x.to(next(network.parameters(), x)).requires_grad_()   # the network's type and device, if it has parameters
    training = [module for module in network.modules() if module.training]
    try:
        y = network.eval()(x)
    finally:
        for module in training:
            module.training = True
    middle = y[:, :, y.shape[2] // 2, y.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(middle, x, allow_unused=True, materialize_grads=True)
    rows, columns = gradient.abs().sum((0, 1)).nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("no input pixel has a gradient at the middle output pixel: is the network constant?")
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def multiplications(channels: Sequence[int], patch_size: int, height: int, width: int) -> int:
    """Multiplications that either form needs for one image: (H−k+1)(W−k+1)·(C·k²·D₁ + D₁·D₂ + …).

    Raises ``ValueError`` where no patch fits into the image.
    """
    _check_fits(patch_size, height, width)
    widths = [channels[0] * patch_size**2, *channels[1:]]
    per_patch = sum(a * b for a, b in pairwise(widths))
    return (height - patch_size + 1) * (width - patch_size + 1) * per_patch


def _check_fits(patch_size: int, height: int, width: int) -> None:
    if patch_size < 1 or min(height, width) < patch_size:
        raise ValueError(f"no {patch_size}×{patch_size} patch fits into an image of {height}×{width} pixels")
