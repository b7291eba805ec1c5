"""Where a notebook runs: fast or full mode, the device, seeds, a progress bar.

>>> mode() in ("fast", "full")
True
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from tqdm.auto import tqdm

MODES = ("fast", "full")
T = TypeVar("T")


def mode() -> Literal["fast", "full"]:
    """``"fast"``: built-in data on two CPU cores. ``"full"``: the real data sets, meant for a GPU.

    The environment variable ``COURSEKIT_MODE`` decides; where it is unset or empty, a CUDA device means full.
    Raises ``ValueError`` for any other name.
    """
    name = os.environ.get("COURSEKIT_MODE", "").strip().lower()
    if not name:
        return "full" if torch.cuda.is_available() else "fast"
    if name not in MODES:
        raise ValueError(f"COURSEKIT_MODE is {name!r}; set it to one of {', '.join(map(repr, MODES))}, or unset it to choose by device")
    return cast(Literal["fast", "full"], name)


def device() -> torch.device:
    """CUDA where there is one, else the CPU. Never Apple's MPS: the mathematics needs float64, which MPS lacks."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: for so few numbers the others bring nothing, and on a busy machine each call waits for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (every device), and return a CPU generator with the same seed for data loaders.

    Hand the generator to ``DataLoader(generator=...)``: the order of the data is then fixed, and so are the draws of its
    workers, whom torch seeds by it. ``seed``: an integer in 0 .. 2**32 - 1, NumPy's range.
    Raises ``ValueError`` or ``TypeError`` otherwise.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2**32 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from NumPy's global state are seeded as well
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def progress_bar(total: int | None, description: str, unit: str = "it", show: bool = True) -> AbstractContextManager[tqdm]:
    """A bar to be moved by hand: ``with progress_bar(100, "training") as bar: bar.update(1)``.

    A widget in a notebook, text in a terminal. Nothing at all where ``COURSEKIT_QUIET`` is set, as it is when
    notebooks are executed to be compared, where the output is a file, and without ``show``.
    """
    return tqdm(total=total, desc=description, unit=unit, unit_scale=unit == "B", leave=False, disable=_quiet() if show else True)


def progress(items: Iterable[T], description: str) -> Iterator[T]:
    """Iterate over ``items`` with a bar (see ``progress_bar``)."""
    return iter(tqdm(items, desc=description, leave=False, disable=_quiet()))


def _quiet() -> bool | None:
    # For tqdm, None means: silent unless the output is a terminal. A notebook's bar is a widget and asks no terminal.
    if os.environ.get("COURSEKIT_QUIET"):
        return True
    return False if "notebook" in tqdm.__module__ or _in_kernel() else None


def _in_kernel() -> bool:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
