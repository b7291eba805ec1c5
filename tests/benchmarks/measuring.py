"""What the benchmarks measure with: turns on the clock, bytes touched, the machine's own limits, time by kind of operation, a record."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coursekit.runtime import device

sys.path.append(str(Path(__file__).resolve().parents[1] / "records"))
from recording import keep as keep

REST = "elementwise, sums, norms"
KINDS = {
    "convolutions": ("convolution", "conv_"), "matrix products": ("mm",), "softmax": ("softmax",), "attention": ("scaled_dot", "attention"),
    "group norm": ("group_norm",), "optimizer": ("lerp", "addcmul_", "addcdiv", "Adam", "_foreach", "sqrt"),
    "concatenation, copies": ("cat", "copy", "clone", "shuffle"),
}   # fmt: skip


def paired(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds and CPU seconds of each call, and the ratio of the first call's to each one's, turn by turn: medians and quartiles.

    The calls take turns, so that a slow spell of the machine meets all of them; the first turn is not counted.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _wait()
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            _wait()
            if turn:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
    first = next(iter(calls))
    found = {}
    for name in calls:
        ratios = [a / b for a, b in zip(wall[first], wall[name], strict=True)]
        cpu_ratio = median(a / b for a, b in zip(cpu[first], cpu[name], strict=True))
        found[name] = {"n": repeats, "seconds": median(wall[name]), "quartiles": quantiles(wall[name], n=4, method="inclusive"),
                       "cpu_seconds": median(cpu[name]), "cpu_ratio": cpu_ratio,
                       "ratio": median(ratios), "ratio_quartiles": quantiles(ratios, n=4, method="inclusive")}   # fmt: skip
    return found


def processor() -> str:
    """The GPU's name where there is one, else that of the CPU."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peaks() -> tuple[float, float]:
    """What this machine can do here and now: operations per second of a matrix product, bytes per second of a copy."""
    side = 8192 if device().type == "cuda" else 1024
    a, long = torch.randn(side, side, device=device()), torch.randn(2**25, device=device())
    best = paired({"product": lambda: a @ a, "copy": lambda: long.clone()}, 5)
    return 2 * side**3 / best["product"]["seconds"], 2 * 4 * len(long) / best["copy"]["seconds"]


def bytes_touched(call: Callable[[], Any]) -> int:
    """Bytes that the operations of ``call`` read and write if each goes to memory for all of its tensors: caches do better."""
    with _Bytes() as counter:
        call()
    return counter.total


class _Bytes(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            self.total += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result


def shares(call: Callable[[], Any], side: int, repeats: int = 3) -> dict[str, float]:
    """The share of the time of ``call`` by kind of operation, and of all that reads maps of full size, whole or as rows of pixels."""
    call()
    cuda = device().type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda], record_shapes=True) as seen:
        for _ in range(repeats):
            call()
    found, full = dict.fromkeys([*KINDS, REST], 0.0), 0.0
    for event in seen.key_averages(group_by_input_shape=True):
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        found[next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), REST)] += spent
        shapes = [shape for shape in event.input_shapes if isinstance(shape, list)]
        rows = range(side**2, side**2 + 8)   # the peer's attention appends four
        full += spent * any(shape[-2:] == [side, side] or (len(shape) > 2 and shape[-1] in rows) for shape in shapes)
    total = sum(found.values())
    return {kind: spent / total for kind, spent in found.items()} | {f"at {side}×{side} pixels, at least": full / total}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
