"""Notebook 05's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""

import pytest
import torch
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right

from coursekit.diffusion import Diffusion, kernels
from coursekit.diffusion.unet import sinusoidal_embedding
from coursekit.exercises.ddpm import EXERCISES, check


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


def column(values, t):
    return values[t][:, None, None, None]


def own_p_loss(diffusion, x_0, t, noise):
    """Right, written another way than the package's."""
    signal = torch.stack([diffusion.schedule.alpha_bar[int(i)] for i in t]).to(x_0.device).view(-1, 1, 1, 1)
    x_t = signal.sqrt() * x_0 + (1 - signal).sqrt() * noise
    return (diffusion.model(x_t, t) - noise).abs().mean()


def own_p_step(diffusion, x_t, t, z):
    """Right, by the recursion of Ho and others' equation 11 for the clamped x̂_0, and noise masked at t = 1."""
    bar, beta = (column(v, t).to(x_t.device) for v in (diffusion.schedule.alpha_bar, diffusion.schedule.beta))
    before = column(diffusion.schedule.alpha_bar, t - 1).to(x_t.device)
    x_0 = ((x_t - (1 - bar).sqrt() * diffusion.model(x_t, t)) / bar.sqrt()).clamp(-1, 1)
    noise = (x_t - bar.sqrt() * x_0) / (1 - bar).sqrt()
    mean = (x_t - beta / (1 - bar).sqrt() * noise) / (1 - beta).sqrt()
    return mean + (beta * (1 - before) / (1 - bar)).sqrt() * z * (t > 1).to(x_t.device)[:, None, None, None], x_0


def own_embedding(t, dim):
    """Right, in float32."""
    frequencies = 10_000.0 ** (-torch.arange(dim // 2, device=t.device) / (dim / 2))
    return torch.cat([torch.sin(t[:, None] * frequencies), torch.cos(t[:, None] * frequencies)], 1)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("1.1", lambda pixels: (pixels.double() - 127.5) / 127.5),
        ("1.2", lambda x: (127.5 * x.clamp(-1, 1) + 127.5 + 0.5).to(torch.uint8)),
        ("2.1", own_p_loss),
        ("2.2", own_embedding),
        ("3.1", own_p_step),
    ],
)
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


# --- p_loss ------------------------------------------------------------------------------------------------------------


def loss_of(make_x_t, finish=lambda error: error.abs().mean()):
    def p_loss(diffusion, x_0, t, noise):
        signal, sigma = diffusion.schedule.alpha_bar.sqrt(), (1 - diffusion.schedule.alpha_bar).sqrt()
        return finish(noise - diffusion.model(make_x_t(diffusion.schedule, signal, sigma, x_0, t, noise), t))

    return p_loss


def right_x_t(schedule, signal, sigma, x_0, t, noise):
    return column(signal, t) * x_0 + column(sigma, t) * noise


def no_bar(schedule, signal, sigma, x_0, t, noise):
    return column(signal, t) * x_0 + column(schedule.beta.sqrt(), t) * noise


def swapped(schedule, signal, sigma, x_0, t, noise):
    return column(sigma, t) * x_0 + column(signal, t) * noise


def first_t(schedule, signal, sigma, x_0, t, noise):
    return signal[t[0]] * x_0 + sigma[t[0]] * noise


def first_t_for_the_model_too(diffusion, x_0, t, noise):
    return Diffusion.p_loss(diffusion, x_0, int(t[0]), noise)


def unshaped(schedule, signal, sigma, x_0, t, noise):
    return signal[t] * x_0 + sigma[t] * noise


def against_the_data(diffusion, x_0, t, noise):
    return (x_0 - diffusion.model(diffusion.q_sample(x_0, t, noise), t)).abs().mean()


# --- p_step ------------------------------------------------------------------------------------------------------------


def with_x_0(change):
    """p_step with another x̂_0."""

    def p_step(diffusion, x_t, t, z):
        signal, sigma = column(diffusion.schedule.alpha_bar.sqrt(), t), column((1 - diffusion.schedule.alpha_bar).sqrt(), t)
        alpha = column(diffusion.schedule.alpha, t)
        x_0 = change(x_t, diffusion.model(x_t, t), signal, sigma, alpha)
        mean, variance = kernels.posterior(diffusion.schedule, x_0, x_t, t)
        return mean + variance.sqrt() * z, x_0

    return p_step


def with_step(change):
    """p_step with another x_{t−1}."""

    def p_step(diffusion, x_t, t, z):
        schedule = diffusion.schedule
        noise, x_0 = diffusion.predict(x_t, t)
        mean, variance = kernels.posterior(schedule, x_0, x_t, t)
        return change(schedule, x_t, t, z, noise, x_0, mean, variance), x_0

    return p_step


def wraps_around(schedule, x_t, t, z, noise, x_0, mean, variance):
    bars = schedule.alpha_bar[1:]   # the place before the first is the last
    bar, before, beta = column(bars, t - 1), column(bars, t - 2), column(schedule.beta, t)
    mean = (before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - bar)
    return mean + ((1 - before) * beta / (1 - bar)).sqrt() * z


def line_7(weight):
    def change(schedule, x_t, t, z, noise, x_0, mean, variance):
        bar, before, beta = column(schedule.alpha_bar, t), column(schedule.alpha_bar, t - 1), column(schedule.beta, t)
        return (weight(1 - beta, bar, before) * x_t + before.sqrt() * beta * x_0) / (1 - bar) + variance.sqrt() * z

    return change


def first_t_step(diffusion, x_t, t, z):
    return diffusion.p_step(x_t, int(t[0]), z)


def stuck_on_the_cpu(diffusion, x_t, t, z):
    return own_p_step(diffusion, x_t, t, torch.zeros(x_t.shape) + z)


def noise_at_the_end(schedule, x_t, t, z, noise, x_0, mean, variance):
    return mean + torch.where(variance > 0, variance.sqrt(), 1.0) * z


def waves(t, dim, exponent):
    angles = t.double()[:, None] * 10_000.0 ** exponent(torch.arange(dim // 2, dtype=torch.float64), dim)
    return torch.cat([angles.sin(), angles.cos()], 1)


def p_loss_of(loss):
    """p_loss of a formula of the process, x_t, x_0, t and the noise."""
    return lambda diffusion, x_0, t, noise: loss(diffusion, diffusion.q_sample(x_0, t, noise), x_0, t, noise)


def line_7_too_late(schedule, x_t, t, z, noise, x_0, mean, variance):
    bar, beta = column(schedule.alpha_bar, t), column(schedule.beta, t)
    return (1 - beta).sqrt() * x_t + bar.sqrt() * beta / (1 - bar) * x_0 + variance.sqrt() * z


def no_root_before_x_0(schedule, x_t, t, z, noise, x_0, mean, variance):
    bar, before, beta = column(schedule.alpha_bar, t), column(schedule.alpha_bar, t - 1), column(schedule.beta, t)
    return ((1 - beta).sqrt() * (1 - before) * x_t + before * beta * x_0) / (1 - bar) + variance.sqrt() * z


def own_z(diffusion, x_t, t, z):
    return diffusion.p_step(x_t, t, torch.randn_like(x_t))


def clamps_in_place(diffusion, x_t, t, z):
    result = diffusion.p_step(x_t, t, z)
    x_t.clamp_(-1, 1)
    return result


WRONG = [
    ("1.1", lambda pixels: pixels / 255, "twice that, less 1"),
    ("1.1", lambda pixels: pixels / 127.5, "its middle is 0"),
    ("1.1", lambda pixels: pixels / 127 - 1, "255/127 − 1 is not 1"),
    ("1.1", lambda pixels: pixels / 255 - 0.5, "its span is doubled too"),
    ("1.1", lambda pixels: 1 - pixels / 127.5, "0 becomes −1"),
    ("1.1", lambda pixels: pixels / 128 - 1, "255/128 − 1 is not 1"),
    ("1.1", lambda pixels: (pixels * 2 - 255) / 255, "uint8 counts modulo 256"),
    ("1.1", lambda pixels: (pixels.double() / 127.5 - 1).flatten(), "in any shape"),
    ("1.2", lambda x: ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8), "cuts decimals off"),
    ("1.2", lambda x: ((x + 1) * 127.5).round().to(torch.int64).to(torch.uint8), r"with \.clamp"),
    ("1.2", lambda x: (x.clamp(0, 1) * 255).round().to(torch.uint8), r"not in \[0, 1\]"),
    ("1.2", lambda x: ((x + 1) * 128).round().clamp(0, 255).to(torch.uint8), "not 128"),
    ("1.2", lambda x: ((x + 1) * 127).round().clamp(0, 255).to(torch.uint8), "not 127"),
    ("1.2", lambda x: ((1 - x) * 127.5).round().clamp(0, 255).to(torch.uint8), "−1 becomes 0"),
    ("1.2", lambda x: x.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8), "make a new tensor"),
    ("1.2", lambda x: ((x + 1) * 127.5).round().clamp(0, 255), r"\.to\(torch\.uint8\) at the end"),
    ("2.1", loss_of(no_bar), "the bar stands on both"),
    ("2.1", loss_of(swapped), "yours are swapped"),
    ("2.1", loss_of(first_t), "t of the first image only"),
    ("2.1", first_t_for_the_model_too, "the same t for all"),
    ("2.1", loss_of(unshaped), "RuntimeError|the mean of"),
    ("2.1", loss_of(lambda schedule, signal, sigma, x_0, t, noise: x_0), "x_t, not x_0"),
    ("2.1", loss_of(right_x_t, lambda error: error.square().mean()), "squared error"),
    ("2.1", loss_of(right_x_t, lambda error: error.abs().sum()), "not a sum"),
    ("2.1", loss_of(right_x_t, lambda error: error.mean()), "cancel"),
    ("2.1", loss_of(right_x_t, lambda error: error.abs().flatten(1).mean(1)), "one number: the mean over the images"),
    ("2.1", loss_of(right_x_t, lambda error: error.abs().flatten(1).sum(1).mean()), "not their sum for each image"),
    ("2.1", loss_of(right_x_t, lambda error: error.square().mean().sqrt()), "the root of a mean of squares"),
    ("2.1", loss_of(right_x_t, lambda error: 2 * error.abs().mean()), "as one number"),
    ("2.1", p_loss_of(lambda d, x_t, x_0, t, noise: (noise - d.model(x_t, t[:1].expand_as(t))).abs().mean()), "t of each image"),
    ("2.1", p_loss_of(lambda d, x_t, x_0, t, noise: (torch.randn_like(x_t) - d.model(x_t, t)).abs().mean()), "draw none of your own"),
    ("2.1", loss_of(right_x_t), "on the device of x"),   # right on the CPU alone
    ("2.1", against_the_data, "compare it with noise"),
    ("2.2", lambda t, dim: sinusoidal_embedding(t, dim).unflatten(1, (2, -1)).transpose(1, 2).flatten(1), "take turns"),
    ("2.2", lambda t, dim: sinusoidal_embedding(t, dim).roll(dim // 2, 1), "first the sines"),
    ("2.2", lambda t, dim: waves(t, dim, lambda k, dim: -k / dim), "the 2 is missing"),
    ("2.2", lambda t, dim: waves(t, dim, lambda k, dim: -k / max(dim // 2 - 1, 1)), "what some programs do"),
    ("2.2", lambda t, dim: waves(t, dim, lambda k, dim: 2 * k / dim), "the exponent is negative"),
    ("2.2", lambda t, dim: waves(t, dim, lambda k, dim: -2 * k / dim), r"torch\.arange and torch\.zeros need device="),
    ("2.2", lambda t, dim: 2 * sinusoidal_embedding(t, dim), r"sin\(ω_k t\) for k"),
    ("2.2", lambda t, dim: sinusoidal_embedding(t.cpu() if t.device.type == "cpu" else torch.arange(2), dim), "on the device of x"),
    ("2.2", lambda t, dim: sinusoidal_embedding(t, dim)[:, : dim // 2], r"shape \(B, dim\)"),
    ("3.1", with_x_0(lambda x, e, signal, sigma, alpha: (x - sigma * e) / signal), "line 6: clamp"),
    ("3.1", with_x_0(lambda x, e, signal, sigma, alpha: ((x - sigma * e) / signal).clamp(0, 1)), r"not in \[0, 1\]"),
    ("3.1", with_x_0(lambda x, e, signal, sigma, alpha: ((x + sigma * e) / signal).clamp(-1, 1)), "a minus"),
    ("3.1", with_x_0(lambda x, e, signal, sigma, alpha: ((x - (1 - alpha).sqrt() * e) / alpha.sqrt()).clamp(-1, 1)), "the bar is missing"),
    ("3.1", with_x_0(lambda x, e, signal, sigma, alpha: ((x - signal * e) / sigma).clamp(-1, 1)), "the roots are swapped"),
    ("3.1", first_t_step, "the same t for all"),
    ("3.1", with_step(noise_at_the_end), "adds no noise"),
    ("3.1", with_step(wraps_around), "wrapped around"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: mean + column(s.beta.sqrt(), t) * z), "yours is β_t$"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: mean + column(s.beta.sqrt() * (s.beta > s.beta[1]), t) * z), "but for the last"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: mean + v * z), "the root of the variance"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: mean), "z is missing"),
    ("3.1", with_step(line_7(lambda alpha, bar, before: (alpha * (1 - before)).sqrt())), "ends before the bracket"),
    ("3.1", with_step(line_7(lambda alpha, bar, before: bar.sqrt() * (1 - before))), "has no bar"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: kernels.mean_from_noise(s, x, t, e) + v.sqrt() * z), "made of the clamped"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: mean - v.sqrt() * z), "plus σ_t z"),
    ("3.1", with_step(no_root_before_x_0), "the root of ᾱ_{t−1} stands before"),
    ("3.1", with_step(line_7_too_late), "yours is ᾱ_t"),
    ("3.1", with_step(lambda s, x, t, z, e, x_0, mean, v: x_0 + v.sqrt() * z), "bars on all α"),
    ("3.1", own_z, "draw none of your own"),
    ("3.1", clamps_in_place, "make a new tensor"),
    ("3.1", stuck_on_the_cpu, "on the device of x"),
    ("3.1", lambda diffusion, x_t, t, z: diffusion.p_step(x_t, t, z)[0], "return both"),
]   # fmt: skip


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "3.1", capsys)
