"""A vision transformer for masks: an image is cut into patches, each patch is a token, and every token looks at all others."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """(length, dim) float64: entry [p, 2i] is sin(p/10000^(2i/dim)) and [p, 2i+1] the cosine of the same angle.

    The rows of positions p and p+k differ by a rotation that depends on k alone.
    Raises ``ValueError`` for an odd ``dim``. Source: Vaswani and others 2017, section 3.5; Bologna, notes, 3.1.
    """
    if dim % 2:
        raise ValueError(f"dim must be even, since sines and cosines come in pairs; got {dim}")
    position = torch.arange(length, dtype=torch.float64)[:, None]
    angle = position / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class PatchEmbedding(nn.Module):
    """Cuts (B, C, H, W) into P×P patches side by side and maps each linearly: (B, H/P·W/P, dim), row by row.

    A convolution of stride P is that linear map: its kernels meet each patch once. Raises ``ValueError`` where P divides H or W not.
    """

    def __init__(self, in_channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H/P·W/P, dim)."""
        height, width = x.shape[-2:]
        if height % (P := self.project.stride[0]) or width % P:
            raise ValueError(f"height and width must be multiples of the patch size {P}, got {height}×{width}")
        return self.project(x).flatten(2).transpose(1, 2)


def unpatch(tokens: Tensor, patch_size: int, height: int) -> Tensor:
    """The pixels that tokens hold, put back in place: (B, h·w, C·P·P) to (B, C, h·P, w·P), with ``height`` h in patches.

    Undoes ``F.unfold(x, P, stride=P).transpose(1, 2)``: each token runs over channels, then rows, then columns.
    Raises ``ValueError`` where the tokens do not fill ``height`` rows.
    """
    if height < 1 or tokens.shape[1] % height:
        raise ValueError(f"height must divide the number of tokens, got {height} for {tokens.shape[1]}")
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, -1)), patch_size)


class MultiHeadAttention(nn.Module):
    """Self-attention with ``heads`` heads of dim/heads channels each: (B, N, dim) to the same shape.

    Each head computes softmax(QKᵀ/√d)V, fused, so that no (N, N) matrix is kept. Equals ``nn.MultiheadAttention``.
    Raises ``ValueError`` where ``heads`` does not divide ``dim``. Source: Bologna, notes, 3.1.1; Vaswani and others 2017.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same shape."""
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them, applied to each token alone: two 1×1 convolutions along the sequence."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class EncoderLayer(nn.Module):
    """Pre-norm: h = x + MHSA(LN(x)), then h + FFN(LN(h)). Queries, keys and values all see the normalised tokens.

    Equals ``nn.TransformerEncoderLayer`` with ``norm_first``, GELU and no dropout. (B, N, dim) to the same shape.
    Source: Bologna, notes, 3.1.3; Xiong and others 2020.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(dim), MultiHeadAttention(dim, heads)
        self.norm_2, self.feed_forward = nn.LayerNorm(dim), FeedForward(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same shape."""
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class DenseHead(nn.Module):
    """Full-size logits from tokens: each token gives P×P pixels of a few features, and a convolution blends their seams."""

    def __init__(self, dim: int, patch_size: int, classes: int, features: int = 16) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pixels = nn.Linear(dim, features * patch_size**2)
        self.blend = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.GELU(), nn.Conv2d(features, classes, 3, padding=1))

    def forward(self, tokens: Tensor, height: int) -> Tensor:
        """Tokens (B, h·w, dim), in h = ``height`` rows, to logits (B, classes, h·P, w·P)."""
        return self.blend(unpatch(self.pixels(tokens), self.patch_size, height))


class SegmentViT(nn.Module):
    """A vision transformer on square images (B, in_channels, image_size, image_size).

    ``head="dense"`` gives logits (B, classes, image_size, image_size); ``head="class"`` puts a learned class token before
    the patches and reads (B, classes) from it. ``positions``: learned, ``"sinusoidal"`` (fixed, row by row), or ``"none"``:
    a transformer without them cannot tell one order of the patches from another.
    Standardise the images first: nothing in here does it, whereas a U-Net's first batch norm does.
    Raises ``ValueError`` for images of another size, sizes that do not divide, counts below 1 and unknown names.
    Sources: Dosovitskiy and others 2021; Bologna, notes, 3.2; Basel, problem set 6, exercise 5.8.
    """

    def __init__(
        self, image_size: int, patch_size: int, dim: int, depth: int, heads: int,
        in_channels: int = 3, classes: int = 1, mlp_ratio: float = 4,
        positions: Literal["learned", "sinusoidal", "none"] = "learned", head: Literal["dense", "class"] = "dense",
    ) -> None:  # fmt: skip
        super().__init__()
        counts = {"image_size": image_size, "patch_size": patch_size, "dim": dim, "depth": depth, "heads": heads,
                  "in_channels": in_channels, "classes": classes}   # fmt: skip
        if wrong := [f"{name} = {count}" for name, count in counts.items() if count < 1]:
            raise ValueError(f"sizes and counts must be at least 1, got {', '.join(wrong)}")
        if mlp_ratio * dim < 1:
            raise ValueError(f"mlp_ratio must leave at least one hidden channel, got {mlp_ratio:g} for dim = {dim}")
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")
        if positions not in ("learned", "sinusoidal", "none") or head not in ("dense", "class"):
            raise ValueError(f"positions must be learned, sinusoidal or none, and head dense or class; got {positions!r} and {head!r}")
        self.shape, self.side = (in_channels, image_size, image_size), image_size // patch_size
        self.embedding = PatchEmbedding(in_channels, patch_size, dim)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if head == "class" else None
        length = self.side**2 + (head == "class")
        self.positions: Tensor | None
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        else:
            fixed = sinusoidal_positions(length, dim).float() if positions == "sinusoidal" else None
            self.register_buffer("positions", fixed, persistent=False)
        self.encoder = nn.Sequential(*[EncoderLayer(dim, heads, mlp_ratio) for _ in range(depth)], nn.LayerNorm(dim))
        self.head = nn.Linear(dim, classes) if head == "class" else DenseHead(dim, patch_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, S, S) to logits: (B, classes, S, S), or (B, classes) for the class head. Raises ``ValueError``."""
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}; resize the images")
        tokens = self.embedding(x)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(x), 1, -1), tokens], dim=1)
        if self.positions is not None:
            tokens = tokens + self.positions
        tokens = self.encoder(tokens)
        return self.head(tokens[:, 0]) if self.class_token is not None else self.head(tokens, self.side)
