"""Notebook 01: what a right answer to each exercise must do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coursekit import exercises
from coursekit.checks import check_close, check_equal, check_true
from coursekit.patchwise import PatchwiseMLP, as_convnet, extract_patches, linear_as_convolution, receptive_field


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _verify_patches(function: Callable[..., Any]) -> None:
    for shape, k in (((1, 1, 3, 3), 3), ((2, 1, 5, 8), 2), ((3, 2, 7, 4), 3), ((1, 3, 4, 6), 1)):
        found = function(_images(*shape), k)
        check_true("a tensor", isinstance(found, Tensor), hint=f"return a tensor; this is {type(found).__name__}")
        hint = "a patch is x[i:i+k, j:j+k] (the end is left out), i runs over H−k+1 rows, and j moves fastest"
        check_close(f"patches of {shape}, k={k}", found, extract_patches(_images(*shape), k), hint=hint)


def _verify_linear(function: Callable[..., Any]) -> None:
    for channels, k, width in ((1, 3, 4), (3, 2, 5), (2, 1, 3)):
        layer, x = nn.Linear(channels * k * k, width).double(), _images(2, channels, 6, 9)
        right, convolution = linear_as_convolution(layer, channels, k)(x), function(layer, channels, k)
        check_true("an nn.Conv2d", isinstance(convolution, nn.Conv2d), hint=f"return an nn.Conv2d; this is {type(convolution).__name__}")
        check_equal("type of the weight", convolution.weight.dtype, layer.weight.dtype, hint="give Conv2d the layer's dtype")
        hint = "reshape the weight to (D, C, k, k) as it stands, row by row, without transposing or flipping; copy the bias too"
        check_close(f"{channels} channels, k={k}", convolution(x), right, hint=hint)


def _verify_convnet(function: Callable[..., Any]) -> None:
    for channels in ((1, 4), (2, 5, 3), (3, 4, 4, 4, 2)):
        mlp, x = PatchwiseMLP(3, channels, nn.Tanh).double(), _images(2, channels[0], 5, 8)
        net = function(mlp)
        hint = "σ stands between the layers: L−1 times, none at the end"
        check_equal("number of modules", len(list(net)), 2 * len(channels) - 3, hint=hint)
        check_close(f"{len(channels) - 1} layers", net(x), as_convnet(mlp)(x), hint="σ comes before the 1×1 convolution of its layer")


def _sometimes_dead(seed: int) -> nn.Module:
    """A 3×3 convolution and a ReLU that is off at a given pixel of about every fourth image."""
    convolution = nn.Conv2d(2, 1, 3)
    weight = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        convolution.weight.copy_(weight / weight.norm())
        nn.init.constant_(convolution.bias, 0.67)   # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.ReLU())


def _verify_receptive_field(function: Callable[..., Any]) -> None:
    cases = {"5×5": nn.Conv2d(2, 3, 5), "3×2": nn.Conv2d(2, 3, (3, 2)), "two 3×3": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 1, 3))}
    for name, network in cases.items():
        hint = "take the gradient of ONE output pixel with respect to the input, and the box of its nonzero entries: last − first + 1"
        check_equal(name, tuple(function(network, 2, 15)), receptive_field(network, 2, 15), hint=hint)
    for seed in range(12):
        hint = "a ReLU that is off for one image hides pixels: feed several random images and add up their gradients"
        try:
            found = tuple(function(_sometimes_dead(seed), 2, 7))
        except (IndexError, RuntimeError, ValueError):   # what the box of no pixels at all ends in
            found = ()
        check_equal("3×3 and a ReLU", found, (3, 3), hint=hint)


EXERCISES = {
    "1.1": exercises.Exercise(extract_patches, _verify_patches),
    "2.1": exercises.Exercise(linear_as_convolution, _verify_linear),
    "4.1": exercises.Exercise(as_convnet, _verify_convnet),
    "4.2": exercises.Exercise(receptive_field, _verify_receptive_field),
}

check = partial(exercises.check, EXERCISES)
