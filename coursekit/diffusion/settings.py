"""The settings of a training run: one field, one flag of ``python -m coursekit.diffusion``, one place that checks it."""

# ruff: noqa: RUF009 - _flag is dataclasses.field
from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from coursekit.training import saved_settings

ARCHITECTURE = ("image_size", "unet_dim", "time_steps")   # what a weights file fixes
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_STOPPING = """Ctrl-C, or kill, ends the step, saves, and says how to go on. After a crash or kill -9, --resume goes on from the last
checkpoint: --save_and_sample_every says how much may be lost. To try it: --train_steps 200 --save_and_sample_every 50."""
Kind = tuple[str, Callable[[str], Any]]   # what the right values are, and how a text becomes one (or raises ValueError, KeyError)


def _whole(low: int, multiple: int = 1) -> Kind:
    def read(text: str) -> int:
        if (number := int(text)) < low or number % multiple:
            raise ValueError
        return number

    return f"a whole number, {low} or more" + (f", in multiples of {multiple}" if multiple > 1 else ""), read


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def _one_of(*names: str) -> Kind:
    return f"one of {', '.join(names)}", lambda text: {name: name for name in names}[text]


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError
    return Path(text).expanduser()


def _tracker(text: str) -> str:
    from accelerate.tracking import get_available_trackers  # most runs have no tracker, and Accelerate is slow to import

    return text if text == "none" else {str(name.value): str(name.value) for name in get_available_trackers()}[text]


_PATH: Kind = ("a path", _path)
_TRACKER: Kind = ("none or a tracker that Accelerate knows and that is installed, such as tensorboard", _tracker)
_SWITCH: Kind = ("True or False, or nothing for True", lambda text: _TRUTHS[text.lower()])


def _flag(default: Any, kind: Kind, text: str) -> Any:
    """A setting: its default, what its values are, and what ``--help`` says of it."""
    return field(default=default, metadata={"kind": kind, "text": text})


class SettingsError(ValueError):
    """A wrong setting. The message names the flag, what was given, and what is right."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a run depends on; the defaults are the handout's recommended command. ``--help`` says what each is.

    Values may be texts, as on a command line. Raises ``SettingsError`` for a wrong one, naming the flag and the right values.
    Source: CMU, homework 2, table 1.
    """

    data_path: Path | None = _flag(
        None, _PATH, "folder with cat/, dog/ and wild/ or, for --data_class all, of pictures; without it, the built-in digits"
    )
    data_class: str = _flag("cat", _one_of("all", "cat", "dog", "wild"), "which of the folders in data_path")
    save_folder: Path = _flag(Path("results"), _PATH, "where everything that the run makes goes")
    load_path: Path | None = _flag(None, _PATH, "the model.safetensors of another run: with --visualize to draw from, else to start from")
    image_size: int = _flag(
        32, _whole(8, 8), "side of the pictures in pixels, which the U-Net halves three times; for the built-in digits the default is 8"
    )
    batch_size: int = _flag(32, _whole(1), "pictures a step, over all processes together")
    train_steps: int = _flag(10_000, _whole(1), "steps of training in all; a resumed run may ask for more")
    time_steps: int = _flag(50, _whole(1), "steps of the diffusion, T")
    unet_dim: int = _flag(16, _whole(8, 8), "channels of the U-Net's first layer")
    learning_rate: float = _flag(1e-3, ("a number above 0", _positive), "of Adam")
    save_and_sample_every: int = _flag(1000, _whole(1), "steps between checkpoints, each with samples and a line in losses.csv")
    fid: bool = _flag(
        False, _SWITCH, "measure with each checkpoint how far samples are from the pictures: the FID with COURSEKIT_MODE=full, for RGB, "
        "where Inception's weights can be had; else a Fréchet distance between features of a small network, under that name"
    )  # fmt: skip
    fid_samples: int = _flag(512, _whole(4), "samples that it is measured with")
    visualize: bool = _flag(False, _SWITCH, "draw the forward and the backward process; with load_path nothing is trained")
    seed: int = _flag(0, _whole(0), "of everything random")
    loss: str = _flag("l1", _one_of("l1", "l2"), "between noise and prediction")
    precision: str = _flag("auto", _one_of("auto", "no", "fp16", "bf16"), "auto is bf16 on a GPU that has it, fp16 on another, no on a CPU")
    workers: int = _flag(0, _whole(0), "batches that a thread of its own makes ahead")
    resume: bool = _flag(False, _SWITCH, "go on with the run in save_folder, on a CPU bit for bit; where there is none, start")
    skip_bad: bool = _flag(False, _SWITCH, "leave out pictures that do not decode, instead of stopping")
    tracker: str = _flag("none", _TRACKER, "where else to log")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, (right, read) = getattr(self, each.name), each.metadata["kind"]
            if value is None and each.default is None:
                continue
            try:
                object.__setattr__(self, each.name, read(str(value)))
            except (ValueError, KeyError) as error:
                raise SettingsError(f"--{each.name} must be {right}; got {str(value)!r}") from error
        if self.seed >= 2**32:
            raise SettingsError(f"--seed must be below 2**32, got {self.seed}")

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        names = (*ARCHITECTURE, "batch_size", "learning_rate", "seed", "loss")
        return {name: getattr(self, name) for name in names}


def settings_from(given: Mapping[str, Any]) -> Settings:
    """Settings for the flags that were ``given``. The others are the defaults, but for what depends on a file:

    the weights in ``load_path`` say what the network is, and the built-in digits are 8×8. Raises ``SettingsError`` for wrong values, a
    pickle, and flags that contradict the weights; ``CheckpointError`` for a file that is damaged or not there.
    """
    settings = Settings(**given)
    if settings.load_path is None:
        return Settings(**{"image_size": 8, **given}) if settings.data_path is None else settings
    if settings.load_path.suffix in _PICKLES:
        raise SettingsError(f"--load_path {settings.load_path} is a pickle, and whoever opens one runs the code in it. Give it the "
                         "model.safetensors that this trainer writes; train again for one")  # fmt: skip
    path = settings.load_path / "model.safetensors" if settings.load_path.is_dir() else settings.load_path
    saved = saved_settings(path)
    if "channels" not in saved:
        raise SettingsError(f"--load_path {path} holds {sorted(saved) or 'nothing'} and no network; give it the model.safetensors of a run")
    for name in ARCHITECTURE:
        if name in given and getattr(settings, name) != saved[name]:
            found = f"{path} was trained with {saved[name]}"
            raise SettingsError(f"--{name} is {given[name]}, but {found}: leave the flag out, or load another")
    return Settings(**{**given, **{name: saved[name] for name in ARCHITECTURE}, "load_path": path})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from a command line: flags with underscores or dashes, switches with or without True and False.

    Raises as ``settings_from`` does, and ``SettingsError`` for what is no flag.
    """
    parser = _Parser(prog="python -m coursekit.diffusion", description="Train a diffusion model, or draw from one.", epilog=_STOPPING,
                     allow_abbrev=False)  # fmt: skip
    for each in fields(Settings):
        shown = f"{each.metadata['text']} ({each.metadata['kind'][0]}{f'; default: {each.default}' if each.default is not None else ''})"
        switch: dict[str, Any] = {"nargs": "?", "const": "True"} if isinstance(each.default, bool) else {}
        parser.add_argument(f"--{each.name}", default=argparse.SUPPRESS, metavar="VALUE", help=shown.replace("%", "%%"), **switch)
    given, unknown = parser.parse_known_args([_underscored(argument) for argument in arguments])
    if unknown:
        flags = [f"--{each.name}" for each in fields(Settings)]
        near = get_close_matches(unknown[0].partition("=")[0], flags, 1, 0.7)
        raise SettingsError(f"{unknown[0]} is no flag" + (f"; did you mean {near[0]}?" if near else f". The flags are {', '.join(flags)}"))
    return settings_from(vars(given))


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument
