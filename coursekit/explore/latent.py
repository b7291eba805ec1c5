"""Notebook 04: walk through the latent space of a VAE and see what it decodes to, and which training images lie near."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from coursekit.explore.base import Explorer, row_figure
from coursekit.figures import BLUE, COLOURS, STYLE
from coursekit.runtime import one_thread
from coursekit.vae import VAE

NEIGHBOURS = 4
MOST_SLIDERS = 6
SHOWN = 240   # pixels a side to which images are enlarged
MOST_POINTS = 1000   # in the scatter: more would cover each other
PRIOR_95 = (-2 * np.log(0.05)) ** 0.5   # the circle that holds 95 % of N(0, I) in two dimensions: P(|z| > r) = exp(−r²/2)


@dataclass(frozen=True, eq=False)
class LatentView:
    """The latent vector (latent,), its image E[x|z] (side, side), and the indices of the nearest training images, nearest first,
    with their L2 distances in pixel space, (4,) each."""

    z: Tensor
    decoded: Tensor
    nearest: Tensor
    distances: Tensor


class LatentExplorer(Explorer):
    """One slider a latent dimension → the decoded image, the training images nearest to it, and z among the encoded means.

    ``images`` (N, 1, side, side) with N ≥ 4: the training images, in the scale that ``vae`` was trained in; ``labels`` (N,): integers,
    or None. With more than six latents only the six whose encoded means vary most have sliders, the others are 0; the scatter shows
    the two that vary most. Sliders reach to ±3, or further where the means do. The explorer keeps a copy of the model on the CPU,
    so training on does not change it.
    Raises ``ValueError`` for a model that is no ``VAE`` with at least two latents, other shapes, and pixels that are not finite.
    """

    def __init__(self, vae: VAE, images: Tensor, labels: Tensor | None = None) -> None:
        _check(vae, images, labels)
        self.vae, self.images = copy.deepcopy(vae).cpu().float(), images.detach().cpu().float()
        self.labels = None if labels is None else torch.as_tensor(labels).cpu()
        self.flat = self.images.flatten(1)
        self.norms = self.flat.square().sum(1)
        with torch.no_grad():
            self.means = torch.cat([self.vae.encode(part)[0] for part in self.images.split(1024)])
        most_varied = self.means.var(0).argsort(descending=True)
        self.dimensions: list[int] = most_varied[:MOST_SLIDERS].sort().values.tolist()
        self.across, self.up = most_varied[:2].sort().values.tolist()
        limit = max(3.0, self.means[:, self.dimensions].abs().max().ceil().item())
        controls = {
            f"z{k + 1}": widgets.FloatSlider(0.0, min=-limit, max=limit, step=0.1, description=f"z{k + 1}", readout_format="+.1f")
            for k in self.dimensions
        }
        with matplotlib.rc_context(STYLE):
            figure, (scatter, decoded, *row), self.caption = row_figure(3.4, [2.5, 1.8, *[1.2] * NEIGHBOURS], top=0.97)
            self.caption.set_x(0.2)   # drawing text costs a tenth of a millisecond a letter, so what stays is kept out of it
            figure.text(0.71, 0.03, "rings and right: the nearest training images, by L2 distance of pixels", ha="center")
            self._draw_means(scatter, limit)
            self.rings = scatter.plot([], [], "o", color="black", fillstyle="none", markersize=10, markeredgewidth=1.5)[0]
            self.point = scatter.plot([], [], "X", color="black", markeredgecolor="white", markersize=13)[0]
            self.pictures = [self._blank(axes) for axes in (decoded, *row)]
            decoded.set_title("decoded: E[x | z]")
            self.titles = [axes.set_title(" ") for axes in row]   # room for what is written later
        super().__init__(controls, figure, [*self.pictures, *self.titles, self.rings, self.point, self.caption])

    def _draw_means(self, axes: Axes, limit: float) -> None:
        """Each class has its colour and its own sign, the label, since ten colours cannot be told apart."""
        some = slice(None, None, -(-len(self.means) // MOST_POINTS))
        means, labels = self.means[some][:, [self.across, self.up]].numpy(), self.labels
        if labels is None:
            axes.plot(*means.T, ".", color=BLUE, markersize=4, alpha=0.6)
        else:
            for k, label in enumerate(labels.unique().tolist()):
                axes.plot(*means[labels[some] == label].T, marker=f"${label}$", linestyle="", color=COLOURS[k % 6], markersize=6)
        axes.add_patch(matplotlib.patches.Circle((0, 0), PRIOR_95, fill=False, edgecolor="0.4", linestyle="--"))
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel=f"z{self.across + 1}", ylabel=f"z{self.up + 1}", aspect="equal")
        axes.set_title("encoded means (dashed: 95 % of p(z))")

    def _blank(self, axes: Axes) -> AxesImage:
        axes.set_axis_off()
        low, high = self.images.min().item(), self.images.max().item()
        return axes.imshow(np.zeros((SHOWN, SHOWN)), cmap="gray", interpolation="nearest", vmin=low, vmax=high)

    @one_thread()
    @torch.no_grad()
    def compute(self, **z: float) -> LatentView:
        place = torch.zeros(self.vae.latent)
        for k in self.dimensions:
            place[k] = z[f"z{k + 1}"]
        decoded = self.vae.picture(place[None])[0, 0]
        scores = self.norms - 2 * self.flat @ decoded.flatten()   # the squared distance less |decoded|², rounded: only to choose by
        chosen = scores.topk(min(len(scores), 4 * NEIGHBOURS), largest=False).indices
        distances, order = (self.flat[chosen] - decoded.flatten()).norm(dim=1).topk(NEIGHBOURS, largest=False)
        return LatentView(place, decoded, chosen[order], distances)

    def draw(self, shown: LatentView) -> None:
        images = [shown.decoded, *self.images[shown.nearest, 0]]
        for picture, image in zip(self.pictures, images, strict=True):   # Pillow takes a thirtieth of matplotlib's time for the same
            picture.set_data(np.asarray(Image.fromarray(image.numpy()).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)))
        for title, index, distance in zip(self.titles, shown.nearest, shown.distances, strict=True):
            title.set_text(f"{distance:.2f}" if self.labels is None else f"{self.labels[index]}, at {distance:.2f}")
        self.point.set_data([shown.z[self.across]], [shown.z[self.up]])
        self.rings.set_data(*self.means[shown.nearest][:, [self.across, self.up]].T.numpy())
        self.caption.set_text("z = (" + ", ".join(f"{shown.z[k]:+.1f}".replace("-", "−") for k in self.dimensions) + ")")


def _check(vae: VAE, images: Tensor, labels: Tensor | None) -> None:
    if not isinstance(vae, VAE) or vae.latent < 2:
        found = f"{vae.latent} latent" if isinstance(vae, VAE) else type(vae).__name__
        raise ValueError(f"vae must be a coursekit.vae.VAE with at least two latents, got {found}")
    if images.shape[1:] != (1, vae.side, vae.side) or len(images) < NEIGHBOURS or not images.is_floating_point():
        raise ValueError(
            f"images must be floating-point of shape (N, 1, {vae.side}, {vae.side}) with N ≥ {NEIGHBOURS}, as the model was trained on; "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity: look at the data")
    if labels is not None:
        kind = torch.as_tensor(labels)
        if kind.shape != images.shape[:1] or kind.is_floating_point() or kind.is_complex():
            raise ValueError(f"labels must be {len(images)} integers, one an image, got {kind.dtype} of shape {tuple(kind.shape)}")
