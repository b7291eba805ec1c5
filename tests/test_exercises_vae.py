"""Notebook 04's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""

import pytest
import torch
import torch.nn.functional as F
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right

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


WRONG = [
    ("2.1", lambda p, q: F.kl_div(q.log(), p, reduction="sum") / p.numel(), "batchmean"),
    ("2.1", lambda p, q: F.kl_div(p.log(), q, reduction="batchmean"), "log q first"),
    ("2.1", lambda p, q: F.kl_div(q, p, reduction="batchmean"), "log q first"),
    ("2.1", lambda p, q: (p * (p.log() - q.log())).sum(1).mean(), "0 log 0"),
    ("2.2", lambda mean, log_var: -gaussian_kl(mean, log_var), "½ Σ"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var / 2), "log σ²"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var) / mean.shape[1], "the sum is over the last axis"),
    ("2.2", lambda mean, log_var: gaussian_kl(mean, log_var).mean(), "one answer an item"),
    ("3.1", lambda mean, log_var, noise: mean + log_var.exp() * noise, "the standard deviation"),
    ("3.1", lambda mean, log_var, noise: mean + log_var * noise, "the standard deviation"),
    ("3.1", lambda mean, log_var, noise: reparameterize(mean, log_var), "the noise that is given"),
    ("4.1", lambda x, y, m, v, variance: elbo_terms(x, y, m, v, variance**2), "the variance is σ² already"),
    ("4.1", lambda x, y, m, v, s2: (elbo_terms(x, y, m, v, s2)[0] / x[0].numel(), gaussian_kl(m, v).mean()), "sums over pixels"),
    ("4.1", lambda x, y, m, v, s2: ((x - y).square().flatten(1).sum(1).mean() / (2 * s2), gaussian_kl(m, v).mean()), "log 2πσ²"),
    ("4.1", lambda x, y, m, v, variance: (elbo_terms(x, y, m, v, variance)[0], -gaussian_kl(m, v).mean()), r"\+½"),
    ("6.1", mean_of_logs, "not the mean of logarithms"),
    ("6.1", no_ratio, r"Are p\(z\)"),
    ("6.1", lambda model, x, samples: importance_bound(model, x, samples) + torch.tensor(float(samples)).log(), "1/K"),
    ("3.1", lambda *_: None, "TypeError|NoneType|RuntimeError"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "6.1", capsys)
