"""The diffusion process against closed forms (point mass, Gaussian, mixture), diffusers' schedulers, and itself."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy.stats import chi2
from torch import nn
from torch.distributions import Normal

from coursekit.checks import check_moments
from coursekit.diffusion import Diffusion, GaussianMixture, NoiseSchedule, kernels
from coursekit.diffusion.process import ddim_times

F64 = torch.float64
COSINE = NoiseSchedule.cosine(50)
BIMODAL = GaussianMixture([0.7, 0.3], [-1.0, 1.5], [0.2, 0.3])


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Exact(nn.Module):
    """A network without weights: ``rule(x_t, t)`` is its noise. Remembers what it was asked."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.asked = rule, []

    def forward(self, x_t, t):
        self.asked.append((x_t, t, self.training, torch.is_grad_enabled()))
        return self.rule(x_t, t)


def point(schedule, c):
    return Exact(lambda x, t: kernels.noise_from_x_0(schedule, x, t, torch.full_like(x, c)))


def gaussian(schedule, mean, variance):
    """√(1−ᾱ)(x − √ᾱ m)/(ᾱ s² + 1 − ᾱ), with each item's own ᾱ."""

    def rule(x, t):
        a = schedule.alpha_bar[t].reshape(-1, 1, 1, 1).to(x.dtype)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * variance + 1 - a)

    return Exact(rule)


def mixture(schedule, law):
    return Exact(lambda x, t: law.expected_noise(x, schedule.alpha_bar[int(t[0])]))


class SmallNet(nn.Module):
    """Random weights, in float64, and a time that matters: nothing about it is special."""

    def __init__(self, channels=3, dropout=0.0):
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.last = nn.Dropout(dropout), nn.Conv2d(8, channels, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = normal(*parameter.shape, seed=parameter.numel()) * 0.3
        self.double()

    def forward(self, x, t):
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)) + t.to(x)[:, None, None, None] / 25 - 1)))


def net(schedule=COSINE, size=4, **options):
    return Diffusion(SmallNet(), image_size=size, schedule=schedule, **options)


def pixels(model, schedule, **options):
    """One-dimensional data as images of one pixel."""
    return Diffusion(model, image_size=1, channels=1, schedule=schedule, **options)


# --- training ----------------------------------------------------------------------------------------------------------


def test_forward_is_the_loss_of_its_draws():
    for loss, distance in (("l1", torch.abs), ("l2", torch.square)):
        diffusion, x_0 = net(loss=loss), normal(6, 3, 4, 4).clamp(-1, 1)
        diffusion.eval()
        t, noise = diffusion.draw(6, seeded(3))
        assert t.shape == (6,) and t.dtype == torch.int64 and noise.shape == x_0.shape and noise.dtype == F64
        value = diffusion(x_0, seeded(3))
        a = COSINE.alpha_bar[t].reshape(-1, 1, 1, 1)
        predicted = diffusion.model(a.sqrt() * x_0 + (1 - a).sqrt() * noise, t)
        assert value.shape == () and torch.allclose(value, distance(noise - predicted).mean(), atol=1e-12)
        assert torch.equal(value, diffusion.p_loss(x_0, t, noise))
        assert not torch.equal(value, diffusion(x_0, seeded(4)))


def test_gradients_reach_the_weights():
    diffusion = net()
    diffusion(normal(6, 3, 4, 4).clamp(-1, 1), seeded()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in diffusion.model.last.parameters())


def test_each_image_has_its_own_t():
    diffusion = net().eval()
    x_0, noise, t = normal(4, 3, 4, 4), normal(4, 3, 4, 4, seed=1), torch.tensor([1, 17, 50, 2])
    alone = [diffusion.p_loss(x_0[[i]], t[[i]], noise[[i]]) for i in range(4)]
    assert torch.allclose(diffusion.p_loss(x_0, t, noise), torch.stack(alone).mean(), atol=1e-12)
    assert torch.equal(diffusion.p_loss(x_0, 17, noise), diffusion.p_loss(x_0, torch.full((4,), 17), noise))
    x_t = diffusion.q_sample(x_0, t, noise)
    assert torch.allclose(x_t[1], COSINE.alpha_bar[17].sqrt() * x_0[1] + (1 - COSINE.alpha_bar[17]).sqrt() * noise[1], atol=1e-12)
    predictions = [diffusion.predict(x_t[[i]], int(t[i]))[1] for i in range(4)]
    assert torch.allclose(diffusion.predict(x_t, t)[1], torch.cat(predictions), atol=1e-10)


def test_the_model_is_asked_with_one_integer_an_image():
    for t in (7, torch.tensor([7, 9])):
        model = Exact(lambda x, t: torch.zeros_like(x))
        diffusion = Diffusion(model, image_size=4, schedule=COSINE)
        diffusion.p_loss(normal(2, 3, 4, 4), t, normal(2, 3, 4, 4))
        (_, asked, _, _), = model.asked
        assert asked.shape == (2,) and asked.dtype == torch.int64 and torch.equal(asked, torch.as_tensor(t).expand(2))


def test_t_is_uniform_and_noise_standard_normal():
    schedule = NoiseSchedule.cosine(7)
    t, noise = Diffusion(Exact(None), image_size=2, schedule=schedule).draw(14_000, seeded())
    counts = t.bincount(minlength=9)
    assert counts[0] == counts[8] == 0
    statistic = ((counts[1:8] - 2000.0) ** 2 / 2000).sum().item()
    assert statistic < chi2.ppf(0.9999, 6)
    check_moments("noise", noise, mean=0, variance=1)
    assert abs(torch.corrcoef(torch.stack([t.float(), noise.mean((1, 2, 3))]))[0, 1].item()) < 4 / math.sqrt(14_000)


def test_two_processes_that_slice_the_draws_have_the_loss_of_one():
    diffusion, x_0 = net().eval(), normal(8, 3, 4, 4).clamp(-1, 1)
    t, noise = diffusion.draw(8, seeded())
    halves = [diffusion.p_loss(x_0[half], t[half], noise[half]) for half in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(diffusion(x_0, seeded()), torch.stack(halves).mean(), atol=1e-12)


@pytest.mark.parametrize(("loss", "floor"), [("l1", 0.3750), ("l2", 0.3182)])
def test_the_best_network_reaches_the_floor_of_gaussian_data(loss, floor):
    """The noise that is left has variance v_t = ᾱ s²/(ᾱ s² + 1 − ᾱ): mean square v_t, mean absolute value √(2 v_t/π)."""
    v = COSINE.alpha_bar[1:] * 0.25 / (COSINE.alpha_bar[1:] * 0.25 + 1 - COSINE.alpha_bar[1:])
    exact = (v if loss == "l2" else (2 * v / math.pi).sqrt()).mean().item()
    assert exact == pytest.approx(floor, abs=1e-4)
    for seed in range(3):
        x_0 = 0.3 + 0.5 * normal(50_000, 1, 2, 2, seed=seed)
        diffusion = Diffusion(gaussian(COSINE, 0.3, 0.25), image_size=2, channels=1, schedule=COSINE, loss=loss, clip=False)
        # the standard error is that of 50,000 times t: the √v_t vary by about 0.2, and so 0.003 is four of them
        assert diffusion(x_0, seeded(100 + seed)).item() == pytest.approx(exact, abs=0.006)


@pytest.mark.parametrize(
    ("x_0", "clip", "message"),
    [
        (torch.rand(2, 3, 4, 4) * 255, True, r"in \[-1, 1\], found values up to 2\d\d.*x / 127\.5 - 1"),
        (torch.full((2, 3, 4, 4), -1.01), True, r"in \[-1, 1\], found values up to 1.01"),
        (torch.full((2, 3, 4, 4), math.nan), True, "found values up to nan"),
        (torch.tensor([1.0, math.nan]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4), False, "finite, found values up to nan"),
        (torch.full((2, 3, 4, 4), -math.inf), False, "finite, found values up to inf"),
        (torch.zeros(2, 1, 4, 4), True, r"x_0 must have shape \(B, 3, 4, 4\), got \(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 5), True, r"got \(2, 3, 4, 5\)"),
        (torch.zeros(3, 4, 4), True, r"got \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), True, "batch_size must be at least 1, got 0"),
    ],
)
def test_data_that_cannot_be_right_are_refused(x_0, clip, message):
    with pytest.raises(ValueError, match=message):
        net(clip=clip)(x_0.double())


def test_data_at_the_ends_of_the_range_and_beyond_it_without_clip():
    zeros = Exact(lambda x, t: torch.zeros_like(x))
    for value, clip in ((1.0, True), (-1.0, True), (1.001, True), (40.0, False), (-40.0, False)):
        x_0 = torch.full((2, 3, 4, 4), value, dtype=F64)
        assert torch.isfinite(Diffusion(zeros, image_size=4, schedule=COSINE, clip=clip)(x_0))


# --- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-7), (F64, 1e-13)])
@pytest.mark.parametrize("clip", [True, False])
def test_a_point_mass_comes_back(dtype, tolerance, clip):
    """Whatever the way: every right sampler ends at c."""
    for c in (0.6, -1.0):
        diffusion = Diffusion(point(COSINE, c), image_size=2, schedule=COSINE, clip=clip)
        x_T = normal(3, 3, 2, 2, dtype=dtype)
        assert (diffusion.p_sample_loop(x_T, seeded()) - c).abs().max() <= tolerance
        for steps in (2, 3, 5, 10, 49, 50):
            for eta in (0.0, 0.5, 1.0):
                x_0 = diffusion.ddim_sample(x_T, steps, eta, seeded())
                assert x_0.dtype == dtype and (x_0 - c).abs().max() <= tolerance, (c, steps, eta)
        # in one step, what rounding does to ε is multiplied by √(1−ᾱ_T)/√ᾱ_T, about 1015
        assert (diffusion.ddim_sample(x_T, 1) - c).abs().max() <= 2000 * tolerance


def test_gaussian_data_follow_the_exact_recursion():
    """The sampler is affine: step by step its gain, offset and noise; after T steps the variance is .875 s², not s²."""
    m, s2 = 0.3, 0.25
    diffusion = pixels(gaussian(COSINE, m, s2), COSINE, clip=False)
    zero, one = torch.zeros(1, 1, 1, 1, dtype=F64), torch.ones(1, 1, 1, 1, dtype=F64)
    mean, variance = 0.0, 1.0
    for t in range(50, 0, -1):
        a, previous, beta = (v.item() for v in (COSINE.alpha_bar[t], COSINE.alpha_bar[t - 1], COSINE.beta[t]))
        regression = math.sqrt(a) * s2 / (a * s2 + 1 - a)   # E[x_0 | x_t] = m + regression·(x_t − √ᾱ_t m)
        on_x_0, on_x_t = math.sqrt(previous) * beta / (1 - a), math.sqrt(1 - beta) * (1 - previous) / (1 - a)
        gain, fresh = on_x_0 * regression + on_x_t, math.sqrt(beta * (1 - previous) / (1 - a))
        offset = on_x_0 * m * (1 - regression * math.sqrt(a))
        assert diffusion.p_step(zero, t, zero)[0].item() == pytest.approx(offset, abs=1e-12)
        assert diffusion.p_step(one, t, zero)[0].item() - offset == pytest.approx(gain, abs=1e-12)
        assert diffusion.p_step(zero, t, one)[0].item() - offset == pytest.approx(fresh, abs=1e-12)
        mean, variance = gain * mean + offset, gain**2 * variance + fresh**2
    assert variance / s2 == pytest.approx(0.875, abs=1e-3)
    for seed in range(3):
        x_0 = diffusion.p_sample_loop(normal(20_000, 1, 1, 1, seed=seed), seeded(100 + seed))
        check_moments("DDPM on Gaussian data", x_0, mean=mean, variance=variance)


def test_gaussian_data_by_ddim():
    s2, variance = 0.25, 1.0
    diffusion = pixels(gaussian(COSINE, 0.0, s2), COSINE, clip=False)
    for t in range(50, 0, -1):
        a, previous = COSINE.alpha_bar[t].item(), COSINE.alpha_bar[t - 1].item()
        noise, x_0 = math.sqrt(1 - a) / (a * s2 + 1 - a), math.sqrt(a) * s2 / (a * s2 + 1 - a)
        variance *= (math.sqrt(previous) * x_0 + math.sqrt(1 - previous) * noise) ** 2
    assert variance / s2 == pytest.approx(0.939, abs=1e-3)
    one = torch.ones(1, 1, 1, 1, dtype=F64)
    assert diffusion.ddim_sample(one, 50).item() == pytest.approx(math.sqrt(variance), abs=1e-10)   # linear, so one number says all


def quantiles(law, n):
    """n numbers spread exactly as ``law`` is: its quantiles at (i + ½)/n."""
    grid = torch.linspace(-8, 8, 160_001, dtype=F64)
    cdf = sum(w * Normal(m, s).cdf(grid) for w, m, s in zip(law.weights, law.means, law.stds, strict=True))
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, cdf.numpy(), grid.numpy()))


def test_the_exact_network_of_a_mixture_brings_the_mixture_back():
    """W1 to the exact quantiles, from exact normal quantiles for x_T: DDIM's only error is its steps, of first order."""
    schedule, n = NoiseSchedule.cosine(200), 4000
    diffusion = pixels(mixture(schedule, BIMODAL), schedule, clip=False)
    x_T, data = quantiles(GaussianMixture([1.0], [0.0], [1.0]), n).reshape(n, 1, 1, 1), quantiles(BIMODAL, n)

    def distance(x_0):
        return (x_0.flatten().sort().values - data).abs().mean().item()

    coarse = {steps: distance(diffusion.ddim_sample(x_T, steps)) for steps in (5, 10, 20, 50, 200)}
    assert list(coarse.values()) == pytest.approx([0.137, 0.0737, 0.0382, 0.0157, 0.0040], abs=2e-4)
    assert distance(diffusion.p_sample_loop(x_T, seeded())) < 0.06   # ten seeds: .007 to .036
    assert distance(diffusion.ddim_sample(x_T, 20, 1.0, seeded())) < 0.13   # ten seeds: .044 to .093


def test_no_noise_at_the_last_step_and_the_posterior_variance_before():
    diffusion = net().eval()
    x_t, t = normal(4, 3, 4, 4), torch.tensor([1, 2, 30, 50])
    z, none = normal(4, 3, 4, 4, seed=1), torch.zeros(4, 3, 4, 4, dtype=F64)
    with torch.no_grad():
        (quiet, x_0), (loud, again) = diffusion.p_step(x_t, t, none), diffusion.p_step(x_t, t, z)
    mean, variance = kernels.posterior(COSINE, x_0, x_t, t)
    assert torch.equal(x_0, again) and torch.allclose(quiet, mean) and torch.allclose(loud - quiet, variance.sqrt() * z, atol=1e-12)
    assert torch.equal(loud[0], x_0[0]) and (loud[1:] != quiet[1:]).all()
    with torch.no_grad():
        assert torch.equal(diffusion.p_sample(x_t, 1), diffusion.predict(x_t, 1)[1])
    assert torch.equal(diffusion.p_sample(x_t, t, seeded(5)), diffusion.p_step(x_t, t, normal(4, 3, 4, 4, seed=5))[0].detach())


def test_x_0_is_clamped_and_only_with_clip():
    shout = Exact(lambda x, t: torch.full_like(x, -30.0))
    x_T = normal(2, 3, 4, 4)
    clipped, free = (Diffusion(shout, image_size=4, schedule=COSINE, clip=clip) for clip in (True, False))
    noise, x_0 = clipped.predict(x_T, 50)
    assert (noise == -30).all() and (x_0 == 1).all()
    assert free.predict(x_T, 50)[1].min() > 300   # 1/√ᾱ_T is about 1015
    for x_0 in (clipped.p_sample_loop(x_T), clipped.ddim_sample(x_T, 7, 0.5), clipped.ddim_sample(x_T, 1), clipped.sample(2)):
        assert (x_0 == 1).all()
    low = Diffusion(Exact(lambda x, t: torch.full_like(x, 30.0)), image_size=4, schedule=COSINE)
    assert (low.sample(2) == -1).all()
    _, predictions = free.p_sample_loop(x_T, keep=True)
    assert predictions.max() > 300


def test_ddim_takes_the_noise_that_the_clamped_x_0_implies():
    diffusion, x_t = Diffusion(Exact(lambda x, t: torch.full_like(x, -30.0)), image_size=4, schedule=COSINE), normal(2, 3, 4, 4)
    a, b = COSINE.alpha_bar[30], COSINE.alpha_bar[20]
    x_s, x_0 = diffusion.ddim_step(x_t, 30, 20, torch.zeros_like(x_t))
    assert (x_0 == 1).all()
    assert torch.allclose(x_s, b.sqrt() + (1 - b).sqrt() * (x_t - a.sqrt()) / (1 - a).sqrt(), atol=1e-10)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("schedule", [COSINE, NoiseSchedule.linear(20, 5e-3, 0.5), NoiseSchedule.linear(1, 0.1, 0.3)])
def test_ddim_with_eta_one_and_all_steps_is_ddpm_draw_for_draw(schedule, clip):
    diffusion, x_T = net(schedule, clip=clip), normal(2, 3, 4, 4)
    # 1/√ᾱ_T multiplies rounding, and the clamp forgets it
    states, predictions = diffusion.p_sample_loop(x_T, seeded(1), keep=True)
    same, likewise = diffusion.ddim_sample(x_T, schedule.T, 1.0, seeded(1), keep=True)
    scale = max(1.0, states.abs().max().item())
    assert torch.allclose(states, same, atol=1e-7 * scale) and torch.allclose(predictions, likewise, atol=1e-7 * scale)


def test_ddim_without_eta_draws_nothing():
    diffusion, x_T, generator = net(), normal(2, 3, 4, 4), seeded(1)
    before = generator.get_state()
    first = diffusion.ddim_sample(x_T, 5, 0.0, generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(first, diffusion.ddim_sample(x_T, 5)) and not torch.equal(first, diffusion.ddim_sample(x_T, 5, 0.3, generator))
    assert not torch.equal(generator.get_state(), before)


# --- diffusers ---------------------------------------------------------------------------------------------------------


def exactly(scheduler, schedule):
    """diffusers rounds betas to float32: give its scheduler our float64 numbers."""
    scheduler.alphas_cumprod = schedule.alpha_bar[1:]
    return scheduler


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("clip", [True, False])
def test_agrees_with_diffusers_ddpm_step_by_step(clip, dtype, tolerance):
    schedule = NoiseSchedule.cosine(20) if clip else NoiseSchedule.linear(20, 5e-3, 0.4)   # without clip the cosine's 1/√ᾱ_T is too much
    theirs = exactly(DDPMScheduler(20, variance_type="fixed_small", clip_sample=clip), schedule)
    diffusion = net(schedule, clip=clip).to(dtype).eval()
    x = normal(3, 3, 4, 4, dtype=dtype)
    states, predictions = diffusion.p_sample_loop(x, seeded(1), keep=True)
    generator = seeded(1)
    with torch.no_grad():
        for i, t in enumerate(range(20, 0, -1)):
            step = theirs.step(diffusion.model(x, torch.full((3,), t)), t - 1, x, generator=generator)
            x = step.prev_sample.to(dtype)
            assert torch.allclose(states[i + 1], x, atol=tolerance), t
            assert torch.allclose(predictions[i], step.pred_original_sample.to(dtype), atol=20 * tolerance), t


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [20, 5, 1])
def test_agrees_with_diffusers_ddim_step_by_step(steps, clip, eta):
    schedule = NoiseSchedule.cosine(20) if clip else NoiseSchedule.linear(20, 5e-3, 0.4)
    theirs = exactly(DDIMScheduler(20, clip_sample=clip, timestep_spacing="trailing"), schedule)
    theirs.set_timesteps(steps)
    assert [t + 1 for t in theirs.timesteps.tolist()] == ddim_times(20, steps)
    diffusion = net(schedule, clip=clip).eval()
    x = normal(3, 3, 4, 4)
    states, predictions = diffusion.ddim_sample(x, steps, eta, seeded(1), keep=True)
    generator = seeded(1)
    with torch.no_grad():
        for i, t in enumerate(theirs.timesteps.tolist()):
            noise, z = diffusion.model(x, torch.full((3,), t + 1)), torch.randn(x.shape, dtype=F64, generator=generator)
            step = theirs.step(noise, t, x, eta=eta, use_clipped_model_output=True, variance_noise=z)
            x = step.prev_sample
            assert torch.allclose(states[i + 1], x, atol=1e-7), t
            assert torch.allclose(predictions[i], step.pred_original_sample, atol=1e-7), t


# --- the loops' bookkeeping ----------------------------------------------------------------------------------------------


def test_what_is_kept_are_the_states_from_x_T_to_x_0():
    diffusion, x_T = net(), normal(2, 3, 4, 4)
    for kept, plain, steps in (
        (diffusion.p_sample_loop(x_T, seeded(), keep=True), diffusion.p_sample_loop(x_T, seeded()), 50),
        (diffusion.ddim_sample(x_T, 8, 0.5, seeded(), keep=True), diffusion.ddim_sample(x_T, 8, 0.5, seeded()), 8),
    ):
        states, predictions = kept
        assert states.shape == (steps + 1, 2, 3, 4, 4) and predictions.shape == (steps, 2, 3, 4, 4)
        assert torch.equal(states[0], x_T) and torch.equal(states[-1], plain) and torch.equal(predictions[-1], plain)
    with torch.no_grad():
        assert torch.equal(predictions[0], diffusion.eval().predict(x_T, 50)[1])


def test_the_model_is_asked_at_the_right_times():
    for run, times in (
        (lambda d: d.p_sample_loop(normal(2, 3, 4, 4)), list(range(50, 0, -1))),
        (lambda d: d.ddim_sample(2, 3), [50, 33, 17]),
    ):
        model = Exact(lambda x, t: torch.zeros_like(x))
        run(Diffusion(model, image_size=4, schedule=COSINE))
        assert [t.tolist() for _, t, _, _ in model.asked] == [[t, t] for t in times]


def test_samples_have_the_models_type_and_hang_on_the_generator_alone():
    for dtype in (torch.float32, F64):
        diffusion = net().to(dtype)
        x = diffusion.sample(2, seeded())
        assert x.shape == (2, 3, 4, 4) and x.dtype == dtype and x.abs().max() <= 1
        assert torch.equal(x, diffusion.sample(2, seeded())) and not torch.equal(x, diffusion.sample(2, seeded(1)))
        generator = seeded()
        x_T = torch.randn(2, 3, 4, 4, dtype=dtype, generator=generator)
        assert torch.equal(x, diffusion.p_sample_loop(x_T, generator))
        assert torch.equal(diffusion.ddim_sample(2, 5, generator=seeded()), diffusion.ddim_sample(x_T, 5))
    torch.manual_seed(0)
    global_draw = net().sample(2)
    torch.manual_seed(0)
    assert torch.equal(global_draw, net().sample(2))
    assert Diffusion(Exact(lambda x, t: x), image_size=4, channels=2, schedule=COSINE).sample(3).shape == (3, 2, 4, 4)


def test_draws_go_to_the_models_device():
    diffusion = Diffusion(nn.Conv2d(3, 3, 1, device="meta"), image_size=4, schedule=COSINE)
    t, noise = diffusion.draw(2, seeded())
    assert t.device.type == noise.device.type == "meta" and noise.shape == (2, 3, 4, 4)


def test_sampling_is_in_eval_mode_without_gradients_and_puts_every_module_back():
    model = SmallNet(dropout=0.5)
    diffusion = Diffusion(model, image_size=4, schedule=NoiseSchedule.cosine(3))
    x_T = normal(2, 3, 4, 4)
    for sampler in (
        lambda: diffusion.p_sample_loop(x_T, seeded()), lambda: diffusion.ddim_sample(x_T, 2), lambda: diffusion.p_sample(x_T, 2, seeded())
    ):
        diffusion.train()
        model.norm.eval()   # frozen by hand, to be left so
        statistics = model.norm.running_mean.clone()
        first = sampler()
        assert diffusion.training and model.training and model.drop.training and not model.norm.training
        assert not first.requires_grad and torch.equal(model.norm.running_mean, statistics)
        diffusion.eval()
        assert torch.equal(first, sampler()) and not diffusion.training and not model.drop.training


def test_the_mode_comes_back_after_an_error():
    diffusion = Diffusion(Exact(lambda x, t: 1 / 0), image_size=4, schedule=COSINE)
    with pytest.raises(ZeroDivisionError):
        diffusion.sample(1)
    assert diffusion.training and diffusion.model.training and torch.is_grad_enabled()
    _, _, training, gradients = diffusion.model.asked[0]
    assert not training and not gradients


def test_the_schedule_stays_exact_and_out_of_the_weights():
    diffusion = net().to(torch.float32)
    assert diffusion.schedule.alpha_bar.dtype == F64
    assert all(name.startswith("model.") for name in diffusion.state_dict())


def test_predict_can_be_differentiated():
    x_t = normal(2, 3, 4, 4).requires_grad_()
    net(clip=False).predict(x_t, 20)[1].sum().backward()
    assert x_t.grad.abs().sum() > 0


# --- times and refusals --------------------------------------------------------------------------------------------------


def test_ddim_times():
    assert ddim_times(50, 10) == [50, 45, 40, 35, 30, 25, 20, 15, 10, 5]
    assert ddim_times(50, 1) == [50] and ddim_times(4, 4) == [4, 3, 2, 1] and ddim_times(10, 3) == [10, 7, 3]
    for T in range(1, 30):
        for steps in range(1, T + 1):
            times = ddim_times(T, steps)
            assert len(times) == steps and times[0] == T and times[-1] >= 1
            assert all(s < t for t, s in pairwise(times))


def mean_over_channels():
    return Diffusion(Exact(lambda x, t: x.mean(1, keepdim=True)), image_size=4, schedule=COSINE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net(size=0), "image_size and channels must be at least 1, got 0 and 3"),
        (lambda: Diffusion(SmallNet(), image_size=4, channels=0, schedule=COSINE), "got 4 and 0"),
        (lambda: net(loss="huber"), "loss must be 'l1' or 'l2', got 'huber'"),
        (lambda: net().sample(0), "batch_size must be at least 1, got 0"),
        (lambda: net().draw(-1), "batch_size must be at least 1, got -1"),
        (lambda: net().ddim_sample(0, 5), "batch_size must be at least 1"),
        (lambda: net().ddim_sample(2, 51), r"steps must lie in 1 … 50, the number of steps that the schedule has, got 51"),
        (lambda: net().ddim_sample(2, 0), "got 0"),
        (lambda: net().ddim_sample(2, 5, 1.5), "eta must lie in 0 … 1"),
        (lambda: net().p_sample_loop(normal(2, 3, 4, 5)), r"x_T must have shape \(B, 3, 4, 4\), got \(2, 3, 4, 5\)"),
        (lambda: net().ddim_sample(normal(3, 4, 4), 5), r"x_T must have shape \(B, 3, 4, 4\), got \(3, 4, 4\)"),
        (lambda: net().p_sample(normal(2, 1, 4, 4), 3), r"x_t must have shape \(B, 3, 4, 4\), got \(2, 1, 4, 4\)"),
        (lambda: net().p_sample(normal(2, 3, 4, 4), 51), "t must lie in 1 … 50, got 51"),
        (lambda: net().p_loss(normal(2, 3, 4, 4), torch.tensor([1, 2, 3]), normal(2, 3, 4, 4)), "t has 3 entries"),
        (lambda: net().p_loss(normal(2, 3, 4, 4), 1, normal(2, 3, 4)), r"noise has shape \(2, 3, 4\)"),
        (lambda: mean_over_channels().p_loss(normal(1, 3, 4, 4), 1, normal(1, 3, 4, 4)), r"returned shape \(1, 1, 4, 4\) for images of"),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
