"""What a run tells of itself: the loss of every step, how far its samples are from the pictures, and the time it took."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from coursekit.data import DataError
from coursekit.diffusion.batches import Pictures
from coursekit.diffusion.process import Diffusion
from coursekit.diffusion.settings import Settings
from coursekit.files import write_whole
from coursekit.runtime import mode

Say = Callable[[str], None]
Row = dict[str, float]


class History:
    """What a run has seen so far, a part of its checkpoints: the loss of every step, and a row a checkpoint."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rows: list[Row] = []

    def add_row(self, step: int, more: Mapping[str, float]) -> Row:
        """Step, the mean loss since the row before, and ``more``."""
        since = self.losses[int(self.rows[-1]["step"]) if self.rows else 0 : step]
        self.rows.append({"step": step, "loss": math.fsum(since) / len(since), **more})
        return self.rows[-1]

    def table(self) -> str:
        """The rows as CSV; a column that a row lacks is left empty there."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [",".join(shown(row[name], 6) if name in row else "" for name in columns) for row in self.rows]
        return "\n".join([",".join(columns), *lines]) + "\n"

    def by_step(self) -> str:
        """The loss of every step as CSV."""
        return "".join(["step,loss\n", *(f"{step},{loss:.6g}\n" for step, loss in enumerate(self.losses, 1))])

    def state_dict(self) -> dict[str, Any]:
        """The rows, and the losses as float64 (steps,), for a checkpoint."""
        return {"rows": self.rows, "losses": torch.tensor(self.losses, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.rows, self.losses = list(state["rows"]), state["losses"].tolist()


class Clock:
    """What is said of the time. It goes into ``times.csv``, and nowhere where a resumed run must equal the one never stopped.

    A line of it: a step, how many steps since the line before, and the seconds that they took. A run that was killed between a line and
    the checkpoint has a step twice, and the last line counts; then the steps add up to the whole run.
    """

    def __init__(self, done: int, settings: Settings, bar: tqdm) -> None:
        self.written, self.step, self.settings, self.bar, self.start = done, done, settings, bar, time.perf_counter()

    def tick(self, loss: float) -> None:
        """One step is done."""
        self.step += 1
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(1)

    def lap(self) -> str:
        """Write a line on the steps since the last one, samples and measuring included; returns the rate and the time left, in words."""
        seconds, steps_done = time.perf_counter() - self.start, self.step - self.written
        if not steps_done:
            return ""
        file = self.settings.save_folder / "times.csv"
        before = file.read_bytes() if file.exists() else b"step,steps,seconds\n"
        write_whole(file, before + f"{self.step},{steps_done},{seconds:.3f}\n".encode())
        self.written, self.start = self.step, time.perf_counter()
        left = (self.settings.train_steps - self.step) * seconds / steps_done
        return f"{steps_done * self.settings.batch_size / seconds:.0f} pictures/s, {left / 60:.1f} min left"


def measure_of(settings: Settings, pictures: Pictures, device: torch.device, say: Say) -> Callable[[Diffusion], Row]:
    """Process → how far its samples are from the pictures, and the pictures from themselves.

    The distance is the FID in full mode, for RGB, where Inception's weights can be had; else it is named after the features of our own.
    """
    from coursekit.fid import compare, inception_features, train_features  # it loads clean-fid, which most runs do without

    names = {"frechet": "fid", "kernel": "kid", "floor_frechet": "fid_floor", "floor_kernel": "kid_floor"}
    features: Callable[[Tensor], Tensor] | None = None
    if mode() == "full" and pictures.images.shape[1] == 3:
        try:
            inception_features(pictures.images[:1])
            features = _remembered(lambda images: inception_features(images, device), len(pictures.images))
        except DataError as error:
            say(str(error))
    if features is None:
        generator = Generator().manual_seed(settings.seed)
        net = train_features(pictures.images, pictures.labels, generator=generator)
        features = _remembered(net.features, len(pictures.images))
        names = {name: f"feature_{name}" for name in names}
    say(f"{' and '.join(names.values())}: of {settings.fid_samples} samples, against the pictures at {settings.image_size} pixels")

    def measure(process: Diffusion) -> Row:
        generator, count = Generator().manual_seed(settings.seed), settings.fid_samples
        samples = torch.cat([process.sample(min(64, count - first), generator).cpu() for first in range(0, count, 64)])
        return {names.get(name, name): value for name, value in compare(pictures.images, samples, features).items()}

    return measure


def shown(number: float, digits: int) -> str:
    """Counts whole, measurements with as many digits."""
    return f"{number}" if isinstance(number, int) else f"{number:.{digits}g}"


def _remembered(features: Callable[[Tensor], Tensor], first: int) -> Callable[[Tensor], Tensor]:
    """The same, but the features of the ``first`` images are kept: the pictures come back at each checkpoint, the samples never do."""
    seen: dict[str, Tensor] = {}

    def look(images: Tensor) -> Tensor:
        key = hashlib.sha256(images.numpy().data).hexdigest()
        if key in seen:
            return seen[key]
        found = features(images).cpu()
        if sum(map(len, seen.values())) < first:
            seen[key] = found
        return found

    return look
