"""One style for every figure, and the plots that more than one notebook draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito's palette, which readers with any of the common colour blindnesses can tell apart.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE)
DIVERGING = "RdBu_r"   # for signed values, with limits symmetric about zero

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "savefig.facecolor": "white",
}


def use_style() -> None:
    """Give every figure drawn from now on the workbook's style."""
    plt.rcParams.update(STYLE)


def as_picture(image: Tensor | np.ndarray) -> np.ndarray:
    """A tensor (3, H, W), (1, H, W) or (H, W) as the array that matplotlib shows: (H, W, 3) clipped to [0, 1], or (H, W).

    Raises ``ValueError`` for another shape.
    """
    array = torch.as_tensor(image).detach().float().cpu()
    if array.ndim == 3 and array.shape[0] == 3:
        return array.clamp(0, 1).permute(1, 2, 0).numpy()
    if array.ndim == 3 and array.shape[0] == 1:
        return array[0].numpy()
    if array.ndim == 2:
        return array.numpy()
    raise ValueError(f"an image has shape (3, H, W), (1, H, W) or (H, W), got {tuple(array.shape)}")


def show_image(axes: Axes, image: Tensor | np.ndarray, title: str = "", *, signed: bool = False) -> None:
    """Draw one image without axes. ``signed``: zero is white, with symmetric limits."""
    picture = as_picture(image)
    options: dict = {"cmap": "gray"} if picture.ndim == 2 else {}
    if signed:
        limit = float(np.abs(picture).max()) or 1.0
        options = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
    axes.imshow(picture, interpolation="antialiased", **options)
    axes.set_title(title)
    axes.set_axis_off()


def show_images(images: Sequence[Tensor | np.ndarray], titles: Sequence[str], *, signed: bool = False, height: float = 2.6) -> Figure:
    """A row of images, one height, without axes. Returns the figure, ready for ``plt.show()``."""
    ratios = [picture.shape[1] / picture.shape[0] for picture in map(as_picture, images)]
    figure, row = plt.subplots(1, len(images), figsize=(height * sum(ratios), height + 0.3), width_ratios=ratios, squeeze=False)
    for axes, image, title in zip(row[0], images, titles, strict=True):
        show_image(axes, image, title, signed=signed)
    return figure
