"""Train one network to find polyps, and record what it reaches: the runs behind the tables of notebook 03.

    python tests/records/polyps.py unet --data KVASIR-SEG --epochs 50 --seed 0
    python tests/records/polyps.py vit --data built-in --epochs 20

Split 60/20/20 by name, AdamW with a one-cycle rate, BCE + Dice, flips, turns, scale and colour; the last weights are tested, and the
validation part chooses nothing. Killed or stopped, the same line goes on from the last checkpoint (below --work). Writes one entry of
data/results/polyps.json; a run that went on after a stop says so there. Not a part of CI.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from recording import ROOT, keep
from torch import nn
from torch.utils.data import Subset

from coursekit.data import Augment, Batches, KvasirSEG, Pairs, SyntheticPolyps, near_duplicates, split
from coursekit.runtime import device, seed_everything
from coursekit.segmentation import SegmentViT, UNet, bce_dice_loss, dice, iou
from coursekit.training import Checkpoints, check_finite, load_weights, save_weights, saved_settings, steps

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
    if options.reload:
        return print(reloaded(options))
    data = dataset(options)
    parts = split(data, (0.6, 0.2, 0.2), seed=0)   # one split for all seeds: they differ in weights and draws
    model, history, folder = trained(options, *parts[:2])
    save_weights(model, folder / "weights.safetensors", {"model": options.model, "size": options.size})
    again = [sys.executable, __file__, options.model, "--data", options.data, "--size", str(options.size), "--reload", str(folder)]
    record = {
        "command": "python tests/records/polyps.py " + " ".join(_public(sys.argv[1:])),
        "data": options.data if options.data == "built-in" else "Kvasir-SEG",
        "images": [len(part) for part in parts], "size": options.size, "seed": options.seed, "epochs": options.epochs, "lr": options.lr,
        "device": torch.cuda.get_device_name() if device().type == "cuda" else f"{torch.get_num_threads()} CPU cores",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_minutes": sum(history["seconds"]) / 60, "training_cpu_minutes": sum(history["cpu_seconds"]) / 60,
        **tested(model, parts), **look_alikes(model, data, parts),
        "fresh_process_same_masks": subprocess.check_output(again, text=True).strip() == masks_digest(model, parts[2]),
        "history": history,
    }   # fmt: skip
    file = keep("polyps", f"{options.model}, {record['data']}, {options.size} px, seed {options.seed}", record)
    print(f"test IoU {record['test_iou']:.4f}, {record['training_minutes']:.1f} minutes; recorded in {file.name}")


def trained(options: argparse.Namespace, train: Subset, validation: Subset) -> tuple[nn.Module, dict[str, list], Path]:
    """The model after all epochs, what was seen on the way, and the folder of the run."""
    generator, place = seed_everything(options.seed), device()
    batches = Batches(train, options.batch_size, generator=generator, device=place, augment=Augment(degrees=20, scale=1.3), drop_last=True)
    pixels = torch.stack([image for image, _ in train]).transpose(0, 1).flatten(1)
    model = nn.Sequential(Standardized(pixels.mean(1), pixels.std(1)), MODELS[options.model](options.size)).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * len(batches))
    names = ("train_loss", "validation_loss", "validation_iou", "seconds", "cpu_seconds", "resumed_after")
    history: dict[str, list] = {name: [] for name in names}
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("work", "reload")}
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
            probabilities, masks, validation_loss = predict(model, held_out(validation))
            history["validation_loss"].append(validation_loss)
            history["validation_iou"].append(iou(probabilities, masks).mean().item())
            print(f"epoch {epoch}: {history['seconds'][-1]:.0f} s, loss {history['train_loss'][-1]:.3f}, "
                  f"validation {validation_loss:.3f}, IoU {history['validation_iou'][-1]:.3f}", flush=True)   # fmt: skip
    return model, history, folder


def tested(model: nn.Module, parts: Sequence[Subset]) -> dict[str, Any]:
    """Scores of the held-out images, by thirds of the polyps' size, and what the baselines reach there."""
    probabilities, masks, loss = predict(model, held_out(parts[2]))
    scores = iou(probabilities, masks)
    sizes = dict(zip(("small", "medium", "large"), masks.flatten(1).mean(1).argsort().tensor_split(3), strict=True))
    draws = torch.randint(len(scores), (10_000, len(scores)), generator=torch.Generator().manual_seed(0))
    known = torch.stack([mask for _, mask in parts[0]])
    levels = {level / 20: iou(known.mean(0).expand_as(known), known, level / 20).mean() for level in range(1, 20)}
    mean_mask = iou(known.mean(0).expand_as(masks), masks, max(levels, key=lambda level: levels[level]))   # at its best threshold
    return {
        "test_loss": loss,
        "test_iou": scores.mean().item(),
        "test_iou_interval_95": scores[draws].mean(1).quantile(torch.tensor([0.025, 0.975]).to(scores)).tolist(),
        "test_dice": dice(probabilities, masks).mean().item(),
        "test_iou_by_size": {name: scores[chosen].mean().item() for name, chosen in sizes.items()},
        "test_iou_quartiles": scores.quantile(torch.tensor([0.25, 0.5, 0.75]).to(scores)).tolist(),
        "baselines": {"all foreground": iou(torch.ones_like(masks), masks).mean().item(), "mean mask": mean_mask.mean().item()},
    }


def look_alikes(model: nn.Module, data: Pairs, parts: Sequence[Subset]) -> dict[str, Any]:
    """How many pairs of frames show the same scene, how many of them across the split, and the score without the known ones."""
    found = near_duplicates(data)
    part_of = {i: number for number, part in enumerate(parts) for i in part.indices}
    across = [pair[:2] for pair in found if part_of[pair[0]] != part_of[pair[1]]]
    known = {i for pair in across for i in pair}   # each has its twin in another part
    probabilities, masks, _ = predict(model, held_out(parts[2]))
    new = [place for place, i in enumerate(parts[2].indices) if i not in known]
    without = iou(probabilities[new], masks[new]).mean().item()
    return {"look_alikes": len(found), "look_alikes_across": len(across), "test_iou_without_look_alikes": without, "without": len(new)}


def held_out(part: Subset) -> Batches:
    return Batches(part, 50, device=device(), shuffle=False)


def masks_digest(model: nn.Module, part: Subset) -> str:
    return hashlib.sha256((predict(model, held_out(part))[0] >= 0.5).numpy().tobytes()).hexdigest()


def reloaded(options: argparse.Namespace) -> str:
    """The digest of the test masks, by the weights in a folder: for a process that has only these."""
    file = options.reload / "weights.safetensors"
    settings = saved_settings(file)
    model = nn.Sequential(Standardized(torch.zeros(3), torch.ones(3)), MODELS[settings["model"]](settings["size"])).to(device())
    load_weights(model, file)
    return masks_digest(model, split(dataset(options), (0.6, 0.2, 0.2), seed=0)[2])


def dataset(options: argparse.Namespace) -> Pairs:
    return SyntheticPolyps(1000, options.size) if options.data == "built-in" else KvasirSEG(options.data, options.size)


def _options() -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--data", default="built-in", help="a folder with images/ and masks/, or built-in (1000 rendered frames)")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, help="highest learning rate; default 2e-3, for the ViTs 5e-4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "runs")
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)   # only print the digest of the test masks by these weights
    options = parser.parse_args()
    # At 2e-3 the ViT had found nothing after 12 epochs of Kvasir-SEG.
    options.lr = options.lr or (5e-4 if options.model.startswith("vit") else 2e-3)
    return options


def _public(words: list[str]) -> list[str]:
    """The command without the places where this machine keeps data and checkpoints."""
    if "--work" in words:
        words = words[: words.index("--work")] + words[words.index("--work") + 2 :]
    words = ["KVASIR-SEG" if i and words[i - 1] == "--data" and word != "built-in" else word for i, word in enumerate(words)]
    return [f"'{word}'" if " " in word else word for word in words]


if __name__ == "__main__":
    main()
