"""Notebook 02: what a right answer to each exercise must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coursekit import exercises
from coursekit.checks import check_close
from coursekit.diffusion import NoiseSchedule
from coursekit.diffusion.kernels import ancestral_step, mean_from_noise, posterior, q_sample
from coursekit.diffusion.schedule import Time

Case = tuple[str, NoiseSchedule, Time, Tensor, Tensor, Tensor]


def _cases() -> Iterator[Case]:
    """Name, schedule, t and three tensors: the first and the last step by themselves, then batches in which each item has its own t."""
    generator = torch.Generator().manual_seed(1)
    cosine, one = NoiseSchedule.cosine(6), NoiseSchedule.linear(1, 0.1, 0.3)
    own = torch.tensor([1, 4, 6, 2])
    for name, schedule, t, shape in (
        ("one t in the middle", cosine, 3, (5,)),
        ("t = 1", cosine, 1, (5,)),
        ("t = T", cosine, cosine.T, (3, 2)),
        ("a t for each item, (4,)", cosine, own, (4,)),
        ("a t for each item, (4, 3, 2)", cosine, own, (4, 3, 2)),
        ("T = 1", one, 1, (2, 3)),
    ):
        x, y, z = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
        yield name, schedule, t, x, y, z


def _verify_q_sample(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_0, noise, _ in _cases():
        hint = "√ᾱ_t x_0 + √(1−ᾱ_t) noise: the bar stands on both, and schedule.at shapes ᾱ_t like the batch"
        check_close(name, function(schedule, x_0, t, noise), q_sample(schedule, x_0, t, noise), hint=hint)


def _verify_posterior(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_0, x_t, _ in _cases():
        mean, variance = function(schedule, x_0, x_t, t)
        right_mean, right_variance = posterior(schedule, x_0, x_t, t)
        hint = "over 1−ᾱ_t: √ᾱ_{t−1} β_t x_0 and √α_t (1−ᾱ_{t−1}) x_t (no bar on that α, the root ends before the bracket)"
        if name in ("t = 1", "T = 1"):
            hint = "at t = 1 the answer is x_0 itself, since ᾱ_0 = 1: is your ᾱ_{t−1} schedule.alpha_bar at place t − 1, with lowest=0?"
        check_close(f"mean, {name}", mean, right_mean, hint=hint)
        hint = "the variance is (1−ᾱ_{t−1}) β_t / (1−ᾱ_t), which is 0 at t = 1; a variance, not its root"
        check_close(f"variance, {name}", torch.as_tensor(variance).expand_as(x_t), right_variance.expand_as(x_t), hint=hint)


def _verify_mean(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_t, noise, _ in _cases():
        hint = "(x_t − β_t/√(1−ᾱ_t) · noise)/√α_t: with total noise the weight is not √β_t, the bar is on one α only, and it is t, not t−1"
        check_close(name, function(schedule, x_t, t, noise), mean_from_noise(schedule, x_t, t, noise), hint=hint)


def _verify_step(function: Callable[..., Any]) -> None:
    for name, schedule, t, x_t, noise, z in _cases():
        hint = "add σ_t z, with σ_t the root of the posterior variance β̃_t of (2.4)"
        if name in ("t = 1", "T = 1"):
            hint = "the last step, t = 1, adds no noise: β̃_1 = 0"
        check_close(name, function(schedule, x_t, t, noise, z), ancestral_step(schedule, x_t, t, noise, z), hint=hint)


EXERCISES = {
    "1.1": exercises.Exercise(q_sample, _verify_q_sample),
    "2.1": exercises.Exercise(posterior, _verify_posterior),
    "4.1": exercises.Exercise(mean_from_noise, _verify_mean),
    "6.1": exercises.Exercise(ancestral_step, _verify_step),
}

check = partial(exercises.check, EXERCISES)
