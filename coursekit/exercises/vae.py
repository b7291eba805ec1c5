"""Notebook 04: what a right answer to each exercise must do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coursekit import exercises
from coursekit.checks import check_close
from coursekit.vae import LinearVAE, gaussian_kl, gaussian_log_likelihood, importance_bound, reparameterize


def batch_kl(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the batch of KL(P‖Q), (B, outcomes) each, in nats; p may hold zeros. Source: Rice, slides."""
    return F.kl_div(q.log(), p, reduction="batchmean")


def elbo_terms(x: Tensor, x_hat: Tensor, mean: Tensor, log_var: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Reconstruction −log N(x; x̂, variance·I) and KL, means over the batch of nats per picture. Source: Sharif, question 1.4."""
    return -gaussian_log_likelihood(x_hat, x, variance).mean(), gaussian_kl(mean, log_var).mean()


def _randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _verify_batch_kl(function: Callable[..., Any]) -> None:
    p, q = _randn(5, 7).softmax(1), _randn(5, 7, seed=2).softmax(1)
    hint = "F.kl_div takes log q first and p second; reduction='batchmean' divides by the batch only"
    check_close("five laws on seven outcomes", function(p, q), batch_kl(p, q), hint=hint)
    one_hot = torch.eye(7, dtype=torch.float64)[:5]
    check_close("p with zeros", function(one_hot, q), batch_kl(one_hot, q), hint="0 log 0 = 0: F.kl_div knows it, p * p.log() does not")


def _verify_gaussian_kl(function: Callable[..., Any]) -> None:
    for B, k in ((1, 1), (5, 3), (4, 1)):
        mean, log_var = _randn(B, k), _randn(B, k, seed=2)
        hint = "½ Σ (μ² + e^log_var − log_var − 1): log_var is log σ², the sum is over the last axis, and there is one answer an item"
        check_close(f"shape ({B}, {k})", function(mean, log_var), gaussian_kl(mean, log_var), hint=hint)


def _verify_reparameterize(function: Callable[..., Any]) -> None:
    for shape in ((1, 1), (5, 3)):
        mean, log_var, noise = (_randn(*shape, seed=seed) for seed in (1, 2, 3))
        hint = "μ + σ·noise with σ = e^(log_var/2), the standard deviation; use the noise that is given"
        check_close(f"shape {shape}", function(mean, log_var, noise), reparameterize(mean, log_var, noise), hint=hint)


def _verify_elbo_terms(function: Callable[..., Any]) -> None:
    for shape in ((3, 5), (2, 1, 4, 4)):
        x, x_hat, mean, log_var = (_randn(*s, seed=seed) for seed, s in enumerate((shape, shape, (shape[0], 2), (shape[0], 2))))
        reconstruction, kl = function(x, x_hat, mean, log_var, 0.3)
        right, right_kl = elbo_terms(x, x_hat, mean, log_var, 0.3)
        hint = "‖x−x̂‖²/2σ² + D/2 log 2πσ²: sums over pixels, a mean over the batch only; the variance is σ² already"
        check_close(f"reconstruction, {shape}", reconstruction, right, hint=hint)
        check_close(f"KL, {shape}", kl, right_kl, hint="+½ Σ (μ² + e^log_var − log_var − 1), a sum over latents, a mean over the batch")


def _verify_importance_bound(function: Callable[..., Any]) -> None:
    x = _randn(200, 6) @ _randn(6, 6, seed=2)
    model = LinearVAE(6, 2).double().fit_pca_(x)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        truth = model.exact_log_likelihood(x[:4])
        for K in (1, 7):
            hint = "log (1/K) Σ p(x|z) p(z)/q(z|x): where q is the posterior, every ratio is p(x). Are p(z), q(z|x) and the 1/K in it?"
            check_close(f"q the exact posterior, K = {K}", function(model, x[:4], K), truth, tolerance=1e-8, hint=hint)
        model.log_var.add_(0.7)   # a q that is too wide
        hint = "the logarithm is taken of the mean over draws, not the mean of logarithms: torch.logsumexp over the draws"
        check_close("another q, K = 4000, near log p(x)", function(model, x[:4], 4000), truth, tolerance=0.1, hint=hint)


EXERCISES = {
    "2.1": exercises.Exercise(batch_kl, _verify_batch_kl),
    "2.2": exercises.Exercise(gaussian_kl, _verify_gaussian_kl),
    "3.1": exercises.Exercise(reparameterize, _verify_reparameterize),
    "4.1": exercises.Exercise(elbo_terms, _verify_elbo_terms),
    "6.1": exercises.Exercise(importance_bound, _verify_importance_bound),
}

check = partial(exercises.check, EXERCISES)
