"""What keeps a training run from losing anything: checkpoints, resume, Ctrl-C, a guard against NaN. Loops stand in notebooks.

A checkpoint is one safetensors file: its tensors under readable names, everything else as JSON in its header. Nothing is pickled, so
loading one runs no code. A digest over all of it tells a damaged file. It appears by one rename once its bytes are on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from coursekit.files import remove_rests, write_whole

StrPath = str | os.PathLike[str]
_ADVICE = "Try a smaller learning rate, clipped gradients or float32; if it is always this step, look at its data"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used. The message names the file, what was found, and what to do."""


class NonFinite(ArithmeticError):
    """A loss or a weight is NaN or infinite. The message names the step and says what to try."""


def steps(total: int, run: Checkpoints, every: int = 100, any_process: Callable[[bool], bool] = bool) -> Iterator[int]:
    """The steps that ``run`` still lacks, up to and including ``total``; the same line starts a run and goes on with it.

    Resumes from the newest checkpoint, and saves before the first step, after each ``every`` steps, after the last, and when interrupted:
    Ctrl-C (a notebook's stop button) or SIGTERM (``kill``) is held back until the step is whole, which is then saved before
    ``KeyboardInterrupt`` is raised. A second one stops at once and saves nothing, and so do an error or a ``break`` in the loop. Only the
    main thread can hold signals back. ``any_process``: tells each of several processes whether any was interrupted.
    Raises ``ValueError`` for ``every`` < 1 and a run beyond ``total``; for the rest see ``Checkpoints``.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    done = run.resume()
    if done > total:
        raise ValueError(f"{run.folder} holds step {done}, more than the {total} asked for; raise total or choose another folder")
    if not run.saved():
        run.save(0)   # whoever stops before the next one, in the middle of a step, starts from the same weights again

    def stopped(step: int) -> str:
        return f"stopped after step {step} of {total}, which is saved in {run.folder}; the run can go on from there"

    with _interrupt_held_back() as interrupted:
        for step in range(done + 1, total + 1):
            yield step
            if (stop := any_process(bool(interrupted))) or step % every == 0 or step == total:
                run.save(step)
            if stop:
                raise KeyboardInterrupt(stopped(step))
    if any_process(bool(interrupted)):   # during the last save
        raise KeyboardInterrupt(stopped(total))


def check_finite(loss: float | Tensor, step: int, where: str = "") -> None:
    """Raise ``NonFinite`` where a loss, of any shape, is NaN or infinite; ``where`` may name the batch. Call it before the update."""
    if not torch.isfinite(torch.as_tensor(loss)).all():
        raise NonFinite(f"the loss of step {step}{where and f' ({where})'} is {loss}. The checkpoints hold the steps before. {_ADVICE}")


class Checkpoints:
    """The checkpoints of one run: files ``step-00000100.safetensors`` in ``folder``, of which the newest ``keep`` stay.

    ``parts``: name → what changes during the run: modules (not their compiled or distributed wrappers), optimizers and whatever else has
    a ``state_dict``, ``torch.Generator``, and lists and dicts such as a history, which are filled in place. The global generators of
    Python, NumPy and torch are always saved: a run that draws from these alone is, resumed on the CPU, bit for bit the one never stopped.
    ``settings``: what must be the same to go on (JSON): sizes, learning rate, seed, data. A resumed optimizer has the checkpoint's
    learning rate, so name it here to be told when the two differ.
    Raises ``ValueError`` for ``keep`` < 1, ``TypeError`` for a part of another kind or settings that are no JSON.
    """

    def __init__(self, folder: StrPath, parts: Mapping[str, Any], settings: Mapping[str, Any] | None = None, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        for name, part in parts.items():
            if not (isinstance(part, torch.Generator | list | dict) or hasattr(part, "load_state_dict")):
                raise TypeError(f"parts[{name!r}] is a {type(part).__name__}; give what has a state_dict, a torch.Generator, list or dict")
        self.folder, self.keep = Path(folder).absolute(), keep
        self.parts = {**parts, "global generators": _GlobalGenerators()}
        self.settings = json.loads(json.dumps(settings or {}))   # as they will come back: tuples are lists
        self.kinds = {name: type(part).__qualname__ for name, part in self.parts.items()}

    def saved(self) -> list[int]:
        """The steps that are saved, oldest first."""
        return sorted(int(p.stem[5:]) for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}\.safetensors", p.name))

    def save(self, step: int) -> None:
        """Save all parts as they are after ``step``; once that is on the disk, remove the checkpoints beyond ``keep``.

        Raises ``NonFinite`` for a parameter that is not finite, ``CheckpointError`` where a later step is there or writing fails.
        """
        if (newest := max(self.saved(), default=0)) > step:
            raise CheckpointError(f"{self.folder} holds step {newest}, so not step {step}: resume(), or choose another folder")
        for name, part in self.parts.items():
            for key, weight in part.named_parameters() if isinstance(part, nn.Module) else ():
                if not torch.isfinite(weight).all():
                    raise NonFinite(f"{name}.{key} is not finite at step {step}, which is not saved; {self.saved()} are. {_ADVICE}")
        states = {name: _state(part) for name, part in self.parts.items()}
        _write(self._path(step), states, step=step, settings=self.settings, kinds=self.kinds)
        for number in self.saved()[: -self.keep]:
            self._path(number).unlink(missing_ok=True)   # another process may have done it
        remove_rests(self.folder, ".step-*.part")

    def resume(self) -> int:
        """Restore all parts from the newest checkpoint; returns its step, or 0 where there is none.

        Raises ``CheckpointError`` where it is damaged or differs in settings or architecture; nothing is changed then.
        """
        if not (saved := self.saved()):
            return 0
        path = self._path(saved[-1])
        try:
            states, header = _read(path)
            if header.get("step") != saved[-1]:
                raise CheckpointError(f"{path} holds {header.get('step', 'no run')}: it has been renamed")
        except CheckpointError as error:
            raise CheckpointError(f"{error}. Move it away to {f'go on from step {saved[-2]}' if saved[1:] else 'start again'}") from error
        odd = _differences("settings", header["settings"], self.settings) + _differences("parts", header["kinds"], self.kinds)
        for name, part in self.parts.items() if not odd else ():
            if isinstance(part, nn.Module | torch.optim.Optimizer):
                odd += _differences(name, _shapes(states[name]), _shapes(part.state_dict()))
        _refuse(f"{path} belongs to another run", odd, "Go back to what it was, or choose another folder")
        for name, part in self.parts.items():
            _restore(part, states[name])
        return saved[-1]

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}.safetensors"


def save_weights(module: nn.Module, path: StrPath, settings: Mapping[str, Any] | None = None) -> None:
    """Write weights, by name, and the ``settings`` (JSON) to construct the module. Raises ``CheckpointError``; the old file stays."""
    _write(Path(path), module.state_dict(), settings=dict(settings or {}))


def load_weights(module: nn.Module, path: StrPath) -> None:
    """Fill a module with saved weights. Raises ``CheckpointError``, the module unchanged, for a bad file or another architecture."""
    weights, header = _read(Path(path))
    if "step" in header:
        raise CheckpointError(f"{path} is a checkpoint of a whole run: resume it with Checkpoints, then save_weights")
    odd = _differences(type(module).__name__, _shapes(weights), _shapes(module.state_dict()))
    _refuse(f"{path} does not fit", odd, "Construct the module from saved_settings(path)")
    module.load_state_dict(weights)


def saved_settings(path: StrPath) -> dict[str, Any]:
    """The settings of a checkpoint or weights file. Raises ``CheckpointError`` for a damaged or another file."""
    return _read(Path(path))[1]["settings"]


class _GlobalGenerators:
    """The state that ``random``, ``numpy.random`` and torch's default generators draw from, as a part of a run."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 - libraries draw from it
        numpy, cuda = (name, np.asarray(keys).tolist(), *rest), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():   # on another machine the run goes on, with draws of its own
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        random.setstate(state["python"])


def _state(part: Any) -> Any:
    return part if isinstance(part, list | dict) else part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, list | dict):   # the reader's own object, not a new one
        part.clear()
        part.extend(state) if isinstance(part, list) else part.update(state)
    else:
        part.set_state(state) if isinstance(part, torch.Generator) else part.load_state_dict(state)


def _shapes(state: Mapping[str, Any]) -> dict[str, str]:
    if "param_groups" in state:
        return {f"group {number}": f"{len(group['params'])} parameters" for number, group in enumerate(state["param_groups"])}
    return {name: f"{list(value.shape)} {value.dtype}" for name, value in state.items() if isinstance(value, Tensor)}


def _differences(title: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    pairs = {name: (saved.get(name, "nothing"), here.get(name, "nothing")) for name in {**saved, **here}}
    return [f"{title} {name} is {old} in the file, {new} here" for name, (old, new) in pairs.items() if old != new]


def _refuse(claim: str, odd: list[str], advice: str) -> None:
    if odd:
        raise CheckpointError(f"{claim}: {'; '.join(odd[:5])}{f'; and {len(odd) - 5} more' if odd[5:] else ''}. {advice}")


def _write(path: Path, values: Mapping[str, Any], **header: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = {**_encode(header, "header", tensors), "values": {name: _encode(value, name, tensors) for name, value in values.items()}}
    text = json.dumps(tree)
    data = safetensors.torch.save(tensors, {"format": "pt", "state": text, "digest": _digest(tensors, text)})
    try:
        write_whole(path, data)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict; a clone, not the mapped file
    except (OSError, SafetensorError) as error:
        found = "is damaged, or no safetensors file" if isinstance(error, SafetensorError) else "cannot be read"
        raise CheckpointError(f"{path} {found}: {error}") from error
    if not {"state", "digest"} <= metadata.keys():
        raise CheckpointError(f"{path} was not written by coursekit.training: its header holds {sorted(metadata)}")
    if metadata["digest"] != _digest(tensors, metadata["state"]):
        raise CheckpointError(f"{path} is damaged: its content has not the digest that it was written with")
    header = json.loads(metadata["state"], object_hook=lambda node: _decode(node, tensors))
    return header.pop("values"), header


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encode(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``node`` as JSON, in which the tensors are named after their place, and these, copied, in ``tensors``. ``_decode`` undoes it."""
    if isinstance(node, Tensor):
        if node.is_quantized or node.dtype in (torch.complex32, torch.complex128):
            raise TypeError(f"{name} is a tensor of {node.dtype}, which a safetensors file cannot hold; save it as another type")
        while name in tensors:   # {"a.b": …} and {"a": {"b": …}}
            name += "'"
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        last = node.ndim == 4 and not node.is_contiguous() and node.is_contiguous(memory_format=torch.channels_last)
        return {"$tensor": name, "channels_last": last}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [_encode(item, f"{name}.{number}", tensors) for number, item in enumerate(node)]
    if isinstance(node, tuple):
        return {"$tuple": _encode([*node], name, tensors)}
    if not isinstance(node, Mapping):
        raise TypeError(f"{name} is a {type(node).__name__}; saved are tensors, numbers, texts, None, and lists, tuples and dicts of them")
    if all(isinstance(key, str) and key[:1] != "$" for key in node):
        return {key: _encode(value, f"{name}.{key}", tensors) for key, value in node.items()}
    return {"$keys": _encode([*node], name, tensors), "values": _encode([*node.values()], name, tensors)}


def _decode(node: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if "$tensor" in node:
        tensor = tensors[node["$tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if node["channels_last"] else tensor
    if "$tuple" in node:
        return tuple(node["$tuple"])
    return dict(zip(node["$keys"], node["values"], strict=True)) if "$keys" in node else node


@contextmanager
def _interrupt_held_back() -> Iterator[list[int]]:
    """Yields a list that the first Ctrl-C or SIGTERM is added to instead of stopping anything; the second does what it did before."""
    caught, owner = list[int](), os.getpid()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()   # else Python refuses
    held = {n: known for n in numbers if (known := signal.getsignal(n)) not in (signal.SIG_IGN, None)}   # ignored, as under nohup

    def hold(number: int, frame: Any) -> None:
        if caught or os.getpid() != owner:   # a forked child, such as a pool's, ends when it is told to
            signal.signal(number, held[signal.Signals(number)])
            signal.raise_signal(number)
        caught.append(number)

    for number in held:
        signal.signal(number, hold)
    try:
        yield caught
    finally:
        for number, known in held.items():
            signal.signal(number, known)
