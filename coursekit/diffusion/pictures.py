"""What a run shows: grids of samples, and the strips of the forward and the backward process, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from coursekit.data.pixels import to_pixels
from coursekit.diffusion.process import Diffusion
from coursekit.files import write_whole

_SHARES = (0, 25, 50, 75, 99)   # per cent of T
_SIDE, _GAP = 96, 4             # pixels: what smaller pictures are enlarged to, and the white between two


def stamps(T: int) -> list[int]:
    """The t, counted from 1, at 0, 25, 50, 75 and 99 % of T: the handout's indices ⌊share·T⌋, which count from 0, and one more."""
    return [share * T // 100 + 1 for share in _SHARES]


def strips(process: Diffusion, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forward and backward, both (B, 5, C, S, S): images x_0 (B, C, S, S) noised to each of ``stamps(T)``, and x_t at the same t, from
    the last to the first, on the way back from the last noised ones. One noise an image: a strip shows the same noise growing.

    Source: CMU, homework 2, 5.3 and 5.4.
    """
    times = stamps(process.schedule.T)
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    forward = [process.q_sample(x_0, torch.full((len(x_0),), t, device=x_0.device), noise) for t in times]
    x, backward = forward[-1], [forward[-1]] * times.count(times[-1])
    for t in range(times[-1], 1, -1):
        x = process.p_sample(x, torch.full((len(x),), t, device=x.device), generator)
        backward += [x] * times.count(t - 1)
    return torch.stack(forward, 1), torch.stack(backward, 1)


def png(images: Tensor) -> bytes:
    """A grid of ``images`` (rows, columns, C, S, S) in [−1, 1], C 1 or 3, as a PNG: no axes, and small ones enlarged smoothly."""
    rows, columns, _, size, _ = images.shape
    side = max(size, _SIDE)
    pixels = to_pixels(images).cpu().movedim(2, -1).squeeze(-1).numpy()
    sheet = Image.new("RGB", [count * (side + _GAP) + _GAP for count in (columns, rows)], "white")
    for row in range(rows):
        for column in range(columns):
            picture = Image.fromarray(pixels[row, column]).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (_GAP + column * (side + _GAP), _GAP + row * (side + _GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def draw_strips(process: Diffusion, x_0: Tensor, folder: Path, seed: int, say: Callable[[str], None] = print) -> None:
    """Write ``forward.png`` and ``backward.png`` into ``folder``; see ``strips``."""
    for name, images in zip(("forward", "backward"), strips(process, x_0, torch.Generator().manual_seed(seed)), strict=True):
        write_whole(folder / f"{name}.png", png(images))
        say(f"{folder / f'{name}.png'}: t = {', '.join(map(str, stamps(process.schedule.T)[:: 1 if name == 'forward' else -1]))}")
