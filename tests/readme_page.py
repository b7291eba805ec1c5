"""What README.md shows of the project's results: a picture from the notebooks' own outputs, and tables from data/results.

    python tests/readme_page.py

Writes docs/explorers.png and what stands between the <!-- results --> lines of README.md. test_readme.py keeps the tables in step.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("02_diffusion_1d", "03_segmentation", "04_vae", "05_ddpm")
BETWEEN = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
Entry = dict[str, Any]
GAP = 40   # pixels between explorers


def picture() -> Image.Image:
    """The last explorer of each notebook that is shown, as its snapshot cell has it, one below the other."""
    frames = []
    for name in SHOWN:
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
        outputs = [o for cell in cells if ".snapshot(" in "".join(cell["source"]) for o in cell.get("outputs", [])]
        frames.append(Image.open(io.BytesIO(base64.b64decode(outputs[-1]["data"]["image/png"]))).convert("RGB"))
    height = sum(f.height for f in frames) + GAP * (len(frames) - 1)
    sheet = Image.new("RGB", (max(f.width for f in frames), height), "white")
    top = 0
    for frame in frames:
        sheet.paste(frame, (0, top))
        top += frame.height + GAP
        ImageDraw.Draw(sheet).line((0, top - GAP // 2, sheet.width, top - GAP // 2), "silver", 2)   # below the last it is outside
    return sheet.quantize(128)


def tables() -> str:
    """All that is on record, as Markdown."""
    return "\n".join([*_polyps(), *_vae(), *_cats(), *_speed(), *_explorers()]) + "\n"


def _record(name: str) -> dict[str, Entry]:
    file = ROOT / "data" / "results" / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}   # a run that has not been made yet has no row


def _table(title: str, heads: str, rows: list[list[Any]]) -> list[str]:
    """A titled table; ``heads`` are separated by bars. Nothing where there are no rows."""
    if not rows:
        return []
    columns = heads.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"**{title}**", "", *("| " + " | ".join(str(cell).strip() for cell in line) + " |" for line in lines), ""]


def _polyps() -> list[str]:
    """A row for each network and data set, its seeds together."""
    groups: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for key, entry in _record("polyps").items():
        groups[entry["data"], entry["size"], entry["epochs"], key.split(",")[0], entry["device"]].append(entry)
    rows = []
    for (data, size, epochs, model, place), same in sorted(groups.items()):
        first, scores = same[0], [entry["test_iou"] for entry in same]
        low, high = first["test_iou_interval_95"]
        score = f"{scores[0]:.3f} (95 %: {low:.3f}–{high:.3f})" if len(scores) < 3 else f"{fmean(scores):.3f} ± {stdev(scores):.3f}"
        minutes = f"{fmean(entry['training_cpu_minutes'] for entry in same):.0f} on {place.replace('1 CPU cores', 'one core')}"
        size_of = f"{first['parameters'] / 1e6:.2f} M"
        baseline = f"{first['baselines']['mean mask']:.3f}"
        name = model.replace("unet", "U-Net").replace("vit", "ViT").replace("smp", "smp.Unet, ResNet-18")
        rows.append([f"{data}, {size} px", name, size_of, epochs, minutes, first["images"][2], len(same), score, baseline])
    heads = "data | network | parameters | epochs | CPU minutes | n | seeds | test IoU | IoU of the mean mask"
    return _table("Segmentation (notebook 03), mean IoU of the test images, ± standard deviation over seeds; split 60/20/20", heads, rows)


def _vae() -> list[str]:
    rows = []
    for key, entry in _record("mnist_vae").items():
        pca = f"{entry['pca_log_likelihood']:.2f}" if "pca_log_likelihood" in entry else "–"
        rows.append([key, entry["n"], f"{entry['elbo']:.2f}", f"{entry['importance_bound']:.2f}, K = {entry['samples']}", pca])
    return _table("VAE (notebook 04), held-out MNIST digits, nats a digit", "run | n | ELBO | importance bound | PCA, exact", rows)


def _cats() -> list[str]:
    rows = []
    for key, entry in _record("ddpm_cats").items():
        found, loss = entry["samples"]["DDPM, all steps"], entry["loss_of_every_100_steps"][-1]
        rows.append([key, f"{entry['minutes']:.0f}, {entry['device']}", f"{loss:.3f}", found["n_generated"], f"{found['frechet']:.2f}",
                     f"{found['kernel']:.3f}", f"{found['floor_frechet']:.2f} and {found['floor_kernel']:.4f}"])   # fmt: skip
    title = "DDPM (notebook 05), AFHQ's cats at 32×32; features of a small network that was trained on them, not Inception's"
    heads = "run | minutes by the clock, pauses included | last loss | n | Fréchet | kernel | both, of real cats against real cats"
    return _table(title, heads, rows)


def _speed() -> list[str]:
    """Ratios, which the machine's slow spells leave alone."""
    rows, speed = [], _record("ddpm_speed")
    others = {"peer's own process": "denoising-diffusion-pytorch", "diffusers": "diffusers"}
    for key in (key for key in speed if key.startswith("speed, ") and ", ours, " in key):
        for short, name in others.items():
            if entry := speed.get(key.replace(", ours, ", f", {short}, ")):
                what = key.removeprefix("speed, ").partition(", ours")[0]
                rows.append(_ratio(f"DDPM, {what}", name, entry, entry["ratio"], entry["ratio_quartiles"]))
    for key, entry in _record("frechet_speed").items():
        found = entry["sqrtm"]
        row = _ratio(f"Fréchet distance, {key}", "SciPy's sqrtm", {**entry, "n": found["n"]}, found["ratio"], found["ratio_quartiles"])
        rows.append(row)
    for key, entry in _record("unet_step").items():
        inverse = [1 / value for value in reversed(entry["quartiles"])]
        rows.append(_ratio(f"step of the 31 M U-Net, {key}", "plain float32", entry, 1 / entry["times_faster_than_plain"], inverse))
    parts = {"patchwise": "forward and backward", "unet": "forward and backward", "feeding": "feeding an epoch"}
    for key, entry in ((key, entry) for key, entry in _record("parts_speed").items() if key in parts):
        rows.append(_ratio(f"{parts[key]}: {entry['what']}", entry["over"], entry, entry["ratio"], entry["ratio_quartiles"]))
    title = "Speed, taken in turns: our time over the other's, median (quartiles)"
    return _table(title, "what | over | ratio | n | machine, threads, date", rows)


def _explorers() -> list[str]:
    """What a reader waits for: the slowest slider's median. Python's share of it is the frame."""
    frames = _record("parts_speed").get("explorers", {}).get("milliseconds_a_frame", {})
    rows = []
    for name, entry in _record("browser_latency").items():
        slowest = max(entry["milliseconds"].values())
        rows.append([name, f"{frames.get(name, math.nan):.0f}", f"{slowest:.0f}", entry["n"], f"{entry['device']}, {entry['date']}"])
    title = "Explorers: milliseconds from a key press on the slowest slider to the picture in Chromium, medians"
    return _table(title, "explorer | a frame | key press to picture | n | machine, date", rows)


def _ratio(what: str, over: str, entry: Entry, ratio: float, quartiles: list[float]) -> list[Any]:
    machine = f"{entry['device']}, {entry['threads']}, {entry.get('date', 'before dates were kept')}"
    return [what, over, f"{ratio:.2f} ({quartiles[0]:.2f}–{quartiles[-1]:.2f})", entry["n"], machine]


def main() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (ROOT / "README.md").write_text(BETWEEN.sub(lambda found: found[1] + tables() + found[2], text), "utf-8")
    picture().save(ROOT / "docs" / "explorers.png", optimize=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()   # --help does nothing else, and an argument is refused
    main()
