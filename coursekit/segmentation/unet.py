"""The U-Net: an encoder that halves the image four times, a decoder that doubles it back, and a skip at each size."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 5   # image sizes from full to 1/16


def convolutions(in_channels: int, middle: int, out_channels: int) -> nn.Sequential:
    """Two 3×3 convolutions that keep the size, each followed by batch norm (whose shift replaces the bias) and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise((in_channels, middle, out_channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Logits (B, classes, H, W) for images (B, in_channels, H, W) of any size from 16 pixels a side.

    Level l works at 1/2^l of the size with ``base_channels``·2^l channels, l = 0 … 4. Going up, a 2×2 transposed convolution
    halves the channels; with ``bilinear`` an interpolation without weights stands there, and the convolutions do the halving.
    An odd side is rounded down on the way down; on the way up each map takes the size of the skip that it meets.
    ``skips=False`` is the fair ablation: the decoder reads zeros in place of the encoder's maps, so that layers, parameters
    and cost stay what they were, and only the information is missing.
    Parameters of ``UNet(3, 1)``: 31,037,633; bilinear 17,262,977.
    Raises ``ValueError`` for a count below 1, an odd ``base_channels`` with ``bilinear``, and for wrong or too small images.
    In train mode batch norm needs two values a channel: one single image must have a side of 32 or more.
    Sources: Ronneberger, Fischer and Brox 2015, figure 1, with padding and batch norm added; Rice, slides; Basel, problem
    set 6, exercise 5.3.
    """

    def __init__(self, in_channels: int, classes: int, base_channels: int = 64, bilinear: bool = False, skips: bool = True) -> None:
        super().__init__()
        for name, count in (("in_channels", in_channels), ("classes", classes), ("base_channels", base_channels)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {count!r}")
        if bilinear and base_channels % 2:
            raise ValueError(f"base_channels must be even where bilinear upsampling leaves the halving to the decoder, got {base_channels}")
        self.in_channels, self.bilinear, self.skips = in_channels, bilinear, skips
        widths = [base_channels * 2**level for level in range(LEVELS)]
        halved = 2 if bilinear else 1   # interpolation keeps the channels, so the stage below must have halved them already
        outputs = [widths[0], *(width // halved for width in widths[1:])]   # of the decoder's stages; the lowest is the encoder's last
        self.encoder = nn.ModuleList(convolutions(before, after, after) for before, after in pairwise([in_channels, *widths[:-1]]))
        self.encoder.append(convolutions(widths[-2], outputs[-1], outputs[-1]))
        if not bilinear:
            self.upsampling = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.decoder = nn.ModuleList(convolutions(2 * width, width, out) for width, out in zip(widths[:-1], outputs[:-1], strict=True))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to logits (B, classes, H, W). Raises ``ValueError`` for another shape."""
        self._check(x)
        maps = []
        for level, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if level else x)
            maps.append(x)
        for level in reversed(range(LEVELS - 1)):
            skip = maps[level]
            x = self._enlarge(x, level, skip.shape[-2:])
            x = self.decoder[level](torch.cat([skip if self.skips else torch.zeros_like(skip), x], dim=1))
        return self.head(x)

    def _enlarge(self, x: Tensor, level: int, size: torch.Size) -> Tensor:
        if self.bilinear:
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.upsampling[level](x, output_size=size)   # an odd side gets one more row, which holds the bias alone

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        smallest = 2 ** (LEVELS - 1)
        if min(x.shape[-2:]) < smallest:
            raise ValueError(f"x must have sides of at least {smallest} pixels, got {tuple(x.shape)}; enlarge the images")
