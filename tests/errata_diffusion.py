"""Experiments for the errata of notebook 02; their rows stand in ``errata.py``.

Truths come from recursions, linear maps of independent noises, Bayes' rule on a grid, or the exact network of a mixture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from coursekit.diffusion import GaussianMixture, NoiseSchedule

Number = float | Tensor
Outcome = tuple[Number, Number, Number]

S = NoiseSchedule.linear(50, 0.002, 0.4)
A, BAR, BETA = S.alpha, S.alpha_bar, S.beta
DATA = GaussianMixture([0.7, 0.3], [-1.0, 1.5], [0.2, 0.3])
GRID = torch.linspace(-8, 8, 8001, dtype=torch.float64)
X_0, X_T, T = torch.tensor(0.6, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64), 20


def _chain(t: int, alpha: Tensor = A) -> Tensor:
    """(t+1,): the weights of x_0 and of the t fresh noises in x_t, by walking the steps."""
    weights = torch.zeros(t + 1, dtype=torch.float64)
    weights[0] = 1
    for s in range(1, t + 1):
        weights = alpha[s].sqrt() * weights
        weights[s] = (1 - alpha[s]).sqrt()
    return weights


def _variance(t: int) -> Tensor:
    return _chain(t)[1:].square().sum()


def _bayes(t: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """q(x_{t−1} | x_t, x_0) on the grid, its mean and its variance."""
    weights = _chain(t - 1)
    log_p = Normal(A[t].sqrt() * GRID, BETA[t].sqrt()).log_prob(X_T) + Normal(weights[0] * X_0, _variance(t - 1).sqrt()).log_prob(GRID)
    density = log_p.exp() / torch.trapezoid(log_p.exp(), GRID)
    mean = torch.trapezoid(GRID * density, GRID)
    return density, mean, torch.trapezoid((GRID - mean) ** 2 * density, GRID)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def last_index() -> Outcome:
    return _variance(10), 1 - BAR[10], 1 - BAR[50]


def barred_covariance() -> Outcome:
    before, now = _chain(T - 1)[1:], _chain(T)[1:]
    return before @ now[:-1], A[T].sqrt() * (1 - BAR[T - 1]), BAR[T].sqrt() * (1 - BAR[T - 1])


def no_variance() -> Outcome:
    return _bayes()[2], (1 - BAR[T - 1]) * BETA[T] / (1 - BAR[T]), 0.0


def unscaled_difference() -> Outcome:
    x, noise = _normal(2, 9)
    x_t = A[T].sqrt() * x + BETA[T].sqrt() * noise
    return x, (x_t - BETA[T].sqrt() * noise) / A[T].sqrt(), x_t - noise


def one_step_weight() -> Outcome:
    """The mean of x_{t−1} given x_t for the mixture, with the exact total noise in the network's place."""
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    truth = torch.tensor([DATA.reverse_kernel(S, float(v), T).mean for v in x], dtype=torch.float64)
    noise = DATA.expected_noise(x, BAR[T])
    return truth, (x - BETA[T] / (1 - BAR[T]).sqrt() * noise) / A[T].sqrt(), (x - BETA[T].sqrt() * noise) / A[T].sqrt()


def shared_theta() -> Outcome:
    """θ of the linear prediction θ x_t that minimises L_x: where the slope of that parabola, taken by autograd, is zero."""
    t = torch.tensor([5, 20, 45])
    second, cross = BAR[t] * (DATA.variance + DATA.mean**2) + 1 - BAR[t], BETA[t].sqrt()

    def slope(at: float) -> Tensor:
        theta = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        noise_error = 1 - 2 * theta * cross + theta**2 * second
        return torch.autograd.grad((BETA[t] / A[t] * noise_error).sum(), theta)[0]

    weight = BETA[t] / A[t]
    return slope(0.0) / (slope(0.0) - slope(1.0)), (weight * cross).sum() / (weight * second).sum(), cross.sum() / second.sum()


def bars_everywhere() -> Outcome:
    truth, right, _ = one_step_weight()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    return truth, right, (x - (1 - BAR[T]).sqrt() * DATA.expected_noise(x, BAR[T])) / BAR[T].sqrt()


def sigma_left_out() -> Outcome:
    return _bayes()[2].sqrt(), ((1 - BAR[T - 1]) * BETA[T] / (1 - BAR[T])).sqrt(), 0.0


def small_beta_product() -> Outcome:
    """Π (1 − 1/(t+1)²) up to n telescopes to (n+2)/(2(n+1)); "β < 1, so it tends to 0"."""
    n, product = 1000, 1.0
    for t in range(1, n + 1):
        product *= 1 - 1 / (t + 1) ** 2
    return product, (n + 2) / (2 * (n + 1)), 0.0


def variance_as_std() -> Outcome:
    mean, sigma = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    p, q = Normal(mean, sigma), Normal(torch.zeros_like(mean), sigma)
    truth = torch.trapezoid(p.log_prob(GRID).exp() * (p.log_prob(GRID) - q.log_prob(GRID)), GRID)
    return truth, mean**2 / (2 * sigma**2), mean**2 / (2 * sigma)


def plus_for_minus() -> Outcome:
    x, noise = _normal(2, 9)
    x_t, sigma = BAR[T].sqrt() * x + (1 - BAR[T]).sqrt() * noise, (1 - BAR[T]).sqrt()
    return x, (x_t - sigma * noise) / BAR[T].sqrt(), (x_t + sigma * noise) / BAR[T].sqrt()


def _mean_with(t: int, sigma: Tensor) -> Tensor:
    noise = (X_T - BAR[t].sqrt() * X_0) / (1 - BAR[t]).sqrt()
    return (X_T - BETA[t] / sigma * noise) / A[t].sqrt()


def early_index() -> Outcome:
    return _bayes(2)[1], _mean_with(2, (1 - BAR[2]).sqrt()), _mean_with(2, (1 - BAR[1]).sqrt())


def weight_of_the_loss() -> Outcome:
    """The squared change of the posterior mean when the noise changes by 1, that is x_0 by −√(1−ᾱ)/√ᾱ."""
    weight_x_0 = BAR[T - 1].sqrt() * BETA[T] / (1 - BAR[T])
    truth = (weight_x_0 * (1 - BAR[T]).sqrt() / BAR[T].sqrt()) ** 2
    return truth, BETA[T] ** 2 / ((1 - BAR[T]) * A[T]), BETA[T] ** 2 / (BAR[T - 1] * A[T])


def elbo_terms() -> Outcome:
    """A chain of two steps from X_0 under the model p(x_1|x_2) = N(k x_2 + m, v), p(x_0|x_1) = N(x_1, w): by sums over a grid."""
    k, m, v, w = 0.8, 0.1, 0.3, 0.2
    x = torch.linspace(-7, 7, 701, dtype=torch.float64)
    one, two = x[:, None], x[None, :]
    alpha, beta = torch.tensor([0.7, 0.5], dtype=torch.float64), torch.tensor([0.3, 0.5], dtype=torch.float64)
    q_1, q_2 = Normal(alpha[0].sqrt() * X_0, beta[0].sqrt()).log_prob(one), Normal(alpha[1].sqrt() * one, beta[1].sqrt()).log_prob(two)
    prior = Normal(0.0, 1.0).log_prob(two)
    p_1, p_0 = Normal(k * two + m, v**0.5).log_prob(one), Normal(one, w**0.5).log_prob(X_0)
    weight = (q_1 + q_2).exp() * (x[1] - x[0]) ** 2

    def mean(log: Tensor) -> Tensor:
        return (weight * log).sum()

    back = q_1 + q_2 - Normal((alpha.prod()).sqrt() * X_0, (1 - alpha.prod()).sqrt()).log_prob(two)   # q(x_1 | x_2, x_0)
    right = mean(p_0 + 0 * two) + mean(p_1 - q_1) + mean(prior - q_2)
    return mean(prior + p_1 + p_0 - q_1 - q_2), right, mean(p_0 + 0 * two) + mean(p_1 - back) + mean(prior - q_1)


def positive_term() -> Outcome:
    """L_1 of the chain above with p(x_1|x_2) at its best: by simulation-free integration, by (5.4), and as the printed −E KL."""
    a_1, a_2 = 0.7, 0.5
    bar = a_1 * a_2
    k, v = math.sqrt(a_2) * (1 - a_1) / (1 - bar), (1 - a_2) * (1 - a_1) / (1 - bar)
    m = math.sqrt(a_1) * (1 - a_2) * X_0.item() / (1 - bar)
    x = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    one, two = x[:, None], x[None, :]
    q_1 = Normal(a_1**0.5 * X_0, (1 - a_1) ** 0.5).log_prob(one)
    weight = (q_1 + Normal(a_2**0.5 * one, (1 - a_2) ** 0.5).log_prob(two)).exp() * (x[1] - x[0]) ** 2
    truth = (weight * (Normal(k * two + m, v**0.5).log_prob(one) - q_1)).sum()
    q_2 = Normal(bar**0.5 * X_0, (1 - bar) ** 0.5).log_prob(x).exp()
    kl = kl_divergence(Normal(a_1**0.5 * X_0, torch.tensor((1 - a_1) ** 0.5).double()), Normal(k * x + m, torch.full_like(x, v**0.5)))
    return truth, 0.5 * math.log((1 - a_1) / v), -torch.trapezoid(q_2 * kl, x)


def condition_on_alpha() -> Outcome:
    """Which of α = 0.5, 1.5 have a variance 1 − α > 0, and which pass the condition."""
    alpha = torch.tensor([0.5, 1.5], dtype=torch.float64)
    return (1 - alpha > 0).double(), ((alpha > 0) & (alpha < 1)).double(), (alpha > 0).double()


def same_noise() -> Outcome:
    return 1 - BAR[10], _variance(10), _chain(10)[1:].sum() ** 2


def merged_roots() -> Outcome:
    a, b = 0.5, 0.5
    alpha = torch.tensor([1, b, a], dtype=torch.float64)
    return _chain(2, alpha)[1:].square().sum().sqrt(), math.sqrt(1 - a * b), math.sqrt(a - a * b) + (1 - a)


def extra_marginal() -> Outcome:
    step, before = Normal(A[T].sqrt() * GRID, BETA[T].sqrt()), Normal(BAR[T - 1].sqrt() * X_0, (1 - BAR[T - 1]).sqrt())
    log_p = step.log_prob(X_T) + before.log_prob(GRID) - Normal(BAR[T].sqrt() * X_0, (1 - BAR[T]).sqrt()).log_prob(X_T)
    return _bayes()[0], log_p.exp(), (log_p - DATA.log_prob(X_T, BAR[T])).exp()


def missing_bar() -> Outcome:
    return _variance(10).sqrt(), (1 - BAR[10]).sqrt(), (1 - A[10]).sqrt()


def unclipped_cumulative() -> Outcome:
    """1/√ᾱ_T for T = 50: by the steps of the chain that is really walked, as the package has it, and from f(T)/f(0)."""
    f = [math.cos(math.pi / 2 * (t / 50 + 0.008) / 1.008) ** 2 for t in range(51)]
    steps = torch.tensor([1, *(max(f[t] / f[t - 1], 0.001) for t in range(1, 51))], dtype=torch.float64)
    ours = NoiseSchedule.cosine(50).alpha_bar[-1] ** -0.5
    truth = 1 / _chain(50, steps)[0]
    return 1.0, ours / truth, (f[50] / f[0]) ** -0.5 / truth


def square_of_the_angle() -> Outcome:
    u = torch.pi / 2 * (torch.arange(51, dtype=torch.float64) / 50 + 0.008) / 1.008
    f = (1 + torch.cos(2 * u)) / 2
    return f / f[0], u.cos() ** 2 / u[0].cos() ** 2, (u**2).cos() / (u[0] ** 2).cos()


def long_root() -> Outcome:
    tail = BAR[T - 1].sqrt() * BETA[T] * X_0
    right = (A[T].sqrt() * (1 - BAR[T - 1]) * X_T + tail) / (1 - BAR[T])
    return _bayes()[1], right, ((A[T] * (1 - BAR[T - 1])).sqrt() * X_T + tail) / (1 - BAR[T])


SMALL, LARGE = 12, 17
A_TS, SIGMA_S = (BAR[LARGE] / BAR[SMALL]).sqrt(), (1 - BAR[SMALL]).sqrt()
JUMP = 1 - A_TS**2


def noise_given_position() -> Outcome:
    """E[ε_s | z_s] by Bayes' rule over x_0."""
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)
    density = DATA.log_prob(GRID).exp() * Normal(BAR[SMALL].sqrt() * GRID, SIGMA_S).log_prob(z[:, None]).exp()
    noise = (z[:, None] - BAR[SMALL].sqrt() * GRID) / SIGMA_S
    truth = torch.trapezoid(noise * density, GRID) / torch.trapezoid(density, GRID)
    return truth, DATA.expected_noise(z, BAR[SMALL]), torch.zeros(5, dtype=torch.float64)


def one_symbol() -> Outcome:
    """σ_t² from the fresh noises of all steps; as a sum of two independent parts; with the total noise in the second part."""
    parts = torch.stack([A_TS * SIGMA_S, JUMP.sqrt()])
    sigma_t = (1 - BAR[LARGE]).sqrt()
    total = parts / sigma_t   # the total noise in terms of ε_s and the fresh noise
    literal = parts[0] * torch.tensor([1.0, 0.0]) + parts[1] * total
    return _variance(LARGE), parts.square().sum(), literal.square().sum()


def untied_variance() -> Outcome:
    """A jump of another variance: the chain rule holds as ever, the printed denominators do not."""
    other = torch.tensor(0.3, dtype=torch.float64)
    density = (Normal(A_TS * GRID, other.sqrt()).log_prob(X_T) + Normal(BAR[SMALL].sqrt() * X_0, SIGMA_S).log_prob(GRID)).exp()
    truth = torch.trapezoid(GRID * density, GRID) / torch.trapezoid(density, GRID)
    above = A_TS * SIGMA_S**2 * X_T + BAR[SMALL].sqrt() * other * X_0
    return truth, above / (A_TS**2 * SIGMA_S**2 + other), above / (1 - BAR[LARGE])


def squared_ratio() -> Outcome:
    x_hat, sigma2 = torch.tensor(-0.3, dtype=torch.float64), 1 - BAR[LARGE]

    def mean(x: Tensor, first: Tensor = A_TS) -> Tensor:
        return (first * SIGMA_S**2 * X_T + BAR[SMALL].sqrt() * JUMP * x) / sigma2

    std = (JUMP * SIGMA_S**2 / sigma2).sqrt()
    truth = kl_divergence(Normal(mean(X_0), std), Normal(mean(x_hat), std))
    right = (S.snr[SMALL] - S.snr[LARGE]) / 2 * (X_0 - x_hat) ** 2
    return truth, right, (mean(X_0, A_TS**2) - mean(x_hat)) ** 2 / (2 * std**2)
