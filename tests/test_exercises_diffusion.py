"""Notebook 02's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""

import pytest
import torch
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right

from coursekit.diffusion import kernels
from coursekit.exercises.diffusion_1d import EXERCISES, check, cosine_alpha


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


# --- other right answers ----------------------------------------------------------------------------------------------------


def previous_for(schedule, t, like):
    return schedule.at(schedule.alpha_bar, t - 1, like, lowest=0)


def posterior_by_regression(schedule, x_0, x_t, t):
    now, before, alpha = schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t), schedule.at(schedule.alpha, t, x_t)
    slope = alpha.sqrt() * (1 - before) / (1 - now)
    mean = before.sqrt() * x_0 + slope * (x_t - now.sqrt() * x_0)
    return mean, ((1 - before) - slope.square() * (1 - now)).expand_as(x_t)


def step_by_posterior(schedule, x_t, t, noise, z):
    mean, variance = kernels.posterior(schedule, kernels.x_0_from_noise(schedule, x_t, t, noise), x_t, t)
    return mean + torch.where(torch.as_tensor(variance > 0), variance.sqrt() * z, 0.0)


def cosine_in_a_loop(T, s=0.008):
    f = [torch.cos(torch.tensor((t / T + s) / (1 + s), dtype=torch.float64) * torch.pi / 2) ** 2 for t in range(T + 1)]
    return torch.tensor([1.0, *(max(float(f[t] / f[t - 1]), 0.001) for t in range(1, T + 1))], dtype=torch.float64)


@pytest.mark.parametrize(("name", "function"), [("2.1", posterior_by_regression), ("6.1", step_by_posterior), ("6.2", cosine_in_a_loop)])
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


# --- 1.1 --------------------------------------------------------------------------------------------------------------------


def mixed(weights):
    """q_sample with other weights, made of ᾱ_t and α_t."""

    def q_sample(schedule, x_0, t, noise):
        signal, rest = weights(schedule.at(schedule.alpha_bar, t, x_0), schedule.at(schedule.alpha, t, x_0))
        return signal * x_0 + rest * noise

    return q_sample


def swapped_roots(schedule, x_0, t, noise):
    return kernels.q_sample(schedule, noise, t, x_0)


def unshaped(schedule, x_0, t, noise):
    signal = schedule.alpha_bar[t]
    return signal.sqrt() * x_0 + (1 - signal).sqrt() * noise


def first_t(schedule, x_0, t, noise):
    return kernels.q_sample(schedule, x_0, t if isinstance(t, int) else int(t[0]), noise)


def one_too_early(schedule, x_0, t, noise):
    signal = previous_for(schedule, t, x_0)
    return signal.sqrt() * x_0 + (1 - signal).sqrt() * noise


def own_noise(schedule, x_0, t, noise):
    return kernels.q_sample(schedule, x_0, t, torch.randn_like(x_0))


def in_place(schedule, x_0, t, noise):
    signal = schedule.at(schedule.alpha_bar, t, x_0)
    x_0 *= signal.sqrt()
    x_0 += (1 - signal).sqrt() * noise
    return x_0


def spoils_the_schedule(schedule, x_0, t, noise):
    x_t = kernels.q_sample(schedule, x_0, t, noise)
    schedule.alpha_bar.sqrt_()
    return x_t


# --- 2.1 --------------------------------------------------------------------------------------------------------------------


def posterior_of(weights, variance=None):
    """posterior with other weights of x_0 and x_t, or another variance, made of α_t, ᾱ_t and ᾱ_{t−1}."""

    def posterior(schedule, x_0, x_t, t):
        numbers = schedule.at(schedule.alpha, t, x_t), schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t)
        mean, right = kernels.posterior(schedule, x_0, x_t, t)
        if weights:
            weight_0, weight_t = weights(*numbers)
            mean = weight_0 * x_0 + weight_t * x_t
        return mean, variance(*numbers) if variance else right

    return posterior


def wraps_around(schedule, x_0, x_t, t):
    alpha_bar = schedule.alpha_bar[1:]   # without the entry for t = 0, the place before the first is the last
    previous = schedule.at(torch.cat([alpha_bar[:1], alpha_bar[-1:], alpha_bar[:-1]]), t, x_t)
    now, beta = schedule.at(schedule.alpha_bar, t, x_t), schedule.at(schedule.beta, t, x_t)
    mean = (previous.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - previous) * x_t) / (1 - now)
    return mean, (1 - previous) * beta / (1 - now)


def variance_wraps_around(schedule, x_0, x_t, t):
    return kernels.posterior(schedule, x_0, x_t, t)[0], wraps_around(schedule, x_0, x_t, t)[1]


def barred_covariance(schedule, x_0, x_t, t):
    now, previous = schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t)
    mean = previous.sqrt() * x_0 + now.sqrt() * (1 - previous) / (1 - now) * (x_t - now.sqrt() * x_0)
    return mean, kernels.posterior(schedule, x_0, x_t, t)[1]


def no_lowest(schedule, x_0, x_t, t):
    before = schedule.at(schedule.alpha_bar, t - 1, x_t)
    return kernels.posterior(schedule, x_0, x_t, t)[0], (1 - before) * schedule.at(schedule.beta, t, x_t)


# --- 4.1, 6.1, 6.2 ----------------------------------------------------------------------------------------------------------


def mean_of(formula):
    """mean_from_noise by a formula of x_t, the noise, α_t, ᾱ_t and ᾱ_{t−1}."""

    def mean_from_noise(schedule, x_t, t, noise):
        numbers = schedule.at(schedule.alpha, t, x_t), schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t)
        return formula(x_t, noise, *numbers)

    return mean_from_noise


def step_of(sigma):
    """ancestral_step with another σ_t, made of α_t, ᾱ_t, ᾱ_{t−1} and ᾱ_T."""

    def step(schedule, x_t, t, noise, z):
        numbers = schedule.at(schedule.alpha, t, x_t), schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t)
        return kernels.mean_from_noise(schedule, x_t, t, noise) + sigma(*numbers, schedule.alpha_bar[-1]) * z

    return step


def beta_tilde(alpha, now, before):
    return (1 - before) / (1 - now) * (1 - alpha)


def beta_but_quiet_at_the_end(schedule, x_t, t, noise, z):
    return kernels.ancestral_step(schedule, x_t, t, noise, z, variance="beta")


def noise_left_in_at_the_end(schedule, x_t, t, noise, z):
    last = schedule.at((torch.arange(schedule.T + 1) == 1).double(), t, x_t)
    return kernels.ancestral_step(schedule, x_t, t, noise, z) + last * z


def predicted_for_fresh(schedule, x_t, t, noise, z):
    return kernels.ancestral_step(schedule, x_t, t, noise, noise)


def adds_to_x_t(schedule, x_t, t, noise, z):
    return x_t + kernels.ancestral_step(schedule, x_t, t, noise, z) - kernels.mean_from_noise(schedule, x_t, t, noise)


def own_z(schedule, x_t, t, noise, z):
    return kernels.ancestral_step(schedule, x_t, t, noise, torch.randn_like(x_t))


def ratio_of(f, alpha_min=0.001):
    """cosine_alpha with another f of t/T and s."""

    def alpha(T, s=0.008):
        values = f(torch.arange(T + 1, dtype=torch.float64) / T, s)
        return torch.cat([torch.ones(1, dtype=torch.float64), (values[1:] / values[:-1]).clamp(min=alpha_min)])

    return alpha


def angle(u, s):
    return torch.pi / 2 * (u + s) / (1 + s)


def from_f_before_0(T, s=0.008):
    f = angle(torch.arange(-1, T + 1, dtype=torch.float64) / T, s).cos().square()
    return (f[1:] / f[:-1]).clamp(min=0.001)


WRONG = [
    ("1.1", mixed(lambda now, alpha: (now.sqrt(), (1 - alpha).sqrt())), r"not √\(1−α_t\)"),
    ("1.1", mixed(lambda now, alpha: (alpha.sqrt(), (1 - alpha).sqrt())), "which is one step"),
    ("1.1", mixed(lambda now, alpha: (now, 1 - now)), "are roots"),
    ("1.1", mixed(lambda now, alpha: (now.sqrt(), 1 - now.sqrt())), "not 1 − √ᾱ_t"),
    ("1.1", mixed(lambda now, alpha: (now.sqrt(), -(1 - now).sqrt())), r"√ᾱ_t x_0 \+ √"),
    ("1.1", swapped_roots, "yours are swapped"),
    ("1.1", unshaped, r"line 3 of your function ended in RuntimeError(.|\n)*in the diffusion notebooks schedule\.at"),
    ("1.1", first_t, "the same t for all"),
    ("1.1", one_too_early, "indexed by t itself"),
    ("1.1", own_noise, "draw none of your own"),
    ("1.1", in_place, "make a new tensor"),
    ("1.1", spoils_the_schedule, "make a new tensor"),
    ("2.1", wraps_around, "it wrapped around|It wrapped around"),
    ("2.1", no_lowest, "times are counted from 1 to T"),
    ("2.1", barred_covariance, "has no bar.*covariance"),
    ("2.1", posterior_of(lambda a, now, b: (b.sqrt() * (1 - a) / (1 - now), now.sqrt() * (1 - b) / (1 - now))), "has no bar"),
    ("2.1", posterior_of(lambda a, now, b: (b.sqrt() * (1 - a) / (1 - now), (a * (1 - b)).sqrt() / (1 - now))), "bracket: √α_t"),
    ("2.1", posterior_of(lambda a, now, b: (b * (1 - a) / (1 - now), a.sqrt() * (1 - b) / (1 - now))), "the root of ᾱ_{t−1}"),
    ("2.1", posterior_of(lambda a, now, b: (b.sqrt() * (1 - a) / (1 - now), a * (1 - b) / (1 - now))), "the root of α_t"),
    ("2.1", posterior_of(lambda a, now, b: (now.sqrt() * (1 - a) / (1 - now), a.sqrt())), "yours are ᾱ_t"),
    ("2.1", posterior_of(lambda a, now, b: (b.sqrt() * (1 - a) / (1 - b), a.sqrt() * (1 - b) / (1 - b))), "yours is 1−ᾱ_{t−1}"),
    ("2.1", posterior_of(lambda a, now, b: (a.sqrt() * (1 - b) / (1 - now), b.sqrt() * (1 - a) / (1 - now))), "weights are swapped"),
    ("2.1", posterior_of(lambda a, now, b: (b.sqrt() * (1 - a), a.sqrt() * (1 - b))), "both weights are divided"),
    ("2.1", posterior_of(lambda a, now, b: (-b.sqrt() * (1 - a) / (1 - now), a.sqrt() * (1 - b) / (1 - now))), r"over 1−ᾱ_t: √ᾱ"),
    ("2.1", posterior_of(None, lambda *numbers: beta_tilde(*numbers).sqrt()), "return the variance"),
    ("2.1", posterior_of(None, lambda a, now, b: 1 - a), "smaller than β_t"),
    ("2.1", variance_wraps_around, "and the variance 0; yours wrapped around"),
    ("2.1", posterior_of(None, lambda a, now, b: (1 - now) / (1 - b) * (1 - a)), "upside down"),
    ("2.1", posterior_of(None, lambda a, now, b: (1 - b) / (1 - now)), "β_t is missing"),
    ("2.1", posterior_of(None, lambda a, now, b: 2 * beta_tilde(a, now, b)), r"the variance is \(1−ᾱ"),
    ("2.1", posterior_of(None, lambda a, now, b: torch.ones(9)), "shape of the variance"),
    ("2.1", lambda schedule, x_0, x_t, t: kernels.posterior(schedule, x_0, x_t, t)[0], "return both"),
    ("2.1", lambda *_: None, "found None .*return"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - (1 - a).sqrt() * e) / a.sqrt()), "noise of one step"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - (1 - now).sqrt() * e) / now.sqrt()), "this is x̂_0"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - (1 - a) / (1 - now).sqrt() * e) / now.sqrt()), "before the bracket stands 1/√α_t"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - (1 - a) / (1 - b).sqrt() * e) / a.sqrt()), "one place too early"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x + (1 - a) / (1 - now).sqrt() * e) / a.sqrt()), "a minus"),
    ("4.1", mean_of(lambda x, e, a, now, b: x - e), "both scalings are missing"),
    ("4.1", mean_of(lambda x, e, a, now, b: x - (1 - a) / (1 - now).sqrt() * e), "divided by √α_t"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - (1 - a) / (1 - now).sqrt() * e) / a), "divide by the root"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - (1 - a) / (1 - now) * e) / a.sqrt()), "β_t over the root"),
    ("4.1", mean_of(lambda x, e, a, now, b: (x - ((1 - a) / (1 - now)).sqrt() * e) / a.sqrt()), "no root on β_t"),
    ("4.1", mean_of(lambda x, e, a, now, b: e), "with total noise"),
    ("6.1", step_of(lambda a, now, b, last: (1 - a).sqrt()), "not 0 at t = 1 either"),
    ("6.1", beta_but_quiet_at_the_end, "yours is β_t$"),
    ("6.1", noise_left_in_at_the_end, "adds no noise"),
    ("6.1", step_of(lambda a, now, b, last: beta_tilde(a, now, b)), "the root of the variance"),
    ("6.1", step_of(lambda a, now, b, last: 0), "z is missing"),
    ("6.1", step_of(lambda a, now, b, last: 1), "z is multiplied by"),
    ("6.1", step_of(lambda a, now, b, last: beta_tilde(a, now, b.where(b < 1, last)).sqrt()), "so that σ_1 = 0"),
    ("6.1", predicted_for_fresh, "two noises"),
    ("6.1", adds_to_x_t, r"μ_t is \(4\.4\)"),
    ("6.1", own_z, "draw none of your own"),
    ("6.1", step_of(lambda a, now, b, last: -beta_tilde(a, now, b).sqrt()), "add σ_t z"),
    ("6.2", lambda T, s: torch.cat([torch.ones(1), cosine_alpha(T, s)[1:].cumprod(0)]), r"that is ᾱ_t|which is ᾱ_t"),
    ("6.2", lambda T, s: angle(torch.arange(T + 1, dtype=torch.float64) / T, s).cos() ** 2 / angle(torch.zeros(1).double(), s).cos() ** 2,
     "which is ᾱ_t"),
    ("6.2", ratio_of(lambda u, s: angle(u, s).cos().square(), 0), "from below"),
    ("6.2", ratio_of(lambda u, s: angle(u, s).square().cos()), "cosine of a square"),
    ("6.2", ratio_of(lambda u, s: angle(u, s).cos()), "the cosine is squared"),
    ("6.2", ratio_of(lambda u, s: (torch.pi / 2 * (u + s)).cos().square()), "the last bracket is missing"),
    ("6.2", ratio_of(lambda u, s: angle(u, 0).cos().square()), "s stands in the angle"),
    ("6.2", lambda T, s: cosine_alpha(T), "s is an argument"),
    ("6.2", lambda T, s: 1 - cosine_alpha(T, s), "that is β_t"),
    ("6.2", lambda T, s: cosine_alpha(T, s)[1:], "place 0 holds α_0"),
    ("6.2", from_f_before_0, "nothing has happened"),
    ("6.2", ratio_of(lambda u, s: (2 * angle(u, s)).cos().square()), "none below 0.001"),
]   # fmt: skip


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "6.1", capsys)
