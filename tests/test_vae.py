import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from scipy.integrate import quad
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from coursekit.data import digits
from coursekit.vae import (
    VAE,
    Autoencoder,
    LinearVAE,
    bernoulli_log_likelihood,
    elbo,
    gaussian_kl,
    gaussian_log_likelihood,
    importance_bound,
    reparameterize,
)

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def uniform(*shape, seed=0, dtype=F64):
    return torch.rand(*shape, dtype=dtype, generator=seeded(seed))


# --- the terms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 3, 4)])
def test_kl_is_that_of_torch_distributions(shape):
    mean, log_var = 2 * normal(*shape), 2 * normal(*shape, seed=1)
    q, prior = Normal(mean, (log_var / 2).exp()), Normal(torch.zeros(shape, dtype=F64), 1)
    expected = kl_divergence(q, prior).flatten(1).sum(1)
    assert gaussian_kl(mean, log_var).shape == shape[:1]
    assert torch.allclose(gaussian_kl(mean, log_var), expected, rtol=1e-12)


def test_kl_by_quadrature_and_monte_carlo():
    m, v = 0.7, -1.1
    q, prior = Normal(torch.tensor(m, dtype=F64), math.exp(v / 2)), Normal(torch.tensor(0.0, dtype=F64), 1.0)
    exact = gaussian_kl(torch.tensor([[m]], dtype=F64), torch.tensor([[v]], dtype=F64)).item()

    def integrand(z):
        z = torch.tensor(z, dtype=F64)
        return (q.log_prob(z).exp() * (q.log_prob(z) - prior.log_prob(z))).item()

    assert exact == pytest.approx(quad(integrand, m - 8, m + 8, epsabs=1e-12)[0], abs=1e-10)
    z = reparameterize(torch.full((200_000, 1), m, dtype=F64), torch.full((200_000, 1), v, dtype=F64), normal(200_000, 1))
    ratios = q.log_prob(z) - prior.log_prob(z)
    assert abs(ratios.mean().item() - exact) < 4 * ratios.std().item() / 200_000**0.5


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-4, 1e-2, 1.0])
def test_kl_is_never_negative_and_right_to_the_rounding_of_log_var(scale):
    mean, log_var = (scale * normal(100_000, 1, seed=s, dtype=torch.float32) for s in (0, 1))
    kl, zero = gaussian_kl(mean, log_var), torch.zeros_like(mean)
    assert kl.dtype == torch.float32 and kl.min() >= 0
    assert gaussian_kl(zero, log_var).min() >= 0 and gaussian_kl(zero, zero).max() == 0
    v = log_var.double()
    exact = 0.5 * (mean.double().square() + (v**2 / 2 + v**3 / 6 if scale < 1e-3 else v.expm1() - v)).sum(1)
    assert torch.allclose(kl.double(), exact, rtol=1e-4, atol=5e-7 * scale)   # what float32 leaves of exp(v) − 1 − v
    squares = 0.5 * mean.double().square().sum(1)
    assert torch.allclose(gaussian_kl(mean, zero).double(), squares, rtol=1e-5, atol=0)   # a mean keeps its digits at every scale


def test_kl_gradient_is_the_closed_form():
    mean, log_var = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    gaussian_kl(mean, log_var).sum().backward()
    assert torch.allclose(mean.grad, mean) and torch.allclose(log_var.grad, (log_var.exp() - 1) / 2)


def test_reparameterize_moments_and_gradients():
    mean, log_var, noise = normal(3, 2).requires_grad_(), normal(3, 2, seed=1).requires_grad_(), normal(3, 2, seed=2)
    z = reparameterize(mean, log_var, noise)
    assert torch.allclose(z, mean + log_var.exp().sqrt() * noise)
    z.sum().backward()
    assert torch.equal(mean.grad, torch.ones(3, 2, dtype=F64))
    assert torch.allclose(log_var.grad, noise * log_var.exp().sqrt() / 2)
    torch.manual_seed(0)
    drawn = reparameterize(torch.full((100_000, 1), 1.5, dtype=F64), torch.full((100_000, 1), math.log(4), dtype=F64))
    assert drawn.mean().item() == pytest.approx(1.5, abs=4 * 2 / 100_000**0.5)
    assert drawn.var().item() == pytest.approx(4, abs=4 * 4 * (2 / 100_000) ** 0.5)


def test_likelihoods_are_those_of_torch_distributions():
    logits, mean, x = 3 * normal(4, 1, 3, 2), normal(4, 1, 3, 2, seed=1), normal(4, 1, 3, 2, seed=2)
    bits = (x > 0).double()
    expected = Independent(Bernoulli(logits=logits), 3).log_prob(bits)
    assert torch.allclose(bernoulli_log_likelihood(logits, bits), expected, rtol=1e-12)
    for variance in (0.03, torch.tensor(1.7, dtype=F64), torch.tensor([0.4])):
        expected = Independent(Normal(mean, float(variance) ** 0.5), 3).log_prob(x)
        assert torch.allclose(gaussian_log_likelihood(mean, x, variance), expected, rtol=1e-7)
    grey = uniform(4, 1, 3, 2)
    p = logits.sigmoid()
    assert torch.allclose(bernoulli_log_likelihood(logits, grey), (grey * p.log() + (1 - grey) * (1 - p).log()).flatten(1).sum(1))


def test_the_learned_variance_has_the_gradient_of_its_likelihood():
    variance = torch.tensor(0.5, dtype=F64, requires_grad=True)
    mean, x = normal(3, 4), normal(3, 4, seed=1)
    gaussian_log_likelihood(mean, x, variance).sum().backward()
    assert variance.grad.item() == pytest.approx((((x - mean) ** 2 / 0.5**2 - 1 / 0.5) / 2).sum().item())


# --- the linear VAE: everything is known -------------------------------------------------------------------------------


def random_linear(dimensions=6, latent=2, seed=0):
    torch.manual_seed(seed)
    model = LinearVAE(dimensions, latent).double()
    with torch.no_grad():
        model.log_variance.fill_(-0.7)
        model.log_var.copy_(torch.linspace(-1.5, -0.5, latent))
    return model


def test_exact_likelihood_and_posterior_are_the_joint_gaussian_conditioned():
    model, x = random_linear(), normal(5, 6, seed=3)
    W, b, s2 = model.decoder.weight.detach(), model.decoder.bias.detach(), math.exp(-0.7)
    expected = MultivariateNormal(b, W @ W.T + s2 * torch.eye(6, dtype=F64)).log_prob(x)
    assert torch.allclose(model.exact_log_likelihood(x), expected, rtol=1e-12)
    mean, covariance = model.exact_posterior(x)
    gain = W.T @ torch.linalg.inv(W @ W.T + s2 * torch.eye(6, dtype=F64))   # the other side of the Woodbury identity
    assert torch.allclose(mean, (x - b) @ gain.T) and torch.allclose(covariance, torch.eye(2, dtype=F64) - gain @ W)
    z = normal(5, 2, seed=4)   # Bayes: log p(x) = log p(x, z) − log p(z|x), whatever z
    joint = model.log_likelihood(x, z) + Normal(torch.zeros(2, dtype=F64), 1.0).log_prob(z).sum(1)
    assert torch.allclose(joint - MultivariateNormal(mean, covariance).log_prob(z), expected)


def test_elbo_is_log_p_minus_the_gap_to_the_posterior():
    """The expected reconstruction in closed form against many draws, and ELBO = log p − KL(q ‖ posterior) in float64."""
    model, x = random_linear(), normal(5, 6, seed=3)
    mean, log_var = model.encode(x)
    q = MultivariateNormal(mean, torch.diag_embed(log_var.exp()))
    gap = kl_divergence(q, MultivariateNormal(*model.exact_posterior(x)))
    exact = (model.exact_log_likelihood(x) - gap).mean()
    W, s2 = model.decoder.weight, model.variance
    spread = (W.square() @ log_var.exp().T).sum(0) / (2 * s2)   # E|W(z−mean)|²/2σ²
    closed = (model.log_likelihood(x, mean) - spread - gaussian_kl(mean, log_var)).mean()
    assert (closed - exact).abs() < 1e-12 and (gap > 0).all()
    with torch.no_grad():
        estimates = torch.stack([elbo(model, x, samples=50, generator=seeded(s))["loss"] for s in range(40)])
    error = estimates.std() / 40**0.5
    assert (-estimates.mean() - exact).abs() < 4 * error and error < 0.03
    assert -estimates.mean() < model.exact_log_likelihood(x).mean()


@pytest.mark.parametrize("latent", [1, 3, 10])
def test_fit_pca_is_scikit_learns_score_and_the_elbo_reaches_it(latent):
    x = digits()[0].flatten(1).double()[:600]
    model = LinearVAE(64, latent).double()
    assert model.fit_pca_(x) is model
    held_out = digits()[0].flatten(1).double()[600:800]
    pca = PCA(latent, svd_solver="full").fit(x.numpy())
    assert model.exact_log_likelihood(x).mean().item() == pytest.approx(pca.score(x.numpy()), abs=1e-8)
    assert model.exact_log_likelihood(held_out).mean().item() == pytest.approx(pca.score(held_out.numpy()), abs=1e-8)
    mean, covariance = model.exact_posterior(x)
    assert torch.allclose(model.encode(x)[0], mean, atol=1e-8)
    assert torch.allclose(model.encode(x)[1][0].exp().diag(), covariance, atol=1e-10)
    terms = elbo(model, x, samples=200, generator=seeded())
    assert -terms["loss"].item() == pytest.approx(pca.score(x.numpy()), abs=0.02)
    assert torch.allclose(importance_bound(model, x[:20], 3, seeded()), model.exact_log_likelihood(x[:20]), atol=1e-8)   # no variance


def test_fit_pca_without_correction_is_the_maximum():
    x = normal(50, 5) @ torch.diag(torch.tensor([3.0, 2, 1, 0.5, 0.4], dtype=F64)) + 1
    model = LinearVAE(5, 2).double().fit_pca_(x, correction=0)
    best = model.exact_log_likelihood(x).mean()
    for gradient in torch.autograd.grad(best, [model.decoder.weight, model.decoder.bias, model.log_variance]):
        assert gradient.abs().max() < 1e-10
    scikit = LinearVAE(5, 2).double().fit_pca_(x).exact_log_likelihood(x).mean()
    assert (best - scikit).item() == pytest.approx(5 / (4 * 50**2), rel=0.1)


def test_fit_pca_refuses_data_without_noise():
    plane = normal(30, 2) @ normal(2, 5, seed=1)
    with pytest.raises(ValueError, match="leaves no noise variance"):
        LinearVAE(5, 2).fit_pca_(plane.float())
    with pytest.raises(ValueError, match="leaves no noise variance"):
        LinearVAE(5, 2).double().fit_pca_(normal(1, 5).expand(4, 5))
    for scale in (1e-7, 1, 1e7):   # the verdict has no units
        LinearVAE(5, 1).double().fit_pca_(scale * plane)
        with pytest.raises(ValueError, match="leaves no noise variance"):
            LinearVAE(5, 2).double().fit_pca_(scale * plane)
    with pytest.raises(ValueError, match="x has 1 rows, which have no variance: give at least 2"):
        LinearVAE(5, 2).fit_pca_(torch.zeros(1, 5))
    LinearVAE(2, 1).fit_pca_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]))


# --- bounds ------------------------------------------------------------------------------------------------------------


def test_importance_bound_rises_with_k_to_log_p():
    model, x = random_linear(), normal(8, 6, seed=3)
    exact, copies = model.exact_log_likelihood(x), x.repeat(400, 1)
    values = [importance_bound(model, copies, k, seeded()).mean().item() for k in (1, 4, 32)]
    assert values[0] < values[1] < values[2] < exact.mean().item() + 0.02
    single = -elbo(model, copies, generator=seeded(1))["loss"].item()
    assert values[0] == pytest.approx(single, abs=0.25) and exact.mean().item() - values[0] > 0.8   # 4 standard errors of the difference
    model.log_var.data.fill_(1.0)   # a q wider than the posterior, so that no weight p(x, z)/q(z|x) is large
    many = importance_bound(model, x, 20_000, seeded())
    assert torch.allclose(many, exact, atol=0.06)   # twelve seeds stayed within 0.035


@pytest.mark.parametrize(("rows", "sizes"), [(1000, [7]), (35, [7]), (10, [2, 2, 2, 1]), (9, [1] * 7), (5, [1] * 7)])
def test_importance_bound_is_its_definition_whatever_the_chunks(monkeypatch, rows, sizes):
    model, x = random_linear(), normal(5, 6, seed=3)
    monkeypatch.setattr("coursekit.vae._ROWS", rows)
    generator, weights = seeded(), []
    with torch.no_grad():
        mean, log_var = model.encode(x)
        q, prior = Normal(mean, (log_var / 2).exp()), Normal(torch.zeros(2, dtype=F64), 1.0)
        for size in sizes:   # the very draws, chunk by chunk: randn's stream depends on how many are asked for
            for noise in torch.randn(5 * size, 2, dtype=F64, generator=generator).unflatten(0, (size, 5)):
                z = mean + q.stddev * noise
                weights.append(model.log_likelihood(x, z) + prior.log_prob(z).sum(1) - q.log_prob(z).sum(1))
    bound = importance_bound(model, x, 7, seeded())
    assert torch.allclose(bound, torch.stack(weights).exp().mean(0).log(), rtol=1e-8)
    assert not bound.requires_grad and bound.shape == (5,)


def test_importance_bound_bounds_its_memory(monkeypatch):
    model, rows = random_linear(), []
    log_likelihood = model.log_likelihood
    monkeypatch.setattr(model, "log_likelihood", lambda x, z: rows.append(len(z)) or log_likelihood(x, z))
    assert importance_bound(model, normal(1030, 6), 2).shape == (1030,) and rows == [512] * 4 + [12]
    monkeypatch.setattr("coursekit.vae._ROWS", 3)
    rows.clear()
    assert importance_bound(model, normal(5, 6), 2).shape == (5,) and rows == [3, 3, 2, 2]


def test_the_terms_of_the_elbo_and_beta():
    torch.manual_seed(0)
    model, x = VAE(8, 3, 4), uniform(6, 1, 8, 8, dtype=torch.float32)
    mean, log_var = model.encode(x)
    for beta in (0.0, 1.0, 2.5):
        terms = elbo(model, x, beta=beta, generator=seeded())
        z = reparameterize(mean, log_var, torch.randn(6, 3, generator=seeded()))
        assert set(terms) == {"loss", "reconstruction", "kl"} and all(t.shape == () and t.requires_grad for t in terms.values())
        assert torch.allclose(terms["reconstruction"], -bernoulli_log_likelihood(model.decode(z), x).mean())
        assert torch.allclose(terms["kl"], gaussian_kl(mean, log_var).mean()) and terms["kl"] > 0
        assert torch.allclose(terms["loss"], terms["reconstruction"] + beta * terms["kl"])
    generator = seeded()
    single = [elbo(model, x, generator=generator)["reconstruction"] for _ in range(3)]
    assert torch.allclose(elbo(model, x, samples=3, generator=seeded())["reconstruction"], torch.stack(single).mean())
    torch.manual_seed(0)
    first = elbo(model, x)["loss"]
    assert elbo(model, x)["loss"] != first   # noise is fresh where no generator is given


# --- the networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "latent", "channels"), [(4, 1, 1), (8, 2, 5), (12, 3, 4), (28, 7, 3)])
def test_shapes_and_sizes(side, latent, channels):
    x = uniform(3, 1, side, side, dtype=torch.float32)
    plain = Autoencoder(side, latent, channels)
    assert plain.encode(x).shape == (3, latent) and plain(x).shape == x.shape
    assert torch.equal(plain(x), plain.decode(plain.encode(x)))
    for likelihood in ("bernoulli", "gaussian"):
        model = VAE(side, latent, channels, likelihood)
        mean, log_var = model.encode(x)
        assert mean.shape == log_var.shape == (3, latent) and model.decode(mean).shape == x.shape
        assert torch.equal(torch.cat([mean, log_var], 1), model.encoder(x))
        assert model.log_likelihood(x, mean).shape == (3,)
    widths = [m.out_channels for m in plain.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert widths == [channels, 2 * channels, channels, 1]
    flat = [(m.in_features, m.out_features) for m in plain.modules() if isinstance(m, nn.Linear)]
    assert flat == [(2 * channels * (side // 4) ** 2, latent), (latent, 2 * channels * (side // 4) ** 2)]
    strides = [(m.kernel_size[0], m.stride[0], m.padding[0]) for m in plain.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert strides == [(3, 2, 1)] * 2 + [(4, 2, 1)] * 2


def test_default_channels():
    assert Autoencoder(8, 2).encoder[0].out_channels == VAE(8, 2).encoder[0].out_channels == 32


def test_pictures_and_variances():
    torch.manual_seed(0)
    z = normal(4, 2, dtype=torch.float32)
    bernoulli, given, learned = VAE(8, 2, 4), VAE(8, 2, 4, "gaussian", 0.25), VAE(8, 2, 4, "gaussian")
    assert torch.allclose(bernoulli.picture(z), torch.sigmoid(bernoulli.decode(z))) and 0 < bernoulli.picture(z).min() < 1
    assert torch.equal(learned.picture(z), learned.decode(z))
    assert learned.variance.item() == pytest.approx(0.1) and given.variance.item() == pytest.approx(0.25)
    assert "log_variance" not in dict(given.named_parameters())
    assert "log_variance" in dict(learned.named_parameters()) and "log_variance" in given.state_dict()
    x = uniform(4, 1, 8, 8, dtype=torch.float32)
    assert torch.allclose(given.log_likelihood(x, z), Independent(Normal(given.decode(z), 0.5), 3).log_prob(x), rtol=1e-5)
    assert torch.allclose(bernoulli.log_likelihood(x, z), bernoulli_log_likelihood(bernoulli.decode(z), x))
    with pytest.raises(AttributeError):
        _ = bernoulli.variance
    assert LinearVAE(3, 1).variance.item() == 1 and LinearVAE(3, 1).encode(torch.zeros(2, 3))[1].tolist() == [[0.0], [0.0]]


# --- what is refused ---------------------------------------------------------------------------------------------------

nan, zeros, ones = torch.full((2, 3), math.nan), torch.zeros(2, 3), torch.ones(2, 3)
picture = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_kl(zeros, torch.zeros(2, 2)), r"mean and log_var must have one shape \(B, …\), got \[\(2, 3\), \(2, 2\)\]"),
        (lambda: gaussian_kl(torch.zeros(3), torch.zeros(3)), r"one shape \(B, …\)"),
        (lambda: gaussian_kl(nan, zeros), "mean holds NaN or infinity"),
        (lambda: gaussian_kl(zeros, nan), "log_var holds NaN"),
        (lambda: gaussian_kl(zeros, -ones / 0), "log_var holds NaN or infinity"),
        (lambda: reparameterize(zeros, zeros, torch.zeros(2, 2)), "mean and log_var and noise must have one shape"),
        (lambda: reparameterize(zeros, torch.zeros(1, 3)), "must have one shape"),
        (lambda: bernoulli_log_likelihood(zeros, ones + 0.01), r"x must lie in \[0, 1\].*found 1.01 … 1.01"),
        (lambda: bernoulli_log_likelihood(zeros, -0.01 * ones), r"x must lie in \[0, 1\]"),
        (lambda: bernoulli_log_likelihood(zeros, nan), "x holds NaN"),
        (lambda: bernoulli_log_likelihood(nan, zeros), "logits holds NaN"),
        (lambda: bernoulli_log_likelihood(zeros, ones[:1]), "one shape"),
        (lambda: gaussian_log_likelihood(zeros, nan, 1.0), "x holds NaN"),
        (lambda: gaussian_log_likelihood(zeros, ones[:, :1], 1.0), "one shape"),
        *[(lambda v=v: gaussian_log_likelihood(zeros, ones, v), "one positive finite") for v in (0.0, -1.0, math.inf, math.nan, ones)],
        (lambda: Autoencoder(10, 2), "side must be a positive multiple of 4.*got 10"),
        (lambda: VAE(0, 2), "side must be a positive multiple"),
        (lambda: VAE(-4, 2), "side must be a positive multiple"),
        (lambda: VAE(8, 0), "latent must be at least 1"),
        (lambda: Autoencoder(8, 2, 0), "channels = 0"),
        (lambda: VAE(8, 2, likelihood="poisson"), "likelihood must be 'bernoulli' or 'gaussian', got 'poisson'"),
        (lambda: VAE(8, 2, variance=1.0), "None for a Bernoulli"),
        *[(lambda v=v: VAE(8, 2, 4, "gaussian", v), "variance must be a positive number") for v in (0.0, -1.0, math.nan, math.inf)],
        (lambda: LinearVAE(3, 3), "1 ≤ latent < dimensions"),
        (lambda: LinearVAE(3, 0), "1 ≤ latent < dimensions"),
        (lambda: Autoencoder(8, 2).encode(picture[:, 0]), r"x must be floating-point of shape \(B, 1, 8, 8\) with B ≥ 1"),
        (lambda: Autoencoder(8, 2)(picture * math.nan), "x holds NaN"),
        (lambda: Autoencoder(8, 2).decode(torch.zeros(2, 3)), r"z must be floating-point of shape \(B, 2\)"),
        (lambda: VAE(8, 2).encode(picture.byte()), "torch.uint8"),
        (lambda: VAE(8, 2).encode(picture[:0]), "B ≥ 1"),
        (lambda: VAE(8, 2).encode(picture[..., :4]), r"\(2, 1, 8, 4\)"),
        (lambda: VAE(8, 2).decode(torch.zeros(2)), "z must be"),
        (lambda: VAE(8, 2).decode(nan[:, :2]), "z holds NaN"),
        (lambda: elbo(VAE(8, 2), picture + 2), r"x must lie in \[0, 1\]"),
        (lambda: elbo(VAE(8, 2), picture, beta=-0.1), "beta must be a finite number ≥ 0"),
        (lambda: elbo(VAE(8, 2), picture, beta=math.inf), "beta must be"),
        (lambda: elbo(VAE(8, 2), picture, samples=0), "samples must be at least 1, got 0"),
        (lambda: importance_bound(VAE(8, 2), picture, 0), "samples must be at least 1"),
        (lambda: LinearVAE(4, 2).encode(zeros), r"\(B, 4\)"),
        (lambda: LinearVAE(4, 2).exact_log_likelihood(zeros), r"\(B, 4\)"),
        (lambda: LinearVAE(4, 2).exact_posterior(zeros), r"\(B, 4\)"),
        (lambda: LinearVAE(4, 2).fit_pca_(zeros), r"\(B, 4\)"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_edges_that_are_allowed():
    assert bernoulli_log_likelihood(zeros, torch.tensor([[0.0, 1.0, 0.5]] * 2)).tolist() == pytest.approx([-3 * math.log(2)] * 2)
    assert VAE(4, 1, 1).decode(torch.zeros(1, 1)).shape == (1, 1, 4, 4)
    assert LinearVAE(2, 1).exact_log_likelihood(torch.zeros(1, 2)).dtype == F64
    assert elbo(VAE(8, 2), picture, beta=0)["loss"].ndim == 0


# --- slow, and so last ---------------------------------------------------------------------------------------------------


def test_training_reaches_the_pca_optimum():
    torch.manual_seed(0)
    x = nn.functional.avg_pool2d(digits()[0], 2).flatten(1)
    best = LinearVAE(16, 2).double().fit_pca_(x.double(), correction=0).exact_log_likelihood(x.double()).mean().item()
    model, steps, generator = LinearVAE(16, 2), 500, seeded()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = elbo(model, x, generator=generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    reached = -elbo(model, x, samples=50, generator=generator)["loss"].item()
    assert best - 0.05 < reached < best + 0.02   # Monte Carlo error: about 0.005


SAVED = """
import sys, torch
from safetensors.torch import load_model
from coursekit.vae import VAE
folder = sys.argv[1]
x, mean, picture, log = torch.load(folder + "/numbers.pt")
model = VAE(8, 3, 4, "gaussian")
load_model(model, folder + "/model.safetensors")
encoder, decoder = (torch.export.load(f"{folder}/{part}.pt2").module() for part in ("encoder", "decoder"))
with torch.no_grad():
    assert torch.equal(model.encode(x)[0], mean) and torch.equal(model.decode(mean), picture)
    assert torch.equal(model.log_likelihood(x, mean), log)
    assert torch.allclose(encoder(x)[:, :3], mean, atol=1e-6) and torch.allclose(decoder(mean), picture, atol=1e-6)
"""


def test_saved_exported_and_run_in_a_fresh_process(tmp_path):
    """Weights through safetensors, encoder and decoder through torch.export."""
    torch.manual_seed(0)
    model, x = VAE(8, 3, 4, "gaussian"), uniform(5, 1, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        model.log_variance.fill_(-1.0)
        mean = model.encode(x)[0].contiguous()
        torch.save((x, mean, model.decode(mean), model.log_likelihood(x, mean)), tmp_path / "numbers.pt")
    save_model(model, str(tmp_path / "model.safetensors"))
    for part, example in (("encoder", x), ("decoder", mean)):
        program = torch.export.export(getattr(model, part), (example[:3],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, tmp_path / f"{part}.pt2")
    root = Path(sys.modules["coursekit"].__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", SAVED, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
