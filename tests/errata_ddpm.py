"""Experiments for the errata of notebook 05; their rows stand in ``errata.py``.

Truths come from walking the chain's fresh noises, from conditioning Gaussians that are built of them, and from minimising
an expected loss. The notes write α_t for what is ᾱ_t here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from coursekit.diffusion import GaussianMixture, NoiseSchedule

Number = float | Tensor
Outcome = tuple[Number, Number, Number]

S = NoiseSchedule.linear(50, 0.002, 0.4)
BAR = S.alpha_bar
X_0, NOISE = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T, EARLIER = 20, 15


def _chain(t: int) -> Tensor:
    """(T+1,): the weights of x_0 and of the fresh noises of steps 1 … T in x_t, by walking the steps."""
    weights = torch.zeros(S.T + 1, dtype=torch.float64)
    weights[0] = 1
    for s in range(1, t + 1):
        weights = S.alpha[s].sqrt() * weights
        weights[s] = S.beta[s].sqrt()
    return weights


def _conditional_std(s: int, t: int) -> Tensor:
    """The standard deviation of x_s given x_t and x_0: Gaussians, conditioned."""
    at_s, at_t = _chain(s)[1:], _chain(t)[1:]
    return (at_s @ at_s - (at_s @ at_t) ** 2 / (at_t @ at_t)).sqrt()


def _sigma(t: int, s: int) -> Tensor:
    """σ_t(η = 1) for a step from t to s."""
    return ((1 - BAR[s]) / (1 - BAR[t]) * (1 - BAR[t] / BAR[s])).sqrt()


def squared_signal_for_variance() -> Outcome:
    """Variance of x_{t−1} given x_0, over x_t: the squared weight of ε plus σ². Only where the printed root is real at all."""
    t = torch.tensor([t for t in range(2, S.T + 1) if 1 - BAR[t - 1] - BAR[t] ** 2 > 0])
    assert 10 < len(t) < S.T - 1   # elsewhere it is NaN
    truth = torch.stack([_chain(int(i) - 1)[1:].square().sum() for i in t])
    sigma2 = torch.stack([_sigma(int(i), int(i) - 1) for i in t]) ** 2
    before = BAR[t - 1]
    return truth, (1 - before - sigma2).sqrt() ** 2 + sigma2, (1 - before - BAR[t] ** 2).sqrt() ** 2 + sigma2


def standard_normal_end() -> Outcome:
    """Means of x_t given x_0 = 1, going back from step 10, where ᾱ is still 0.67, by the printed kernels with η = 0."""
    end = 10

    def means(start: Number) -> Tensor:
        mean, found = torch.as_tensor(start, dtype=torch.float64), []
        for t in range(end, 1, -1):
            mean = BAR[t - 1].sqrt() + (1 - BAR[t - 1]).sqrt() * (mean - BAR[t].sqrt()) / (1 - BAR[t]).sqrt()
            found.append(mean)
        return torch.stack(found)

    truth = torch.stack([_chain(t - 1)[0] for t in range(end, 1, -1)])
    return truth, means(BAR[end].sqrt()), means(0.0)


def signal_for_noise() -> Outcome:
    x_t = BAR[T].sqrt() * X_0 + (1 - BAR[T]).sqrt() * NOISE
    return X_0, (x_t - (1 - BAR[T]).sqrt() * NOISE) / BAR[T].sqrt(), (x_t - BAR[T - 1].sqrt() * NOISE) / BAR[T].sqrt()


def variance_for_std() -> Outcome:
    """What is added to the mean at η = 1, where DDIM is DDPM."""
    sigma = _sigma(T, T - 1)
    return _conditional_std(T - 1, T) * NOISE, sigma * NOISE, sigma**2 * NOISE


def sigma_of_one_step() -> Outcome:
    """Five steps at once, at η = 1: the spread of x_{t−5} given x_t and x_0."""
    return _conditional_std(EARLIER, T), _sigma(T, EARLIER), _sigma(T, T - 1)


def mean_for_median() -> Outcome:
    """The number that minimises E|ε − m| given x_t = 0 for two modes: where its slope, taken by autograd, is zero; median; mean."""
    data, bar = GaussianMixture([0.7, 0.3], [-1.0, 1.5], [0.2, 0.3]), BAR[6]
    at_0 = data.reverse_kernel(NoiseSchedule(torch.stack([torch.ones_like(bar), bar])), 0.0, 1)   # q(x_0 | x_t) in one jump
    scale = -bar.sqrt() / (1 - bar).sqrt()   # ε = (0 − √ᾱ x_0)/√(1−ᾱ)
    means, stds = scale * at_0.means, scale.abs() * at_0.stds

    def slope(m: Tensor) -> Tensor:
        """Of E|ε − m|, a sum of means of folded Gaussians."""
        m = m.clone().requires_grad_()
        z, unit = (means - m) / stds, Normal(torch.zeros_like(means), 1.0)
        loss = (at_0.weights * stds * (2 * unit.log_prob(z).exp() + z * (2 * unit.cdf(z) - 1))).sum()
        return torch.autograd.grad(loss, m)[0]

    law = MixtureSameFamily(Categorical(at_0.weights), Normal(means, stds))
    return _root(slope), _root(lambda m: law.cdf(m) - 0.5), (at_0.weights * means).sum()


def _root(rising: Callable[[Tensor], Tensor]) -> Tensor:
    """Where a rising function is zero, by bisection."""
    low, high = torch.tensor([-20.0, 20.0], dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return middle
