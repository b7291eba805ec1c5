"""Notebook 04: what a right answer to each exercise must do, and what the usual wrong ones give."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coursekit import exercises
from coursekit.checks import CheckFailed, check_true
from coursekit.exercises.judging import ON_DEVICE, ask, compare, elsewhere, numbers, randn, recognise, several, steady
from coursekit.vae import LinearVAE, gaussian_kl, gaussian_log_likelihood, importance_bound, reparameterize


def batch_kl(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the batch of KL(P‖Q), (B, outcomes) each, in nats; p may hold zeros. Source: Rice, slides."""
    return F.kl_div(q.log(), p, reduction="batchmean")


def elbo_terms(x: Tensor, x_hat: Tensor, mean: Tensor, log_var: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Reconstruction −log N(x; x̂, variance·I) and KL, means over the batch of nats per picture. Source: Sharif, question 1.4."""
    return -gaussian_log_likelihood(x_hat, x, variance).mean(), gaussian_kl(mean, log_var).mean()


def _verify_batch_kl(function: Callable[..., Any]) -> None:
    for B, outcomes in ((5, 7), (2, 3)):
        p, q = randn(B, outcomes).softmax(1), randn(B, outcomes, seed=2).softmax(1)
        terms = p * (p / q).log()
        mistakes = {
            "reduction='batchmean' divides by the batch only; 'mean' divides by the outcomes too, and is no KL": terms.mean(),
            "the mean over the batch, not its sum: reduction='batchmean'": terms.sum(),
            "one number: reduction='batchmean' takes the mean over the batch": terms.sum(1),
            "F.kl_div takes log q first and p second: yours is KL(Q‖P)": batch_kl(q, p),
            "F.kl_div takes log q first and p second; yours are q and p, without the logarithm": F.kl_div(q, p, reduction="batchmean"),
            "F.kl_div takes log q first and p second, p without a logarithm, unless log_target=True":
                F.kl_div(q.log(), p.log(), reduction="batchmean"),
            "minus the KL: it is never negative": -terms.sum(1).mean(),
            "that is the cross-entropy: KL(P‖Q) takes the entropy of P off": -(p * q.log()).sum(1).mean(),
            "nats: logarithms to the base e, not 2": terms.sum(1).mean() / math.log(2),
        }   # fmt: skip
        hint = "F.kl_div takes log q first and p second; reduction='batchmean' divides by the batch only"
        compare(f"{B} laws on {outcomes} outcomes", function, (p, q), batch_kl(p, q), hint, mistakes)
        one_hot = torch.eye(outcomes, dtype=torch.float64)[:B]
        hint = "0 log 0 = 0: F.kl_div knows it, p * p.log() does not"
        compare("p with zeros", function, (one_hot, q), batch_kl(one_hot, q), hint)


def _wrong_kl(mean: Tensor, log_var: Tensor) -> dict[str, Tensor]:
    """What the usual mistakes give for the KL of each item, (B,)."""
    squares, variance = mean.square(), log_var.exp()
    terms = 0.5 * (squares + variance - log_var - 1)
    return {
        "the KL is never negative; yours is minus it": -terms.sum(1),
        "log_var is log σ²: σ² is its exponential, and log σ² needs no 2": 0.5 * (squares + (2 * log_var).exp() - 2 * log_var - 1).sum(1),
        "log_var is log σ²: e^log_var is σ² already, not σ": 0.5 * (squares + variance.square() - log_var - 1).sum(1),
        "log_var is log σ²: σ² is e^log_var, not e^(log_var/2)": 0.5 * (squares + (log_var / 2).exp() - log_var - 1).sum(1),
        "log_var is log σ², not σ² itself: take its exponential": 0.5 * (squares + log_var - log_var.log() - 1).sum(1),
        "the ½ is missing": 2 * terms.sum(1),
        "−1 for each latent is missing: at μ = 0 and σ = 1 the KL is 0": (terms + 0.5).sum(1),
        "μ is squared": 0.5 * (mean + variance - log_var - 1).sum(1),
        "the sum is over the last axis, the latents; yours is their mean": terms.mean(1),
        "there is one answer an item: sum over the last axis only": terms.sum(),
        "there is one answer an item, the sum of its latents": terms.mean(),
        "there is one answer an item: the mean over the batch comes later": terms.sum(1).mean(),
        "there is one answer an item: sum over its latents": terms,
    }


def _verify_gaussian_kl(function: Callable[..., Any]) -> None:
    for B, k in ((5, 3), (1, 1), (4, 1)):
        mean, log_var = randn(B, k), randn(B, k, seed=2)
        hint = "½ Σ (μ² + e^log_var − log_var − 1): log_var is log σ², the sum is over the last axis, and there is one answer an item"
        compare(f"shape ({B}, {k})", function, (mean, log_var), gaussian_kl(mean, log_var), hint, _wrong_kl(mean, log_var))


def _verify_reparameterize(function: Callable[..., Any]) -> None:
    for shape in ((5, 3), (1, 1), (2, 3, 4)):
        mean, log_var, noise = (randn(*shape, seed=seed) for seed in (1, 2, 3))
        mistakes = {
            "e^log_var is σ², the variance; σ, the standard deviation, is e^(log_var/2)": mean + log_var.exp() * noise,
            "log_var is not σ, the standard deviation, but log σ²: e^(log_var/2)": mean + log_var * noise,
            "log_var is not σ² but its logarithm, and may be negative: σ, the standard deviation, is e^(log_var/2)":
                mean + log_var.sqrt() * noise,
            "e^(log_var/2), not e^log_var/2: half of the exponent": mean + log_var.exp() / 2 * noise,
            "the noise is missing: z is a draw, not the mean": mean,
            "the minus is too much: σ = e^(log_var/2)": mean + (-log_var / 2).exp() * noise,
            "the mean is missing: σ·noise is added to it": (log_var / 2).exp() * noise,
        }   # fmt: skip
        hint = "μ + σ·noise with σ = e^(log_var/2), the standard deviation; use the noise that is given"
        steady(f"shape {shape}", function, mean, log_var, noise)
        compare(f"shape {shape}", function, (mean, log_var, noise), reparameterize(mean, log_var, noise), hint, mistakes)


def _verify_elbo_terms(function: Callable[..., Any]) -> None:
    for shape, variance in (((3, 5), 0.3), ((2, 1, 4, 4), 1.7)):
        x, x_hat, mean, log_var = (randn(*s, seed=seed) for seed, s in enumerate((shape, shape, (shape[0], 2), (shape[0], 2))))
        result = ask(f"shape {shape}", function, x, x_hat, mean, log_var, variance)
        found = several(f"shape {shape}", result, 2, "return both terms: the reconstruction, then the KL")
        (right, right_kl), D = elbo_terms(x, x_hat, mean, log_var, variance), x[0].numel()
        square, constant = (x - x_hat).square().flatten(1).sum(1).mean() / variance, D * math.log(2 * math.pi * variance)
        mistakes = {
            "sums over pixels, a mean over the batch only: yours is divided by the pixels too": right / D,
            "sums over pixels, but a mean over the batch": right * shape[0],
            "the variance is σ² already: no square": elbo_terms(x, x_hat, mean, log_var, variance**2)[0],
            "D/2 log 2πσ² is missing: without it this is no likelihood": square / 2,
            "log 2πσ² counts D times, once for each pixel": (square + constant / D) / 2,
            "the error is divided by 2σ²: the 2 is missing": square + constant / 2,
            "D/2 log 2πσ²: the ½ is missing": square / 2 + constant,
            "log 2πσ²: the 2π is missing": (square + D * math.log(variance)) / 2,
            "the error is divided by σ² too": (square * variance + constant) / 2,
            "that is the mean squared error, without σ² and the constant": square * variance / D,
            "minus the log-likelihood: the sign is turned": -right,
            "the reconstruction comes first, then the KL": right_kl,
        }
        hint = "‖x−x̂‖²/2σ² + D/2 log 2πσ²: sums over pixels, a mean over the batch only; the variance is σ² already"
        recognise(f"reconstruction, {shape}", found[0], right, hint, mistakes)
        wrong = {text: kl.mean() if kl.ndim else kl for text, kl in _wrong_kl(mean, log_var).items() if "one answer" not in text}
        wrong["a mean over the batch, not a sum"] = right_kl * shape[0]
        hint = "+½ Σ (μ² + e^log_var − log_var − 1), a sum over latents, a mean over the batch"
        recognise(f"KL, {shape}", found[1], right_kl, hint, wrong)


class _Anywhere(LinearVAE):
    """A model that looks at no values, so that it can be asked on the meta device."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x), self.log_var.expand(len(x), -1)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return -(x - self.decoder(z)).square().sum(1)


def _verify_importance_bound(function: Callable[..., Any]) -> None:
    x = randn(200, 6) @ randn(6, 6, seed=2)
    model = LinearVAE(6, 2).double().fit_pca_(x)
    with torch.no_grad():
        torch.manual_seed(0)
        truth = model.exact_log_likelihood(x[:4])
        for K in (1, 7):
            mistakes = {
                "the mean over draws: 1/K, so subtract log K": truth + math.log(K),
                "subtract log K once; yours is gone too far": truth - math.log(K),
                "one answer for each item of the batch, not their mean": truth.mean(),
                "one answer for each item of the batch, not their sum": truth.sum(),
                "the logarithm of p(x), not p(x) itself": truth.exp(),
                "the sign: log p(x), not minus it": -truth,
            }
            hint = "log (1/K) Σ p(x|z) p(z)/q(z|x): where q is the posterior, every ratio is p(x). Are p(z), q(z|x) and the 1/K in it?"
            found = ask(f"K = {K}", function, model, x[:4], K)
            recognise(f"q the exact posterior, K = {K}", found, truth, hint, mistakes, tolerance=1e-8)
        far = x[:2] + 300   # densities of e^−1000 and less
        hint = "densities this small are 0 in floating point: stay with logarithms, and sum them with torch.logsumexp"
        compare("a picture far from all others", function, (model, far, 3), model.exact_log_likelihood(far), hint, tolerance=1e-6)
        model.log_var.add_(0.7)   # a q that is too wide
        hint = "the logarithm is taken of the mean over draws, not the mean of logarithms: torch.logsumexp over the draws"
        few = [numbers("another q, K = 2", ask("another q, K = 2", function, model, x[:4], 2)) for _ in range(2)]
        fresh = "z is drawn afresh in every call, from q(z|x): yours is always the same"
        check_true("another q, two calls", not torch.equal(*few), hint=fresh)
        compare("another q, K = 4000, near log p(x)", function, (model, x[:4], 4000), truth, hint, tolerance=0.1)
    try:
        elsewhere(function, _Anywhere(6, 2).double().to("meta"), x[:4].to("meta"), 3)
    except CheckFailed as failure:   # only a mix of devices counts: torch.distributions looks at values, which meta has none of
        if ON_DEVICE in str(failure):
            raise


EXERCISES = {
    "2.1": exercises.Exercise(batch_kl, _verify_batch_kl),
    "2.2": exercises.Exercise(gaussian_kl, _verify_gaussian_kl),
    "3.1": exercises.Exercise(reparameterize, _verify_reparameterize),
    "4.1": exercises.Exercise(elbo_terms, _verify_elbo_terms),
    "6.1": exercises.Exercise(importance_bound, _verify_importance_bound),
}

check = partial(exercises.check, EXERCISES)
