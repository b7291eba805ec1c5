"""Experiments for the errata of notebook 01; their rows stand in ``errata.py``.

Truths come from reading patches pixel by pixel and from dot products one patch at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import Tensor, nn

Number = float | Tensor
Outcome = tuple[Number, Number, Number]


def _image_and_row() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 12, generator=generator, dtype=torch.float64), torch.randn(9, generator=generator, dtype=torch.float64)


def _by_hand(image: Tensor, row: Tensor) -> Tensor:
    """The shared linear layer as its definition says: one dot product a patch, patches read row by row."""
    return torch.stack([torch.stack([image[i : i + 3, j : j + 3].flatten() @ row for j in range(10)]) for i in range(7)])


def patch_slices() -> Outcome:
    image, _ = _image_and_row()
    truth = torch.stack([torch.stack([image[2 + a, 3 + b] for b in range(3)]) for a in range(3)])
    return truth, image[2 : 2 + 3, 3 : 3 + 3], image[2 : 2 + 3 - 1, 3 : 3 + 3 - 1]


def flipped_kernel() -> Outcome:
    image, row = _image_and_row()
    square = row.reshape(3, 3)
    flipping = torch.tensor(convolve2d(image.numpy(), square.numpy(), mode="valid"))
    return _by_hand(image, row), F.conv2d(image[None, None], square[None, None])[0, 0], flipping


def order_of_pixels() -> Outcome:
    image, row = _image_and_row()
    patches = image.unfold(0, 3, 1).unfold(1, 3, 1)
    kernel = row.reshape(3, 3)[None, None]
    return F.conv2d(image[None, None], kernel)[0, 0], patches.flatten(2) @ row, patches.transpose(2, 3).flatten(2) @ row


def place_of_activation() -> Outcome:
    torch.manual_seed(0)
    first, second, x = nn.Linear(9, 5).double(), nn.Linear(5, 2).double(), _image_and_row()[0]
    truth = second(torch.relu(first(x[2:5, 3:6].flatten())))
    conv_1, conv_2 = first.weight.reshape(5, 1, 3, 3), second.weight[:, :, None, None]
    z = F.conv2d(x[None, None], conv_1, first.bias)
    right = F.conv2d(torch.relu(z), conv_2, second.bias)
    printed = torch.relu(F.conv2d(z, conv_2, second.bias))
    return truth.detach(), right[0, :, 2, 3].detach(), printed[0, :, 2, 3].detach()


def linear_as_conv() -> Outcome:
    torch.manual_seed(0)
    linear, x = nn.Linear(16, 5).double(), torch.randn(2, 16, dtype=torch.float64)
    conv = nn.Conv2d(16, 5, kernel_size=1).double()
    assert not hasattr(nn, "Conv2D") and linear != conv
    printed = conv(x[:, :, None, None]).flatten(1).detach()  # the nearest thing that runs: other weights
    conv.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    return linear(x).detach(), conv(x[:, :, None, None]).flatten(1).detach(), printed
