"""Train one network to find polyps, and record what it reaches: the runs behind the tables of notebook 03.

    python tests/records/polyps.py unet --data KVASIR-SEG --epochs 50 --seed 0
    python tests/records/polyps.py vit --data built-in --epochs 20

Split 60/20/20 by name, AdamW with a one-cycle rate, BCE + Dice, flips, turns, scale and colour; the last weights are tested, and the
validation part chooses nothing. Killed or stopped, the same line goes on from the last checkpoint (below --work). Writes one entry of
data/results/polyps.json; a run that went on after a stop says so there. Not a part of CI.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from recording import ROOT, keep
from torch import nn
from torch.utils.data import Subset

from coursekit.data import Augment, Batches, KvasirSEG, Pairs, SyntheticPolyps, split
from coursekit.runtime import device, seed_everything
from coursekit.segmentation import SegmentViT, UNet, bce_dice_loss, dice, iou
from coursekit.training import Checkpoints, check_finite, save_weights, steps

MODELS = {
    "unet": lambda size: UNet(3, 1, base_channels=16),
    "unet without skips": lambda size: UNet(3, 1, base_channels=16, skips=False),
    "vit": lambda size: SegmentViT(size, 8, dim=192, depth=6, heads=6),
    "vit without positions": lambda size: SegmentViT(size, 8, dim=192, depth=6, heads=6, positions="none"),
    "smp": lambda size: smp.Unet("resnet18", encoder_weights=None),
}


class Standardized(nn.Module):
    """Each channel with the training images' mean 0 and standard deviation 1; kept with the weights."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


@torch.no_grad()
def predict(model: nn.Module, part: Batches) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Probabilities and masks of all images, and the mean loss."""
    model.eval()
    outputs = [(model(images), masks) for images, masks in part]
    logits, masks = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
    return logits.sigmoid(), masks, bce_dice_loss(logits, masks, 1.0).item()


def main() -> None:
    options = _options()
    data: Pairs = SyntheticPolyps(1000, options.size) if options.data == "built-in" else KvasirSEG(options.data, options.size)
    parts = split(data, (0.6, 0.2, 0.2), seed=0)   # one split for all seeds: they differ in weights and draws
    model, history, folder = trained(options, *parts[:2])
    save_weights(model, folder / "weights.safetensors", {"model": options.model, "size": options.size})
    record = {
        "command": "python tests/records/polyps.py " + " ".join(_public(sys.argv[1:])),
        "data": options.data if options.data == "built-in" else "Kvasir-SEG",
        "images": [len(part) for part in parts], "size": options.size, "seed": options.seed, "epochs": options.epochs,
        "device": torch.cuda.get_device_name() if device().type == "cuda" else f"{torch.get_num_threads()} CPU cores",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_minutes": sum(history["seconds"]) / 60, "training_cpu_minutes": sum(history["cpu_seconds"]) / 60,
        **tested(model, parts[0], Batches(parts[2], 50, device=device(), shuffle=False)), "history": history,
    }   # fmt: skip
    file = keep("polyps", f"{options.model}, {record['data']}, {options.size} px, seed {options.seed}", record)
    print(f"test IoU {record['test_iou']:.4f}, {record['training_minutes']:.1f} minutes; recorded in {file.name}")


def trained(options: argparse.Namespace, train: Subset, validation: Subset) -> tuple[nn.Module, dict[str, list], Path]:
    """The model after all epochs, what was seen on the way, and the folder of the run."""
    generator, place = seed_everything(options.seed), device()
    batches = Batches(train, options.batch_size, generator=generator, device=place, augment=Augment(degrees=20, scale=1.3), drop_last=True)
    held_out = Batches(validation, 50, device=place, shuffle=False)
    pixels = torch.stack([image for image, _ in train]).transpose(0, 1).flatten(1)
    model = nn.Sequential(Standardized(pixels.mean(1), pixels.std(1)), MODELS[options.model](options.size)).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * len(batches))
    names = ("train_loss", "validation_loss", "validation_iou", "seconds", "cpu_seconds", "resumed_after")
    history: dict[str, list] = {name: [] for name in names}
    settings = {key: str(value) for key, value in vars(options).items() if key != "work"}
    folder = options.work / "-".join([options.model.replace(" ", "_"), Path(options.data).name, str(options.size), str(options.seed)])
    run = Checkpoints(folder, {"model": model, "optimizer": optimizer, "rate": rate, "generator": generator, "history": history}, settings)
    done = max(run.saved(), default=0)
    for epoch in steps(options.epochs, run, every=2):
        if done and history["resumed_after"][-1:] != [done]:
            history["resumed_after"].append(done)
        start, cpu_start, losses = time.perf_counter(), time.process_time(), []
        model.train()
        for images, masks in batches:
            loss = bce_dice_loss(model(images), masks, 1.0)
            check_finite(loss, epoch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            losses.append(loss.item())
        history["seconds"].append(time.perf_counter() - start)
        history["cpu_seconds"].append(time.process_time() - cpu_start)   # of all threads: says what a busy machine took away
        history["train_loss"].append(sum(losses) / len(losses))
        if epoch % 4 == 0 or epoch == options.epochs:
            probabilities, masks, validation_loss = predict(model, held_out)
            history["validation_loss"].append(validation_loss)
            history["validation_iou"].append(iou(probabilities, masks).mean().item())
            print(f"epoch {epoch}: {history['seconds'][-1]:.0f} s, loss {history['train_loss'][-1]:.3f}, "
                  f"validation {validation_loss:.3f}, IoU {history['validation_iou'][-1]:.3f}", flush=True)   # fmt: skip
    return model, history, folder


def tested(model: nn.Module, train: Subset, test: Batches) -> dict[str, Any]:
    """Scores of the held-out images, by size of the polyp, and what the baselines reach there."""
    probabilities, masks, loss = predict(model, test)
    scores, share = iou(probabilities, masks), masks.flatten(1).mean(1)
    low, high = share.quantile(torch.tensor([1 / 3, 2 / 3]))
    sizes = {"small": share <= low, "medium": (share > low) & (share <= high), "large": share > high}
    draws = torch.randint(len(scores), (10_000, len(scores)), generator=torch.Generator().manual_seed(0))
    known = torch.stack([mask for _, mask in train])
    levels = {level: iou(known.mean(0).expand_as(known), known, level).mean() for level in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)}
    mean_mask = iou(known.mean(0).expand_as(masks), masks, max(levels, key=lambda level: levels[level]))   # at its best threshold
    return {
        "test_loss": loss,
        "test_iou": scores.mean().item(),
        "test_iou_interval_95": scores[draws].mean(1).quantile(torch.tensor([0.025, 0.975]).to(scores)).tolist(),
        "test_dice": dice(probabilities, masks).mean().item(),
        "test_iou_by_size": {name: scores[chosen].mean().item() for name, chosen in sizes.items()},
        "size_terciles": [low.item(), high.item()],
        "test_iou_quartiles": scores.quantile(torch.tensor([0.25, 0.5, 0.75]).to(scores)).tolist(),
        "baselines": {"all foreground": iou(torch.ones_like(masks), masks).mean().item(), "mean mask": mean_mask.mean().item()},
    }


def _options() -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--data", default="built-in", help="a folder with images/ and masks/, or built-in (1000 rendered frames)")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "runs")
    return parser.parse_args()


def _public(words: list[str]) -> list[str]:
    """The command without the place where this machine keeps the data."""
    words = ["KVASIR-SEG" if i and words[i - 1] == "--data" and word != "built-in" else word for i, word in enumerate(words)]
    return [f"'{word}'" if " " in word else word for word in words]


if __name__ == "__main__":
    main()
