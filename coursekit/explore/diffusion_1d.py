"""Notebook 02: a noise schedule and the exact reverse kernel under sliders; ``trajectories`` holds the paths.

Each number of steps T on a slider makes a whole step of each t/T beside it: T = 50, 100 … with t/T = 0.02, 0.04 … 1, and
T = 10, 20 … with 0.1, 0.2 … 1. So no combination of controls is impossible, and each move of a slider shows something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from torch import Tensor

from coursekit.data import photograph
from coursekit.diffusion import GaussianMixture, NoiseSchedule
from coursekit.diffusion.kernels import q_sample
from coursekit.explore.base import Explorer, row_figure
from coursekit.figures import BLUE, ORANGE, STYLE, VERMILION, show_image
from coursekit.runtime import one_thread

SCHEDULES = {"cosine": BLUE, "linear": ORANGE}
STEPS = (50, 100, 200, 500, 1000)
KERNEL_STEPS = (10, 20, *STEPS)
MIXTURE = GaussianMixture([0.7, 0.3], [-1.0, 1.5], [0.2, 0.3])
SMALLEST_KL = 1e-8   # the foot of its axis, in nats


@lru_cache(maxsize=128)
def example_schedule(name: str, T: int, s: float = 0.008, beta_max: float = 0.02) -> NoiseSchedule:
    """``"cosine"`` with ``s``, or ``"linear"`` from 1e-4·1000/T to ``beta_max``·1000/T, so that ᾱ_T hardly depends on T.

    ``beta_max`` is the value at T = 1000; β_T < 1 needs ``beta_max`` < T/1000. Raises ``ValueError`` otherwise, and for another name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"there is no schedule {name!r}; there are {', '.join(SCHEDULES)}")
    return NoiseSchedule.cosine(T, s) if name == "cosine" else NoiseSchedule.linear(T, 1e-4 * 1000 / T, beta_max * 1000 / T)


@lru_cache(maxsize=32)
def coarse_schedule(name: str, T: int) -> NoiseSchedule:
    """T equal strides over the schedule of 1000 steps, so ᾱ at t/T is the same for each T, and only the size of a step differs.

    Raises ``ValueError`` for a T that does not divide 1000.
    """
    if 1000 % T:
        raise ValueError(f"T must divide 1000, got {T}")
    alpha_bar = example_schedule(name, 1000).alpha_bar[:: 1000 // T]
    return NoiseSchedule(torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]]))


def log_snr(schedule: NoiseSchedule) -> np.ndarray:
    """(T,): log(ᾱ_t/(1−ᾱ_t)) for t = 1 … T, in nats."""
    return schedule.snr[1:].log().numpy()


def _step(fraction: float, T: int) -> int:
    """The step nearest to t/T = ``fraction``, at least 1."""
    return max(1, round(fraction * T))


def under(axes: Axes, colour: str, alpha: float = 0.3) -> Polygon:
    """A shaded area, empty as yet; ``outline`` gives its corners."""
    area = Polygon(np.zeros((1, 2)), facecolor=colour, edgecolor=colour, alpha=alpha)
    axes.add_patch(area)
    return area


def outline(x: Tensor, density: Tensor) -> np.ndarray:
    """(n+2, 2): the corners of the area between a density and its axis."""
    return np.column_stack([x[[0, *range(len(x)), -1]], torch.nn.functional.pad(density, (1, 1))])


def _schedule_controls(steps: tuple[int, ...], t: float, lowest: float) -> dict[str, widgets.ValueWidget]:
    return {
        "schedule": widgets.Dropdown(options=list(SCHEDULES), description="schedule"),
        "T": widgets.SelectionSlider(options=steps, value=steps[0], description="steps T"),
        "t": widgets.FloatSlider(t, min=lowest, max=1, step=lowest, description="time t/T"),
    }


@dataclass(frozen=True, eq=False)
class ScheduleView:
    """The step t of T, both schedules' (3, T) curves of β_t, ᾱ_t and log SNR at t = 1 … T, and x_t: (3, H, W), x_0 in [−1, 1]."""

    schedule: str
    T: int
    t: int
    curves: dict[str, np.ndarray]
    x_t: Tensor

    @property
    def now(self) -> np.ndarray:
        """β_t, ᾱ_t and log SNR of the chosen schedule at t."""
        return self.curves[self.schedule][:, self.t - 1]


class ScheduleExplorer(Explorer):
    """Schedule, T, t/T, s and β_max → β_t, ᾱ_t and log SNR over t/T, and a photograph noised to t, always by the same noise.

    Both schedules are drawn, the chosen one strongly: ``s`` moves the cosine, ``beta_max`` the linear one. ``beta_max`` is the
    value at T = 1000; the schedule uses β·1000/T. ``photo``: (3, H, W) in [0, 1].
    """

    def __init__(self, photo: Tensor | None = None) -> None:
        self.x_0 = 2 * (photograph("china", size=256) if photo is None else photo).float() - 1
        self.noise = torch.randn(self.x_0.shape, generator=torch.Generator().manual_seed(0))
        controls = _schedule_controls(STEPS, 0.5, 0.02) | {
            "s": widgets.SelectionSlider(options=(0.0, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128), value=0.008, description="cosine: s"),
            "beta_max": widgets.SelectionSlider(
                options=tuple(k / 400 for k in range(1, 13)), value=0.02, description="linear: β_max at T = 1000, used · 1000/T",
                style={"description_width": "initial"}, layout=widgets.Layout(width="440px"),
            ),
        }   # fmt: skip
        with matplotlib.rc_context(STYLE):
            figure, panels, self.caption = row_figure(3.2, [1, 1, 1, 1])
            labels = {"β$_t$ (log scale)": (1e-6, 2), "ᾱ$_t$": (-0.03, 1.03), "log SNR (nats)": (-24, 14)}
            for axes, (label, limits) in zip(panels, labels.items(), strict=False):
                axes.set(xlabel="t/T", title=label, xlim=(0, 1.02), ylim=limits, yscale="log" if "log scale" in label else "linear")
            self.curves = {name: [axes.plot([], [], color=colour)[0] for axes in panels[:3]] for name, colour in SCHEDULES.items()}
            panels[1].legend([Line2D([], [], color=c, linewidth=2.5) for c in SCHEDULES.values()], list(SCHEDULES), loc="upper right")
            self.lines = [axes.axvline(1, color="0.4", linewidth=1) for axes in panels[:3]]
            self.dots = [axes.plot([], [], "o", color=VERMILION, markeredgecolor="white", markersize=8)[0] for axes in panels[:3]]
            show_image(panels[3], (self.x_0 + 1) / 2, "x$_t$ (clipped to the range of x$_0$)")
            self.picture = panels[3].images[0]
        curves = [curve for each in self.curves.values() for curve in each]
        super().__init__(controls, figure, [*curves, *self.lines, *self.dots, self.picture, self.caption])

    @one_thread()
    def compute(self, schedule: str, T: int, t: float, s: float, beta_max: float) -> ScheduleView:
        schedules = {name: example_schedule(name, T, s, beta_max) for name in SCHEDULES}
        curves = {name: np.stack([each.beta[1:], each.alpha_bar[1:], log_snr(each)]) for name, each in schedules.items()}
        step = _step(t, T)
        return ScheduleView(schedule, T, step, curves, q_sample(schedules[schedule], self.x_0, step, self.noise))

    def draw(self, shown: ScheduleView) -> None:
        time = np.arange(1, shown.T + 1) / shown.T
        for name, curves in self.curves.items():
            for curve, values in zip(curves, shown.curves[name], strict=True):
                curve.set_data(time, values)
                curve.set(alpha=1 if name == shown.schedule else 0.4, linewidth=2.5 if name == shown.schedule else 1.2)
        for line, dot, value in zip(self.lines, self.dots, shown.now, strict=True):
            line.set_xdata([shown.t / shown.T] * 2)
            dot.set_data([shown.t / shown.T], [value])
        self.picture.set_data(np.clip(shown.x_t.permute(1, 2, 0).numpy() * 127.5 + 127.5, 0, 255).astype(np.uint8))
        beta, alpha_bar, log_ratio = shown.now
        self.caption.set_text(
            f"{shown.schedule}, t = {shown.t} of {shown.T}:   β = {beta:.3g},   ᾱ = {alpha_bar:.3g},   log SNR = {log_ratio:+.2f},   "
            f"xₜ = {alpha_bar**0.5:.3g} x₀ + {(1 - alpha_bar) ** 0.5:.3g} ε"
        )


@dataclass(frozen=True, eq=False)
class KernelView:
    """q(x_{t−1} | x_t): its mean and std, densities over ``grid`` of x_{t−1}, x_{t−1} | x_t and its best Gaussian, (3, len(grid)),
    its density standardised, (len(z),), and KL(exact ‖ best Gaussian) in nats for each T of ``KERNEL_STEPS`` at the same t/T, (7,)."""

    x_t: float
    T: int
    t: int
    mean: float
    std: float
    densities: Tensor
    standardised: Tensor
    kls: tuple[float, ...]

    @property
    def kl(self) -> float:
        """In nats, for the chosen T."""
        return self.kls[KERNEL_STEPS.index(self.T)]


def gaussian_gap(law: GaussianMixture) -> float:
    """KL(law ‖ N(m, v)) in nats with the law's own mean m and variance v, which make it least: trapezoids on 4001 points.

    The points reach 9 standard deviations beyond each component. Every std must be positive.
    """
    x = torch.linspace((law.means - 9 * law.stds).min().item(), (law.means + 9 * law.stds).max().item(), 4001, dtype=torch.float64)
    log_p = law.log_prob(x)
    log_normal = GaussianMixture([1.0], [law.mean], [law.variance**0.5]).log_prob(x)
    return torch.trapezoid(log_p.exp() * (log_p - log_normal), x).item()


@lru_cache(maxsize=1024)
def _gaps(name: str, fraction: float, x_t: float) -> tuple[float, ...]:
    """``gaussian_gap`` of the kernel at x_t and t/T = ``fraction``, for each T of ``KERNEL_STEPS``."""
    return tuple(gaussian_gap(MIXTURE.reverse_kernel(coarse_schedule(name, T), x_t, _step(fraction, T))) for T in KERNEL_STEPS)


class ReverseKernelExplorer(Explorer):
    """Schedule, T, t/T and x_t → the exact q(x_{t−1} | x_t) of a mixture beside its best Gaussian, and how far apart they are.

    The data is 0.7·N(−1, 0.2²) + 0.3·N(1.5, 0.3²). In the middle x_{t−1} is measured from the kernel's mean in its own standard
    deviations, so that the best Gaussian is always the same curve. At the right the same x_t and t/T with smaller and smaller steps:
    T strides over one schedule of 1000 steps.
    """

    grid = torch.linspace(-3, 3, 601, dtype=torch.float64)
    z = torch.linspace(-4, 4, 401, dtype=torch.float64)

    def __init__(self) -> None:
        x_t = widgets.FloatSlider(0.15, min=-2.5, max=2.5, step=0.05, description="place x_t")
        controls = _schedule_controls(KERNEL_STEPS, 0.2, 0.1) | {"x_t": x_t}
        with matplotlib.rc_context(STYLE):
            figure, (place, shape, gap), self.caption = row_figure(3.3, [1.15, 1.15, 1])
            place.set(xlabel="x$_{t−1}$", ylabel="density, scaled to peak 1", title="where x$_{t−1}$ lies, given x$_t$")
            place.set(xlim=(-3, 3), ylim=(0, 1.5), yticks=[])
            shape.set(xlim=(-4, 4), ylim=(0, 1.35), xlabel="(x$_{t−1}$ − mean) / std", ylabel="density", title="its shape")
            gap.set(xscale="log", xlabel="number of steps T", xlim=(8, 1250))
            gap.set(yscale="log", ylabel="KL (nats), cut at 1e−8", ylim=(SMALLEST_KL / 2, 3))
            gap.set(title="KL from the best Gaussian", xticks=KERNEL_STEPS, xticklabels=KERNEL_STEPS)
            gap.minorticks_off()
            self.before = under(place, "0.6")
            self.kernels = [under(place, BLUE), under(shape, BLUE)]
            (self.best,) = place.plot([], [], "--", color=VERMILION, linewidth=1.5)
            (normal,) = shape.plot(self.z, torch.exp(-self.z.square() / 2) / (2 * torch.pi) ** 0.5, "--", color=VERMILION, linewidth=1.5)
            normal.set_animated(True)
            self.at = place.axvline(0, ymax=0.82, color="black", linewidth=1.2, linestyle=":")
            (self.gaps,) = gap.plot([], [], "o-", color=BLUE, markersize=5, linewidth=1)
            (self.now,) = gap.plot([], [], "o", color=VERMILION, markeredgecolor="white", markersize=9)
            place.legend([self.before, self.at], ["q(x$_{t−1}$)", "x$_t$"], loc="upper right", ncols=2)
            shape.legend([self.kernels[1], normal], ["exact q(x$_{t−1}$ | x$_t$)", "best Gaussian"], loc="upper right")
        super().__init__(controls, figure, [self.before, *self.kernels, self.best, normal, self.at, self.gaps, self.now, self.caption])

    @one_thread()
    def compute(self, schedule: str, T: int, t: float, x_t: float) -> KernelView:
        steps, step = coarse_schedule(schedule, T), _step(t, T)
        kernel = MIXTURE.reverse_kernel(steps, x_t, step)
        mean, std = kernel.mean, kernel.variance**0.5
        laws = (MIXTURE.diffused(steps.alpha_bar[step - 1]), kernel, GaussianMixture([1.0], [mean], [std]))
        densities = torch.stack([law.log_prob(self.grid).exp() for law in laws])
        standardised = std * kernel.log_prob(mean + std * self.z).exp()
        return KernelView(x_t, T, step, mean, std, densities, standardised, _gaps(schedule, t, x_t))

    def draw(self, shown: KernelView) -> None:
        before, kernel, best = shown.densities
        for area, x, y in ((self.before, self.grid, before / before.max()), (self.kernels[0], self.grid, kernel / kernel.max()),
                           (self.kernels[1], self.z, shown.standardised)):   # fmt: skip
            area.set_xy(outline(x, y))
        self.best.set_data(self.grid, best / kernel.max())
        self.at.set_xdata([shown.x_t] * 2)
        heights = np.maximum(shown.kls, SMALLEST_KL)
        self.gaps.set_data(KERNEL_STEPS, heights)
        self.now.set_data([shown.T], [heights[KERNEL_STEPS.index(shown.T)]])
        self.caption.set_text(
            f"t = {shown.t} of {shown.T}, xₜ = {shown.x_t:+.2f}:   exact xₜ₋₁ has mean {shown.mean:+.3f}, std {shown.std:.3f};   "
            f"KL(exact ‖ best Gaussian) = {max(shown.kl, 0):.2g} nats"
        )
