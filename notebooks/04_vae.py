# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#     provenance: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · From autoencoder to VAE, with the likelihood in nats
#
# An autoencoder squeezes a picture into a few numbers and rebuilds it; a variational autoencoder (VAE) turns that into a model of the data with a likelihood
# that can be stated, compared and, in one case, computed exactly. After this notebook you can
#
# * say why the codes of an autoencoder cannot be sampled, and what a VAE does about it;
# * compute a Kullback–Leibler divergence in three ways and call `KLDivLoss` so that it is one;
# * read the loss of a VAE as a bound on $\log p(x)$ in nats per image, and say what its weight means, what a mean for a sum does, and when the code is ignored;
# * compare a trained VAE with the best linear model on pictures that neither has seen.
#
# **Time.** Reading and exercises: about two hours. Running: under 40 seconds on two CPU cores; on a T4: not measured.

# %% tags=["setup"]
import sys
from importlib import util
from pathlib import Path

sys.path += [str(f) for f in (Path("coursekit").resolve(), Path.cwd(), *Path.cwd().parents) if (f / "coursekit/__init__.py").is_file()]
if getattr(util.find_spec("coursekit"), "origin", None) is None:
    raise ModuleNotFoundError("coursekit is not installed. In a checkout, run: pip install -e .\n"
                              "To open notebooks without one, publish them first: make publish REPO=owner/name")

# %% [markdown]
# Every claim below is a line of code that prints ✓ or stops the notebook. The number before a claim is that of its section and,
# where there is one, of its equation. E1.2 and the like are formulas that a handout prints wrong: each is run, seen to fail "as
# it should", and listed in section 7. The next cell holds everything that differs between the two modes: `fast` for two CPU
# cores and scikit-learn's digits, `full` for a GPU and MNIST.

# %% tags=["parameters"]
import torch

from coursekit import data, runtime

settings = {
    "fast": {
        "load": data.digits, "held_out": 397, "channels": 16, "threads": 1,
        "steps": 600,                           # of the autoencoder, and of the VAE that sections 5 and 6 look at
        "short": 100,                           # of networks that only have to show what they cannot do
        "linear": 700, "linear_rate": 0.05,     # of the linear VAE in section 4
        "sweep": 120,                           # for each β in section 5
        "strong": 400,                          # of each strong decoder in section 5
        "widest": 2.5,                          # bound of the codes' largest variance in section 6
    },
    "full": {
        "load": lambda: data.mnist(train=True), "held_out": 10_000, "channels": 32, "threads": 2,
        "steps": 6000, "short": 100, "linear": 12_000, "linear_rate": 0.02, "sweep": 1500, "strong": 3000,
        "widest": 5.0,                          # wide: what fails here is broken, not unlucky
    },
}[runtime.mode()]   # fmt: skip
generator = runtime.seed_everything(0)
torch.set_num_threads(settings["threads"])   # for 8×8 pixels a second thread only costs time

# %%
import copy
import math
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence
from torchvision.utils import make_grid

from coursekit import figures
from coursekit.checks import check, check_close, check_fails, check_moments, check_true
from coursekit.exercises import vae as exercises
from coursekit.explore import LatentExplorer
from coursekit.vae import VAE, Autoencoder, LinearVAE, bernoulli_log_likelihood, elbo, gaussian_log_likelihood

figures.use_style()
plt.rcParams["figure.dpi"] = 84   # many figures: keep the file small
device, float64 = runtime.device(), torch.float64


def randn(*shape):
    return torch.randn(*shape, generator=generator, dtype=float64)


# %% [markdown]
# **Data.** Handwritten digits in grey, scaled to $[0, 1]$: 8×8 pixels in fast mode (scikit-learn's copy of 1797 real ones), 28×28 in full mode. A part is held
# out, and every comparison of models below is made there.

# %%
images, labels = settings["load"]()
order = torch.randperm(len(images), generator=generator)
images, labels = images[order].to(device), labels[order]
train, held_out = images[: -settings["held_out"]], images[-settings["held_out"] :]
side, D = images.shape[-1], images[0].numel()
check_true("1  every pixel lies in [0, 1], and both ends occur", images.min() == 0 and images.max() == 1)


def mosaic(pictures, columns):
    """(N, 1, side, side) as one picture, ``columns`` in a row, each smoothly enlarged."""
    large = F.interpolate(pictures.detach().cpu().float(), size=48, mode="bicubic").clamp(0, 1)
    return make_grid(large, nrow=columns, pad_value=1)[:1]


# %% alt="Two rows of twelve handwritten digits, white on black, small and somewhat blurred."
figures.show_images([mosaic(train[:24], 12)], ["24 of the training digits"], height=1.6)
plt.show()

# %% [markdown]
# Two rows of what the models will see: in fast mode blurred by the few pixels, but most can be read.
#
# ## 1  An autoencoder, and why it cannot be sampled
#
# An encoder $f$ makes $k$ numbers of a picture, a decoder $g$ makes a picture of them, and both learn to lose as little as possible:
#
# $$L(f, g) = \mathbb E\,\lVert x - g(f(x)) \rVert^2. \tag{1.1}$$
#
# If $f$ and $g$ are linear, the best pair is known: principal component analysis, PCA. With $\lambda_1 \ge \lambda_2 \ge \dots$ the eigenvalues of the data's covariance it loses
#
# $$L_\text{PCA} = \sum_{i > k} \lambda_i. \tag{1.2}$$

# %%
k = 2
x = train.flatten(1).double().cpu().numpy()
pca = PCA(k).fit(x)
eigenvalues = torch.linalg.eigvalsh(train.flatten(1).double().cpu().T.cov(correction=0)).flip(0)
pca_error = ((x - pca.inverse_transform(pca.transform(x))) ** 2).sum(1).mean()
check_close("1.2  PCA's squared error on its own data, k = 2", pca_error, eigenvalues[k:].sum())

# %% [markdown]
# Ours halves the side of the picture twice with strided convolutions and doubles it twice with transposed ones. Here is the loop that trains it, in full;
# those further down differ in the loss only.

# %%
autoencoder = Autoencoder(side, k, settings["channels"]).to(device)
optimizer = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])

for _ in range(settings["steps"]):
    batch = train[torch.randint(len(train), (100,), generator=generator)]
    loss = (batch - autoencoder(batch)).square().flatten(1).sum(1).mean()   # (1.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay.step()


# %%
def fit(model, loss_of, steps, learning_rate=5e-3):
    """The same loop with ``loss_of(model, batch, step)``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = train[torch.randint(len(train), (100,), generator=generator)]
        loss = loss_of(model, batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return model


def squared_error(model, batch, step=0):
    return (batch - model(batch)).square().flatten(1).sum(1).mean()


def against_pca(model):
    """Held-out error of an autoencoder over that of PCA with as many numbers."""
    linear, x = PCA(model.latent).fit(train.flatten(1).cpu().numpy()), held_out.flatten(1).cpu().numpy()
    error = ((x - linear.inverse_transform(linear.transform(x))) ** 2).sum(1).mean()
    with torch.no_grad():
        return squared_error(model, held_out).item() / error


hasty = fit(Autoencoder(side, 16, settings["channels"]).to(device), squared_error, settings["short"])
check("1.1  two numbers: held-out error over PCA's", against_pca(autoencoder), at_most=0.95)
check("1.1  sixteen numbers after 100 steps: held-out error over PCA's", against_pca(hasty), at_least=1.1)


# %% [markdown]
# With two numbers the curved surface of the autoencoder fits held-out digits better than PCA's plane. It is no free win: with sixteen numbers
# PCA's flat space is already good and needs no training, and an autoencoder that has had only a hundred steps loses against it.
#
# Can we draw a random code and decode it? From which law? (1.1) does not say. For any $c > 0$,
#
# $$f' = c\,f, \quad g'(z) = g(z/c) \qquad\text{give}\qquad g'(f'(x)) = g(f(x)): \tag{1.3}$$
#
# the loss is the same to the last digit, but the codes lie elsewhere.

# %%
def stretched(c):
    """The autoencoder with all codes multiplied by c, and the same reconstructions."""
    model = copy.deepcopy(autoencoder)
    with torch.no_grad():
        for parameter in model.encoder[-1].parameters():
            parameter.mul_(c)
        model.decoder[0].weight.div_(c)
    return model


with torch.no_grad():
    twins = {c: stretched(c) for c in (1 / 8, 1, 8)}
    reconstructions = torch.stack([model(held_out) for model in twins.values()])
    codes = {c: model.encode(train).cpu() for c, model in twins.items()}
    z = torch.randn(24, k, generator=generator).to(device)
    drawn = {c: model.decode(z) for c, model in twins.items()}
check_close("1.3  three autoencoders, one reconstruction", reconstructions, reconstructions[[1, 1, 1]], tolerance=1e-5)
inside = {c: (code.norm(dim=1) < 2.448).double().mean() for c, code in codes.items()}   # the circle that holds 95 % of N(0, I)
check("1.3  share of codes in the middle 95 % of N(0, I), c = 1/8", inside[1 / 8], at_least=0.99)
check("1.3  the same for c = 8", inside[8], at_most=0.25)


# %% alt="Left: the codes of the training digits, numerals in colour, an irregular fan of clusters with gaps, and a dashed circle that does not fit it. Right: three mosaics of decoded draws: for c = 1/8 many distorted shapes, for c = 1 a mixture of digits and smears, for c = 8 nearly the same shape twenty-four times."
def scatter(axes, codes, labels, limit):
    for digit in range(10):
        mine = codes[labels == digit].cpu().numpy()
        axes.plot(*mine.T, marker=f"${digit}$", color=figures.COLOURS[digit % 6], markersize=5, linestyle="none")
    axes.add_patch(plt.Circle((0, 0), 2.448, fill=False, linestyle="--"))
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="$z_1$", ylabel="$z_2$", aspect="equal")


figure, axes = plt.subplots(1, 4, figsize=(10, 3), width_ratios=[1.5, 1, 1, 1])
scatter(axes[0], codes[1][:600], labels[:600], limit=float(codes[1][:600].abs().max()) + 0.3)
for panel, (c, name) in zip(axes[1:], {1 / 8: "1/8", 1: "1", 8: "8"}.items(), strict=True):
    figures.show_image(panel, mosaic(drawn[c], 4), f"z ~ N(0, I), c = {name}")
plt.show()

# %% [markdown]
# Left the codes for $c = 1$, with the circle that holds 95 % of $\mathcal N(0, I)$: the codes fill it unevenly, and many lie outside. Right what the three autoencoders, equally good by (1.1), decode from the
# same 24 standard normal draws. With $c = 1/8$ most draws fall far outside all codes and give distorted shapes; with $c = 8$ all draws fall in the middle and give nearly the same shape. To be sampled, the codes need a law, and
# the loss a term that asks for it.
#
# ## 2  The Kullback–Leibler divergence
#
# For two laws on finitely many outcomes,
#
# $$D_{\mathrm{KL}}(P \,\Vert\, Q) = \sum_i p_i \log\frac{p_i}{q_i} \;\ge\; 0, \tag{2.1}$$
#
# in nats, which means that the logarithm is the natural one, with $0 \log 0 = 0$, and zero only for $P = Q$. A batch of two pairs of laws on six outcomes:

# %%
p = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [0.1, 0.1, 0.2, 0.3, 0.2, 0.1]], dtype=float64)
q = torch.tensor([[0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]], dtype=float64)
by_hand = (p * (p / q).log()).sum(1)
print(f"KL(P‖Q), mean of the batch: {by_hand.mean():.4f};  KL(Q‖P): {(q * (q / p).log()).sum(1).mean():.4f}")
check_close("2.1  by hand = torch.distributions", by_hand, kl_divergence(Categorical(p), Categorical(q)))
some, others = Categorical(logits=randn(10_000, 6)), Categorical(logits=randn(10_000, 6))
check("2.1  never negative: the least of 10,000 random pairs", kl_divergence(some, others).min(), at_least=0)
check_fails("2.1  KL is symmetric", by_hand, (q * (q / p).log()).sum(1))


# %% [markdown]
# The third way is the loss, `nn.KLDivLoss`, which takes some care.
#
# **Exercise 2.1** (easy, 10 minutes, 2 points). Write `batch_kl` with `F.kl_div`: the mean over the batch of $D_{\mathrm{KL}}(P\Vert Q)$.
#
# <details><summary>Hint 1</summary><code>F.kl_div(input, target)</code>: which of them wants logarithms, and which law is the first in KL(P‖Q)?</details>
# <details><summary>Hint 2</summary>The input is the logarithm of q, the target p itself; of its reductions, one divides by the batch alone.</details>
# <details><summary>Hint 3</summary>That is <code>reduction="batchmean"</code>; the default divides by the number of outcomes too.</details>

# %%
def batch_kl(p, q):
    """p, q: (B, outcomes), probabilities; p may hold zeros. Returns the mean over B of KL(P‖Q), in nats."""
    ### BEGIN SOLUTION
    return F.kl_div(q.log(), p, reduction="batchmean")
    ### END SOLUTION


batch_kl = exercises.check("2.1", batch_kl)   # until it is right, goes on with the package's own function

# %% [markdown]
# **As printed in one handout**, `KLDivLoss` stands beside (2.1) with its default, `reduction='mean'`. That divides by the batch *and* by the number of
# outcomes (PyTorch warns, and rightly). The call takes $\log q$ first and $p$ second, so whoever fills it in the order of the formula gets
# $D_{\mathrm{KL}}(Q \Vert P)$, and whoever forgets the logarithm gets no divergence at all.

# %%
truth = by_hand.mean()
check_close("2.1  batch_kl", batch_kl(p, q), truth)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")   # PyTorch's own warning about what is shown here
    default = nn.KLDivLoss()(q.log(), p)
check_fails("E1.5  the default, reduction='mean'", truth, default)
check_close("E1.5  what the default computes: one sixth, there being six outcomes", default, truth / 6)
check_fails("E1.6  (P, Q) in the order of the formula: KLDivLoss(log p, q)", truth, F.kl_div(p.log(), q, reduction="batchmean"))
check_fails("E1.6  probabilities in the place of logarithms", truth, F.kl_div(q, p, reduction="batchmean"))
print(f"right {truth:.4f}; default {default:.4f}; swapped {batch_kl(q, p):.4f}; without the logarithm {F.kl_div(q, p, reduction='batchmean'):.4f}")

# %% [markdown]
# The same page gives the code that `KLDivLoss` is "roughly equivalent" to, `target * (target.log() - input)`. For a class label, where the target is 1 in one place and 0 elsewhere,
# that is $0\cdot(-\infty)$. PyTorch itself uses `xlogy`, which knows that $0\log 0 = 0$. For a certain outcome against an even chance the answer is $\log 2$.

# %%
one_hot, even = torch.tensor([[1.0, 0.0]], dtype=float64), torch.tensor([[0.5, 0.5]], dtype=float64)
check_close("2.1  a certain outcome against an even chance: log 2", batch_kl(one_hot, even), torch.tensor(2.0, dtype=float64).log())
check_fails("E1.7  target * (target.log() - input)", batch_kl(one_hot, even), (one_hot * (one_hot.log() - even.log())).sum())


# %% [markdown]
# ### Between Gaussians
#
# The codes will be Gaussian with a diagonal covariance, and the law that they have to come near to is $\mathcal N(0, I)$:
#
# $$D_{\mathrm{KL}}\bigl(\mathcal N(\mu, \operatorname{diag}\sigma^2) \,\Vert\, \mathcal N(0, I)\bigr) = \tfrac12 \sum_{j=1}^{k} \bigl(\mu_j^2 + \sigma_j^2 - \log\sigma_j^2 - 1\bigr). \tag{2.2}$$
#
# Networks give $\log\sigma^2$, which may be any number.
#
# **Exercise 2.2** (easy, 5 minutes, 2 points). Write `gaussian_kl`, that is (2.2), from $\mu$ and $\log\sigma^2$.
#
# <details><summary>Hint 1</summary>Which function turns log σ² back into σ², and which axis holds the latents?</details>
# <details><summary>Hint 2</summary>Four summands for each latent, <code>.exp()</code> in one of them, a sum over axis 1, one half: no mean, one answer for each item.</details>

# %%
def gaussian_kl(mean, log_var):
    """mean, log_var: (B, k), log_var = log σ². Returns (B,): the KL of each item, in nats."""
    ### BEGIN SOLUTION
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
    ### END SOLUTION


gaussian_kl = exercises.check("2.2", gaussian_kl)

# %%
mean, log_var = randn(50, 3), randn(50, 3)
law, prior = Normal(mean, (log_var / 2).exp()), Normal(torch.zeros(50, 3, dtype=float64), 1.0)
check_close("2.2  = torch.distributions", gaussian_kl(mean, log_var), kl_divergence(law, prior).sum(1))

# %%
z = law.sample((20_000,))
ratio = (law.log_prob(z) - prior.log_prob(z)).sum(2)                       # (draws, 50)
errors = (ratio.mean(0) - gaussian_kl(mean, log_var)).abs() / (ratio.std(0) / 20_000**0.5)
check("2.2  = the mean of log q/p over 20,000 draws, largest of 50 gaps in standard errors", errors.max(), at_most=5)
grid, one = torch.linspace(-12, 12, 4001, dtype=float64), Normal(0.7, 0.6)
integral = torch.trapezoid(one.log_prob(grid).exp() * (one.log_prob(grid) - Normal(0.0, 1.0).log_prob(grid)), grid)
closed = gaussian_kl(torch.tensor([[0.7]], dtype=float64), torch.tensor([[0.36]], dtype=float64).log())[0]
check_close("2.2  = an integral on a grid, in one dimension", closed, integral, tolerance=1e-6)

# %% [markdown]
# **As printed in one handout**, the same divergence is written with $\mathcal N(\mu, \sigma)$ in one line and with $\mathcal N(\mu, \sigma^2)$ in the next; whoever reads $\sigma$ as the variance gets
# another number. And its code returns `'KLD': -kld_loss`: the loss uses the right sign, the log shows a divergence below zero, which cannot be.

# %%
right = gaussian_kl(mean, log_var)
check_fails("E1.3  σ in the place of σ²", right, gaussian_kl(mean, log_var / 2))
kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp(), dim=1), dim=0)
check_close("2.2  the loss of that code is right", kld_loss, right.mean())
check_fails("E1.4  what it logs: −kld_loss", right.mean(), -kld_loss)

# %% [markdown]
# ### It matters which law comes first
#
# Fit one Gaussian $Q$ to a law $P$ with two humps. The two orders ask for different things:
#
# $$\arg\min_Q D_{\mathrm{KL}}(P \Vert Q):\ \text{mean and variance of } P, \qquad \arg\min_Q D_{\mathrm{KL}}(Q \Vert P):\ \text{(nearly) one hump of } P. \tag{2.3}$$
#
# We compute both for all $Q$ on a lattice of means and standard deviations.

# %%
grid = torch.linspace(-6, 6, 601, dtype=float64)
log_p = (0.6 * Normal(-1.5, 0.5).log_prob(grid).exp() + 0.4 * Normal(1.5, 0.5).log_prob(grid).exp()).log()
means, stds = torch.linspace(-2, 2, 81, dtype=float64), torch.linspace(0.3, 2, 69, dtype=float64)
log_q = Normal(means[:, None, None], stds[:, None]).log_prob(grid)          # (81, 69, 601)
forward = torch.trapezoid(log_p.exp() * (log_p - log_q), grid)
backward = torch.trapezoid(log_q.exp() * (log_q - log_p), grid)
best = {}
for name, table in (("KL(P‖Q)", forward), ("KL(Q‖P)", backward)):
    i, j = divmod(int(table.argmin()), len(stds))
    best[name] = means[i], stds[j]
check_close("2.3  forward: the mean of P", best["KL(P‖Q)"][0], torch.tensor(-0.3, dtype=float64), tolerance=0.05)
check_close("2.3  forward: its variance", best["KL(P‖Q)"][1] ** 2, torch.tensor(0.5**2 + 1.5**2 - 0.3**2, dtype=float64), tolerance=0.06)
check_close("2.3  backward: its standard deviation", best["KL(Q‖P)"][1], torch.tensor(0.5, dtype=float64), tolerance=0.1)
check_close("2.3  backward: the mean of the larger hump", best["KL(Q‖P)"][0], torch.tensor(-1.5, dtype=float64), tolerance=0.1)

# %% alt="A density with two humps, filled in light blue. A wide Gaussian covers both humps and has its top between them, where the density is almost zero; a narrow Gaussian sits on the left, larger hump only."
figure, axes = plt.subplots(figsize=(6.5, 2.6))
axes.fill_between(grid, log_p.exp(), color=figures.SKY, alpha=0.4, label="P")
for (name, (centre, spread)), style, colour in zip(best.items(), ("-", "--"), (figures.BLUE, figures.VERMILION), strict=True):
    axes.plot(grid, Normal(centre, spread).log_prob(grid).exp(), style, color=colour, label=f"Q of least {name}")
axes.set(xlabel="x", ylabel="density", xlim=(-5, 5))
axes.legend()
plt.show()


# %% [markdown]
# With $P$ first, $Q$ must cover everything that $P$ can produce, even if its top stands where $P$ has nothing. With $Q$ first, $Q$ must avoid what $P$ cannot produce, and settles on one hump.
# A VAE uses the second order for its codes: $Q$ is the encoder's answer.
#
# ## 3  The reparameterisation
#
# The encoder gives $\mu$ and $\log\sigma^2$, and the decoder wants a draw. Written as a function of a noise that knows of no parameter, the draw has gradients:
#
# $$z = \mu + \sigma\,\varepsilon, \qquad \sigma = e^{\frac12 \log\sigma^2}, \qquad \varepsilon \sim \mathcal N(0, I). \tag{3.1}$$
#
# **Exercise 3.1** (easy, 5 minutes, 2 points). Write `reparameterize`, that is (3.1).
#
# <details><summary>Hint 1</summary>The noise is multiplied by σ. What is given, and what is its half?</details>
# <details><summary>Hint 2</summary>σ is the exponential of half of <code>log_var</code>; multiply it with the noise that is given and add the mean.</details>

# %%
def reparameterize(mean, log_var, noise):
    """mean, log_var, noise: one shape; log_var = log σ², noise standard normal. Returns z of that shape."""
    ### BEGIN SOLUTION
    return mean + (log_var / 2).exp() * noise
    ### END SOLUTION


reparameterize = exercises.check("3.1", reparameterize)

# %%
n, mu, sigma = 100_000, 1.5, 0.5
mean = torch.full((n, 1), mu, dtype=float64).requires_grad_()
log_var = torch.full((n, 1), sigma**2, dtype=float64).log().requires_grad_()
noise = randn(n, 1)
z = reparameterize(mean, log_var, noise)
check_moments("3.1  mean and variance of the draws", z, mean=mu, variance=sigma**2)

# %% [markdown]
# To see that the gradients are right, take a function with a known answer. $\mathbb E\,z^2 = \mu^2 + \sigma^2$, so
#
# $$\frac{\partial}{\partial\mu}\,\mathbb E\,z^2 = 2\mu = \mathbb E\bigl[2z\bigr], \qquad \frac{\partial}{\partial \log\sigma^2}\,\mathbb E\,z^2 = \sigma^2 = \mathbb E\bigl[z\,\sigma\,\varepsilon\bigr], \tag{3.2}$$
#
# and what stands in the brackets is what autograd computes for each draw. Their variances are $4\sigma^2$ and $\mu^2\sigma^2 + 2\sigma^4$.

# %%
z.square().sum().backward()                       # a sum over draws: each keeps its own gradient
through_mean, through_log_var = mean.grad, log_var.grad
check_close("3.2  autograd's gradient of one draw by μ is 2z", through_mean, 2 * z)
check_moments("3.2  by μ: mean 2μ, variance 4σ²", through_mean, mean=2 * mu, variance=4 * sigma**2)
check_moments("3.2  by log σ²: mean σ²", through_log_var, mean=sigma**2, variance=mu**2 * sigma**2 + 2 * sigma**4)

# %% [markdown]
# There is an older way that needs no gradient of the function, the **score-function estimator** (REINFORCE). It has the same mean and, here, a known variance:
#
# $$\frac{\partial}{\partial\mu}\,\mathbb E\,h(z) = \mathbb E\!\left[h(z)\,\frac{z-\mu}{\sigma^2}\right], \qquad
# \operatorname{Var}\!\left[z^2\,\frac{z-\mu}{\sigma^2}\right] = \frac{\mu^4}{\sigma^2} + 14\mu^2 + 15\sigma^2. \tag{3.3}$$

# %%
score_function = (z.square() * (z - mean) / sigma**2).detach()
variance = mu**4 / sigma**2 + 14 * mu**2 + 15 * sigma**2
print(f"variance of one draw's gradient: reparameterised {4 * sigma**2:g}, score function {variance:g}, ratio {variance / (4 * sigma**2):g}")
check_moments("3.3  score function: the same mean, the variance of (3.3)", score_function, mean=2 * mu, variance=variance)

# %% alt="Left: two histograms of one draw's gradient around the true value 3; the reparameterised one is narrow, that of the score function is wide with a long tail to the right. Right: variance against sigma on logarithmic axes; the reparameterised line rises from small values, the curve of the score function lies far above it and rises again for small sigma."
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
bins = torch.linspace(-20, 40, 121)
left.hist(score_function[:, 0], bins, density=True, color=figures.VERMILION, alpha=0.6, label="score function")
left.hist(through_mean[:, 0], bins, density=True, color=figures.BLUE, alpha=0.8, label="reparameterised")
left.axvline(2 * mu, color="black", linestyle=":")
left.set(xlabel="gradient by μ from one draw", ylabel="density", yscale="log")
left.legend()
sigmas = torch.logspace(-1.3, 0.5, 60)
right.loglog(sigmas, mu**4 / sigmas**2 + 14 * mu**2 + 15 * sigmas**2, color=figures.VERMILION, label="score function")
right.loglog(sigmas, 4 * sigmas**2, "--", color=figures.BLUE, label="reparameterised")
right.set(xlabel="σ", ylabel="variance", title="μ = 1.5")
right.legend()
plt.show()

# %% [markdown]
# Left, both kinds of gradient scatter about the dotted truth, the score function's much more widely. Right, as $\sigma$ falls, as it does in training, the reparameterised gradient becomes ever quieter and the
# other ever noisier. The price is that $h$ must be differentiable, and the law must be one that can be written like (3.1).
#
# ## 4  The evidence lower bound
#
# The model: a code $z \sim \mathcal N(0, I)$, a picture $x \sim p(x\mid z)$. For *any* law $q(z)$,
#
# $$\log p(x) = \underbrace{\mathbb E_q \log p(x\mid z) - D_{\mathrm{KL}}\bigl(q(z) \Vert p(z)\bigr)}_{\text{ELBO}} + D_{\mathrm{KL}}\bigl(q(z) \Vert p(z \mid x)\bigr). \tag{4.1}$$
#
# *Why.* Write $\log p(x) = \log p(x, z) - \log p(z \mid x)$, add and subtract $\log q(z)$, and take the mean under $q$. The last term is never negative, so the ELBO never exceeds $\log p(x)$.
#
# In a model with one number, $x = wz + b + \text{noise}$ of variance $\sigma^2$, every term has a closed form. For $q = \mathcal N(m, s^2)$:

# %%
w, b, noise_variance = torch.tensor([1.3, 0.4, 0.36], dtype=float64)
posterior_variance = noise_variance / (w**2 + noise_variance)


def posterior_mean(x):
    return w * (x - b) / (w**2 + noise_variance)


def log_evidence(x):
    return Normal(b, (w**2 + noise_variance) ** 0.5).log_prob(x)


def elbo_by_hand(x, m, s2):
    reconstruction = Normal(w * m + b, noise_variance**0.5).log_prob(x) - w**2 * s2 / (2 * noise_variance)
    return reconstruction - (m**2 + s2 - s2.log() - 1) / 2


# %%
x, m, s2 = randn(1000), randn(1000), randn(1000).exp()
gap = kl_divergence(Normal(m, s2.sqrt()), Normal(posterior_mean(x), posterior_variance**0.5))
check_close("4.1  log p = ELBO + KL, 1000 random x and q", elbo_by_hand(x, m, s2) + gap, log_evidence(x))
check("4.1  the smallest gap", gap.min(), at_least=0)
tight = elbo_by_hand(x, posterior_mean(x), posterior_variance.expand_as(x))
check_close("4.1  no gap when q is the posterior", tight, log_evidence(x))


# %% [markdown]
# With a Gaussian decoder of variance $\sigma^2$ (without an index it is the decoder's from here on), one draw $z$ and $\hat x = g(z)$, minus the ELBO is estimated by
#
# $$L = \frac{\lVert x-\hat x\rVert^2}{2\sigma^2} + \tfrac12\sum_{j}\bigl(\mu_j^2+\sigma_j^2-\log\sigma_j^2-1\bigr) + \frac D2 \log 2\pi\sigma^2, \tag{4.2}$$
#
# in nats per picture, with $D$ the number of pixels. Without the last term it is no likelihood, and with a *learned* $\sigma^2$ it cannot be left out.
#
# **Exercise 4.1** (medium, 10 minutes, 3 points). Write `elbo_terms`, the two terms of (4.2): the reconstruction, first and last summand together, and the KL.
#
# <details><summary>Hint 1</summary>Over which axes is (4.2) a sum, and over which is its estimate a mean?</details>
# <details><summary>Hint 2</summary>For each picture: squares of the differences over the variance, plus the logarithm of 2πσ² for each pixel, half of it; <code>flatten(1)</code>, a sum, then a mean over the batch.</details>
# <details><summary>Hint 3</summary>The KL is <code>gaussian_kl(mean, log_var).mean()</code>. <code>variance</code> is σ² already.</details>

# %%
def elbo_terms(x, x_hat, mean, log_var, variance):
    """x, x_hat: (B, ...); mean, log_var: (B, k); variance: a positive number. Returns two scalars, means over B of nats per picture."""
    ### BEGIN SOLUTION
    reconstruction = 0.5 * ((x - x_hat).square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)
    return reconstruction.mean(), gaussian_kl(mean, log_var).mean()
    ### END SOLUTION


elbo_terms = exercises.check("4.1", elbo_terms)

# %%
model, x = VAE(side, 3, channels=4, likelihood="gaussian", variance=0.05).to(device).double(), held_out[:20].double()
packaged = elbo(model, x, generator=torch.Generator().manual_seed(7))
mean, log_var = model.encode(x)
z = reparameterize(mean, log_var, torch.randn(20, 3, dtype=float64, generator=torch.Generator().manual_seed(7)).to(device))
reconstruction, kl = elbo_terms(x, model.decode(z), mean, log_var, model.variance.item())
check_close("4.2  loss of the package = the formula, same noise", packaged["loss"], reconstruction + kl)
check_close("4.2  and its two terms", torch.stack([packaged["reconstruction"], packaged["kl"]]), torch.stack([reconstruction, kl]))

# %% [markdown]
# ### One encoder for all pictures
#
# The best $q$ differs from picture to picture. A VAE does not search for each; one network, with parameters $\varphi$, answers for all of them. That is called amortised inference and can only lose:
#
# $$\max_\varphi \sum_n \text{ELBO}\bigl(q_\varphi(\cdot\mid x_n), x_n\bigr) \;\le\; \sum_n \max_q \text{ELBO}(q, x_n). \tag{4.3}$$
#
# **As printed in one handout**, the two sides are equal. They are if the network can give every optimum. In the model above the best mean is a linear function of $x$: a linear encoder loses nothing, one that
# gives the same answer to all loses $\sum_n (m_n - \bar m)^2 / 2v$, with $m_n$ the posterior means and $v$ their common variance.

# %%
x = torch.linspace(-2, 3, 9, dtype=float64)
each = log_evidence(x).sum()                                                 # the best q for each x is its posterior
linear = elbo_by_hand(x, posterior_mean(x), posterior_variance).sum()
lattice = torch.meshgrid(torch.linspace(-1, 1, 201, dtype=float64), torch.linspace(0.05, 1, 381, dtype=float64), indexing="ij")
constant = elbo_by_hand(x, lattice[0][..., None], lattice[1][..., None]).sum(-1).max()
loss = ((posterior_mean(x) - posterior_mean(x).mean()) ** 2).sum() / (2 * posterior_variance)
print(f"sum over 9 x: best q for each {each:.3f}, linear encoder {linear:.3f}, constant encoder {constant:.3f}")
check_close("4.3  a linear encoder reaches the right side", linear, each)
check_close("4.3  the best constant, searched on a lattice, loses as predicted", each - constant, loss, tolerance=0.01)
check_fails("E4.1  equal for every encoder, the constant one too", each, constant)

# %% [markdown]
# ### A VAE with a known best value
#
# Let encoder and decoder be linear: $p(x \mid z) = \mathcal N(Wz + b, \sigma^2 I)$. This is **probabilistic PCA**. Its likelihood is a Gaussian's,
#
# $$\log p(x) = \log\mathcal N\bigl(x;\; b,\; WW^\top + \sigma^2 I\bigr), \tag{4.4}$$
#
# and the best parameters are known: $b$ the mean, $\sigma^2$ the mean of the eigenvalues left out, $W$ the first $k$ eigenvectors, each scaled by $\sqrt{\lambda_i-\sigma^2}$. The posterior is Gaussian with a mean linear in $x$, so a linear VAE can make (4.1) tight;
# training has a goal; scikit-learn computes it.

# %%
x = train.flatten(1).double().cpu()
best_score = PCA(k).fit(x.numpy()).score(x.numpy())                       # mean log-likelihood, nats per picture
exact = LinearVAE(D, k).double().fit_pca_(x)
check_close("4.4  closed form: log p = scikit-learn's PCA(2).score", exact.exact_log_likelihood(x).mean(), best_score, tolerance=1e-8)

# %%
linear_vae = fit(
    LinearVAE(D, k).to(device),
    lambda model, batch, step: elbo(model, batch.flatten(1))["loss"],
    steps=settings["linear"],
    learning_rate=settings["linear_rate"],
).cpu()

# %%
with torch.no_grad():
    likelihood = linear_vae.exact_log_likelihood(x).mean()
    bound = -elbo(linear_vae, x.float(), samples=100)["loss"]
    mean, covariance = linear_vae.exact_posterior(x)
    answer, log_var = (t.detach() for t in linear_vae.encode(x.float()))   # its log σ² is a parameter

# %% tags=["nbval-ignore-output"]
print(f"the last digits differ from machine to machine; here: best likelihood {best_score:.3f}, trained {best_score - likelihood:.3f} nats below, its ELBO {best_score - bound:.3f} below")

# %%
check("4.4  trained by gradient steps: nats below the best likelihood", best_score - likelihood, at_most=0.05)
check("4.1  its ELBO below the best likelihood", best_score - bound, at_most=0.1)
check("4.4  encoder's means: RMS distance to the exact posterior's, in its standard deviations", ((answer - mean).square().mean(0) / covariance.diag()).mean().sqrt(), at_most=0.2)
check("4.4  correlation of the two latents given x", (covariance[0, 1] / covariance.diag().prod().sqrt()).abs(), at_most=0.2)
check("4.4  encoder's variances over the exact ones, largest log ratio", (log_var[0] - covariance.diag().log()).abs().max(), at_most=0.2)

# %% alt="Scatter for 150 digits: the encoder's mean against the exact posterior mean for both latents, with error bars of one standard deviation; all points lie on the diagonal."
figure, axes = plt.subplots(figsize=(4.2, 3.2))
for j, (marker, colour) in enumerate((("o", figures.BLUE), ("s", figures.VERMILION))):
    axes.errorbar(mean[:150, j], answer[:150, j], yerr=(log_var[:150, j] / 2).exp().numpy(), fmt=marker, markersize=4, markerfacecolor="none", color=colour, elinewidth=0.4, label=f"$z_{j + 1}$")
axes.axline((0, 0), slope=1, color="black", linewidth=0.8)
axes.set(xlabel="exact posterior mean", ylabel="encoder: mean ± σ")
axes.legend()
plt.show()


# %% [markdown]
# Each point is one digit and one of the two latents: what the trained encoder answers, against what Bayes' rule says. They lie on the diagonal, and the bars, one $\sigma$, are the exact ones to within the
# bound of the check. Which two directions the latents take within PCA's plane the likelihood does not say; the ELBO asks that they be uncorrelated given $x$, since the encoder cannot say otherwise.
#
# ## 5  The real VAE
#
# The same loss with convolutions in the place of $W$ and of the linear encoder, and a learned variance $\sigma^2$, one for all pixels. The loop stays as it was; we keep the two terms of each step.
#
# $$L_\beta = \underbrace{-\mathbb E_q\log p(x\mid z)}_{\text{reconstruction}} + \beta\, \underbrace{D_{\mathrm{KL}}\bigl(q(z \mid x) \Vert p(z)\bigr)}_{\text{KL}}, \qquad \beta = 1 \text{ for the ELBO}. \tag{5.1}$$

# %%
def new_vae(**options):
    return VAE(side, k, settings["channels"], "gaussian", **options).to(device)


def nats(model, x, samples=20):
    """Reconstruction and KL in nats per picture, over all of x."""
    with torch.no_grad():
        terms = elbo(model, x, samples=samples)
    return terms["reconstruction"].item(), terms["kl"].item()


vae, log = new_vae(), []
start = -sum(nats(vae, held_out))


def logged_loss(model, batch, step):
    terms = elbo(model, batch)
    log.append((terms["reconstruction"].item(), terms["kl"].item()))
    return terms["loss"]


fit(vae, logged_loss, settings["steps"])
reconstruction, kl = nats(vae, held_out)
check("5.1  held-out ELBO has risen, nats per picture", -reconstruction - kl - start, at_least=20)
check("5.1  held-out KL, nats per picture", kl, at_least=2)

# %% alt="Left: over the training steps the ELBO rises steeply and then slowly. Right: minus the reconstruction term rises in the same way, while the KL, dashed, rises from zero to a few nats and ends below it."
reconstructions, kls = torch.tensor(log).T
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.plot(-reconstructions - kls, linewidth=0.7)
left.set(xlabel="step", ylabel="nats per picture", title="ELBO of each batch", ylim=(-30, None))
right.plot(-reconstructions, linewidth=0.7, label="E log p(x|z)")
right.plot(kls, "--", color=figures.VERMILION, label="KL")
right.set(xlabel="step", ylabel="nats per picture", title="its two terms", ylim=(-30, None))
right.legend()
plt.show()

# %% [markdown]
# The bound rises (left). It is the difference of two terms (right). At first $\sigma^2$ and the mean picture are learned, almost without KL; then both grow, and the code pays for itself: a few nats of KL buy several times as many of reconstruction. The likelihood is a *density*, so its logarithm may be positive.
#
# ### A sum, a mean, and the factor between them
#
# **As printed in one handout**, the slide's loss is $\lVert x - \hat x\rVert^2 + \text{KL}$ and the code under it `F.mse_loss(x, x_hat) + kld_weight * kl`, where the weight is
# said to "account for the minibatch samples". `mse_loss` divides by the number of pixels $D$ as well. With $w$ for `kld_weight`,
#
# $$\underbrace{\tfrac1D\lVert x - \hat x\rVert^2 + w\,\text{KL}}_{\text{code}} = \tfrac1D\bigl(\lVert x - \hat x\rVert^2 + wD\,\text{KL}\bigr), \qquad\text{a Gaussian decoder with } \sigma^2 = \tfrac{wD}{2}. \tag{5.2}$$
#
# The two agree, up to the factor $1/D$, for $w = 1/D$ and for no other weight; the slide's own form is a decoder with $\sigma^2 = \frac12$.

# %%
with torch.no_grad():
    mean, log_var = vae.encode(held_out)
    x_hat = vae.picture(mean)
    kl_each, mse = gaussian_kl(mean, log_var).mean(), F.mse_loss(x_hat, held_out)
    slide = (held_out - x_hat).square().flatten(1).sum(1).mean() + kl_each
    as_decoder = -gaussian_log_likelihood(x_hat, held_out, 0.5).mean() + kl_each
check_close("5.2  code with w = 1/D = slide / D", mse + kl_each / D, slide / D)
check_fails("E1.2  code with w = 1 = slide / D", slide / D, mse + kl_each)
coded = -gaussian_log_likelihood(x_hat, held_out, D / 2).mean() - mse
check_close("5.2  code with w = 1: a decoder with σ² = D/2, but for D/2 log πD", coded, D / 2 * math.log(math.pi * D), tolerance=1e-2)
check_close("5.2  slide = Gaussian decoder with σ² = 1/2, but for D/2 log π", as_decoder - slide, D / 2 * torch.tensor(torch.pi).log().to(device), tolerance=1e-2)

# %% [markdown]
# What does a decoder variance that is far too large do? In the linear case this is exact. With $\theta = \beta\sigma^2$, a direction of the data with variance $\lambda$ gets a weight $w$ in the decoder (no longer `kld_weight`) and costs a rate (a KL) $R$ of
#
# $$w^2 = \max(\lambda - \theta, 0), \qquad R = \tfrac12\log\frac{\lambda}{\theta} \ \text{ if } \lambda > \theta, \text{ else } 0. \tag{5.3}$$
#
# A direction below the threshold is not coded at all. The lattice search minimises $L_\beta$ for one direction, over $w$ and over the slope and variance of the encoder:

# %%
lam, sigma2, beta = 0.7, 0.1, 2.0                                           # θ = 0.2
w, slope, s2 = torch.meshgrid(
    torch.linspace(0, 1, 101, dtype=float64), torch.linspace(0, 2, 101, dtype=float64), torch.linspace(0.05, 1, 96, dtype=float64), indexing="ij"
)   # q(z|x) = N(slope·x, s2)
rate = (lam * slope**2 + s2 - s2.log() - 1) / 2
objective = (lam * (1 - w * slope) ** 2 + w**2 * s2) / (2 * sigma2) + beta * rate
best = objective.argmin()
check_close("5.3  best w, in steps of 0.01", w.flatten()[best], torch.tensor(lam - beta * sigma2, dtype=float64).sqrt(), tolerance=0.02)
check_close("5.3  its rate", rate.flatten()[best], torch.tensor(lam / (beta * sigma2), dtype=float64).log() / 2, tolerance=0.02)
high = (lam * (1 - w * slope) ** 2 + w**2 * s2) / 2 + rate                  # θ = 1, more than λ
check_close("5.3  θ = 1 > λ: nothing is coded", rate.flatten()[high.argmin()], torch.tensor(0.0, dtype=float64), tolerance=1e-3)

# %%
check("5.3  w = 1 in the code, σ² = D/2: over the largest variance of any direction of the digits", D / 2 / eigenvalues[0], at_least=10)
check("5.2  … all the variance of the digits over 2σ² = D: nats that a code can earn there at most", eigenvalues.sum() / D, at_most=0.1)
silent = fit(new_vae(variance=D / 2), lambda model, batch, step: elbo(model, batch)["loss"], settings["short"])
check("5.2  a VAE trained with the code's loss, w = 1: held-out KL", nats(silent, held_out)[1], at_most=0.05)

# %% [markdown]
# Its codes say nothing about the picture: **posterior collapse**, here as the true optimum of a wrong weight. No trick of training cures it, and no curved decoder either: at this $\sigma^2$ all the variance of the digits is worth less than a tenth of a nat in (4.2), and a code that costs more cannot pay. The right weight does, or a learned $\sigma^2$, as above.
#
# ### Rate and distortion
#
# Between "codes say nothing" and "codes say all" lies a curve. From the trained VAE, with its variance fixed, we go on training for a while with several $\beta$ and look at the rate (the KL)
# and the distortion (the squared error). For linear models the curve is known from (5.3): with $\theta$ as parameter,
#
# $$R(\theta) = \tfrac12\sum_{i\le k}\log\frac{\lambda_i}{\min(\lambda_i,\theta)}, \qquad \Delta(\theta) = \sum_{i \le k}\min(\lambda_i,\theta) + \sum_{i>k}\lambda_i. \tag{5.4}$$

# %%
fixed = vae.variance.item()
rates, distortions, betas = [], [], (0.1, 0.3, 1, 3, 10, 30)
for beta in betas:
    branch = new_vae(variance=fixed)
    branch.load_state_dict(vae.state_dict())                                # a warm start: the same for every β
    fit(branch, lambda model, batch, step, beta=beta: elbo(model, batch, beta=beta)["loss"], settings["sweep"], learning_rate=2e-3)
    reconstruction, kl = nats(branch, train[:10_000])
    rates.append(kl)
    distortions.append(2 * fixed * (reconstruction - D / 2 * math.log(2 * math.pi * fixed)))

# %%
rate_steps, distortion_steps = torch.tensor(rates).diff(), torch.tensor(distortions).diff()
check("5.1  as β grows the rate falls: its smallest fall, nats", -rate_steps.max(), at_least=0.05)
check("5.1  and the distortion rises: its smallest rise", distortion_steps.min(), at_least=0.01)

# %%
theta = torch.logspace(-3, eigenvalues[0].log10().item() + 0.1, 200, dtype=float64)[:, None]
top = eigenvalues[:k]
R = 0.5 * (top / torch.minimum(top, theta)).log().sum(1)
distortion = torch.minimum(top, theta).sum(1) + eigenvalues[k:].sum()
z_free = train.flatten(1).double().cpu().var(0, correction=0).sum()
check_close("5.4  rate 0: all of the variance is lost", distortion[-1], z_free, tolerance=1e-6)
check("5.4  the VAE at β = 1: its distortion over that of the best linear model with two codes, at any rate", distortions[2] / eigenvalues[k:].sum(), at_most=0.98)

# %% alt="Distortion against rate. The black line of the linear model falls steeply and then flattens; the points of the VAE, labelled with beta from 30 to 0.1, fall further and lie well below the line from about two nats on."
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(R, distortion, color="black", label="linear, two codes: (5.4)")
axes.plot(rates, distortions, "o--", color=figures.BLUE, label="VAE, two codes")
for beta, rate, loss in zip(betas, rates, distortions, strict=True):
    axes.annotate(f"β = {beta:g}", (rate, loss), textcoords="offset points", xytext=(5, 5))
axes.set(xlabel="rate: KL, nats per picture", ylabel="distortion: squared error", xlim=(-0.2, 1.15 * max(rates)))
axes.legend()
plt.show()


# %% [markdown]
# A large $\beta$ makes codes cheap and pictures poor (upper left), a small one the reverse (lower right). The black line is the best that two *linear* codes can do, and it flattens out at what two directions leave over; the
# curved decoder gets below it. With $\beta > 1$, $-L_\beta$ is still below $\log p(x)$, only further; with $\beta < 1$ it bounds nothing.
#
# ### Collapse made, and cured
#
# Collapse has a second cause: a decoder so strong that it needs no code. Let each pixel be predicted from the pixels before it as well,
#
# $$p(x \mid z) = \prod_i \mathcal N\Bigl(x_i;\; g_i(z) + a_i + \sum_{j<i} A_{ij}x_j,\; \sigma^2\Bigr), \tag{5.5}$$
#
# and start $A$ and $a$ at the best linear prediction, computed from the Cholesky factor of the covariance. At the start the code can add little, and its KL is a cost from the first step.

# %%
class StrongVAE(VAE):
    """A VAE whose decoder also sees the pixels before the one that it predicts, in the order of reading."""

    def __init__(self):
        super().__init__(side, k, settings["channels"], "gaussian")
        x = train.flatten(1).cpu()
        factor = torch.linalg.cholesky(x.T.cov() + 1e-3 * torch.eye(D))
        A = (torch.eye(D) - factor.diag()[:, None] * torch.linalg.inv(factor)).tril(-1)
        self.A, self.a = nn.Parameter(A), nn.Parameter(x.mean(0) - A @ x.mean(0))
        with torch.no_grad():
            self.decoder[-1].weight.mul_(0.1)
            self.decoder[-1].bias.zero_()

    def means(self, x, z):
        return self.decode(z) + (x.flatten(1) @ self.A.tril(-1).T + self.a).view_as(x)

    def log_likelihood(self, x, z):
        return gaussian_log_likelihood(self.means(x, z), x, self.variance)


# %%
strong = {}
for name, warm_up in (("β = 1 from the start", 1), ("β warmed up", 3 * settings["strong"] // 4)):
    model, kl_log = StrongVAE().to(device), []

    def warmed(model, batch, step, warm_up=warm_up, kl_log=kl_log):
        terms = elbo(model, batch, beta=min(1.0, (step + 1) / warm_up))
        kl_log.append(terms["kl"].item())
        return terms["loss"]

    strong[name] = fit(model, warmed, settings["strong"]), kl_log

# %%
plain, cured = (model for model, _ in strong.values())
x, changed = held_out[:1].clone(), held_out[:1].clone()
middle = D // 2 + side // 2
changed.view(-1)[middle] += 1
with torch.no_grad():
    effect = (plain.means(changed, torch.zeros(1, k, device=device)) - plain.means(x, torch.zeros(1, k, device=device))).flatten()
check_close("5.5  a pixel has no say in its own mean, nor in those before it", effect[: middle + 1], torch.zeros(middle + 1, device=device))
check("5.5  but it has one in those after it", effect[middle + 1 :].abs().max(), at_least=0.01)
check("5.5  a strong decoder, β = 1 from the start: held-out KL", nats(plain, held_out)[1], at_most=1)
check("5.5  β warmed up from 0 to 1 in the first three quarters: held-out KL", nats(cured, held_out)[1], at_least=1.8)
check("5.5  and its ELBO at β = 1 is higher by, nats per held-out picture", sum(nats(plain, held_out)) - sum(nats(cured, held_out)), at_least=1)

# %% alt="KL over the training steps. Without warm-up the curve stays at zero; with warm-up it rises within the first hundred steps, and stays near two and a half nats after beta has reached one, marked by a dotted line."
figure, axes = plt.subplots(figsize=(6, 2.6))
for (name, (_, kl_log)), style, colour in zip(strong.items(), ("--", "-"), (figures.VERMILION, figures.BLUE), strict=True):
    axes.plot(kl_log, style, color=colour, label=name)
axes.axvline(3 * settings["strong"] // 4, color="black", linestyle=":")
axes.set(xlabel="step", ylabel="KL, nats per picture")
axes.legend()
plt.show()

# %% [markdown]
# Dashed, the same loss from the first step: the KL stays near zero for hundreds of steps, and the decoder works alone, with less than a nat of KL to the end (checked above). With $\beta$ raised slowly (up to the dotted line) the code is taken up while it is still free, and once it is useful, it is kept. In the
# end both minimise the same loss, and the second gets lower. That distinguishes this collapse, a fault of the path that training takes, from the one of (5.3), where the silence *is* the optimum.

# %% [markdown]
# ## 6  The latent space
#
# Two latents can be drawn. Encoded means of held-out digits on the left; on the right what the decoder makes of a lattice of codes, spaced so that each cell holds the same share of $\mathcal N(0, I)$.

# %%
with torch.no_grad():
    mean, log_var = vae.encode(train)
    mean, log_var, held_out_mean = mean.cpu(), log_var.cpu(), vae.encode(held_out)[0].cpu()
    quantiles = Normal(0.0, 1.0).icdf((torch.arange(12) + 0.5) / 12)
    lattice = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1).to(device)      # z_2 falls from row to row
    pictures = vae.picture(lattice)

# %% alt="Left: codes of held-out digits as coloured numerals inside and around a dashed circle; some digits have a region of their own, others overlap in the middle. Right: a mosaic of twelve by twelve decoded pictures that change smoothly from one to the next, clear at the edges and blurred in the middle."
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2))
scatter(left, held_out_mean[:400], labels[-settings["held_out"] :][:400], limit=3.6)
figures.show_image(right, mosaic(pictures, 12), "decoded quantiles of the prior")
plt.show()

# %% [markdown]
# Compare with section 1: the codes now cover most of the dashed circle, which again holds 95 % of the prior. Look for a digit's region on the left in the same direction on the right; between regions the decoder morphs one digit into the next, and two numbers are too few to
# keep every digit apart from every other.
#
# ### From one digit to another
#
# A straight line between two codes is a path of pictures; a straight line between two pictures is a double exposure.

# %%
first, last = (int((labels[-settings["held_out"] :] == digit).nonzero()[0]) for digit in (0, 7))
share = torch.linspace(0, 1, 8)[:, None]
with torch.no_grad():
    path = vae.picture(((1 - share) * held_out_mean[first] + share * held_out_mean[last]).to(device))
    blend = torch.lerp(held_out[first], held_out[last], share[:, :, None, None].to(device))
    draws = vae.picture(torch.randn(24, k, generator=generator).to(device))

# %% alt="Top: eight decoded pictures in which a zero bends step by step into a blurred seven that could be a nine. Below: the cross-fade of the two digits, both visible in the middle. Last two rows: 24 pictures decoded from random codes, blurred; some are clear digits, some lie between two."
figure, axes = plt.subplots(3, 1, figsize=(7, 3.9), height_ratios=[1, 1, 1.4])
for panel, (pictures, columns, title) in zip(axes, ((path, 8, "along a line of codes"), (blend, 8, "along a line of pixels"), (draws, 12, "z ~ N(0, I), decoded")), strict=True):
    figures.show_image(panel, mosaic(pictures, columns), title)
plt.show()

# %% [markdown]
# The first row bends one stroke into another, the second shows both digits at half strength. The last rows are samples, of means only: (4.2) would add noise of variance $\sigma^2$ to each pixel. They are blurred, because with two latents
# every code has to answer for many pictures and gives their mean; samples between two regions are no digit at all.
#
# ### Does the prior get what it asked for?
#
# What the decoder was trained on is the **aggregate posterior**, the mixture of all codes. Its first two moments are
#
# $$q(z) = \frac1N\sum_n q(z\mid x_n), \qquad \mathbb E\,z = \overline{\mu_n}, \qquad \operatorname{Cov} z = \operatorname{Cov}(\mu_n) + \overline{\operatorname{diag}\sigma_n^2}. \tag{6.1}$$

# %% tags=["nbval-ignore-output"]
centre = mean.mean(0)
covariance = mean.T.cov(correction=0) + log_var.exp().mean(0).diag()
print(f"mean {centre.numpy().round(2)}, covariance", *covariance.numpy().round(2), sep="\n")

# %%
z = mean + (log_var / 2).exp() * torch.randn(200, *mean.shape, generator=generator)
check_close("6.1  covariance by the formula = of 200 draws for each picture", z.flatten(0, 1).T.cov(), covariance, tolerance=0.02)
check("6.1  distance of its mean from 0", centre.norm(), at_most=0.5)
check("6.1  smallest eigenvalue of its covariance", torch.linalg.eigvalsh(covariance)[0], at_least=1.0)
check("6.1  largest", torch.linalg.eigvalsh(covariance)[1], at_most=settings["widest"])


# %% [markdown]
# The mean is nearly right; the covariance is larger than $I$ in every direction, in fast mode by less than a factor of 2.5.
#
# **As printed in one handout**, the KL guarantees that one can draw from the prior: since each $\mathcal N(\mu, \sigma)$ is "somewhat similar" to $\mathcal N(0, 1)$, a draw from the prior is "very likely to fall within one of these encoded". It may or may not: the loss sees each code by itself, and the *mixture* is
# what has to fill the prior. One latent, half of the codes at $+a$, half at $-a$, all with the same $\sigma$; the share of the prior within two standard deviations of a code is
#
# $$P = 2\,\bigl(\Phi(a + 2\sigma) - \Phi(\max(a - 2\sigma, 0))\bigr), \tag{6.2}$$
#
# with $\Phi$ the distribution function of $\mathcal N(0, 1)$.

# %%
def prior_near_codes(a, s):
    Phi = Normal(0.0, 1.0).cdf
    upper, lower = torch.tensor([a + 2 * s, max(a - 2 * s, 0.0)], dtype=float64)
    return 2 * (Phi(upper) - Phi(lower))


cases = {}
for a, s in ((2.0, 0.3), (1.0, 0.7)):
    cost = gaussian_kl(torch.tensor([[a]], dtype=float64), 2 * torch.tensor([[s]], dtype=float64).log()).item()
    cases[a, s] = prior_near_codes(a, s)
    print(f"codes at ±{a:g} with σ = {s:g}: KL {cost:.2f} nats each, {100 * cases[a, s]:.0f} % of the prior near a code")
z = randn(200_000)
near = ((z.abs() - 2).abs() < 0.6).double()
check_moments("6.2  the first case, by drawing", near, mean=cases[2.0, 0.3], variance=cases[2.0, 0.3] * (1 - cases[2.0, 0.3]))
check_fails("E1.8  “very likely”, say 95 %", cases[2.0, 0.3], 0.95)

# %% [markdown]
# In the first case a KL of under three nats for every picture, and yet five of six draws land where the decoder has hardly ever been; in the second, with codes nearer and wider, hardly any. For our VAE, too, the share has to be measured, not assumed:

# %%
draws = torch.randn(2000, k, generator=generator)
distance = ((draws[:, None] - mean[None, :5000]) / (log_var[None, :5000] / 2).exp()).norm(dim=2).min(1).values
check("6.2  our VAE: share of prior draws within two standard deviations of a training code", (distance < 2).double().mean(), at_least=0.8)


# %% [markdown]
# ### Held-out likelihood
#
# The ELBO is low by the KL of (4.1). With $K$ draws for each picture one comes closer:
#
# $$\log p(x) \;\ge\; \mathbb E\,\log\frac1K\sum_{i=1}^K \frac{p(x\mid z_i)\,p(z_i)}{q(z_i \mid x)} \;\ge\; \text{ELBO}, \qquad z_i \sim q(z \mid x), \tag{6.3}$$
#
# with equality on the left as $K \to \infty$, and at once if $q$ is the posterior, for then every ratio is $p(x)$ itself.
#
# **Exercise 6.1** (hard, 15 minutes, 4 points). Write `importance_bound`: the logarithm in (6.3). A model has `encode(x)`, which returns `mean, log_var`, and `log_likelihood(x, z)`. Sums of small numbers: use `torch.logsumexp`.
#
# <details><summary>Hint 1</summary>What is the logarithm of one of the K ratios, as a sum and difference of three logarithms?</details>
# <details><summary>Hint 2</summary>For each draw: z from q, <code>model.log_likelihood(x, z)</code>, plus log p(z), minus log q(z|x), each summed over the latents; stack the draws and take <code>logsumexp</code> over them.</details>
# <details><summary>Hint 3</summary>With z = μ + σ·noise, log p(z) − log q(z|x) is half the sum of noise² + log σ² − z², since the 2π cancel. At the end subtract <code>math.log(samples)</code>.</details>

# %%
def importance_bound(model, x, samples):
    """x: a batch of B. Returns (B,): the logarithm in (6.3) for K = samples draws, in nats."""
    ### BEGIN SOLUTION
    mean, log_var = model.encode(x)
    log_weights = []
    for _ in range(samples):
        noise = torch.randn_like(mean)
        z = mean + (log_var / 2).exp() * noise
        log_prior_over_q = 0.5 * (noise.square() + log_var - z.square()).sum(1)     # the 2π cancel
        log_weights.append(model.log_likelihood(x, z) + log_prior_over_q)
    return torch.stack(log_weights).logsumexp(0) - math.log(samples)
    ### END SOLUTION


importance_bound = exercises.check("6.1", importance_bound)

# %%
x, y = train.flatten(1).double().cpu(), held_out.flatten(1).double().cpu()
with torch.no_grad():
    check_close("6.3  exact posterior: the bound is log p(x), with K = 1 already", importance_bound(exact, y, 1), exact.exact_log_likelihood(y))
    bounds = {K: importance_bound(vae, held_out, K).mean().item() for K in (1, 50)}
check("6.3  bound with K = 50 above the ELBO, nats", bounds[50] - bounds[1], at_least=0.2)

# %% [markdown]
# And the rival: probabilistic PCA with the same number of latents, whose likelihood (4.4) is exact. For a fair comparison the data have the same scale and both models have *one* variance for all pixels. (With a variance for each pixel,
# either could gain without end on pixels that are always black.)

# %% tags=["nbval-ignore-output"]
rival = PCA(k).fit(x.numpy()).score(y.numpy())
print(f"n = {len(y)} held-out pictures, {k} latents: ELBO {bounds[1]:.2f}, bound with K = 50 draws {bounds[50]:.2f}, PCA {rival:.2f} nats per picture")

# %%
check("6.3  held-out bound of the VAE minus PCA's exact log-likelihood, nats per picture", bounds[50] - rival, at_least=4)

# %% alt="Histogram over held-out digits of the VAE's bound minus PCA's log-likelihood; most of it lies to the right of zero, between 0 and 15, with a long tail to the right and a short one to the left."
with torch.no_grad():
    difference = importance_bound(vae, held_out, 50).cpu() - exact.exact_log_likelihood(y)
figure, axes = plt.subplots(figsize=(6, 2.4))
axes.hist(difference, 40, color=figures.BLUE)
axes.axvline(0, color="black", linestyle=":")
axes.set(xlabel="VAE's bound − PCA's log-likelihood, nats", ylabel="held-out digits")
plt.show()

# %%
check("6.3  share of held-out digits that the VAE gives the higher likelihood", (difference > 0).double().mean(), at_least=0.6)

# %% [markdown]
# To the right of the dotted line the VAE explains a digit better than the best linear model with two latents can; that is most of them, but not all. And this is a lower bound against an exact value.
#
# On real MNIST two VAEs with sixteen latents were trained once, outside of this notebook: one on grey pictures, beside PCA, one on binarised ones. The record names the command, the commit and the seed.

# %%
for name, run in data.results("mnist_vae").items():
    print(f"{name}: {run['data']}; n = {run['n']:,}, {run['settings']['latent']} latents, {run['training_cpu_minutes']:.1f} CPU minutes of training")
    print(f"   ELBO {run['elbo']:.1f}, bound with K = {run['samples']}: {run['importance_bound']:.1f} nats per picture"
          + (f"; PCA, exact: {run['pca_log_likelihood']:.1f}" if "pca_log_likelihood" in run else ""))

# %% [markdown]
# The nats of grey pictures are those of a density, and both models have one learned variance; those of the binarised ones are of a probability, and can be set beside published ones only where
# the binarisation, the pixels and the training set are the same.
#
# One more trap: a Bernoulli likelihood, which many VAEs use for grey pixels. Only for pixels that are 0 or 1 is it a probability. As a density on $[0, 1]$ it does not integrate to 1:
#
# $$\int_0^1 p^{x}(1-p)^{1-x}\,dx = \tfrac12 \quad\text{at } p = \tfrac12, \tag{6.4}$$
#
# so its "nats" must not be compared with a Gaussian's.

# %%
grey = torch.linspace(0, 1, 1001, dtype=float64)[:, None]
density = bernoulli_log_likelihood(torch.zeros_like(grey), grey).exp()
check_close("6.4  the integral over grey values at p = 1/2", torch.trapezoid(density, grey[:, 0]), torch.tensor(0.5, dtype=float64))

# %% [markdown]
# ### Keep the model
#
# A trained model is its numbers. Saved as safetensors and loaded into a fresh one, encoder and decoder answer as before:

# %%
fresh = new_vae()
with tempfile.TemporaryDirectory() as folder:
    save_model(vae, str(Path(folder) / "vae.safetensors"))
    _ = load_model(fresh, str(Path(folder) / "vae.safetensors"))
with torch.no_grad():
    check_close("6  encoder, after saving and loading", torch.stack(fresh.encode(held_out)), torch.stack(vae.encode(held_out)))
    check_close("6  decoder", fresh.picture(lattice), vae.picture(lattice))

# %% [markdown]
# ### Play with it
#
# Move the code about the latent space: the picture that it decodes to, and the training digits nearest to that picture.

# %%
explorer = LatentExplorer(vae, train[:1000], labels[:1000])
explorer

# %% alt="Scatter of encoded means as numerals with a cross at the chosen code, the decoded digit beside it, and the four nearest training digits."
explorer.snapshot(z1=-1.5, z2=0.5)

# %% [markdown]
# For readers without sliders: the cross is the code $(-1.5, 0.5)$, the large picture what it decodes to, and the four on the right are the nearest training digits, ringed in the scatter. The decoded picture is softer than they are: it is a mean over all that the code leaves open.

# %%
explorer.controls["z1"].value, explorer.controls["z2"].value = -0.5, 1.0
with torch.no_grad():
    by_decoder = vae.cpu().picture(torch.tensor([[-0.5, 1.0]]))[0, 0]
check_close("4.2  the explorer's picture after two moves is the decoder's", explorer.shown.decoded, by_decoder)

# %% [markdown]
# ## 7  Errata in the handouts
#
# | | printed | right | shown in |
# |---|---|---|---|
# | E1.2 | slide $\lVert x-\hat x\rVert^2 + \text{KL}$, code `F.mse_loss` $+\,w\,$KL | equal up to $1/D$ for $w = 1/D$ only | 5 |
# | E1.3 | $\mathcal N(\mu, \sigma)$ beside $\mathcal N(\mu, \sigma^2)$ | $\mathcal N(\mu, \sigma^2)$ | 2 |
# | E1.4 | `'KLD': -kld_loss` | `+kld_loss`, which is never negative | 2 |
# | E1.5 | `KLDivLoss` with its default `reduction='mean'` | `'batchmean'` | 2 |
# | E1.6 | `KLDivLoss(input, target)` beside $D_{\mathrm{KL}}(P \Vert Q)$ | `input` $=\log Q$, `target` $=P$ | 2 |
# | E1.7 | `target * (target.log() - input)` | with $0\log 0 = 0$: `xlogy` | 2 |
# | E1.8 | the KL makes prior draws "very likely" hit a code | only if the *aggregate* posterior fills the prior | 6 |
# | E4.1 | $\sum\max_q \text{ELBO} = \max_\varphi \sum \text{ELBO}$ | $\ge$; equal if the network reaches every optimum | 4 |
#
# ## 8  What to take home
#
# * A reconstruction loss says nothing about where codes lie. A prior and a KL do, for each code by itself; look at the aggregate before sampling.
# * State the loss in nats per picture: sums over pixels and latents, means over the batch only. A mean over pixels is a decoder variance of $D/2$ in disguise.
# * A direction whose variance is below $\beta\sigma^2$ is not coded. Learn $\sigma^2$; where a strong decoder starts ahead of the code, warm $\beta$ up.
# * `KLDivLoss` wants logarithms first, probabilities second, and `batchmean`.
# * Before trusting a VAE, train the linear one: its best value is known.
#
# **To read.** D. Kingma and M. Welling, *Auto-encoding variational Bayes*, ICLR 2014 (where it began). D. Rezende, S. Mohamed and D. Wierstra, *Stochastic backpropagation and approximate inference in deep generative models*, ICML 2014. M. Tipping and C. Bishop, *Probabilistic
# principal component analysis*, JRSS B 1999. J. Lucas, G. Tucker, R. Grosse and M. Norouzi, *Don't blame the ELBO! A linear VAE perspective on posterior collapse*, NeurIPS 2019. Y. Burda, R. Grosse and R. Salakhutdinov, *Importance weighted autoencoders*, ICLR 2016. I. Higgins and others,
# *β-VAE*, ICLR 2017. S. Bowman and others, *Generating sentences from a continuous space*, CoNLL 2016 (warming up the KL). O. Rybkin, K. Daniilidis and S. Levine, *Simple and effective VAE training with calibrated decoders*, ICML 2021 (the shared variance).
