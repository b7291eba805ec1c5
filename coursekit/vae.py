"""Notebook 04: autoencoder, variational autoencoder, and the linear one whose likelihood is known exactly.

Every log-likelihood, ELBO and KL is in nats per image: summed over pixels or latents, never averaged over them.
``log_var`` is log σ², not log σ. Images have shape (B, 1, side, side), latents (B, latent).
Encoders and decoders are plain ``nn.Sequential`` or ``nn.Linear`` modules without checks, so ``torch.export`` takes them.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Likelihood = Literal["bernoulli", "gaussian"]
_ROWS = 512   # latents decoded at a time by importance_bound: some 50 MB an activation for 28×28 images and 32 channels


class LatentModel(Protocol):
    """For ``elbo`` and ``importance_bound``: q(z|x) = N(mean, e^log_var), (B, latent) each; log p(x|z), (B,), in nats. Prior N(0, I)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor: ...


def reparameterize(mean: Tensor, log_var: Tensor, noise: Tensor | None = None) -> Tensor:
    """z = mean + e^(log_var/2)·noise, a draw from N(mean, e^log_var) through which gradients flow to both.

    All have the shape of ``mean``; standard normal ``noise`` is drawn where it is not given.
    Raises ``ValueError`` for different shapes, NaN or infinity. Sources: Kingma and Welling 2014, section 2.4; Rice, slides.
    """
    noise = torch.randn_like(mean) if noise is None else noise
    _check_alike(mean=mean, log_var=log_var, noise=noise)
    return mean + (log_var / 2).exp() * noise


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag e^log_var) ‖ N(0, I)) = ½ Σ (mean² + e^log_var − 1 − log_var), (B, …) to (B,), in nats.

    Never negative: e^v − 1 − v is computed by expm1, which cancels less, and what rounding leaves below 0 is 0.
    Raises ``ValueError`` for different shapes, NaN or infinity. Sources: Kingma and Welling 2014, appendix B; Rice, slides.
    """
    _check_alike(mean=mean, log_var=log_var)
    return 0.5 * (mean.square() + (log_var.expm1() - log_var).clamp(min=0)).flatten(1).sum(1)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Σ x log p + (1−x) log(1−p) with p = sigmoid(logits), (B, …) to (B,), in nats.

    For ``x`` in {0, 1} it is a log-probability. For grey values in between it is the usual loss, but no normalised
    likelihood: do not compare it with a Gaussian's. Raises ``ValueError`` for other shapes, NaN, and x outside [0, 1].
    Source: Kingma and Welling 2014, appendix C.1.
    """
    _check_alike(logits=logits, x=x)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"x must lie in [0, 1] for a Bernoulli likelihood, found {x.min():g} … {x.max():g}; divide it by its scale")
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, variance: float | Tensor) -> Tensor:
    """log N(x; mean, variance·I) = −½ Σ ((x−mean)²/variance + log 2π·variance), (B, …) to (B,), in nats.

    ``variance``: one positive number for all pixels. A density has units: data multiplied by c lose D·log c nats.
    Raises ``ValueError`` for other shapes, NaN, infinity, another variance. Source: Kingma and Welling 2014, appendix C.2.
    """
    _check_alike(mean=mean, x=x)
    v = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)
    if v.numel() != 1 or not 0 < v < math.inf:
        raise ValueError(f"variance must be one positive finite number, got {v.tolist()}")
    return -0.5 * ((x - mean).square() / v + (2 * math.pi * v).log()).flatten(1).sum(1)


class _Model(nn.Module):
    """An encoder and a decoder, and checks of what goes into them. ``shape``: that of one item of the data."""

    log_variance: Tensor

    def __init__(self, shape: tuple[int, ...], latent: int, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.shape, self.latent, self.encoder, self.decoder = shape, latent, encoder, decoder

    @property
    def variance(self) -> Tensor:
        """σ² of a Gaussian decoder, shape (). Raises ``AttributeError`` for a model without one."""
        return self.log_variance.exp()

    def decode(self, z: Tensor) -> Tensor:
        """What the decoder says of latents ``z`` (B, latent): (B, *shape*); the class says in which units."""
        _check_batch("z", z, self.latent)
        return self.decoder(z)


class Autoencoder(_Model):
    """Images to ``latent`` numbers and back, by convolutions that halve the side twice and double it twice.

    Trained with the squared error. The last layer is linear, as it is in PCA: reconstructions are in the data's scale (no logits),
    and may leave it. Raises ``ValueError`` for a side that is no multiple of 4, a size below 1, wrong shapes, NaN. Source: Rice, slides.
    """

    def __init__(self, side: int, latent: int, channels: int = 32) -> None:
        super().__init__((1, side, side), latent, _encoder(side, channels, latent), _decoder(side, channels, latent))

    def encode(self, x: Tensor) -> Tensor:
        """The codes, (B, latent)."""
        _check_batch("x", x, *self.shape)
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1, side, side) to their reconstructions, of the same shape and in the same scale."""
        return self.decode(self.encode(x))


class VAE(_Model):
    """The variational autoencoder: encoder q(z|x) = N(mean, diag e^log_var), prior N(0, I), decoder p(x|z).

    ``likelihood="bernoulli"``: ``decode`` gives logits of pixels in [0, 1]. ``"gaussian"``: it gives means, and all pixels share one
    variance, given or (None) learned. Raises ``ValueError`` for a side that is no multiple of 4, sizes below 1, an unknown likelihood,
    a variance ≤ 0, wrong shapes, NaN, data out of range. Sources: Kingma and Welling 2014; Rice, slides; Rybkin and others 2021 (variance).
    """

    def __init__(
        self, side: int, latent: int, channels: int = 32, likelihood: Likelihood = "bernoulli", variance: float | None = None
    ) -> None:
        super().__init__((1, side, side), latent, _encoder(side, channels, 2 * latent), _decoder(side, channels, latent))
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood must be 'bernoulli' or 'gaussian', got {likelihood!r}")
        if variance is not None and (likelihood == "bernoulli" or not 0 < variance < math.inf):
            raise ValueError(f"variance must be a positive number for a Gaussian, None for a Bernoulli likelihood, got {variance!r}")
        self.side, self.likelihood = side, likelihood
        if variance is not None:
            self.register_buffer("log_variance", torch.tensor(math.log(variance)))
        elif likelihood == "gaussian":
            self.log_variance = nn.Parameter(torch.tensor(math.log(0.1)))   # a pixel of digits or MNIST has 0.07

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mean and log_var of q(z|x), each (B, latent)."""
        _check_batch("x", x, *self.shape)
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var

    def picture(self, z: Tensor) -> Tensor:
        """E[x|z], (B, 1, side, side), in the data's scale: the sigmoid of the logits, or the means as they are."""
        return self.decode(z).sigmoid() if self.likelihood == "bernoulli" else self.decode(z)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), (B,), in nats."""
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(self.decode(z), x)
        return gaussian_log_likelihood(self.decode(z), x, self.variance)


class LinearVAE(_Model):
    """The VAE without hidden layers: p(x|z) = N(Wz + b, σ²I), q(z|x) = N(Vx + c, diag e^log_var) with one log_var for all x.

    Its best ELBO is the likelihood of probabilistic PCA, so training has a known goal. ``x`` has shape (B, dimensions).
    Raises ``ValueError`` unless 1 ≤ latent < dimensions, for wrong shapes and NaN. Sources: Tipping and Bishop 1999; Lucas and others 2019.
    """

    encoder: nn.Linear
    decoder: nn.Linear

    def __init__(self, dimensions: int, latent: int) -> None:
        if not 1 <= latent < dimensions:
            raise ValueError(f"need 1 ≤ latent < dimensions, got latent = {latent} and dimensions = {dimensions}")
        super().__init__((dimensions,), latent, nn.Linear(dimensions, latent), nn.Linear(latent, dimensions))
        self.log_var = nn.Parameter(torch.zeros(latent))
        self.log_variance = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mean and log_var of q(z|x), each (B, latent)."""
        _check_batch("x", x, *self.shape)
        return self.encoder(x), self.log_var.expand(len(x), -1)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), (B,), in nats."""
        return gaussian_log_likelihood(self.decode(z), x, self.variance)

    def exact_log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; b, WWᵀ + σ²I), (B,), in nats, computed and returned in float64. Tipping and Bishop 1999, section 3.1."""
        _check_batch("x", x, *self.shape)
        W, b = self.decoder.weight.double(), self.decoder.bias.double()
        covariance = W @ W.T + self.variance.double() * torch.eye(len(b)).to(W)
        return torch.distributions.MultivariateNormal(b, covariance).log_prob(x.double())

    def exact_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(z|x): mean M⁻¹Wᵀ(x−b), (B, latent), and covariance σ²M⁻¹, with M = WᵀW + σ²I; float64. Tipping and Bishop 1999, section 3.1."""
        _check_batch("x", x, *self.shape)
        W, b, variance = self.decoder.weight.double(), self.decoder.bias.double(), self.variance.double()
        inverse = torch.linalg.inv(W.T @ W + variance * torch.eye(self.latent).to(W))
        return (x.double() - b) @ W @ inverse, variance * inverse

    def fit_pca_(self, x: Tensor, correction: int = 1) -> LinearVAE:
        """Set all parameters to the closed-form optimum for ``x`` (N, dimensions), and return the model.

        W = U(Λ−σ²I)^½ with the largest eigenvalues Λ of the covariance, σ² the mean of the others; the encoder is the exact posterior,
        so the ELBO is log p(x). ``correction`` = 1 divides the covariance by N−1, as scikit-learn does, and the mean of log p(x) is
        ``PCA(latent).score(x)``; 0 divides by N and gives the maximum itself, about dimensions/(4N²) nats higher.
        Raises ``ValueError`` where no variance is left for σ². Source: Tipping and Bishop 1999, section 3.2.
        """
        _check_batch("x", x, *self.shape)
        if len(x) <= correction:
            raise ValueError(f"x has {len(x)} rows, which have no variance: give at least {correction + 1}")
        data = x.double()
        eigenvalues, vectors = torch.linalg.eigh(data.T.cov(correction=correction))   # ascending
        top, variance = eigenvalues[-self.latent :].flip(0), eigenvalues[: -self.latent].mean()
        if not variance > 1e-12 * top[0]:
            raise ValueError(f"x lies within {self.latent} dimensions and leaves no noise variance: use fewer latents or more data")
        W = vectors[:, -self.latent :].flip(1) * (top - variance).sqrt()
        V, mean = (W / top).T, data.mean(0)   # M = Λ
        decoder = {"decoder.weight": W, "decoder.bias": mean, "log_variance": variance.log()}
        self.load_state_dict(decoder | {"encoder.weight": V, "encoder.bias": -V @ mean, "log_var": (variance / top).log()})
        return self


def elbo(model: LatentModel, x: Tensor, *, beta: float = 1.0, samples: int = 1, generator: Generator | None = None) -> dict[str, Tensor]:
    """The negative ELBO of a batch and its two terms: means over the batch of nats per image, all three differentiable.

    ``reconstruction`` = −E_q log p(x|z), with ``samples`` draws of z for each image; ``kl`` = KL(q(z|x) ‖ p(z)) ≥ 0, exact; ``loss`` =
    reconstruction + beta·kl. For ``beta`` ≥ 1, −loss is a lower bound on log p(x), tightest at 1. Detach what is only logged. Raises
    ``ValueError`` for beta < 0, samples < 1, and what the model refuses. Sources: Kingma and Welling 2014, equation 3; Higgins and
    others 2017; Rice, slides.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a finite number ≥ 0, got {beta:g}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    mean, log_var = model.encode(x)
    draws = [model.log_likelihood(x, reparameterize(mean, log_var, _noise_like(mean, generator))) for _ in range(samples)]
    reconstruction, kl = -torch.stack(draws).mean(), gaussian_kl(mean, log_var).mean()
    return {"loss": reconstruction + beta * kl, "reconstruction": reconstruction, "kl": kl}


@torch.no_grad()
def importance_bound(model: LatentModel, x: Tensor, samples: int, generator: Generator | None = None) -> Tensor:
    """log (1/K) Σ_k p(x, z_k)/q(z_k|x) with K = ``samples`` draws from q for each image, (B,), in nats. No gradients.

    Its expectation is the ELBO for K = 1, rises with K, and tends to log p(x). Decodes at most 512 latents at a time: memory grows with
    neither B nor K. Raises ``ValueError`` for samples < 1 and what the model refuses. Source: Burda and others 2016, equation 8.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    bounds = []
    for part in x.split(_ROWS):
        mean, log_var = model.encode(part)
        total = mean.new_full((len(part),), -math.inf)
        for start in range(0, samples, step := max(1, _ROWS // len(part))):
            draws = min(step, samples - start)
            means, log_vars, many = (t.expand(draws, *t.shape).flatten(0, 1) for t in (mean, log_var, part))
            noise = _noise_like(means, generator)
            z = reparameterize(means, log_vars, noise)
            log_ratio = 0.5 * (noise.square() + log_vars - z.square()).sum(1)   # log p(z)/q(z|x); the 2π cancel
            log_weights = (model.log_likelihood(many, z) + log_ratio).unflatten(0, (draws, len(part)))
            total = torch.logaddexp(total, log_weights.logsumexp(0))
        bounds.append(total - math.log(samples))
    return torch.cat(bounds)


def _encoder(side: int, channels: int, outputs: int) -> nn.Sequential:
    if side < 4 or side % 4:
        raise ValueError(f"side must be a positive multiple of 4, since it is halved twice, got {side}; pad the images")
    if channels < 1 or outputs < 1:
        raise ValueError(f"channels and latent must be at least 1, got channels = {channels} and an encoder of {outputs} outputs")
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Linear(2 * channels * (side // 4) ** 2, outputs),
    )  # fmt: skip


def _decoder(side: int, channels: int, latent: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(latent, 2 * channels * (side // 4) ** 2), nn.SiLU(), nn.Unflatten(1, (2 * channels, side // 4, side // 4)),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1), nn.SiLU(),
        nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
    )  # fmt: skip


def _check_batch(name: str, tensor: Tensor, *shape: int) -> None:
    if tensor.shape[1:] != shape or not len(tensor) or not tensor.is_floating_point():
        wanted = ", ".join(["B", *map(str, shape)])
        raise ValueError(f"{name} must be floating-point of shape ({wanted}) with B ≥ 1, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    _check_alike(**{name: tensor})


def _check_alike(**tensors: Tensor) -> None:
    """All have the shape (B, …) of the first, and are finite."""
    shape = next(iter(tensors.values())).shape
    for name, tensor in tensors.items():
        if tensor.shape != shape or tensor.ndim < 2:
            raise ValueError(f"{' and '.join(tensors)} must have one shape (B, …), got {[tuple(t.shape) for t in tensors.values()]}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity: look at the data, or lower the learning rate if a network made it")


def _noise_like(mean: Tensor, generator: Generator | None) -> Tensor:
    device = mean.device if generator is None else generator.device   # a CPU generator may serve a model on a GPU
    return torch.randn(mean.shape, dtype=mean.dtype, device=device, generator=generator).to(mean.device)
