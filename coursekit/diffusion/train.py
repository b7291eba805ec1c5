"""A training run of a diffusion model, from a folder of pictures to a folder of results, that loses nothing when it is stopped.

The folder of results: ``checkpoints/`` (see ``coursekit.training``), ``model.safetensors`` (the averaged weights, which are the ones to
draw from), ``losses.csv`` (a line a checkpoint), ``losses_by_step.csv``, ``times.csv``, and ``samples/`` with a PNG a checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from coursekit.data import DataError
from coursekit.diffusion.batches import Draws, Pictures
from coursekit.diffusion.pictures import draw_strips, png, write_whole
from coursekit.diffusion.process import Diffusion, to_signed
from coursekit.diffusion.schedule import NoiseSchedule
from coursekit.diffusion.settings import ARCHITECTURE, Settings
from coursekit.diffusion.unet import DenoisingUNet
from coursekit.runtime import Bar, mode, progress_bar, seed_everything
from coursekit.training import CheckpointError, Checkpoints, check_finite, load_weights, save_weights, steps

Say = Callable[[str], None]
Row = dict[str, float]


def train(settings: Settings) -> Path:
    """Run ``settings`` to the end and return the folder of results. Prints what it does and, a line a checkpoint, how it goes.

    Raises ``ValueError`` for settings that do not fit each other or this machine, ``DataError`` for pictures that cannot be used,
    ``CheckpointError`` for a folder that holds another run, ``NonFinite`` for a loss or weight that is NaN or infinite,
    and ``KeyboardInterrupt`` for Ctrl-C, once the step is whole and saved.
    Sources: Ho, Jain and Abbeel 2020, algorithm 1; CMU, homework 2, chapter 5.
    """
    accelerator = _accelerator(settings)
    say = tqdm.write if accelerator.is_main_process else _silent   # tqdm.write leaves a bar whole
    if "MASTER_ADDR" in os.environ and accelerator.num_processes == 1:
        say("one process only: accelerate launch --cpu starts no more; for n of them: torchrun --nproc-per-node n -m coursekit.diffusion")
    if not (settings.visualize and settings.load_path):
        refuse_another_run(settings, say)
    pictures = Pictures.load(settings)
    channels, height, width = pictures.images.shape[1:]
    where = f"{accelerator.num_processes} × {accelerator.device.type}, mixed precision: {accelerator.mixed_precision}"
    say(f"{pictures.title}: {len(pictures.images)} pictures of {height}×{width}, channels: {channels}; on {where}")
    if settings.visualize and settings.load_path:
        drawn_from = diffusion(network(settings, channels).to(accelerator.device), settings, channels)
    else:
        run = _Run(settings, pictures, accelerator, say)
        run.go()
        drawn_from = run.averaged
    if settings.visualize and accelerator.is_main_process:
        x_0 = to_signed(pictures.images[:8].to(accelerator.device))
        draw_strips(drawn_from, x_0, settings.save_folder / "samples", settings.seed, say)
        write_whole(settings.save_folder / "samples" / "drawn.png", sample_grid(drawn_from, settings.seed))
    return settings.save_folder


def network(settings: Settings, channels: int) -> DenoisingUNet:
    """The U-Net of these settings, from their seed or with the weights in ``load_path``."""
    seed_everything(settings.seed)
    unet = DenoisingUNet(settings.unet_dim, channels=channels)
    if settings.load_path:
        load_weights(unet, settings.load_path)
    return unet


def diffusion(model: nn.Module, settings: Settings, channels: int) -> Diffusion:
    """The process that the model is trained for: the handout's cosine schedule and T."""
    schedule = NoiseSchedule.cosine(settings.time_steps)
    return Diffusion(model, image_size=settings.image_size, channels=channels, schedule=schedule, loss=settings.loss)   # type: ignore[arg-type]


def ema_decay(step: int) -> float:
    """Weights are averaged over about the last ninth of the run, and from step 9,000 on over the last 1,000 steps."""
    return min(0.999, (1 + step) / (10 + step))


def sample_grid(process: Diffusion, seed: int) -> bytes:
    """16 samples as a PNG, from the same noise at each call."""
    samples = process.sample(16, Generator().manual_seed(seed))
    return png(samples.unflatten(0, (4, 4)))


class _Run:
    """One run: what a step needs, what a checkpoint holds, and what is written for whoever looks."""

    def __init__(self, settings: Settings, pictures: Pictures, accelerator: Accelerator, say: Say) -> None:
        self.settings, self.accelerator, self.say = settings, accelerator, say
        self.measure = _measure(settings, pictures, accelerator.device, say) if settings.fid and accelerator.is_main_process else None
        channels = pictures.images.shape[1]
        self.unet = network(settings, channels).to(accelerator.device)
        self.ema = AveragedModel(self.unet)
        optimizer = torch.optim.Adam(self.unet.parameters(), settings.learning_rate)
        model, self.optimizer = accelerator.prepare(self.unet, optimizer)
        self.process, self.averaged = (diffusion(each, settings, channels) for each in (model, self.ema.module))
        share, first = settings.batch_size // accelerator.num_processes, accelerator.process_index
        self.draws = Draws(pictures, self.process, settings, slice(first * share, (first + 1) * share))
        self.history = History()
        parts = {"model": self.unet, "ema": self.ema, "optimizer": optimizer, "draws": self.draws, "history": self.history}
        parts |= {"scaler": accelerator.scaler} if accelerator.scaler else {}
        kind = Checkpoints if accelerator.is_main_process else _Follower
        identity = settings.identity() | pictures.identity() | {"precision": accelerator.mixed_precision}
        self.checkpoints = kind(settings.save_folder / "checkpoints", parts, identity)
        accelerator.wait_for_everyone()   # nobody writes into the folder before all have looked into it

    def go(self) -> None:
        """All steps that are still to be done."""
        s, done = self.settings, max(self.checkpoints.saved(), default=0)
        with progress_bar(s.train_steps - done, "training") as bar:
            clock = _Clock(done, s, bar)
            for step in steps(s.train_steps, self.checkpoints, s.save_and_sample_every, self._any_process):
                loss = self.step(step)
                clock.tick(loss)
                if s.tracker != "none":
                    self.accelerator.log({"loss": loss}, step)
                if self.accelerator.is_main_process and (step % s.save_and_sample_every == 0 or step == s.train_steps):
                    self.say(clock.lap(step, self.write_results(step)))   # before the checkpoint: what one counts is there
        if s.tracker != "none":
            self.accelerator.end_training()
        self.say(f"{s.train_steps} steps are done; samples and weights: {s.save_folder}")

    def step(self, step: int) -> float:
        """One step of algorithm 1; its loss, over all processes."""
        places, x_0, t, noise = self.draws.next()
        self.optimizer.zero_grad()
        loss = self.process.p_loss(x_0, t, noise)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            check_finite(value, step, f"pictures {places}")
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(ema_decay(step))
        self.ema.update_parameters(self.unet)
        self.history.losses.append(value)
        return value

    def write_results(self, step: int) -> Row:
        """Samples, weights and both tables, each whole or not at all. Returns the new line of ``losses.csv``."""
        s, folder, history = self.settings, self.settings.save_folder, self.history
        write_whole(folder / "samples" / f"step-{step:08}.png", sample_grid(self.averaged, s.seed))
        row = history.add_row(step, self.measure(self.averaged) if self.measure else {})
        if s.tracker != "none":
            self.accelerator.log(row, step)
        write_whole(folder / "losses.csv", history.table().encode())
        write_whole(folder / "losses_by_step.csv", history.by_step().encode())
        architecture = {name: getattr(s, name) for name in ARCHITECTURE} | {"channels": self.averaged.channels}
        save_weights(self.ema.module, folder / "model.safetensors", architecture | {"step": step, "loss": s.loss, "seed": s.seed})
        return row

    def _any_process(self, stop: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return stop
        return float(self.accelerator.reduce(torch.tensor(float(stop), device=self.accelerator.device))) > 0


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
        lines = [",".join(f"{row[name]:.6g}" if name in row else "" for name in columns) for row in self.rows]
        return "\n".join([",".join(columns), *lines]) + "\n"

    def by_step(self) -> str:
        """The loss of every step as CSV."""
        return "".join(["step,loss\n", *(f"{step},{loss:.6g}\n" for step, loss in enumerate(self.losses, 1))])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "losses": torch.tensor(self.losses, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self.losses = list(state["rows"]), state["losses"].tolist()


class _Follower(Checkpoints):
    """In all processes but the main one: they read the checkpoints that it writes."""

    def save(self, step: int) -> None:
        pass


class _Clock:
    """What is said of the time. It goes into ``times.csv``, and nowhere where a resumed run must equal the one never stopped."""

    def __init__(self, done: int, settings: Settings, bar: Bar) -> None:
        self.step, self.settings, self.bar, self.start = done, settings, bar, time.perf_counter()

    def tick(self, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(1)

    def lap(self, step: int, row: Row) -> str:
        """A line on the steps since the last one, samples and measuring included."""
        seconds, steps_done = time.perf_counter() - self.start, step - self.step
        with open(self.settings.save_folder / "times.csv", "a", encoding="utf-8") as file:
            file.write(f"{step},{steps_done},{seconds:.3f}\n")
        left = (self.settings.train_steps - step) * seconds / steps_done
        self.step, self.start = step, time.perf_counter()
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        rate = f"{steps_done * self.settings.batch_size / seconds:.0f} pictures/s"
        return f"step {step} of {self.settings.train_steps}: {numbers}; {rate}, {left / 60:.1f} min left"


def refuse_another_run(settings: Settings, say: Say) -> None:
    """Raise ``CheckpointError`` where ``save_folder`` holds a run that is not to be resumed, before anything is written there."""
    folder = settings.save_folder
    saved = Checkpoints(folder / "checkpoints", {}).saved()
    if not settings.resume and (saved or (folder / "model.safetensors").exists()):
        found = f"a run, saved up to step {saved[-1]}" if saved else "model.safetensors of a run"
        raise CheckpointError(f"{folder} holds {found}. Nothing was changed: go on with it by --resume, or choose another --save_folder")
    if settings.resume:
        say(f"going on after step {saved[-1]}" if saved else f"--resume: nothing is saved in {folder} yet, so this is the start")


def _accelerator(settings: Settings) -> Accelerator:
    """Accelerate on CUDA or the CPU, never on MPS, which lacks float64. Raises ``ValueError`` for what the machine has not."""
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    if settings.precision == "fp16" and not cuda:
        raise ValueError("--precision fp16 needs a GPU; on a CPU take no, or bf16")
    native = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)   # a T4 emulates it, and is slower than without
    if settings.precision == "bf16" and not native:
        raise ValueError(f"--precision bf16: {torch.cuda.get_device_name()} has no bf16 of its own; take fp16")
    precision = settings.precision if settings.precision != "auto" else "no" if not cuda else "bf16" if native else "fp16"
    log_with = None if settings.tracker == "none" else settings.tracker
    accelerator = Accelerator(cpu=not cuda, mixed_precision=precision, log_with=log_with, project_dir=settings.save_folder)
    accelerator.wait_for_everyone()   # who leaves before all have met takes the others down without a word
    if settings.batch_size % accelerator.num_processes:
        raise ValueError(f"--batch_size {settings.batch_size} cannot be shared by {accelerator.num_processes} processes: take a multiple")
    if log_with:
        accelerator.init_trackers("coursekit", {name: str(value) for name, value in vars(settings).items()})
    return accelerator


def _measure(settings: Settings, pictures: Pictures, device: torch.device, say: Say) -> Callable[[Diffusion], Row]:
    """Process → how far its samples are from the pictures, and the pictures from themselves.

    The distance is the FID in full mode, for RGB, where Inception's weights can be had; else it is named after the features of our own.
    """
    from coursekit.fid import compare, inception_features, train_features

    names = {"frechet": "fid", "kernel": "kid", "floor_frechet": "fid_floor", "floor_kernel": "kid_floor"}
    features: Callable[[Tensor], Tensor] | None = None
    if mode() == "full" and pictures.images.shape[1] == 3:
        try:
            inception_features(pictures.images[:1])
            features = _remembered(lambda images: inception_features(images, device))
        except DataError as error:
            say(str(error))
    if features is None:
        generator = Generator().manual_seed(settings.seed)
        features = _remembered(train_features(pictures.images, pictures.labels, generator=generator).features)
        names = {name: f"feature_{name}" for name in names}
    say(f"{' and '.join(names.values())}: of {settings.fid_samples} samples, against the pictures at {settings.image_size} pixels")

    def measure(process: Diffusion) -> Row:
        generator, count = Generator().manual_seed(settings.seed), settings.fid_samples
        samples = torch.cat([process.sample(min(64, count - first), generator).cpu() for first in range(0, count, 64)])
        return {names.get(name, name): value for name, value in compare(pictures.images, samples, features).items()}

    return measure


def _remembered(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same, but features of a batch seen before are not computed again: the pictures come back at each checkpoint."""
    seen: dict[str, Tensor] = {}

    def look(images: Tensor) -> Tensor:
        key = hashlib.sha256(images.numpy().data).hexdigest()
        if key not in seen:
            seen[key] = features(images).cpu()
        return seen[key]

    return look


def _silent(_: str) -> None:
    pass
