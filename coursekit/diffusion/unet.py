"""The network of notebook 05: a small U-Net that predicts the noise in x_t, built so that two CPU cores can train it.

Where the time goes in the usual design (two residual blocks and an attention at every size) is measured in the notebook. Here the work
stands where it is cheap: at full size there are only two thin convolutions, and the first halving keeps every number, for the ``dim``
channels of 2×2 pixels become 4·``dim`` channels of one. Skips are added, which halves the work of the convolution that reads them.
Attention comes last, where few pixels are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 8   # channels that are normalised together
HEADS = 4


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """(B, dim) float64: sin(ω_k t) for k = 0 … dim/2 − 1, then cos(ω_k t), with ω_k = 10000^(−2k/dim).

    ``t`` has shape (B,). Raises ``ValueError`` for another shape, or a ``dim`` that is odd or below 2.
    Source: Vaswani and others 2017, section 3.5; used for t by Ho, Jain and Abbeel 2020, appendix B.
    """
    if t.ndim != 1:
        raise ValueError(f"t must have shape (B,), got {tuple(t.shape)}")
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and at least 2, got {dim}")
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, dim, 2, dtype=torch.float64, device=t.device) / dim)
    angles = t.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """x + two 3×3 convolutions, each after group norm and SiLU; the time scales and shifts the second norm's output.

    Maps (B, C, H, W) and an embedding (B, time_dim) to (B, C, H, W).
    Source: Dhariwal and Nichol 2021, section 3 (adaptive group normalisation).
    """

    def __init__(self, channels: int, time_dim: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(channels // GROUP, channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_2 = nn.GroupNorm(channels // GROUP, channels, affine=False)   # its scale and shift come from t
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, H, W) and embedding (B, time_dim) to (B, C, H, W)."""
        scale, shift = self.time(embedding)[:, :, None, None].chunk(2, dim=1)
        z = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
        return x + self.conv_2(F.silu(torch.addcmul(shift, z, 1 + scale)))


class SelfAttention(nn.Module):
    """x + attention of every pixel to every pixel, with four heads: (B, C, H, W) to the same shape. Cost grows with (H·W)²."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // GROUP, channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        heads = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, HEADS, -1)).transpose(-1, -2)   # (B, 3, heads, H·W, C/heads)
        mixed = F.scaled_dot_product_attention(*heads.unbind(1))
        return x + self.out(mixed.transpose(-1, -2).reshape_as(x))


class DenoisingUNet(nn.Module):
    """The noise in x_t: maps x_t (B, channels, S, S) and times t (B,), integers, to (B, channels, S, S).

    Level l works at S/2^l pixels a side, l = 0 … ``len(dim_mults)`` − 1, with ``dim``·``dim_mults[l]`` channels, but from level 1 on
    with 4·``dim`` at least. Level 0 is one convolution in and one out; each level below has one residual block on the way down
    and one on the way up, and the lowest has two more with attention between them. The convolution out reads the decoder's map beside
    the first one, each channel scaled by the time, with no norm on that way: where x_t is nearly all noise it can be handed through, and
    where there is little, the prediction (x_t − √ᾱ_t x̂_0)/√(1−ᾱ_t) is a small difference times a large number that t alone sets.
    It starts at zero: an untrained network predicts no noise, and its loss is E|ε| = 0.80 (L1) or E ε² = 1 (L2).
    Parameters of ``DenoisingUNet()``: 1,762,819.
    Raises ``ValueError`` for a ``dim`` that is no multiple of 8, empty or non-positive ``dim_mults``, ``channels`` below 1, and images
    of another number of channels or with a side that does not halve to every level; ``TypeError`` where t holds no integers.
    Sources: Ho, Jain and Abbeel 2020, appendix B; CMU, homework 2, chapter 5 (``unet_dim``, ``dim_mults``).
    """

    def __init__(self, dim: int = 16, dim_mults: Sequence[int] = (1, 2, 4, 8), channels: int = 3) -> None:
        super().__init__()
        if dim < GROUP or dim % GROUP:
            raise ValueError(f"dim must be a positive multiple of {GROUP}, got {dim}")
        if not dim_mults or any(not isinstance(mult, int) or mult < 1 for mult in dim_mults):
            raise ValueError(f"dim_mults must hold one integer ≥ 1 for each level, got {tuple(dim_mults)}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.dim, self.dim_mults, self.channels = dim, tuple(dim_mults), channels
        widths = [dim * (mult if level == 0 else max(4, mult)) for level, mult in enumerate(dim_mults)]
        time_dim = 4 * dim
        self.time = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim), nn.SiLU())
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.down = nn.ModuleList(ResidualBlock(b, time_dim) for b in widths[1:])
        self.middle = nn.ModuleList(ResidualBlock(widths[-1], time_dim) for _ in range(2))
        self.attention = SelfAttention(widths[-1])
        self.up = nn.ModuleList(ResidualBlock(b, time_dim) for b in widths[1:])
        self.enlarge = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.gain = nn.Linear(time_dim, 2 * widths[0])
        self.out = nn.Conv2d(2 * widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)   # type: ignore[arg-type]

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t (B, channels, S, S) at integer times t (B,), of the shape of x_t. Raises as the class says."""
        self._check(x_t, t)
        embedding = self.time(sinusoidal_embedding(t, 4 * self.dim).to(x_t))
        x = full_size = self.stem(x_t)
        skips = []
        for shrink, block in zip(self.shrink, self.down, strict=True):
            x = block(shrink(x), embedding)
            skips.append(x)
        x = self.middle[1](self.attention(self.middle[0](x, embedding)), embedding)
        for block, enlarge in zip(reversed(self.up), reversed(self.enlarge), strict=True):
            x = F.pixel_shuffle(enlarge(block(x + skips.pop(), embedding)), 2)
        return self.out(torch.cat([x, full_size], dim=1) * (1 + self.gain(embedding))[:, :, None, None])

    def _check(self, x_t: Tensor, t: Tensor) -> None:
        if x_t.ndim != 4 or x_t.shape[1] != self.channels:
            raise ValueError(f"x_t must have shape (B, {self.channels}, S, S), got {tuple(x_t.shape)}")
        smallest = 2 ** (len(self.dim_mults) - 1)
        if any(side == 0 or side % smallest for side in x_t.shape[-2:]):
            raise ValueError(f"the sides of x_t must be multiples of {smallest}, to be halved {len(self.dim_mults) - 1} times; "
                             f"got {tuple(x_t.shape)}: resize the images or give fewer dim_mults")   # fmt: skip
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"t must be an integer tensor of shape (B,), got {t.dtype}")
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"t must have shape ({len(x_t)},), one time for each image of x_t, got {tuple(t.shape)}")
