"""Record what a run of the trainer on real cats has reached: the tables and the curve that notebook 05 quotes.

    python -m coursekit.diffusion --data_path AFHQ/train --save_folder RUN …
    python tests/records/cats.py RUN --data AFHQ/train --held-out AFHQ/val --device "2 CPU cores" --trained-by "python …"

RUN is the trainer's folder: its losses, times and averaged weights are read. Samples are drawn with the seed of the run, and compared
with the training pictures by the features of a network that was trained on these to tell quarter turns. Writes one entry of
data/results/ddpm_cats.json. Not a part of CI.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recording import keep
from torch import Tensor

from coursekit.data import AFHQ
from coursekit.diffusion import DenoisingUNet, Diffusion, NoiseSchedule
from coursekit.diffusion.process import to_signed
from coursekit.fid import compare, train_features
from coursekit.runtime import device, seed_everything
from coursekit.training import load_weights, saved_settings

HANDOUT = {"hardware": "Colab T4", "1000 steps": "5-10 min", "1000 steps, FID every 100": "15-60 min", "10000 steps": "1-3 h"}


def main() -> None:
    options = _options()
    settings = saved_settings(options.run / "model.safetensors")
    generator, place = seed_everything(settings["seed"]), device()
    size = settings["image_size"]
    real = AFHQ(options.data, "cat", size).images
    process = _process(options.run / "model.safetensors", settings).to(place)
    features = train_features(real.to(place), generator=generator).features
    drawn, seconds = {}, {}
    samplers = {"DDPM, all steps": (0, 1.0), "DDIM, 10 steps": (10, 0.0), "η = 1, 10 steps": (10, 1.0), "DDIM, 20 steps": (20, 0.0)}
    for name, (steps, eta) in samplers.items():
        drawn[name], seconds[name] = _drawn(process, options.samples, steps, eta, settings["seed"])
    record = {
        "command": f"python tests/records/cats.py RUN --samples {options.samples}",
        "trained_by": options.trained_by,
        "data": f"AFHQ, {len(real)} training cats, {size} px", "settings": settings, "seed": settings["seed"],
        "device": options.device,
        "parameters": sum(parameter.numel() for parameter in process.parameters()),
        **trained(options.run), "handout": HANDOUT,
        "features": "of a network trained on the same cats to tell quarter turns; not Inception's",
        "samples": {name: compare(real, images.cpu(), lambda batch: features(batch.to(place))) for name, images in drawn.items()},
        "seconds_for_16_samples": {name: 16 * value / options.samples for name, value in seconds.items()},
    }   # fmt: skip
    if options.held_out:
        others = AFHQ(options.held_out, "cat", size).images
        record["nearest"] = nearest(to_signed(real).to(place), to_signed(others).to(place), drawn["DDPM, all steps"])
    file = keep("ddpm_cats", f"{settings['step']} steps, {size} px, seed {settings['seed']}", record)
    print(f"{settings['step']} steps; {record['samples']['DDPM, all steps']}; recorded in {file.name}")


def trained(run: Path) -> dict[str, Any]:
    """From the trainer's tables: the mean loss of every hundred steps, what it measured on the way, and its times."""
    with open(run / "losses_by_step.csv", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    with open(run / "losses.csv", encoding="utf-8") as file:
        measured = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    with open(run / "times.csv", encoding="utf-8") as file:   # a run that was resumed may have a step twice: the last one counts
        times = {int(step): (int(done), float(seconds)) for step, done, seconds in csv.reader(file)}
    return {
        "loss_of_every_100_steps": [statistics.fmean(losses[i : i + 100]) for i in range(0, len(losses), 100)],
        "loss_of_the_first_steps": losses[:10],
        "measured": measured,
        "minutes": sum(seconds for _, seconds in times.values()) / 60,
    }


def nearest(real: Tensor, others: Tensor, samples: Tensor) -> dict[str, float]:
    """Median distance (rms of the pixels) from samples, and from cats never seen, to the nearest training cat or its mirror image."""
    known = torch.cat([real, real.flip(3)]).flatten(1)

    def median(images: Tensor) -> float:
        return (torch.cdist(images.flatten(1), known).min(1).values / known.shape[1] ** 0.5).median().item()

    return {"samples": median(samples), "held_out": median(others), "n_samples": len(samples), "n_held_out": len(others)}


def _process(file: Path, settings: dict[str, Any]) -> Diffusion:
    model = DenoisingUNet(settings["unet_dim"], channels=settings["channels"])
    load_weights(model, file)
    schedule = NoiseSchedule.cosine(settings["time_steps"])
    return Diffusion(model, image_size=settings["image_size"], channels=settings["channels"], schedule=schedule)


def _drawn(process: Diffusion, count: int, steps: int, eta: float, seed: int) -> tuple[Tensor, float]:
    """``count`` samples in ``steps`` steps with η, or for ``steps`` = 0 by algorithm 2, and the seconds that they took."""
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    sizes = [min(64, count - i) for i in range(0, count, 64)]
    images = [process.ddim_sample(n, steps, eta, generator) if steps else process.sample(n, generator) for n in sizes]
    if device().type == "cuda":
        torch.cuda.synchronize()
    return torch.cat(images), time.perf_counter() - start


def _options() -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the trainer's save_folder")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds cat/")
    parser.add_argument("--held-out", type=Path, help="another such folder, of cats that were not trained on")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--device", required=True, help="what the run was trained on, in words: its times are of that machine")
    parser.add_argument("--trained-by", required=True, help="the trainer's command, without the places where this machine keeps things")
    return parser.parse_args()


if __name__ == "__main__":
    main()
