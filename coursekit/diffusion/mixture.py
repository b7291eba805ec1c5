"""Data whose diffusion is known exactly: a mixture of Gaussians in one dimension.

Diffusing a mixture for a while gives a mixture, so density, score and the best possible noise prediction have closed
forms. With them in the network's place, a sampler is tested without any training: only its formula can be at fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from coursekit.diffusion.schedule import NoiseSchedule

Numbers = Sequence[float] | Tensor


class GaussianMixture:
    """The law Σ_k w_k N(m_k, s_k²) on the real line. float64 inside; x of any shape.

    ``weights`` > 0 with sum 1 (rounding of up to 1e-6, as in float32, is divided out), ``means``, and ``stds`` ≥ 0 (0 is a point mass),
    lists or tensors of one length, which are copied.
    Raises ``ValueError`` where they are not. ``alpha_bar`` in [0, 1] below says how far the data has been diffused:
    x_t = √ᾱ x_0 + √(1−ᾱ) ε; 1, the default, is the data itself.
    """

    def __init__(self, weights: Numbers, means: Numbers, stds: Numbers) -> None:
        given = (torch.as_tensor(v, dtype=torch.float64).detach().clone() for v in (weights, means, stds))
        self.weights, self.means, self.stds = given
        if not (self.weights.ndim == 1 and len(self.weights) and self.weights.shape == self.means.shape == self.stds.shape):
            shapes = [tuple(v.shape) for v in (self.weights, self.means, self.stds)]
            raise ValueError(f"weights, means and stds must be lists of one length, got shapes {shapes}")
        if not (self.weights > 0).all() or not math.isclose(self.weights.sum().item(), 1, abs_tol=1e-6):
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights.tolist()}")
        if not ((self.stds >= 0).all() and torch.isfinite(self.means).all() and torch.isfinite(self.stds).all()):
            raise ValueError(f"means must be finite and stds finite and ≥ 0, got {self.means.tolist()} and {self.stds.tolist()}")
        self.weights /= self.weights.sum()

    @property
    def mean(self) -> float:
        """The expectation, Σ w m."""
        return (self.weights * self.means).sum().item()

    @property
    def variance(self) -> float:
        """Σ w (s² + (m − mean)²): never negative, whatever is rounded."""
        return (self.weights * (self.stds**2 + (self.means - self.mean) ** 2)).sum().item()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count,) independent draws, float64, on the generator's device or the CPU."""
        device = generator.device if generator is not None else "cpu"
        component = torch.multinomial(self.weights.to(device), count, replacement=True, generator=generator)
        normal = torch.randn(count, dtype=torch.float64, generator=generator, device=device)
        return self.means.to(device)[component] + self.stds.to(device)[component] * normal

    def diffused(self, alpha_bar: float | Tensor) -> GaussianMixture:
        """The law of x_t, again a mixture: means √ᾱ m_k, variances ᾱ s_k² + 1 − ᾱ."""
        a = _alpha_bar(alpha_bar)
        variances = a * self.stds**2 + (1 - a)   # in this order, at ᾱ = 1 a small variance is not rounded off beside 1
        return GaussianMixture(self.weights, a.sqrt() * self.means, variances.sqrt())

    def log_prob(self, x: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        """log q(x_t), shaped like x. Raises ``ValueError`` where a component is a point mass and so has no density."""
        return self._log_joint(x, self._with_density(alpha_bar)).logsumexp(-1)

    def score(self, x: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        """d/dx log q(x_t) = Σ_k r_k(x)·(√ᾱ m_k − x)/(ᾱ s_k² + 1 − ᾱ), with the responsibilities r_k."""
        law = self._with_density(alpha_bar)
        responsibilities = self._log_joint(x, law).softmax(-1)
        means, variances = law.means.to(x.device), law.stds.to(x.device) ** 2
        return (responsibilities * (means - x.double()[..., None]) / variances).sum(-1)

    def expected_noise(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        """E[ε | x_t] = −√(1−ᾱ)·score: what a perfect network trained with the squared error predicts. float64, like x_t.

        Raises ``ValueError`` at ᾱ = 1, where there is no noise to predict.
        """
        a = _alpha_bar(alpha_bar)
        if a == 1:
            raise ValueError("alpha_bar is 1: x_t is the data itself and holds no noise; use t ≥ 1")
        return -(1 - a).sqrt() * self.score(x_t, a)

    def expected_x_0(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        """E[x_0 | x_t] = (x_t + (1−ᾱ)·score)/√ᾱ (Tweedie's formula). Raises ``ValueError`` at ᾱ = 0."""
        a = _alpha_bar(alpha_bar)
        if a == 0:
            raise ValueError("alpha_bar is 0: x_t knows nothing of x_0")
        return (x_t.double() + (1 - a) * self.score(x_t, a)) / a.sqrt()

    def reverse_kernel(self, schedule: NoiseSchedule, x_t: float, t: int) -> GaussianMixture:
        """q(x_{t−1} | x_t), exactly: a mixture whose weights are the responsibilities at x_t.

        Component k is N(√ᾱ_{t−1} m_k, v) with v = ᾱ_{t−1} s_k² + 1 − ᾱ_{t−1}, conditioned on x_t = √α_t x_{t−1} + √β_t ε.
        Components whose responsibility underflows to 0 are left out.
        """
        step = schedule.times(t)
        alpha, beta = schedule.alpha[step].cpu(), schedule.beta[step].cpu()
        before, now = self.diffused(schedule.alpha_bar[step - 1]), self.diffused(schedule.alpha_bar[step])
        weights = self._log_joint(torch.tensor(x_t, dtype=torch.float64), now).softmax(-1)
        gain = alpha.sqrt() * before.stds**2 / now.stds**2
        means = before.means + gain * (x_t - alpha.sqrt() * before.means)
        stds = (beta * before.stds**2 / now.stds**2).sqrt()
        kept = weights > 0
        return GaussianMixture(weights[kept] / weights[kept].sum(), means[kept], stds[kept])

    def _with_density(self, alpha_bar: float | Tensor) -> GaussianMixture:
        law = self.diffused(alpha_bar)
        if (law.stds == 0).any():
            raise ValueError("a component with std 0 has no density before noise is added; use alpha_bar < 1")
        return law

    @staticmethod
    def _log_joint(x: Tensor, law: GaussianMixture) -> Tensor:
        """log w_k + log N(x; m_k, s_k²), with one more axis for k."""
        weights, means, stds = (v.to(x.device) for v in (law.weights, law.means, law.stds))
        standardised = (x.double()[..., None] - means) / stds
        return weights.log() - 0.5 * standardised**2 - stds.log() - 0.5 * math.log(2 * math.pi)


def _alpha_bar(value: float | Tensor) -> Tensor:
    alpha_bar = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if alpha_bar.ndim or not 0 <= alpha_bar <= 1:
        raise ValueError(f"alpha_bar must be one number in [0, 1], got {value!r}")
    return alpha_bar
