"""Random changes that leave the answer known: a whole batch at once, image and mask in step, on the device that holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)  # the luma of ITU-R BT.601; torchvision rounds the first to .2989


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Draws one change of place and one of colour per image, uniformly within these ranges; ``Augment()`` draws from moderate ones.

    ``flips``: mirror left and right with probability ½. ``quarter_turns``: turn by 0, 90, 180 or 270°; together with the flip, each of
    the square's eight symmetries is as likely. ``degrees``: then turn by up to so many either way. ``scale``: enlarge by up to this
    factor or shrink by it, uniformly in the logarithm. ``shift``: move by up to this share of the side, in x and y. ``brightness``,
    ``contrast``, ``saturation``: multiply by 1 ± this, in torchvision's definitions and in this order.
    What comes into view from outside is reflected, image and mask alike: black there would tell the network what was turned.
    Raises ``ValueError`` for values outside of their ranges.
    """

    flips: bool = True
    quarter_turns: bool = True
    degrees: float = 15
    scale: float = 1.2
    shift: float = 0.1
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        ranges = {"degrees": (0, 180), "scale": (1, 4), "shift": (0, 1), "brightness": (0, 1), "contrast": (0, 1), "saturation": (0, 1)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in {low} .. {high}, got {getattr(self, name)!r}")

    def __call__(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """New images (B, 3, S, S) in [0, 1] and masks (B, 1, S, S) of zeros and ones, from such ones, with a CPU ``generator``.

        One bilinear interpolation moves image and mask; a mask pixel is polyp where at least half of it is.
        Raises ``ValueError`` for other shapes.
        """
        square = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
        if not square or masks.shape != (len(images), 1, *images.shape[2:]):
            raise ValueError(f"images must be (B, 3, S, S) and masks (B, 1, S, S), got {tuple(images.shape)} and {tuple(masks.shape)}")
        count, _, height, width = images.shape
        whole = torch.cat([images, masks], 1)
        inverse = self.places(count, generator).to(whole)
        grid = F.affine_grid(inverse, [count, 4, height, width], align_corners=False)
        moved = F.grid_sample(whole, grid, padding_mode="reflection", align_corners=False)
        factors = 1 + torch.tensor([self.brightness, self.contrast, self.saturation]) * _symmetric(count, 3, generator)
        return colour(moved[:, :3], *factors.to(whole).T), (moved[:, 3:] >= 0.5).to(masks.dtype)

    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 2, 3): for each image, the matrix that leads from a new pixel to the old one; x, y in −1 … 1."""
        turns = torch.randint(4 if self.quarter_turns else 1, (count,), generator=generator)
        mirror = 1 - 2 * torch.randint(2 if self.flips else 1, (count,), generator=generator)
        angle, log_scale, shift_x, shift_y = _symmetric(count, 4, generator).T
        angle = math.radians(self.degrees) * angle + math.pi / 2 * turns
        cos, sin = (f(angle) * self.scale**-log_scale for f in (torch.cos, torch.sin))
        rows = [cos * mirror, -sin * mirror, 2 * self.shift * shift_x, sin, cos, 2 * self.shift * shift_y]
        return torch.stack(rows, 1).view(count, 2, 3)


def colour(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change ``images`` (B, 3, H, W) in [0, 1] by factors (B,): times brightness, then spread about the mean grey, then about each
    pixel's grey. Equal to torchvision's ``adjust_brightness``, ``adjust_contrast`` and ``adjust_saturation`` in this order, up to
    torchvision's rounding of .299 to .2989, where these clip nothing: here only the result is clipped to [0, 1].
    """
    weights = torch.tensor(_GREY, dtype=images.dtype, device=images.device)
    mean = images.mean((2, 3)) @ weights
    # All three in one: b·c·(s·x + (1−s)·grey(x)) + (1−c)·b·mean, a matrix for each image
    mix = saturation[:, None, None] * torch.eye(3).to(images) + (1 - saturation)[:, None, None] * weights.expand(3, 3)
    offset = ((1 - contrast) * brightness * mean)[:, None, None]
    mixed = torch.baddbmm(offset, (brightness * contrast)[:, None, None] * mix, images.flatten(2))
    return mixed.view_as(images).clamp_(0, 1)


def _symmetric(count: int, numbers: int, generator: torch.Generator) -> Tensor:
    """(count, numbers), uniform in −1 … 1."""
    return 2 * torch.rand(count, numbers, generator=generator) - 1
