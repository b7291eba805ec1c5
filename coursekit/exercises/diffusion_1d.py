"""Notebook 02: what a right answer to each exercise must do, and what the usual wrong ones give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coursekit import exercises
from coursekit.diffusion import NoiseSchedule
from coursekit.diffusion.kernels import ancestral_step, mean_from_noise, posterior, q_sample, x_0_from_noise
from coursekit.diffusion.schedule import Time
from coursekit.exercises.judging import ask, compare, numbers, recognise, several, steady

Case = tuple[str, NoiseSchedule, Time, Tensor, Tensor, Tensor]


def cosine_alpha(T: int, s: float = 0.008) -> Tensor:
    """(T+1,) float64: α_0 = 1 and the α_t of the cosine schedule, each at least 0.001. Source: CMU, homework 2, equation 16."""
    return NoiseSchedule.cosine(T, s).alpha


def _cases() -> Iterator[Case]:
    """Name, schedule, t and three tensors: a t for each item, which tells most mistakes apart, then one t, the first, the last."""
    generator = torch.Generator().manual_seed(1)
    cosine, one = NoiseSchedule.cosine(6), NoiseSchedule.linear(1, 0.1, 0.3)
    own = torch.tensor([1, 4, 6, 2])
    for name, schedule, t, shape in (
        ("a t for each item, (4,)", cosine, own, (4,)),
        ("one t in the middle", cosine, 3, (5,)),
        ("t = 1", cosine, 1, (5,)),
        ("t = T", cosine, cosine.T, (3, 2)),
        ("a t for each item, (4, 3, 2)", cosine, own, (4, 3, 2)),
        ("T = 1", one, 1, (2, 3)),
    ):
        x, y, z = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
        yield name, schedule, t, x, y, z


def _arrays(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(T+1,) each: α_t, ᾱ_t, ᾱ_{t−1}, and ᾱ_{t−1} of an array that starts at t = 1, where the place before the first is the last."""
    bar = schedule.alpha_bar
    return schedule.alpha, bar, bar[[0, *range(schedule.T)]], bar[[0, schedule.T, *range(1, schedule.T)]]


def _verify_q_sample(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_0, noise, _ in _cases():
        alpha, bar, before, _ = _arrays(schedule)
        first = t if isinstance(t, int) else int(t[0])

        def mix(signal: Tensor, rest: Tensor, at: Any = schedule.at, t: Time = t, x_0: Tensor = x_0, noise: Tensor = noise) -> Tensor:
            return at(signal, t, x_0) * x_0 + at(rest, t, x_0) * noise

        mistakes = {
            "√ᾱ_t multiplies x_0 and √(1−ᾱ_t) the noise; yours are swapped": mix((1 - bar).sqrt(), bar.sqrt()),
            "the bar stands on both: √(1−ᾱ_t), not √(1−α_t)": mix(bar.sqrt(), (1 - alpha).sqrt()),
            "ᾱ_t, the product of all steps so far, not α_t, which is one step": mix(alpha.sqrt(), (1 - alpha).sqrt()),
            "ᾱ_t is a share of the variance: what multiplies x_0 and the noise are roots, √ᾱ_t and √(1−ᾱ_t)": mix(bar, 1 - bar),
            "√(1−ᾱ_t), not 1 − √ᾱ_t: variances add up to 1, not their roots": mix(bar.sqrt(), 1 - bar.sqrt()),
            "the arrays are indexed by t itself, not by t − 1: schedule.alpha_bar[0] is 1": mix(before.sqrt(), (1 - before).sqrt()),
            "the same t for all: index with the whole t, by schedule.at": q_sample(schedule, x_0, first, noise),
        }
        hint = "√ᾱ_t x_0 + √(1−ᾱ_t) noise: the bar stands on both, and schedule.at shapes ᾱ_t like the batch"
        steady(name, function, schedule, x_0, t, noise)
        compare(name, function, (schedule, x_0, t, noise), q_sample(schedule, x_0, t, noise), hint, mistakes)


def _wrong_means(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Time) -> dict[str, Tensor]:
    """What the usual mistakes give for the posterior's mean."""
    alpha, bar, before, wrapped = _arrays(schedule)
    signal = schedule.at(bar.sqrt(), t, x_t) * x_0

    def mean(weight_0: Tensor, weight_t: Tensor, below: Tensor = 1 - bar) -> Tensor:
        return schedule.at(weight_0 / below, t, x_t) * x_0 + schedule.at(weight_t / below, t, x_t) * x_t

    beta, right_0, right_t = 1 - alpha, before.sqrt() * (1 - alpha), alpha.sqrt() * (1 - before)
    slope = schedule.at(bar.sqrt() * (1 - before) / (1 - bar), t, x_t)
    no_bar = "the α under the root before (1−ᾱ_{t−1}) has no bar: √α_t (1−ᾱ_{t−1})"
    return {
        "at t = 1, ᾱ_{t−1} is ᾱ_0 = 1: is yours schedule.alpha_bar at place t − 1, with lowest=0? It wrapped around to ᾱ_T":
            mean(wrapped.sqrt() * beta, alpha.sqrt() * (1 - wrapped)),
        no_bar: mean(right_0, bar.sqrt() * (1 - before)),
        no_bar + ", also in the covariance": schedule.at(before.sqrt(), t, x_t) * x_0 + slope * (x_t - signal),
        "the root ends before the bracket: √α_t · (1−ᾱ_{t−1})": mean(right_0, (alpha * (1 - before)).sqrt()),
        "before x_0 stands the root of ᾱ_{t−1}, √ᾱ_{t−1} β_t": mean(before * beta, right_t),
        "before x_t stands the root of α_t, √α_t (1−ᾱ_{t−1})": mean(right_0, alpha * (1 - before)),
        "above stand ᾱ_{t−1}, twice; yours are ᾱ_t": mean(bar.sqrt() * beta, alpha.sqrt() * (1 - bar)),
        "below stands 1−ᾱ_t; yours is 1−ᾱ_{t−1}": mean(right_0, right_t, 1 - before),
        "the weights are swapped: the one with β_t belongs to x_0": mean(right_t, right_0),
        "both weights are divided by 1−ᾱ_t": mean(right_0, right_t, torch.ones_like(bar)),
    }   # fmt: skip


def _verify_posterior(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_0, x_t, _ in _cases():
        found = several(name, ask(name, function, schedule, x_0, x_t, t), 2, "return both, the mean and the variance")
        right_mean, right_variance = posterior(schedule, x_0, x_t, t)
        hint = "over 1−ᾱ_t: √ᾱ_{t−1} β_t x_0 and √α_t (1−ᾱ_{t−1}) x_t (no bar on that α, the root ends before the bracket)"
        if name in ("t = 1", "T = 1"):
            hint = "at t = 1 the answer is x_0 itself, since ᾱ_0 = 1: is your ᾱ_{t−1} schedule.alpha_bar at place t − 1, with lowest=0?"
        recognise(f"mean, {name}", found[0], right_mean, hint, _wrong_means(schedule, x_0, x_t, t))
        alpha, bar, before, wrapped = _arrays(schedule)
        wrong = {
            "return the variance, not its root": (1 - before) / (1 - bar) * (1 - alpha),
            "the variance is β̃_t, smaller than β_t by (1−ᾱ_{t−1})/(1−ᾱ_t), for x_0 is known": 1 - alpha,
            "at t = 1, ᾱ_{t−1} is ᾱ_0 = 1 and the variance 0; yours wrapped around": (1 - wrapped) / (1 - bar) * (1 - alpha),
            "upside down: 1−ᾱ_{t−1} stands above and 1−ᾱ_t below": (1 - bar) / (1 - before) * (1 - alpha),
            "β_t is missing: (1−ᾱ_{t−1})/(1−ᾱ_t) · β_t": (1 - before) / (1 - bar),
        }
        mistakes = {text: schedule.at(v.sqrt() if "its root" in text else v, t, x_t).expand_as(x_t) for text, v in wrong.items()}
        hint = "the variance is (1−ᾱ_{t−1}) β_t / (1−ᾱ_t), which is 0 at t = 1; a variance, not its root"
        variance = ask(f"shape of the variance, {name}", Tensor.expand_as, numbers("the variance", found[1]), x_t)   # () or like t
        recognise(f"variance, {name}", variance, right_variance.expand_as(x_t), hint, mistakes)


def _verify_mean(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_t, noise, _ in _cases():
        alpha, bar, before, _ = _arrays(schedule)
        beta = 1 - alpha

        def mean(weight: Tensor, below: Tensor, at: Any = schedule.at, t: Time = t, x_t: Tensor = x_t, noise: Tensor = noise) -> Tensor:
            return (x_t - at(weight, t, x_t) * noise) / at(below, t, x_t)

        weight, one = beta / (1 - bar).sqrt(), torch.ones_like(bar)
        mistakes = {
            "√β_t belongs to the noise of one step; for the total noise it is β_t/√(1−ᾱ_t)": mean(beta.sqrt(), alpha.sqrt()),
            "the bar is on one α only, in √(1−ᾱ_t): with bars on all, this is x̂_0": x_0_from_noise(schedule, x_t, t, noise),
            "the bar is on one α only, in √(1−ᾱ_t); before the bracket stands 1/√α_t, one step": mean(weight, bar.sqrt()),
            "under the root stands ᾱ_t; yours is ᾱ_{t−1}, one place too early": mean(beta / (1 - before).sqrt(), alpha.sqrt()),
            "a minus: the noise is taken away": mean(-weight, alpha.sqrt()),
            "both scalings are missing: what is noise in x_t is not all noise of the last step": x_t - noise,
            "the bracket is divided by √α_t": mean(weight, one),
            "divide by the root, √α_t": mean(weight, alpha),
            "β_t over the root, √(1−ᾱ_t)": mean(beta / (1 - bar), alpha.sqrt()),
            "no root on β_t: β_t/√(1−ᾱ_t)": mean((beta / (1 - bar)).sqrt(), alpha.sqrt()),
        }
        hint = "(x_t − β_t/√(1−ᾱ_t) · noise)/√α_t: with total noise the weight is not √β_t, the bar is on one α only, and it is t, not t−1"
        compare(name, function, (schedule, x_t, t, noise), mean_from_noise(schedule, x_t, t, noise), hint, mistakes)


def _verify_step(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_t, noise, z in _cases():
        alpha, bar, before, wrapped = _arrays(schedule)
        beta, variance = 1 - alpha, (1 - before) / (1 - bar) * (1 - alpha)
        mean, last = mean_from_noise(schedule, x_t, t, noise), (before == 1).double()

        def step(sigma: Tensor, at: Any = schedule.at, t: Time = t, mean: Tensor = mean, z: Tensor = z) -> Tensor:
            return mean + at(sigma, t, mean) * z

        mistakes = {
            "z is missing: x_{t−1} is a draw, not the mean": mean,
            "the last step, t = 1, adds no noise: β̃_1 = 0": step((variance + last).sqrt()),
            "σ_t² is β̃_t, the posterior variance of (2.4); yours is β_t, which is not 0 at t = 1 either": step(beta.sqrt()),
            "σ_t² is β̃_t, the posterior variance of (2.4); yours is β_t": step(beta.sqrt() * (1 - last)),
            "z is multiplied by σ_t, the root of the variance": step(variance),
            "z is multiplied by σ_t, the root of the posterior variance β̃_t": step(torch.ones_like(bar)),
            "at t = 1, ᾱ_{t−1} is ᾱ_0 = 1, so that σ_1 = 0; yours wrapped around to ᾱ_T": step(((1 - wrapped) / (1 - bar) * beta).sqrt()),
            "two noises: the predicted one goes into μ_t, the fresh z is what σ_t multiplies": step(variance.sqrt(), z=noise),
            "μ_t is (4.4), made of x_t and the predicted noise; σ_t z is added to it": step(variance.sqrt(), mean=x_t),
        }
        hint = "add σ_t z, with σ_t the root of the posterior variance β̃_t of (2.4)"
        steady(name, function, schedule, x_t, t, noise, z)
        compare(name, function, (schedule, x_t, t, noise, z), ancestral_step(schedule, x_t, t, noise, z), hint, mistakes)


def _verify_cosine(function: Callable[..., Any]) -> None:
    for T, s in ((50, 0.008), (7, 0.008), (12, 0.05), (1, 0.008)):
        u = torch.arange(-1, T + 1, dtype=torch.float64) / T + s   # from t = −1, which no schedule has, to T

        def ratio(f: Tensor, alpha_min: float = 0.001) -> Tensor:
            return torch.cat([torch.ones(1, dtype=torch.float64), (f[2:] / f[1:-1]).clamp(min=alpha_min)])

        right, f = cosine_alpha(T, s), torch.cos(math.pi / 2 * u / (1 + s)).square()
        mistakes = {
            "α_t = f(t)/f(t−1), one step; yours is f(t)/f(0), which is ᾱ_t": f[1:] / f[1],
            "that is ᾱ_t, the product; α_t is one factor of it": right.cumprod(0),
            "clip α_t at 0.001 from below: f(T) = 0, and the last step would leave nothing": ratio(f, -1),
            "f is the square of the cosine, not the cosine of a square": ratio(torch.cos((math.pi / 2 * u / (1 + s)).square())),
            "the cosine is squared": ratio(f.sqrt()),
            "the angle is π/2 · (t/T + s)/(1 + s): the last bracket is missing": ratio(torch.cos(math.pi / 2 * u).square()),
            "s stands in the angle: (t/T + s)/(1 + s)": cosine_alpha(T, 0.0),
            "s is an argument: 0.008 is only its usual value": cosine_alpha(T),
            "that is β_t = 1 − α_t": 1 - right,
            "T + 1 numbers: place 0 holds α_0 = 1, so that place t holds α_t": right[1:],
            "α_0 = 1: nothing has happened before the first step": torch.cat([f[1:2] / f[:1], right[1:]]),
        }
        hint = "α_0 = 1, then f(t)/f(t−1) for t = 1 … T, none below 0.001, with f(t) = cos²(π/2 · (t/T + s)/(1 + s)): T + 1 numbers"
        compare(f"T = {T}, s = {s:g}", function, (T, s), right, hint, mistakes)


EXERCISES = {
    "1.1": exercises.Exercise(q_sample, _verify_q_sample),
    "2.1": exercises.Exercise(posterior, _verify_posterior),
    "4.1": exercises.Exercise(mean_from_noise, _verify_mean),
    "6.1": exercises.Exercise(ancestral_step, _verify_step),
    "6.2": exercises.Exercise(cosine_alpha, _verify_cosine),
}

check = partial(exercises.check, EXERCISES)
