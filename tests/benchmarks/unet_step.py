"""A training step of the U-Net of 31 million parameters: plain float32 beside what might make it faster. By hand; not a part of CI.

    python tests/benchmarks/unet_step.py

All ways start from the same weights, see the same 50 batches of rendered frames, and take turns, so that each step of one stands beside
the same step of the others: compare by ratio. Prints, and writes one entry a way into data/results/unet_step.json: time and memory over
the plain way's, how far the mean losses of the last ten steps lie apart, and how near the plain step comes to the rate at which this
machine multiplies matrices: what is left there is all that float32 can gain with the same multiplications. Half precision is tried
where the processor has it. Five to ten minutes on two cores, with a line every ten steps.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median, quantiles

os.environ.setdefault("OMP_WAIT_POLICY", "passive")   # as in ddpm.py

import torch
from measuring import keep, peaks, processor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from coursekit.data import Augment, Batches, SyntheticPolyps
from coursekit.measure import peak_bytes
from coursekit.runtime import device, seed_everything
from coursekit.segmentation import UNet, bce_dice_loss

WAYS = ("plain", "fused AdamW", "fused AdamW, channels last", "fused AdamW, bfloat16")


def step_of(way: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(images, masks) → the loss, after one step of a network that is the same for all ways."""
    seed_everything(0)
    network, place = UNet(3, 1).to(device()), device().type
    if "channels last" in way:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2, fused="fused" in way)

    def step(images: Tensor, masks: Tensor) -> Tensor:
        if "channels last" in way:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(place, torch.bfloat16, enabled="bfloat16" in way):
            logits = network(images)
        loss = bce_dice_loss(logits.float(), masks, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def has_bfloat16() -> bool:
    """Whether the processor calculates in bfloat16 and does not emulate it."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    ways = [way for way in WAYS if "bfloat16" not in way or has_bfloat16()]
    steps = {way: step_of(way) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    generator = torch.Generator().manual_seed(0)
    frames = SyntheticPolyps(options.steps * options.batch_size, options.size)
    batches = Batches(frames, options.batch_size, generator=generator, device=device(), augment=Augment())
    for number, (images, masks) in enumerate(batches, 1):
        for way in ways:
            start = time.perf_counter()
            losses[way].append(steps[way](images, masks).item())
            seconds[way].append(time.perf_counter() - start)
        if number % 10 == 0:
            print(f"step {number} of {options.steps}, {sum(map(sum, seconds.values())):.0f} s", flush=True)
    memory = {way: peak_bytes(partial(steps[way], images, masks), device()) for way in ways}
    with FlopCounterMode(display=False) as counter:
        steps["plain"](images, masks)
    flops = counter.get_total_flops()
    share = flops / median(seconds["plain"][1:]) / peaks()[0]
    print(f"plain: {flops / 1e9:.0f} GFLOP, {share:.0%} of this machine's rate in a matrix product")
    last = {way: sum(losses[way][-10:]) / 10 for way in ways}
    for way in ways[1:]:
        ratios = [a / b for a, b in zip(seconds["plain"][1:], seconds[way][1:], strict=True)]
        entry = {
            "command": f"python tests/benchmarks/unet_step.py --size {options.size} --batch-size {options.batch_size}",
            "device": processor(), "threads": torch.get_num_threads(), "seed": 0, "n": len(ratios), "bfloat16_here": has_bfloat16(),
            "times_faster_than_plain": median(ratios), "quartiles": quantiles(ratios, n=4, method="inclusive"),
            "memory_over_plain": memory[way] / memory["plain"], "plain_seconds_a_step": median(seconds["plain"][1:]),
            "plain_gflops": flops / 1e9, "plain_share_of_matrix_product_rate": share,
            "loss_of_the_last_ten_steps": last[way], "plain_loss_of_the_last_ten_steps": last["plain"],
        }   # fmt: skip
        keep("unet_step", way, entry)
        print(f"{way}: {entry['times_faster_than_plain']:.2f} times as fast, memory {entry['memory_over_plain']:.2f}, "
              f"loss {last[way]:.4f} against {last['plain']:.4f}")   # fmt: skip


if __name__ == "__main__":
    main()
