"""Notebook 05: what a right answer to each exercise must do. The usual wrong ones are known by what they give, and get their own hint.

Another device is played by torch's "meta" device, which computes shapes only but refuses to mix with the CPU as a GPU does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coursekit import exercises
from coursekit.checks import check_close, check_equal, check_true
from coursekit.diffusion import Diffusion, NoiseSchedule
from coursekit.diffusion.kernels import ddim_step, mean_from_noise, posterior, q_sample
from coursekit.diffusion.process import ddim_times, to_pixels, to_signed
from coursekit.diffusion.unet import sinusoidal_embedding

ON_DEVICE = "all you make must be on the device of x: schedule.at(values, t, x) brings the numbers there, torch.arange needs device="


def ddim_sigma(schedule: NoiseSchedule, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """σ of a step from t (B,) to s (B,), 0 ≤ s < t: what multiplies the fresh noise, float64. Song, Meng and Ermon 2021, equation 16."""
    zero = torch.zeros(t.shape, dtype=torch.float64)
    return ddim_step(schedule, zero, t, s, zero, torch.ones_like(zero), eta)


class _Probe(nn.Module):
    """A model whose answer tells x_t and t of each image."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x_t) * (1 + t.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1)) / 10)


def _judge(claim: str, found: Any, right: Tensor, hint: str, mistakes: Mapping[str, Tensor], tolerance: float | None = None) -> None:
    """``check_close`` with the hint of the mistake that ``found`` is, or else ``hint``."""
    found = torch.as_tensor(found)
    for text, wrong in mistakes.items():
        if found.shape == wrong.shape and torch.allclose(found.double(), wrong.double(), equal_nan=True):
            hint = text
    check_close(claim, found, right, tolerance=tolerance, hint=hint)


def _elsewhere(call: Callable[[], Any]) -> None:
    """Run ``call`` on arguments that live on another device; a mix of devices is told as such."""
    try:
        result = call()
    except RuntimeError as error:
        if "device" not in str(error):
            raise
        check_true("images on another device", False, hint=f"{error}\n  {ON_DEVICE}")
    else:
        found = [v.device.type for v in (result if isinstance(result, tuple) else (result,))]
        check_equal("device of the result", found, ["meta"] * len(found), hint=ON_DEVICE)


def _cases() -> Iterator[tuple[str, Diffusion, Tensor, Tensor, Tensor]]:
    """Name, process, t (B,), and two tensors (B, C, S, S): a t for each image, only the first or the last step, and T = 1."""
    generator, cosine = torch.Generator().manual_seed(1), NoiseSchedule.cosine(6)
    for name, schedule, times in (
        ("each image its own t", cosine, [4, 1, 6, 2, 3]),
        ("t = 1", cosine, [1, 1]),
        ("t = T", cosine, [6]),
        ("T = 1", NoiseSchedule.linear(1, 0.1, 0.3), [1, 1, 1]),
    ):
        x, y = torch.randn(2, len(times), 2, 3, 3, dtype=torch.float64, generator=generator)
        yield name, Diffusion(_Probe(), image_size=3, channels=2, schedule=schedule), torch.tensor(times), x, y


def _verify_to_signed(function: Callable[..., Any]) -> None:
    pixels = torch.arange(256).to(torch.uint8).reshape(2, 2, 8, 8)
    x = pixels.double()
    mistakes = {
        "0 … 255 over 255 is 0 … 1: twice that, less 1": x / 255,
        "the span of [-1, 1] is 2, but its middle is 0: subtract 1": x / 127.5,
        "255/128 − 1 is not 1: the middle of 0 … 255 is 127.5": x / 128 - 1,
        "uint8 counts modulo 256: make it a float before you calculate": (pixels * 2 - 255).double() / 255,
    }
    _judge("pixels 0 … 255", function(pixels), to_signed(pixels), "0 becomes −1, 127.5 would be 0, 255 becomes 1, in any shape", mistakes)


def _verify_to_pixels(function: Callable[..., Any]) -> None:
    pixels = torch.arange(256).to(torch.uint8).reshape(4, 1, 8, 8)
    for dtype in (torch.float32, torch.float64):
        x = pixels.to(dtype) / 127.5 - 1
        found = function(x.clone())
        check_equal("type of the pixels", found.dtype, torch.uint8, hint=".to(torch.uint8) at the end")
        mistakes = {"a conversion to uint8 cuts decimals off, 41.99999 to 41: .round() first": ((x + 1) * 127.5).to(torch.uint8)}
        _judge("there and back", found, pixels, "−1 becomes 0, 0 becomes 127.5 and so 128, 1 becomes 255: (x + 1)·127.5", mistakes)
        outside = torch.tensor([-1.2, -1.001, 1.001, 1.2], dtype=dtype)
        hint = "what lies outside [-1, 1] is put at the end, with .clamp: in uint8, 258 would be 2 and −1 would be 255"
        check_close("outside [-1, 1]", function(outside), to_pixels(outside), hint=hint)


def _verify_p_loss(function: Callable[..., Any]) -> None:
    for name, diffusion, t, x_0, noise in _cases():
        schedule, model, first = diffusion.schedule, diffusion.model, t[:1].expand_as(t)

        def errors(x_t: Tensor, model: nn.Module = model, t: Tensor = t, noise: Tensor = noise) -> Tensor:
            return noise - model(x_t, t)

        error = errors(q_sample(schedule, x_0, t, noise))
        unbarred = schedule.at(schedule.alpha_bar.sqrt(), t, x_0) * x_0 + schedule.at(schedule.beta.sqrt(), t, x_0) * noise
        mistakes = {
            "the same t for all: index with the whole t, one coefficient an image (schedule.at)": diffusion.p_loss(x_0, first, noise),
            "t of the first image only was used to make x_t": errors(q_sample(schedule, x_0, first, noise)).abs().mean(),
            "√(1−ᾱ_t), not √(1−α_t): the bar stands on both": errors(unbarred).abs().mean(),
            "√ᾱ_t multiplies x_0 and √(1−ᾱ_t) the noise; yours are swapped": errors(q_sample(schedule, noise, t, x_0)).abs().mean(),
            "the model sees x_t, not x_0": errors(x_0).abs().mean(),
            "that is the squared error: L1 takes .abs()": error.square().mean(),
            "a mean over images, channels and pixels, not a sum": error.abs().sum(),
            "without .abs() the errors cancel": error.mean(),
            "the model predicts the noise, so compare it with noise, not with x_0": (error - noise + x_0).abs().mean(),
        }
        hint = "x_t = √ᾱ_t x_0 + √(1−ᾱ_t) noise, then the mean of |noise − model(x_t, t)| as one number"
        _judge(name, function(diffusion, x_0, t, noise), diffusion.p_loss(x_0, t, noise), hint, mistakes)
    _elsewhere(lambda: function(diffusion, x_0.to("meta"), t, noise.to("meta")))


def _wrong_steps(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, z: Tensor, noise: Tensor, x_0: Tensor) -> dict[str, Tensor]:
    """What the usual mistakes give for x_{t−1}, when x̂_0 is right."""
    mean, variance = posterior(schedule, x_0, x_t, t)
    sigma, late = variance.sqrt(), (t > 1).reshape(-1, 1, 1, 1)
    now, earlier, beta = (schedule.at(v, t, x_t) for v in (schedule.alpha_bar, schedule.alpha_bar[[0, *range(schedule.T)]], schedule.beta))
    wrapped = earlier.where(late, schedule.alpha_bar[-1])   # place −1 of an array that starts at t = 1

    def step(previous: Tensor, x_t_weight: Tensor) -> Tensor:
        return (x_t_weight * x_t + previous.sqrt() * beta * x_0) / (1 - now) + ((1 - previous) * beta / (1 - now)).sqrt() * z

    return {
        "the last step, t = 1, adds no noise: z = 0 there, or σ_1 = 0 takes care": mean + sigma.where(late, 1) * z,
        "at t = 1 the earlier ᾱ is ᾱ_0 = 1; yours wrapped around to ᾱ_T": step(wrapped, (1 - beta).sqrt() * (1 - wrapped)),
        "σ_t² is β̃_t = (1−ᾱ_{t−1})/(1−ᾱ_t)·β_t; yours is β_t": mean + beta.sqrt() * z,
        "σ_t² is β̃_t = (1−ᾱ_{t−1})/(1−ᾱ_t)·β_t; yours is β_t, but for the last step": mean + beta.sqrt() * late * z,
        "z is multiplied by σ_t, the root of the variance": mean + variance * z,
        "z is missing: x_{t−1} is a draw, not the mean": mean,
        "in line 7 the root ends before the bracket: √α_t · (1−ᾱ_{t−1})": step(earlier, ((1 - beta) * (1 - earlier)).sqrt()),
        "in line 7 the α under the root has no bar": step(earlier, now.sqrt() * (1 - earlier)),
        "the mean is made of the clamped x̂_0, not of the model's noise": mean_from_noise(schedule, x_t, t, noise) + sigma * z,
    }


def _verify_p_step(function: Callable[..., Any]) -> None:
    for name, diffusion, t, x_t, z in _cases():
        result = function(diffusion, x_t, t, z)
        hint = "return both, x_{t−1} and x̂_0"
        check_true(f"{name}: two tensors", isinstance(result, tuple) and len(result) == 2, hint=hint)
        schedule, (noise, x_0) = diffusion.schedule, diffusion.predict(x_t, t)
        now, alpha = (schedule.at(v, t, x_t) for v in (schedule.alpha_bar, schedule.alpha))
        free = (x_t - (1 - now).sqrt() * noise) / now.sqrt()
        first = t[:1].expand_as(t)
        mistakes = {
            "line 6: clamp x̂_0 to [-1, 1]": free,
            "the data lie in [-1, 1], not in [0, 1]": free.clamp(0, 1),
            "a minus: the noise is taken away again": ((x_t + (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1),
            "the bar is missing: (x_t − √(1−ᾱ_t) ε)/√ᾱ_t": ((x_t - (1 - alpha).sqrt() * noise) / alpha.sqrt()).clamp(-1, 1),
            "the roots are swapped: √(1−ᾱ_t) stands before ε, √ᾱ_t below": ((x_t - now.sqrt() * noise) / (1 - now).sqrt()).clamp(-1, 1),
            "the same t for all: one coefficient an image (schedule.at)": diffusion.predict(x_t, first)[1],
        }
        _judge(f"{name}: x̂_0", result[1], x_0, "x̂_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t with ε = diffusion.model(x_t, t), then clamped", mistakes)
        hint = "μ̃_t of the clamped x̂_0 and x_t (algorithm 2, line 7), plus σ_t z, each image with its own t"
        _judge(f"{name}: x_(t−1)", result[0], diffusion.p_step(x_t, t, z)[0], hint, _wrong_steps(schedule, x_t, t, z, noise, x_0))
    _elsewhere(lambda: function(diffusion, x_t.to("meta"), t, z.to("meta")))


def _verify_times(function: Callable[..., Any]) -> None:
    for T, steps in ((50, 10), (50, 50), (8, 1), (10, 3), (50, 17)):
        times, name = [int(t) for t in function(T, steps)], f"T = {T}, {steps} steps"
        hint = f"from noise to data t falls, and no t twice: {times}"
        check_true(f"{name}: falling", times == sorted(set(times), reverse=True), hint=hint)
        hint = f"0 is where the last step ends; the model is asked at 1 … T only: {times}"
        check_true(f"{name}: no 0 among them", 0 not in times, hint=hint)
        hint = f"the first is T, where all is noise; times are counted from 1, and yours begin {times[:2]}"
        check_equal(f"{name}: the first", times[:1], [T], hint=hint)
        hint = f"a stride of T//steps = {T // steps} fits only where steps divides T: round T·k/steps instead"
        check_equal(f"{name}: how many", len(times), steps, hint=hint)
        gap = max(abs(t - T * k / steps) for t, k in zip(times, range(steps, 0, -1), strict=True))
        check_true(f"{name}: equally spaced, up to rounding", gap < 1, hint=f"T·k/steps for k = steps … 1, not {times}")


def _verify_sigma(function: Callable[..., Any]) -> None:
    schedule, t = NoiseSchedule.cosine(12), torch.tensor([12, 9, 5, 2, 1])
    before = schedule.alpha_bar[t - 1]
    for s in (t - 1, t // 2, torch.zeros_like(t)):
        for eta in (1.0, 0.6, 0.0):
            now, then = schedule.alpha_bar[t], schedule.alpha_bar[s]
            mistakes = {
                "σ, the standard deviation, is the root of that": ((1 - then) / (1 - now) * (1 - now / then)) * eta**2,
                "η multiplies σ, not σ²: it stands before the roots": ((1 - then) / (1 - now) * (1 - now / then) * eta).sqrt(),
                "the first factor is missing: √((1−ᾱ_s)/(1−ᾱ_t))": eta * (1 - now / then).sqrt(),
                "for a longer step put ᾱ_s for ᾱ_{t−1} in both factors": eta * ((1 - before) / (1 - now) * (1 - now / before)).sqrt(),
                "ᾱ_t/ᾱ_s, which is below 1, not ᾱ_s/ᾱ_t: the root is not real": eta * ((1 - then) / (1 - now) * (1 - then / now)).sqrt(),
            }
            right = ddim_sigma(schedule, t, s, eta)
            hint = "σ = η √((1−ᾱ_s)/(1−ᾱ_t)) √(1−ᾱ_t/ᾱ_s), with bars on all; it is 0 where s = 0, since ᾱ_0 = 1"
            _judge(f"η = {eta:g}, from {t.tolist()} to {s.tolist()}", function(schedule, t, s, eta), right, hint, mistakes)


def _verify_embedding(function: Callable[..., Any]) -> None:
    t = torch.tensor([1, 2, 50, 999, 1])
    for dim in (2, 6, 16):
        half = torch.arange(dim // 2, dtype=torch.float64)

        def waves(exponent: Tensor) -> Tensor:
            angles = t.double()[:, None] * torch.exp(-math.log(10_000) * exponent)
            return torch.cat([angles.sin(), angles.cos()], 1)

        right = sinusoidal_embedding(t, dim)
        mistakes = {
            "first all sines, then all cosines; yours take turns": right.unflatten(1, (2, -1)).transpose(1, 2).flatten(1),
            "first the sines, then the cosines": right.roll(dim // 2, 1),
            "ω_k = 10000^(−2k/dim): the 2 is missing": waves(half / dim),
            "ω_k = 10000^(−2k/dim); over dim/2 − 1 is what some programs do, and other numbers": waves(half / max(dim // 2 - 1, 1)),
            "the exponent is negative: from ω_0 = 1 the waves grow longer": waves(-2 * half / dim),
        }
        hint = "sin(ω_k t) for k = 0 … dim/2 − 1, then cos(ω_k t), with ω_k = 10000^(−2k/dim): shape (B, dim)"
        _judge(f"dim = {dim}", function(t, dim), right, hint, mistakes, tolerance=1e-3)   # float32 is enough for a network
    _elsewhere(lambda: function(t.to("meta"), 6))


EXERCISES = {
    "1.1": exercises.Exercise(to_signed, _verify_to_signed),
    "1.2": exercises.Exercise(to_pixels, _verify_to_pixels),
    "2.1": exercises.Exercise(Diffusion.p_loss, _verify_p_loss),
    "2.2": exercises.Exercise(sinusoidal_embedding, _verify_embedding),
    "3.1": exercises.Exercise(Diffusion.p_step, _verify_p_step),
    "4.1": exercises.Exercise(ddim_times, _verify_times),
    "4.2": exercises.Exercise(ddim_sigma, _verify_sigma),
}

check = partial(exercises.check, EXERCISES)
