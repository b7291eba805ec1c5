"""Notebook 05: slide through stored reverse trajectories, and see what is on its way beside what the model expects at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from coursekit.data.pixels import to_pixels
from coursekit.diffusion.process import ddim_times
from coursekit.diffusion.schedule import NoiseSchedule
from coursekit.explore.base import Explorer, row_figure
from coursekit.figures import BLUE, STYLE, VERMILION
from coursekit.runtime import one_thread

SHOWN = 244   # pixels a side to which images are enlarged: as many as the figure gives them


@dataclass(frozen=True, eq=False)
class SamplingView:
    """One trajectory after some steps: its seed, the time t, x_t and the model's x̂_0 there, (C, S, S) each, ᾱ_t, and for all stored
    times (steps+1,) the root mean square distance of x̂_0 from the finished image, 0 at the end."""

    seed: int
    t: int
    x_t: Tensor
    x_0: Tensor
    alpha_bar: float
    distances: Tensor


class SamplingExplorer(Explorer):
    """Steps made and seed → x_t and x̂_0 side by side, with ᾱ_t and how far x̂_0 still is from the finished image.

    ``states`` (steps+1, B, C, S, S) from x_T to x_0 and ``predictions`` (steps, B, C, S, S) of x̂_0, data in [−1, 1]: what
    ``Diffusion.p_sample_loop`` and ``ddim_sample`` return with ``keep=True``; B ≥ 2 trajectories, C 1 or 3. ``seeds``: their names,
    B different integers, else 0 … B−1. Fewer than T steps are taken to stand at ``ddim_times``. Pixels beyond [−1, 1], which noise has,
    are shown as its ends; after the last step x̂_0 is the image itself.
    Raises ``ValueError`` for other shapes, more than T steps, and pixels that are not finite.
    """

    def __init__(self, states: Tensor, predictions: Tensor, schedule: NoiseSchedule, seeds: Sequence[int] | None = None) -> None:
        names = list(range(states.shape[1] if states.ndim == 5 else 0)) if seeds is None else list(seeds)
        _check(states, predictions, schedule, names)
        self.states, predictions = states.detach().cpu().float(), predictions.detach().cpu().float()
        self.predictions = predictions.new_empty(self.states.shape)
        self.predictions[:-1], self.predictions[-1] = predictions, self.states[-1]
        self.distances = (self.predictions - self.states[-1]).square().flatten(2).mean(2).sqrt()
        self.times = [*ddim_times(schedule.T, len(predictions)), 0]
        self.alpha_bar, self.seeds = schedule.alpha_bar.cpu(), names
        controls = {
            "step": widgets.IntSlider(0, 0, len(predictions), description="steps made"),
            "seed": widgets.Dropdown(options=names, description="seed"),
        }
        with matplotlib.rc_context(STYLE):
            figure, (noisy, clean, curves), self.caption = row_figure(3.5, [1, 1, 1.35])
            self.pictures = [self._blank(noisy, "x$_t$, where the sampler is"), self._blank(clean, "x̂$_0$, where the model expects to end")]
            curves.plot(range(schedule.T + 1), self.alpha_bar.numpy(), color=BLUE, label="ᾱ$_t$")
            self.curve = curves.plot([], [], "--", color=VERMILION, label="distance of x̂$_0$ from the end, rms")[0]
            top = 1.3 * max(1.0, self.distances.max().item())   # room for the legend
            curves.set(xlabel="t", xlim=(1.02 * schedule.T, -0.02 * schedule.T), ylim=(0, top))
            curves.legend(loc="upper left")
            self.dots = [curves.plot([], [], "o", color=c, markeredgecolor="white", markersize=9)[0] for c in (BLUE, VERMILION)]
        super().__init__(controls, figure, [*self.pictures, self.curve, *self.dots, self.caption])

    @staticmethod
    def _blank(axes: Axes, title: str) -> AxesImage:
        axes.set_axis_off()
        axes.set_title(title)
        return axes.imshow(np.zeros((SHOWN, SHOWN, 3), np.uint8), interpolation="nearest")   # Pillow enlarges, in less time

    @one_thread()
    def compute(self, step: int, seed: int) -> SamplingView:
        k, t = self.seeds.index(seed), self.times[step]
        return SamplingView(seed, t, self.states[step, k], self.predictions[step, k], self.alpha_bar[t].item(), self.distances[:, k])

    def draw(self, shown: SamplingView) -> None:
        for picture, image in zip(self.pictures, (shown.x_t, shown.x_0), strict=True):
            picture.set_data(enlarged(image))
        distance = shown.distances[self.times.index(shown.t)].item()
        self.curve.set_data(self.times, shown.distances.numpy())
        for dot, height in zip(self.dots, (shown.alpha_bar, distance), strict=True):
            dot.set_data([shown.t], [height])
        self.caption.set_text(f"seed {shown.seed}, t = {shown.t}: ᾱ = {shown.alpha_bar:.4f}, distance from the end {distance:.3f}")


def enlarged(image: Tensor) -> np.ndarray:
    """An image (C, S, S) of [−1, 1], values beyond cut off, as (SHOWN, SHOWN, 3) bytes, enlarged without visible pixels."""
    small = Image.fromarray(to_pixels(image.expand(3, -1, -1)).permute(1, 2, 0).numpy())
    return np.asarray(small.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS))


def _check(states: Tensor, predictions: Tensor, schedule: NoiseSchedule, seeds: list[int]) -> None:
    shape = tuple(states.shape)
    if states.ndim != 5 or shape[1] < 2 or shape[2] not in (1, 3) or not states.is_floating_point():
        wanted = "floating-point of shape (steps+1, B, C, S, S) with B ≥ 2 trajectories and C 1 or 3"
        raise ValueError(f"states must be {wanted}, got {states.dtype} of shape {shape}")
    if not 2 <= len(states) <= schedule.T + 1:
        raise ValueError(f"states hold {len(states) - 1} steps; the schedule allows 1 … {schedule.T}")
    if tuple(predictions.shape) != (len(states) - 1, *shape[1:]):
        expected = (len(states) - 1, *shape[1:])
        raise ValueError(f"predictions must have shape {expected}, one for each step of the states, got {tuple(predictions.shape)}")
    for name, tensor in (("states", states), ("predictions", predictions)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} hold NaN or infinity: look at the model's predictions")
    if len(seeds) != shape[1] or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be {shape[1]} different integers, one a trajectory, got {seeds}")
