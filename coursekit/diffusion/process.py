"""Notebook 05: training (algorithm 1) and sampling (algorithm 2) of a diffusion model of images, and faster sampling by DDIM.

Images x have shape (B, C, S, S), and data lie in [−1, 1]. The model is any module that maps x_t and t, (B,) integers in 1..T,
to the noise in x_t, shaped like it. Every number that a formula needs at t is computed in float64 (see ``kernels``).
Random numbers are drawn on the generator's device, the CPU without one, and then moved: every machine draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from coursekit.diffusion import kernels
from coursekit.diffusion.schedule import NoiseSchedule, Time

Pair = tuple[Tensor, Tensor]
LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


class Diffusion(nn.Module):
    """A denoising diffusion model: ``model(x_t, t)`` predicts the noise, ``schedule`` says how much of it there is.

    ``loss``: ``"l1"`` as in the handout, whose best prediction is the median of ε given x_t, or ``"l2"``, whose best is the mean, as
    the likelihood wants it. ``clip``: data lie in [−1, 1], so x̂_0 is clamped to it; without, data and x̂_0 may have any scale.
    Raises ``ValueError`` for sizes below 1, an unknown loss, and wherever images or predictions have another shape.
    Sources: Ho, Jain and Abbeel 2020, algorithms 1 and 2; CMU, homework 2, chapter 5.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        channels: int = 3,
        schedule: NoiseSchedule,
        loss: Literal["l1", "l2"] = "l1",
        clip: bool = True,
    ) -> None:
        super().__init__()
        if min(image_size, channels) < 1:
            raise ValueError(f"image_size and channels must be at least 1, got {image_size} and {channels}")
        if loss not in LOSSES:
            raise ValueError(f"loss must be 'l1' or 'l2', got {loss!r}")
        self.model, self.image_size, self.channels = model, image_size, channels
        self.schedule, self.loss, self.clip = schedule, loss, clip   # no buffer: it stays float64 when the model is converted

    # --- training: algorithm 1 ---

    def forward(self, x_0: Tensor, generator: Generator | None = None) -> Tensor:
        """The loss of one batch of data, a scalar: a time and noise for each image, and how well the noise is found again.

        Raises ``ValueError`` for NaN or infinity and, with ``clip``, for data outside [−1, 1].
        """
        self._check_shape("x_0", x_0)
        largest = x_0.detach().abs().amax().item()   # NaN where there is one
        if not largest <= (1.001 if self.clip else torch.finfo(x_0.dtype).max):
            found = f"x_0 must be {'in [-1, 1]' if self.clip else 'finite'}, found values up to {largest:g} in absolute value"
            raise ValueError(f"{found}; pixels of 0 … 255 become x / 127.5 - 1")
        t, noise = self.draw(len(x_0), generator)
        return self.p_loss(x_0, t, noise.to(x_0))

    def draw(self, batch_size: int, generator: Generator | None = None) -> Pair:
        """The draws of algorithm 1, on the model's device: t (B,), uniform on 1..T, and standard normal noise (B, C, S, S)."""
        shape = self._shape(batch_size)
        device = generator.device if generator is not None else "cpu"
        t = torch.randint(1, self.schedule.T + 1, (batch_size,), generator=generator, device=device)
        return t.to(self._like().device), _normal(shape, self._like(), generator)

    def q_sample(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε: data diffused for t steps, one t for all or one for each image."""
        return kernels.q_sample(self.schedule, x_0, t, noise)

    def p_loss(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """The mean over images, channels and pixels of |ε − ε_θ(x_t, t)|, or of its square."""
        return LOSSES[self.loss](self._predicted_noise(self.q_sample(x_0, t, noise), t), noise)

    # --- sampling: algorithm 2 ---

    def predict(self, x_t: Tensor, t: Time) -> Pair:
        """The model's noise, and the x̂_0 that it implies, clamped to [−1, 1] with ``clip`` (algorithm 2, lines 4–6).

        Where x̂_0 was clamped the two no longer belong together: ``ddim_step`` then takes the noise that x̂_0 implies.
        """
        noise = self._predicted_noise(x_t, t)
        x_0 = kernels.x_0_from_noise(self.schedule, x_t, t, noise)
        return noise, x_0.clamp(-1, 1) if self.clip else x_0

    def p_step(self, x_t: Tensor, t: Time, z: Tensor) -> Pair:
        """x_{t−1} with given standard normal ``z``, and x̂_0: a draw from q(x_{t−1} | x_t, x̂_0) (algorithm 2, lines 4–9).

        At t = 1 the variance β̃_1 is 0, so no noise is added: x_0 = x̂_0.
        """
        _, x_0 = self.predict(x_t, t)
        mean, variance = kernels.posterior(self.schedule, x_0, x_t, t)
        return mean + variance.sqrt() * z, x_0

    def p_sample(self, x_t: Tensor, t: Time, generator: Generator | None = None) -> Tensor:
        """One step back, from x_t to a draw of x_{t−1}."""
        self._check_shape("x_t", x_t)
        with self._sampling():
            return self.p_step(x_t, t, _normal(x_t.shape, x_t, generator))[0]

    @overload
    def p_sample_loop(self, x_T: Tensor, generator: Generator | None = None, *, keep: Literal[False] = False) -> Tensor: ...
    @overload
    def p_sample_loop(self, x_T: Tensor, generator: Generator | None = None, *, keep: Literal[True]) -> Pair: ...
    def p_sample_loop(self, x_T: Tensor, generator: Generator | None = None, *, keep: bool = False) -> Tensor | Pair:
        """All T steps back: x_0 or, with ``keep``, all states (T+1, B, C, S, S) from x_T to x_0 and the T predictions x̂_0."""

        def step(x_t: Tensor, t: int, _: int) -> Pair:
            return self.p_step(x_t, t, _normal(x_t.shape, x_t, generator))

        return self._walk(x_T, range(self.schedule.T, 0, -1), step, keep)

    def sample(self, batch_size: int, generator: Generator | None = None) -> Tensor:
        """New images, (B, C, S, S), by all T steps from pure noise; in [−1, 1] with ``clip``."""
        return self.p_sample_loop(_normal(self._shape(batch_size), self._like(), generator), generator)

    # --- sampling with fewer steps: DDIM ---

    def ddim_step(self, x_t: Tensor, t: int, s: int, z: Tensor, eta: float = 0.0) -> Pair:
        """x_s for any s < t with given standard normal ``z``, and x̂_0. Song, Meng and Ermon 2021, equations 12 and 16.

        The noise of the step is recomputed from the clamped x̂_0, so that η = 1 and s = t−1 is ``p_step`` with ``clip`` as well.
        """
        _, x_0 = self.predict(x_t, t)
        noise = kernels.noise_from_x_0(self.schedule, x_t, t, x_0)
        x_s = kernels.ddim_step(self.schedule, x_t, t, s, noise, z, eta)
        return x_s if s else x_0, x_0   # at s = 0 the formula gives x̂_0, but for rounding by 1/√ᾱ_t

    @overload
    def ddim_sample(
        self, x_T: Tensor | int, steps: int, eta: float = 0.0, generator: Generator | None = None, *, keep: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def ddim_sample(
        self, x_T: Tensor | int, steps: int, eta: float = 0.0, generator: Generator | None = None, *, keep: Literal[True]
    ) -> Pair: ...
    def ddim_sample(
        self, x_T: Tensor | int, steps: int, eta: float = 0.0, generator: Generator | None = None, *, keep: bool = False
    ) -> Tensor | Pair:
        """Images in ``steps`` steps over ``ddim_times``, from x_T or from noise for that many images; ``keep`` as in ``p_sample_loop``.

        η = 0 draws nothing on the way; η = 1 with T steps is ``p_sample_loop``, draw for draw.
        Raises ``ValueError`` for steps outside 1..T or η outside [0, 1].
        """
        start = x_T if isinstance(x_T, Tensor) else _normal(self._shape(x_T), self._like(), generator)

        def step(x_t: Tensor, t: int, s: int) -> Pair:
            return self.ddim_step(x_t, t, s, _normal(x_t.shape, x_t, generator) if eta else torch.zeros_like(x_t), eta)

        return self._walk(start, ddim_times(self.schedule.T, steps), step, keep)

    # --- what they share ---

    def _walk(self, x: Tensor, times: Sequence[int], step: Callable[[Tensor, int, int], Pair], keep: bool) -> Tensor | Pair:
        """From x at the first of the falling ``times`` down to 0, by x_s, x̂_0 = step(x_t, t, s)."""
        self._check_shape("x_T", x)
        states, predictions = [x], []
        with self._sampling():
            for t, s in zip(times, [*times[1:], 0], strict=True):
                x, x_0 = step(x, t, s)
                if keep:
                    states.append(x)
                    predictions.append(x_0)
        return (torch.stack(states), torch.stack(predictions)) if keep else x

    def _predicted_noise(self, x_t: Tensor, t: Time) -> Tensor:
        noise = self.model(x_t, self.schedule.times(t).to(x_t.device).expand(len(x_t)))
        if noise.shape != x_t.shape:
            raise ValueError(f"the model returned shape {tuple(noise.shape)} for images of shape {tuple(x_t.shape)}; they must be the same")
        return noise

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """No gradients, and evaluation mode; afterwards every module is in the mode that it was in."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def _like(self) -> Tensor:
        return next(self.model.parameters(), torch.empty(0))   # a model without parameters: the CPU, in the default type

    def _shape(self, batch_size: int) -> tuple[int, ...]:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return batch_size, self.channels, self.image_size, self.image_size

    def _check_shape(self, name: str, images: Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape) != self._shape(len(images)):
            expected = f"(B, {self.channels}, {self.image_size}, {self.image_size})"
            raise ValueError(f"{name} must have shape {expected}, got {tuple(images.shape)}")


def ddim_times(T: int, steps: int) -> list[int]:
    """The times at which DDIM stops, falling from T: T·k/steps, rounded, for k = steps … 1. A last step goes to 0.

    Equally spaced where ``steps`` divides T. Raises ``ValueError`` for steps outside 1..T. Source: Song, Meng and Ermon 2021, 4.2.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in 1 … {T}, the number of steps that the schedule has, got {steps}")
    return [round(T * k / steps) for k in range(steps, 0, -1)]


def _normal(shape: Sequence[int], like: Tensor, generator: Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
