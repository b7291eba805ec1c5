"""The explorers of notebook 02: what they compute, against formulas of their own; and how the picture answers the controls."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from explorers import frame_is_pure, frame_redraws_nothing, moves_and_returns
from PIL import Image
from scipy.stats import norm, wasserstein_distance

from coursekit.explore import ReverseKernelExplorer, ScheduleExplorer, TrajectoryExplorer
from coursekit.explore.diffusion_1d import KERNEL_STEPS, MIXTURE, STEPS, coarse_schedule, example_schedule, gaussian_gap
from coursekit.explore.trajectories import backward_paths, forward_paths

CLASSES = (ScheduleExplorer, TrajectoryExplorer, ReverseKernelExplorer)
MOVES = {
    ScheduleExplorer: {"schedule": "linear", "T": 200, "t": 0.8, "s": 0.016, "beta_max": 0.01},
    TrajectoryExplorer: {"t": 20, "paths": 13, "seed": 1, "eta": 0.9, "schedule": "linear"},
    ReverseKernelExplorer: {"schedule": "linear", "T": 50, "t": 0.3, "x_t": 0.2},
}


@pytest.fixture(scope="module")
def explorers():
    return {cls: cls() for cls in CLASSES}


def choices(control):
    """Every value that a reader can give a control."""
    if hasattr(control, "options"):
        return list(dict(control._options_full).values())
    count = round((control.max - control.min) / control.step)
    values = [min(control.min + k * control.step, control.max) for k in range(count + 1)]
    return values if isinstance(control.min, float) else [int(v) for v in values]


def finite(shown):
    arrays = [shown] if isinstance(shown, (int, float, np.ndarray, torch.Tensor)) else []
    if isinstance(shown, dict):
        arrays = list(shown.values())
    elif isinstance(shown, tuple):
        arrays = list(shown)
    return all(np.isfinite(np.asarray(a)).all() for a in arrays)


# The picture


@pytest.mark.parametrize("cls", CLASSES)
def test_every_control_changes_the_picture_and_coming_back_restores_it(explorers, cls):
    explorer = explorers[cls]
    assert repr(explorer) == f"{cls.__name__}({', '.join(MOVES[cls])})"
    assert set(MOVES[cls]) == set(explorer.values)
    for name, value in MOVES[cls].items():
        moves_and_returns(explorer, name, value)


@pytest.mark.parametrize("cls", CLASSES)
def test_frame_is_pure(explorers, cls):
    explorer = explorers[cls]
    frame_is_pure(explorer, **MOVES[cls])
    assert cls().frame(**MOVES[cls]) == explorer.frame(**MOVES[cls])  # another explorer, whatever it showed before, gives the same picture


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in CLASSES for name in MOVES[cls]])
def test_no_step_of_a_control_is_dead(explorers, cls, name):
    """Neighbouring values give different pictures, with the first schedule and with the second."""
    explorer = explorers[cls]
    values = choices(explorer.controls[name])
    places = range(len(values)) if len(values) < 15 else [0, 1, 2, len(values) // 2, len(values) // 2 + 1, len(values) - 2, len(values) - 1]
    for schedule in {"cosine", "linear"} if name != "schedule" else {None}:
        kept = {} if schedule is None else {"schedule": schedule}
        frames = [explorer.frame(**{**kept, name: values[k]}) for k in places]
        assert len(set(frames)) == len(frames)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_corner_of_the_controls_is_finite(explorers, cls):
    explorer = explorers[cls]
    ends = {name: (choices(control)[0], choices(control)[-1]) for name, control in explorer.controls.items()}
    for values in itertools.product(*ends.values()):
        shown = explorer.compute(**dict(zip(ends, values, strict=True)))
        assert all(finite(value) for value in vars(shown).values()), values
    for end in (0, 1):
        picture = np.asarray(Image.open(io.BytesIO(explorer.frame(**{name: pair[end] for name, pair in ends.items()}))))
        assert picture.shape[1] == 1100 and picture.std() > 10


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (ScheduleExplorer, {"T": 51}, "T must be one of"),
        (ScheduleExplorer, {"t": 1.5}, "t must lie in 0.02"),
        (ScheduleExplorer, {"schedule": "sigmoid"}, "schedule must be one of"),
        (TrajectoryExplorer, {"t": 51}, "t must lie in 1"),
        (TrajectoryExplorer, {"paths": 0}, "paths must lie in 1"),
        (TrajectoryExplorer, {"eta": 1.1}, "eta must lie in 0"),
        (ReverseKernelExplorer, {"x_t": 9.0}, "x_t must lie in -2.5"),
        (ReverseKernelExplorer, {"T": 30}, "T must be one of"),
        (ReverseKernelExplorer, {"x": 0.0}, "no control 'x'"),
    ],
)
def test_impossible_values_are_refused_by_name(explorers, cls, values, message):
    with pytest.raises(ValueError, match=message):
        explorers[cls].frame(**values)


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_is_drawn_anew_for_a_frame_and_torch_keeps_its_threads(explorers, cls, monkeypatch):
    frame_redraws_nothing(explorers[cls], monkeypatch, **MOVES[cls])


# Schedules


@pytest.mark.parametrize("T", STEPS)
def test_the_curves_are_the_schedules(explorers, T):
    explorer = explorers[ScheduleExplorer]
    shown = explorer.compute(schedule="linear", T=T, t=0.4, s=0.016, beta_max=0.03)
    beta = np.linspace(0.1 / T, 30 / T, T)
    assert shown.t == 2 * T // 5 and shown.curves["linear"].shape == (3, T)
    f = np.cos(math.pi / 2 * (np.arange(T + 1) / T + 0.016) / 1.016) ** 2
    cosine = np.minimum(1 - f[1:] / f[:-1], 0.999)
    for name, betas in (("linear", beta), ("cosine", cosine)):
        alpha_bar = np.cumprod(1 - betas)
        np.testing.assert_allclose(shown.curves[name][0], betas, rtol=1e-9)
        np.testing.assert_allclose(shown.curves[name][1], alpha_bar, rtol=1e-9)
        np.testing.assert_allclose(shown.curves[name][2], np.log(alpha_bar / (1 - alpha_bar)), atol=1e-8)
    assert shown.now == pytest.approx(shown.curves["linear"][:, shown.t - 1])


def test_both_ends_of_t_are_reached(explorers):
    explorer = explorers[ScheduleExplorer]
    values = explorer.values
    assert explorer.compute(**{**values, "T": 50, "t": 0.02}).t == 1
    for T in STEPS:
        steps = [explorer.compute(**{**values, "T": T, "t": t}).t for t in choices(explorer.controls["t"])]
        assert steps == list(range(T // 50, T + 1, T // 50))


def test_the_photograph_is_noised_by_the_same_noise(explorers):
    explorer = explorers[ScheduleExplorer]
    assert explorer.x_0.min() >= -1 and explorer.x_0.max() <= 1 and explorer.x_0.min() < -0.9
    for t, T in itertools.product((0.02, 0.5, 1.0), (50, 1000)):
        shown = explorer.compute(schedule="linear", T=T, t=t, s=0.008, beta_max=0.02)
        _, alpha_bar, log_snr = shown.now
        noise = (shown.x_t - alpha_bar**0.5 * explorer.x_0) / (1 - alpha_bar) ** 0.5
        assert torch.allclose(noise, explorer.noise, atol=1e-4)
        assert noise.mean().abs() < 0.01 and abs(noise.std().item() - 1) < 0.01
        assert math.exp(log_snr) == pytest.approx(alpha_bar / (1 - alpha_bar))


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no schedule 'sigmoid'"):
        example_schedule("sigmoid", 50)
    with pytest.raises(ValueError, match="beta_max"):
        example_schedule("linear", 10)
    with pytest.raises(ValueError, match="T must divide 1000, got 30"):
        coarse_schedule("cosine", 30)


# Paths


def test_seeds_stay_put(explorers):
    compute = explorers[TrajectoryExplorer].compute
    base = {"t": 50, "paths": 5, "seed": 3, "eta": 1.0, "schedule": "cosine"}
    five, twenty = compute(**base), compute(**{**base, "paths": 20})
    assert torch.equal(five.forward, twenty.forward[:5]) and torch.equal(five.backward, twenty.backward[:5])
    early = compute(**{**base, "t": 20})
    assert torch.equal(early.forward, five.forward[:, :21]) and torch.equal(early.backward, five.backward[:, :21])
    quiet = compute(**{**base, "eta": 0.0})
    assert torch.equal(quiet.forward, five.forward) and torch.equal(quiet.backward[:, 0], five.backward[:, 0])
    assert not torch.equal(quiet.backward[:, 1], five.backward[:, 1])
    linear = compute(**{**base, "schedule": "linear"})
    assert torch.equal(linear.backward[:, 0], five.backward[:, 0])
    steps = {name: example_schedule(name, 50) for name in ("cosine", "linear")}
    noise = [  # the steps' noise, solved for
        (shown.forward[:, 1:] - steps[name].alpha[1:].sqrt() * shown.forward[:, :-1]) / steps[name].beta[1:].sqrt()
        for name, shown in (("cosine", five), ("linear", linear))
    ]
    assert torch.allclose(*noise, atol=1e-9)
    assert not torch.equal(compute(**{**base, "seed": 4}).backward[:, 0], five.backward[:, 0])


def test_with_eta_0_the_noise_does_not_matter():
    schedule, x_T = example_schedule("cosine", 50), torch.linspace(-2, 2, 9, dtype=torch.float64)
    z = torch.randn(2, 9, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backward_paths(schedule, x_T, z[0], 0.0), backward_paths(schedule, x_T, z[1], 0.0))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_forward_paths_lie_in_their_band(explorers, name):
    explorer = explorers[TrajectoryExplorer]
    inside, spread = [], []
    for seed in range(10):
        shown = explorer.compute(t=50, paths=40, seed=seed, eta=1.0, schedule=name)
        low, high = shown.band
        assert (shown.forward[:, 0] == 1.5).all() and low[0] == high[0] == 1.5
        inside.append(((shown.forward >= low) & (shown.forward <= high))[:, 1:].double().mean().item())
        spread.append((shown.forward - (low + high) / 2)[:, 1:] / ((high - low) / 6)[1:])
    assert min(inside) >= 0.97
    scores = torch.cat(spread)  # 400 paths of standardised places: mean 0 and std 1 at each t, to 4 standard errors
    assert scores.mean(0).abs().max() < 4 / 20 and (scores.std(0) - 1).abs().max() < 4 / math.sqrt(800)


def test_the_band_is_the_closed_form(explorers):
    band = explorers[TrajectoryExplorer].compute(t=1, paths=1, seed=0, eta=0.0, schedule="linear").band.numpy()
    alpha_bar = np.concatenate([[1], np.cumprod(1 - np.linspace(0.002, 0.4, 50))])
    np.testing.assert_allclose(band[0], 1.5 * np.sqrt(alpha_bar) - 3 * np.sqrt(1 - alpha_bar), atol=1e-12)
    np.testing.assert_allclose(band[1], 1.5 * np.sqrt(alpha_bar) + 3 * np.sqrt(1 - alpha_bar), atol=1e-12)


def quantiles(count):
    """``count`` evenly spaced quantiles of 0.7·N(−1, 0.2²) + 0.3·N(1.5, 0.3²)."""
    x = np.linspace(-4, 4, 40001)
    return np.interp((np.arange(count) + 0.5) / count, 0.7 * norm.cdf(x, -1, 0.2) + 0.3 * norm.cdf(x, 1.5, 0.3), x)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_backward_paths_end_in_the_mixture(name, eta):
    """W1 below 0.08 for each of three seeds; the bound covers 4000 paths' sampling error and the bias of 50 steps."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(4000, 51, dtype=torch.float64, generator=generator)
        paths = backward_paths(example_schedule(name, 50), z[:, 0], z[:, 1:], eta)
        assert paths.shape == (4000, 51) and torch.equal(paths[:, 0], z[:, 0])
        assert wasserstein_distance(paths[:, -1].numpy(), quantiles(4000)) < 0.08


def test_one_path_of_one_step():
    """T = 1, by hand: x_1 = √α x_0 + √β z; and back to E[x_0 | x_1], whatever η, since the last step adds no noise."""
    schedule = example_schedule("cosine", 1)
    assert forward_paths(schedule, 2.0, torch.ones(1, 1).double())[0].tolist() == pytest.approx([2, 2 * 0.001**0.5 + 0.999**0.5])
    x_1, a = torch.tensor([0.4], dtype=torch.float64), 0.001
    w, m, s = np.array([[0.7, 0.3], [-1, 1.5], [0.2, 0.3]])
    share, gain = w * norm.pdf(0.4, a**0.5 * m, (a * s**2 + 1 - a) ** 0.5), a**0.5 * s**2 / (a * s**2 + 1 - a)
    expected = share @ (m + gain * (0.4 - a**0.5 * m)) / share.sum()
    for eta in (0.0, 1.0):
        x_0 = backward_paths(schedule, x_1, torch.ones(1, 1).double(), eta)[0, 1]
        assert x_0.item() == pytest.approx(expected, abs=1e-6)


def test_the_densities_beside_the_paths(explorers):
    explorer = explorers[TrajectoryExplorer]
    shown = explorer.compute(t=30, paths=3, seed=0, eta=1.0, schedule="linear")
    alpha_bar = np.concatenate([[1], np.cumprod(1 - np.linspace(0.002, 0.4, 50))])
    x, there, back = explorer.grid.numpy(), alpha_bar[30], alpha_bar[20]
    expected = [
        norm.pdf(x, 1.5 * there**0.5, (1 - there) ** 0.5),
        sum(w * norm.pdf(x, back**0.5 * m, (back * s**2 + 1 - back) ** 0.5) for w, m, s in ((0.7, -1, 0.2), (0.3, 1.5, 0.3))),
    ]
    for density, exact in zip(shown.densities.numpy(), expected, strict=True):
        np.testing.assert_allclose(density, exact / exact.max(), atol=1e-10)


# The reverse kernel


@pytest.mark.parametrize(
    ("name", "T", "t", "x_t"),
    [("cosine", 10, 0.2, 0.15), ("linear", 10, 0.1, 0.1), ("linear", 50, 1.0, -2.5), ("cosine", 1000, 0.5, 1.0)],
)
def test_the_kernel_is_bayes_on_a_grid(explorers, name, T, t, x_t):
    """q(x_{t−1} | x_t) ∝ q(x_t | x_{t−1}) q(x_{t−1}), normalised numerically; then its moments, shape and KL."""
    shown = explorers[ReverseKernelExplorer].compute(schedule=name, T=T, t=t, x_t=x_t)
    fine = np.concatenate([[1], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    if name == "cosine":
        f = np.cos(math.pi / 2 * (np.arange(1001) / 1000 + 0.008) / 1.008) ** 2
        fine = np.concatenate([[1], np.cumprod(np.maximum(f[1:] / f[:-1], 0.001))])
    before, now = (fine[(shown.t - k) * (1000 // T)] for k in (1, 0))
    x = np.linspace(-8, 8, 200001)
    prior = sum(w * norm.pdf(x, before**0.5 * m, (before * s**2 + 1 - before) ** 0.5) for w, m, s in ((0.7, -1, 0.2), (0.3, 1.5, 0.3)))
    density = prior * norm.pdf(x_t, (now / before) ** 0.5 * x, (1 - now / before) ** 0.5)
    density /= np.trapezoid(density, x) if hasattr(np, "trapezoid") else np.trapz(density, x)  # noqa: NPY201
    dx = x[1] - x[0]
    mean = (x * density).sum() * dx
    std = ((x - mean) ** 2 * density).sum() ** 0.5 * dx**0.5
    best = norm.logpdf(x, mean, std)
    kl = (density * (np.log(np.maximum(density, 1e-300)) - best)).sum() * dx
    grid = explorers[ReverseKernelExplorer].grid.numpy()
    np.testing.assert_allclose(shown.densities[0], np.interp(grid, x, prior), atol=1e-6)
    np.testing.assert_allclose(shown.densities[1], np.interp(grid, x, density), atol=1e-5)
    np.testing.assert_allclose(shown.densities[2], norm.pdf(grid, mean, std), atol=1e-5)
    z = explorers[ReverseKernelExplorer].z.numpy()
    np.testing.assert_allclose(shown.standardised, std * np.interp(mean + std * z, x, density), atol=1e-5)
    assert (shown.mean, shown.std) == pytest.approx((mean, std), abs=1e-7)
    assert shown.kl == pytest.approx(kl, abs=1e-8) and shown.kls[KERNEL_STEPS.index(T)] == shown.kl


def test_small_steps_make_it_gaussian(explorers):
    for name, t in itertools.product(("cosine", "linear"), (0.1, 0.2)):
        kls = explorers[ReverseKernelExplorer].compute(schedule=name, T=10, t=t, x_t=0.15).kls
        assert kls[0] > 0.3 and kls[-1] < 1e-3 and all(a > b > 0 for a, b in itertools.pairwise(kls))


def test_the_gap_of_a_gaussian_is_zero_and_of_two_points_grows():
    one = type(MIXTURE)([1.0], [0.3], [0.02])
    assert gaussian_gap(one) == pytest.approx(0, abs=1e-12)
    apart = type(MIXTURE)([0.5, 0.5], [-10.0, 10.0], [0.5, 0.5])  # apart, the entropy is ln 2 + that of one: KL = ½ ln(v/s²) − ln 2
    assert gaussian_gap(apart) == pytest.approx(0.5 * math.log(100.25 / 0.25) - math.log(2), abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_coarse_steps_pass_through_the_same_places(name):
    fine = coarse_schedule(name, 1000)
    for T in KERNEL_STEPS:
        assert torch.allclose(coarse_schedule(name, T).alpha_bar, fine.alpha_bar[:: 1000 // T], rtol=1e-9, atol=0)
