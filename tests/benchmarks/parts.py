"""What the parts of the workbook cost beside the usual way, and how long a frame of each explorer takes. By hand; not a part of CI.

    python tests/benchmarks/parts.py

The ways of a comparison take turns: compare by ratio. Memory is the most that a call held in tensors. Writes one entry a comparison into
data/results/parts_speed.json. The others: ddpm.py, frechet.py, unet_step.py; tests/browser reports what a reader waits for in a browser.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")   # as in ddpm.py

import segmentation_models_pytorch as smp
import torch
from measuring import keep, paired, processor
from PIL import Image
from torch import Tensor, nn

from coursekit import explore
from coursekit.data import Augment, Batches, SyntheticPolyps, digits
from coursekit.data.pixels import to_pixels
from coursekit.data.polyps import decode_pair
from coursekit.diffusion import NoiseSchedule
from coursekit.measure import median_seconds, peak_bytes
from coursekit.patchwise import PatchwiseMLP, as_convnet
from coursekit.segmentation import UNet, bce_dice_loss
from coursekit.vae import VAE

REPEATS = 9
Ways = dict[str, Callable[[], Any]]


def patchwise() -> Ways:
    """Forward and backward of the convnet, and of the MLP that it equals, k = 9 on 256×256."""
    mlp = PatchwiseMLP(9, (3, 32, 32, 1))
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))

    def both_ways(network: nn.Module) -> None:
        network(x).square().sum().backward()

    return {"convnet": partial(both_ways, as_convnet(mlp)), "patchwise MLP": partial(both_ways, mlp)}


def unet() -> Ways:
    """A training step's forward and backward at 128×128, batch 4: the handout's U-Net beside smp's with its ResNet-34."""
    frames = SyntheticPolyps(4, 128)
    images, masks = _stacked(frames)

    def step(network: nn.Module) -> None:
        bce_dice_loss(network(images), masks, 1.0).backward()

    return {"UNet(3, 1)": partial(step, UNet(3, 1)), "smp.Unet, resnet34": partial(step, smp.Unet("resnet34", encoder_weights=None))}


def feeding() -> Ways:
    """An epoch of 64 augmented pairs at 128×128 out of the array, and the same pairs decoded from JPEG files of 620×530."""
    frames = SyntheticPolyps(64, 128)
    batches = Batches(frames, 16, generator=torch.Generator().manual_seed(0), augment=Augment())
    folder = Path(tempfile.mkdtemp())
    files = []
    for number, (image, mask) in enumerate(zip(*_stacked(frames), strict=True)):
        pair = folder / f"{number}.jpg", folder / f"{number}-mask.jpg"
        for path, picture in zip(pair, (image, mask.expand(3, -1, -1)), strict=True):
            pixels = to_pixels(2 * picture - 1).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).resize((620, 530)).save(path, quality=95)
        files.append(pair)
    return {"from the array": lambda: list(batches), "decoding each epoch": lambda: [decode_pair(*pair, 128) for pair in files]}


def frames() -> dict[str, Callable[[], Any]]:
    """A frame of each explorer, where its controls stand at first."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(0)
    polyps = SyntheticPolyps(50, 64)
    pictures, masks = _stacked(polyps)
    states, ends = torch.randn(51, 4, 1, 8, 8, generator=generator), torch.randn(50, 4, 1, 8, 8, generator=generator)
    explorers = (
        explore.PatchExplorer(), explore.ScheduleExplorer(), explore.ReverseKernelExplorer(), explore.TrajectoryExplorer(),
        explore.ThresholdExplorer(pictures, torch.rand(masks.shape, generator=generator), masks),
        explore.LatentExplorer(VAE(8, 2), images[:1000], labels[:1000]),
        explore.SamplingExplorer(states, ends, NoiseSchedule.cosine(50)),
    )   # fmt: skip
    return {type(explorer).__name__: explorer.frame for explorer in explorers}


def _stacked(frames: SyntheticPolyps) -> tuple[Tensor, Tensor]:
    pairs = [frames[i] for i in range(len(frames))]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()   # --help does nothing else, and an argument is refused
    common = {"command": "python tests/benchmarks/parts.py", "device": processor(), "threads": torch.get_num_threads(), "n": REPEATS}
    for comparison in (patchwise, unet, feeding):
        torch.manual_seed(0)
        ways = comparison()
        found = paired(ways, REPEATS)
        first, other = ways
        memory = {name: peak_bytes(way) / 2**20 for name, way in ways.items()}
        entry = {"what": first, "over": other, "ratio": found[other]["ratio"], "ratio_quartiles": found[other]["ratio_quartiles"],
                 "mebibytes": memory, "seconds": {name: found[name]["seconds"] for name in ways}}   # fmt: skip
        keep("parts_speed", comparison.__name__, {**common, "is": comparison.__doc__, **entry})
        print(f"{first} over {other}: {entry['ratio']:.3f}; MiB {memory[first]:.0f} and {memory[other]:.0f}", flush=True)
    seconds = median_seconds(frames(), REPEATS)
    keep("parts_speed", "explorers", {**common, "milliseconds_a_frame": {name: 1e3 * value for name, value in seconds.items()}})
    print(f"a frame: {median(seconds.values()) * 1e3:.0f} ms, the slowest {max(seconds.values()) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
