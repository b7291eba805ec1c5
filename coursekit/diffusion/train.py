"""A training run of a diffusion model, from a folder of pictures to a folder of results, that loses nothing when it is stopped.

The folder of results: ``checkpoints/`` (see ``coursekit.training``), ``model.safetensors`` (the averaged weights, which are the ones to
draw from), ``losses.csv`` (a line a checkpoint), ``losses_by_step.csv``, ``times.csv``, and ``samples/`` with a PNG a checkpoint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Generator, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from coursekit.data.pixels import to_signed
from coursekit.diffusion.batches import Draws, Pictures
from coursekit.diffusion.pictures import draw_strips, png
from coursekit.diffusion.process import Diffusion
from coursekit.diffusion.results import Clock, History, Row, Say, measure_of, shown
from coursekit.diffusion.schedule import NoiseSchedule
from coursekit.diffusion.settings import ARCHITECTURE, Settings, SettingsError
from coursekit.diffusion.unet import DenoisingUNet
from coursekit.files import write_whole
from coursekit.runtime import progress_bar, seed_everything
from coursekit.training import CheckpointError, Checkpoints, NonFinite, check_finite, load_weights, save_weights, saved_settings, steps

PATIENCE = 20   # skipped steps in a row: from its first 65,536, fp16's scale of the loss has then been halved to 1/16


def train(settings: Settings) -> Path:
    """Run ``settings`` to the end and return the folder of results. Prints what it does and, a line a checkpoint, how it goes.

    Raises ``SettingsError`` for settings that do not fit each other or this machine, ``DataError`` for pictures that cannot be used,
    ``CheckpointError`` for a folder that holds another run or in which another process trains, ``NonFinite`` for a loss or weight that
    is NaN or infinite and for gradients that stay so, and ``KeyboardInterrupt`` for Ctrl-C or ``kill``, once the step is whole and saved.
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
    if settings.load_path and (known := saved_settings(settings.load_path).get("channels")) != channels:
        raise SettingsError(f"--load_path {settings.load_path} was trained on pictures with channels: {known}; these have {channels}")
    if settings.visualize and settings.load_path:
        drawn_from = diffusion(network(settings, channels).to(accelerator.device), settings, channels)
    else:
        if settings.fid and (found := len(pictures.images)) < 4:   # else compare refuses them, at the first checkpoint
            raise SettingsError(f"--fid needs four pictures at least, found {found}: leave it out, or add some")
        with only_trainer(settings.save_folder, accelerator):
            refuse_another_run(settings, _silent)   # one may have come and gone while the pictures were read
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
        self.measure = measure_of(settings, pictures, accelerator.device, say) if settings.fid and accelerator.is_main_process else None
        channels = pictures.images.shape[1]
        self.unet = network(settings, channels).to(accelerator.device)
        self.ema = AveragedModel(self.unet)
        optimizer = torch.optim.Adam(self.unet.parameters(), settings.learning_rate)
        model, self.optimizer = accelerator.prepare(self.unet, optimizer)
        self.process, self.averaged = (diffusion(each, settings, channels) for each in (model, self.ema.module))
        share, first = settings.batch_size // accelerator.num_processes, accelerator.process_index
        self.draws = Draws(pictures, self.process, settings, slice(first * share, (first + 1) * share))
        self.history, self.skipped = History(), 0
        parts = {"model": self.unet, "ema": self.ema, "optimizer": optimizer, "draws": self.draws, "history": self.history}
        parts |= {"scaler": accelerator.scaler} if accelerator.scaler else {}
        kind = Checkpoints if accelerator.is_main_process else _Follower
        identity = settings.identity() | pictures.identity() | {"precision": accelerator.mixed_precision}
        self.checkpoints = kind(settings.save_folder / "checkpoints", parts, identity)
        accelerator.wait_for_everyone()   # nobody writes into the folder before all have looked into it

    def go(self) -> None:
        """All steps that are still to be done."""
        s, done, main = self.settings, max(self.checkpoints.saved(), default=0), self.accelerator.is_main_process
        if s.tracker != "none":
            self.accelerator.init_trackers("coursekit", {name: str(value) for name, value in vars(s).items()})
        with progress_bar(s.train_steps - done, "training", show=main) as bar:
            clock = Clock(done, s, bar)
            try:
                for step in steps(s.train_steps, self.checkpoints, s.save_and_sample_every, partial(any_process, self.accelerator)):
                    if step == done + 1:   # the run has been resumed, not refused
                        self.say(f"steps {step} to {s.train_steps}; a line here, a checkpoint and samples every {s.save_and_sample_every}")
                    loss = self.step(step)
                    clock.tick(loss)
                    self.accelerator.log({"loss": loss}, step)
                    if main and (step % s.save_and_sample_every == 0 or step == s.train_steps):   # before the checkpoint that counts it
                        found = ", ".join(f"{name} {shown(value, 4)}" for name, value in self.write_results(step).items() if name != "step")
                        self.say(f"step {step} of {s.train_steps}: {found}; {clock.lap()}")
            except KeyboardInterrupt:
                if main and clock.step in self.checkpoints.saved():
                    clock.lap()
                raise
            finally:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
        self.say(f"{s.train_steps} steps are done; samples and weights: {s.save_folder}")

    def step(self, step: int) -> float:
        """One step of algorithm 1; its loss, over all processes. Raises ``NonFinite`` for a loss, or many gradients, that are not."""
        places, x_0, t, noise = self.draws.next()
        self.optimizer.zero_grad()
        loss = self.process.p_loss(x_0, t, noise)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            check_finite(value, step, f"pictures {places}")
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.skipped = self.skipped + 1 if self.accelerator.optimizer_step_was_skipped else 0
        if self.skipped == PATIENCE:
            raise NonFinite(f"the gradients of {PATIENCE} steps in a row, up to {step}, are not finite in half precision: nothing is "
                            "learned. The checkpoints hold the steps before. Try --precision no, or a smaller --learning_rate")  # fmt: skip
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(ema_decay(step))
        self.ema.update_parameters(self.unet)
        self.history.losses.append(value)
        return value

    def write_results(self, step: int) -> Row:
        """Samples, weights and both tables, each whole or not at all. Returns the new line of ``losses.csv``."""
        s, folder, history = self.settings, self.settings.save_folder, self.history
        write_whole(folder / "samples" / f"step-{step:08}.png", sample_grid(self.averaged, s.seed))
        row = history.add_row(step, self.measure(self.averaged) if self.measure else {})
        self.accelerator.log(row, step)
        write_whole(folder / "losses.csv", history.table().encode())
        write_whole(folder / "losses_by_step.csv", history.by_step().encode())
        architecture = {name: getattr(s, name) for name in ARCHITECTURE} | {"channels": self.averaged.channels}
        save_weights(self.ema.module, folder / "model.safetensors", architecture | {"step": step, "loss": s.loss, "seed": s.seed})
        return row


class _Follower(Checkpoints):
    """In all processes but the main one: they read the checkpoints that it writes."""

    def save(self, step: int) -> None:
        pass


@contextmanager
def only_trainer(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Within it, no other run trains in ``folder``; the system ends it with the process.

    Raises ``CheckpointError`` where one does, and where ``folder`` cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"--save_folder {folder} cannot be made: {error.strerror}. Choose another") from error
    lock, taken = FileLock(folder / ".lock"), False
    if accelerator.is_main_process:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            taken = True
    if any_process(accelerator, taken):
        raise CheckpointError(f"another run trains in {folder} at this moment. Wait for its end, or choose another --save_folder")
    with lock if lock.is_locked else nullcontext():
        yield


def any_process(accelerator: Accelerator, mine: bool) -> bool:
    """Whether ``mine`` is true in any of the processes: all get the same answer."""
    if accelerator.num_processes == 1:
        return mine
    return float(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device))) > 0


def refuse_another_run(settings: Settings, say: Say) -> None:
    """Raise, before anything is written there, where ``save_folder`` holds a run that is not to be resumed (``CheckpointError``) or that
    has gone beyond ``train_steps`` (``SettingsError``)."""
    folder = settings.save_folder
    saved = Checkpoints(folder / "checkpoints", {}).saved()
    if not settings.resume and (saved or (folder / "model.safetensors").exists()):
        found = f"a run, saved up to step {saved[-1]}" if saved else "model.safetensors of a run"
        raise CheckpointError(f"{folder} holds {found}. Nothing was changed: go on with it by --resume, or choose another --save_folder")
    if saved and saved[-1] > settings.train_steps:
        raise SettingsError(f"{folder} holds step {saved[-1]}, more than the {settings.train_steps} asked for: raise --train_steps, or "
                            "choose another --save_folder")  # fmt: skip
    if settings.resume:
        found = f"step {saved[-1]} is saved in {folder}" if saved else f"nothing is saved in {folder} yet, so this is the start"
        say(f"--resume: {found}")


def _accelerator(settings: Settings) -> Accelerator:
    """Accelerate on CUDA or the CPU, never on MPS, which lacks float64. Raises ``SettingsError`` for what the machine has not."""
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    if settings.precision == "fp16" and not cuda:
        raise SettingsError("--precision fp16 needs a GPU; on a CPU take no, or bf16")
    native = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)   # a T4 emulates it, and is slower than without
    if settings.precision == "bf16" and not native:
        raise SettingsError(f"--precision bf16: {torch.cuda.get_device_name()} has no bf16 of its own; take fp16")
    precision = settings.precision if settings.precision != "auto" else "no" if not cuda else "bf16" if native else "fp16"
    log_with = None if settings.tracker == "none" else settings.tracker
    accelerator = Accelerator(cpu=not cuda, mixed_precision=precision, log_with=log_with, project_dir=settings.save_folder)
    accelerator.wait_for_everyone()   # who leaves before all have met takes the others down without a word
    if settings.batch_size % accelerator.num_processes:
        shared = f"cannot be shared by {accelerator.num_processes} processes: take a multiple"
        raise SettingsError(f"--batch_size {settings.batch_size} {shared}")
    return accelerator


def _silent(_: str) -> None:
    pass
