"""Notebook 05: what a right answer to each exercise must do, and what the usual wrong ones give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from coursekit import exercises
from coursekit.checks import check_equal, check_true
from coursekit.data.pixels import to_pixels, to_signed
from coursekit.diffusion import Diffusion, NoiseSchedule
from coursekit.diffusion.kernels import ddim_step, mean_from_noise, posterior, q_sample
from coursekit.diffusion.process import ddim_times
from coursekit.diffusion.schedule import Time
from coursekit.diffusion.unet import sinusoidal_embedding
from coursekit.exercises.judging import ask, compare, elsewhere, numbers, recognise, several, steady


def ddim_sigma(schedule: NoiseSchedule, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """σ of a step from t (B,) to s (B,), 0 ≤ s < t: what multiplies the fresh noise, float64. Song, Meng and Ermon 2021, equation 16."""
    zero = torch.zeros(t.shape, dtype=torch.float64)
    return ddim_step(schedule, zero, t, s, zero, torch.ones_like(zero), eta)


class _Probe(nn.Module):
    """A model whose answer tells x_t and t of each image."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x_t) * (1 + t.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1)) / 10)


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
    every = torch.arange(256).to(torch.uint8)
    for pixels in (every.reshape(2, 2, 8, 8), every.flip(0)[:105].reshape(3, 7, 5)):
        x = pixels.double()
        mistakes = {
            "0 … 255 over 255 is 0 … 1: twice that, less 1": x / 255,
            "the span of [-1, 1] is 2, but its middle is 0: subtract 1": x / 127.5,
            "255/128 − 1 is not 1: the middle of 0 … 255 is 127.5": x / 128 - 1,
            "255/127 − 1 is not 1: the middle of 0 … 255 is 127.5": x / 127 - 1,
            "0 … 255 over 255 is 0 … 1: its middle is moved to 0, but its span is doubled too": x / 255 - 0.5,
            "uint8 counts modulo 256: make it a float before you calculate": (pixels * 2 - 255).double() / 255,
        }
        hint = "0 becomes −1, 127.5 would be 0, 255 becomes 1, in any shape"
        compare(f"pixels of shape {tuple(x.shape)}", function, (pixels,), to_signed(pixels), hint, mistakes)


def _verify_to_pixels(function: Callable[..., Any]) -> None:
    for dtype, shape in ((torch.float32, (4, 1, 8, 8)), (torch.float64, (2, 128))):
        pixels = torch.arange(256).to(torch.uint8).reshape(shape)
        x = pixels.to(dtype) / 127.5 - 1
        found = ask("there and back", function, x)
        check_equal("type of the pixels", getattr(found, "dtype", None), torch.uint8, hint=".to(torch.uint8) at the end")
        mistakes = {
            "a conversion to uint8 cuts decimals off, 41.99999 to 41: .round() first": ((x + 1) * 127.5).to(torch.uint8),
            "x lies in [-1, 1], not in [0, 1]: (x + 1)·127.5": (x.clamp(0, 1) * 255).round().to(torch.uint8),
            "the middle of 0 … 255 is 127.5: (x + 1)·127.5, not 128": ((x + 1) * 128).round().clamp(0, 255).to(torch.uint8),
            "the middle of 0 … 255 is 127.5: (x + 1)·127.5, not 127": ((x + 1) * 127).round().to(torch.uint8),
        }
        recognise("there and back", found, pixels, "−1 becomes 0, 0 becomes 127.5 and so 128, 1 becomes 255: (x + 1)·127.5", mistakes)
        outside = torch.tensor([-1.2, -1.001, 1.001, 1.2], dtype=dtype)
        hint = "what lies outside [-1, 1] is put at the end, with .clamp: in uint8, 258 would be 2 and −1 would be 255"
        compare("outside [-1, 1]", function, (outside,), to_pixels(outside), hint)


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
            "the model needs t of each image, not that of the first": errors(q_sample(schedule, x_0, t, noise), t=first).abs().mean(),
            "√(1−ᾱ_t), not √(1−α_t): the bar stands on both": errors(unbarred).abs().mean(),
            "√ᾱ_t multiplies x_0 and √(1−ᾱ_t) the noise; yours are swapped": errors(q_sample(schedule, noise, t, x_0)).abs().mean(),
            "the model sees x_t, not x_0": errors(x_0).abs().mean(),
            "that is the squared error: L1 takes .abs()": error.square().mean(),
            "a mean over images, channels and pixels, not a sum": error.abs().sum(),
            "a mean over pixels and channels too, not their sum for each image": error.abs().flatten(1).sum(1).mean(),
            "one number: the mean over the images as well": error.abs().flatten(1).mean(1),
            "the root of a mean of squares is L2: L1 takes .abs()": error.square().mean().sqrt(),
            "without .abs() the errors cancel": error.mean(),
            "the model predicts the noise, so compare it with noise, not with x_0": (error - noise + x_0).abs().mean(),
        }
        hint = "x_t = √ᾱ_t x_0 + √(1−ᾱ_t) noise, then the mean of |noise − model(x_t, t)| as one number"
        steady(name, function, diffusion, x_0, t, noise)
        compare(name, function, (diffusion, x_0, t, noise), diffusion.p_loss(x_0, t, noise), hint, mistakes)
    elsewhere(function, diffusion, x_0.to("meta"), t, noise.to("meta"))


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
        "in line 7 the root of ᾱ_{t−1} stands before x̂_0": mean + (earlier - earlier.sqrt()) * beta / (1 - now) * x_0 + sigma * z,
        "in line 7 it is ᾱ_{t−1} twice; yours is ᾱ_t": step(now, (1 - beta).sqrt() * (1 - now)) + (sigma - beta.sqrt()) * z,
        "with bars on all α this is x̂_0 and noise; line 7 goes one step": x_0 + sigma * z,
        "the mean is made of the clamped x̂_0, not of the model's noise": mean_from_noise(schedule, x_t, t, noise) + sigma * z,
    }


def _verify_p_step(function: Callable[..., Any]) -> None:
    for name, diffusion, t, x_t, z in _cases():
        steady(name, function, diffusion, x_t, t, z)
        result = several(f"{name}: two tensors", ask(name, function, diffusion, x_t, t, z), 2, "return both, x_{t−1} and x̂_0")
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
        recognise(f"{name}: x̂_0", result[1], x_0, "x̂_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t with ε = diffusion.model(x_t, t), then clamped", mistakes)
        hint = "μ̃_t of the clamped x̂_0 and x_t (algorithm 2, line 7), plus σ_t z, each image with its own t"
        recognise(f"{name}: x_(t−1)", result[0], diffusion.p_step(x_t, t, z)[0], hint, _wrong_steps(schedule, x_t, t, z, noise, x_0))
    elsewhere(function, diffusion, x_t.to("meta"), t, z.to("meta"))


class _Anywhere(NoiseSchedule):
    """A schedule that can be asked with a t on the meta device, as with one on a GPU; it is taken to be 1."""

    def times(self, t: Time, *, lowest: int = 1) -> Tensor:
        return super().times(torch.ones(t.shape, dtype=torch.long) if isinstance(t, Tensor) and t.is_meta else t, lowest=lowest)


class _Recorder(nn.Module):
    """A model with a parameter that writes down what it is asked: x_t (B, …) and t."""

    def __init__(self, write: Callable[[tuple[Tensor, Tensor]], None]) -> None:
        super().__init__()
        self.write, self.weight = write, nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.write((x_t.detach().clone(), t))
        return torch.tanh(x_t) * (self.weight.to(x_t.device) + t.reshape(-1, 1, 1, 1) / 50)


def _verify_loop(function: Callable[..., Any]) -> None:
    for T, batch in ((5, 64), (8, 80), (1, 3)):
        asked: list[tuple[Tensor, Tensor]] = []
        process = Diffusion(_Recorder(asked.append), image_size=4, channels=2, schedule=NoiseSchedule.cosine(T))
        x = torch.randn(batch, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
        claim, draws = f"T = {T}, {batch} images", (torch.Generator().manual_seed(seed) for seed in (2, 2))
        found, again = (ask(claim, function, process, x, generator) for generator in draws)
        check_true(f"{claim}: a tensor", isinstance(found, Tensor), hint=f"return the last x; this is {type(found).__name__}")
        walk = asked[: len(asked) // 2]
        _check_walk(claim, [t for _, t in walk], T, batch)
        recognise(f"{claim}: the start", walk[0][0], x, "start from the x that is given: it is x_T already")
        noises = [_noise_between(process, t, one, other) for (one, t), (other, _) in pairwise(walk)]
        bound = 5 / (x.numel() // 2) ** 0.5   # five standard errors of half of them
        for z in noises:
            fine = z.mean().abs() < bound and (z.var() - 1).abs() < 2 * bound
            check_true(f"{claim}: standard normal noise", fine, hint="hand p_step a z from torch.randn, not zeros, not rand")
            check_true(f"{claim}: noise for each image", (z[::2] * z[1::2]).mean().abs() < bound, hint="draw z in the shape of x")
        same = any((one * other).mean().abs() > bound for one, other in pairwise(noises))
        check_true(f"{claim}: fresh noise", not same, hint="draw z inside the loop: each step needs fresh noise")
        with torch.no_grad():
            last, _ = process.p_step(walk[-1][0], walk[-1][1], torch.zeros_like(x))
        mistakes = {"that is x_T still: keep what p_step returns": x, "what p_step returns at t = 1 is x_0; yours is x_1": walk[-1][0]}
        recognise(claim, found, last, "return the last x alone; p_step gives it first, and x̂_0 second", mistakes)
        check_true(f"{claim}: the same seed", torch.equal(found, again), hint="draw z with the generator that is given")
        check_true(f"{claim}: no gradients", not found.requires_grad, hint="@torch.no_grad(): gradients of T steps fill the memory")
    process.schedule = _Anywhere.cosine(2)
    elsewhere(function, process, x.to("meta"), torch.Generator())


def _check_walk(claim: str, times: list[Tensor], T: int, batch: int) -> None:
    """The model was asked at T, T−1, …, 1, with one t for each image."""
    walked = [int(t.flatten()[0]) for t in times]
    hint = f"from T, where all is noise, to 1, by range(T, 0, -1): yours are {walked}"
    check_equal(f"{claim}: the times", walked, list(range(T, 0, -1)), hint=hint)
    hint = "p_step wants one t for each image: torch.full((len(x),), t, device=x.device)"
    check_equal(f"{claim}: shape of t", {tuple(t.shape) for t in times}, {(batch,)}, hint=hint)


def _noise_between(process: Diffusion, t: Tensor, x_t: Tensor, x_s: Tensor) -> Tensor:
    """The z of the step from x_t to x_s."""
    with torch.no_grad():
        still, moved = (process.p_step(x_t, t, z)[0] for z in (torch.zeros_like(x_t), torch.ones_like(x_t)))
    return (x_s - still) / (moved - still)


def _verify_times(function: Callable[..., Any]) -> None:
    for T, steps in ((50, 10), (50, 50), (8, 1), (10, 3), (50, 17)):
        name = f"T = {T}, {steps} steps"
        found = numbers(name, ask(name, function, T, steps))
        check_true(f"{name}: integers", found.ndim == 1 and not found.is_floating_point(), hint="a list of whole numbers: round(…) or //")
        times = found.tolist()
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
            compare(f"η = {eta:g}, from {t.tolist()} to {s.tolist()}", function, (schedule, t, s, eta), right, hint, mistakes)


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
        compare(f"dim = {dim}", function, (t, dim), right, hint, mistakes, tolerance=1e-3)   # float32 is enough for a network
    elsewhere(function, t.to("meta"), 6)


EXERCISES = {
    "1.1": exercises.Exercise(to_signed, _verify_to_signed),
    "1.2": exercises.Exercise(to_pixels, _verify_to_pixels),
    "2.1": exercises.Exercise(Diffusion.p_loss, _verify_p_loss),
    "2.2": exercises.Exercise(sinusoidal_embedding, _verify_embedding),
    "3.1": exercises.Exercise(Diffusion.p_step, _verify_p_step),
    "3.2": exercises.Exercise(Diffusion.p_sample_loop, _verify_loop),
    "4.1": exercises.Exercise(ddim_times, _verify_times),
    "4.2": exercises.Exercise(ddim_sigma, _verify_sigma),
}

check = partial(exercises.check, EXERCISES)
