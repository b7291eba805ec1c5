"""Experiments for errata of one symbol or one word in texts on diffusion; their rows stand in ``errata.py``.

Truths come from walking the chain, from linear maps of independent noises, and from integrals on a grid.
"""

from __future__ import annotations

import torch
from errata_diffusion import BAR, BETA, DATA, X_0, X_T, A, T, _chain, _normal
from torch import Tensor
from torch.distributions import Normal

Number = float | Tensor
Outcome = tuple[Number, Number, Number]

END = len(BAR) - 1


def signal_as_amplitude() -> Outcome:
    """The variance of α_t x + σ_t ε for data of variance 1: of the chain that is walked, with √ᾱ_t for α_t, with the chain's own α_t."""
    noise = 1 - BAR[T]
    return _chain(T).square().sum(), BAR[T] + noise, A[T] ** 2 + noise


def index_of_the_last_step() -> Outcome:
    noise = _normal(9)
    x_1 = A[1].sqrt() * X_0 + BETA[1].sqrt() * noise

    def back(alpha: Tensor) -> Tensor:
        return (x_1 - BETA[1] / (1 - BAR[1]).sqrt() * noise) / alpha.sqrt()

    return X_0.expand(9), back(1 - BETA[1]), back(1 - BETA[END])


def noise_used_again() -> Outcome:
    """The variance of x_{t−1} given x_0, where x_t holds the noise ε: adding a fresh noise to the mean, and adding ε itself."""
    left = ((1 - BAR[T]).sqrt() - BETA[T] / (1 - BAR[T]).sqrt()) / A[T].sqrt()   # of ε in the mean
    sigma = ((1 - BAR[T - 1]) / (1 - BAR[T]) * BETA[T]).sqrt()
    return _chain(T - 1)[1:].square().sum(), left**2 + sigma**2, (left + sigma) ** 2


def raised_term() -> Outcome:
    """What an ELBO gains when L_1 does, on a chain of two steps: from its definition on a grid, from +L_1, and from −L_1."""
    x = torch.linspace(-7, 7, 701, dtype=torch.float64)
    one, two = x[:, None], x[None, :]
    q_1, q_2 = Normal(A[1].sqrt() * X_0, BETA[1].sqrt()).log_prob(one), Normal(A[2].sqrt() * one, BETA[2].sqrt()).log_prob(two)
    weight = (q_1 + q_2).exp() * (x[1] - x[0]) ** 2

    def elbo_and_term(gain: float) -> tuple[Tensor, Tensor]:
        p_1, p_0 = Normal(gain * two, 0.3).log_prob(one), Normal(one, 0.5).log_prob(X_0)
        joint = Normal(0.0, 1.0).log_prob(two) + p_1 + p_0
        return (weight * (joint - q_1 - q_2)).sum(), (weight * (p_1 - q_1)).sum()

    (low, low_term), (high, high_term) = elbo_and_term(0.2), elbo_and_term(0.9)
    return high - low, high_term - low_term, low_term - high_term


class _Counted:
    """A number that counts the multiplications it takes part in."""

    count = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __mul__(self, other: _Counted) -> _Counted:
        _Counted.count += 1
        return _Counted(self.value * other.value)


def table_of_products() -> Outcome:
    """How the multiplications for x_τ grow from τ = 10 to 40, where O(1) says not at all: with ᾱ from a table, with a product each time."""
    alphas, bars, signal = ([_Counted(float(v)) for v in values] for values in (A, BAR, [X_0]))

    def counted(tau: int, table: bool) -> float:
        _Counted.count, bar = 0, bars[tau] if table else alphas[1]
        for alpha in () if table else alphas[2 : tau + 1]:
            bar = bar * alpha
        bar * signal[0]
        return float(_Counted.count)

    return 1.0, counted(40, True) / counted(10, True), counted(40, False) / counted(10, False)


def bracket_left_out() -> Outcome:
    """The covariance of a step's noise in two pixels: of √β times two independent normals; with and without the bracket."""
    root, eye = BETA[T].sqrt() * torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    return root @ root.T, (1 - A[T]) * eye, 1 - A[T] * eye


def time_left_out() -> Outcome:
    """The mean of x_{t−1} given one and the same x_t at three times, by the exact law of the mixture; of x_t alone: one value."""
    times = torch.tensor([5, T, 45])
    truth = torch.stack([_step_back_on_a_grid(int(t)) for t in times])
    noise = torch.stack([DATA.expected_noise(X_T[None], BAR[t])[0] for t in times])
    right = (X_T - BETA[times] / (1 - BAR[times]).sqrt() * noise) / A[times].sqrt()
    return truth, right, right[1].expand(3)


def _step_back_on_a_grid(t: int) -> Tensor:
    x = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    density = (DATA.log_prob(x, BAR[t - 1]) + Normal(A[t].sqrt() * x, BETA[t].sqrt()).log_prob(X_T)).exp()
    return torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
