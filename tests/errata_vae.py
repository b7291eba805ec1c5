"""Experiments for the errata of notebook 04; their rows stand in ``errata.py``.

Truths come from ``torch.distributions``, sums by hand, and integrals on a grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

Number = float | Tensor
Outcome = tuple[Number, Number, Number]

P = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [0.1, 0.1, 0.2, 0.3, 0.2, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
MEAN, LOG_VAR, X, X_HAT = torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _gaussian_truth() -> Tensor:
    return kl_divergence(Normal(MEAN, (LOG_VAR / 2).exp()), Normal(torch.zeros_like(MEAN), 1.0)).sum(1)


def _closed(log_var: Tensor) -> Tensor:
    return 0.5 * (MEAN**2 + log_var.exp() - log_var - 1).sum(1)


def sum_against_mean() -> Outcome:
    """The slide's loss over D, and the code's with weights 1/D and 1."""
    D, kl = X.shape[1], _gaussian_truth().mean()
    slide, mse = ((X - X_HAT) ** 2).sum(1).mean() + kl, F.mse_loss(X_HAT, X)
    return slide / D, mse + kl / D, mse + kl


def std_as_variance() -> Outcome:
    return _gaussian_truth(), _closed(LOG_VAR), _closed(LOG_VAR / 2)


def negative_log() -> Outcome:
    kld_loss = torch.mean(-0.5 * torch.sum(1 + LOG_VAR - MEAN**2 - LOG_VAR.exp(), dim=1), dim=0)
    return _gaussian_truth().mean(), kld_loss, -kld_loss


def _discrete_truth() -> Tensor:
    return kl_divergence(Categorical(P), Categorical(Q)).mean()


def default_reduction() -> Outcome:
    """reduction='mean' by its definition, which PyTorch warns about when asked for it."""
    return _discrete_truth(), F.kl_div(Q.log(), P, reduction="batchmean"), F.kl_div(Q.log(), P, reduction="none").mean()


def swapped_arguments() -> Outcome:
    return _discrete_truth(), F.kl_div(Q.log(), P, reduction="batchmean"), F.kl_div(P.log(), Q, reduction="batchmean")


def zero_target() -> Outcome:
    target, even = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    right = (torch.xlogy(target, target) - target * even.log()).sum()
    return math.log(2), right, (target * (target.log() - even.log())).sum()


def unfilled_prior() -> Outcome:
    """Share of N(0, 1) within 2σ of codes at ±2, σ = 0.3: by Simpson's rule, by Φ, and "very likely" as 95 %."""
    z = torch.linspace(1.4, 2.6, 2001, dtype=torch.float64)
    weights = torch.ones(2001, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)
    right = math.erf(2.6 / math.sqrt(2)) - math.erf(1.4 / math.sqrt(2))
    return 2 * (weights * density).sum() * (z[1] - z[0]) / 3, right, 0.95


def amortised() -> Outcome:
    """Σ max ELBO of x = wz + b + noise: the evidence, a linear encoder, and the best constant one."""
    x, w, b, v = torch.linspace(-2, 3, 9, dtype=torch.float64), 1.3, 0.4, torch.tensor(0.36, dtype=torch.float64)
    m, s2 = w * (x - b) / (w**2 + v), v / (w**2 + v)

    def elbo(m: Tensor) -> Tensor:
        reconstruction = Normal(w * m + b, v.sqrt()).log_prob(x) - w**2 * s2 / (2 * v)
        return (reconstruction - (m**2 + s2 - s2.log() - 1) / 2).sum()

    return Normal(torch.tensor(b, dtype=torch.float64), (w**2 + v).sqrt()).log_prob(x).sum(), elbo(m), elbo(m.mean())


def bits_among_nats() -> Outcome:
    """The entropy in nats of a coin with heads at 5 %; the printed 0.28 is in bits, beside log 2 for the fair one."""
    p = torch.tensor([0.05, 0.95], dtype=torch.float64)
    return Categorical(p).entropy(), -(p * p.log()).sum(), 0.28
