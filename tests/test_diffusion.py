"""Schedules, kernels and mixtures against brute force, autograd, torch.distributions and diffusers' schedulers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.distributions import Categorical, MixtureSameFamily, Normal

from coursekit.diffusion import GaussianMixture, NoiseSchedule
from coursekit.diffusion import kernels as k

F64 = torch.float64
SCHEDULES = {
    "linear 50": NoiseSchedule.linear(50, 2e-3, 0.4),
    "cosine 50": NoiseSchedule.cosine(50),
    "T=1": NoiseSchedule.linear(1, 1e-4, 0.3),
    "uneven": NoiseSchedule(torch.tensor([1, 0.9, 0.5, 0.99, 0.7])),
}
BIMODAL = GaussianMixture([0.7, 0.3], [-1.0, 1.5], [0.2, 0.3])

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def batch(schedule, size=9, shape=(2, 3)):
    """Data, x_t, noise and a time for each item, with t = 1 and t = T among them."""
    t = torch.linspace(1, schedule.T, size).round().long()
    x_0, noise = normal(size, *shape), normal(size, *shape, seed=1)
    return x_0, noise, t, k.q_sample(schedule, x_0, t, noise)


# --- schedules ---------------------------------------------------------------------------------------------------------


@every_schedule
def test_another_device_gets_the_same_schedule(schedule):
    assert torch.equal(schedule.to("cpu").alpha, schedule.alpha)


def test_a_schedule_is_its_own():
    alpha = torch.tensor([1, 0.9, 0.8], dtype=F64)
    schedule = NoiseSchedule(alpha)
    alpha[1] = 0.1
    assert schedule.alpha.tolist() == [1, 0.9, 0.8]


@every_schedule
def test_arrays_are_indexed_by_t_and_start_at_one(schedule):
    assert len(schedule.alpha) == len(schedule.alpha_bar) == len(schedule.beta) == len(schedule.snr) == schedule.T + 1
    assert schedule.alpha[0] == schedule.alpha_bar[0] == 1 and schedule.beta[0] == 0 and schedule.snr[0] == math.inf
    product = 1.0
    for t in range(1, schedule.T + 1):
        product *= schedule.alpha[t].item()
        assert schedule.alpha_bar[t].item() == pytest.approx(product, rel=1e-12)
        assert schedule.beta[t].item() == pytest.approx(1 - schedule.alpha[t].item(), abs=1e-15)
        assert schedule.snr[t].item() == pytest.approx(product / (1 - product), rel=1e-12)
    assert schedule.alpha_bar.dtype == F64


def test_linear_against_diffusers_and_its_ends():
    ours, theirs = NoiseSchedule.linear(1000), DDPMScheduler(1000, 1e-4, 0.02, "linear")
    assert torch.allclose(ours.alpha_bar[1:], theirs.alphas_cumprod.double(), rtol=1e-4)
    assert ours.beta[1].item() == pytest.approx(1e-4) and ours.beta[1000].item() == pytest.approx(0.02)
    assert NoiseSchedule.linear(1, 1e-4, 0.3).beta[1].item() == pytest.approx(0.3)
    assert NoiseSchedule.linear(2, 1e-4, 0.3).beta[1:].tolist() == pytest.approx([1e-4, 0.3])
    assert NoiseSchedule.linear(3, 0.2, 0.2).beta[1:].tolist() == pytest.approx([0.2, 0.2, 0.2])


def test_cosine_against_its_formula_and_diffusers():
    for T, s in ((1, 0.008), (7, 0.008), (50, 0.0), (50, 0.1)):
        schedule = NoiseSchedule.cosine(T, s)

        def f(t, T=T, s=s):
            return math.cos(math.pi / 2 * (t / T + s) / (1 + s)) ** 2

        for t in range(1, T + 1):
            assert schedule.alpha[t].item() == pytest.approx(max(f(t) / f(t - 1), 1e-3), rel=1e-9)
    assert NoiseSchedule.cosine(50).alpha_bar[-1].item() == pytest.approx(9.71e-7, rel=1e-3)
    theirs = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    assert torch.allclose(NoiseSchedule.cosine(1000).alpha_bar[1:], theirs, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NoiseSchedule.linear(0), ValueError, "at least 1, got 0"),
        (lambda: NoiseSchedule.cosine(-3), ValueError, "at least 1, got -3"),
        (lambda: NoiseSchedule.linear(10.0), TypeError, "must be an int"),
        (lambda: NoiseSchedule.cosine(True), TypeError, "must be an int"),
        (lambda: NoiseSchedule.linear(10, 0.0, 0.1), ValueError, "0 < beta_min"),
        (lambda: NoiseSchedule.linear(10, 0.2, 0.1), ValueError, "beta_min ≤ beta_max"),
        (lambda: NoiseSchedule.linear(10, 0.1, 1.0), ValueError, "beta_max < 1"),
        (lambda: NoiseSchedule.linear(10, math.nan, 0.1), ValueError, "nan"),
        (lambda: NoiseSchedule.cosine(10, -0.1), ValueError, "s must be"),
        (lambda: NoiseSchedule.cosine(10, math.nan), ValueError, "s must be"),
        (lambda: NoiseSchedule.cosine(10, alpha_min=0), ValueError, "alpha_min"),
        (lambda: NoiseSchedule.cosine(10, alpha_min=1), ValueError, "alpha_min"),
        (lambda: NoiseSchedule.cosine(10, alpha_min=1.5), ValueError, "alpha_min"),
        (lambda: NoiseSchedule(torch.tensor([0.9, 0.8])), ValueError, r"alpha\[0\] must be 1"),
        (lambda: NoiseSchedule(torch.tensor([1, 0.9, 1.0])), ValueError, r"alpha\[2\] = 1"),
        (lambda: NoiseSchedule(torch.tensor([1, 0.0])), ValueError, r"alpha\[1\] = 0"),
        (lambda: NoiseSchedule(torch.tensor([1, math.nan])), ValueError, r"alpha\[1\] = nan"),
        (lambda: NoiseSchedule(torch.ones(1)), ValueError, "T ≥ 1"),
        (lambda: NoiseSchedule(torch.ones(2, 2)), ValueError, r"shape \(2, 2\)"),
        (lambda: NoiseSchedule(torch.cat([torch.ones(1), torch.full((400,), 0.1)])), ValueError, "alpha_bar must fall"),
        (lambda: NoiseSchedule(torch.tensor([1, 1e-200, 1e-200], dtype=F64)), ValueError, "stay above 0"),   # falls, to 0
        (lambda: NoiseSchedule(torch.tensor([1, 1e-200, 1e-123, 0.9], dtype=F64)), ValueError, "alpha_bar must fall"),   # stays, above 0
    ],
)
def test_impossible_schedules_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (0, ValueError, r"1 … 50, got 0 … 0"),
        (51, ValueError, r"got 51 … 51"),
        (-1, ValueError, "got -1"),
        (torch.tensor([3, 51]), ValueError, "got 3 … 51"),
        (2.0, TypeError, "integer tensor"),
        (True, TypeError, "integer tensor"),
        (torch.tensor([1.0, 2.0]), TypeError, "integer tensor"),
        (torch.tensor([True, False]), TypeError, "integer tensor"),
        (torch.tensor([[1, 2]]), ValueError, r"shape \(1, 2\)"),
        (torch.tensor([1, 2, 3]), ValueError, "3 entries"),
    ],
)
def test_wrong_times_are_refused(t, error, message):
    schedule, x = SCHEDULES["cosine 50"], normal(2, 4)
    calls = [
        lambda: k.q_sample(schedule, x, t, x),
        lambda: k.posterior(schedule, x, x, t),
        lambda: k.x_0_from_noise(schedule, x, t, x),
        lambda: k.noise_from_x_0(schedule, x, t, x),
        lambda: k.score_from_noise(schedule, t, x),
        lambda: k.noise_from_score(schedule, t, x),
        lambda: k.mean_from_noise(schedule, x, t, x),
        lambda: k.noise_from_mean(schedule, x, t, x),
        lambda: k.ancestral_step(schedule, x, t, x, x),
        lambda: k.ddim_step(schedule, x, t, 0, x, x),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_wrong_shapes_are_refused():
    schedule, x, y = SCHEDULES["cosine 50"], normal(2, 4), normal(4)
    for call in (
        lambda: k.q_sample(schedule, x, 1, y),
        lambda: k.posterior(schedule, y, x, 1),
        lambda: k.x_0_from_noise(schedule, x, 1, y),
        lambda: k.noise_from_x_0(schedule, x, 1, y),
        lambda: k.mean_from_noise(schedule, x, 1, y),
        lambda: k.noise_from_mean(schedule, x, 1, y),
        lambda: k.ancestral_step(schedule, x, 1, x, y),
        lambda: k.ddim_step(schedule, x, 1, 0, x, y),
    ):
        with pytest.raises(ValueError, match="must be that of the data"):
            call()


def test_one_time_for_all_is_that_time_for_each_and_types_stay():
    schedule = SCHEDULES["cosine 50"]
    for dtype in (torch.float32, F64):
        x, e = normal(3, 2, 2, dtype=dtype), normal(3, 2, 2, seed=1, dtype=dtype)
        for t in (1, 17, 50):
            each = torch.full((3,), t)
            assert torch.equal(k.q_sample(schedule, x, t, e), k.q_sample(schedule, x, each, e))
            assert torch.equal(k.posterior(schedule, e, x, t)[0], k.posterior(schedule, e, x, each)[0])
            assert k.posterior(schedule, e, x, each)[1].shape == (3, 1, 1)
            assert torch.equal(k.ddim_step(schedule, x, t, t - 1, e, e, 0.5), k.ddim_step(schedule, x, each, each - 1, e, e, 0.5))
            assert k.q_sample(schedule, x, t, e).dtype == k.ddim_step(schedule, x, t, 0, e, e).dtype == dtype


# --- kernels -----------------------------------------------------------------------------------------------------------


@every_schedule
def test_q_sample_is_the_chain(schedule):
    """Mean and variance, step by step, against the closed form at every t; forward_kernel composes."""
    one, zero = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    mean, variance = one, zero
    for t in range(1, schedule.T + 1):
        mean = schedule.alpha[t].sqrt() * mean
        variance = schedule.alpha[t] * variance + 1 - schedule.alpha[t]
        assert torch.allclose(k.q_sample(schedule, one, t, zero), mean, atol=1e-12)
        assert torch.allclose(k.q_sample(schedule, zero, t, one) ** 2, variance, atol=1e-12)
        for s in range(t):
            scale, noise = k.forward_kernel(schedule, s, t)
            to_s = k.forward_kernel(schedule, 0, s) if s else (one[0], zero[0])
            assert torch.allclose(scale * to_s[0], mean[0], atol=1e-12)
            assert torch.allclose(scale**2 * to_s[1] + noise, variance[0], atol=1e-12)


def test_forward_kernel_of_one_step_is_alpha():
    schedule = SCHEDULES["uneven"]
    scale, variance = k.forward_kernel(schedule, 2, 3)
    assert scale.item() == pytest.approx(math.sqrt(0.99), rel=1e-6) and variance.item() == pytest.approx(0.01, rel=1e-4)
    for s, t in ((3, 3), (4, 2)):
        with pytest.raises(ValueError, match="earlier"):
            k.forward_kernel(schedule, s, t)


@every_schedule
def test_posterior_is_bayes_on_a_grid(schedule):
    """q(x_{t-1}|x_t,x_0) ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0), integrated numerically."""
    x_0, x_t = 0.6, -0.4
    for t in {2, schedule.T // 2, schedule.T} - {0, 1}:
        if t > schedule.T:
            continue
        mean, variance = (v.item() for v in k.posterior(schedule, torch.tensor(x_0, dtype=F64), torch.tensor(x_t, dtype=F64), t))
        grid = mean + math.sqrt(variance) * torch.linspace(-9, 9, 20_001, dtype=F64)
        a_bar, a = schedule.alpha_bar[t - 1], schedule.alpha[t]
        log = Normal(a_bar.sqrt() * x_0, (1 - a_bar).sqrt()).log_prob(grid)
        log = log + Normal(a.sqrt() * grid, (1 - a).sqrt()).log_prob(torch.tensor(x_t, dtype=F64))
        weights = log.softmax(0)
        assert (weights * grid).sum().item() == pytest.approx(mean, abs=1e-8)
        assert (weights * (grid - mean) ** 2).sum().item() == pytest.approx(variance, rel=1e-6)


@every_schedule
def test_posterior_forms_agree_and_end_at_x_0(schedule):
    x_0, _, t, x_t = batch(schedule)
    forms = [k.posterior_mean(schedule, x_0, x_t, t, form) for form in ("coefficients", "conditioning", "residual")]
    for form in forms[1:]:
        assert torch.allclose(form, forms[0], atol=1e-10)
    mean, variance = k.posterior(schedule, x_0, x_t, t)
    assert torch.equal(mean, forms[0])
    assert torch.allclose(mean[t == 1], x_0[t == 1], atol=1e-12) and (variance[t == 1] == 0).all()
    with pytest.raises(ValueError, match="'coefficients', 'conditioning' or 'residual'"):
        k.posterior_mean(schedule, x_0, x_t, t, "other")


@every_schedule
def test_conversions_invert_each_other_and_name_the_same_thing(schedule):
    x_0, noise, t, x_t = batch(schedule)
    close = {"atol": 1e-9, "rtol": 1e-9}
    assert torch.allclose(k.x_0_from_noise(schedule, x_t, t, noise), x_0, **close)
    assert torch.allclose(k.noise_from_x_0(schedule, x_t, t, x_0), noise, **close)
    assert torch.allclose(k.noise_from_score(schedule, t, k.score_from_noise(schedule, t, noise)), noise, **close)
    mean = k.mean_from_noise(schedule, x_t, t, noise)
    assert torch.allclose(mean, k.posterior(schedule, x_0, x_t, t)[0], **close)
    assert torch.allclose(k.noise_from_mean(schedule, x_t, t, mean), noise, **close)
    x = x_t.clone().requires_grad_()
    signal, sigma = (c.reshape(-1, 1, 1) for c in (schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt()))
    (score,) = torch.autograd.grad(Normal(signal * x_0, sigma).log_prob(x).sum(), x)
    assert torch.allclose(k.score_from_noise(schedule, t, noise), score, **close)


@every_schedule
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ancestral_step(schedule, variance):
    x_0, noise, t, x_t = batch(schedule)
    z, none = normal(*x_t.shape, seed=2), torch.zeros_like(x_t)
    quiet, loud = (k.ancestral_step(schedule, x_t, t, noise, v, variance) for v in (none, z))
    mean, posterior_variance = k.posterior(schedule, x_0, x_t, t)
    assert torch.allclose(quiet, mean, atol=1e-9)
    expected = posterior_variance if variance == "posterior" else schedule.beta[t].reshape(-1, 1, 1) * (t > 1).reshape(-1, 1, 1)
    assert torch.allclose((loud - quiet) ** 2, expected * z**2, atol=1e-10)
    assert torch.equal(loud[t == 1], quiet[t == 1])   # no noise at the last step
    with pytest.raises(ValueError, match="'posterior' or 'beta'"):
        k.ancestral_step(schedule, x_t, t, noise, z, "learned")


@every_schedule
def test_ddim_with_eta_one_is_the_ancestral_step(schedule):
    _, noise, t, x_t = batch(schedule)
    z = normal(*x_t.shape, seed=2)
    ours = k.ddim_step(schedule, x_t, t, t - 1, noise, z, eta=1)
    # at s = 0 the direction's weight is the root of a rounding error, hence 1e-7 and not 1e-12
    assert torch.allclose(ours, k.ancestral_step(schedule, x_t, t, noise, z), atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginals_on_any_grid(eta):
    """With the true noise, a step from t to s maps N(√ᾱ_t x_0, 1−ᾱ_t) to N(√ᾱ_s x_0, 1−ᾱ_s), for any s < t."""
    schedule, x_0 = SCHEDULES["cosine 50"], torch.ones(1, dtype=F64)
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    for t, s in ((50, 49), (50, 20), (33, 0), (7, 3), (1, 0)):
        def step(noise, z, t=t, s=s):
            return k.ddim_step(schedule, k.q_sample(schedule, x_0, t, noise), t, s, noise, z, eta)

        mean = step(zero, zero)
        variance = (step(one, zero) - mean) ** 2 + (step(zero, one) - mean) ** 2
        assert torch.allclose(mean, schedule.alpha_bar[s].sqrt() * x_0, atol=1e-9)
        assert torch.allclose(variance, 1 - schedule.alpha_bar[s], atol=1e-9)
        share = (step(zero, one) - mean) ** 2
        _, noise = k.forward_kernel(schedule, s, t)
        assert torch.allclose(share, eta**2 * (1 - schedule.alpha_bar[s]) / (1 - schedule.alpha_bar[t]) * noise, atol=1e-12)


def test_ddim_refuses_a_target_time_of_another_batch_size():
    schedule, x = SCHEDULES["cosine 50"], normal(3, 4)
    for s in (torch.tensor([1, 2]), torch.tensor([1])):
        with pytest.raises(ValueError, match="first axis must match"):
            k.ddim_step(schedule, x, 5, s, x, x)


def test_bad_ddim_steps():
    schedule, x = SCHEDULES["cosine 50"], normal(2, 4)
    for t, s, eta, message in ((5, 5, 0, "earlier"), (5, 9, 0, "earlier"), (5, 4, 1.5, "eta"), (5, 4, -0.1, "eta"), (5, -1, 0, "0 … 50")):
        with pytest.raises(ValueError, match=message):
            k.ddim_step(schedule, x, t, s, x, x, eta)


@pytest.mark.parametrize("name", ["fixed_small", "fixed_large"])
def test_agrees_with_diffusers_ddpm(name):
    theirs = DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", variance_type=name, clip_sample=False)
    ours = NoiseSchedule(torch.cat([torch.ones(1), 1 - theirs.betas]))
    x, e = normal(3, 4), normal(3, 4, seed=1)
    for t in (1, 2, 25, 49, 50):
        torch.manual_seed(t)
        expected = theirs.step(e, t - 1, x).prev_sample
        torch.manual_seed(t)
        z = torch.randn(3, 4, dtype=F64)
        step = k.ancestral_step(ours, x, t, e, z, "posterior" if name == "fixed_small" else "beta")
        # their coefficients are float32 and their posterior variance is clipped at 1e-20
        assert torch.allclose(step, expected, rtol=2e-3 if t == 50 else 1e-4, atol=1e-4), t
        noisy = theirs.add_noise(x, e, torch.full((3,), t - 1))
        assert torch.allclose(k.q_sample(ours, x, t, e), noisy, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_agrees_with_diffusers_ddim_on_a_sub_grid(eta):
    theirs = DDIMScheduler(50, beta_schedule="linear", beta_start=2e-3, beta_end=0.2, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    ours = NoiseSchedule(torch.cat([torch.ones(1), 1 - theirs.betas]))
    x, e, z = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    for t in (50, 30, 10, 5):
        expected = theirs.step(e, t - 1, x, eta=eta, variance_noise=z).prev_sample
        assert torch.allclose(k.ddim_step(ours, x, t, t - 5, e, z, eta), expected, atol=2e-5), t


# --- mixtures ----------------------------------------------------------------------------------------------------------


def by_torch(mixture, a_bar):
    components = Normal(math.sqrt(a_bar) * mixture.means, (a_bar * mixture.stds**2 + 1 - a_bar).sqrt())
    return MixtureSameFamily(Categorical(mixture.weights), components)


@pytest.mark.parametrize("a_bar", [1.0, 0.97, 0.3, 1e-6, 0.0])
def test_density_score_and_noise(a_bar):
    x = torch.linspace(-4, 4, 33, dtype=F64).reshape(3, 11).requires_grad_()
    log_prob = by_torch(BIMODAL, a_bar).log_prob(x)
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    x = x.detach()
    assert torch.allclose(BIMODAL.log_prob(x, a_bar), log_prob.detach(), atol=1e-12)
    assert torch.allclose(BIMODAL.score(x, torch.tensor(a_bar, dtype=F64)), score, atol=1e-10)
    if a_bar < 1:
        assert torch.allclose(BIMODAL.expected_noise(x, a_bar), -math.sqrt(1 - a_bar) * score, atol=1e-10)
    if 0 < a_bar < 1:
        noise, x_0 = BIMODAL.expected_noise(x, a_bar), BIMODAL.expected_x_0(x, a_bar)
        assert torch.allclose(math.sqrt(a_bar) * x_0 + math.sqrt(1 - a_bar) * noise, x, atol=1e-10)


def test_expected_noise_by_simulation():
    a_bar, n = 0.4, 400_000
    generator = torch.Generator().manual_seed(0)
    x_0 = BIMODAL.sample(n, generator)
    noise = torch.randn(n, dtype=F64, generator=generator)
    x_t = math.sqrt(a_bar) * x_0 + math.sqrt(1 - a_bar) * noise
    for centre in (-1.2, -0.3, 0.5, 1.4):
        near = (x_t - centre).abs() < 0.05
        gap = noise[near] - BIMODAL.expected_noise(x_t[near], a_bar)
        assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(near.sum().item())


def test_moments_and_samples():
    assert BIMODAL.mean == pytest.approx(0.7 * -1 + 0.3 * 1.5)
    assert BIMODAL.variance == pytest.approx(0.7 * (0.04 + 1) + 0.3 * (0.09 + 2.25) - 0.25**2)
    x = BIMODAL.sample(200_000, torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(BIMODAL.mean, abs=0.011) and x.var().item() == pytest.approx(BIMODAL.variance, rel=0.02)
    assert (x > 0.3).double().mean().item() == pytest.approx(0.3, abs=0.005)
    far = GaussianMixture([0.5, 0.5], [1e9, 1e9], [1e-3, 1e-3])   # Σ w (s² + m²) − mean² is 0 here, or below
    assert far.variance == pytest.approx(1e-6)
    law = BIMODAL.diffused(0.3)
    assert law.mean == pytest.approx(math.sqrt(0.3) * BIMODAL.mean) and law.variance == pytest.approx(0.3 * BIMODAL.variance + 0.7)


@pytest.mark.parametrize("weights", [torch.tensor([1 / 3] * 3), torch.tensor([0.1] * 10), torch.linspace(-3, 2, 40).softmax(0)])
def test_float32_weights_are_weights(weights):
    law = GaussianMixture(weights, torch.zeros(len(weights)), torch.ones(len(weights)))
    assert law.weights.dtype == F64 and law.weights.sum().item() == pytest.approx(1, abs=1e-15)
    assert torch.allclose(law.weights, weights.double(), rtol=1e-6)


def test_a_mixture_is_its_own():
    given = [torch.tensor(v, dtype=F64) for v in ([0.5, 0.5], [-1.0, 1.0], [0.2, 0.3])]
    law = GaussianMixture(*given)
    for values in given:
        values.zero_()
    assert [v.tolist() for v in (law.weights, law.means, law.stds)] == [[0.5, 0.5], [-1, 1], [0.2, 0.3]]


@pytest.mark.parametrize("std", [1e-6, 3e-8, 1e-8, 1e-20])
def test_narrow_components_keep_their_width(std):
    narrow, x = GaussianMixture([1.0], [0.6], [std]), torch.tensor([0.6], dtype=F64)
    assert narrow.log_prob(x).item() == pytest.approx(-math.log(std * math.sqrt(2 * math.pi)), rel=1e-12)
    assert narrow.diffused(1.0).stds.item() == pytest.approx(std, rel=1e-12)


@every_schedule
def test_reverse_kernel_is_bayes_on_a_grid(schedule):
    grid = torch.linspace(-8, 8, 40_001, dtype=F64)
    for t in {1, 2, schedule.T} - ({2} if schedule.T < 2 else set()):
        for x_t in (-1.3, 0.2, 1.1):
            alpha = schedule.alpha[t]
            log = BIMODAL.log_prob(grid, schedule.alpha_bar[t - 1])
            log = log + Normal(alpha.sqrt() * grid, (1 - alpha).sqrt()).log_prob(torch.tensor(x_t, dtype=F64))
            exact = log.softmax(0) / (grid[1] - grid[0])
            assert torch.allclose(BIMODAL.reverse_kernel(schedule, x_t, t).log_prob(grid).exp(), exact, atol=1e-6), (t, x_t)


def test_reverse_kernel_far_out_leaves_out_what_underflows():
    law = GaussianMixture([0.5, 0.5], [-50.0, 50.0], [0.1, 0.1]).reverse_kernel(SCHEDULES["linear 50"], 50.0, 1)
    assert len(law.weights) == 1 and law.mean == pytest.approx(50, abs=0.1)


def test_point_masses_have_no_density_until_diffused():
    point = GaussianMixture([1.0], [0.6], [0.0])
    with pytest.raises(ValueError, match="no density"):
        point.log_prob(torch.zeros(1))
    schedule, x = SCHEDULES["cosine 50"], normal(64)
    for t in range(50, 0, -1):
        x = k.ancestral_step(schedule, x, t, point.expected_noise(x, schedule.alpha_bar[t]), normal(64, seed=t))
    assert torch.allclose(x, torch.full_like(x, 0.6), atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.5], [0.0], [1.0]), "one length"),
        (([], [], []), "one length"),
        (([0.5, 0.4], [0.0, 1.0], [1.0, 1.0]), "sum to 1"),
        (([0.5, 0.50001], [0.0, 1.0], [1.0, 1.0]), "sum to 1"),
        (([1.5, -0.5], [0.0, 1.0], [1.0, 1.0]), "positive"),
        (([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]), "positive"),
        (([1.0], [0.0], [-1.0]), "stds finite and ≥ 0"),
        (([1.0], [math.nan], [1.0]), "means must be finite"),
    ],
)
def test_impossible_mixtures(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize("a_bar", [-0.1, 1.1, math.nan, torch.tensor([0.5, 0.5])])
def test_impossible_alpha_bar(a_bar):
    with pytest.raises(ValueError, match="one number in"):
        BIMODAL.log_prob(torch.zeros(2), a_bar)


def test_ends_where_nothing_can_be_said():
    with pytest.raises(ValueError, match="no noise"):
        BIMODAL.expected_noise(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="knows nothing"):
        BIMODAL.expected_x_0(torch.zeros(2), 0.0)


# --- the whole way back ------------------------------------------------------------------------------------------------


def wasserstein(a, b):
    return (a.sort().values - b.sort().values).abs().mean().item()


@pytest.mark.parametrize("schedule", [NoiseSchedule.cosine(200), NoiseSchedule.linear(200, 5e-4, 0.1)], ids=["cosine", "linear"])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_exact_noise_brings_the_mixture_back(schedule, variance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, dtype=F64, generator=generator)
    for t in range(schedule.T, 0, -1):
        z = torch.randn(x.shape, dtype=F64, generator=generator)
        x = k.ancestral_step(schedule, x, t, BIMODAL.expected_noise(x, schedule.alpha_bar[t]), z, variance)
    assert wasserstein(x, BIMODAL.sample(20_000, generator)) < 0.05


def test_gaussian_data_follow_the_exact_recursion():
    """With Gaussian data the sampler is affine: at T = 50 its variance is an exact number, and not that of the data."""
    schedule, s2 = NoiseSchedule.cosine(50), 0.25
    gauss = GaussianMixture([1.0], [0.0], [s2**0.5])
    ratios = {}
    for eta, z in ((0.0, 0.0), (1.0, 1.0)):
        variance, one = 1.0, torch.ones(1, dtype=F64)
        for t in range(50, 0, -1):
            noise = gauss.expected_noise(one, schedule.alpha_bar[t])
            gain = k.ddim_step(schedule, one, t, t - 1, noise, 0 * one, eta).item()
            spread = k.ddim_step(schedule, 0 * one, t, t - 1, 0 * one, one, eta).item() * z
            variance = gain**2 * variance + spread**2
        ratios[eta] = variance / s2
    assert ratios[1.0] == pytest.approx(0.875, abs=1e-3) and ratios[0.0] == pytest.approx(0.939, abs=1e-3)
