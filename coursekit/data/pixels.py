"""Whole grey values 0 … 255 and the scale that the networks see, [−1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 pixels 0 … 255 as float32 in [−1, 1], any shape. Raises ``ValueError`` for another type."""
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, 0 … 255, got {pixels.dtype}")
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """Images in [−1, 1] as uint8 pixels: rounded to the nearest, and what lies outside put at the end it passed."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
