"""Record what a run of the trainer on real cats has reached: the tables and the curve that notebook 05 quotes.

    python -m coursekit.diffusion --data_path AFHQ/train --save_folder RUN …
    python tests/records/cats.py RUN --data AFHQ/train --held-out AFHQ/val --device "2 CPU cores" --trained-by "python …"

RUN is the trainer's folder: its losses, times and averaged weights are read. Samples are drawn with the seed of the run, and compared
with the training pictures by the features of a network that was trained on these to tell quarter turns. Writes one entry of
data/results/ddpm_cats.json, and beside it two PNG files of generated pictures: samples, and the way back from noise. Pictures of the data
set are not kept. Not a part of CI.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from recording import ROOT, keep
from torch import Tensor
from torchvision.utils import make_grid

from coursekit.data import AFHQ
from coursekit.data.pixels import to_pixels, to_signed
from coursekit.diffusion import DenoisingUNet, Diffusion, NoiseSchedule
from coursekit.diffusion.pictures import strips
from coursekit.fid import compare, train_features
from coursekit.runtime import device, seed_everything
from coursekit.training import load_weights, saved_settings

HANDOUT = {"hardware": "Colab T4", "1000 steps": "5-10 min", "1000 steps, FID every 100": "15-60 min", "10000 steps": "1-3 h"}


def main() -> None:
    options = _options()
    settings = saved_settings(options.run / "model.safetensors")
    from_tables = trained(options.run)   # first: what it refuses need not be waited for
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
        **from_tables, "handout": HANDOUT,
        "features": "of a network trained on the same cats to tell quarter turns; not Inception's",
        "resize": f"files to {size} px, bilinear with antialiasing; not resized again for the features",
        "samples": {name: compare(real, images.cpu(), lambda batch: features(batch.to(place))) for name, images in drawn.items()},
        "seconds_for_16_samples": {name: 16 * value / options.samples for name, value in seconds.items()},
    }   # fmt: skip
    if options.held_out:
        others = AFHQ(options.held_out, "cat", size).images
        record["nearest"] = nearest(to_signed(real).to(place), to_signed(others).to(place), drawn["DDPM, all steps"])
    name = f"ddpm_cats_{settings['step']}_steps_{size}_px_seed_{settings['seed']}"
    backward = strips(process, to_signed(real[: max(1, 128 // size)]).to(place), torch.Generator().manual_seed(settings["seed"]))[1]
    record["pictures"] = {
        "samples": picture(f"{name}_samples", drawn["DDPM, all steps"][:16], 4),
        "backward": picture(f"{name}_backward", backward.flatten(0, 1), backward.shape[1]),
    }   # fmt: skip
    file = keep("ddpm_cats", f"{settings['step']} steps, {size} px, seed {settings['seed']}", record)
    print(f"{settings['step']} steps; {record['samples']['DDPM, all steps']}; recorded in {file.name}")


def trained(run: Path) -> dict[str, Any]:
    """From the trainer's tables: the mean loss of every hundred steps, what it measured on the way, and its times."""
    losses, measured, laps = (list(_rows(run / name)) for name in ("losses_by_step.csv", "losses.csv", "times.csv"))
    by_step = [row["loss"] for row in losses]
    last = {row["step"]: row for row in laps}.values()   # a run that was resumed may have a step twice: the last one counts
    timed = sum(row["steps"] for row in last)
    if timed != len(by_step):
        raise SystemExit(f"{run / 'times.csv'} holds the times of {timed:.0f} steps, and the run had {len(by_step)}: its time is not known")
    return {
        "loss_of_every_100_steps": [statistics.fmean(by_step[i : i + 100]) for i in range(0, len(by_step), 100)],
        "loss_of_the_first_steps": by_step[:10],
        "measured": measured,
        "minutes": sum(row["seconds"] for row in last) / 60,
    }


def picture(name: str, images: Tensor, columns: int) -> str:
    """Generated ``images`` (N, C, S, S), ``columns`` in a row, as a PNG below data/results that says what it is. Returns its name."""
    sheet = to_pixels(make_grid(images.cpu(), nrow=columns, pad_value=1)).permute(1, 2, 0)
    info = PngInfo()
    info.add_text("Description", "generated by a diffusion model that was trained on AFHQ's cats; no picture of the data set")
    file = ROOT / "data" / "results" / f"{name}.png"
    Image.fromarray(sheet.numpy()).save(file, optimize=True, pnginfo=info)
    if file.stat().st_size > 200_000:
        raise SystemExit(f"{file} has {file.stat().st_size} bytes, more than 200,000: show fewer pictures")
    return file.name


def nearest(real: Tensor, others: Tensor, samples: Tensor) -> dict[str, float]:
    """Median distance (rms of the pixels) from samples, and from cats never seen, to the nearest training cat or its mirror image."""
    known = torch.cat([real, real.flip(3)]).flatten(1)

    def median(images: Tensor) -> float:
        return (torch.cdist(images.flatten(1), known).min(1).values / known.shape[1] ** 0.5).median().item()

    return {"samples": median(samples), "held_out": median(others), "n_samples": len(samples), "n_held_out": len(others)}


def _rows(file: Path) -> Iterator[dict[str, float]]:
    """The rows of a table with a header; what is empty in a row is left out."""
    with open(file, encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield {name: float(value) for name, value in row.items() if value}


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
