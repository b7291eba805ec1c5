"""Noise schedules: how fast signal turns into noise. Notation: α_t = 1 − β_t for one step, ᾱ_t = α_1·…·α_t for all steps so far.

Arrays are indexed by t itself. They have T+1 entries, with α_0 = ᾱ_0 = 1 for "nothing has happened yet", so that
``alpha_bar[t - 1]`` is right at the first step too and never wraps around to the last entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Time = int | Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The steps α_1 … α_T of a diffusion, as float64 tensors of length T+1 that are indexed by t.

    ``alpha``: (T+1,) with ``alpha[0] = 1`` and 0 < α_t < 1 for t ≥ 1; everything else follows from it.
    Raises ``ValueError`` for an alpha that cannot be a schedule. Source: Ho, Jain and Abbeel 2020, equations 2 and 4.
    """

    alpha: Tensor

    def __post_init__(self) -> None:
        alpha = torch.as_tensor(self.alpha, dtype=torch.float64).detach().clone()
        if alpha.ndim != 1 or len(alpha) < 2:
            raise ValueError(f"alpha must have shape (T+1,) with T ≥ 1, got shape {tuple(alpha.shape)}")
        if alpha[0] != 1:
            raise ValueError(f"alpha[0] must be 1, since no step is taken before t = 1; got {alpha[0].item():g}")
        wrong = ~((alpha[1:] > 0) & (alpha[1:] < 1))   # NaN is wrong as well
        if wrong.any():
            t = int(wrong.nonzero()[0].item()) + 1
            raise ValueError(f"alpha[t] must lie strictly between 0 and 1 for t ≥ 1; alpha[{t}] = {alpha[t].item():g}")
        object.__setattr__(self, "alpha", alpha)
        if not (self.alpha_bar.diff() < 0).all() or self.alpha_bar[-1] <= 0:
            raise ValueError("alpha_bar must fall at every step and stay above 0; in float64 it does not: use fewer or smaller steps")

    @classmethod
    def linear(cls, T: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> NoiseSchedule:
        """β_t equally spaced from ``beta_min`` to ``beta_max``, as they are given: nothing is scaled by T.

        The usual 1e-4 and 0.02 are meant for T = 1000. For another T multiply both by 1000/T, or much of the signal
        is left at the end. With T = 1 the only step is ``beta_max``. Source: Ho, Jain and Abbeel 2020, section 4.
        """
        _check_steps(T)
        if not 0 < beta_min <= beta_max < 1:
            raise ValueError(f"need 0 < beta_min ≤ beta_max < 1, got {beta_min:g} and {beta_max:g}")
        beta = torch.linspace(beta_min, beta_max, T, dtype=torch.float64) if T > 1 else torch.tensor([beta_max], dtype=torch.float64)
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), 1 - beta]))

    @classmethod
    def cosine(cls, T: int, s: float = 0.008, alpha_min: float = 0.001) -> NoiseSchedule:
        """α_t = f(t)/f(t−1) with f(t) = cos²(π/2·(t/T+s)/(1+s)), clipped from below at ``alpha_min``.

        ᾱ is the product of the *clipped* α: f(T) = 0, and without the clip the last step would destroy everything.
        ``s`` ≥ 0 keeps the first steps from being too small. Sources: Nichol and Dhariwal 2021, equation 17;
        CMU, homework 2, equation 16.
        """
        _check_steps(T)
        if not (s >= 0 and math.isfinite(s)):
            raise ValueError(f"s must be a finite number ≥ 0, got {s:g}")
        if not 0 < alpha_min < 1:
            raise ValueError(f"alpha_min must lie strictly between 0 and 1, got {alpha_min:g}")
        t = torch.arange(T + 1, dtype=torch.float64)
        f = torch.cos(math.pi / 2 * (t / T + s) / (1 + s)).square()
        ratio = (f[1:] / f[:-1]).clamp(min=alpha_min)
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), ratio]))

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.alpha) - 1

    @cached_property
    def beta(self) -> Tensor:
        """(T+1,): β_t = 1 − α_t, with β_0 = 0."""
        return 1 - self.alpha

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T+1,): ᾱ_t = α_1·…·α_t, with ᾱ_0 = 1."""
        return self.alpha.cumprod(0)

    @cached_property
    def snr(self) -> Tensor:
        """(T+1,): signal-to-noise ratio ᾱ_t/(1−ᾱ_t), infinite at t = 0. Its logarithm is the usual coordinate."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.alpha.to(device))

    def times(self, t: Time, *, lowest: int = 1) -> Tensor:
        """``t`` as an integer tensor, (B,) or (), after checking that it lies in ``lowest`` … T.

        Raises ``TypeError`` where t holds no integers and ``ValueError`` for another shape or a time outside.
        """
        if isinstance(t, bool) or not isinstance(t, int | Tensor) or (isinstance(t, Tensor) and _no_integers(t)):
            raise TypeError(f"t must be an int or an integer tensor of shape (B,), got {t!r}")
        times = torch.as_tensor(t, device=self.alpha.device)
        if times.ndim > 1:
            raise ValueError(f"t must be an int or have shape (B,), got shape {tuple(times.shape)}")
        if times.numel() and not lowest <= int(times.min()) <= int(times.max()) <= self.T:
            raise ValueError(f"t must lie in {lowest} … {self.T}, got {times.min().item()} … {times.max().item()}")
        return times.long()

    def at(self, values: Tensor, t: Time, like: Tensor, *, lowest: int = 1) -> Tensor:
        """``values[t]`` in the type of ``like`` (B, …), shaped to multiply it: one value for all, or one for each item.

        Raises as ``times`` does, and ``ValueError`` where t has another batch size than ``like``.
        """
        return per_item(values[self.times(t, lowest=lowest)], like)


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """One coefficient for all, (), or one for each item, (B,): in the type of ``like`` (B, …), shaped to multiply it.

    Raises ``ValueError`` where B differs.
    """
    if values.ndim and (not like.ndim or len(values) != like.shape[0]):
        raise ValueError(f"t has {len(values)} entries; the batch has shape {tuple(like.shape)}, and its first axis must match")
    values = values.to(like.device, like.dtype if like.is_floating_point() else torch.float64)
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values


def _check_steps(T: int) -> None:
    if isinstance(T, bool) or not isinstance(T, int):
        raise TypeError(f"T, the number of steps, must be an int, got {T!r}")
    if T < 1:
        raise ValueError(f"T, the number of steps, must be at least 1, got {T}")


def _no_integers(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex() or t.dtype == torch.bool
