"""Train a VAE on 8,000 real MNIST digits and record its bound on 2,000 held-out ones, in nats per image.

    python tests/records/mnist_vae.py bernoulli --data FOLDER --epochs 60     # pixels drawn as 0 or 1 with the grey value's probability
    python tests/records/mnist_vae.py gaussian --data FOLDER --epochs 60      # grey values; beside PCA's exact likelihood

FOLDER holds MNIST's two test files, t10k-*: the first 8,000 images train, the last 2,000 are held out and choose nothing. Writes one
entry of data/results/mnist_vae.json. Not a part of CI.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from recording import keep
from torch import Tensor

from coursekit.data import mnist
from coursekit.runtime import seed_everything
from coursekit.vae import VAE, LinearVAE, elbo, importance_bound

SAMPLES = 64


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("likelihood", choices=["bernoulli", "gaussian"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = seed_everything(options.seed)
    images, _ = mnist(train=False, root=options.data)
    train, held_out = images[:8000], images[8000:]
    binary = options.likelihood == "bernoulli"
    if binary:
        held_out = torch.bernoulli(held_out, generator=torch.Generator().manual_seed(0))   # one draw, the same for every seed
    model = VAE(28, options.latent, likelihood=options.likelihood)
    start = time.process_time()
    fit(model, train, options.epochs, binary, generator)
    minutes = (time.process_time() - start) / 60
    record = {
        "command": f"python tests/records/mnist_vae.py {options.likelihood} --data MNIST --epochs {options.epochs} "
                   f"--latent {options.latent} --seed {options.seed}",
        "data": "MNIST test files: 8,000 images to train, 2,000 held out" + (", binarised at random" if binary else ""),
        "settings": {"latent": options.latent, "channels": 32, "epochs": options.epochs, "batch": 100,
                     "optimizer": "Adam, one cycle to 2e-3"},
        "seed": options.seed, "device": "cpu",
        "training_cpu_minutes": round(minutes, 2), "n": len(held_out), "samples": SAMPLES, **scores(model, train, held_out, generator),
    }   # fmt: skip
    keep("mnist_vae", f"{options.likelihood}, seed {options.seed}", record)
    print(json.dumps(record, indent=1))


def fit(model: VAE, train: Tensor, epochs: int, binary: bool, generator: torch.Generator) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(train) // 100))
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(train), generator=generator).split(100):
            x = torch.bernoulli(train[chosen], generator=generator) if binary else train[chosen]   # a new draw each time
            loss = elbo(model, x, generator=generator)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: {sum(losses) / len(losses):.2f} nats", flush=True)


def scores(model: VAE, train: Tensor, held_out: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Means over the held-out images. The ELBO takes as many draws as the importance-weighted bound."""
    model.eval()
    with torch.no_grad():
        terms = elbo(model, held_out, samples=SAMPLES, generator=generator)
    found = {"elbo": -terms["loss"], "reconstruction": terms["reconstruction"], "kl": terms["kl"]}
    found["importance_bound"] = importance_bound(model, held_out, SAMPLES, generator).mean()
    if model.likelihood == "gaussian":
        pca = LinearVAE(train[0].numel(), model.latent).fit_pca_(train.flatten(1))
        found["pca_log_likelihood"] = pca.exact_log_likelihood(held_out.flatten(1)).mean()
    return {name: round(value.item(), 2) for name, value in found.items()}


if __name__ == "__main__":
    main()
