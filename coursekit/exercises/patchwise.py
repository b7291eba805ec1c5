"""Notebook 01: what a right answer to each exercise must do, and what the usual wrong ones give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coursekit import exercises
from coursekit.checks import CheckFailed, check_equal, check_true
from coursekit.exercises.judging import ask, compare, randn, recognise, several
from coursekit.patchwise import PatchwiseMLP, as_convnet, extract_patches, linear_as_convolution, receptive_field


def _verify_patches(function: Callable[..., Any]) -> None:
    for shape, k in (((2, 1, 5, 8), 2), ((1, 1, 3, 3), 3), ((3, 2, 7, 4), 3), ((1, 3, 4, 6), 1)):
        x = randn(*shape)
        right, across = extract_patches(x, k), extract_patches(x.mT, k)
        rows, columns = shape[2] - k + 1, shape[3] - k + 1
        square = right.unflatten(2, (shape[1], k, k))
        grid = right.unflatten(1, (rows, columns))
        mistakes = {
            "the end of a slice is left out: i : i+k is k rows, i : i+k−1 one fewer": square[..., :-1, :-1].flatten(2),
            "j moves fastest: i is the outer loop": grid.transpose(1, 2).flatten(1, 2),
            "inside a patch too, row after row: j moves fastest": square.mT.flatten(2),
            "rows and columns are exchanged, of the patches and inside them: i counts rows, and j moves fastest": across,
            "channels first: a patch holds the k×k square of each channel, one channel after the other": square.movedim(2, 4).flatten(2),
            "the last row and column of patches are missing: i runs up to H−k, so range(H−k+1)": grid[:, :-1, :-1].flatten(1, 2),
            "the patches are left flat: (B, patches, C·k·k)": square,
            "F.unfold gives (B, C·k·k, patches): transpose the last two": right.mT,
            "the batch comes first: stack the patches along dim=1": right.transpose(0, 1),
        }
        hint = "a patch is x[:, :, i:i+k, j:j+k] (the end is left out), i runs over H−k+1 rows, and j moves fastest"
        compare(f"patches of {shape}, k={k}", function, (x, k), right, hint, mistakes)


def _verify_linear(function: Callable[..., Any]) -> None:
    for channels, k, width in ((1, 3, 4), (3, 2, 5), (2, 1, 3)):
        layer, x = nn.Linear(channels * k * k, width).double(), randn(2, channels, 6, 9)
        convolution = ask(f"channels: {channels}, k={k}", function, layer, channels, k)
        check_true("an nn.Conv2d", isinstance(convolution, nn.Conv2d), hint=f"return an nn.Conv2d; this is {type(convolution).__name__}")
        check_equal("type of the weight", convolution.weight.dtype, layer.weight.dtype, hint="give Conv2d the layer's dtype")
        kernel, bias = linear_as_convolution(layer, channels, k).weight.detach(), layer.bias.detach()
        last = layer.weight.detach().reshape(width, k, k, channels).permute(0, 3, 1, 2)
        mistakes = {
            "the kernel is transposed: reshape the weight as it stands, row by row": F.conv2d(x, kernel.mT, bias),
            "the kernel is flipped: nn.Conv2d computes a cross-correlation, so no flip": F.conv2d(x, kernel.flip(2, 3), bias),
            "channels come first in a patch: reshape to (D, C, k, k)": F.conv2d(x, last, bias),
            "copy the bias too: without it every output is off by b": F.conv2d(x, kernel),
            "no padding: patches lie inside the image": F.conv2d(x, kernel, bias, padding=k // 2),
            "a patch at every pixel: stride 1": F.conv2d(x, kernel, bias, stride=k),
        }
        hint = "reshape the weight to (D, C, k, k) as it stands, row by row, without transposing or flipping; copy the bias too"
        right = F.conv2d(x, kernel, bias)
        compare(f"channels: {channels}, k={k}", convolution, (x,), right, hint, mistakes)


def _wrong_nets(mlp: PatchwiseMLP, x: Tensor) -> dict[str, Tensor]:
    """What the usual mistakes give in the place of ``as_convnet(mlp)(x)``."""
    modules = list(as_convnet(mlp))
    layers, gaps = modules[::2], modules[1::2]

    def run(*modules: nn.Module) -> Tensor:
        return nn.Sequential(*modules)(x).detach()

    def swapped() -> Tensor:
        z = layers[0](x)
        for activation, layer in zip(gaps, layers[1:], strict=True):
            z = activation(layer(z))
        return z.detach()

    return {
        "no σ after the last layer: σ stands between the layers, L−1 times": run(*modules, nn.Tanh()),
        "no σ before the first layer: σ stands between the layers, L−1 times": run(nn.Tanh(), *modules),
        "σ comes before the 1×1 convolution of its layer, not after": swapped(),
        "σ is missing between the layers: convolutions alone are one linear map": run(*layers),
        "the last layer is missing": run(*modules[:-2]),
    }


def _verify_convnet(function: Callable[..., Any]) -> None:
    for k, channels in ((3, (1, 4)), (3, (2, 5, 3)), (2, (3, 4, 4, 4, 2))):
        mlp, x = PatchwiseMLP(k, channels, nn.Tanh).double(), randn(2, channels[0], 5, 8)
        claim, layers = f"k={k}, {len(channels) - 1} layers", len(channels) - 1
        net = ask(claim, function, mlp)
        check_true("an nn.Sequential", isinstance(net, nn.Sequential), hint=f"return an nn.Sequential; this is {type(net).__name__}")
        hint = "one convolution for each layer: k×k for the first, 1×1 for all others"
        sizes = [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)]
        check_equal("sizes of the convolutions", sizes, [(k, k), *[(1, 1)] * (layers - 1)], hint=hint)
        hint = "the modules in this order: convolution, σ, convolution, …, and none at the end"
        compare(claim, net, (x,), as_convnet(mlp)(x).detach(), hint, _wrong_nets(mlp, x))


def _sometimes_dead(seed: int) -> nn.Module:
    """A 3×3 convolution and a ReLU that is off at a given pixel of about every fifth image."""
    convolution = nn.Conv2d(2, 1, 3)
    weight = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        convolution.weight.copy_(weight / weight.norm())
        nn.init.constant_(convolution.bias, 0.84)   # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.ReLU())


def _verify_receptive_field(function: Callable[..., Any]) -> None:
    cases = {"5×5": nn.Conv2d(2, 3, 5), "3×2": nn.Conv2d(2, 3, (3, 2)), "two 3×3": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 1, 3))}
    for name, network in cases.items():
        height, width = receptive_field(network, 2, 15)
        mistakes = {
            "from the first to the last there is one more than their difference: last − first + 1": (height - 1, width - 1),
            "one output pixel, the one in the middle: the gradient of the sum of all sees the whole image": (15, 15),
            "(height, width): rows are the axis before the last": (width, height),
        }
        hint = "take the gradient of ONE output pixel with respect to the input, and the box of its nonzero entries: last − first + 1"
        wrong = {text: torch.tensor(pair) for text, pair in mistakes.items()}
        found = several(name, ask(name, function, network, 2, 15), 2, "return two numbers, (height, width)")
        recognise(name, found, torch.tensor([height, width]), hint, wrong)
    for seed in range(40):   # one image gets through with a chance of 0.8⁴⁰, eight fail with one of 40 · 0.2⁸: 1 in 10,000 both
        hint = "a ReLU that is off for one image hides pixels: feed several random images and add up their gradients"
        try:
            found = several(hint, ask(hint, function, _sometimes_dead(seed), 2, 7), 2, hint)
        except CheckFailed:   # what the box of no pixels at all ends in
            found = (0, 0)
        recognise("3×3 and a ReLU", found, torch.tensor([3, 3]), hint)


EXERCISES = {
    "1.1": exercises.Exercise(extract_patches, _verify_patches),
    "2.1": exercises.Exercise(linear_as_convolution, _verify_linear),
    "4.1": exercises.Exercise(as_convnet, _verify_convnet),
    "4.2": exercises.Exercise(receptive_field, _verify_receptive_field),
}

check = partial(exercises.check, EXERCISES)
