"""Notebook 02: paths of a diffusion, forward into noise and backward to the data, under sliders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
from matplotlib.collections import LineCollection
from torch import Tensor

from coursekit.diffusion import GaussianMixture, NoiseSchedule
from coursekit.diffusion.kernels import ddim_step, forward_kernel
from coursekit.explore.base import Explorer, row_figure
from coursekit.explore.diffusion_1d import MIXTURE, SCHEDULES, example_schedule, outline, under
from coursekit.figures import BLUE, SKY, STYLE, VERMILION
from coursekit.runtime import one_thread

MOST_PATHS = 40


def forward_paths(schedule: NoiseSchedule, x_0: float, z: Tensor) -> Tensor:
    """(n, T+1): n paths x_0 … x_T, x_t = √α_t x_{t−1} + √β_t z_t, from standard normal ``z`` (n, T)."""
    times = torch.arange(schedule.T + 1)
    scale, variance = forward_kernel(schedule, times[:-1], times[1:])
    path = [torch.full(z.shape[:1], x_0, dtype=torch.float64)]
    for a, v, z_t in zip(scale, variance, z.T, strict=True):
        path.append(a * path[-1] + v.sqrt() * z_t)
    return torch.stack(path, 1)


def backward_paths(schedule: NoiseSchedule, x_T: Tensor, z: Tensor, eta: float, data: GaussianMixture = MIXTURE) -> Tensor:
    """(n, T+1): n paths x_T … x_0 by ``ddim_step`` with the exact expected noise. ``x_T``: (n,), ``z``: (n, T), 0 ≤ η ≤ 1.

    Column k is the place after k steps, at time T − k.
    """
    path = [x_T.double()]
    for t, z_t in zip(range(schedule.T, 0, -1), z.T, strict=True):
        noise = data.expected_noise(path[-1], schedule.alpha_bar[t])
        path.append(ddim_step(schedule, path[-1], t, t - 1, noise, z_t, eta))
    return torch.stack(path, 1)


@lru_cache(maxsize=64)
def _paths(name: str, T: int, x_0: float, seed: int, eta: float) -> tuple[Tensor, Tensor]:
    """All paths that the sliders can ask for. Their noise depends on the seed alone, so no other control disturbs it."""
    generator = torch.Generator().manual_seed(seed)
    there, back, x_T = torch.randn(MOST_PATHS, 2 * T + 1, dtype=torch.float64, generator=generator).split([T, T, 1], 1)
    schedule = example_schedule(name, T)
    return forward_paths(schedule, x_0, there), backward_paths(schedule, x_T[:, 0], back, eta)


@dataclass(frozen=True, eq=False)
class TrajectoryView:
    """n paths after t of T steps, forward and backward, each (n, t+1); the band (2, T+1); densities (2, len(grid)), forward first."""

    t: int
    eta: float
    forward: Tensor
    backward: Tensor
    band: Tensor
    densities: Tensor


class TrajectoryExplorer(Explorer):
    """Steps t, paths, seed, η and schedule → paths from ``x_0`` in their ±3σ band, and from N(0, 1) back to the mixture.

    The data is 0.7·N(−1, 0.2²) + 0.3·N(1.5, 0.3²), T = 50. Beside the paths: the exact density after t steps over that of the
    far end, each scaled to peak 1, and a tick for each path. Path i has the same noise whatever else is moved.
    """

    T = 50
    grid = torch.linspace(-3.9, 3.9, 313, dtype=torch.float64)

    def __init__(self, x_0: float = 1.5) -> None:
        self.x_0 = float(x_0)
        controls = {
            "t": widgets.IntSlider(self.T, 1, self.T, description="steps t"),
            "paths": widgets.IntSlider(12, 1, MOST_PATHS, description="paths"),
            "seed": widgets.IntSlider(0, 0, 99, description="seed"),
            "eta": widgets.FloatSlider(1.0, min=0, max=1, step=0.1, description="η", readout_format=".1f"),
            "schedule": widgets.Dropdown(options=list(SCHEDULES), description="schedule"),
        }
        with matplotlib.rc_context(STYLE):
            figure, (there, noise, back, data), self.caption = row_figure(3.6, [4, 1, 4, 1])
            there.set(xlabel="t", ylabel="x$_t$", xlim=(0, self.T), title=f"forward from x$_0$ = {self.x_0:g}, band ±3σ")
            back.set(xlabel="t", ylabel="x$_t$", xlim=(self.T, 0), title="backward from N(0, 1), exact noise")
            for axes, law, title in ((noise, self._scaled(MIXTURE, 0.0), "N(0, 1)"), (data, self._scaled(MIXTURE, 1.0), "data")):
                axes.plot(law, self.grid, "--", color="0.3", linewidth=1.5)
                axes.set(xlabel="density / peak", title=title, xlim=(0, 1.15), xticks=[], yticklabels=[])
            self.caption.set_x(0.28)   # drawing text costs a tenth of a millisecond a letter, so what stays is kept out of it
            figure.text(0.79, 0.03, "shaded: exact density now;  dashed: at the end;  thick: path 1", ha="center")
            for axes in (there, noise, back, data):
                axes.set_ylim(-3.9, 3.9)
            self.band, *self.laws = under(there, SKY, 0.2), under(noise, BLUE), under(data, BLUE)
            self.bundles = [LineCollection([], colors=BLUE, linewidths=0.9, alpha=0.6) for _ in range(2)]
            for axes, bundle in zip((there, back), self.bundles, strict=True):
                axes.add_collection(bundle)
            self.first = [axes.plot([], [], color=VERMILION, linewidth=2)[0] for axes in (there, back)]
            self.ticks = [axes.plot([], [], "_", color=VERMILION, markersize=9)[0] for axes in (noise, data)]
        super().__init__(controls, figure, [self.band, *self.laws, *self.bundles, *self.first, *self.ticks, self.caption])

    def _scaled(self, law: GaussianMixture, alpha_bar: float | Tensor) -> Tensor:
        density = law.log_prob(self.grid, alpha_bar).exp()
        return density / density.max()

    @one_thread()
    def compute(self, t: int, paths: int, seed: int, eta: float, schedule: str) -> TrajectoryView:
        forward, backward = _paths(schedule, self.T, self.x_0, seed, eta)
        alpha_bar = example_schedule(schedule, self.T).alpha_bar
        band = alpha_bar.sqrt() * self.x_0 + torch.tensor([[-3.0], [3.0]], dtype=torch.float64) * (1 - alpha_bar).sqrt()
        point = GaussianMixture([1.0], [self.x_0], [0.0])
        densities = torch.stack([self._scaled(point, alpha_bar[t]), self._scaled(MIXTURE, alpha_bar[self.T - t])])
        return TrajectoryView(t, eta, forward[:paths, : t + 1], backward[:paths, : t + 1], band, densities)

    def draw(self, shown: TrajectoryView) -> None:
        times, (low, high) = torch.arange(self.T + 1.0, dtype=torch.float64), shown.band
        self.band.set_xy(np.column_stack([torch.cat([times, times.flip(0)]), torch.cat([low, high.flip(0)])]))
        runs = zip((shown.forward, shown.backward), (times, times.flip(0)), shown.densities, strict=True)
        for k, (paths, at, density) in enumerate(runs):
            lines = torch.stack([at[: shown.t + 1].expand(len(paths), -1), paths], -1).numpy()
            self.bundles[k].set_segments(list(lines[1:]))
            self.first[k].set_data(*lines[0].T)
            self.ticks[k].set_data(np.full(len(paths), 1.08), paths[:, -1])
            self.laws[k].set_xy(outline(self.grid, density)[:, ::-1])
        here, there = f"forward at t = {shown.t}", f"backward at t = {self.T - shown.t}"
        self.caption.set_text(f"step {shown.t} of {self.T}: {here}, {there}, η = {shown.eta:.1f}")
