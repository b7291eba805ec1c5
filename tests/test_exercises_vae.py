"""Notebook 04's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""

import math

import pytest
import torch
import torch.nn.functional as F
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right
from torch.distributions import Normal, kl_divergence

from coursekit.exercises.vae import EXERCISES, check, elbo_terms
from coursekit.vae import gaussian_kl, importance_bound, reparameterize


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


def mean_of_logs(model, x, samples):
    mean, log_var = model.encode(x)
    draws = []
    for _ in range(samples):
        noise = torch.randn_like(mean)
        z = mean + (log_var / 2).exp() * noise
        draws.append(model.log_likelihood(x, z) + 0.5 * (noise.square() + log_var - z.square()).sum(1))
    return torch.stack(draws).mean(0)


def no_ratio(model, x, samples):
    mean, log_var = model.encode(x)
    draws = [model.log_likelihood(x, reparameterize(mean, log_var)) for _ in range(samples)]
    return torch.stack(draws).logsumexp(0) - torch.tensor(float(samples)).log()


def from_densities(model, x, samples):
    mean, log_var = model.encode(x)
    ratios = 0
    for _ in range(samples):
        noise = torch.randn_like(mean)
        z = mean + (log_var / 2).exp() * noise
        ratios = ratios + (model.log_likelihood(x, z) + 0.5 * (noise.square() + log_var - z.square()).sum(1)).exp()
    return (ratios / samples).log()


def at_the_mean(model, x, samples):
    mean, log_var = model.encode(x)
    return model.log_likelihood(x, mean) + 0.5 * (log_var - mean.square()).sum(1)


def one_seed_for_all(model, x, samples):
    return importance_bound(model, x, samples, torch.Generator().manual_seed(0))


def kl_of(change):
    """gaussian_kl with another sum of μ², σ², log σ² and 1."""
    return lambda mean, log_var: 0.5 * change(mean, log_var).sum(1)


def terms_of(reconstruction=None, kl=None):
    """elbo_terms with another reconstruction, made of the mean of ‖x−x̂‖², D and σ², or another KL."""

    def elbo(x, x_hat, mean, log_var, variance):
        right, right_kl = elbo_terms(x, x_hat, mean, log_var, variance)
        square = (x - x_hat).square().flatten(1).sum(1).mean()
        return reconstruction(square, x[0].numel(), variance) if reconstruction else right, kl(mean, log_var) if kl else right_kl

    return elbo


def writes_into_log_var(mean, log_var, noise):
    return mean + log_var.mul_(0.5).exp_() * noise


@pytest.mark.parametrize(("name", "function"), [
    ("2.1", lambda p, q: torch.where(p > 0, p * (p.clamp(min=1e-300) / q).log(), 0.0).sum(1).mean()),
    ("2.2", lambda mean, log_var: kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1)),
    ("3.1", lambda mean, log_var, noise: mean + log_var.exp().sqrt() * noise),
    ("4.1", lambda x, y, m, v, s2: (F.gaussian_nll_loss(x, y, torch.full_like(x, s2), full=True) * x[0].numel(), gaussian_kl(m, v).mean())),
])  # fmt: skip
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


WRONG = [
    ("2.1", lambda p, q: F.kl_div(q.log(), p, reduction="sum") / p.numel(), "divides by the outcomes too"),
    ("2.1", lambda p, q: (p * (p / q).log()).mean(), "'mean' divides by the outcomes too"),
    ("2.1", lambda p, q: F.kl_div(q.log(), p, reduction="sum"), "not its sum"),
    ("2.1", lambda p, q: F.kl_div(q.log(), p, reduction="none").sum(1), "one number"),
    ("2.1", lambda p, q: F.kl_div(p.log(), q, reduction="batchmean"), r"yours is KL\(Q‖P\)"),
    ("2.1", lambda p, q: F.kl_div(q, p, reduction="batchmean"), "yours are q and p, without the logarithm"),
    ("2.1", lambda p, q: F.kl_div(q.log(), p.log(), reduction="batchmean"), "p without a logarithm"),
    ("2.1", lambda p, q: -F.kl_div(q.log(), p, reduction="batchmean"), "never negative"),
    ("2.1", lambda p, q: -(p * q.log()).sum(1).mean(), "cross-entropy"),
    ("2.1", lambda p, q: F.kl_div(q.log(), p, reduction="batchmean") / math.log(2), "not 2"),
    ("2.1", lambda p, q: F.kl_div(q.log(), p, reduction="batchmean") + 1, "log q first and p second; reduction"),
    ("2.1", lambda p, q: (p * (p.log() - q.log())).sum(1).mean(), "0 log 0"),
    ("2.2", lambda mean, log_var: -gaussian_kl(mean, log_var), "never negative"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, 2 * log_var), "log σ² needs no 2"),
    ("2.2", kl_of(lambda m, v: m**2 + v.exp() ** 2 - v - 1), "is σ² already, not σ"),
    ("2.2", kl_of(lambda m, v: m**2 + (v / 2).exp() - v - 1), r"not e\^\(log_var/2\)"),
    ("2.2", kl_of(lambda m, v: m**2 + v - v.log() - 1), "not σ² itself"),
    ("2.2", kl_of(lambda m, v: 2 * (m**2 + v.exp() - v - 1)), "the ½ is missing"),
    ("2.2", kl_of(lambda m, v: m**2 + v.exp() - v), "−1 for each latent"),
    ("2.2", kl_of(lambda m, v: m + v.exp() - v - 1), "μ is squared"),
    ("2.2", kl_of(lambda m, v: m**2 - v.exp() - v - 1), "½ Σ"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var) / mean.shape[1], "yours is their mean"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var).sum(), "sum over the last axis only"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var).mean() / mean.shape[1], "the sum of its latents"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var).mean(), "the mean over the batch comes later"),
    ("2.2", lambda mean, log_var: 0.5 * (mean**2 + log_var.exp() - log_var - 1), "sum over its latents"),
    ("3.1", lambda mean, log_var, noise: mean + log_var.exp() * noise, "is σ², the variance"),
    ("3.1", lambda mean, log_var, noise: mean + log_var * noise, "but log σ²"),
    ("3.1", lambda mean, log_var, noise: mean + log_var.sqrt() * noise, "and may be negative"),
    ("3.1", lambda mean, log_var, noise: mean + log_var.exp() / 2 * noise, "half of the exponent"),
    ("3.1", lambda mean, log_var, noise: mean, "the noise is missing"),
    ("3.1", lambda mean, log_var, noise: mean + (-log_var / 2).exp() * noise, "the minus is too much"),
    ("3.1", lambda mean, log_var, noise: (log_var / 2).exp() * noise, "the mean is missing"),
    ("3.1", lambda mean, log_var, noise: mean - (log_var / 2).exp() * noise, r"μ \+ σ·noise with σ"),
    ("3.1", lambda mean, log_var, noise: reparameterize(mean, log_var), "the noise that is given"),
    ("3.1", writes_into_log_var, "make a new tensor"),
    ("4.1", lambda x, y, m, v, variance: elbo_terms(x, y, m, v, variance**2), "σ² already: no square"),
    ("4.1", lambda x, y, m, v, s2: (elbo_terms(x, y, m, v, s2)[0] / x[0].numel(), gaussian_kl(m, v).mean()), "divided by the pixels too"),
    ("4.1", lambda x, y, m, v, s2: ((x - y).square().flatten(1).sum(1).mean() / (2 * s2), gaussian_kl(m, v).mean()), "log 2πσ² is missing"),
    ("4.1", lambda x, y, m, v, variance: (elbo_terms(x, y, m, v, variance)[0], -gaussian_kl(m, v).mean()), "never negative"),
    ("4.1", terms_of(lambda square, D, v: 2 * (square / v + D * math.log(2 * math.pi * v))), "‖x−x̂‖²/2σ²"),
    ("4.1", terms_of(lambda square, D, v: (square / v + math.log(2 * math.pi * v)) / 2), "counts D times"),
    ("4.1", terms_of(lambda square, D, v: square / v + D / 2 * math.log(2 * math.pi * v)), "the 2 is missing"),
    ("4.1", terms_of(lambda square, D, v: square / 2 / v + D * math.log(2 * math.pi * v)), "the ½ is missing"),
    ("4.1", terms_of(lambda square, D, v: (square / v + D * math.log(v)) / 2), "the 2π is missing"),
    ("4.1", terms_of(lambda square, D, v: (square + D * math.log(2 * math.pi * v)) / 2), "divided by σ² too"),
    ("4.1", terms_of(lambda square, D, v: square / D), "the mean squared error"),
    ("4.1", terms_of(lambda square, D, v: -(square / v + D * math.log(2 * math.pi * v)) / 2), "the sign is turned"),
    ("4.1", terms_of(kl=lambda m, v: gaussian_kl(m, v).sum()), "not a sum"),
    ("4.1", terms_of(kl=lambda m, v: gaussian_kl(m, v).mean() / m.shape[1]), "yours is their mean"),
    ("4.1", terms_of(kl=lambda m, v: gaussian_kl(m, 2 * v).mean()), "log σ² needs no 2"),
    ("4.1", terms_of(kl=lambda m, v: gaussian_kl(m, v).mean() + 0.1), r"\+½"),
    ("4.1", lambda x, y, m, v, s2: tuple(t * len(x) if t.ndim == 0 and i == 0 else t for i, t in enumerate(elbo_terms(x, y, m, v, s2))),
     "but a mean over the batch"),
    ("4.1", lambda *arguments: elbo_terms(*arguments)[::-1], "the reconstruction comes first"),
    ("4.1", lambda *arguments: sum(elbo_terms(*arguments)), "return both terms"),
    ("6.1", mean_of_logs, "not the mean of logarithms"),
    ("6.1", no_ratio, r"Are p\(z\)"),
    ("6.1", at_the_mean, "drawn afresh"),
    ("6.1", one_seed_for_all, "drawn afresh"),
    ("6.1", from_densities, "stay with logarithms"),
    ("6.1", lambda model, x, samples: importance_bound(model, x, samples) - torch.tensor(float(samples)).log(), "once"),
    ("6.1", lambda *arguments: importance_bound(*arguments).mean(), "not their mean"),
    ("6.1", lambda *arguments: importance_bound(*arguments).sum(), "not their sum"),
    ("6.1", lambda *arguments: importance_bound(*arguments).exp(), r"not p\(x\) itself"),
    ("6.1", lambda *arguments: -importance_bound(*arguments), "the sign"),
    ("6.1", lambda model, x, samples: importance_bound(model, x, samples) + torch.tensor(float(samples)).log(), "so subtract log K"),
    ("3.1", lambda *_: None, "found None .*return"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "6.1", capsys)
