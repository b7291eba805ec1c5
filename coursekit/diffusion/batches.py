"""The pictures that a run trains on, and the draws of its steps: the same ones, whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from coursekit.data import AFHQ, digits
from coursekit.data.pixels import to_signed
from coursekit.diffusion.process import Diffusion
from coursekit.diffusion.settings import Settings, SettingsError


@dataclass(frozen=True)
class Pictures:
    """``images``: uint8 (N, C, S, S). ``labels``: (N,), where they have any. ``mirror``: whether a mirrored one is as good."""

    title: str
    images: Tensor
    labels: Tensor | None
    mirror: bool

    @classmethod
    def load(cls, settings: Settings) -> Pictures:
        """The folder that the settings name, or the built-in digits where they name none.

        Raises ``DataError``, and ``SettingsError`` for a class of a folder that is not named.
        """
        size = settings.image_size
        if settings.data_path is None:
            if settings.data_class != Settings.data_class:   # not the default
                raise SettingsError(f"--data_class {settings.data_class} needs --data_path; without it, the pictures are digits")
            grey, labels = digits()
            if size != grey.shape[-1]:
                grey = F.interpolate(grey, (size, size), mode="bilinear", antialias=True)
            return cls("no data_path: scikit-learn's digits", (grey * 255).round().to(torch.uint8), labels, mirror=False)
        folder = AFHQ(settings.data_path, settings.data_class, size, skip_bad=settings.skip_bad)
        return cls(f"{settings.data_path}, {settings.data_class}", folder.images, None, mirror=True)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must find again: the pictures' shape, and a digest over all of them."""
        return {"pictures": list(self.images.shape), "digest": hashlib.sha256(self.images.contiguous().numpy().data).hexdigest()[:16]}


class Draws:
    """All that is random in a step: which pictures, which of them mirrored, the times and the noise. A part of a checkpoint.

    Pictures come in shuffled rounds without repetition. The draws are made on the CPU for the whole batch, and then each process
    takes its ``share``: so many processes train like one. ``ahead`` batches are made by a thread while the network is busy; the state
    is that after the last batch handed out, whatever the thread has made since.
    """

    def __init__(self, pictures: Pictures, process: Diffusion, settings: Settings, share: slice) -> None:
        self.pictures, self.process, self.share = pictures, process, share
        self.batch_size, self.ahead = settings.batch_size, settings.workers
        self.generator, self.rest = Generator().manual_seed(settings.seed), torch.empty(0, dtype=torch.int64)
        self.made: deque[Future[Any]] = deque()
        self.thread = ThreadPoolExecutor(1) if self.ahead else None
        self.state = self._state()

    def next(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """The whole batch's places in the data, and of this process's share x_0 in [−1, 1] (B, C, S, S), t (B,) and noise (B, C, S, S)."""
        while self.thread and len(self.made) < self.ahead:
            self.made.append(self.thread.submit(self._make))
        batch, self.state = self.made.popleft().result() if self.thread else self._make()
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        """The generator and the rest of the round, as they were after the last batch handed out."""
        return self.state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state; batches that were made ahead are thrown away."""
        while self.made:
            self.made.popleft().result()
        self.generator.set_state(state["generator"])
        self.rest, self.state = state["rest"], dict(state)

    def _state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), "rest": self.rest.clone()}

    def _make(self) -> tuple[tuple[list[int], Tensor, Tensor, Tensor], dict[str, Tensor]]:
        while len(self.rest) < self.batch_size:
            self.rest = torch.cat([self.rest, torch.randperm(len(self.pictures.images), generator=self.generator)])
        places, self.rest = self.rest[: self.batch_size], self.rest[self.batch_size :]
        mirrored = torch.rand(self.batch_size, generator=self.generator) < 0.5
        t, noise = (draw[self.share] for draw in self.process.draw(self.batch_size, self.generator))
        x_0 = to_signed(self.pictures.images[places[self.share]].to(noise.device))
        if self.pictures.mirror:
            x_0 = torch.where(mirrored[self.share, None, None, None].to(x_0.device), x_0.flip(-1), x_0)
        return (places.tolist(), x_0, t, noise), self._state()
