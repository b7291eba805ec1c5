"""Time and memory, measured so that two ways of doing a thing can be compared on a noisy machine."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def median_seconds(calls: Mapping[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """The median wall time of each call, in seconds, after one unmeasured call each.

    The calls take turns, so that a slow spell of the machine meets all of them: compare them by ratio.
    Raises ``ValueError`` for ``repeats`` < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _wait_for_gpu()
            start = time.perf_counter()
            call()
            _wait_for_gpu()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def peak_bytes(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most bytes of tensors, made during ``call`` on ``device``, that were alive at once. The same at every call.

    On the CPU every result of a torch operation is followed until it is freed; scratch memory that an operation takes
    and returns inside itself is not seen. On CUDA the allocator is asked, and libraries' workspaces count too.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as live:
        call()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages of all tensors that operations return while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.followed: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.followed | given:   # a view or an in-place result makes nothing new
                    self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.followed.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.followed.discard(key)
        self.now -= size


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
