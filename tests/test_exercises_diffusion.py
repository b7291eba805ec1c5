"""Notebook 02's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""


import pytest
import torch
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right

from coursekit.diffusion import kernels
from coursekit.exercises.diffusion_1d import EXERCISES, check


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


def no_bar(schedule, x_0, t, noise):
    signal = schedule.at(schedule.alpha_bar, t, x_0)
    return signal.sqrt() * x_0 + (1 - schedule.at(schedule.alpha, t, x_0)).sqrt() * noise


def swapped_roots(schedule, x_0, t, noise):
    return kernels.q_sample(schedule, noise, t, x_0)


def no_roots(schedule, x_0, t, noise):
    signal = schedule.at(schedule.alpha_bar, t, x_0)
    return signal * x_0 + (1 - signal) * noise


def unshaped(schedule, x_0, t, noise):
    signal = schedule.alpha_bar[t]
    return signal.sqrt() * x_0 + (1 - signal).sqrt() * noise


def wraps_around(schedule, x_0, x_t, t):
    alpha_bar = schedule.alpha_bar[1:]   # without the entry for t = 0, the place before the first is the last
    previous = schedule.at(torch.cat([alpha_bar[:1], alpha_bar[-1:], alpha_bar[:-1]]), t, x_t)
    now, beta = schedule.at(schedule.alpha_bar, t, x_t), schedule.at(schedule.beta, t, x_t)
    mean = (previous.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - previous) * x_t) / (1 - now)
    return mean, (1 - previous) * beta / (1 - now)


def previous_for(schedule, t, like):
    return schedule.at(schedule.alpha_bar, t - 1, like, lowest=0)


def barred_covariance(schedule, x_0, x_t, t):
    now, previous = schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t)
    mean = previous.sqrt() * x_0 + now.sqrt() * (1 - previous) / (1 - now) * (x_t - now.sqrt() * x_0)
    return mean, kernels.posterior(schedule, x_0, x_t, t)[1]


def long_root(schedule, x_0, x_t, t):
    now, previous, beta = schedule.at(schedule.alpha_bar, t, x_t), previous_for(schedule, t, x_t), schedule.at(schedule.beta, t, x_t)
    mean = (((1 - beta) * (1 - previous)).sqrt() * x_t + previous.sqrt() * beta * x_0) / (1 - now)
    return mean, (1 - previous) * beta / (1 - now)


def std_for_variance(schedule, x_0, x_t, t):
    mean, variance = kernels.posterior(schedule, x_0, x_t, t)
    return mean, variance.sqrt()


def one_step_weight(schedule, x_t, t, noise):
    alpha = schedule.at(schedule.alpha, t, x_t)
    return (x_t - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def bars_everywhere(schedule, x_t, t, noise):
    return kernels.x_0_from_noise(schedule, x_t, t, noise)


def noise_at_the_end(schedule, x_t, t, noise, z):
    return kernels.mean_from_noise(schedule, x_t, t, noise) + schedule.at(schedule.beta.sqrt(), t, x_t) * z


def beta_but_quiet_at_the_end(schedule, x_t, t, noise, z):
    return kernels.ancestral_step(schedule, x_t, t, noise, z, variance="beta")


def noise_left_in_at_the_end(schedule, x_t, t, noise, z):
    last = schedule.at((torch.arange(schedule.T + 1) == 1).double(), t, x_t)
    return kernels.ancestral_step(schedule, x_t, t, noise, z) + last * z


WRONG = [
    ("1.1", no_bar, "the bar stands on both"),
    ("1.1", swapped_roots, "√ᾱ_t x_0"),
    ("1.1", no_roots, "√"),
    ("1.1", unshaped, "RuntimeError|shapes ᾱ_t"),
    ("2.1", wraps_around, r"place t − 1|schedule\.alpha_bar at place"),
    ("2.1", barred_covariance, "no bar on that α"),
    ("2.1", long_root, "the root ends before the bracket"),
    ("2.1", std_for_variance, "not its root"),
    ("4.1", one_step_weight, "not √β_t"),
    ("4.1", bars_everywhere, "the bar is on one α only"),
    ("6.1", noise_at_the_end, "root of the posterior variance"),
    ("6.1", beta_but_quiet_at_the_end, "root of the posterior variance"),
    ("6.1", noise_left_in_at_the_end, "adds no noise"),
    ("2.1", lambda *_: None, "TypeError"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "6.1", capsys)
