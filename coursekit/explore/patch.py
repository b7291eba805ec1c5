"""Notebook 01: move a patch over a photograph and watch one row of W₁ turn it into a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib
import matplotlib.patches
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from coursekit.data import photograph
from coursekit.explore.base import Explorer
from coursekit.figures import DIVERGING, STYLE, VERMILION, show_image
from coursekit.patchwise import PatchwiseMLP, as_convnet, extract_patches


@dataclass(frozen=True)
class PatchView:
    """One patch under one filter: its top-left corner, three k×k tensors, and the pixel that they add up to."""

    row: int
    column: int
    name: str
    patch: Tensor
    weights: Tensor
    product: Tensor
    pixel: float


def example_filters(size: int) -> dict[str, Tensor]:
    """Five k×k filters to look through, float64. The derivatives add up to 0, the blur to 1.

    Raises ``ValueError`` for a k = ``size`` that is even or below 3.
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size must be odd and at least 3, so that a filter has a centre; got {size}")
    t = torch.linspace(-2, 2, size, dtype=torch.float64)
    y, x = torch.meshgrid(t, t, indexing="ij")
    bell = torch.exp(-(x**2 + y**2) / 2)
    bell = bell / bell.sum()
    spot = (x**2 + y**2) * bell
    return {
        "upright edges": x * bell,
        "level edges": y * bell,
        "diagonal edges": (x + y) * bell / 2**0.5,
        "spots": bell * spot.sum() - spot,
        "blur": bell,
    }


class PatchExplorer(Explorer):
    """Row, column and filter → the patch, the weights, their product, and the pixel that its sum becomes.

    ``image``: (1, H, W) in [0, 1], by default a photograph in grey. ``filters``: name → (k, k).
    The filters are the rows of the first layer of a ``PatchwiseMLP``; the map at the right is its convnet's output.
    Raises ``ValueError`` for an image that is not (1, H, W), and unless the filters are squares of one size that fits into it.
    """

    def __init__(self, image: Tensor | None = None, filters: dict[str, Tensor] | None = None) -> None:
        grey = photograph("china", size=(96, 144)).mean(0, keepdim=True) if image is None else image
        self.photo = grey.double()[None]
        self.filters = example_filters(9) if filters is None else {name: f.double() for name, f in filters.items()}
        shapes = {tuple(f.shape) for f in self.filters.values()}
        if grey.ndim != 3 or grey.shape[0] != 1 or len(shapes) != 1 or len(set(*shapes)) != 1:
            raise ValueError(f"need an image (1, H, W) and filters (k, k) of one size, got {tuple(grey.shape)} and {sorted(shapes)}")
        self.size = next(iter(shapes))[0]
        self.patches = extract_patches(self.photo, self.size)[0]
        mlp = PatchwiseMLP(self.size, (1, len(self.filters))).double()
        with torch.no_grad():
            weight, bias = mlp.parameters()
            weight.copy_(torch.stack([f.flatten() for f in self.filters.values()]))
            bias.zero_()
            self.maps = as_convnet(mlp)(self.photo)[0]
        height, width = self.maps.shape[1:]
        controls = {
            "row": widgets.IntSlider(height // 3, 0, height - 1, description="row i", continuous_update=True),
            "column": widgets.IntSlider(width // 2, 0, width - 1, description="column j", continuous_update=True),
            "filter": widgets.Dropdown(options=list(self.filters), description="filter"),
        }
        with matplotlib.rc_context(STYLE):
            figure = self._figure()
        super().__init__(controls, figure, [*self.boxes, *self.squares, self.map, self.dot, self.sum])

    def _figure(self) -> Figure:
        """Built once: the photograph, three k×k squares, the map of all pixels."""
        figure = Figure(figsize=(11, 2.9), dpi=100, layout="constrained")
        wide = self.photo.shape[-1] / self.photo.shape[-2]
        photo, *squares, output = figure.subplots(1, 5, width_ratios=[wide, 1, 1, 1, wide])
        show_image(photo, self.photo[0], "photograph x")
        self.boxes = [
            photo.add_patch(matplotlib.patches.Rectangle((0, 0), self.size, self.size, fill=False, edgecolor=colour, linewidth=width))
            for colour, width in (("white", 4), (VERMILION, 2))
        ]
        self.squares = []
        blank = np.zeros((self.size, self.size))
        titles = {"patch $P_{ij}$": "gray", "weights $W_1[d]$": DIVERGING, "product": DIVERGING}
        for axes, (title, colours) in zip(squares, titles.items(), strict=True):
            self.squares.append(axes.imshow(blank, cmap=colours, vmin=0, vmax=1))
            axes.set_title(title)
            axes.set_axis_off()
        self.map = output.imshow(self.maps[0].numpy(), cmap=DIVERGING, interpolation="antialiased")
        output.set_title("first layer, channel d")
        output.set_axis_off()
        (self.dot,) = output.plot([0], [0], "o", color=VERMILION, markeredgecolor="white", markersize=8)
        self.sum = figure.text(0.5, 0.04, "", ha="center", fontsize="large")
        return figure

    def compute(self, row: int, column: int, filter: str) -> PatchView:
        patch = self.patches[row * self.maps.shape[2] + column].reshape(self.size, self.size)
        weights = self.filters[filter]
        product = weights * patch
        return PatchView(row, column, filter, patch, weights, product, product.sum().item())

    def draw(self, shown: PatchView) -> None:
        for box in self.boxes:
            box.set_xy((shown.column - 0.5, shown.row - 0.5))
        for picture, values in zip(self.squares, (shown.patch, shown.weights, shown.product), strict=True):
            picture.set_data(values.numpy())
        for picture, values in ((self.squares[1], shown.weights), (self.squares[2], shown.product)):
            limit = values.abs().max().item() or 1.0
            picture.set_clim(-limit, limit)
        responses = self.maps[list(self.filters).index(shown.name)]
        limit = responses.abs().max().item() or 1.0
        self.map.set_data(responses.numpy())
        self.map.set_clim(-limit, limit)
        self.dot.set_data([shown.column], [shown.row])
        self.sum.set_text(f"the product adds up to {shown.pixel:+.4f}: the pixel at ({shown.row}, {shown.column})")
