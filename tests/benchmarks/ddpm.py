"""Time, memory and loss of the noise-predicting U-Net beside two others of its size. By hand; not a part of CI.

    python tests/benchmarks/ddpm.py                                         the paired table: step, memory, sampling
    python tests/benchmarks/ddpm.py --profile                               where a training step's time goes
    python tests/benchmarks/ddpm.py --loss AFHQ/train/cat --seeds 0 1 2     validation loss after equal steps and equal time

Networks: ours (DenoisingUNet), peer (the Unet of denoising-diffusion-pytorch) and diffusers (UNet2DModel). The networks take turns, step
by step, on the same images, times, noise and loss, so that a slow spell of the machine meets all of them: compare by ratio. Seconds are
the clock's; CPU seconds, of all threads, say what the work costs where other programs run. Threads that wait sleep (OMP_WAIT_POLICY).
Writes data/results/ddpm_speed.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")   # or two threads on a busy machine spin, waiting for each other: 5 to 20 times slower

import numpy as np
import torch
from measuring import bytes_touched, keep, paired, peaks, processor, shares
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coursekit.data.pixels import to_signed
from coursekit.diffusion.process import Diffusion
from coursekit.diffusion.schedule import NoiseSchedule
from coursekit.diffusion.unet import DenoisingUNet
from coursekit.measure import peak_bytes
from coursekit.runtime import device

SIZE, BATCH, T, DIM, RATE, HELD_OUT = 32, 32, 50, 16, 1e-3, 500


class Times(nn.Module):
    """diffusers' network as one that maps x_t and t to the noise."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t).sample


def network(name: str) -> nn.Module:
    """One of the three by name, with fresh weights. Says how to install what is missing."""
    try:
        if name == "peer":
            from denoising_diffusion_pytorch import Unet
            return Unet(DIM)
        if name == "diffusers":
            from diffusers import UNet2DModel
            down, up = ["DownBlock2D"] * 3 + ["AttnDownBlock2D"], ["AttnUpBlock2D"] + ["UpBlock2D"] * 3
            return Times(UNet2DModel(SIZE, 3, 3, block_out_channels=(16, 32, 64, 96), layers_per_block=1, norm_num_groups=8,
                                     down_block_types=tuple(down), up_block_types=tuple(up), attention_head_dim=32))   # fmt: skip
    except ImportError as error:
        raise SystemExit(f"{name} is missing: .venv/bin/python -m pip install --editable \".[dev,benchmarks]\" ({error})") from error
    return DenoisingUNet(DIM)


def process(model: nn.Module) -> Diffusion:
    return Diffusion(model, image_size=SIZE, schedule=NoiseSchedule.cosine(T)).to(device())


class Training:
    """A network with its optimizer, and what a step has cost."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.diffusion = process(network(name))
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), RATE)
        self.seconds = self.cpu_seconds = 0.0

    def step(self, x_0: Tensor, t: Tensor, noise: Tensor) -> None:
        start, cpu_start = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        self.diffusion.p_loss(x_0, t, noise).backward()
        self.optimizer.step()
        self.seconds, self.cpu_seconds = self.seconds + time.perf_counter() - start, self.cpu_seconds + time.process_time() - cpu_start

    @torch.no_grad()
    def validation(self, images: Tensor) -> float:
        """The L1 loss of held-out images, at times and with noise that are always the same."""
        t, noise = self.diffusion.draw(len(images), torch.Generator().manual_seed(0))
        parts = zip(images.split(100), t.split(100), noise.split(100), strict=True)
        losses = [self.diffusion.eval().p_loss(x_0, times, draws).item() * len(x_0) for x_0, times, draws in parts]
        self.diffusion.train()
        return sum(losses) / len(images)


def draws(images: Tensor, diffusion: Diffusion, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of images, times and noise, the same for every network."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        yield images[chosen.to(images.device)], *diffusion.draw(BATCH, generator)


def losses(folder: Path, names: list[str], seeds: list[int], steps: int) -> None:
    """Train on all images but the last 500, and record the loss of those at every 50 steps."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    if len(files) <= HELD_OUT:
        raise SystemExit(f"{folder} holds {len(files)} images; {HELD_OUT} are held out, so more are needed")
    images = torch.stack([_image(path) for path in files]).to(device())
    for seed in seeds:
        runs = {name: Training(name, seed) for name in names}
        found: dict[str, dict[str, float]] = {name: {} for name in names}
        batches = draws(images[:-HELD_OUT], next(iter(runs.values())).diffusion, seed)
        for step in range(1, steps + 1):
            batch = next(batches)
            for name, run in runs.items():
                run.step(*batch)
                if step % 50 == 0:
                    found[name][str(step)] = run.validation(images[-HELD_OUT:])
                    print(f"seed {seed}, {name:9} step {step:4}: loss {found[name][str(step)]:.4f}, {run.seconds:6.0f} s, "
                          f"{run.cpu_seconds:6.0f} CPU s", flush=True)   # fmt: skip
                    record(f"loss, {name}, seed {seed}", {
                        "images": len(images) - HELD_OUT, "held_out": HELD_OUT, "steps": step, "batch": BATCH,
                        "parameters": _count(run.diffusion), "seconds": run.seconds, "cpu_seconds": run.cpu_seconds,
                        "validation_loss": found[name]})   # fmt: skip


def speed(names: list[str], repeats: int) -> None:
    """Time a training step, all T sampling steps and ten of DDIM for 16 images; print and record medians, quartiles and ratios."""
    runs = {name: Training(name) for name in names}
    for run in runs.values():   # at the first step the last convolution is zero, and a network's answer trivial
        nn.init.normal_(list(run.diffusion.parameters())[-2], std=0.01)
    batch = next(draws(_pixels(), runs[names[0]].diffusion, 0))
    steps: dict[str, Callable[[], Any]] = {name: lambda run=run: run.step(*batch) for name, run in runs.items()}   # type: ignore[misc]
    sampling: dict[str, Callable[[], Any]] = {name: lambda run=run: run.diffusion.sample(16) for name, run in runs.items()}   # type: ignore[misc]
    if "peer" in names:
        steps["peer's own process"], sampling["peer's own process"] = own_process(_pixels())
    ddim: dict[str, Callable[[], Any]] = {name: lambda run=run: run.diffusion.ddim_sample(16, 10) for name, run in runs.items()}   # type: ignore[misc]
    flops, moved = peaks()
    for title, calls, turns in (("training step", steps, repeats), ("sampling, 50 steps", sampling, 3), ("DDIM, 10 steps", ddim, repeats)):
        for name, numbers in paired(calls, turns).items():
            low, middle, high = (1000 * value for value in numbers["quartiles"])
            print(f"{title:19} {name:19} {middle:8.1f} ms ({low:.1f} … {high:.1f}), {1000 * numbers['cpu_seconds']:8.1f} CPU ms, "
                  f"ours / it {numbers['ratio']:.3f} ({numbers['ratio_quartiles'][0]:.3f} … {numbers['ratio_quartiles'][2]:.3f}), "
                  f"by CPU time {numbers['cpu_ratio']:.3f}, n = {turns}", flush=True)   # fmt: skip
            if calls is steps:
                numbers["peak_bytes"] = peak_bytes(calls[name], device())
                with FlopCounterMode(display=False) as counter:
                    calls[name]()
                numbers |= {"flops": counter.get_total_flops(), "bytes": bytes_touched(calls[name])}
                numbers["share_of_peak_flops"] = numbers["flops"] / numbers["seconds"] / flops
                print(f"{'':39} {numbers['peak_bytes'] / 2**20:6.0f} MiB at once, {numbers['flops'] / 1e9:5.1f} GFLOP "
                      f"({numbers['share_of_peak_flops']:.0%} of this machine's rate), {numbers['bytes'] / 1e9:.2f} GB asked")   # fmt: skip
                if device().type == "cuda":   # a CPU's caches hold what a step touches: there it is no share of the memory's rate
                    numbers["share_of_peak_bandwidth"] = numbers["bytes"] / numbers["seconds"] / moved
                    print(f"{'':39} {numbers['share_of_peak_bandwidth']:.0%} of the rate of a copy, if no cache helped")
            if name in runs:
                numbers["parameters"] = _count(runs[name].diffusion)
            record(f"speed, {title}, {name}, {'cuda' if device().type == 'cuda' else f'{torch.get_num_threads()} threads'}", numbers)


def _pixels() -> Tensor:
    """A batch in [−1, 1], for what does not depend on the pixels: time."""
    return torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device()) * 2 - 1


def own_process(images: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A training step and 16 samples as the peer's own GaussianDiffusion does them."""
    from denoising_diffusion_pytorch import GaussianDiffusion

    options = {"image_size": SIZE, "timesteps": T, "objective": "pred_noise", "beta_schedule": "cosine"}
    diffusion = GaussianDiffusion(network("peer"), **options).to(device())
    optimizer = torch.optim.Adam(diffusion.parameters(), RATE)

    def step() -> None:
        optimizer.zero_grad()
        diffusion((images + 1) / 2).backward()   # it scales images in [0, 1] itself
        optimizer.step()

    return step, lambda: diffusion.sample(batch_size=16)


def profiled(names: list[str]) -> None:
    columns = {}
    for name in names:
        run = Training(name)
        batch = next(draws(_pixels(), run.diffusion, 0))
        columns[name] = shares(lambda run=run, batch=batch: run.step(*batch), SIZE)   # type: ignore[misc]
    print(f"{'share of a training step':32}" + "".join(f"{name:>10}" for name in names))
    for kind in columns[names[0]]:
        print(f"{kind:32}" + "".join(f"{columns[name][kind]:10.1%}" for name in names))
    for name in names:
        record(f"profile, {name}", {"share": columns[name]})


def _image(path: Path) -> Tensor:
    """(3, 32, 32) in [−1, 1]: the shorter side reduced to 32 pixels, smoothed, and the middle cut out."""
    with Image.open(path) as image:
        scale = SIZE / min(image.size)
        width, height = (round(scale * side) for side in image.size)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + SIZE, top + SIZE))
    return to_signed(torch.from_numpy(np.array(small)).permute(2, 0, 1))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def record(key: str, numbers: dict[str, Any]) -> None:
    """Put one entry into the record, with what is needed to repeat it."""
    words = ["AFHQ/train/cat" if Path(word).is_dir() else word for word in sys.argv[1:]]
    keep("ddpm_speed", key, {
        "command": " ".join(["python tests/benchmarks/ddpm.py", *words]), "device": processor(), "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"], **numbers,
    })   # fmt: skip


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", type=Path, metavar="FOLDER", help="a folder of images, such as train/cat of AFHQ")
    parser.add_argument("--profile", action="store_true", help="the share of time of each kind of operation")
    parser.add_argument("--networks", nargs="+", choices=["ours", "peer", "diffusers"], help="the first is compared to the rest")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=9, help="turns of the paired table")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.loss:
        losses(options.loss, options.networks or ["ours", "peer"], options.seeds, options.steps)
    elif options.profile:
        profiled(options.networks or ["ours", "peer"])
    else:
        speed(options.networks or ["ours", "peer", "diffusers"], options.repeats)


if __name__ == "__main__":
    main()
